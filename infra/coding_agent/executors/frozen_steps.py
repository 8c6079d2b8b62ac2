"""An end for steps on a host that never end: the engine's plugin has neither a time limit nor keepalives.

While an update of ours runs, a step of the plugin's that goes on for too long takes the plugin's process with it; the
engine then says that the step failed, and keeps what was done before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from coding_agent import processes

LIMIT = 300.0  # seconds; what goes through the plugin takes seconds
LONGER: dict[str, float] = {}  # the end of a step's name -> its own limit, in seconds
PLUGIN = "pulumi-resource-command"
_TYPE = "command:remote:"
_POLL = 0.5  # seconds between two looks at the clock


class FrozenSteps:
    """Watches the steps of one update. Use it as a context manager, and give it every event of the engine's."""

    def __init__(self, *, limit: float | None = None) -> None:
        """`limit` is in seconds; by default `LIMIT`."""
        self._limit = limit
        self._lock = threading.Lock()
        self._going: dict[str, float] = {}  # urn -> when it began
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.ended: str | None = None  # the name of the step that was ended
        self.failed: list[str] = []  # the names of those that have failed

    def __enter__(self) -> FrozenSteps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def event(self, event: Mapping[str, Any]) -> None:
        """Take an event: a step begins, or has ended."""
        for kind in ("resourcePreEvent", "resOutputsEvent", "resOpFailedEvent"):
            about = (event.get(kind) or {}).get("metadata") or {}
            if not str(about.get("type", "")).startswith(_TYPE):
                continue
            with self._lock:
                if kind == "resourcePreEvent" and about.get("op") not in ("same", "read", None):
                    self._going[about["urn"]] = time.monotonic()
                else:
                    self._going.pop(about["urn"], None)
                if kind == "resOpFailedEvent":
                    self.failed.append(_name(about["urn"]))
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, daemon=True, name="frozen steps")
                self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(_POLL):
            with self._lock:
                frozen = [urn for urn, begun in self._going.items() if time.monotonic() - begun > self._limit_of(urn)]
            if frozen:
                self.ended = _name(frozen[0])
                end_plugins()
                return

    def _limit_of(self, urn: str) -> float:
        own = (limit for ending, limit in LONGER.items() if urn.endswith(ending))
        return next(own, LIMIT if self._limit is None else self._limit)


def _name(urn: str) -> str:
    return urn.rpartition("::")[2]


def end_plugins() -> None:
    """End the plugin's processes that were started, through the engine, by this one."""
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        with contextlib.suppress(OSError):
            program = (entry / "cmdline").read_bytes().split(b"\0")[0].decode("utf-8", "replace")
            if Path(program).name == PLUGIN and _descends(pid):
                os.kill(pid, signal.SIGKILL)


def _descends(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        found = processes.stat(pid)
        if found is None:
            return False
        pid = int(found[processes.PARENT])
    return False
