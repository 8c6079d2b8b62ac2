#!/usr/bin/env bash
# stage.sh RUNS STAGING: unpack the tar on stdin into RUNS/STAGING, for this user only.
set -u

main() {
  umask 077
  mkdir -p "$1/$2" && tar --no-same-owner -xf - -C "$1/$2" && return
  rm -rf -- "${1:?}/${2:?}"
  return 97
}

main "$@"
exit
