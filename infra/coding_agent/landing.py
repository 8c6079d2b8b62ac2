"""The agent's commits on their way back: a bundle from a hostile target becomes a branch in the user's repository.

The bundle is unpacked into a git dir of our own first. Only when its header, its objects, their completeness, sizes and
contents are in order are exactly those objects copied into the user's repository, by commands that know no hook, no
filter and no configured remote, and a branch under refs/heads/coding-agent/ is made. No other reference is touched.
"""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from coding_agent import branches
from coding_agent.bundle import Header, Limits, contents, opened, read_header
from coding_agent.errors import Untrusted
from coding_agent.git import Git, GitFailed
from coding_agent.patches import scan_patch
from coding_agent.repository import Repository, borrowing_git_dir, find_repository, named, release

__all__ = ["Landed", "Limits", "Scanner", "land", "scan_patch", "secrets_in"]

_LONGEST_LINK = 4096  # bytes: Linux has no longer path
_DEFAULT = Limits()


class Scanner(Protocol):
    """What knows the secrets: `Redactor`, as far as it is needed here."""

    def find(self, data: bytes, /) -> set[str]:
        """Return the names of the secrets that `data` holds."""


@dataclass(frozen=True)
class Landed:
    """Where the commits are now. Without a branch nothing was landed, and the notices, if any, say why."""

    branch: str | None
    notices: tuple[str, ...] = ()


def land(
    repo_root: Path, bundle: Path, *, branch: str, base: str, redactor: Scanner, limits: Limits = _DEFAULT
) -> Landed:
    """Make the commits of `bundle` a branch of the repository around `repo_root`.

    `base` is the commit that the agent began with. The branch is `branch`, or that with -2, -3, ... where it holds
    other commits or is in use. Landing the same bundle again finds the branch it has. Raises `Untrusted` for a bundle
    that a run of ours can't have made or that is beyond the limits, `InvalidInput` when there is no repository any
    more, and `GitFailed` when the user's repository can't take the commits.
    """
    branches.check_name(branch)
    repository = find_repository(repo_root)
    with opened(bundle, limits) as file, tempfile.TemporaryDirectory(dir=bundle.parent, prefix=".landing-") as scratch:
        header = read_header(file, limits)
        if not repository.has_commit(base):
            return Landed(None, (f"the commits stand on {base[:12] or 'a commit'}, which is not in {repository.top}",))
        own = borrowing_git_dir(Path(scratch) / "git", repository, memory=limits.memory)
        _unpack(own, header, file, base, limits)
        with _new_objects(own, header.tip, base, limits) as new:
            found = _scan(own, new, redactor, limits)
            if found:
                return Landed(None, (f"the commits hold {', '.join(sorted(found))}: kept back on the target",))
            if os.fstat(new.fileno()).st_size:
                _copy(own, new, repository)
        notices = _warnings(own, base, header.tip)
        if header.tip == base:
            return Landed(None)
        chosen, reasons = branches.create(repository, branch, header.tip, own)
    if chosen is not None:
        release(repository.top, base)
    return Landed(chosen, (*reasons, *notices))


def secrets_in(bundle: Path | IO[bytes], redactor: Scanner, *, limits: Limits = _DEFAULT) -> set[str]:
    """Return the names of the secrets that a bundle holds, without unpacking it and without the commit it builds on.

    Objects that are stored as a difference are looked at as far as the difference goes: a value that is put together
    from a piece the base already has and a new one is not found. Raises `Untrusted` as `land` does.
    """
    found: set[str] = set()
    with opened(bundle, limits) if isinstance(bundle, Path) else nullcontext(bundle) as file:
        read_header(file, limits)
        for content in contents(file, limits):
            found |= redactor.find(content)
    return found


def _unpack(own: Git, header: Header, file: IO[bytes], base: str, limits: Limits) -> None:
    """Put the pack's objects into our own git dir, each one checked as git checks what it is sent by strangers."""
    for sha in header.prerequisites:
        if own.ask("merge-base", "--is-ancestor", sha, base).code != 0:
            raise Untrusted(f"the bundle is refused: it stands on {sha[:12]}, which the run did not begin with")
    arguments = ("index-pack", "--stdin", "--fix-thin", "--strict", "--threads=2", f"--max-input-size={limits.bundle}")
    file.seek(header.pack_at)
    try:
        answer = own.ask(*arguments, stdin=file, timeout=limits.timeout)
    except GitFailed as error:
        raise Untrusted(f"the bundle is refused: {error.message}") from None
    if answer.code != 0:
        raise Untrusted(f"the bundle is refused: {answer.err or 'its objects can not be read'}")
    if own.ask("cat-file", "-t", header.tip).line != "commit":
        raise Untrusted("the bundle is refused: what its reference names is no commit in it")


