"""What a word on the command line means: a task's file, a run, the project one stands in; and completing it."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from coding_agent import paths, records
from coding_agent.errors import CodingAgentError, InvalidInput, NotFound
from coding_agent.records import Record

if TYPE_CHECKING:
    from coding_agent.work_queue.entry import Entry

SUFFIXES = (".yaml", ".yml")


def project_root(start: Path | None = None) -> Path | None:
    """Return the folder of the nearest Pulumi.yaml from `start` (default: the current folder) upwards."""
    folder = (start or Path.cwd()).resolve()
    return next((each for each in (folder, *folder.parents) if (each / "Pulumi.yaml").is_file()), None)


def task_files(root: Path | None = None) -> list[Path]:
    """Return the task files of the project, by name."""
    folder = (root or project_root() or Path.cwd()) / "tasks"
    return sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES and path.is_file())


def task_file(word: str) -> Path:
    """Return the file of a task given by its name, or the file itself. Raises NotFound."""
    path = task_path(word)
    if path.is_file():
        return path.absolute()
    raise NotFound(f"no file {word}", next_step="name a task of tasks/, or a task file that exists")


def task_path(word: str) -> Path:
    """Return the path that a task's name or a file's stands for, which for a file needn't exist. Raises NotFound."""
    named = Path(word).expanduser()
    if "/" in word or named.suffix in SUFFIXES:
        return named
    files = task_files()
    for path in files:
        if path.stem == word:
            return path
    near = difflib.get_close_matches(word, [path.stem for path in files], n=1)
    known = f"did you mean {near[0]}?" if near else _tasks_known(files)
    raise NotFound(f"no task {word!r} in {(project_root() or Path.cwd()) / 'tasks'}", next_step=known)


def _tasks_known(files: list[Path]) -> str:
    if files:
        return "its tasks are " + ", ".join(path.stem for path in files)
    return "`coding-agent init` makes a project with an example, or name a task file"


def record(word: str) -> Record:
    """Return the run that a run id, its beginning or a task's name means.

    A name means the latest run of this project's task, else of a dispatched one. Outside of a project it means the one
    project that has such a task. So `destroy NAME` never reaches into another project. Raises NotFound, InvalidInput.
    """
    known = records.everything()
    exact = [each for each in known if each.run_id == word]
    if exact:
        return exact[0]
    named = [each for each in known if word in (each.stack, each.task)]
    root = project_root()
    if root:
        here = [each for each in named if same_folder(each.root, root)]
        named = here or [each for each in named if Path(each.root).is_relative_to(paths.state_dir())]
    roots = {each.root for each in named}
    if len(roots) > 1:
        choices = "".join(f"\n  {each.run_id}  {each.root}" for each in _latest_of_each(named))
        raise InvalidInput(f"several projects have a task {word!r}:{choices}", next_step="name one by its run id")
    if named:
        return named[0]
    begins = [each for each in known if len(word) >= 4 and each.run_id.startswith(word)]
    if len(begins) == 1:
        return begins[0]
    raise NotFound(f"no run of a task {word!r} is known here", next_step=_elsewhere(word, known))


def find_run(word: str, *, say: Callable[[str], None]) -> Record:
    """Return the run that `record` returns; where this machine has none, ask the queue, then the stack of that name.

    That happens with what was started on another machine: reading it writes the record here. Raises NotFound.
    """
    try:
        return record(word)
    except NotFound:
        entry = queued(word)
        if entry is not None and entry.record is not None:
            return records.load(entry.record.run_id) or records.save(entry.record)
        if entry is not None:
            raise NotFound(
                f"task {entry.name} is {entry.state} and has no run yet",
                next_step=f"`coding-agent why {entry.name}` says what it waits for",
            ) from None
        root = project_root()
        if root is None or not any(path.stem == word for path in task_files(root)):
            raise
        from coding_agent import stack

        say(f"no run of {word} is known on this machine; asking its stack")
        try:
            outputs = stack.open_stack(root, word, create=False, progress=say).refresh(say=say)
        except NotFound:
            outputs = {}
        found = records.load(str(outputs["run_id"])) if outputs.get("run_id") else None
        if found is None:
            raise
        return found


def queued(word: str) -> Entry | None:
    """Return the task in the queue that a name or an id means; None where there is none, or no queue."""
    from coding_agent.work_queue import database

    if not database.in_use():
        return None
    from coding_agent.work_queue.queue import Queue

    root = project_root()
    with database.opened() as found, contextlib.suppress(NotFound):
        return Queue(found).find(word, root=str(root) if root else None)
    return None


def same_folder(named: str, folder: Path) -> bool:
    """Return whether a record's folder is this one."""
    return Path(named).resolve() == folder.resolve()


def _latest_of_each(found: list[Record]) -> list[Record]:
    latest: dict[str, Record] = {}
    for each in found:
        latest.setdefault(each.root, each)
    return list(latest.values())


def _elsewhere(word: str, known: list[Record]) -> str:
    others = _latest_of_each([each for each in known if word in (each.stack, each.task)])
    if others:
        return "another project has one: " + ", ".join(f"{each.run_id} ({each.root})" for each in others)
    names = sorted({each.stack for each in known})
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {near[0]}?" if near else "`coding-agent list` shows what is known"


def complete_task(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Complete the name of a task of this project, or a file."""
    found = [CompletionItem(path.stem) for path in task_files() if path.stem.startswith(word)]
    return found or [CompletionItem(word, type="file")]


def complete_run(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Complete the name of a task that has run, or a run id."""
    helps: dict[str, str] = {}
    for each in records.everything():
        helps.setdefault(each.stack, str(each.outputs.status))
        if word and each.run_id.startswith(word):
            helps.setdefault(each.run_id, f"{each.stack}, {each.outputs.status}")
    return [CompletionItem(name, help=text) for name, text in helps.items() if name.startswith(word)]


def complete_executor(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Complete the name of an executor that is reached by ssh."""
    from coding_agent.settings import Settings

    with contextlib.suppress(CodingAgentError):
        found = Settings.load().executors
        return [CompletionItem(each.name) for each in found if each.type == "ssh" and each.name.startswith(word)]
    return []


def complete_any_executor(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Complete the name of an executor."""
    from coding_agent.settings import Settings

    with contextlib.suppress(CodingAgentError):
        return [CompletionItem(each.name) for each in Settings.load().executors if each.name.startswith(word)]
    return []
