#!/usr/bin/env bash
# cleanup.sh RUNS RUN_ID GRACE: end what is left of the run and remove its folders. Can be repeated.
# Prints the pids that could not be ended; then the folder stays, and the exit code is 95.
set -u
here=${BASH_SOURCE[0]%/*}
# shellcheck source=common.sh
. "$here/common.sh"
# shellcheck source=scope.sh
. "$here/scope.sh"

main() {
  local runs=$1 run_id=$2 grace=$3 run=$1/$2 root=${1%/*} tried
  exec 8<> <(:)
  end_stopped_supervisor "$run"
  if [[ -d $run && ! -L $run ]]; then
    make_writable "$run"
    clear_way "$run/.lock"
    exec 9>>"$run/.lock" || return 96
    # A supervisor that lives ends the run best: it knows what descends from it. It has a grace of its own.
    for ((tried = 0; tried < grace * 40; tried++)); do
      flock -n 9 && break
      if ((tried % 20 == 0)) && [[ -p $run/.poke && ! -L $run/.poke ]]; then printf 'stop killed\n' 1<>"$run/.poke"; fi
      pause 0.05
    done
  fi
  end_supervisor "$run" # one that did not obey, or that holds another lock
  scan "$run_id" 0 0
  if ! end_processes "$run_id" 0 0 "$grace"; then
    echo "${PIDS[*]}"
    return 95
  fi
  remove_cgroups "$run_id"
  # A checkout may hold folders without write permission (Go's module cache, Nix): root could remove them, others not.
  [[ -d $run && ! -L $run ]] && find "$run" -xdev -type d ! -perm -u+wx -exec chmod u+rwx {} +
  rm -rf -- "${runs:?}/$run_id" "$runs/.staging-$run_id"-* || return 94
  # The last one out: the scripts go as well where they were brought along with a run.
  if rmdir -- "$runs" 2>/dev/null; then
    [[ $here == "$root"/supervisor-* ]] && rm -rf -- "${root:?}"/supervisor-* "${root:?}/home"
    rmdir -- "$root" 2>/dev/null
  fi
  return 0
}

main "$@"
exit
