"""What work costs, in quantities that no other program on the machine changes: bytes, calls, growth with size."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

_ROUNDS = 5


def bytes_read() -> int:
    """Return how many bytes this process has read, with the children that it has waited for, and theirs."""
    return _counted("rchar")


def bytes_written() -> int:
    """Return how many bytes this process has written, with the children that it has waited for, and theirs."""
    return _counted("wchar")


def _counted(what: str) -> int:
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts[what])


def calls(work: Callable[[], object]) -> int:
    """Return how many calls of functions written in Python the work takes; what it raises goes on."""
    count = 0

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def growth(work: Callable[[int], object], size: int, *, times: int = 8) -> float:
    """Return how many times the CPU time of work of that size one `times` as large takes.

    It is `times` where the work is in proportion to its size, and the square of that where it is quadratic, however
    fast the machine is, and whatever else runs there: a thread's CPU time stands still while it waits for a processor.
    """
    return _least(work, size * times) / _least(work, size)


def _least(work: Callable[[int], object], size: int) -> float:
    def once() -> float:
        begun = time.thread_time()
        work(size)
        return time.thread_time() - begun

    return min(once() for _ in range(_ROUNDS))
