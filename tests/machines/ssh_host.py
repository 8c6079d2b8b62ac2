"""A host that one logs in to: a container with the real sshd, at an address of its own on loopback, port 22.

It uses this machine's network, so that a run there reaches a model that a test started here. Its /tmp is mounted
noexec, /small is a small disk, it has no systemd, its sshd takes no environment and says nothing of a language. Its
users are all kinds that there are (`USERS`), and all of them accept one key.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coding_agent.settings import ExecutorSpec
from containers import Docker, debian_image
from machines.loopback import claim, claim_address
from waiting import until

IMAGE = "coding-agent-test/ssh-host:2"
_PACKAGES = "git,procps,perl,openssh-server,fish,zsh,tcsh,nix-bin"
_OWNER = "coding-agent-test.ssh"  # label: its value names the claim of the process whose host it is
_NETWORK = "127.0.3"
SMALL = "/small"  # a folder there whose disk has little room, but as much as a run asks for
# A user -> his home, his login shell, and what his start files do.
USERS = {
    "plain": ("/home/plain", "/bin/bash", ""),
    "fish": ("/home/fish", "/usr/bin/fish", ""),
    "zsh": ("/home/zsh", "/usr/bin/zsh", ""),
    "csh": ("/home/csh", "/bin/tcsh", ""),
    "noisy": ("/home/noisy", "/bin/bash", "echo welcome; echo 'a word' >&2; printf 'no newline'; set -u"),
    "spaced": ("/home/with a space", "/bin/bash", ""),
    "elsewhere": ("/srv/somewhere/else", "/bin/bash", ""),
    "private": ("/home/private", "/bin/bash", "umask 077"),
}
_MAKE = r"""
set -euo pipefail
key=$1 address=$2
shift 2
while (($#)); do
  mkdir -p -- "$(dirname -- "$2")"
  useradd --create-home --home-dir "$2" --shell "$3" --password '*' -- "$1"
  if [[ $4 ]]; then printf '%s\n' "$4" >"$2/.bashrc"; fi
  install -d -m 700 -o "$1" -g "$1" -- "$2/.ssh"
  printf '%s\n' "$key" >"$2/.ssh/authorized_keys"
  shift 4
done
install -d -m 700 /root/.ssh
printf '%s\n' "$key" >/root/.ssh/authorized_keys
rm -f /etc/ssh/ssh_host_*
ssh-keygen -q -A
mkdir -p /run/sshd
cat >/etc/ssh/sshd_config <<END
ListenAddress $address
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
MaxStartups 100
Subsystem sftp internal-sftp
END
"""


@dataclass
class SshHost:
    """One such host."""

    docker: Docker
    container: str
    address: str
    key: Path  # the private key that opens it
    port: int = 22
    servers: list[str] = field(default_factory=list)
    host_keys: dict[str, str] = field(default_factory=dict)  # those that were asked for: they stay as they are

    def run(self, *argv: str, user: str = "root", stdin: bytes | None = None) -> str:
        """Run a command there, not through ssh."""
        return self.docker(
            "exec", *(["-i"] if stdin is not None else []), "-u", user, self.container, *argv, stdin=stdin
        )

    def host_key(self, kind: str = "ed25519") -> str:
        """Return a public host key, as `TYPE BASE64`."""
        if kind not in self.host_keys:
            self.host_keys[kind] = " ".join(self.run("cat", f"/etc/ssh/ssh_host_{kind}_key.pub").split()[:2])
        return self.host_keys[kind]

    def known_hosts(self, *kinds: str) -> str:
        """Return what a known_hosts file says of it."""
        return "".join(f"{self.address} {self.host_key(kind)}\n" for kind in kinds or ("ed25519", "ecdsa", "rsa"))

    def options(self, user: str = "plain", **options: Any) -> dict[str, Any]:
        """Return an executor's options: by a key file, the host key given."""
        given = {"host": self.address, "user": user, "key_path": str(self.key), "host_key": self.host_key(), **options}
        return {name: value for name, value in given.items() if value is not None}

    def executor(self, **options: Any) -> dict[str, Any]:
        """Return an entry of an executors file: `crib`, on it. None leaves an option out."""
        return {"name": "crib", "type": "ssh", **self.options(**options)}

    def spec(self, user: str = "plain", *, name: str = "crib", **options: Any) -> ExecutorSpec:
        """Return an executor on it."""
        return ExecutorSpec(name, "ssh", options=self.options(user, **options))

    def home(self, user: str) -> str:
        """Return a user's home."""
        return "/root" if user == "root" else USERS[user][0]

    def put_program(self, program: Path, to: str = "/opt/claude/claude") -> str:
        """Copy a program there, for all users; return its path."""
        self.run("mkdir", "-p", str(Path(to).parent))
        self.docker("cp", "-L", str(program), f"{self.container}:{to}")
        self.run("chmod", "755", to)
        return to

    def start(self) -> None:
        """Start its ssh server, and wait until it answers."""
        self.docker("exec", "-d", self.container, "/usr/sbin/sshd", "-D")
        until(lambda: self._answers(self.port))

    def down(self) -> None:
        """Let the host go down: all that runs there ends, and nothing answers."""
        self.docker("kill", self.container)

    def up(self) -> None:
        """Let it come up again."""
        self.docker("start", self.container)
        self.run("chmod", "1777", SMALL)
        self.start()

    def seen_from_here(self, path: str) -> Path:
        """Return where this machine's root finds a path of the host's."""
        return Path(f"/proc/{self.docker.inspect(self.container)['State']['Pid']}/root{path}")

    def stop(self) -> None:
        """End its ssh server and all connections; what runs there goes on."""
        self.run("pkill", "-KILL", "-x", "sshd")
        until(lambda: not self._answers(self.port))

    @contextmanager
    def another_server(self, port: int, *options: str) -> Iterator[int]:
        """Run one more ssh server on the host, with other options of sshd's; it ends with the block."""
        arguments = [each for option in (f"ListenAddress={self.address}:{port}", *options) for each in ("-o", option)]
        # Its own configuration: what sshd_config says of addresses would be added.
        text = "UsePAM no\nPasswordAuthentication no\nStrictModes no\nPermitRootLogin prohibit-password\n"
        self.run("bash", "-c", f"cat >/etc/ssh/server-{port}", stdin=text.encode())
        self.docker("exec", "-d", self.container, "/usr/sbin/sshd", "-D", "-f", f"/etc/ssh/server-{port}", *arguments)
        until(lambda: self._answers(port))
        try:
            yield port
        finally:
            self.run("pkill", "-KILL", "-f", f"/etc/ssh/server-{port}")

    def _answers(self, port: int) -> bool:
        import socket

        try:
            with socket.create_connection((self.address, port), timeout=5) as caller:
                return caller.recv(4) == b"SSH-"
        except OSError:
            return False


@contextmanager
def ssh_host(docker: Docker, folder: Path) -> Iterator[SshHost]:
    """Run such a host; nothing of it is left after the block, and what a killed session left goes before it."""
    image = debian_image(docker, IMAGE, _PACKAGES)
    _remove_abandoned(docker)
    key = folder / "key-of-the-host"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a tester", "-f", str(key)], check=True, timeout=60
    )
    name = f"test-ssh-{secrets.token_hex(6)}"
    owner, address = claim(name), claim_address(_NETWORK)
    assert owner is not None
    docker(
        *("run", "-d", "--init", "--name", name, "--network", "host", "--hostname", name),
        *("--tmpfs", "/tmp:noexec,nosuid,mode=1777", "--tmpfs", f"{SMALL}:exec,nosuid,mode=1777,size=240m"),
        *("--label", f"{_OWNER}={owner.name}", image, "sleep", "infinity"),
    )
    try:
        host = SshHost(docker, name, address.name, key)
        users = [each for user, values in USERS.items() for each in (user, *values)]
        host.run("bash", "-c", _MAKE, "make", key.with_suffix(".pub").read_text().strip(), address.name, *users)
        host.start()
        yield host
    finally:
        docker("rm", "-f", "-v", name)
        address.release()
        owner.release()


def _remove_abandoned(docker: Docker) -> None:
    label = f'{{{{.Label "{_OWNER}"}}}}'
    for line in docker("ps", "-a", "--filter", f"label={_OWNER}", "--format", f"{{{{.Names}}}} {label}").splitlines():
        name, _, owner = line.partition(" ")
        if dead := claim(owner):
            docker("rm", "-f", "-v", name)
            dead.release()
