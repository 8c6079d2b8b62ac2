"""Canary secrets: made to be recognised in any form, and looked for in every file and in the arguments of processes.

Written without the project's own redaction, so that both can't be wrong in the same way.
"""

from __future__ import annotations

import base64
import gzip
import os
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SAMPLING = 0.02  # seconds between two looks at the arguments of all processes


@dataclass(frozen=True)
class Canary:
    """A secret whose `cores` (letters and digits, one or more in the value) survive quoting: half a leak is one too."""

    name: str
    value: str
    cores: tuple[str, ...]

    @property
    def needles(self) -> tuple[bytes, ...]:
        """Return what betrays the canary: its cores raw, in base64 at each alignment, and as hexadecimal escapes."""
        return tuple(needle for core in self.cores for needle in _needles(core.encode()))


def _needles(core: bytes) -> Iterator[bytes]:
    yield core
    for alignment in range(3):
        coded = base64.b64encode(b"\0" * alignment + core)
        rest = (alignment + len(core)) % 3
        # The characters at both ends also hold bits of what stands beside the core.
        yield coded[(0, 2, 3)[alignment] : len(coded) - (0, 3, 2)[rest]]
    for form in ("%{:02x}", "%{:02X}", "\\u{:04x}"):
        yield "".join(form.format(byte) for byte in core).encode()


def found(data: bytes | str, canaries: Iterable[Canary]) -> set[str]:
    """Return the names of the canaries that `data` betrays."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return {canary.name for canary in canaries if any(needle in raw for needle in canary.needles)}


def leaks(folders: Iterable[Path], canaries: Iterable[Canary], *, but: Iterable[Path] = ()) -> dict[str, set[str]]:
    """Return file -> names of canaries for every file below `folders` that betrays one; `but` these, whole.

    Looked at are contents (those packed with gzip too), names, links' targets, and the objects of git repositories.
    """
    wanted, left_out = list(canaries), {os.fspath(path) for path in but}
    result = {}
    for top in folders:
        for folder, names, files in os.walk(top):
            names[:] = [name for name in names if os.path.join(folder, name) not in left_out]  # noqa: PTH118 - fast
            if "objects" in names and "HEAD" in files and (held := found(_objects(folder), wanted)):
                result[f"{folder} (objects)"] = held
            for name in [*names, *files]:
                path = Path(folder, name)
                if os.fspath(path) not in left_out and (held := found(_content(path), wanted)):
                    result[str(path)] = held
    return result


def _content(path: Path) -> bytes:
    name = os.fsencode(path.name) + b"\n"
    if path.is_symlink():
        return name + os.fsencode(path.readlink())
    if not path.is_file():
        return name
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        with suppress(OSError, EOFError):
            data += gzip.decompress(data)
    return name + data


def _objects(git_dir: str) -> bytes:
    argv = ["git", "--git-dir", git_dir, "cat-file", "--batch-all-objects", "--batch", "--unordered"]
    return subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout


class Watch:
    """What the arguments of processes betrayed while watching: the argument lists, by canary."""

    def __init__(self, canaries: Iterable[Canary]) -> None:
        self.canaries = tuple(canaries)
        self.looks = 0
        self.seen: dict[bytes, set[str]] = {}
        self._stop = threading.Event()

    def run(self) -> None:
        """Look again and again until `end`."""
        while not self._stop.wait(SAMPLING):
            self.looks += 1
            for entry in os.listdir("/proc"):  # noqa: PTH208 - only the names
                if entry.isdigit():
                    self._look(entry)

    def end(self) -> None:
        """Stop looking."""
        self._stop.set()

    def _look(self, pid: str) -> None:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123 - thousands of times
                argv = file.read()
        except OSError:
            return
        if held := found(argv, self.canaries):
            self.seen[argv] = held


@contextmanager
def watching_arguments(canaries: Iterable[Canary]) -> Iterator[Watch]:
    """Watch the arguments of every process of this machine while the block runs; yield what is seen."""
    watch = Watch(canaries)
    thread = threading.Thread(target=watch.run, name="arguments")
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join()
