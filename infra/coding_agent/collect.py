"""Bring the work of an ended run back: patch, commits, artifacts and logs, each checked before it counts.

Nothing that holds a secret is kept: a patch, a bundle or an artifact stays on the target and that is said; logs are
redacted on the way.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from coding_agent import artifacts, landing, records
from coding_agent.errors import CodingAgentError, Untrusted
from coding_agent.executors.base import REPLACED, Executor, Look
from coding_agent.outcome import NOT_COLLECTED, Screen
from coding_agent.records import Record
from coding_agent.redaction import Redactor

MB = 1_000_000
PATCH_LIMIT = 256 * MB
BUNDLE_LIMIT = 1_000 * MB
ARCHIVE_LIMIT = 1_100 * MB  # a tar is a little larger than what it holds
LOG_LIMIT = 128 * MB
LOGS = ("stream.jsonl", "output.log", "stderr.log", "setup.log", "supervisor.log", "debug.log")
WORK = ("work.patch", "work.bundle", "work.tar")
_TRANSCRIPT = re.compile(r"home/projects/[A-Za-z0-9-]{1,255}/[A-Za-z0-9_.-]{1,200}")

Say = Callable[[str], None]


def collect(record: Record, executor: Executor, look: Look, screen: Screen, say: Say) -> Record:
    """Return the record with what was brought back; `collected` when nothing worth keeping is on the target alone."""
    if screen.redactor is None:
        names = ", ".join(screen.missing)
        missing = f"{NOT_COLLECTED} {names} can't be read here, so the work can't be checked for it"
        return _noticed(record, missing, say)
    record.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with records.held(record.run_id):
        other = records.load(record.run_id)
        if other is not None and other.collected:
            return other
        return records.save(_collect(record, executor, look, screen, screen.redactor, say))


def _collect(record: Record, executor: Executor, look: Look, screen: Screen, redactor: Redactor, say: Say) -> Record:
    collection = _Collection(record, executor, look, redactor)
    collection.tidy()
    for step in (collection.files, collection.logs, collection.patch, collection.commits, collection.artifacts):
        collection.attempt(step)
    if screen.renewed:
        collection.notices.append(
            "this machine's Claude login was renewed since the start: what came back was searched for the new one only"
        )
    for notice in collection.notices:
        record = _noticed(record, screen.text(notice), say)
    patch, branch = collection.patch_path or record.outputs.patch, collection.branch or record.outputs.branch
    outputs = replace(record.outputs, patch=patch, branch=branch)
    return replace(record, outputs=outputs, collected=not collection.kept_back)


class _Collection:
    """One bringing-back: what was found, and what had to stay.

    What comes is held in memory, or in files without a name, until it is known to be free of secrets: whenever this
    process is killed, none is left in the record.
    """

    def __init__(self, record: Record, executor: Executor, look: Look, redactor: Redactor) -> None:
        self.record, self.executor, self.look, self.redactor = record, executor, look, redactor
        self.notices: list[str] = []
        # What the supervisor could not save is there alone; its notices say what that is.
        self.kept_back = look.meta is not None and look.meta.unsaved
        self.patch_path: str | None = None
        self.branch: str | None = None

    def tidy(self) -> None:
        """Remove what one that was killed left behind."""
        for left in self.record.folder.glob(".*"):
            if left.is_dir():
                shutil.rmtree(left)
            elif left.suffix == ".part":
                left.unlink()

    def attempt(self, step: Callable[[], None]) -> None:
        """Run a step; what it refuses is said, and does not keep the others from being tried."""
        try:
            step()
        except Untrusted as error:
            self._stays(error.message)
        except (CodingAgentError, OSError) as error:
            self._stays(f"{step.__name__} could not be collected: {error}")
        except Exception as error:
            # Nobody foresees everything that forged data does to what reads it. Its text may be the target's: not said.
            self._stays(f"{step.__name__} could not be collected: unexpected {type(error).__name__}")

    def files(self) -> None:
        """Say what is not what the supervisor made it: it is not looked into."""
        if self.look.reason == REPLACED:
            self._stays("the run's folder is not where it was made: nothing of it came back")
            return
        for name in self.executor.no_plain_files(self.record.run_id, (*LOGS, *WORK)):
            notice = f"{name} on the target is no plain file: not fetched"
            self._stays(notice) if name in WORK else self.notices.append(notice)

    def logs(self) -> None:
        """Fetch the logs and the transcript, redacted."""
        for name in (*LOGS, *self._transcript()):
            file = io.BytesIO()
            if self.executor.fetch(self.record.run_id, name, file, limit=LOG_LIMIT, cut=True):
                self._keep("transcript.jsonl" if "projects/" in name else name, self._redacted(name, file.getvalue()))

    def patch(self) -> None:
        """Fetch work.patch unless it holds a secret."""
        file = io.BytesIO()
        if not self.executor.fetch(self.record.run_id, "work.patch", file, limit=PATCH_LIMIT):
            self._whole_workspace()
            return
        patch = file.getvalue()
        if not patch:
            return
        if found := landing.scan_patch(patch, self.redactor):
            self._stays(f"the patch holds {_listed(found)}: kept back on the target")
        else:
            self.patch_path = str(self._keep("work.patch", patch))

    def commits(self) -> None:
        """Fetch work.bundle, check it, and let its commits arrive as the branch where they belong into a repository."""
        with self._nameless() as file:
            if not self.executor.fetch(self.record.run_id, "work.bundle", file, limit=BUNDLE_LIMIT):
                return
            if found := landing.secrets_in(file, self.redactor):
                self._stays(f"the commits hold {_listed(found)}: kept back on the target")
                return
            with tempfile.TemporaryDirectory(dir=self.record.folder, prefix=".bundle-") as folder:
                bundle = Path(folder) / "work.bundle"
                _copy(file, bundle)
                if not self.record.lands or self._land(bundle):
                    bundle.replace(self.record.folder / bundle.name)

    def artifacts(self) -> None:
        """Fetch what the task's globs match in the workspace."""
        globs = self.record.artifacts
        if not globs or not self.executor.pack_artifacts(self.record.run_id, globs, limit=ARCHIVE_LIMIT):
            return
        into, final = self.record.folder / ".artifacts", self.record.folder / "artifacts"
        with self._nameless() as archive:
            self.executor.fetch(self.record.run_id, "artifacts.tar", archive, limit=ARCHIVE_LIMIT)
            unpacked = artifacts.unpack(archive, into, self.redactor)
        shutil.rmtree(final, ignore_errors=True)
        into.replace(final)
        self.notices += unpacked.refused
        for notice in unpacked.kept_back:
            self._stays(notice)

    def _land(self, bundle: Path) -> bool:
        landed = landing.land(
            Path(self.record.root), bundle, branch=self.record.branch, base=self.record.base, redactor=self.redactor
        )
        self.branch = landed.branch
        for notice in landed.notices:
            self._stays(notice) if landed.branch is None else self.notices.append(notice)
        return landed.branch is not None

    def _whole_workspace(self) -> None:
        """Fetch work.tar: all that there is where the target has no git."""
        with self._nameless() as file:
            if not self.executor.fetch(self.record.run_id, "work.tar", file, limit=BUNDLE_LIMIT):
                return
            if found := artifacts.holds(file, self.redactor):
                self._stays(f"the workspace holds {_listed(found)}: kept back on the target")
            else:
                _copy(file, self.record.folder / "work.tar")

    def _transcript(self) -> tuple[str, ...]:
        """Return where Claude Code keeps the transcript: in a folder that is named after the one it began in."""
        session = self.look.meta.session_id if self.look.meta else ""
        names = self.executor.transcripts(self.record.run_id, session) if session else []
        return tuple(name for name in names if _TRANSCRIPT.fullmatch(name))[:1]

    def _redacted(self, name: str, log: bytes) -> bytes:
        if len(log) >= LOG_LIMIT:
            self.notices.append(f"{name} is larger than {LOG_LIMIT // MB} MB: what is beyond did not come back")
            log = log[: log.rfind(b"\n") + 1]  # half a secret would not be recognised
        return self.redactor.bytes(log)

    def _keep(self, name: str, content: bytes) -> Path:
        target = self.record.folder / name
        part = target.with_name(f".{name}.part")
        part.write_bytes(content)
        return part.replace(target)

    @contextmanager
    def _nameless(self) -> Iterator[IO[bytes]]:
        with tempfile.TemporaryFile(dir=self.record.folder) as file:
            yield file

    def _stays(self, notice: str) -> None:
        self.kept_back = True
        self.notices.append(notice)


def _copy(file: IO[bytes], target: Path) -> None:
    file.seek(0)
    with target.open("wb") as into:
        shutil.copyfileobj(file, into)


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _noticed(record: Record, notice: str, say: Say) -> Record:
    if notice in record.outputs.notices:
        return record
    say(notice)
    return record.with_outputs(replace(record.outputs, notices=(*record.outputs.notices, notice)))


def log_path(record: Record, executor: Executor, look: Look) -> str:
    """Return where the run's log lies; of one that ended before its agent began, the setup's.

    That is on the target while it goes on. Where this machine can't see the target's files, it is here afterwards.
    """
    ended = look.state is not None and look.state.final
    early = ended and look.meta is not None and look.meta.started_at is None
    name = "setup.log" if early else executor.log_file(record.kind)
    return (
        str(record.folder / name)
        if ended and not executor.shares_files
        else f"{executor.run_dir(record.run_id)}/{name}"
    )
