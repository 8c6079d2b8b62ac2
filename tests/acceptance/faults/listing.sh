#!/usr/bin/env bash
# listing.sh HOME PROJECT [DOCKER_HOST [ROOT SEEN]]: everything that a run could leave behind, one a line. Knows nothing
# of the project but where a user's files are: processes that mention his home, files outside of what he keeps,
# containers; and on a host the folder of runs, ROOT there and SEEN from here.
set -u
home=$1 project=$2 host=${3-} there=${4-} seen=${5-}

# Processes, by what they are started as; not this one and what it starts.
for entry in /proc/[0-9]*; do
  pid=${entry#/proc/}
  [[ $pid == "$$" || $pid == "$BASHPID" ]] && continue
  if tr '\0' '\n' 2>/dev/null <"$entry/environ" | grep -qF -e "HOME=$home" ${there:+-e "$there"} ||
    tr '\0' ' ' 2>/dev/null <"$entry/cmdline" | grep -qF -e "$home" ${there:+-e "$there"}; then
    name=$(tr '\0' ' ' 2>/dev/null <"$entry/cmdline")
    # The engine's own language host ends by itself when it has missed its engine for long enough.
    [[ ! $name || $name == *listing.sh* || $name == *pulumi-language-python* ]] || echo "process ${name:0:150}"
  fi
done

# Runs on this machine, locks of stacks, and half-written files.
find "$home/.coding-agent" -mindepth 1 2>/dev/null | sed 's/^/file /'
find "$home/.local/state/coding-agent/backend" -path '*/locks/*' -name '*.json' 2>/dev/null | sed 's/^/lock /'
find "$home/.local/state/coding-agent" "$project" -name '.record.*' -o -name '.refusal.*' -o -name '*.part' 2>/dev/null | sed 's/^/file /'
find /tmp -maxdepth 1 -name 'coding-agent-*' -newer "$home/.began" 2>/dev/null | grep -v -- '-bench-' | sed 's/^/file /'

[[ ! $seen ]] || find "$seen" 2>/dev/null | sed 's/^/file /'

if [[ $host ]]; then
  export DOCKER_HOST=$host
  docker ps -aq --no-trunc | sed 's/^/container /'
  docker volume ls -q | sed 's/^/volume /'
  docker network ls --format '{{.Name}}' | sed 's/^/network /'
fi
exit 0
