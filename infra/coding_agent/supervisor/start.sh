#!/usr/bin/env bash
# start.sh RUNS RUN_ID STAGING [ATTEMPT]: start the run once, whoever else tries; stdin: the secrets, framed (see
# supervise.sh). With an ATTEMPT over 1 a run that has ended goes on, in what it has left. RUNS/STAGING holds the run's
# files, put there before; of another attempt those that are others.
# Prints one word: started, adopted (a supervisor holds it), ended, orphaned (the agent lives without its supervisor),
# lost (neither lives, no end was written), gone (there is nothing to go on with).
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

# take_new RUNS RUN_ID STAGING: lock the run's folder, with the files of its first attempt in it. 1: said why it is not.
take_new() {
  local runs=$1 staging=$3 run=$1/$2
  # The folder appears whole and locked: whoever looks meanwhile sees no run, or one that somebody holds.
  exec 9>>"$runs/$staging/.lock" && flock -n 9 || exit 96
  if mv -T -- "$runs/$staging" "$run" 2>/dev/null; then staging=''; else exec 9>&-; fi
  while [[ $staging ]]; do
    mkdir -p "$run" && clear_way "$run/.lock" && exec 9>>"$run/.lock" || exit 96
    # Once more, because somebody who looks holds it for a moment.
    if ! flock -n 9 && ! { pause 0.1; flock -n 9; }; then
      rm -rf -- "${runs:?}/$staging"
      echo adopted
      return 1
    fi
    # Whoever cleans up holds the lock and removes the folder: the file we locked must still be the one there.
    [[ $run/.lock -ef /dev/fd/9 ]] && break
  done
  if [[ $staging && -s $run/.meta.json ]]; then
    rm -rf -- "${runs:?}/$staging"
    how_it_stands "$run"
    return 1
  fi
  if [[ $staging ]]; then
    # A start that was cut half-way, before its run had any state, left something here.
    find "$run" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf -- {} + &&
      mv -f -- "$runs/$staging"/* "$run"/ && rm -rf -- "${runs:?}/$staging" || exit 96
  fi
}

# take_again RUNS RUN_ID STAGING ATTEMPT: lock the folder of a run that has ended, with the files of another attempt in
# the place of the last one's. 1: said why it is not. Cut half-way, it can be repeated: the old state stands until the
# supervisor has written a new one.
take_again() {
  local runs=$1 staging=$1/$3 attempt=$4 run=$1/$2 said=gone file tried=0
  while [[ -d $run && ! -L $run ]]; do
    clear_way "$run/.lock" "$run/.lock.agent"
    exec 9>>"$run/.lock" || break
    if ! flock -n 9; then
      # Those who look hold it for a moment, and a supervisor does that has written the end.
      said=adopted
      began "$run" "$attempt" || ((++tried > 30)) && break
      pause 0.1
      continue
    fi
    [[ $run/.lock -ef /dev/fd/9 ]] || continue
    said=$(how_it_stands "$run")
    if [[ $said != ended ]] || began "$run" "$attempt"; then break; fi
    for file in "$staging"/*; do
      rm -rf -- "${run:?}/${file##*/}"
      mv -f -- "$file" "$run/" || exit 96
    done
    rm -rf -- "${staging:?}" "$run/.timeout" "$run/setup" "$run/files"
    return 0
  done
  rm -rf -- "${staging:?}"
  echo "$said"
  return 1
}

# how_it_stands RUN: how a run is that no supervisor holds.
how_it_stands() {
  read_meta "$1"
  if ! flock -s -n "$1/.lock.agent" true; then
    echo orphaned
  else
    case $META in *'"final":true'*) echo ended ;; *) echo lost ;; esac
  fi
}

# began RUN ATTEMPT: whether the state there is of this attempt, or of a later one.
began() {
  read_meta "$1"
  [[ $META =~ \"attempt\":([1-9][0-9]{0,5})[,}] ]] && ((BASH_REMATCH[1] >= $2))
}

main() {
  local runs=$1 run_id=$2 staging=$3 attempt=${4:-1} run=$1/$2 waited number supervisor launcher=()
  umask 077
  exec 8<> <(:)
  if ((attempt > 1)); then
    take_again "$runs" "$run_id" "$staging" "$attempt" || return 0
  else
    take_new "$runs" "$run_id" "$staging" || return 0
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
    if [[ -s $run/.meta.json ]] && began "$run" "$attempt"; then
      echo started
      return 0
    fi
    kill -0 "$supervisor" 2>/dev/null || break
    pause 0.025
  done
  [[ -s $run/.meta.json ]] && began "$run" "$attempt" && echo started && return 0
  head -c 4000 "$run/supervisor.log" >&2
  kill -KILL "$supervisor" 2>/dev/null
  ((${#ENTERED[@]})) && remove_cgroups "$run_id"
  # What earlier attempts have left is not ours to remove.
  ((attempt > 1)) || rm -rf -- "${run:?}"
  exit 98
}

main "$@"
exit
