#!/usr/bin/env bash
# Run a dockerd for as long as standard input is open: dockerd.sh LOG PIDFILE, as root.
#
# The other end is the runner's: however that ends, the dockerd ends too, by its pid.
set -uo pipefail

dockerd >"$1" 2>&1 </dev/null &
dockerd=$!
echo "$dockerd" >"$2"

ours=
while kill -0 "$dockerd" 2>/dev/null; do
  # The socket belongs to who asked with sudo, and to nobody else.
  if [[ ${SUDO_UID-} && ! $ours ]] && docker version >/dev/null 2>&1; then
    chown "$SUDO_UID:0" /var/run/docker.sock && chmod 600 /var/run/docker.sock && ours=1
  fi
  read -r -t 0.5 _
  (($? > 128)) || break # nothing came within the time: still open
done

kill "$dockerd" 2>/dev/null
for ((waited = 0; waited < 120; waited++)); do
  kill -0 "$dockerd" 2>/dev/null || break
  sleep 0.5
done
kill -KILL "$dockerd" 2>/dev/null
rm -f "$2"
