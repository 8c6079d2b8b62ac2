#!/usr/bin/env bash
# stop.sh RUN REASON WAIT: end the run and wait up to WAIT seconds for its end to be written.
# Without a supervisor (it was killed, or the machine restarted), or with one that does not obey, this takes its place
# for the end. Nothing that lies in the folder is believed to be what it was: the agent can write there.
set -u
here=${BASH_SOURCE[0]%/*}
# shellcheck source=common.sh
. "$here/common.sh"

main() {
  local run=$1 reason=$2 wait=$3 tried deadline given_up='' grace going=0
  exec 8<> <(:)
  end_stopped_supervisor "$run"
  if [[ ! -d $run || -L $run ]]; then
    # Gone, or another folder by now: only what carries the run's id can be ended.
    end_supervisor "$run"
    end_processes "${run##*/}" 0 0 1
    return 0
  fi
  read_pairs "$run/params"
  for grace in "${PAIRS[@]}"; do [[ $grace =~ ^grace=([1-9][0-9]{0,2})$ ]] && wait=$((wait + BASH_REMATCH[1])); done
  clock
  # One that has said nothing for long will not begin to obey, unless it is about to end.
  read_meta "$run"
  if [[ $META =~ \"heartbeat\":([1-9][0-9]{0,9})[.,] && $META != *'"stage":"saving"'* ]]; then
    ((NOW - BASH_REMATCH[1] > 60)) && end_supervisor "$run"
  fi
  deadline=$((NOW + wait))
  for ((tried = 0; ; tried++)); do
    make_writable "$run"
    clear_way "$run/.lock" "$run/.lock.agent"
    exec 9>>"$run/.lock" || return 96
    read_meta "$run"
    if flock -n 9; then
      # An end counts that its supervisor wrote before it ended; the agent could write one while it goes on.
      if [[ $META == *'"final":true'* ]] && flock -s -n "$run/.lock.agent" true; then
        supervisors "$run" || return 0
        ((++going < 40)) && pause 0.05 && continue
      fi
      end_supervisor "$run" # what it holds is a lock that is no longer here
      clear_way "$run/supervisor.log"
      exec bash "$here/supervise.sh" "$run" end "$reason" </dev/null >>"$run/supervisor.log" 2>&1
    fi
    exec 9>&-
    if ((tried % 20 == 0)) && [[ -p $run/.poke && ! -L $run/.poke ]]; then printf 'stop %s\n' "$reason" 1<>"$run/.poke"; fi
    pause 0.05
    clock
    ((NOW < deadline)) && continue
    [[ $given_up ]] && break
    # One that saves the work may need its time; one that does not even begin to end is stopped, or stuck.
    given_up=yes deadline=$((NOW + 10))
    if [[ $META == *'"stage":"saving"'* ]]; then deadline=$((NOW + 600)); else end_supervisor "$run"; fi
  done
  echo "the run did not end within $wait seconds" >&2
  return 97
}

main "$@"
exit
