"""What is known of each run on the controller: one folder a run under `paths.records_dir()`.

`status`, `list` and `logs` need neither the engine nor a stack for these, and results outlive `destroy`.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from coding_agent import paths
from coding_agent.errors import CodingAgentError, NotFound
from coding_agent.run import Outputs, outputs_dict, outputs_from
from coding_agent.settings import ExecutorSpec

_SCRATCH = ".start-"
_STARTING = ".starting"
_POLL = 0.05  # seconds between two tries for a lock
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Record:
    """One run: where it came from, where it runs and what was last seen of it."""

    run_id: str
    task: str
    project: str
    stack: str
    root: str  # the folder of the user's project on this machine
    executor: Mapping[str, Any]  # the executor's specification, as in the executors file
    outputs: Outputs
    file: str = ""  # the task's, on this machine; empty: of a version that did not keep it
    kind: str = "agent"
    description: str = ""
    labels: tuple[str, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)  # name -> mark of its value (see outcome.mark)
    artifacts: tuple[str, ...] = ()
    digest: str = ""  # of the task's content; empty: of a version that did not keep it
    image: str = ""  # what its target is made of
    gpus: tuple[int, ...] = ()  # indices of those that the run has
    branch: str = ""
    lands: bool = False  # the agent's commits belong into the repository at `root`
    base: str = ""  # the commit the agent began with
    place: Mapping[str, Any] = field(default_factory=dict)  # what finds the target again (see Executor.place)
    created_at: float = 0.0  # controller's clock, seconds since the epoch
    target_ready: float = 0.0  # seconds from the beginning until the target could start the run
    # Of each attempt but the last: what its outputs said of turns and cost, and how long the log was, in bytes.
    earlier: tuple[Mapping[str, Any], ...] = ()
    cpu_seen: tuple[int, float] = (0, 0.0)  # ticks and the target's uptime at the last look
    collected: bool = False  # nothing worth keeping is on the target alone
    removed: bool = False  # nothing is left on the target
    removed_at: float = 0.0  # controller's clock; 0: not yet, or not known

    @property
    def folder(self) -> Path:
        """Return the folder with the record and what was collected."""
        return folder(self.run_id)

    @property
    def spec(self) -> ExecutorSpec:
        """Return the specification of the executor that the run was started on."""
        return ExecutorSpec.of_plain(self.executor)

    def with_outputs(self, outputs: Outputs) -> Record:
        """Return this record with other outputs."""
        return replace(self, outputs=outputs)


def folder(run_id: str) -> Path:
    """Return the folder of a run. Raises `NotFound` for what can't be a run id."""
    if not _RUN_ID.fullmatch(run_id):
        raise NotFound(f"{run_id!r} is no run id")
    return paths.records_dir() / run_id


def save(record: Record) -> Record:
    """Write the record so that a reader sees the old one or the new one; return it."""
    plain = to_plain(record)
    target = record.folder
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = target / f".record.{secrets.token_hex(4)}"
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(plain, file, ensure_ascii=False, indent=1)
        part.replace(target / "record.json")
    finally:
        part.unlink(missing_ok=True)
    return record


def load(run_id: str) -> Record | None:
    """Return the record of a run, or None where there is none that can be read."""
    try:
        return of_plain(json.loads((folder(run_id) / "record.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def to_plain(record: Record) -> dict[str, Any]:
    """Return a record as JSON can hold it."""
    return {**asdict(record), "outputs": outputs_dict(record.outputs)}


def of_plain(plain: Mapping[str, Any]) -> Record:
    """Return the record that `to_plain` made `plain` of. Raises `KeyError` or `TypeError` for anything else."""
    known = {f.name for f in fields(Record)}
    values = {name: value for name, value in plain.items() if name in known}
    for name in ("labels", "artifacts", "cpu_seen", "earlier", "gpus"):
        if name in values:
            values[name] = tuple(values[name])
    return Record(**{**values, "outputs": outputs_from(plain["outputs"])})


def latest(record: Record) -> Record:
    """Return what is known of the run now: another process may have gone on since `record` was read."""
    return load(record.run_id) or record


def everything() -> list[Record]:
    """Return all records, newest first."""
    found = (load(entry.name) for entry in _entries())
    return sorted((r for r in found if r is not None), key=lambda r: r.created_at, reverse=True)


def of_stack(root: Path, stack: str) -> list[Record]:
    """Return the records of a stack's runs in the project at `root`, newest first."""
    return [each for each in everything() if each.stack == stack and each.root == str(root)]


def find(name: str, *, root: str | None = None) -> Record:
    """Return the record of that run id (or its unambiguous beginning), else the newest run of the task of that name.

    With `root`, tasks of that project go before those of others. Raises `NotFound`.
    """
    if _RUN_ID.fullmatch(name) and (exact := load(name)):
        return exact
    known = everything()
    of_task = [r for r in known if name in (r.task, r.stack)]
    for record in [r for r in of_task if r.root == root] or of_task:
        return record
    begins = [r for r in known if len(name) >= 4 and r.run_id.startswith(name)]
    if len(begins) == 1:
        return begins[0]
    raise NotFound(f"no run of a task {name!r} is known here", next_step="`coding-agent list` shows what is")


@contextmanager
def held(run_id: str, *, limit: float = 900.0) -> Iterator[None]:
    """Keep two processes from bringing back one run at once; wait at most `limit` seconds for the other.

    The kernel frees the lock when its holder dies. Raises `CodingAgentError` after that time.
    """
    descriptor = os.open(folder(run_id), os.O_RDONLY | os.O_DIRECTORY)
    deadline = time.monotonic() + limit
    try:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise CodingAgentError(
                    f"another process has been bringing back run {run_id} for over {limit:.0f} s",
                    next_step=f"`fuser {folder(run_id)}` names it",
                )
            time.sleep(_POLL)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def starting(run_id: str) -> Iterator[None]:
    """Let others know that a run is being started: what is not on its target yet is not lost."""
    home = folder(run_id)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / _STARTING).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    # Who looks between these two opens a file that is no more, and finds nobody there.
    (home / _STARTING).unlink(missing_ok=True)


def is_starting(run_id: str) -> bool:
    """Whether some process of this machine is about to start a run; the kernel knows when it has died."""
    try:
        with (folder(run_id) / _STARTING).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def scratch(run_id: str) -> Iterator[Path]:
    """Give a folder for what is only needed while a run is started.

    It lies in the run's own, so that what is left there of a start that was killed goes with the next one or with
    the record.
    """
    home = folder(run_id)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in home.glob(f"{_SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=home) as made:
        yield Path(made)


def log_file(record: Record) -> Path:
    """Return where the run's log lies here once it has been collected."""
    return record.folder / ("stream.jsonl" if record.kind == "agent" else "output.log")


def forget(run_id: str) -> None:
    """Remove a record and everything that was collected for it."""
    shutil.rmtree(folder(run_id), ignore_errors=True)


def set_aside(record: Record) -> Record:
    """Keep what is known of a run that went with its target, under another id: its own is about to be used again."""
    free = (replace(record, run_id=f"{record.run_id}.{number}") for number in itertools.count(1))
    aside = next(each for each in free if not each.folder.exists())
    record.folder.rename(aside.folder)
    return save(aside)


def now() -> float:
    """Return the controller's clock in seconds since the epoch."""
    return time.time()


def _entries() -> Iterator[Path]:
    try:
        yield from (entry for entry in paths.records_dir().iterdir() if _RUN_ID.fullmatch(entry.name))
    except OSError:  # there is none yet, or it is no folder
        return
