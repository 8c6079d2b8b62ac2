"""The keys that hosts are known by: where they are looked up, asked for and recorded. Never is one just believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coding_agent.executors.ssh_login import Login


@dataclass(frozen=True)
class KeyPair:
    """A host key that is made for one server."""

    private: str  # OpenSSH's format; a secret
    public: str  # `ssh-ed25519 AAAA...`


def known(login: Login) -> tuple[str, ...]:
    """Return the keys that a host is known by (`TYPE BASE64`); empty where it is not known."""
    raise NotImplementedError


def for_plugin(login: Login) -> str:
    """Return the key by which the engine's plugin is to know the host: ed25519 before ecdsa; it can check no other.

    Connects nowhere. Raises `HostKeyUnknown` with the next step.
    """
    raise NotImplementedError


def scan(login: Login, *, timeout: float = 15.0) -> tuple[str, ...]:
    """Return the keys that a host shows; its jump has to be known. Raises `ConnectionBroken`."""
    raise NotImplementedError


def record(login: Login, keys: tuple[str, ...]) -> None:
    """Write down by which keys a host is known from now on (in place of those it was known by in our file)."""
    raise NotImplementedError


def forget(login: Login) -> None:
    """Remove a host from our file; nothing to do where it is not there."""
    raise NotImplementedError


def fingerprint(key: str) -> str:
    """Return the SHA256 fingerprint, as `ssh-keygen -l` shows it."""
    raise NotImplementedError


def one_use() -> KeyPair:
    """Return a new host key pair."""
    raise NotImplementedError
