#!/usr/bin/env bash
# ready.sh SECONDS: wait until the server has become what it was ordered as; else say in cloud-init's own words why not.
# A line that begins with "coding-agent: " is for the user.
set -u

say() {
  printf 'coding-agent: %s\n' "$1" >&2
}

main() {
  local limit=$1 code=0 line
  if ! command -v cloud-init >/dev/null; then
    say "the server's image has no cloud-init; use another"
    exit 1
  fi
  timeout -k 5 "$limit" cloud-init status --wait >/dev/null 2>&1 || code=$?
  # 2: it went on after something that it could do without.
  if ((code == 0 || code == 2)); then
    exit 0
  fi
  if ((code == 124 || code == 137)); then
    say "the server was not ready within $limit s"
  else
    say "the server could not be set up as ordered; cloud-init says:"
  fi
  grep -hE '^(E|W): |[Ee]rror|Failed|Unable|CRITICAL' /var/log/cloud-init-output.log 2>/dev/null | tail -n 12 |
    while IFS= read -r line; do say "  ${line:0:300}"; done
  exit 1
}

main "$@"
