"""Put a program into the cache: one installer at a time, whole or not at all; and remember each program's version."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from coding_agent.errors import CodingAgentError
from coding_agent.paths import cache_dir

if TYPE_CHECKING:
    from tarfile import TarFile, TarInfo

Progress = Callable[[str], None]

WAIT_FOR_OTHER = 45 * 60.0  # seconds; a build from source on a slow machine is the longest thing one waits for
VERSION_LIMIT = 30.0  # seconds for a program to say its version; the first start from a cold disk is slow
_POLL = 0.1
_PIECE = 1024 * 1024  # bytes copied at once
_SAY_EVERY = 10.0


class Installing(CodingAgentError):
    """Another process holds the installation and did not finish within the limit."""


def quiet(_line: str) -> None:
    """Take a line of progress and show it to no one."""


def on_path(name: str) -> Iterator[Path]:
    """Give the programs of that name on PATH, in its order."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        command = Path(folder) / name
        # A relative or empty entry of PATH means the current folder, which may be anyone's checkout.
        if folder.startswith("/") and command.is_file() and os.access(command, os.X_OK):
            yield command


@contextmanager
def lock(name: str, progress: Progress, *, limit: float = WAIT_FOR_OTHER) -> Iterator[None]:
    """Hold the installation called `name`; wait at most `limit` seconds for whoever holds it.

    The kernel frees the lock when its holder dies, so there is never a stale one. Raises Installing.
    """
    path = cache_dir() / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        started = time.monotonic()
        said = started - _SAY_EVERY
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            now = time.monotonic()
            if now - started >= limit:
                raise Installing(
                    f"another process has been installing {name} for {now - started:.0f} s (it holds {path})",
                    next_step=f"wait for it, or end it (`fuser {path}` names it) and run this again",
                )
            if now - said >= _SAY_EVERY:
                progress(f"waiting for another process that installs {name} ({now - started:.0f} s)")
                said = now
            time.sleep(min(_POLL, limit))
        yield


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a fresh folder that becomes `target` when the block ends well, and vanishes when it does not.

    Hold the lock around it: what an installer that was killed left beside the target is removed here.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield fresh
        fresh.chmod(0o755)
        if target.exists():  # there, but it does not work: it goes out of the way first, a folder can't be replaced
            target.rename(fresh.with_name(f"{fresh.name}.old"))
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(fresh.with_name(f"{fresh.name}.old"), ignore_errors=True)


def sha256(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, into: Path, *, only: Sequence[str] | None = None) -> None:
    """Unpack a .tar.gz below `into`: plain files and folders, nothing that leaves it; `only` names the members wanted.

    Raises OSError or tarfile.TarError (a truncated or foreign archive).
    """
    import tarfile
    import zlib

    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar if only is None else map(tar.getmember, only):
                _unpack_one(tar, member, into)
    except (EOFError, zlib.error, KeyError) as error:
        raise tarfile.ReadError(f"{archive.name}: {error}") from error


def _unpack_one(tar: TarFile, member: TarInfo, into: Path) -> None:
    # Not extractall(filter="data"): Python 3.11 has that from 3.11.4 on only.
    import tarfile

    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
        raise tarfile.ReadError(f"{member.name} is no plain file inside the archive")
    if member.isdir():
        (into / path).mkdir(parents=True, exist_ok=True)
        return
    content = tar.extractfile(member)
    assert content is not None
    (into / path).parent.mkdir(parents=True, exist_ok=True)
    with content, (into / path).open("xb") as file:
        shutil.copyfileobj(content, file, _PIECE)
    (into / path).chmod(0o755 if member.mode & 0o100 else 0o644)


def tail(text: str, lines: int = 3) -> str:
    """Return the last lines that say something, on one line."""
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])


def version_of(command: Path, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Return what the program prints as its version; asked once and remembered until the file changes.

    Raises OSError when it can't be started or fails (the message says how), TimeoutError after VERSION_LIMIT.
    """
    stat = command.stat()
    key, stamp = str(command), [stat.st_size, stat.st_mtime_ns]
    known = _known()
    entry = known.get(key)
    if isinstance(entry, list) and entry[:2] == stamp and len(entry) == 3:
        return str(entry[2])
    try:
        done = subprocess.run(
            [str(command), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=VERSION_LIMIT,
            env={**os.environ, **(environment or {})},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{command} did not say its version within {VERSION_LIMIT:.0f} s") from None
    out, err = done.stdout.decode(errors="replace").strip(), done.stderr.decode(errors="replace")
    if done.returncode != 0 or not out:
        raise OSError(f"{command} does not run (exit code {done.returncode}): {tail(err) or 'it says nothing'}")
    _remember({**known, key: [*stamp, out]})
    return out


def _memory() -> Path:
    return cache_dir() / "versions.json"


def _known() -> dict[str, object]:
    try:
        known = json.loads(_memory().read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(known: Mapping[str, object]) -> None:
    # Two writers at once lose one entry at worst: it is asked again. A folder that can't be written costs only time.
    with suppress(OSError):
        path = _memory()
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps({key: value for key, value in known.items() if Path(key).exists()}))
        fresh.replace(path)
