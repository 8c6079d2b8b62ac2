"""Dispatch tasks from Python and watch them.

>>> from coding_agent import dispatch, get_task
>>> task = dispatch(prompt="Say hello.", executor="local", max_turns=5)
>>> task.wait(timeout=120).status
<State.SUCCEEDED: 'succeeded'>
>>> task.running, task.outputs.num_turns
(False, 1)

Another process finds it again by its id:

>>> get_task(task.id).name == task.name
True
>>> task.cleanup()

Each task is a Pulumi stack of a project in the state folder; the commands `list`, `status`, `logs`, `destroy` know it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from coding_agent import dispatched, lifecycle, logs, records, worker
from coding_agent.errors import CodingAgentError, InvalidInput, NotFound
from coding_agent.records import Record
from coding_agent.resume import check, checked_prompt, resume
from coding_agent.run import Outputs, ProcessUsage, State
from coding_agent.times import instant
from coding_agent.work_queue import database, orders
from coding_agent.work_queue.entry import Entry
from coding_agent.work_queue.places import machine, store
from coding_agent.work_queue.queue import Queue

Say = Callable[[str], None]
FOLLOW_POLL = 0.2  # seconds between two looks while waiting
UNRESPONSIVE_POLL = 2.0  # seconds until a target that did not answer is asked again
END_LIMIT = 600.0  # seconds that the end of a task, or its removal, may take


class WaitTimeout(CodingAgentError, TimeoutError):
    """The run had not ended when the time given to `Task.wait` was over; it goes on."""


@dataclass(frozen=True)
class TaskStatus(Outputs):
    """A run at the moment of asking: everything it exports, and what its processes use."""

    cpu: float = 0.0  # percent of one core; several cores can add up to more than 100
    mem: float = 0.0  # MB (10^6 bytes), resident, all processes of the run
    processes: int = 0
    uptime: float = 0.0  # seconds since the agent started; once it has ended, how long it ran

    @property
    def state(self) -> State:
        """The state; the same as `status`."""
        return self.status


class Task:
    """A task that was dispatched. It belongs to no process: it goes on when this one ends."""

    def __init__(self, record: Record | None = None, entry: Entry | None = None) -> None:
        """Make a handle; `dispatch` and `get_task` do."""
        assert record or entry
        self._record, self._entry = record, entry
        self._attempt = 1  # of which `wait` says what the agent does

    def __repr__(self) -> str:
        state = self._record.outputs.status if self._record else self._entry.state if self._entry else ""
        return f"<Task {self.name} {self.id}: {state}>"

    @property
    def id(self) -> str:
        """The task's id, for `get_task`; its first run has the same."""
        return self._entry.id if self._entry else self._known.run_id

    @property
    def name(self) -> str:
        """The task's name; its stack has the same."""
        return self._entry.name if self._entry else self._known.stack

    @property
    def running(self) -> bool:
        """Whether it has not ended yet; one that waits in the queue has not."""
        return not self.outputs.status.final

    @property
    def outputs(self) -> Outputs:
        """What the run exports, as it is now. Once it has ended, its work has been brought back by then.

        Of a task that has no run yet, what the queue knows: `status` is `queued` or `provisioning`.
        """
        return self._look()[0]

    @property
    def result(self) -> str | None:
        """What the agent said at its end; None before, and for a command."""
        return self.outputs.result

    def status(self) -> TaskStatus:
        """Look at the run.

        >>> task = dispatch(command="true")
        >>> task.wait(timeout=60).exit_code
        0
        >>> status = task.status()
        >>> status.state.final, status.cpu, status.mem
        (True, 0.0, 0.0)
        >>> task.cleanup()
        """
        outputs, usage = self._look(use=True)
        known = {each.name: getattr(outputs, each.name) for each in fields(Outputs)}
        if usage:
            known |= {"cpu": usage.cpu, "mem": usage.mem, "processes": usage.processes}
        return TaskStatus(**known, uptime=_uptime(outputs))

    def recent_activity(self) -> list[str]:
        """Return the last 10 tool calls, oldest first."""
        return list(self.outputs.activity)

    def logs(self, n: int | None = 10, *, raw: bool = False) -> list[str]:
        """Return the last `n` lines of what the agent did (None: all); `raw`: its own stream of events.

        >>> task = dispatch(command="echo one; echo two")
        >>> _ = task.wait(timeout=60)
        >>> task.logs(1)
        ['two']
        >>> task.cleanup()
        """
        if self._record is None:
            self._look()
        if self._record is None:
            return []
        lines: list[str] = []
        stop = threading.Event()
        logs.logs(self._record, n=n, follow=False, raw=raw, debug=False, write=lines.append, say=_quiet, stop=stop)
        return [line.removesuffix("\n") for line in lines]

    def wait(
        self, timeout: float | None = None, *, say: Say | None = None, stop: threading.Event | None = None
    ) -> Outputs:
        """Wait until the task has ended, at most `timeout` seconds or until `stop` is set, and return its outputs.

        A run that failed is no exception: its outputs say so. `say` receives what the agent does, line by line.
        Raises WaitTimeout.
        """
        began, stop = time.monotonic(), stop or threading.Event()
        timer = threading.Timer(timeout, stop.set) if timeout is not None else None
        if timer:
            timer.daemon = True
            timer.start()
        try:
            while not (outputs := self.outputs).status.final and not stop.is_set():
                record = self._record
                if record is not None and not record.outputs.status.final:
                    attempt = min(self._attempt, len(record.earlier) + 1)
                    self._record = lifecycle.follow(
                        record, say=say or _quiet, stop=stop, poll=FOLLOW_POLL, attempt=attempt
                    )
                    if self._record.outputs.status is State.UNRESPONSIVE:
                        stop.wait(UNRESPONSIVE_POLL)  # its target did not answer: it may again
                else:
                    stop.wait(FOLLOW_POLL)  # in the queue, or about to be finished there
        finally:
            if timer:
                timer.cancel()
        if not outputs.status.final:
            raise WaitTimeout(
                f"task {self.name} is still {outputs.status} after {time.monotonic() - began:.0f} s",
                next_step="wait longer, or end it with kill()",
            )
        return outputs

    def kill(self) -> None:
        """End the task: in the queue, while it is started, or its agent and everything that started; results stay."""
        if self._entry is not None and not self._look()[0].status.final:
            with database.opened() as found:
                Queue(found).end(self._entry.id)
        if self._record is not None and not self._record.outputs.status.final:
            self._record = lifecycle.kill(self._record, say=_quiet)
        if self._entry is not None:
            self.wait(END_LIMIT)

    def resume(self, prompt: str | None = None, *, say: Say | None = None) -> None:
        """Let an agent that has ended go on: its session, in its workspace, as the next attempt of the same run.

        It is told `prompt`, or to go on. Turns and cost are then those of all attempts. A task of the queue waits for
        room on its executor first. `say` receives lines about the start. Raises InvalidInput where it can't go on: a
        command, a run that goes on or whose target is gone, a task that has changed.
        """
        checked_prompt(prompt)
        outputs = self.outputs
        if self._entry is not None:
            if self._record is not None and self._entry.state.final:
                check(self._record)
            self._entry = orders.resume(self._entry, prompt, say or _quiet)
        else:
            self._record = resume(self._known, prompt=prompt, say=say or _quiet)
        self._attempt = outputs.attempts + 1

    def cleanup(self, *, discard: bool = False) -> None:
        """End the run, bring its work back (unless `discard`), remove it from its executor, and its stack.

        What is known of it stays: `outputs` and `logs` go on working.
        """
        if self._entry is not None:
            self._look()
            self._leave_queue(discard)
        if self._record is not None:
            self._record = records.load(self._record.run_id) or self._record
            if not self._record.removed:
                dispatched.destroy(self._record, discard=discard, say=_quiet)
                self._record = records.load(self._record.run_id) or self._record

    @property
    def _known(self) -> Record:
        assert self._record is not None
        return self._record

    def _look(self, *, use: bool = False) -> tuple[Outputs, ProcessUsage | None]:
        """Return the outputs as they are now and, with `use`, what the run's processes use."""
        if self._entry is not None and not self._entry.state.final:
            with database.opened() as found:
                self._entry = Queue(found).get(self._entry.id) or self._entry
        entry = self._entry
        if entry is not None and entry.run_id is not None:
            self._record = records.load(entry.run_id) or entry.record or self._record
        if self._record is None or (entry is not None and entry.state is State.QUEUED):
            assert entry is not None
            return entry.outputs, None
        self._record, usage = lifecycle.examine(self._record, say=_quiet, use=use)
        outputs = self._record.outputs
        if entry is not None and outputs.status.final and not entry.state.final:
            # The queue says whether it is the end: a run that was lost may be tried again.
            outputs = replace(outputs, status=entry.state)
        return outputs, usage

    def _leave_queue(self, discard: bool) -> None:
        """Let the queue forget the task; a worker ends and removes what is not here, or has not ended."""
        assert self._entry is not None
        with database.opened() as found:
            queue = Queue(found)
            if self._entry.state.final and _reached(self._entry):
                queue.forget(self._entry.id)
                return
            if queue.get(self._entry.id) is None:
                return
            queue.end(self._entry.id, destroy=True, discard=discard)
            if not queue.attended():
                worker.start(queue.attended, _quiet)
            deadline = time.monotonic() + END_LIMIT
            while (entry := queue.get(self._entry.id)) is not None:
                if time.monotonic() > deadline:
                    raise WaitTimeout(
                        f"task {self.name} is not removed yet after {END_LIMIT:g} s",
                        next_step=f"`coding-agent why {self.id}` says what it waits for",
                    )
                self._entry = entry
                if entry.state.final and entry.wanted != "destroyed":
                    raise CodingAgentError(
                        f"task {self.name} is {entry.detail or 'not removed'}",
                        next_step=f"`coding-agent destroy {self.name} --discard` gives up what is on its target",
                    )
                time.sleep(FOLLOW_POLL)


