#!/usr/bin/env bash
# Set this machine up for the tests, then run them: start.sh quick|slow [arguments of pytest].
#
# What is missing of Debian's packages is installed by root at once, by others with sudo after a question at a terminal
# or with INSTALL=1; INSTALL=0 installs nothing. Tests that need what is not there are listed at the end of the run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly folder=build/testbed python=${PYTHON:-python3}
mkdir -p "$folder"

say() { printf 'set-up: %s\n' "$*" >&2; }

python_works() { "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

missing=() python_missing=
look() {
  missing=() python_missing=
  local pair PATH=$PATH:/usr/sbin:/sbin
  for pair in make:make git:git flock:util-linux setsid:util-linux tar:tar perl:perl prlimit:util-linux npm:npm \
    dockerd:docker.io docker:docker-cli iptables:iptables ip:iproute2 mmdebstrap:mmdebstrap podman:podman \
    newuidmap:uidmap slirp4netns:slirp4netns fuse-overlayfs:fuse-overlayfs catatonit:catatonit ssh:openssh-client \
    hcloud:hcloud-cli qemu-system-x86_64:qemu-system-x86 mke2fs:e2fsprogs; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  [[ -x /usr/lib/podman/netavark ]] || missing+=(netavark aardvark-dns)
  python_works || python_missing=1
  # Another Python than the distribution's is not apt's to mend.
  [[ ! $python_missing || $python != python3 ]] || missing+=(python3 python3-venv)
}

# Who may act as root here, and how: sets `as_root` (its words come before a command) and `allowed`.
as_root=() allowed=
ask() {
  local wish="$*" answer
  if [[ ${INSTALL-} == 0 ]]; then
    return
  elif ((EUID == 0)); then
    allowed=1
  elif ! command -v sudo >/dev/null; then
    return
  elif [[ ${INSTALL-} == 1 ]]; then
    allowed=1 as_root=(sudo)
    [[ -t 0 ]] || as_root+=(-n)
  elif [[ -t 0 && -t 2 && $(cat "$folder/declined" 2>/dev/null) != "$wish" ]]; then
    printf 'The tests of containers, virtual machines and servers need what this machine lacks. With sudo this would now\n' >&2
    printf '%s.\nWithout it these tests are not run; all others are. Do it? [y/N] ' "$wish" >&2
    read -r answer || answer=
    if [[ $answer == [yY]* ]]; then
      allowed=1 as_root=(sudo)
      # Its password is asked for now: later on, dockerd is started in the background.
      sudo -v || allowed=
    else
      # Asked once: not again until something else is missing.
      printf '%s\n' "$wish" >"$folder/declined"
    fi
  fi
}

look
wish=()
((${#missing[@]} == 0)) || ! command -v apt-get >/dev/null || wish+=("install ${missing[*]}")
answers=1
docker version >/dev/null 2>&1 || { answers= && wish+=("start a container engine (dockerd) for as long as the tests run"); }
if ((${#wish[@]})); then
  printf -v wanted '%s, and ' "${wish[@]}"
  ask "${wanted%, and }"
fi

install() {
  local package known=()
  "${as_root[@]}" apt-get update -q
  # What this release does not have keeps none of the others out; docker-cli is a part of docker.io before Debian 13.
  for package in "${missing[@]}"; do
    if apt-cache show "$package" >/dev/null; then known+=("$package"); fi
  done
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${known[@]}"
}
if ((${#missing[@]})) && [[ $allowed ]] && command -v apt-get >/dev/null; then
  say "installing ${missing[*]} (log: $folder/packages.log)"
  install >"$folder/packages.log" 2>&1 </dev/null || tail -n 15 "$folder/packages.log" >&2
  hash -r
  look
  ((${#missing[@]} == 0)) || say "still missing: ${missing[*]}"
fi

if [[ $python_missing ]]; then
  say "$python is missing, older than 3.11 or without ensurepip: install Python 3.11 or newer with its venv module" \
    "(Debian, Ubuntu: apt-get install python3 python3-venv), or name another one: PYTHON=python3.12"
  exit 1
fi

# The runner starts dockerd, and needs to know how.
start_engine=
if [[ ! $answers && $allowed ]] && "${as_root[@]}" bash -c 'command -v dockerd && ! docker version' >/dev/null 2>&1; then
  start_engine=${as_root[*]:-root}
fi

"${MAKE:-make}" --no-print-directory -s .venv/.installed
exec env PYTHONPATH=tests TESTBED_START_ENGINE="$start_engine" .venv/bin/python -m testbed "$@"
