"""Waiting in tests: for something that can be asked, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeVar

Value = TypeVar("Value")
LIMIT = 60.0  # seconds
_POLL = 0.02  # seconds between two questions


def until(ask: Callable[[], Value | Literal[False] | None], *, limit: float = LIMIT) -> Value:
    """Return the first true answer; fail after `limit` seconds."""
    end = time.monotonic() + limit
    while not (answer := ask()):
        assert time.monotonic() < end, f"nothing within {limit:.0f} s"
        time.sleep(_POLL)
    return answer
