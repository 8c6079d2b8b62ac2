"""A relay between a client and a server on this machine: connections through it can be cut, frozen and slowed.

What goes through is counted, so that a test can tell how often somebody asked, however long that took.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PIECE = 1 << 16
_LIMIT = 10.0  # seconds
_HELD = 64  # pieces of a connection that the relay takes without passing them on


class Relay:
    """What comes to a listening socket goes to a server, while the relay lets it."""

    def __init__(self, listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
        """Take over the listener; `connect` opens the other half."""
        self._connect = connect
        self._open: list[socket.socket] = []
        self._passing = threading.Event()
        self._passing.set()
        self._until_cut: int | None = None  # bytes
        self.delay = 0.0  # seconds that each piece takes longer
        self.refusing = False  # whether new connections are hung up at once
        self.accepted = 0  # connections so far, with those that were hung up
        self.asked = 0  # pieces that clients sent so far, with those that wait in a frozen connection
        self._server = listener
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """The address and the port where it listens, over TCP."""
        address, port = self._server.getsockname()
        return address, port

    def cut(self) -> None:
        """Break everything that goes through; new connections are accepted."""
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut_after(self, count: int) -> None:
        """Break everything that goes through once clients' next `count` bytes have passed."""
        self._until_cut = count

    def freeze(self) -> None:
        """Let nothing through any more, while all connections stay open; new ones are accepted and say nothing."""
        self._passing.clear()

    def thaw(self) -> None:
        """Let everything through again."""
        self._passing.set()

    def close(self) -> None:
        """End."""
        self.cut()
        self.thaw()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(_LIMIT)
        for each in self._open:
            each.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self.accepted += 1
                if self.refusing:
                    client.close()
                    continue
                try:
                    server = self._connect()
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                self._open += [client, server]
                for one, other in ((client, server), (server, client)):
                    held: queue.Queue[bytes] = queue.Queue(_HELD)
                    threading.Thread(target=self._take, args=(one, held, one is client), daemon=True).start()
                    threading.Thread(target=self._pass, args=(held, other, one is client), daemon=True).start()

    def _take(self, one: socket.socket, held: queue.Queue[bytes], of_client: bool) -> None:
        with suppress(OSError):
            while data := one.recv(_PIECE):
                self.asked += of_client
                held.put(data)
        held.put(b"")

    def _pass(self, held: queue.Queue[bytes], other: socket.socket, of_client: bool) -> None:
        while data := held.get():
            self._passing.wait()
            if self.delay:
                time.sleep(self.delay)
            with suppress(OSError):  # what can't be passed on is dropped
                other.sendall(data[: self._until_cut] if of_client else data)
            if of_client and self._until_cut is not None:
                self._until_cut -= len(data)
                if self._until_cut <= 0:
                    self._until_cut = None
                    self.cut()
        self._passing.wait()
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)


@contextmanager
def relay(host: str, port: int = 22) -> Iterator[Relay]:
    """Run a relay to a server, on a free port of loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    with _running(Relay(listener, lambda: socket.create_connection((host, port), timeout=_LIMIT))) as running:
        yield running


@contextmanager
def relay_of_sockets(path: Path, to: str) -> Iterator[Relay]:
    """Run a relay that listens on the socket `path`; what comes goes to the socket `to`."""

    def connect() -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        server.connect(to)
        return server

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    with _running(Relay(listener, connect)) as running:
        yield running


@contextmanager
def _running(running: Relay) -> Iterator[Relay]:
    try:
        yield running
    finally:
        running.close()
