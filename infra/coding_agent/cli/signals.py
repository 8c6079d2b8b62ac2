"""What SIGINT and SIGTERM do: the first one ends the following, never the agent."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # as a shell reports a program ended by SIGINT
TERMINATED = 143  # the same for SIGTERM


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception: like KeyboardInterrupt, nothing on the way may take it for a failure."""


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Let SIGTERM unwind the program, so that what holds files, locks and children gives them back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Give an event that the first SIGINT sets; a second one interrupts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def first(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop.set()

    before = signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
