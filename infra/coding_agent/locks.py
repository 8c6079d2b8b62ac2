"""Locks of stacks on a file backend: whose they are, and taking over those whose owner is dead."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote, urlparse

from coding_agent import processes
from coding_agent.errors import StackLocked

CONTROLLER = "CODING_AGENT_CONTROLLER"  # in the engine's environment: pid and start (in ticks) of who started it
ORPHAN_LIMIT = 60.0  # seconds an engine without its controller gets to end
_POLL = 0.1  # seconds between two looks at such an engine
_CLOCK_SLACK = 1.0  # seconds by which a process may seem younger than what it made: start times are rounded
_LOCK = re.compile(r"(file://\S+?\.json)(?:\?\S*)?: created by (.*?)@(\S+) \(pid (\d+)\) at (\S+)")


@dataclass(frozen=True)
class Lock:
    """One lock, as the engine tells of it."""

    path: Path
    user: str
    host: str
    pid: int
    since: str  # RFC 3339

    @property
    def dead(self) -> bool:
        """Whether its owner was a process of this machine that is gone; another may have its pid by now."""
        if self.host != platform.node():
            return False
        started = _started(self.pid)
        made = _instant(self.since)
        return started is None or (made is not None and started > made + _CLOCK_SLACK)

    @property
    def orphaned(self) -> bool:
        """Whether its owner lives, but not the `coding-agent` that started it: it is about to end by itself."""
        return self.host == platform.node() and not self.dead and _controller_gone(self.pid)


def parse(said: str) -> list[Lock]:
    """Return the locks that the engine's complaint names."""
    return [
        Lock(Path(unquote(urlparse(url).path)), user, host, int(pid), since)
        for url, user, host, pid, since in _LOCK.findall(said)
    ]


def give_way(said: str, stack: str, say: Callable[[str], None]) -> None:
    """Return once it is worth trying again: locks of dead owners are removed, orphans had time to end.

    Raises `StackLocked`, naming who holds it, where neither helps.
    """
    held = parse(said)
    living = [lock for lock in held if not lock.dead]
    for lock in living:
        if not (lock.orphaned and _ended(lock, say)):
            raise StackLocked(
                f"stack {stack} is locked by {lock.user}@{lock.host}, process {lock.pid}, since {lock.since}",
                next_step="wait until that update has ended; `pulumi cancel` takes the lock away from it",
            )
    if not held:
        raise StackLocked(
            f"stack {stack} is locked: {said.strip()[-300:]}", next_step="wait until its update has ended"
        )
    for lock in held:
        if lock.dead:
            lock.path.unlink(missing_ok=True)
            say(f"took over the lock of {lock.user}, process {lock.pid}: that process is gone")


def controller() -> str:
    """Return what tells an engine which process started it."""
    return f"{os.getpid()}:{_start_ticks(os.getpid())}"


def _ended(lock: Lock, say: Callable[[str], None]) -> bool:
    say(f"waiting for process {lock.pid}, left behind by a coding-agent that was killed, to end")
    end = time.monotonic() + ORPHAN_LIMIT
    with suppress(OSError):
        while time.monotonic() < end and lock.path.exists() and not lock.dead:
            time.sleep(_POLL)
    return lock.dead or not lock.path.exists()


def _controller_gone(pid: int) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    for entry in environment:
        if entry.startswith(f"{CONTROLLER}=".encode()):
            owner, _, ticks = entry.partition(b"=")[2].decode().partition(":")
            return owner.isdigit() and str(_start_ticks(int(owner))) != ticks
    return False


def _start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the machine did; None where it is gone or a zombie."""
    found = processes.stat(pid)
    return None if found is None or found[processes.STATE] in "ZX" else int(found[processes.START])


def _started(pid: int) -> float | None:
    """Return when a process started, in seconds since the epoch."""
    ticks = _start_ticks(pid)
    if ticks is None:
        return None
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return int(line.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
    return None


def _instant(text: str) -> float | None:
    # The engine writes nanoseconds; datetime reads at most microseconds.
    try:
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).timestamp()
    except ValueError:
        return None
