"""The user's repository on its way out: one commit with its history as a bundle; index and work tree stay as they are.

Nothing is written into the user's repository, with one exception. Under `uncommitted: include` a commit of his
uncommitted work is made there, because the agent's commits will stand on it when they come back. Until then a
reference, refs/coding-agent/base/<sha>, keeps it from being pruned; `release` removes it again, and landing the commits
does too.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coding_agent.errors import InvalidInput
from coding_agent.git import Answer, Git, GitFailed
from coding_agent.text import neutralise

Uncommitted = Literal["include", "ignore", "refuse"]

REF = "refs/coding-agent/base"  # what the bundle calls its one commit
SHOWN = 20  # files named in a message; of more only the number is said
BUNDLE_TIMEOUT = 1800.0  # seconds; a history of gigabytes is packed only once
_HELD = "refs/coding-agent/base/"
_SHA = re.compile(r"[0-9a-f]{40}")
_UNMERGED = frozenset({"DD", "AU", "UD", "UA", "DU", "AA", "UU"})
_MESSAGE = b"Uncommitted changes at the start of the run\n"
_NOBODY = ("coding-agent", "coding-agent@localhost")


@dataclass(frozen=True)
class Packed:
    """A repository's commit as it travels."""

    bundle: Path
    ref: str  # the bundle's one reference
    head: str  # the commit under that reference: what the agent begins with
    shallow: bytes | None  # the user's .git/shallow: belongs into the receiving git dir before the bundle is fetched
    branch: str | None  # the user's current branch; None when HEAD is detached
    identity: tuple[str, str] | None  # the user's name and e-mail address


@dataclass(frozen=True)
class Repository:
    """A repository of the user's, found from a folder in it."""

    git: Git
    top: Path  # the work tree, or the git dir of a bare repository
    bare: bool

    def path(self, name: str) -> Path:
        """Return where git keeps `name` for this checkout (in a linked one, some things lie in the main git dir)."""
        return self.top / self.git.must("rev-parse", "--git-path", name).line

    def shallow(self) -> bytes | None:
        """Return where the history of a shallow clone ends, or None."""
        try:
            return self.path("shallow").read_bytes() or None
        except FileNotFoundError:
            return None

    def has_commit(self, sha: str) -> bool:
        """Return whether the repository has that commit."""
        return bool(_SHA.fullmatch(sha)) and self.git.ask("cat-file", "-e", f"{sha}^{{commit}}").code == 0


def find_repository(folder: Path) -> Repository:
    """Return the repository that `folder` lies in. Raises `InvalidInput` when there is none that can be used."""
    git = Git.of_user(folder)
    bare = git.ask("rev-parse", "--is-bare-repository")
    if bare.code != 0:
        raise _unusable(folder, bare)
    if bare.line == "true":
        top = (folder / git.must("rev-parse", "--git-dir").line).resolve()
        return Repository(Git.of_user(top), top, bare=True)
    tree = git.ask("rev-parse", "--show-toplevel")
    if tree.code != 0:
        raise _unusable(folder, tree)
    top = Path(tree.line)
    return Repository(Git.of_user(top), top, bare=False)


def pack(repo_root: Path, *, uncommitted: Uncommitted, into: Path, ours: str | None = None) -> Packed:
    """Write HEAD of the repository around `repo_root`, with its history, as a bundle into the folder `into`.

    With `uncommitted` "include" the bundle's commit is one more, which holds the uncommitted work; its reference is to
    be removed by `release` unless the agent's commits land. An untracked file called `ours`, which the engine has put
    into the checkout, does not count and does not travel. Raises `InvalidInput` for what can't travel (each file or
    submodule named), `GitFailed` when git fails.
    """
    repository = find_repository(repo_root)
    head = _head(repository)
    identity = _identity(repository.git)
    base, bundle = head, into / "repo.bundle"
    with tempfile.TemporaryDirectory(dir=into, prefix=".pack-") as scratch:
        own = borrowing_git_dir(Path(scratch) / "git", repository)
        _refuse_unpackable(own, head)
        found = [] if repository.bare else _changed(repository)
        left_out = [path for state, path in found if state == "??" and path.rpartition("/")[2] == ours]
        changed = [(state, path) for state, path in found if path not in left_out]
        if changed and uncommitted == "refuse":
            raise _uncommitted(repository, [path for _, path in changed])
        if changed and uncommitted == "include":
            base = _commit_of_changes(repository, changed, head, identity or _NOBODY, Path(scratch) / "index", left_out)
            _refuse_unpackable(own, base)
        own.must("update-ref", REF, base)
        own.must("bundle", "create", str(bundle.resolve()), REF, timeout=BUNDLE_TIMEOUT)
        shallow = repository.shallow()
    if base != head:
        repository.git.must("update-ref", _HELD + base, base)
    branch = repository.git.ask("symbolic-ref", "-q", "--short", "HEAD")
    return Packed(bundle, REF, base, shallow, branch.line or None, identity)


