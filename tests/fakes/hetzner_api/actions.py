"""Actions: what takes the fake cloud some time; whoever asked for it polls until it has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from fakes.hetzner_api.store import ApiError, Item, Store, now
from fakes.hetzner_api.switches import Switches

JOIN_LIMIT = 60.0  # seconds


class Actions:
    """The actions of one cloud, each in a thread of its own."""

    def __init__(self, store: Store, switches: Switches) -> None:
        """Begin without any."""
        self._store = store
        self._switches = switches
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    def begin(
        self,
        command: str,
        resources: Sequence[tuple[str, int]],
        work: Callable[[], None] = lambda: None,
        *,
        ends: Callable[[bool], None] = lambda _: None,
    ) -> Item:
        """Begin an action; return it as it is now, running.

        `work` is done without the store's lock; `ends` is told, with it, whether it was done, before the action is
        seen as ended. A server that it is about is locked meanwhile.
        """
        action: Item = {
            **{"id": self._store.number(), "command": command, "status": "running", "progress": 0},
            **{"started": now(), "finished": None, "error": None},
            "resources": [{"type": kind, "id": number} for kind, number in resources],
        }
        fault = self._switches.fault(command)

        def run() -> None:
            error = None
            self._stopping.wait(self._switches.slow.get(command, 0.0))
            if fault is not None:
                error = {"code": fault.code, "message": fault.message}
            else:
                try:
                    work()
                except (AssertionError, OSError) as failure:
                    error = {"code": "action_failed", "message": str(failure)}
            with self._store.lock:
                ends(error is None)
                action.update(progress=100, finished=now(), error=error, status="success" if error is None else "error")

        with self._store.lock:
            self._store.of("actions")[action["id"]] = action
            shown = dict(action)
        thread = threading.Thread(target=run, name=command, daemon=True)
        self._threads.append(thread)
        thread.start()
        return shown

    def busy(self, kind: str, number: int) -> bool:
        """Return whether an action about a resource goes on."""
        return any(
            each["status"] == "running" and {"type": kind, "id": number} in each["resources"]
            for each in self._store.of("actions").values()
        )

    def unlocked(self, number: int) -> None:
        """Refuse what a locked server can't be asked."""
        if number in self._switches.locked or self.busy("server", number):
            raise ApiError(423, "locked", "server is locked")

    def close(self) -> None:
        """Wait for all."""
        self._stopping.set()
        end = time.monotonic() + JOIN_LIMIT
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
