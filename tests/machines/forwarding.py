"""Connections passed on to where a server really is; who may not connect gets no answer, as from a firewall."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from ipaddress import ip_address

from machines.machine import Networks, everybody
from machines.namespaces import Namespace

_CHUNK = 1 << 18  # bytes
_RESET = struct.pack("ii", 1, 0)


class Forwarding:
    """A listening socket whose connections go elsewhere. Nothing of it outlives the process or `close`."""

    def __init__(
        self,
        listener: socket.socket,
        connect: Callable[[], socket.socket],
        sources: Callable[[], Networks | None] = everybody,
    ) -> None:
        """Take over the listener; `connect` opens the other half, or raises OSError: the connection is then reset."""
        self._listener = listener
        self._connect = connect
        self._sources = sources
        self._guard = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False
        threading.Thread(target=self._accept, name="forwarding", daemon=True).start()

    def close(self) -> None:
        """Listen no more and cut what is open."""
        with self._guard:
            self._closed = True
            left = [self._listener, *self._open]
            self._open.clear()
        for each in left:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                incoming, source = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(incoming, source[0]), name="forwarded", daemon=True).start()

    def _serve(self, incoming: socket.socket, source: str) -> None:
        with incoming:
            if not self._keep(incoming):
                return
            if not _admitted(source, self._sources()):
                with contextlib.suppress(OSError):
                    while incoming.recv(_CHUNK):
                        pass
                self._drop(incoming)
                return
            try:
                outgoing = self._connect()
            except OSError:
                incoming.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self._drop(incoming)
                return
            with outgoing:
                outgoing.settimeout(None)
                if self._keep(outgoing):
                    back = threading.Thread(target=_pump, args=(outgoing, incoming), name="forwarded", daemon=True)
                    back.start()
                    _pump(incoming, outgoing)
                    back.join()
                self._drop(outgoing)
            self._drop(incoming)

    def _keep(self, connection: socket.socket) -> bool:
        with self._guard:
            if not self._closed:
                self._open.add(connection)
            return not self._closed

    def _drop(self, connection: socket.socket) -> None:
        with self._guard:
            self._open.discard(connection)


def _admitted(source: str, networks: Networks | None) -> bool:
    return networks is None or any(ip_address(source) in network for network in networks)


def _pump(giver: socket.socket, taker: socket.socket) -> None:
    """Pass on what one says until it ends, and then its end."""
    try:
        while data := giver.recv(_CHUNK):
            taker.sendall(data)
        taker.shutdown(socket.SHUT_WR)
    except OSError:
        # One end is cut: so is the other.
        for each in (giver, taker):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def relayed(inside: Namespace, port: int) -> Forwarding:
    """Let a port of the namespace's 127.0.0.1 lead to the same one of this machine's."""
    return Forwarding(inside.listen("127.0.0.1", port), lambda: socket.create_connection(("127.0.0.1", port), 10.0))