def release(repo_root: Path, head: str) -> None:
    """Let go of the commit that `pack` made of uncommitted work; nothing happens where there is none.

    To be called once nothing can land on it any more. Raises no error for a repository that has gone.
    """
    if not _SHA.fullmatch(head):
        return
    try:
        find_repository(repo_root).git.ask("update-ref", "-d", _HELD + head)
    except (InvalidInput, GitFailed):
        return


def borrowing_git_dir(git_dir: Path, repository: Repository, *, memory: int | None = None) -> Git:
    """Make a git dir of our own that sees the repository's objects, but none of its references and configuration."""
    git_dir.mkdir(mode=0o700)
    git = Git.of_ours(git_dir.resolve(), memory=memory)
    git.must("init", "-q", "--bare", "--template=")
    alternates = git_dir / "objects" / "info" / "alternates"
    alternates.parent.mkdir(exist_ok=True)
    alternates.write_bytes(os.fsencode(repository.path("objects").resolve()) + b"\n")
    shallow = repository.shallow()
    if shallow is not None:
        (git_dir / "shallow").write_bytes(shallow)
    return git


def named(paths: Sequence[str]) -> str:
    """Return the paths for a message: the first ones by name, the rest as a number."""
    shown = ", ".join(neutralise(path).replace("\n", "\\n") for path in paths[:SHOWN])
    return shown if len(paths) <= SHOWN else f"{shown} and {len(paths) - SHOWN} more"


def _head(repository: Repository) -> str:
    answer = repository.git.ask("rev-parse", "--verify", "-q", "HEAD^{commit}")
    if answer.code != 0:
        raise InvalidInput(f"{repository.top} has no commit yet", next_step="commit something, then start again")
    if not _SHA.fullmatch(answer.line):
        raise InvalidInput(f"{repository.top} uses SHA-256 names for its objects, which can't travel yet")
    partial = repository.git.ask("config", "--get-regexp", r"^(extensions\.partialclone|remote\..*\.promisor)$")
    if partial.code == 0:
        raise InvalidInput(
            f"{repository.top} is a partial clone: objects that it lacks would have to be fetched",
            next_step="use a full clone, a shallow one (`--depth 1`), or `repo: {url: ..., ref: ...}`",
        )
    return answer.line


