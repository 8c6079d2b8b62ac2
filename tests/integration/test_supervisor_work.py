"""What of the agent's work the supervisor saves: everything that changed, and a word about what it could not save."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from coding_agent.executors.base import Look
from coding_agent.run import State
from runs import INIT, Target, result, say


@pytest.fixture
def bundle(home: Path, tmp_path: Path) -> bytes:
    """Return a repository as it travels: it tracks files that its .gitignore names."""
    repo = tmp_path / "repo"
    for name, content in {".gitignore": "dist/\n*.cfg\n", "a.txt": "1.2.3\n", "dist/out.js": "old\n"}.items():
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text(content)
    for line in ("init -q -b main", "add -f .", "commit -q -m one", "bundle create -q ../bundle HEAD"):
        subprocess.run(["git", *line.split()], cwd=repo, check=True, timeout=60)
    return (tmp_path / "bundle").read_bytes()


def _run(target: Target, bundle: bytes, script: str, which: str = "") -> tuple[Look, str]:
    """Let an agent do `script` in a checkout; return how its run ended, and its patch."""
    script = f"{say(INIT)}{script}\n{say(result())}"
    look = target.run(script, which, repo="bundle", repo_ref="HEAD", files={"repo.bundle": (bundle, 0o600)})
    return look, (target.folder(which) / "work.patch").read_text()


def _unsaved(look: Look) -> bool:
    assert look.meta is not None
    assert look.state is State.SUCCEEDED
    # Whoever keeps something back says what it is.
    assert look.meta.unsaved == bool(look.meta.notices)
    return look.meta.unsaved


def test_tracked_files_are_saved_although_they_are_ignored(target: Target, bundle: bytes) -> None:
    """A change of a tracked file is in the patch although .gitignore names it; an ignored new file is not."""
    look, patch = _run(target, bundle, "echo new > dist/out.js; echo more > dist/more.js; echo x > local.cfg")

    assert not _unsaved(look)
    assert "dist/out.js" in patch
    assert "dist/more.js" not in patch
    assert "local.cfg" not in patch


def test_a_change_in_the_moment_of_the_start_is_saved(target: Target, bundle: bytes) -> None:
    """A file that is rewritten with as many bytes in the second in which the run begins is in the patch."""
    patches = [_run(target, bundle, "printf '1.2.4\\n' > a.txt", f"run{number}")[1] for number in range(5)]

    assert ["+1.2.4" in patch for patch in patches] == [True] * 5


@pytest.mark.parametrize("bad", ["git init -q sub", "echo x > 'git~1'; git init -q sub"])
def test_a_path_that_git_cannot_take_costs_no_other(target: Target, bundle: bytes, bad: str) -> None:
    """What git can't add is left out of the patch, which is said; everything else is in it."""
    look, patch = _run(target, bundle, f"{bad}\necho precious > new.txt")

    assert _unsaved(look)
    assert "precious" in patch


def test_a_nested_repository_is_not_forgotten(target: Target, bundle: bytes) -> None:
    """Commits of a repository inside the checkout are not in the patch: they count as not saved, and that is said."""
    nested = "git init -q sub && cd sub && echo precious > new.txt && git add . && git commit -q -m Nested"
    identity = "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b\n"

    assert _unsaved(_run(target, bundle, f"{identity}({nested})")[0])


@pytest.mark.parametrize(
    ("script", "left"),
    [
        ("git checkout -q -b other; echo b > b.txt; git add .; git commit -q -m b; git checkout -q -", True),
        ("echo b > a.txt; git stash -q", True),
        ("echo b > a.txt; git stash -q; git pack-refs --all", True),
        ("git checkout -q -b other; echo b > b.txt; git add .; git commit -q -m b", False),
        ("git branch other; echo b > b.txt; git add .; git commit -q -m b; git commit -q --amend -m c", False),
        ("git tag old; git pack-refs --all; echo b > b.txt; git add .; git commit -q -m b", False),
    ],
)
def test_commits_beside_the_checkouts_own_are_not_forgotten(
    target: Target, bundle: bytes, script: str, left: bool
) -> None:
    """Commits on a branch that the checkout does not stand on, and stashes, count as not saved, and that is said."""
    assert _unsaved(_run(target, bundle, script)[0]) == left
