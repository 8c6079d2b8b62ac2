"""A look at the processes of this machine, from /proc and nothing of the project."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

LIMIT = 10.0  # seconds


def processes_with_text(text: str) -> list[int]:
    """Return the processes, but this one, whose environment or arguments hold `text`."""
    needle = text.encode()
    return sorted(pid for pid in _pids() if pid != os.getpid() and _carries(Path("/proc") / str(pid), needle))


def arguments_of(pid: int) -> list[str]:
    """Return a process's arguments; none of one that has ended."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


def kill_engines(home: Path) -> int:
    """Kill every `pulumi` of a home; return how many there were."""
    killed = 0
    for pid in processes_with_text(f"HOME={home}"):
        argv = arguments_of(pid)
        if argv and Path(argv[0]).name == "pulumi":
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed += 1
    return killed


def end_processes_of(home: Path) -> None:
    """End what a test left running in a home of its own."""
    deadline = time.monotonic() + LIMIT
    while (left := processes_with_text(str(home))) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 - only the names


def _carries(folder: Path, needle: bytes) -> bool:
    try:
        # A zombie has neither an environment nor arguments left: it carries nothing.
        return any(needle in (folder / name).read_bytes() for name in ("environ", "cmdline"))
    except OSError:
        return False  # it ended meanwhile
