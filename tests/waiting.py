"""Waiting in tests: for something that can be asked, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeVar

Value = TypeVar("Value")
LIMIT = 60.0  # seconds
_POLL = 0.02  # seconds between two questions
_LONGEST = 1.0  # seconds; and as long as a question took, so that what is waited for gets the machine meanwhile


def until(ask: Callable[[], Value | Literal[False] | None], *, limit: float = LIMIT) -> Value:
    """Return the first true answer; fail after `limit` seconds."""
    asked = time.monotonic()
    end = asked + limit
    while not (answer := ask()):
        now = time.monotonic()
        assert now < end, f"nothing within {limit:.0f} s"
        time.sleep(min(max(_POLL, now - asked), _LONGEST))
        asked = time.monotonic()
    return answer
