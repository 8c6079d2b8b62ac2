"""One task in a worker's hands: started, followed to its end, brought back, and removed where that is asked for."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

from coding_agent import lifecycle, records
from coding_agent.errors import CodingAgentError, ConnectionBroken, DatabaseUnavailable
from coding_agent.records import Record
from coding_agent.run import State
from coding_agent.work_queue.entry import CANCELLED, START_FAILED, Entry
from coding_agent.work_queue.queue import Queue
from coding_agent.work_queue.step import Failure, Step

Say = Callable[[str], None]
FOLLOW_POLL = 0.5  # seconds between two looks at a run
AGAIN_POLL = 3.0  # seconds until a target that did not answer is asked again
BUSY_POLL = 2.0  # seconds until a stack that somebody else works on is tried again
# Steps of a worker at once, each an engine with its plugins: a start may wait long for a machine, a removal does not.
AT_ONCE = {
    "start": threading.BoundedSemaphore(16),
    "remove": threading.BoundedSemaphore(4),
    "refresh": threading.BoundedSemaphore(4),
}
REMOVE_ATTEMPTS = 20  # how often a removal that fails is tried
# For as long as the database is away the agents go on, and what became of them is kept here.
AWAY_LIMIT = 24 * 3600.0  # seconds
WORTH_AGAIN = ("api_error",)  # reasons of a run that ended in failure; a lost one is always worth another
_PASSING = ("ConnectionBroken", "CommandTimeout", "ExecutorUnavailable", "TargetGone", "StepEnded")
_REFUSED = ("CredentialMissing",)  # another worker may have what this one lacks


class Attendant:
    """Attends to one task until it has ended, or is another worker's, or the worker stops."""

    def __init__(self, entry: Entry, worker: str, queue: Queue, say: Say) -> None:
        """`say` is told what becomes of it."""
        self.entry, self._worker, self._queue, self._say = entry, worker, queue, say
        self._stop = threading.Event()  # the worker ends
        self._changed = threading.Event()  # something else is wanted of the task
        self._step: Step | None = None
        self._guard = threading.Lock()

    def stop(self) -> None:
        """Let the task go once its start, where one goes on, is over; its agent goes on."""
        self._stop.set()
        self._changed.set()

    def look(self) -> None:
        """See whether something else is wanted of the task by now. Raises `DatabaseUnavailable`."""
        now = self._queue.get(self.entry.id)
        if now is None or now.worker != self._worker:
            self.stop()
        elif now.wanted != self.entry.wanted:
            self.entry = now
            self._changed.set()
            with self._guard:
                if self._step is not None:
                    self._step.interrupt()

    def run(self) -> None:
        """Do it."""
        try:
            self._run()
        except DatabaseUnavailable as error:
            self._say(f"{self.entry.name}: {error.message}")

    def _run(self) -> None:
        entry = self.entry
        if entry.state.final:
            self._remove(entry.record)
            return
        record = entry.record if entry.record and entry.record.run_id == entry.run_id else None
        record = records.load(entry.run_id) if record is None and entry.run_id else record
        if record is None or not self._known(record):
            record = self._start()
        if record is None or self._queue.progress(entry, self._worker, record, limit=AWAY_LIMIT) is None:
            return
        ended = self._follow(record)
        if ended is not None:
            self._finish(ended)

    def _known(self, record: Record) -> bool:
        """Whether the run of that record has begun: one that was cut before that is started once more."""
        outputs, resume = records.latest(record).outputs, self.entry.resume
        return outputs.started_at is not None if resume is None else outputs.attempts >= resume["attempt"]

    def _start(self) -> Record | None:
        while not (self._wanted_ended() or self._stop.is_set()):
            found = self._do("start", self.entry.record)
            if isinstance(found, Record):
                return found
            assert isinstance(found, Failure)
            if found.type == "StackLocked":
                self._stop.wait(BUSY_POLL)
                continue
            if self._wanted_ended():
                break
            if self._stop.is_set() and found.type == "StepEnded":
                return None
            self._not_started(found)
            return None
        if self._wanted_ended():
            # It may have begun all the same.
            begun = records.load(self.entry.run_id or "")
            if begun is not None and self._known(begun):
                return begun
            if self.entry.resume is not None:
                self._not_resumed(CANCELLED)
                return None
            self._do("remove", None)
            self._end(State.KILLED, None, CANCELLED, None)
        return None

    def _not_resumed(self, why: str) -> None:
        """Let a run that could not go on stand as it was."""
        assert self.entry.record is not None
        outputs = self.entry.record.outputs
        self._end(outputs.status, None, outputs.reason, f"not resumed: {why}")

    def _not_started(self, failure: Failure) -> None:
        name = self.entry.name
        if self.entry.resume is not None:
            self._not_resumed(str(failure))
        elif failure.type in _REFUSED:
            self._say(f"{name}: {failure}")
            self._queue.refuse(self.entry, self._worker, failure.message)
        elif failure.type in _PASSING and self.entry.attempt <= self.entry.retries:
            self._say(f"{name}: {failure.message}; it is tried again later")
            self._queue.again(self.entry, self._worker, START_FAILED, str(failure), limit=AWAY_LIMIT)
        else:
            self._end(State.FAILED, None, START_FAILED, str(failure))

    def _follow(self, record: Record) -> Record | None:
        """Return the record of the run once it has ended; None where it is nobody's business here any more."""
        while not self._stop.is_set():
            self._changed.clear()
            try:
                if self._wanted_ended():
                    record = lifecycle.kill(records.latest(record), say=_quiet)
                else:
                    record = lifecycle.follow(record, say=_quiet, stop=self._changed, poll=FOLLOW_POLL)
            except ConnectionBroken:
                pass
            except CodingAgentError as error:
                self._say(f"{self.entry.name}: {error.message}")
            else:
                if record.outputs.status.final:
                    return record
            if not self._changed.is_set():
                self._changed.wait(AGAIN_POLL)  # its target does not answer: nothing is proven
        return None

    def _finish(self, record: Record) -> None:
        outputs, entry = record.outputs, self.entry
        lost = outputs.status is State.LOST or (
            outputs.status is State.FAILED and (outputs.reason or "") in WORTH_AGAIN
        )
        # What somebody has resumed is his to look at: it is not run from the beginning by itself.
        if lost and entry.resume is None and entry.attempt <= entry.retries and not self._wanted_ended():
            self._say(f"{entry.name}: {outputs.status} ({outputs.reason}); it is tried again later")
            self._queue.progress(entry, self._worker, record, limit=AWAY_LIMIT)
            self._queue.again(entry, self._worker, str(outputs.reason), outputs.detail, limit=AWAY_LIMIT)
            return
        if entry.file is not None and not self._wanted_destroyed():
            # The stack of a project still says what was true at the start, and other machines go by it.
            found = self._do("refresh", record)
            if isinstance(found, Failure):
                self._say(f"{entry.name}: its stack's outputs are not up to date, the next `up` does it: {found}")
        self._end(outputs.status, record, outputs.reason, outputs.detail)

    def _end(self, state: State, record: Record | None, reason: str | None, detail: str | None) -> None:
        said = f" ({reason})" if reason else ""
        self._say(f"{self.entry.name}: {state}{said}{': ' + detail if detail and state is not State.KILLED else ''}")
        now = self._queue.finish(
            self.entry, self._worker, state, record=record, reason=reason, detail=detail, limit=AWAY_LIMIT
        )
        if now is not None and now.wanted == "destroyed":
            self.entry = now
            self._remove(record)

    def _remove(self, record: Record | None) -> None:
        for attempt in itertools.count(1):
            if self._stop.is_set():
                return
            found = self._do("remove", record or self.entry.record)
            if not isinstance(found, Failure):
                self._queue.removed(self.entry, self._worker, limit=AWAY_LIMIT)
                self._say(f"{self.entry.name}: removed")
                return
            self._say(f"{self.entry.name}: not removed: {found}")
            # What somebody has to decide on is not tried again.
            if found.type == "InvalidInput" or attempt == REMOVE_ATTEMPTS:
                self._queue.not_removed(self.entry, self._worker, f"not removed: {found}", limit=AWAY_LIMIT)
                return
            self._stop.wait(AGAIN_POLL)

    def _do(self, verb: str, record: Record | None) -> Record | Failure | None:
        entry = self.entry
        # A task of a project whose run stands is not run again, unless it is to be.
        chosen = entry.run_id if entry.file is None or entry.attempt > 1 else ""
        executor = (entry.taken or "").partition("@")[0]
        inline = isinstance(entry.fields.get("executor"), dict)
        order = {
            "verb": verb,
            "name": entry.name,
            "fields": {**entry.fields, **({} if inline else {"executor": executor})},
            "repo": entry.repo,
            "file": entry.file,
            "run_id": chosen,
            "record": records.to_plain(record) if record else None,
            "discard": entry.discard,
            "resume": entry.resume,
            "gpus": self._queue.gpus(entry.id) if entry.gpus else [],
        }
        with AT_ONCE[verb]:
            if verb == "start" and (self._wanted_ended() or self._stop.is_set()):
                return Failure("StepEnded", "it was ended before it could begin", None)
            step = Step(order)
            with self._guard:
                self._step = step if verb == "start" else None
            try:
                return step.wait(lambda line: self._say(f"{entry.name}: {line}"))
            finally:
                with self._guard:
                    self._step = None

    def _wanted_destroyed(self) -> bool:
        return self.entry.wanted == "destroyed"

    def _wanted_ended(self) -> bool:
        return self.entry.wanted != "run"


def _quiet(_line: str) -> None:
    """Say nothing: who wants to see what the agent does follows it."""
