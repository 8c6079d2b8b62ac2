"""Let a run that has ended go on: the agent's own session in its own workspace, as the run's next attempt."""

from __future__ import annotations

import contextlib
import re
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from coding_agent import __version__, lifecycle, outcome, records
from coding_agent.errors import InvalidInput
from coding_agent.lifecycle import Say
from coding_agent.records import Record
from coding_agent.run import State
from coding_agent.settings import Settings

if TYPE_CHECKING:
    from coding_agent.executors.base import Executor
    from coding_agent.task import Task

GO_ON = "Go on with the task from where you stopped."  # what the agent is told where nothing else is asked for
LONGEST_PROMPT = 2_000_000  # bytes
_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
# What a further attempt adds up: of the one before, its outputs.
_KEPT = ("status", "reason", "started_at", "finished_at", "num_turns", "agent_num_turns", "cost_usd")
_STANDS = {
    "orphaned": "processes of it are still alive",
    "lost": "its end is not written",
    "gone": "its folder is gone from its target",
}


def resume(
    record: Record,
    *,
    say: Say,
    prompt: str | None = None,
    attempt: int | None = None,
    stop: threading.Event | None = None,
) -> Record:
    """Start another attempt of a run that has ended, and return once its agent goes on.

    The agent is told `prompt`, or to go on. With `attempt` nothing is done where the run had that one before: what was
    begun is adopted. Raises `InvalidInput` where the run can't go on, with what can be done instead; it is then as it
    was. Raises `CredentialMissing` and what reaching its target does.
    """
    prompt = checked_prompt(prompt)
    record = lifecycle.observe(record, say=say)
    if attempt is not None and record.outputs.attempts >= attempt:
        return record
    check(record)
    task, settings = _task(record)
    with contextlib.closing(lifecycle.reach(record)) as executor:
        executor.wake()
        look = executor.status(record.run_id)
        if look.state is None:
            raise _refused(record, _STANDS["gone"])
        session = record.outputs.session_id or ""
        if not executor.transcripts(record.run_id, session):
            raise _refused(record, f"the transcript of its session {session} is gone from its target")
        before = {name: value for name, value in asdict(record.outputs).items() if name in _KEPT}
        before |= {"status": str(record.outputs.status), "log_size": look.log_size}
        # What an earlier try has noted and not begun does not count.
        earlier = (*record.earlier[: record.outputs.attempts - 1], _attempt_alone(record, before))
        return _start(replace(record, earlier=earlier), task, executor, settings, prompt, say, stop)


def checked_prompt(prompt: str | None) -> str:
    """Return what the agent is told. Raises `InvalidInput` for what it can't be told."""
    if prompt is None:
        return GO_ON
    if not prompt.strip():
        raise InvalidInput("the prompt is empty", next_step="say something, or leave it out: the agent then goes on")
    if len(prompt.encode()) > LONGEST_PROMPT or "\0" in prompt:
        raise InvalidInput(f"the prompt is longer than {LONGEST_PROMPT // 1_000_000} MB, or has a NUL in it")
    return prompt


def _start(
    record: Record,
    task: Task,
    executor: Executor,
    settings: Settings,
    prompt: str,
    say: Say,
    stop: threading.Event | None,
) -> Record:
    from coding_agent import launch

    attempt = len(record.earlier) + 1
    with launch.resumed(task, record, executor, settings, say, prompt=prompt) as prepared:
        marks = {name: outcome.mark(record.run_id, value) for name, value in prepared.secrets.items()}
        outputs = replace(
            record.outputs,
            status=State.STARTING,
            reason=None,
            detail=None,
            result=None,
            exit_code=None,
            finished_at=None,
            coding_agent_version=__version__,
        )
        resumed = replace(record, secrets=marks, outputs=outputs, collected=False, cpu_seen=(0, 0.0))
        with records.starting(record.run_id):
            # Before it can begin: a controller that is killed leaves a record that is looked at, and so corrected.
            records.save(resumed)
            stands = executor.resume(prepared.launch, attempt=attempt)
        if stands in _STANDS:
            raise _refused(lifecycle.observe(resumed, say=say), _STANDS[stands])
    resumed = lifecycle.begin(resumed, executor, say, stop or threading.Event())
    if resumed.outputs.attempts < attempt and resumed.outputs.status is not State.UNRESPONSIVE:
        raise InvalidInput(
            f"run {record.run_id} does not go on: something on its target holds it", next_step="repeat this"
        )
    return resumed


def _attempt_alone(record: Record, before: dict[str, object]) -> dict[str, object]:
    """Return what an attempt has had of its own: the outputs add up what was before it."""
    for name in ("num_turns", "agent_num_turns"):
        if before[name] is not None:
            past = record.earlier[: record.outputs.attempts - 1]
            before[name] = int(str(before[name])) - sum(int(each[name] or 0) for each in past)
    return before


def check(record: Record) -> None:
    """Raise `InvalidInput` where it is known without a look at its target that a run can't go on."""
    if not record.outputs.status.final:
        raise InvalidInput(
            f"run {record.run_id} is still {record.outputs.status}",
            next_step=f"follow it with `coding-agent logs -f {record.stack}`, or end it with `coding-agent kill`",
        )
    if record.kind != "agent":
        raise _refused(record, "it is a command: only an agent has a session to go on with")
    if record.removed:
        raise _refused(record, "its target is gone, with its workspace and its session")
    if not _SESSION.fullmatch(record.outputs.session_id or ""):
        raise _refused(record, "it ended before its agent had a session")


def _task(record: Record) -> tuple[Task, Settings]:
    from coding_agent import task

    settings, file = Settings.load(), Path(record.file)
    if not record.file or not file.is_file():
        raise InvalidInput(
            f"run {record.run_id} can't go on: its task's file {record.file} is not there",
            next_step="put it back as it was: the agent's settings and limits are in it",
        )
    loaded = task.load(file, settings=settings)
    if loaded.digest != record.digest:
        raise InvalidInput(
            f"run {record.run_id} can't go on: {loaded.source} has changed since it was started",
            next_step=f"restore the file, or `coding-agent up {record.stack}` to run the task as it is now",
        )
    return loaded, settings


def _refused(record: Record, why: str) -> InvalidInput:
    again = f"`coding-agent up {record.stack} --rerun` runs the task from the beginning"
    return InvalidInput(f"run {record.run_id} can't go on: {why}", next_step=again)
