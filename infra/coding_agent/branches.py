"""Where landed commits go in the user's repository: a branch of ours that is free, never one that someone works on."""

from __future__ import annotations

from pathlib import Path

from coding_agent.errors import InvalidInput
from coding_agent.git import Git
from coding_agent.repository import Repository

PREFIX = "coding-agent/"
_HEADS = "refs/heads/"
_TRIES = 99
_NOTHING = "0" * 40
_MESSAGE = "coding-agent: the commits of a run"
# Where git notes which branch it will move once a rebase or a bisection is over.
_PENDING = ("rebase-merge/head-name", "rebase-apply/head-name", "BISECT_START")


def check_name(branch: str) -> None:
    """Raise `InvalidInput` unless commits may land in a branch of that name."""
    valid = Git.of_user(Path("/")).ask("check-ref-format", _HEADS + branch).code == 0
    if not branch.startswith(PREFIX) or not valid:
        raise InvalidInput(f"{branch!r} is no branch to land in", next_step=f"its name has to begin with {PREFIX}")


def create(repository: Repository, branch: str, tip: str, own: Git) -> tuple[str | None, tuple[str, ...]]:
    """Make `branch`, or the first of branch-2, branch-3, ... that is free, name the commit `tip`.

    A branch is free that does not exist, or that `tip` builds on and nobody has checked out. Returns its name (None
    where there is none) and, unless it is `branch`, why not. `own` is git in a git dir that sees the repository's
    objects.
    """
    git = repository.git
    existing = _existing(repository)
    names = [branch, *(f"{branch}-{number}" for number in range(2, _TRIES + 1))]
    for name in names:
        if existing.get(_HEADS + name) == tip:
            return name, _said(branch, name, "it holds other commits")
    in_use = _in_use(repository)
    first = ""
    for name in names:
        ref, old = _HEADS + name, existing.get(_HEADS + name)
        if ref in in_use:
            reason = "it is checked out"
        elif old is not None and own.ask("merge-base", "--is-ancestor", old, tip).code != 0:
            reason = "it holds other commits"
        else:
            # The old value makes it fail, not overwrite, when somebody was faster.
            answer = git.ask("update-ref", "-m", _MESSAGE, ref, tip, old or _NOTHING)
            if answer.code == 0:
                return name, _said(branch, name, first)
            reason = answer.err
        first = first or reason
        if blocking := _parent(ref, existing):
            first = f"the branch {blocking.removeprefix(_HEADS)} is in the way"
            break
    return None, (f"no branch {branch} could be made for the commits: {first}",)


def _said(wanted: str, got: str, reason: str) -> tuple[str, ...]:
    return () if wanted == got else (f"the commits are in {got}, not in {wanted}: {reason}",)


def _existing(repository: Repository) -> dict[str, str]:
    out = repository.git.must("for-each-ref", "--format=%(refname) %(objectname)", _HEADS).out
    pairs = (line.rpartition(" ") for line in out.decode("utf-8", "surrogateescape").splitlines())
    return {ref: sha for ref, _, sha in pairs}


def _parent(ref: str, existing: dict[str, str]) -> str | None:
    """Return the branch whose name is a folder in that of `ref`: git can't have both."""
    words = ref.split("/")
    folders = ("/".join(words[:length]) for length in range(3, len(words)))
    return next((folder for folder in folders if folder in existing), None)


def _in_use(repository: Repository) -> set[str]:
    """Return the branches that a checkout stands on, or that a rebase or bisection will go back to."""
    listed = repository.git.must("worktree", "list", "--porcelain").out.decode("utf-8", "surrogateescape")
    used = {line.removeprefix("branch ") for line in listed.splitlines() if line.startswith("branch ")}
    common = repository.top / repository.git.must("rev-parse", "--git-common-dir").line
    for git_dir in (common, *common.glob("worktrees/*")):
        for name in _PENDING:
            try:
                noted = (git_dir / name).read_text(encoding="utf-8", errors="surrogateescape").strip()
            except OSError:
                continue
            used.add(noted if noted.startswith("refs/") else _HEADS + noted)
    return used
