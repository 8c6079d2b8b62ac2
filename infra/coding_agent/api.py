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
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from coding_agent import dispatched, lifecycle, logs, records
from coding_agent.errors import CodingAgentError, InvalidInput, NotFound
from coding_agent.records import Record
from coding_agent.run import Outputs, State
from coding_agent.times import instant

Say = Callable[[str], None]
FOLLOW_POLL = 0.2  # seconds between two looks while waiting
UNRESPONSIVE_POLL = 2.0  # seconds until a target that did not answer is asked again


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
    """A run that was dispatched. It belongs to no process: it goes on when this one ends."""

    def __init__(self, record: Record) -> None:
        """Make a handle; `dispatch` and `get_task` do."""
        self._record = record

    def __repr__(self) -> str:
        return f"<Task {self.name} {self.id}: {self._record.outputs.status}>"

    @property
    def id(self) -> str:
        """The run's id, for `get_task`."""
        return self._record.run_id

    @property
    def name(self) -> str:
        """The task's name; its stack has the same."""
        return self._record.stack

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return not self.outputs.status.final

    @property
    def outputs(self) -> Outputs:
        """What the run exports, as it is now. Once it has ended, its work has been brought back by then."""
        self._record = lifecycle.observe(self._record, say=_quiet)
        return self._record.outputs

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
        self._record, usage = lifecycle.examine(self._record, say=_quiet)
        outputs = self._record.outputs
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
        lines: list[str] = []
        stop = threading.Event()
        logs.logs(self._record, n=n, follow=False, raw=raw, debug=False, write=lines.append, say=_quiet, stop=stop)
        return [line.removesuffix("\n") for line in lines]

    def wait(self, timeout: float | None = None, *, say: Say | None = None) -> Outputs:
        """Wait until the run has ended, at most `timeout` seconds, and return its outputs.

        A run that failed is no exception: its outputs say so. `say` receives what the agent does, line by line.
        Raises WaitTimeout.
        """
        stop = threading.Event()
        timer = threading.Timer(timeout, stop.set) if timeout is not None else None
        if timer:
            timer.daemon = True
            timer.start()
        try:
            while self.running and not stop.is_set():
                self._record = lifecycle.follow(self._record, say=say or _quiet, stop=stop, poll=FOLLOW_POLL)
                if not self._record.outputs.status.final:
                    stop.wait(UNRESPONSIVE_POLL)  # its target did not answer: it may again
        finally:
            if timer:
                timer.cancel()
        if not self._record.outputs.status.final:
            raise WaitTimeout(
                f"task {self.name} is still {self._record.outputs.status} after {timeout:g} s",
                next_step="wait longer, or end it with kill()",
            )
        return self._record.outputs

    def kill(self) -> None:
        """End the agent and everything it started; its results stay."""
        self._record = lifecycle.kill(self._record, say=_quiet)

    def cleanup(self, *, discard: bool = False) -> None:
        """End the run, bring its work back (unless `discard`), remove it from its executor, and its stack.

        What is known of it stays: `outputs` and `logs` go on working.
        """
        dispatched.destroy(self._record, discard=discard, say=_quiet)
        self._record = records.load(self.id) or self._record


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
    say: Say | None = None,
) -> Task:
    """Start a task and return once its agent has started.

    Exactly one of `prompt` (for an agent) and `command` (a shell command instead of one). A named `executor` is used
    whatever the labels; without one, the first executor that carries all of `labels` is. `repo` is a folder of a Git
    repository, relative to `cwd` (default: the current folder), whose HEAD the agent gets, or a mapping with `url` and
    `ref`; without it the agent begins in an empty folder. `timeout` is in seconds. `agent` and `limits` take the task
    file's other fields of these names; `say` receives lines about the start. A `name` makes it repeatable: the same
    task under the same name is adopted, not run twice.

    Raises InvalidInput for what can't be a task (an unknown executor included), CredentialMissing, and CodingAgentError
    where it could not be started.

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
    record = dispatched.start(_given(wanted), name=name, repo=repo, say=say or _quiet)
    return Task(record)


def get_task(task_id: str) -> Task:
    """Return the task with this id, whichever process dispatched it. Raises NotFound."""
    record = records.load(task_id)
    if record is None:
        raise NotFound(f"no task {task_id!r} is known on this machine", next_step="`coding-agent list` shows the known")
    return Task(record)


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