def _changed(repository: Repository) -> list[tuple[str, str]]:
    """Return (state, path) of everything that is not committed, untracked files included."""
    answer = repository.git.must("status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
    entries = [os.fsdecode(entry) for entry in answer.out.split(b"\0") if entry]
    return [(entry[:2], entry[3:]) for entry in entries]


def _commit_of_changes(
    repository: Repository,
    changed: list[tuple[str, str]],
    head: str,
    identity: tuple[str, str],
    index: Path,
    left_out: list[str],
) -> str:
    """Return a new commit on `head` that holds the work tree but `left_out`; made through a copy of the index."""
    unmerged = [path for state, path in changed if state in _UNMERGED]
    if unmerged:
        raise InvalidInput(
            f"{repository.top} has unresolved conflicts: {named(unmerged)}",
            next_step="resolve them, or set `uncommitted: ignore`",
        )
    # Of an untracked repository git shows the folder alone.
    _refuse_nested([path.rstrip("/") for state, path in changed if state == "??" and path.endswith("/")])
    if (original := repository.path("index")).exists():
        shutil.copyfile(original, index)
    name, email = identity
    env = {
        "GIT_INDEX_FILE": str(index),
        **{f"GIT_{who}_NAME": name for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": email for who in ("AUTHOR", "COMMITTER")},
    }
    paths = [".", *(f":(exclude,top,literal){path}" for path in left_out)]
    repository.git.must("add", "-A", "--", *paths, env=env)
    tree = repository.git.must("write-tree", env=env).line
    return repository.git.must("commit-tree", "-p", head, tree, stdin=_MESSAGE, env=env).line


def _refuse_unpackable(own: Git, commit: str) -> None:
    """Raise `InvalidInput` for what the commit names but a bundle can't carry."""
    entries = own.must("ls-tree", "-r", "-z", "--full-tree", commit).out.split(b"\0")
    links = [os.fsdecode(entry.partition(b"\t")[2]) for entry in entries if entry.startswith(b"160000 ")]
    if links:
        raise InvalidInput(
            f"submodules can't travel with `repo: .`: {named(links)}",
            next_step="use `repo: {url: ..., ref: ...}` and fetch the submodules in `setup`",
        )
    if any(entry.endswith(b".gitattributes") for entry in entries):
        _refuse_lfs(own, commit, [entry.partition(b"\t")[2] for entry in entries if entry.startswith(b"100")])


def _refuse_lfs(own: Git, commit: str, paths: list[bytes]) -> None:
    own.must("read-tree", commit)
    asked = b"\0".join(paths) + b"\0"
    fields = own.must("check-attr", "--cached", "--stdin", "-z", "filter", stdin=asked).out.split(b"\0")
    # Three fields a path: path, attribute, value.
    stored = [os.fsdecode(path) for path, value in zip(fields[::3], fields[2::3], strict=False) if value == b"lfs"]
    if stored:
        raise InvalidInput(
            f"files stored with Git LFS can't travel with `repo: .`: {named(stored)}",
            next_step="use `repo: {url: ..., ref: ...}` and run `git lfs pull` in `setup`",
        )


def _refuse_nested(folders: list[str]) -> None:
    if folders:
        raise InvalidInput(
            f"repositories inside the repository can't travel with it: {named(folders)}",
            next_step="name them in .gitignore, or set `uncommitted: ignore`",
        )


def _identity(git: Git) -> tuple[str, str] | None:
    found = []
    for key, variable in (("user.name", "GIT_AUTHOR_NAME"), ("user.email", "GIT_AUTHOR_EMAIL")):
        value = os.environ.get(variable) or git.ask("config", "--get", key).line
        # These are what git itself can't have in a name.
        found.append(re.sub(r"[\x00-\x1f<>]", "", value).strip())
    return (found[0], found[1]) if all(found) else None


def _uncommitted(repository: Repository, paths: list[str]) -> InvalidInput:
    return InvalidInput(
        f"{repository.top} has uncommitted changes: {named(paths)}",
        next_step="commit them, or say in the task what to do: `uncommitted: include` (the agent gets them) "
        "or `uncommitted: ignore` (it gets HEAD)",
    )


def _unusable(folder: Path, answer: Answer) -> InvalidInput:
    if "dubious ownership" in answer.err or "unsafe repository" in answer.err:
        found = re.search(r"safe\.directory (\S+)", answer.err)
        path = found[1] if found else str(folder)
        return InvalidInput(
            f"git does not trust the repository around {folder}: it belongs to another user",
            next_step=f"if you do: git config --global --add safe.directory {path}",
        )
    if "not a git repository" in answer.err:
        return InvalidInput(
            f"{folder} is not in a git repository",
            next_step="`git init` and commit there, or take `repo: .` out of the task",
        )
    if "must be run in a work tree" in answer.err:
        return InvalidInput(f"{folder} lies inside a git dir", next_step="start from the checkout")
    return InvalidInput(f"the repository around {folder} can't be used: {answer.err or f'exit code {answer.code}'}")