def dispatch(
    prompt: str | None = None,
    *,
    command: str | None = None,
    executor: str | Mapping[str, Any] | None = None,
    labels: Iterable[str] = (),
    max_turns: int = 100,
    name: str | None = None,
    description: str | None = None,
    repo: str | Path | Mapping[str, str] | None = None,
    branch: str | None = None,
    uncommitted: str | None = None,
    workdir: str | None = None,
    files: Mapping[str, str] | None = None,
    setup: Iterable[str] = (),
    env: Mapping[str, str] | None = None,
    secrets: Iterable[str] = (),
    artifacts: Iterable[str] = (),
    model: str | None = None,
    timeout: float | None = None,
    agent: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    cwd: str | Path | None = None,
    priority: int = 0,
    not_before: datetime | None = None,
    retries: int | None = None,
    say: Say | None = None,
) -> Task:
    """Put a task into the queue, and return. A worker starts it once its executor has room.

    Where no worker lives, one is started that ends when it is idle.

    Exactly one of `prompt` (for an agent) and `command` (a shell command instead of one). A named `executor` is used
    whatever the labels; without one, the first with room of those that carry all of `labels` is. `repo` is a folder of
    a Git repository, relative to `cwd` (default: the current folder), whose HEAD the agent gets, or a mapping with
    `url` and `ref`; without it the agent begins in an empty folder. `timeout` is in seconds. `agent` and `limits` take
    the task file's other fields of these names; `say` receives lines about the start. A `name` makes it repeatable: the
    same task under the same name is adopted, not run twice.

    Of the tasks that wait, the one with the highest `priority` goes first, then the oldest; none before `not_before`
    (with a time zone). A run that was lost, that its API's errors have ended or that could not be started is tried
    again `retries` times (default 2), later each time.

    Raises InvalidInput for what can't be a task (an unknown executor included), CredentialMissing where no worker lives
    and the agent's credential is not here, and DatabaseUnavailable. A task that could not be started has failed, with
    the reason `start_failed`.

    >>> task = dispatch(command="sleep 300", name="sleeper", labels={"quick"}, executor="local")
    >>> task.running, task.name
    (True, 'sleeper')
    >>> task.kill()
    >>> str(task.outputs.status)
    'killed'
    >>> task.cleanup()
    """
    if isinstance(labels, str):
        raise InvalidInput(f"labels is the text {labels!r}", next_step=f"give a set: labels={{{labels!r}}}")
    of_agent = {"model": model, **(agent or {})}
    wanted: dict[str, Any] = {
        "description": description,
        "prompt": prompt,
        "command": command,
        "executor": dict(executor) if isinstance(executor, Mapping) else executor,
        "labels": sorted(set(labels)),
        "branch": branch,
        "uncommitted": uncommitted,
        "workdir": workdir,
        "files": [{"path": path, "content": content} for path, content in (files or {}).items()],
        "setup": list(setup),
        "env": dict(env or {}),
        "secrets": list(secrets),
        "artifacts": list(artifacts),
        "agent": {"max_turns": max_turns, **_given(of_agent)} if command is None else _given(of_agent),
        "limits": _given({"timeout": None if timeout is None else f"{timeout:f}s", **(limits or {})}),
    }
    if isinstance(repo, str | Path):
        repo = Path(cwd or ".") / Path(repo).expanduser()
    order = orders.of_fields(_given(wanted), name=name, repo=repo)
    order = orders.scheduled(order, priority=priority, not_before=not_before, retries=retries)
    (entry,) = orders.put([order], say or _quiet)
    return Task(entry=entry)


