#!/usr/bin/env bash
# start.sh RUNS RUN_ID STAGING: start the run once, whoever else tries; stdin: the secrets, framed (see supervise.sh).
# Prints one word: started, adopted (a supervisor holds it), ended, orphaned (the agent lives without its supervisor),
# lost (neither lives, no end was written). RUNS/.STAGING holds the run's files, put there before.
set -u
here=${BASH_SOURCE[0]%/*}
# shellcheck source=common.sh
. "$here/common.sh"

main() {
  local runs=$1 run_id=$2 staging=$3 run=$1/$2 waited launcher=() number supervisor
  umask 077
  exec 8<> <(:)
  while :; do
    mkdir -p "$run" && clear_way "$run/.lock" && exec 9>>"$run/.lock" || exit 96
    if ! flock -n 9; then
      rm -rf -- "${runs:?}/$staging"
      echo adopted
      return 0
    fi
    # Whoever cleans up holds the lock and removes the folder: the file we locked must still be the one there.
    [[ $run/.lock -ef /dev/fd/9 ]] && break
  done
  if [[ -s $run/.meta.json ]]; then
    rm -rf -- "${runs:?}/$staging"
    read_meta "$run"
    case $META in
      *'"final":true'*) echo ended ;;
      *) if flock -n "$run/.lock.agent" true; then echo lost; else echo orphaned; fi ;;
    esac
    return 0
  fi
  mv -f -- "$runs/$staging"/* "$run"/ && rm -rf -- "${runs:?}/$staging" || exit 96
  : >>"$run/.lock.agent"
  # Whoever starts us may ignore signals (nohup does), the agent and its tools shall not; bash can't take that back.
  env --default-signal true 2>/dev/null && launcher=(env --default-signal)
  # A subreaper gets the orphans of its descendants as children, so descent finds them. bash can't ask for that; perl can.
  case $(uname -m) in x86_64) number=157 ;; aarch64) number=167 ;; *) number= ;; esac
  if [[ $number ]] && type -P perl >/dev/null; then
    # shellcheck disable=SC2016  # perl's own variables
    launcher+=(perl -e '$SIG{$_} = "DEFAULT" for qw(HUP INT QUIT PIPE TERM); syscall(shift @ARGV, 36, 1, 0, 0, 0); exec @ARGV' "$number")
  fi
  setsid "${launcher[@]}" bash "$here/supervise.sh" "$run" <&0 >"$run/supervisor.log" 2>&1 8>&- &
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
  rm -rf -- "${run:?}"
  exit 98
}

main "$@"
exit
