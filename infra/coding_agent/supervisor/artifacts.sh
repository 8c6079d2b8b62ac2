#!/usr/bin/env bash
# artifacts.sh RUN LIMIT: pack what matches the globs on stdin (NUL-terminated) in RUN/workspace into RUN/artifacts.tar,
# up to a little over LIMIT bytes; the receiver refuses a longer one. Prints packed or nothing.
# A match that a link leads out of the workspace to is left out; links themselves are packed as links.
set -u
here=${BASH_SOURCE[0]%/*}
# shellcheck source=common.sh
. "$here/common.sh"

# inside PATH: whether its folder, links followed, lies in this one. Each folder is looked at once.
inside() {
  local folder=${1%/*}
  [[ $1 == */* ]] || return 0
  if [[ ! ${SEEN[$folder]-} ]]; then
    case $(cd -P -- "./$folder" 2>/dev/null && pwd)/ in "$PWD"/*) SEEN[$folder]=in ;; *) SEEN[$folder]=out ;; esac
  fi
  [[ ${SEEN[$folder]} == in ]]
}

main() {
  local run=$1 limit=$2 glob match code
  local -a found
  local -A matches=() SEEN=()
  umask 077
  cd -P -- "$run/workspace" 2>/dev/null || { echo nothing; return 0; }
  [[ $PWD == "$(cd -P -- "$run" && pwd)/workspace" ]] || { echo "the workspace is not where it was made" >&2; return 93; }
  shopt -s globstar nullglob dotglob
  IFS= # a glob with a space is one glob
  while IFS= read -r -d '' glob; do
    # shellcheck disable=SC2206,SC2190  # expanding it is the point; with an empty IFS nothing is split
    found=($glob)
    for match in "${found[@]}"; do
      # A name without a pattern in it stands for itself, whether there is such a file or not.
      [[ -e $match || -L $match ]] && inside "$match" && matches[$match]=1
    done
  done
  ((${#matches[@]})) || { echo nothing; return 0; }
  rm -rf -- "$run/artifacts.tar" "$run/artifacts.tar.tmp"
  # A sparse file of any size is as long in the archive as it seems to be.
  printf './%s\0' "${!matches[@]}" | timeout 500 tar --null -T - -cf - | head -c "$((limit + 1))" >"$run/artifacts.tar.tmp"
  code=${PIPESTATUS[1]}
  ((code == 0 || code == 141)) || return 92 # 141: head had enough
  mv -f -- "$run/artifacts.tar.tmp" "$run/artifacts.tar" && echo packed
}

main "$@"
exit
