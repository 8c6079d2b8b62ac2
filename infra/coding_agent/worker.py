"""A worker: takes tasks from the queue for as long as executors have room, and attends to each until it has ended.

It may be killed at any moment: the agents go on, and another worker with the same state folder goes on with the tasks.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from coding_agent import paths, processes
from coding_agent.errors import CodingAgentError, DatabaseUnavailable, NotFound
from coding_agent.settings import Settings
from coding_agent.work_queue import database, offers
from coding_agent.work_queue.attendant import Attendant
from coding_agent.work_queue.database import Database
from coding_agent.work_queue.entry import Entry
from coding_agent.work_queue.places import machine
from coding_agent.work_queue.queue import Queue

Say = Callable[[str], None]
SIGN_POLL = 2.0  # seconds between two signs of life
START_LIMIT = 10.0  # seconds until a worker that was started serves
START_POLL = 0.05  # seconds between two looks whether it does
IDLE_LIMIT = 30.0  # seconds without anything to do after which a worker that was started by itself ends
_AWAY_POLL = 1.0  # seconds until a database that is away is tried again


class Worker:
    """One worker."""

    def __init__(self, found: Database, only: frozenset[str], say: Say, idle: float | None) -> None:
        """`only` names the executors that it serves, all where it is empty; `idle`: seconds until it ends by itself."""
        self.id = secrets.token_hex(8)
        self._database, self._queue = found, Queue(found)
        self._only, self._say, self._idle = only, say, idle
        self._attendants: dict[str, tuple[Attendant, threading.Thread]] = {}
        self._seen: object = None  # of the executors file, when it was last read
        self._serves: list[str] = []
        self._busy_at = time.monotonic()
        self._away = False  # the database

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`, or until there has been nothing to do for long enough. Raises what keeps it from that."""
        self._register()
        self._say(f"worker {os.getpid()} serves {', '.join(each.partition('@')[0] for each in self._serves)}")
        try:
            while not stop.is_set():
                try:
                    with self._database.listening() as wait:
                        self._serve(stop, wait)
                        return
                except NotFound:  # it was taken for dead; what it had is another's, or is taken again
                    self._register()
                except DatabaseUnavailable as error:
                    if "newer version" in error.message:
                        raise
                    if not self._away:
                        self._say(f"{error.message}; the agents go on, trying again")
                    self._away = True
                    stop.wait(_AWAY_POLL)
        finally:
            self._leave()

    def _serve(self, stop: threading.Event, wait: Callable[[float], bool]) -> None:
        signed = 0.0
        while not stop.is_set():
            if time.monotonic() - signed > SIGN_POLL:
                self._register_anew()
                self._queue.alive(self.id)
                if self._away:
                    self._say("the queue's database answers again")
                self._away = False
                for entry in self._queue.take_over(self.id):
                    if entry.id not in self._attendants:
                        self._say(f"{entry.name}: going on with it")
                        self._attend(entry)
                signed = time.monotonic()
            self._forget_ended()
            while not stop.is_set() and (found := self._queue.claim(self.id, self._serves)):
                self._say(f"{found.name}: taken, for {(found.taken or '').partition('@')[0]}")
                self._attend(found)
            if self._attendants or not self._queue.idle():
                self._busy_at = time.monotonic()
            elif self._idle_for_long() and self._queue.retire_idle(self.id):
                self._say("nothing to do any more")
                return
            later = self._queue.next_change()
            if wait(min(SIGN_POLL, SIGN_POLL if later is None else later + 0.01)):
                for attendant, _thread in [*self._attendants.values()]:
                    attendant.look()

    def _idle_for_long(self) -> bool:
        return self._idle is not None and time.monotonic() - self._busy_at > self._idle

    def _attend(self, entry: Entry) -> None:
        attendant = Attendant(entry, self.id, self._queue, self._say)
        thread = threading.Thread(target=attendant.run, name=entry.name, daemon=True)
        self._attendants[entry.id] = (attendant, thread)
        thread.start()

    def _forget_ended(self) -> None:
        self._attendants = {task: each for task, each in self._attendants.items() if each[1].is_alive()}

    def _register(self) -> None:
        file = paths.config_file()
        self._seen = _mark(file)
        settings = Settings.load()
        if unknown := self._only - {each.name for each in settings.executors}:
            raise NotFound(f"there is no executor {', '.join(sorted(unknown))}", next_step="`coding-agent executors`")
        found = offers.of(settings, machine(), self._only)
        self._queue.register(self.id, found)
        self._serves = [each.key for each in found]

    def _register_anew(self) -> None:
        """Serve what the executors file says now, where it was changed."""
        if _mark(paths.config_file()) == self._seen:
            return
        try:
            self._register()
        except (DatabaseUnavailable, KeyboardInterrupt):
            raise
        except CodingAgentError as error:
            self._say(f"the executors file is not used as it is now: {error}")

    def _leave(self) -> None:
        for attendant, _thread in self._attendants.values():
            attendant.stop()
        for _attendant, thread in self._attendants.values():
            thread.join()
        try:
            self._queue.retire(self.id)
        except CodingAgentError as error:
            self._say(f"{error.message}; others see by themselves that this worker has ended")


@contextmanager
def opened(only: frozenset[str], say: Say, *, idle: float | None) -> Iterator[Worker]:
    """Give a worker. Raises `DatabaseUnavailable`."""
    with database.opened(patience=0.0) as found:
        yield Worker(found, only, say, idle)


def start(served: Callable[[], bool], say: Say) -> None:
    """Start a worker of this machine that ends when it is idle, unless one is about to serve: `served` says whether."""
    mark, deadline = paths.state_dir() / "worker.started", time.monotonic() + START_LIMIT
    while _lives(mark) and time.monotonic() < deadline:
        if served():
            return
        time.sleep(START_POLL)  # it begins, or ends
    log = paths.state_dir() / "worker.log"
    with ExitStack() as stack:
        file = stack.enter_context(log.open("ab"))
        # It is in another folder than who gave a path that was relative.
        config = os.environ.get("CODING_AGENT_CONFIG") and str(paths.config_file().absolute())
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "coding_agent", "worker", "--idle", f"{IDLE_LIMIT:g}s"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd="/",
            env={**os.environ, **({"CODING_AGENT_CONFIG": config} if config else {})},
            start_new_session=True,
        )
    mark.write_text(f"{process.pid} {processes.begun(process.pid)}")
    say(f"no worker lived: started one, process {process.pid}, which ends when it is idle; it writes to {log}")
    threading.Thread(target=process.wait, name="worker", daemon=True).start()  # no zombie of ours


def _lives(mark: Path) -> bool:
    try:
        pid, begun = map(int, mark.read_text().split())
    except (OSError, ValueError):
        return False
    return begun != 0 and processes.begun(pid) == begun


def _mark(file: Path) -> object:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
