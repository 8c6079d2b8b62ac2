#!/usr/bin/env bash
# seal.sh: give the server a host key that nobody but itself has ever had, print its public half, and let nobody in as
# root from now on. Can be repeated as long as the key before it is the one that sshd shows.
set -eu
umask 077

say() {
  printf 'coding-agent: %s\n' "$1" >&2
}

main() {
  local key=/etc/ssh/ssh_host_ed25519_key sealed=/etc/ssh/.coding-agent-sealed conf=/etc/ssh/sshd_config
  local rules=$'PermitRootLogin no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n' kind number
  if [[ ! -e $sealed ]]; then
    rm -f -- "$key.new" "$key.new.pub"
    ssh-keygen -q -t ed25519 -N '' -C '' -f "$key.new"
    chmod 644 -- "$key.new.pub"
    mv -f -- "$key.new.pub" "$key.pub"
    mv -f -- "$key.new" "$key"
    : >"$sealed"
  fi
  # The first word counts, and not every image reads the folder.
  if grep -qiE '^[[:space:]]*Include[[:space:]].*sshd_config\.d' "$conf"; then
    printf '%s' "$rules" >/etc/ssh/sshd_config.d/00-coding-agent.conf
  elif ! grep -q '^# coding-agent$' "$conf"; then
    { printf '# coding-agent\n%s' "$rules" && cat -- "$conf"; } >"$conf.new"
    chmod 644 -- "$conf.new"
    mv -f -- "$conf.new" "$conf"
  fi
  if ! "$(type -P sshd || echo /usr/sbin/sshd)" -t; then
    say "the server's sshd does not take its configuration"
    exit 1
  fi
  read -r kind number _ <"$key.pub"
  printf '%s %s' "$kind" "$number"
  # What it is connected by goes on; it is the last thing, because the key before it is refused then.
  systemctl reload ssh 2>/dev/null || systemctl reload sshd 2>/dev/null || kill -HUP "$(</run/sshd.pid)"
}

main "$@"
exit
