#!/usr/bin/env bash
# survey.sh ROOT CLAUDE GIT VERSION: what a run finds here. A JSON line, then the environment, NUL-terminated.
# CLAUDE is a path or a name (empty: none is needed), GIT not empty where git is needed; with VERSION it is asked for its.
set -u
here=${BASH_SOURCE[0]%/*}
# shellcheck source=common.sh
. "$here/common.sh"

main() {
  local root=$1 claude=$2 missing=() tool home program='' version=''
  ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || missing+=("bash>=4.4")
  for tool in flock setsid tar grep find stat timeout head tail chmod mv ${3:+git}; do
    type -P "$tool" >/dev/null || missing+=("$tool")
  done
  # Busybox has the names, and not all that is asked of them.
  printf 'a\0b\0' | grep -zqx b 2>/dev/null || missing+=('grep(GNU)')
  find /proc/self/status -newermt @0 -printf '' 2>/dev/null || missing+=('find(GNU)')
  home=${HOME:-/}
  if [[ $home == / || ! -d $home || ! -w $home ]]; then
    home=$root/home
    umask 077
    mkdir -p -- "$home"
  fi
  if [[ $claude ]]; then
    # shellcheck disable=SC2088  # a ~ that was written in a file
    [[ $claude == '~/'* ]] && claude=$home${claude#'~'}
    # Where its own installer and npm put it, which is not on the PATH of those who log in without a terminal.
    [[ $claude == */* ]] || PATH=$PATH:$home/.local/bin:$home/.npm-global/bin
    program=$(type -P -- "$claude") || program=
  fi
  if [[ $program && ${4-} ]]; then version=$(HOME=$home DISABLE_AUTOUPDATER=1 timeout 60 "$program" --version 2>/dev/null | head -c 200); fi
  json_string home "$home"
  json_string program "$program"
  json_string version "$version"
  json_string tool "${missing[*]-}"
  printf '{"home":%s,"claude":%s,"version":%s,"missing":%s}\0' "$home" "$program" "$version" "$tool"
  cat "/proc/$$/environ"
}

main "$@"
exit
