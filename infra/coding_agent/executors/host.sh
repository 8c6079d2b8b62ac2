#!/bin/sh
# host.sh create|delete ROOT RUN_ID CLAUDE GIT VERSION INSTALL SPACE: what the engine's plugin does on a host; it comes
# over stdin, for any sh. CLAUDE is a path or a name (empty: none is needed), GIT not empty where git is needed, VERSION
# the one that is demanded, INSTALL not empty where Claude Code is brought there; SPACE in KB has to be free.
#
# create looks at everything that a run needs, says all that is missing at once, and makes the folders.
# delete removes what a start that failed has left, and the folders with the last run. Both can be repeated.
# What is said to people begins with "coding-agent: ", what the program reads with "coding-agent=".

lacks() { missing="${missing:+$missing, }$1"; }

resolve() {
  # shellcheck disable=SC2088  # a ~ that was written in a file
  case $1 in '~/'*) root=${HOME%/}/${1#'~/'} ;; *) root=$1 ;; esac
}

find_claude() {
  # shellcheck disable=SC2088  # a ~ that was written in a file
  case $1 in
    '~/'*) set -- "${HOME%/}/${1#'~/'}" ;;
    */*) ;;
    *)
      for program in "$(command -v "$1")" "${HOME%/}/.local/bin/$1" "${HOME%/}/.npm-global/bin/$1"; do
        [ -f "$program" ] && [ -x "$program" ] && return 0
      done
      return 1
      ;;
  esac
  program=$1
  [ -f "$program" ] && [ -x "$program" ]
}

create() {
  claude=$3 git=$4 version=$5 install=$6 space=$7 missing='' program=''
  [ "$(uname -s)" = Linux ] || lacks "Linux (it is $(uname -s))"
  # shellcheck disable=SC2016  # bash's own variables
  bash -c '((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404))' 2>/dev/null || lacks 'bash 4.4 or newer'
  for tool in flock setsid tar grep find stat timeout head tail chmod mv mkdir cat ${git:+git}; do
    command -v "$tool" >/dev/null 2>&1 || lacks "$tool"
  done
  # Busybox has the names, and not all that is asked of them.
  printf 'a\0b\0' | grep -zqx b 2>/dev/null || lacks 'GNU grep'
  find /proc/self/status -newermt @0 -printf '' 2>/dev/null || lacks 'GNU find, and /proc'
  if [ -n "$claude" ]; then
    if ! find_claude "$claude"; then
      [ -n "$install" ] || lacks "Claude Code ($claude)"
    elif [ -n "$version" ] && [ -z "$install" ]; then
      has=$(DISABLE_AUTOUPDATER=1 timeout 60 "$program" --version 2>/dev/null </dev/null | head -c 100)
      [ "${has%% *}" = "$version" ] || lacks "Claude Code $version ($program is ${has:-none that runs})"
    fi
  fi
  umask 077
  if mkdir -p -- "$root" 2>/dev/null && root=$(cd -P -- "$root" && pwd) && [ -w "$root" ]; then
    free=$(($(stat -f -c '%a * %S' -- "$root") / 1024))
    [ "$free" -ge "$space" ] || lacks "space: $((free / 1024)) MB are free in $root, $((space / 1024)) MB are needed"
  else
    lacks "a folder $root that can be written"
  fi
  if [ -n "$missing" ]; then
    printf 'coding-agent: the host lacks %s\n' "$missing" >&2
    return 3
  fi
  # What a start that was cut half-way has left is not in the way of the next.
  rm -rf -- "$root/.incoming/$2" "$root/runs/.staging-$2"-* && mkdir -p -- "$root/.incoming/$2" || return 4
  printf 'coding-agent=%s\n' "$root"
}

delete() {
  [ -d "$root" ] || return 0
  root=$(cd -P -- "$root" && pwd) || return 0
  rm -rf -- "$root/.incoming/$2" "$root/runs/.staging-$2"-*
  run=$root/runs/$2
  if [ -d "$run" ] && [ -s "$run/.meta.json" ]; then
    # It was started: whoever knows of the run ends it and brings back its work first.
    printf 'coding-agent=%s\n' "$root"
    return 0
  fi
  if [ -d "$run" ]; then
    for script in "$root"/supervisor-*/cleanup.sh; do
      [ -f "$script" ] && bash "$script" "$root/runs" "$2" 5 >&2 && break
    done
    rm -rf -- "$run"
  fi
  # The last one out: the supervisor goes as well, unless a run is on its way.
  rmdir -- "$root/.incoming" 2>/dev/null
  rmdir -- "$root/runs" 2>/dev/null
  if [ ! -e "$root/.incoming" ] && [ ! -e "$root/runs" ]; then
    rm -rf -- "${root:?}"/supervisor-* "${root:?}/home"
    rmdir -- "$root" 2>/dev/null
  fi
  return 0
}

main() {
  mode=$1
  shift
  resolve "$1"
  "$mode" "$@"
}
