"""Unpack the artifacts of a run: a tar from a hostile target becomes plain files, and nothing but plain files."""

from __future__ import annotations

import mmap
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from coding_agent.errors import Untrusted

if TYPE_CHECKING:
    from coding_agent.redaction import Redactor

LARGEST = 1_000_000_000  # bytes, of all files together as they are unpacked
MOST = 100_000  # entries
_LONGEST_NAME = 4096
_CHUNK = 1024 * 1024  # bytes copied at once
# Nobody foresees everything that a forged archive does to its parser: a loop of links, a link to nothing.
_BROKEN = (tarfile.TarError, KeyError, ValueError, RecursionError)


@dataclass
class Unpacked:
    """What became of the entries that did not become files; names are as the target wrote them."""

    refused: list[str] = field(default_factory=list)
    kept_back: list[str] = field(default_factory=list)  # they hold a secret


def unpack(archive: IO[bytes], into: Path, redactor: Redactor) -> Unpacked:
    """Write the archive's files below the new folder `into`; what holds a secret is not written at all.

    No link is ever made, so no path can lead elsewhere. Raises `Untrusted` for what is no archive or is too large.
    """
    into.mkdir(mode=0o700)
    unpacked, left = Unpacked(), LARGEST
    try:
        # Not "r": that would unpack compression, too, and without a bound.
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            for number, member in enumerate(tar):
                if number >= MOST:
                    raise Untrusted(f"the artifacts are refused: more than {MOST} entries")
                if not member.isdir():
                    left -= _take(tar, member, into, redactor, unpacked, left)
    except _BROKEN as error:
        raise Untrusted(f"the artifacts are refused: {error}") from None
    return unpacked


def holds(file: IO[bytes], redactor: Redactor) -> set[str]:
    """Return the names of the secrets in a file, however large, without reading it into memory."""
    if os.fstat(file.fileno()).st_size == 0:
        return set()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return redactor.find(content)


def _take(
    tar: tarfile.TarFile, member: tarfile.TarInfo, into: Path, redactor: Redactor, unpacked: Unpacked, left: int
) -> int:
    """Make a file of an entry; return the bytes that it took."""
    name = member.name.removeprefix("./")[:200]
    path = _path(member.name)
    if path is None or member.issparse() or not (member.isreg() or member.islnk()):
        unpacked.refused.append(f"artifact {name} refused: {_kind(member, path)}")
        return 0
    with tempfile.TemporaryFile(dir=into.parent) as file:
        try:
            size = sum(file.write(chunk) for chunk in _content(tar, member, left))
        except (KeyError, RecursionError):
            unpacked.refused.append(f"artifact {name} refused: what it is linked to is not in the archive")
            return 0
        file.flush()
        found = holds(file, redactor) | redactor.find(os.fsencode(member.name))
        if found:
            unpacked.kept_back.append(f"artifact {name} holds {', '.join(sorted(found))}: kept back on the target")
            return size
        file.seek(0)
        try:
            _write(file, into / path, 0o700 if member.mode & 0o100 else 0o600)
        except OSError as error:
            unpacked.refused.append(f"artifact {name} refused: {error.strerror}")
    return size


def _path(name: str) -> Path | None:
    """Return the path below the folder that a name stands for; None for one that leaves it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    leaves = name.startswith("/") or ".." in parts or "\0" in name or len(name) > _LONGEST_NAME
    return Path(*parts) if parts and not leaves else None


def _kind(member: tarfile.TarInfo, path: Path | None) -> str:
    if path is None:
        return "it leaves the workspace"
    return "it is a symbolic link" if member.issym() else "it is no plain file"


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, left: int) -> Iterator[bytes]:
    source = tar.extractfile(member)
    while source is not None and (chunk := source.read(_CHUNK)):
        left -= len(chunk)
        if left < 0:
            raise Untrusted(f"the artifacts are refused: more than {LARGEST // 1_000_000} MB")
        yield chunk


def _write(source: IO[bytes], target: Path, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with target.open("wb") as file:
        shutil.copyfileobj(source, file)
    target.chmod(mode)
