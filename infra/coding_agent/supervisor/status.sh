#!/usr/bin/env bash
# status.sh RUN [PROCESSES]: one round trip. A JSON line of what was seen, then .meta.json as it is.
# With PROCESSES, what the run's processes use is added up: cumulative CPU ticks, so that the asker can divide.
set -u
here=${BASH_SOURCE[0]%/*}
# shellcheck source=common.sh
. "$here/common.sh"

# held LOCK: whether somebody holds it. A free lock is a proof only where it still is the one that was taken.
# A shared one is tried, so that two who look don't see each other.
held() { plain "$1" && ! flock -s -n "$1" true; }

size() { # bytes of a regular file
  if plain "$1"; then stat -c %s -- "$1"; else echo 0; fi
}

main() {
  local run=$1 id=${1##*/} kind pid ticks=0 pages=0 resident up supervised agent_free
  clock
  if [[ ! -d $run || -L $run ]]; then
    supervised=true
    supervisors "$run" || supervised=false
    # In one look, because a run that is started or removed meanwhile answers each of two looks differently.
    kind=$(stat -c %F -- "$run" 2>/dev/null)
    if [[ $kind == directory ]]; then
      : # made meanwhile
    elif [[ $kind || $supervised == true ]]; then
      # Something else in its place, or nothing although its supervisor lives: somebody moved it.
      printf '{"exists":true,"replaced":true,"supervised":%s,"now":%s}\n' "$supervised" "$NOW_EXACT"
      return 0
    else
      printf '{"exists":false,"now":%s}\n' "$NOW_EXACT"
      return 0
    fi
  fi
  supervised=true agent_free=false
  held "$run/.lock" || supervisors "$run" || supervised=false
  if plain "$run/.lock.agent"; then
    held "$run/.lock.agent" || agent_free=true
  else
    scan "$id" 0 0
    ((${#PIDS[@]})) || agent_free=true
  fi
  boot_id
  PIDS=()
  if [[ ${2-} ]]; then
    scan "$id" 0 0
    [[ ${CODING_AGENT_OWN_NAMESPACE-} ]] || supervisors "$run" || :
    for pid in "${PIDS[@]}"; do
      [[ " ${SUPERVISORS[*]-} " == *" $pid "* ]] && continue
      process_stat "$pid" || continue
      ticks=$((ticks + STAT[11] + STAT[12] + STAT[13] + STAT[14]))
      read -r _ resident _ 2>/dev/null <"/proc/$pid/statm" || resident=0
      pages=$((pages + resident))
    done
  fi
  read -r up _ </proc/uptime
  printf '{"exists":true,"now":%s,"boot_id":"%s","uptime":%s,"supervised":%s,"agent_free":%s,' \
    "$NOW_EXACT" "$BOOT" "$up" "$supervised" "$agent_free"
  printf '"processes":%d,"ticks":%d,"ticks_per_second":%d,"resident":%d,"stream":%d,"output":%d}\n' \
    "${#PIDS[@]}" "$ticks" "$(getconf CLK_TCK)" "$((pages * $(getconf PAGESIZE)))" \
    "$(size "$run/stream.jsonl")" "$(size "$run/output.log")"
  plain "$run/.meta.json" && head -c 65536 -- "$run/.meta.json"
  return 0
}

main "$@"
exit
