"""The tasks of a project as its folder says they shall be: what is new runs, what changed runs anew, what went goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coding_agent import executors, near_files, records, stack, task, worker
from coding_agent.document import InvalidFile, Problem
from coding_agent.errors import InvalidInput
from coding_agent.project import open_project
from coding_agent.records import Record
from coding_agent.settings import Settings
from coding_agent.task import Task
from coding_agent.work_queue import database, orders
from coding_agent.work_queue.entry import Entry, Order
from coding_agent.work_queue.places import machine
from coding_agent.work_queue.queue import Queue

Say = Callable[[str], None]
Kind = Literal["created", "replaced", "kept", "destroyed", "left"]
POLL = 0.5  # seconds between two looks at the queue
END_LIMIT = 600.0  # seconds until a run that is to be replaced has ended
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Change:
    """What becomes of one task."""

    name: str
    kind: Kind
    why: str
    file: Path | None = None  # none: it has none any more
    record: Record | None = None
    entry: Entry | None = None  # what the queue has of it


@dataclass(frozen=True)
class Outcome:
    """What became of it."""

    change: Change
    state: str
    detail: str | None = None

    @property
    def failed(self) -> bool:
        """Whether it did not come out as it should."""
        return self.state not in ("succeeded", "kept", "removed", "left", "queued")


def plan(folder: Path, *, prune: bool, say: Say) -> list[Change]:
    """Return what there is to do so that the stacks of the project around `folder` are what its files say.

    Raises `InvalidFile` with everything that is wrong with any of the files; `InvalidInput` for a folder that is none.
    """
    root, tasks = near_files.project_root(folder / "task.yaml"), _tasks(folder)
    if not (root / "Pulumi.yaml").is_file():
        raise InvalidInput(f"{folder} is in no project", next_step="`coding-agent init` makes one")
    if prune and folder.resolve() != (root / "tasks").resolve():
        raise InvalidInput(
            f"--prune would remove what other folders of {root} hold", next_step=f"sync all of it: {root / 'tasks'}"
        )
    name = open_project(root).name
    there = {each for project, each in stack.known(root, say) if project == name}
    queued, newest = _queued(root), _newest(root)
    changes = [_change(root, each, there, queued.get(each.name), newest.get(each.name), say) for each in tasks.values()]
    gone = sorted(there - tasks.keys()) if folder.resolve() == (root / "tasks").resolve() else []
    for each in gone:
        kind, why = ("destroyed", "its file is gone") if prune else ("left", "its file is gone; --prune removes it")
        changes.append(Change(each, kind, why, None, newest.get(each), queued.get(each)))  # type: ignore[arg-type]
    return changes


def carry_out(changes: Sequence[Change], folder: Path, say: Say) -> list[Entry]:
    """Put what there is to do into the queue; return what it has of each task that is changed, in their order.

    What is to be replaced and goes on is ended first.
    """
    root = near_files.project_root(folder / "task.yaml")
    with database.opened() as found:
        queue = Queue(found)
        _end(queue, [each.entry for each in changes if each.kind == "replaced" and each.entry is not None], say)
        wanted = [each for each in changes if each.kind in ("created", "replaced")]
        put = orders.put([_order(each) for each in wanted], say, again=True) if wanted else []
        entries = {each.name: entry for each, entry in zip(wanted, put, strict=True)}
        removals = [each for each in changes if each.kind == "destroyed"]
        for each in removals:
            known = queue.get(each.entry.id) if each.entry else None
            file = str(root / "tasks" / f"{each.name}.yaml")
            entries[each.name] = (
                queue.end(known.id, destroy=True) if known else queue.end_unknown(each.name, file, each.record)
            )
        if removals and not queue.attended():
            worker.start(queue.attended, say)
    return [entries[each.name] for each in changes if each.name in entries]


def wait(changes: Sequence[Change], entries: Sequence[Entry], say: Say) -> list[Outcome]:
    """Wait until all of it is done; say what becomes of each."""
    by_name, left = {each.name: each for each in changes}, {each.name: each.id for each in entries}
    done = {each.name: Outcome(each, each.kind) for each in changes if each.name not in left}
    with database.opened() as found:
        queue = Queue(found)
        while left:
            for name, number in [*left.items()]:
                outcome = _outcome(by_name[name], queue.get(number))
                if outcome is not None:
                    done[name] = outcome
                    say(f"{name}: {outcome.state}" + (f" ({outcome.detail})" if outcome.detail else ""))
                    del left[name]
            if left:
                time.sleep(POLL)
    return [done[each.name] for each in changes]


def _outcome(change: Change, entry: Entry | None) -> Outcome | None:
    if entry is None:
        return Outcome(change, "removed")
    if change.kind == "destroyed":
        return Outcome(change, "not_removed", entry.detail) if entry.wanted != "destroyed" else None
    return Outcome(change, str(entry.state), entry.outputs.reason) if entry.state.final else None


def _tasks(folder: Path) -> Mapping[str, Task]:
    if not folder.is_dir():
        raise InvalidInput(f"there is no folder {folder}", next_step="name the folder with the task files")
    settings, problems, found = Settings.load(), list[Problem](), dict[str, Task]()
    for file in sorted(each for each in folder.iterdir() if each.suffix in SUFFIXES and each.is_file()):
        try:
            loaded = task.load(file, settings=settings)
        except InvalidFile as error:
            problems += error.problems
            continue
        if loaded.name in found:
            raise InvalidInput(
                f"{file} and {found[loaded.name].source} are both named {loaded.name}", next_step="rename one of them"
            )
        found[loaded.name] = loaded
    if problems:
        raise InvalidFile(problems)
    return found


def _queued(root: Path) -> dict[str, Entry]:
    """Return what the queue has of the project's tasks: of each name what came last."""
    if not database.in_use():
        return {}
    with database.opened() as found:
        entries = sorted(Queue(found).entries(ended=True), key=lambda each: each.enqueued_at)
    ours = [each for each in entries if each.file and each.machine == machine()]
    return {each.name: each for each in ours if near_files.project_root(Path(str(each.file))) == root}


