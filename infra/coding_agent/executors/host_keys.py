"""The keys that hosts are known by: where they are looked up, asked for and recorded. Never is one just believed.

A key is `TYPE BASE64`, as in a known_hosts file.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from coding_agent import paths
from coding_agent.errors import ConnectionBroken, HostKeyChanged, HostKeyUnknown

if TYPE_CHECKING:
    from coding_agent.executors.ssh_login import Login

# In the order in which they are asked for. The engine's plugin can check all of them but RSA: it would demand SHA-1.
TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
_FOR_PLUGIN = TYPES[:-1]
_LOOK_LIMIT = 30.0  # seconds
SCAN_LIMIT = 20.0  # seconds


@dataclass(frozen=True)
class KeyPair:
    """A host key that is made for one server."""

    private: str = field(repr=False)  # OpenSSH's format; a secret
    public: str


def file() -> Path:
    """Return our own known_hosts file."""
    return paths.state_dir() / "known_hosts"


def known(login: Login) -> tuple[str, ...]:
    """Return the keys that a host is known by; empty where it is not known.

    The first that says something counts: the executor's `host_key`, our own file, the user's and the system's files.
    """
    if login.host_key:
        return (login.host_key,)
    for files in ((str(file()),), login.known_hosts):
        found, revoked = list[str](), set[str]()
        for each in files:
            for marker, key in _listed(login.known_as, each):
                if marker == "@revoked":
                    revoked.add(key)
                elif not marker:  # an authority's word the plugin could not check
                    found.append(key)
        if found:
            return tuple(key for key in dict.fromkeys(found) if key not in revoked and key.split()[0] in TYPES)
    return ()


def for_plugin(login: Login, *, ask: bool = True) -> str:
    """Return the key by which the engine's plugin is to know the host: ed25519 before ecdsa; it can check no other.

    Connects only where the host is not known, and only with `ask`, so that the error can say what it shows.
    Raises `HostKeyUnknown` with the next step.
    """
    keys = known(login)
    usable = [key for kind in _FOR_PLUGIN for key in keys if key.startswith(f"{kind} ")]
    if usable:
        return usable[0]
    if keys:
        raise HostKeyUnknown(
            f"{login.address} is known by an RSA key only, which the engine's plugin for hosts can't check",
            next_step=f"`coding-agent trust {login.name}` looks for an ed25519 or ecdsa key of it; "
            "where it has none, `ssh-keygen -A` on the host makes them",
        )
    seen: tuple[str, ...] = ()
    if ask:
        with contextlib.suppress(ConnectionBroken):
            seen = scan(login)
    raise unknown(login, seen)


def scan(login: Login, *, timeout: float = SCAN_LIMIT) -> tuple[str, ...]:
    """Return the keys that a host shows, one of each type; its jump has to be known. Raises `ConnectionBroken`."""
    import asyncio

    from coding_agent.executors import ssh_handshake

    # In a thread: whoever asks may be in an event loop of the engine's library.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, ssh_handshake.shown(login, timeout=timeout)).result()


def unknown(login: Login, seen: Sequence[str]) -> HostKeyUnknown:
    """Return the error that says that a host is not known."""
    shown = f": it shows {described(seen)}" if seen else ""
    return HostKeyUnknown(
        f"the host {login.address} is not known{shown}",
        next_step=f"compare that with the host's own (`ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub` there), "
        f"then `coding-agent trust {login.name}`",
    )


def changed(login: Login, keys: Sequence[str], seen: Sequence[str]) -> HostKeyChanged:
    """Return the error that says that a host shows another key than it is known by."""
    step = f"if you know why it changed, `coding-agent trust {login.name}` records the new one"
    if login.host_key:
        step = "if you know why it changed, write the new one into the executor's host_key"
    return HostKeyChanged(
        f"the host {login.address} shows another key than it is known by, as an attacker in its place would: "
        f"it is known by {described(keys)} and shows {described(seen)}",
        next_step=step,
    )


def described(keys: Sequence[str]) -> str:
    """Return the types and fingerprints of keys, for people."""
    return ", ".join(f"{fingerprint(key)} ({kind(key)})" for key in keys) or "none"


def kind(key: str) -> str:
    """Return a key's type in one word."""
    return key.split()[0].removeprefix("ssh-").partition("-")[0]


def fingerprint(key: str) -> str:
    """Return the SHA256 fingerprint, as `ssh-keygen -l` shows it."""
    try:
        blob = base64.b64decode(key.split()[1], validate=True)
    except (IndexError, binascii.Error):
        return "no key"
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def record(login: Login, keys: Sequence[str]) -> None:
    """Write down by which keys a host is known from now on, in place of those it was known by in our file."""
    with _writing() as lines:
        lines[:] = [*_without(lines, login.known_as), *(f"{login.known_as} {key}" for key in keys)]


def forget(login: Login) -> None:
    """Remove a host from our file; nothing to do where it is not there."""
    if file().exists():
        with _writing() as lines:
            lines[:] = _without(lines, login.known_as)


def one_use() -> KeyPair:
    """Return a new host key pair."""
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519")
    public = " ".join(key.export_public_key().decode("ascii").split()[:2])
    return KeyPair(key.export_private_key().decode("ascii"), public)


def _without(lines: Sequence[str], name: str) -> list[str]:
    return [line for line in lines if line.split(" ")[0] != name]


@contextlib.contextmanager
def _writing() -> Iterator[list[str]]:
    """Give the lines of our file to be changed; one at a time does that, and readers see the old ones or the new."""
    target = file()
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (target.parent / ".known_hosts.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = target.read_text(encoding="utf-8", errors="replace").splitlines() if target.exists() else []
        yield lines
        part = target.with_name(f".known_hosts.{os.getpid()}")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as new:
                new.write("".join(f"{line}\n" for line in lines))
                new.flush()
                os.fsync(new.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def _listed(name: str, path: str) -> Iterator[tuple[str, str]]:
    """Yield the marker (or "") and the key of each line of a known_hosts file that means a host, hashed or not."""
    if not Path(path).is_file():
        return
    done = subprocess.run(
        ["ssh-keygen", "-F", name, "-f", path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_LOOK_LIMIT,
        check=False,
    )
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        words = line.split()
        if len(words) < 3 or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        if len(words) >= 3:
            yield marker, f"{words[1]} {words[2]}"
