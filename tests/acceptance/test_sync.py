"""The folder of task files is what shall be: `sync` brings it about, and says what it does."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from queues import HOLD, entries, state
from user import User
from waiting import until

pytestmark = pytest.mark.timeout(900)


def _sync(user: User, *argv: str, code: int = 0) -> dict[str, dict[str, Any]]:
    said = json.loads(user.cli("sync", *argv, "--json", code=code).stdout)
    return {each["task"]: each for each in said}


def _kinds(said: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: each["change"] for name, each in said.items()}


@pytest.fixture
def empty(user: User) -> User:
    """Return a user whose project has no task."""
    for file in (user.project / "tasks").glob("*.yaml"):
        file.unlink()
    return user


def test_created_replaced_kept_and_destroyed(empty: User) -> None:
    """A new file is run, a changed one is run anew, one that is as it was stays, and with --prune what has no file any
    more goes; --dry-run shows the same and does nothing."""
    user = empty
    user.job("a", command="echo a >>$HOME/ran")
    user.job("b", command="echo b >>$HOME/ran")
    assert _kinds(_sync(user, "--dry-run")) == {"a": "created", "b": "created"}
    assert entries(user) == {}
    first = _sync(user)
    assert {name: each["state"] for name, each in first.items()} == {"a": "succeeded", "b": "succeeded"}
    assert _kinds(_sync(user)) == {"a": "kept", "b": "kept"}
    user.job("b", command="echo changed >>$HOME/ran")
    (user.project / "tasks" / "a.yaml").unlink()
    user.job("c", command="echo c >>$HOME/ran")
    shown = user.cli("sync", "--dry-run").stdout
    assert [line.split()[:2] for line in shown.splitlines()[2:-1]] == [
        ["b", "replaced"],
        ["c", "created"],
        ["a", "left"],
    ]
    assert "--prune removes it" in shown
    last = _sync(user, "--prune")
    assert {name: (each["change"], each["state"]) for name, each in last.items()} == {
        "b": ("replaced", "succeeded"),
        "c": ("created", "succeeded"),
        "a": ("destroyed", "removed"),
    }
    assert sorted((user.home / "ran").read_text().split()) == ["a", "b", "c", "changed"]
    assert _kinds(_sync(user, "--prune")) == {"b": "kept", "c": "kept"}
    assert {path.name for path in (user.project / "stacks").glob("*.yaml")} <= {"Pulumi.b.yaml", "Pulumi.c.yaml"}


def test_one_that_runs_is_replaced(empty: User) -> None:
    """A task that was changed while it runs, or waits, is ended and run as it is now; unchanged it is left alone."""
    user = empty
    user.job("a", command=f"echo one >>$HOME/ran; {HOLD.format(user.home)}")
    _sync(user, "--detach")
    until(lambda: state(user, "a") == "running")
    assert _sync(user)["a"]["change"] == "kept"
    user.job("a", command="echo two >>$HOME/ran")
    said = _sync(user)["a"]
    assert (said["change"], said["state"]) == ("replaced", "succeeded")
    assert (user.home / "ran").read_text().split() == ["one", "two"]


def test_what_up_has_made_counts(empty: User) -> None:
    """A run that `up` has made is kept as it is, and removed like any other; a stack of another machine's is known."""
    user = empty
    user.job("a", command="echo a >>$HOME/ran")
    user.cli("up", "a")
    assert _sync(user)["a"]["change"] == "kept"
    for record in (user.home / ".local/state/coding-agent/runs").iterdir():
        record.rename(user.home / record.name)  # as on another machine that shares the backend
    assert _sync(user)["a"]["change"] == "kept"
    (user.project / "tasks" / "a.yaml").unlink()
    assert _sync(user, "--prune")["a"]["state"] == "removed"
    assert (user.home / "ran").read_text().split() == ["a"]


def test_failures_and_bad_files(empty: User) -> None:
    """A run that fails is said, with exit code 1; files that are wrong are all told at once and nothing is done."""
    user = empty
    user.job("a", command="exit 3")
    assert _sync(user, code=1)["a"]["state"] == "failed"
    assert _sync(user)["a"]["change"] == "kept"
    user.task("x", "prompt: 1\n")
    user.task("y", "nonsense: 1\n")
    user.job("z", command="true")
    said = user.cli("sync", code=2).stderr
    assert "x.yaml:1" in said
    assert "y.yaml:1" in said
    assert "z" not in entries(user)


@pytest.mark.slow
def test_ten_commits(empty: User) -> None:
    """Over ten commits of random edits, new files and removals, each `sync` ends in what the files say: each task's
    last run is of its last text, nothing is left of those that are gone, and a second one does nothing."""
    user, chooser = empty, random.Random(3)
    texts: dict[str, int] = {}
    for commit in range(10):
        for _ in range(3):
            name = f"t{chooser.randrange(6)}"
            if name in texts and chooser.random() < 0.4:
                del texts[name]
                (user.project / "tasks" / f"{name}.yaml").unlink()
            else:
                texts[name] = chooser.randrange(1000)
                user.job(name, command=f"echo {texts[name]} >$HOME/is-{name}")
        user.commit_all(f"Commit {commit}")
        _sync(user, "--prune")
        for name, text in texts.items():
            assert (user.home / f"is-{name}").read_text() == f"{text}\n"
        assert set(_kinds(_sync(user, "--prune")).values()) <= {"kept"}
        assert set(_kinds(_sync(user, "--prune"))) == set(texts)
        assert set(entries(user)) == set(texts)
