"""Network namespaces: sockets and cables in one, made by a process that stays where it is (as root)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

LIMIT = 30.0  # seconds
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """One network namespace, which lasts as long as this, a process or a socket is in it."""

    def __init__(self, descriptor: int) -> None:
        """Take over an open file of a namespace."""
        self._descriptor = descriptor

    @classmethod
    def of(cls, pid: int) -> Namespace:
        """Return a process's."""
        return cls(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    @classmethod
    def new(cls) -> Namespace:
        """Make one."""

        def unshare() -> int:
            _checked(_libc.unshare(_NEW_NETWORK))
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        # In a thread of its own, which ends with it: only the calling thread moves.
        with ThreadPoolExecutor(1) as thread:
            return cls(thread.submit(unshare).result(LIMIT))

    def listen(self, address: str, port: int) -> socket.socket:
        """Return a socket that listens there."""
        with self._entered():
            return socket.create_server((address, port), backlog=64)

    def connect(self, address: str, port: int) -> socket.socket:
        """Return a connection from there; raises OSError."""
        with self._entered():
            return socket.create_connection((address, port), LIMIT)

    def run(self, script: str, *argv: str) -> None:
        """Run a shell script there."""
        done = subprocess.run(
            [*self.entering(), "sh", "-euc", script, "sh", *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")

    def entering(self) -> list[str]:
        """Return what a program's arguments begin with, to be started there."""
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._descriptor}"]

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _checked(_libc.setns(self._descriptor, _NEW_NETWORK))
            try:
                yield
            finally:
                _checked(_libc.setns(home, _NEW_NETWORK))
        finally:
            os.close(home)


def _checked(answer: int) -> None:
    if answer != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
