"""Where dispatched tasks live: their stacks in one project in the state folder, a file for each.

The file of a task about a repository lies in that repository, in a folder that git ignores, because `repo: .` means the
repository around the file.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coding_agent import backend, lifecycle, paths, records
from coding_agent.errors import CodingAgentError, InvalidInput, NotFound, StackLocked
from coding_agent.near_files import project_root
from coding_agent.records import Record

if TYPE_CHECKING:
    from coding_agent.settings import Settings
    from coding_agent.task import Task

Say = Callable[[str], None]
Repo = str | Path | Mapping[str, str] | None  # a folder in a repository, or `url` and `ref` of another
LOCK_LIMIT = 600.0  # seconds; a start may have to install the engine or Claude Code
LOCK_POLL = 0.05
_GIT_LIMIT = 30.0  # seconds
_SLUG_LENGTH = 24
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def project() -> Path:
    """Return the folder of the project that holds the stack of every dispatched task.

    Stacks in a backend that other machines use are those of one project for them all.
    """
    shared = backend.shared(paths.state_dir())
    return paths.state_dir() / ("dispatch" if shared is None else f"dispatch-{shared}")


def stack_root(record: Record) -> Path:
    """Return the folder of the project that a run's stack belongs to.

    That is the run's own, unless it was dispatched into somebody's repository.
    """
    return project() if record.project and record.project == _project_name() else Path(record.root)


def check(fields: Mapping[str, Any], *, name: str, repo: Repo) -> Task:
    """Return the task that `fields` say. Raises InvalidInput; nothing is made."""
    from coding_agent.settings import Settings

    folder = _folder(repo)
    project().mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".check-", dir=project()) as scratch:
        path = Path(scratch) / f"{name}.yaml"
        _put(path, _complete(fields, name, repo))
        task = _read(path, Settings.load())
    if repo is not None and not isinstance(repo, Mapping):
        _check_root(folder)
    return task


def start(fields: Mapping[str, Any], *, name: str, repo: Repo, run_id: str, say: Say) -> Record:
    """Write the task's file, start its stack and return its record; the run gets this id.

    Raises InvalidInput, CredentialMissing, NotFound before anything was made; when the start fails, what was made for
    a new task goes again.
    """
    from coding_agent import stack

    folder = _folder(repo)
    fields = _complete(fields, name, repo)
    with _held(name):
        _prepare()
        path = folder / f"{name}.yaml"
        fresh = not path.exists()
        task = _write(path, fields)
        try:
            if repo is not None and not isinstance(repo, Mapping):
                _check_root(folder)
            opened = stack.open_stack(project(), task.name, task_file=path, progress=say)
            outputs = opened.up(wait=False, run_id=run_id, say=say)
        except CodingAgentError:
            if fresh:
                _undo(task.name, path)
            raise
    found = records.load(str(outputs.get("run_id")))
    if found is None:
        raise CodingAgentError(f"the run of task {name} left no record", next_step="`coding-agent doctor` looks why")
    return found


def abandon(name: str, repo: Repo) -> None:
    """Remove what a start that was ended half-way has left."""
    with _held(name):
        _undo(name, _folder(repo) / f"{name}.yaml")


def destroy(record: Record, *, discard: bool, say: Say) -> None:
    """End the run, bring its work back unless `discard`, remove its stack and, if dispatched, the task's file.

    Works for any run, dispatched or not. The stack of a run that a later one has replaced is the later one's: it stays.
    """
    from coding_agent import stack

    root = stack_root(record)
    if _replaced(record):
        lifecycle.cleanup(record, discard=discard, say=say)
        return
    with _held(record.stack) if root == project() else nullcontext():
        try:
            stack.open_stack(root, record.stack, create=False, progress=say).destroy(discard=discard, say=say)
        except NotFound:
            lifecycle.cleanup(record, discard=discard, say=say)  # the stack is gone: what is left is the run itself
        if root == project():
            (root / "stacks" / f"Pulumi.{record.stack}.yaml").unlink(missing_ok=True)
            _forget(_tasks(Path(record.root)) / f"{record.stack}.yaml")


def _replaced(record: Record) -> bool:
    same = (each for each in records.everything() if (each.project, each.stack) == (record.project, record.stack))
    return any(each.created_at > record.created_at for each in same)


def new_name(fields: Mapping[str, Any]) -> str:
    """Return a name of the task's first words that no other has."""
    words = re.sub(r"[^a-z0-9]+", "-", str(fields.get("prompt") or fields.get("command") or "")[:200].lower())
    return f"{words[:_SLUG_LENGTH].strip('-') or 'task'}-{secrets.token_hex(4)}"


def _complete(fields: Mapping[str, Any], name: str, repo: Repo) -> dict[str, Any]:
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} can't be a task's name", next_step="use letters, digits, `.`, `_` and `-`")
    more = {} if repo is None else {"repo": dict(repo) if isinstance(repo, Mapping) else "."}
    return {"name": name, **fields, **more}