def _change(root: Path, wanted: Task, there: set[str], queued: Entry | None, record: Record | None, say: Say) -> Change:
    made = _made_of(root, wanted.name, record, say) if wanted.name in there else None
    spec = Settings.load().choose(wanted)
    new = (wanted.digest, executors.image(spec, wanted) or "")

    def change(kind: Kind, why: str) -> Change:
        return Change(wanted.name, kind, why, wanted.source, record, queued)

    if queued is not None and not queued.state.final:
        if queued.digest == orders.digest(wanted):
            return change("kept", f"it is {queued.state}")
        return change("replaced", f"it is {queued.state}, and was changed")
    if made is None:
        return change("created", "it has no run yet")
    if made[0] != new[0]:
        return change("replaced", "it was changed")
    if made[1] != new[1]:
        return change("replaced", f"it runs on {new[1] or 'another target'} now")
    state = record.outputs.status if record else None
    return change("kept", f"unchanged{f', {state}' if state else ''}")


def _made_of(root: Path, name: str, record: Record | None, say: Say) -> tuple[str, str] | None:
    if record is not None and record.digest and not record.removed:
        return record.digest, record.image
    return stack.open_stack(root, name, create=False, progress=say).made_of()


def _newest(root: Path) -> dict[str, Record]:
    """Return the newest run of each of the project's stacks; all are read once, however many tasks there are."""
    ours = (each for each in reversed(records.everything()) if each.root == str(root))
    return {each.stack: each for each in ours}


def _order(change: Change) -> Order:
    assert change.file is not None
    return orders.of_file(change.file)


def _end(queue: Queue, entries: Sequence[Entry], say: Say) -> None:
    going = [each for each in entries if not each.state.final]
    for each in going:
        say(f"{each.name}: ending what it was")
        queue.end(each.id)
    if going and not queue.attended():
        worker.start(queue.attended, say)
    deadline = time.monotonic() + END_LIMIT
    while any((now := queue.get(each.id)) is not None and not now.state.final for each in going):
        if time.monotonic() > deadline:
            raise InvalidInput(
                f"what is to be replaced did not end within {END_LIMIT:.0f} s",
                next_step="`coding-agent list --queue` shows what goes on",
            )
        time.sleep(POLL)
