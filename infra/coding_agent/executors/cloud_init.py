"""What a server is ordered with: the user data that cloud-init makes it of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coding_agent.executors.host_keys import KeyPair
    from coding_agent.settings import ExecutorSpec

USER, UID = "agent", 10001
METADATA = "169.254.169.254"
# At each boot, before anything of the user's: what the server was ordered with is not for its agent.
_METADATA_CLOSED = (
    f"u=$(id -u {USER} 2>/dev/null || echo {UID}); "
    f'ip rule del pref 100 2>/dev/null; ip rule add pref 100 uidrange "$u-$u" to {METADATA} prohibit'
)
# Once, on a server that was made of a snapshot of one of ours: what seal.sh has closed there is opened for the first
# contact, and closed by that again.
_UNSEALED = (
    "rm -f /etc/ssh/.coding-agent-sealed /etc/ssh/sshd_config.d/00-coding-agent.conf; "
    "sed -i '/^# coding-agent$/,+3d' /etc/ssh/sshd_config"
)
_GIT = (
    "command -v git >/dev/null || "
    "{ apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install git; } || dnf -qy install git"
)


def user_data(spec: ExecutorSpec, host: KeyPair, public_key: str, *, git: bool) -> str:
    """Return the user data: a secret, as it holds the host key that makes the first contact safe.

    `public_key` opens the server, for root until it is sealed and for the agent's user; `git`: whether that is needed.
    """
    agent: dict[str, Any] = {
        "name": USER,
        "uid": str(UID),
        "shell": "/bin/bash",
        "lock_passwd": True,
        "ssh_authorized_keys": [public_key],
    }
    if spec.options.get("sudo"):
        agent["sudo"] = "ALL=(ALL) NOPASSWD:ALL"
    # Its user manager has to be there without a login: a run is kept in a scope of it.
    commands = [["sh", "-c", f"loginctl enable-linger {USER} || :"], *([["sh", "-c", _GIT]] if git else [])]
    said: dict[str, Any] = {
        "ssh_deletekeys": True,
        "ssh_genkeytypes": [],
        "ssh_keys": {"ed25519_private": host.private, "ed25519_public": host.public},
        "ssh_pwauth": False,
        "disable_root": False,
        "users": [agent],
        "bootcmd": [
            ["sh", "-c", _METADATA_CLOSED],
            ["cloud-init-per", "instance", "coding-agent-unsealed", "sh", "-c", _UNSEALED],
        ],
        "runcmd": commands,
    }
    if packages := spec.options.get("packages"):
        said["packages"] = list(packages)
    # What is JSON is YAML.
    return "#cloud-config\n" + json.dumps(said, indent=1) + "\n"