def _folder(repo: Repo) -> Path:
    """Return the folder for the task's file: inside the repository that the task is about, else in the state folder."""
    if repo is None or isinstance(repo, Mapping):
        return _tasks(project())
    argv = ["git", "-C", str(Path(repo).expanduser()), "rev-parse", "--show-toplevel"]
    try:
        top = subprocess.run(argv, capture_output=True, text=True, timeout=_GIT_LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidInput(f"git can't look at {repo}: {error}", next_step="install git") from error
    if top.returncode != 0:
        raise InvalidInput(f"{repo} is in no git repository: {top.stderr.strip()}", next_step="name one that is")
    return _tasks(Path(top.stdout.removesuffix("\n")))


def _tasks(root: Path) -> Path:
    return root / "tasks" if root == project() else root / ".coding-agent" / "dispatched"


def _check_root(folder: Path) -> None:
    repository = folder.parent.parent
    around = project_root(folder / "task.yaml")
    if around.resolve() != repository.resolve():
        raise InvalidInput(
            f"the repository {repository} lies inside the project {around}",
            next_step="dispatch for a repository of its own, or run a task of that project",
        )


def _prepare() -> None:
    root = project()
    with _held("project"):
        (root / "tasks").mkdir(parents=True, exist_ok=True, mode=0o700)
        file = root / "Pulumi.yaml"
        if not file.exists():
            part = root / f".{secrets.token_hex(4)}"
            name = root.name if root.name != "dispatch" else f"dispatch-{secrets.token_hex(4)}"
            part.write_text(f"name: {name}\nruntime: python\nstackConfigDir: stacks\n")
            part.replace(file)


def _project_name() -> str | None:
    try:
        return (project() / "Pulumi.yaml").read_text().partition("\n")[0].removeprefix("name: ")
    except OSError:
        return None


def _write(path: Path, fields: Mapping[str, Any]) -> Task:
    """Put the task's file in its place, once it is known to be valid. Raises InvalidInput."""
    from coding_agent import credentials, task
    from coding_agent.settings import Settings

    settings = Settings.load()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.parent.name == "dispatched":
        # Inside somebody's work tree: git must not see it, as with the caches that other tools leave there.
        (path.parent.parent / ".gitignore").write_text("*\n")
    part = path.with_name(f".{secrets.token_hex(4)}{path.suffix}")
    try:
        _put(part, fields)
        new = _read(part, settings)
        executor = settings.choose(new)
        if not path.exists():
            credentials.check(new, settings, executor)  # a new run for certain: say what is missing at once
        _keep_what_runs(path, new)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        if not path.exists():
            _forget(path)
        raise
    return task.load(path, settings=settings)


def _put(path: Path, fields: Mapping[str, Any]) -> None:
    from coding_agent import task

    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(task.dump(fields))


def _read(path: Path, settings: Settings) -> Task:
    """Read the file; its caller never saw it, so what is wrong is told by argument."""
    from coding_agent import task
    from coding_agent.document import InvalidFile

    try:
        return task.load(path, settings=settings)
    except InvalidFile as error:
        problems = "\n".join(f"{each.field}: {each.message}" for each in error.problems)
        raise InvalidInput(f"this can't be a task: {problems}") from error


def _keep_what_runs(path: Path, new: Task) -> None:
    """Refuse to replace a task that is still running: two callers may have chosen one name by accident."""
    known = [each for each in records.everything() if each.stack == new.name and stack_root(each) == project()]
    if not known:
        return
    from coding_agent import task
    from coding_agent.settings import Settings

    with suppress(InvalidInput):
        if path.exists() and task.load(path, settings=Settings.load()).digest == new.digest:
            return
    if not lifecycle.observe(known[0], say=lambda _line: None).outputs.status.final:
        raise InvalidInput(
            f"another task named {new.name} is still running, as {known[0].run_id}",
            next_step="choose another name, or end that one with get_task(id).cleanup()",
        )


def _undo(name: str, path: Path) -> None:
    from coding_agent import stack

    with suppress(CodingAgentError):
        # Never with discard: an older task of this name may have work that is nowhere else.
        stack.open_stack(project(), name, create=False).destroy(discard=False, say=lambda _line: None)
    _forget(path)


def _forget(path: Path) -> None:
    path.unlink(missing_ok=True)
    if path.parent.name == "dispatched":
        with suppress(OSError):  # other tasks' files are there
            path.parent.rmdir()
            (path.parent.parent / ".gitignore").unlink(missing_ok=True)
            path.parent.parent.rmdir()


@contextmanager
def _held(name: str, *, limit: float = LOCK_LIMIT) -> Iterator[None]:
    """Keep two processes from working on one task's file and stack at once; wait at most `limit` seconds."""
    folder = project() / ".locks"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    deadline = time.monotonic() + limit
    with (folder / name).open("w") as file:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise StackLocked(
                    f"another process has been working on task {name} for over {limit:.0f} s",
                    next_step=f"`fuser {folder / name}` names it",
                )
            time.sleep(LOCK_POLL)
        yield
