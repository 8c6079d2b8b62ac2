"""Addresses of 127.0.0.0/8 and names that no other test process of this machine has, until this one ends."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass

_NAMES = "\0coding-agent-test/"  # sockets without a file: one name, whoever's processes and caches there are
NETWORK = "127.0.2"  # the last number is an address's own


@dataclass(frozen=True)
class Claim:
    """A name that is this process's own; the kernel gives it back when the process ends, however it ends."""

    name: str
    lock: socket.socket

    def release(self) -> None:
        """Give it back."""
        self.lock.close()


def claim(name: str) -> Claim | None:
    """Take a name; None where a living process has it."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lock.bind(_NAMES + name)
    except OSError as error:
        lock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return Claim(name, lock)


def claim_address(network: str = NETWORK) -> Claim:
    """Take an address of a network, given by its first three numbers; its name is the address."""
    # Each process begins elsewhere: an address that was just given back is in somebody's known_hosts or in TIME_WAIT.
    for offset in range(1, 255):
        if found := claim(f"{network}.{1 + (os.getpid() * 37 + _taken() + offset) % 254}"):
            return found
    raise AssertionError(f"all addresses of {network}.0/24 are taken")


def _taken() -> int:
    _counter[0] += 1
    return _counter[0]


_counter = [0]