def dispatch_file(
    path: str | Path,
    *,
    priority: int = 0,
    not_before: datetime | None = None,
    retries: int | None = None,
    say: Say | None = None,
) -> Task:
    """Put the task of a file in a project into the queue, as `coding-agent dispatch` does, and return.

    Its stack is the project's; `dispatch` says what the other arguments mean. The same file, not changed since, is
    adopted, not run twice. Raises InvalidFile with everything that is wrong with it, and what `dispatch` does.
    """
    order = orders.of_file(Path(path).expanduser())
    order = orders.scheduled(order, priority=priority, not_before=not_before, retries=retries)
    (entry,) = orders.put([order], say or _quiet)
    return Task(entry=entry)


def get_task(task_id: str) -> Task:
    """Return the task with this id, whichever process dispatched it. Raises NotFound."""
    if database.in_use():
        with database.opened() as found:
            entry = Queue(found).get(task_id)
        if entry is not None:
            return Task(entry=entry)
    record = records.load(task_id)
    if record is None:
        raise NotFound(f"no task {task_id!r} is known on this machine", next_step="`coding-agent list` shows the known")
    return Task(record)


def _reached(entry: Entry) -> bool:
    """Whether the stack of a task, and what it needs, are within reach of this machine."""
    there = (entry.taken or "").partition("@")[2] or entry.machine
    return entry.store in (None, store()) and there in (None, machine())


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, [], {}, ())}


def _uptime(outputs: Outputs) -> float:
    start = instant(outputs.started_at)
    if start is None:
        return 0.0
    end = instant(outputs.finished_at)
    return max(0.0, round((time.time() if end is None else end) - start, 3))


def _quiet(_line: str) -> None:
    """Take a line and show it to no one."""
