"""How long somebody who follows a run tries a connection that breaks again."""

from __future__ import annotations

import time
from collections.abc import Callable

from coding_agent.errors import ConnectionBroken, OnAnotherMachine

RECONNECT_LIMIT = 60.0  # seconds for which a connection that breaks is tried again


class Patience:
    """Says once that a connection is broken, and once that it works again; ends after `RECONNECT_LIMIT` seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._broken: float | None = None  # since when

    def lasts(self, error: ConnectionBroken) -> bool:
        """Return whether what met `error` is to be tried again."""
        if isinstance(error, OnAnotherMachine):
            return False
        if self._broken is None:
            self._say(f"the connection is broken, trying again: {error.message}")
            self._broken = time.monotonic()
        return time.monotonic() - self._broken <= RECONNECT_LIMIT

    def rewarded(self) -> None:
        """Take note that something has worked."""
        if self._broken is not None:
            self._say("connected again")
            self._broken = None
