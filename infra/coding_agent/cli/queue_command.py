"""`dispatch`, `worker` and `why`: tasks that wait until an executor has room."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from coding_agent.cli import names
from coding_agent.cli.options import command, json_option, task_argument
from coding_agent.cli.screen import Screen
from coding_agent.quantities import seconds

if TYPE_CHECKING:
    from coding_agent.work_queue.entry import Entry


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        try:
            return value if isinstance(value, float) else seconds(str(value))
        except ValueError:
            self.fail(f"{value!r} is no duration; write one such as 90s or 5m", param, ctx)


class _Moment(click.ParamType[datetime]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return a moment; one without a zone is this machine's."""
        if isinstance(value, datetime):
            return value
        try:
            found = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time; write one such as 2026-12-01T22:00", param, ctx)
        return found if found.tzinfo else found.astimezone()


@command(
    "dispatch",
    examples=[
        "dispatch fix-build",
        "dispatch tasks/*.yaml --priority 5",
        "dispatch nightly --not-before 2026-12-01T22:00 --retries 3",
    ],
    codes=[(0, "it is in the queue"), 2, 3, 4],
)
@click.argument("tasks", metavar="NAME|FILE...", nargs=-1, required=True, shell_complete=names.complete_task)
@click.option("--priority", type=int, default=0, show_default=True, help="Higher ones go first, then older ones.")
@click.option(
    "--not-before", type=_Moment(), metavar="TIME", help="Not to be started earlier, such as 2026-12-01T22:00."
)
@click.option(
    "--retries", type=click.IntRange(min=0), help="Try it again so often after a failure that is worth it  [default: 2]"
)
@json_option
def dispatch_command(
    tasks: tuple[str, ...], priority: int, not_before: datetime | None, retries: int | None, as_json: bool
) -> int:
    """Put tasks into the queue. A worker starts each once its executor has room; where none lives, one is started.

    All of them, or none where one can't be used.
    """
    from coding_agent.work_queue import orders

    screen = Screen(as_json=as_json)
    found = [orders.of_file(names.task_file(each)) for each in dict.fromkeys(tasks)]
    wanted = [orders.scheduled(each, priority=priority, not_before=not_before, retries=retries) for each in found]
    entries = orders.put(wanted, Screen(as_json=True).say)
    if as_json:
        screen.data([document(each) for each in entries])
        return 0
    for each in entries:
        screen.say(f"{each.name}: {each.state}, as {each.id}")
    screen.say("  coding-agent list --queue    # what waits, and what is at work")
    screen.say(f"  coding-agent why {entries[0].name}    # what it waits for")
    return 0


@command(
    "worker",
    examples=["worker", "worker crib builder", "worker --idle 10m"],
    codes=[(0, "it was ended, or had nothing to do for so long"), 2, 3, 4],
)
@click.argument("executors", metavar="[EXECUTOR...]", nargs=-1, shell_complete=names.complete_any_executor)
@click.option("--idle", type=_Duration(), metavar="DURATION", help="End once there was nothing to do for so long.")
@json_option
def worker_command(executors: tuple[str, ...], idle: float | None, as_json: bool) -> int:
    """Take tasks from the queue as executors have room, and attend to each until it has ended.

    Serves all executors of the executors file, or those that are named. There may be several: each takes its share, and
    the tasks of one that dies are taken over by another of the same user here. SIGTERM and Ctrl-C end it; the agents go
    on.
    """
    from coding_agent import worker

    screen = Screen(as_json=as_json)
    guard = threading.Lock()

    def say(line: str) -> None:
        now = datetime.now().astimezone()
        with guard:
            screen.line({"at": now.isoformat(), "line": line}) if as_json else screen.say(f"{now:%H:%M:%S} {line}")

    with _ended_by_signals() as stop, worker.opened(frozenset(executors), say, idle=idle) as found:
        found.run(stop)
    say("ended; agents that run go on")
    return 0


@command("why", examples=["why fix-build"], codes=[0, 3, 4])
@task_argument
@json_option
def why_command(task: str, as_json: bool) -> int:
    """Say what a task in the queue waits for."""
    from coding_agent.work_queue import database
    from coding_agent.work_queue.queue import Queue

    screen = Screen(as_json=as_json)
    with database.opened() as found:
        queue = Queue(found)
        entry = queue.find(task)
        lines = queue.why(entry)
    if as_json:
        screen.data({**document(entry), "why": lines})
    for line in lines if not as_json else ():
        screen.say(line)
    return 0


def document(entry: Entry) -> dict[str, Any]:
    """Return what --json says of a task in the queue."""
    return {
        "id": entry.id,
        "name": entry.name,
        "state": str(entry.state),
        "reason": entry.reason,
        "detail": entry.detail,
        "run_id": entry.run_id,
        "executor": (entry.taken or entry.executor or "").partition("@")[0] or None,
        "labels": list(entry.labels),
        "priority": entry.priority,
        "attempt": entry.attempt,
        "retries": entry.retries,
        "not_before": entry.not_before.isoformat(),
        "enqueued_at": entry.enqueued_at.isoformat(),
        "machine": entry.machine,
        "worker": entry.worker,
    }


def show(screen: Screen, *, ended: bool) -> None:
    """Show the queue: what is at work, then what waits in the order in which it is taken."""
    from coding_agent.work_queue import database
    from coding_agent.work_queue.queue import Queue

    entries: list[Entry] = []
    if database.in_use():
        with database.opened() as found:
            entries = Queue(found).entries(ended=ended)
    if screen.as_json:
        screen.data([document(each) for each in entries])
    elif entries:
        screen.table(("TASK", "ID", "STATE", "EXECUTOR", "PRIORITY", "ATTEMPT", "WAITS FOR"), [*map(_row, entries)])
    else:
        screen.say("nothing waits and nothing is at work: `coding-agent dispatch NAME` puts a task in")


def _row(entry: Entry) -> tuple[str, ...]:
    executor = (entry.taken or entry.executor or "").partition("@")[0]
    waits = ""
    if str(entry.state) == "queued":
        waits = entry.executor or ", ".join(entry.labels) or "any executor"
    return (entry.name, entry.id, str(entry.state), executor, str(entry.priority), str(entry.attempt), waits)


@contextmanager
def _ended_by_signals() -> Iterator[threading.Event]:
    """Give an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda _number, _frame: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