@contextmanager
def _new_objects(own: Git, tip: str, base: str, limits: Limits) -> Iterator[IO[bytes]]:
    """Yield a file with the names of all objects that `tip` has and `base` has not, one a line."""
    with tempfile.TemporaryFile(dir=own.folder, buffering=0) as file:
        walk = ("rev-list", "--objects", "--no-object-names", tip, f"^{base}")
        answer = own.ask(*walk, stdout=file, timeout=limits.timeout)
        if answer.code != 0:
            raise Untrusted(f"the bundle is refused: it is not complete: {answer.err}")
        yield file


def _scan(own: Git, new: IO[bytes], redactor: Scanner, limits: Limits) -> set[str]:
    """Return the names of the secrets that the objects hold: messages, file names and contents."""
    _check_sizes(own, new, limits)
    found: set[str] = set()
    new.seek(0)
    with own.stream("cat-file", "--batch", stdin=new, timeout=limits.timeout) as output:
        for _ in range(_lines(new)):
            *_, size = output.readline().split()
            data = output.read(int(size))
            if len(data) != int(size) or output.read(1) != b"\n":
                raise Untrusted("the bundle is refused: an object in it can't be read")
            found |= redactor.find(data)
    return found


def _check_sizes(own: Git, new: IO[bytes], limits: Limits) -> None:
    count = _lines(new)
    if count > limits.objects:
        raise Untrusted(f"the bundle is refused: {count} objects, at most {limits.objects} are taken")
    new.seek(0)
    answer = own.ask("cat-file", "--batch-check=%(objectsize)", stdin=new, timeout=limits.timeout)
    sizes = answer.out.split()
    if answer.code != 0 or len(sizes) != count or not all(size.isdigit() for size in sizes):
        raise Untrusted("the bundle is refused: an object in it can't be read")
    largest, total = max(map(int, sizes), default=0), sum(map(int, sizes))
    if largest > limits.object_size or total > limits.total:
        raise Untrusted(f"the bundle is refused: what it holds is too large ({largest} bytes in one, {total} in all)")


def _copy(own: Git, new: IO[bytes], repository: Repository) -> None:
    """Copy exactly these objects into the user's repository."""
    with tempfile.TemporaryFile(dir=own.folder, buffering=0) as pack:
        new.seek(0)
        own.must("pack-objects", "-q", "--stdout", stdin=new, stdout=pack)
        pack.seek(0)
        repository.git.must("index-pack", "--stdin", stdin=pack)


def _lines(file: IO[bytes]) -> int:
    # Each line is a name of 40 characters and a newline. The position is a child's too: this does not move it.
    return os.fstat(file.fileno()).st_size // 41


def _warnings(own: Git, base: str, tip: str) -> tuple[str, ...]:
    """Return what the user should know before he checks the branch out."""
    notices = []
    if own.ask("merge-base", "--is-ancestor", base, tip).code != 0:
        notices.append(f"the commits do not build on {base[:12]}, which the agent began with")
    changes = own.must("diff-tree", "-r", "-z", "--raw", "--no-renames", "--diff-filter=d", base, tip).out.split(b"\0")
    links, modules = [], []
    for described, path in zip(changes[::2], changes[1::2], strict=False):
        _, mode, _, sha, _ = described.decode().split(" ")
        if mode == "160000":
            modules.append(os.fsdecode(path))
        elif mode == "120000" and _leaves(own, os.fsdecode(path), sha):
            links.append(os.fsdecode(path))
    if modules:
        notices.append(f"nested repositories, whose own commits did not come back: {named(modules)}")
    if links:
        notices.append(f"symbolic links that lead out of the repository: {named(links)}")
    return tuple(notices)


def _leaves(own: Git, path: str, sha: str) -> bool:
    target = os.fsdecode(own.must("cat-file", "blob", sha).out)
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return len(target) > _LONGEST_LINK or inside.startswith("/") or inside.split("/")[0] == ".."
