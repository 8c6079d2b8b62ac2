#!/usr/bin/env bash
# start.sh RUNS RUN_ID STAGING: start the run once, whoever else tries; stdin: the secrets, framed (see supervise.sh).
# Prints one word: started, adopted (a supervisor holds it), ended, orphaned (the agent lives without its supervisor),
# lost (neither lives, no end was written). RUNS/.STAGING holds the run's files, put there before.
set -u
here=${BASH_SOURCE[0]%/*}
# shellcheck source=common.sh
. "$here/common.sh"
# shellcheck source=scope.sh
. "$here/scope.sh"

# look_for_scope RUN: where the run shall have a cgroup of its own.
look_for_scope() {
  local pair most=0 many=0 cores=0 number='^(0|[1-9][0-9]{0,17})(\.[0-9]{1,9})?$'
  SCOPED=() ENTERED=()
  read_pairs "$1/params"
  [[ " ${PAIRS[*]-} " == *' scope=yes '* ]] || return 0
  for pair in "${PAIRS[@]}"; do
    [[ ${pair#*=} =~ $number ]] || continue
    case $pair in
      memory=*) most=${pair#*=} ;;
      pids=*) many=${pair#*=} ;;
      cpus=*) cores=${pair#*=} ;;
    esac
  done
  find_scope "${1##*/}" "${most%.*}" "${many%.*}" "$cores"
  export CODING_AGENT_WHY_NOT_HELD=$WHY_NOT # for the supervisor: spawn drops it
}

main() {
  local runs=$1 run_id=$2 staging=$3 run=$1/$2 waited number supervisor launcher=()
  umask 077
  exec 8<> <(:)
  # The folder appears whole and locked: whoever looks meanwhile sees no run, or one that somebody holds.
  exec 9>>"$runs/$staging/.lock" && flock -n 9 || exit 96
  if mv -T -- "$runs/$staging" "$run" 2>/dev/null; then staging=''; else exec 9>&-; fi
  while [[ $staging ]]; do
    mkdir -p "$run" && clear_way "$run/.lock" && exec 9>>"$run/.lock" || exit 96
    # Once more, because somebody who looks holds it for a moment.
    if ! flock -n 9 && ! { pause 0.1; flock -n 9; }; then
      rm -rf -- "${runs:?}/$staging"
      echo adopted
      return 0
    fi
    # Whoever cleans up holds the lock and removes the folder: the file we locked must still be the one there.
    [[ $run/.lock -ef /dev/fd/9 ]] && break
  done
  if [[ $staging && -s $run/.meta.json ]]; then
    rm -rf -- "${runs:?}/$staging"
    read_meta "$run"
    case $META in
      *'"final":true'*) echo ended ;;
      *) if flock -s -n "$run/.lock.agent" true; then echo lost; else echo orphaned; fi ;;
    esac
    return 0
  fi
  if [[ $staging ]]; then
    # A start that was cut half-way, before its run had any state, left something here.
    find "$run" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf -- {} + &&
      mv -f -- "$runs/$staging"/* "$run"/ && rm -rf -- "${runs:?}/$staging" || exit 96
  fi
  : >>"$run/.lock.agent"
  # Whoever starts us may ignore signals (nohup does), the agent and its tools shall not; bash can't take that back.
  env --default-signal true 2>/dev/null && launcher=(env --default-signal)
  # A subreaper gets the orphans of its descendants as children, so descent finds them. bash can't ask for that; perl can.
  case $(uname -m) in x86_64) number=157 ;; aarch64) number=167 ;; *) number= ;; esac
  if [[ $number ]] && type -P perl >/dev/null; then
    # shellcheck disable=SC2016  # perl's own variables
    launcher+=(perl -e '$SIG{$_} = "DEFAULT" for qw(HUP INT QUIT PIPE TERM); syscall(shift @ARGV, 36, 1, 0, 0, 0); exec @ARGV' "$number")
  fi
  look_for_scope "$run"
  (enter_cgroups && exec setsid "${SCOPED[@]}" "${launcher[@]}" bash "$here/supervise.sh" "$run") \
    <&0 >"$run/supervisor.log" 2>&1 8>&- &
  supervisor=$!
  for ((waited = 0; waited < 1200; waited++)); do
    if [[ -s $run/.meta.json ]]; then
      echo started
      return 0
    fi
    kill -0 "$supervisor" 2>/dev/null || break
    pause 0.025
  done
  [[ -s $run/.meta.json ]] && echo started && return 0
  head -c 4000 "$run/supervisor.log" >&2
  kill -KILL "$supervisor" 2>/dev/null
  ((${#ENTERED[@]})) && remove_cgroups "$run_id"
  rm -rf -- "${run:?}"
  exit 98
}

main "$@"
exit
