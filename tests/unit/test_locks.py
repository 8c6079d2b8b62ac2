"""Whose a stack's lock is."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from coding_agent import locks
from coding_agent.errors import StackLocked

FILE = "file:///a%20b/.pulumi/locks/organization/shop/job/4e.json"
SINCE = "2026-01-02T03:04:05.678901234Z"


@pytest.mark.parametrize("query", ["", "?no_tmp_dir=true"])
def test_a_lock_is_read_from_the_engines_words(query: str) -> None:
    """The engine's complaint names the lock's file, its owner, host, process and time."""
    said = f"error: the stack is currently locked by\n  {FILE}{query}: created by A B@here (pid 17) at {SINCE}\n"

    path = Path("/a b/.pulumi/locks/organization/shop/job/4e.json")
    assert locks.parse(said) == [locks.Lock(path, "A B", "here", 17, SINCE)]


def test_a_process_that_is_older_than_its_lock_holds_it() -> None:
    """The lock of a process that lives is held; the same lock from before that process began is not."""

    def lock(since: str) -> locks.Lock:
        return locks.Lock(Path("x"), "me", platform.node(), os.getpid(), since)

    assert not lock("2999-01-01T00:00:00Z").dead
    assert lock("2001-01-01T00:00:00.123456789Z").dead
    # A time that can't be read proves nothing.
    assert not lock("yesterday").dead


def test_an_unreadable_complaint_is_passed_on() -> None:
    """A complaint about a lock that names no file is reported as it is."""
    with pytest.raises(StackLocked, match="by somebody else"):
        locks.give_way("error: the stack is currently locked by somebody else", "job", lambda _line: None)
