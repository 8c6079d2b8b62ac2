"""What tests share: a home of their own, a scripted Messages API, the real Claude Code, a look at processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shared_cache
from fakes.messages_api import MessagesApi
from processes import end_processes_of, processes_with_text
from user import MIRROR, User, make_home, make_user


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a home folder of this test's own; nothing of the user's environment is left that could matter.

    What a test leaves running there is ended after it; that nothing is left is for the tests of that to assert.
    """
    folder = make_home(tmp_path / "home", monkeypatch)
    yield folder
    end_processes_of(folder)


@pytest.fixture
def messages_api() -> Iterator[MessagesApi]:
    """Run a scripted Messages API for one test."""
    with MessagesApi() as api:
        yield api


@pytest.fixture(scope="session")
def claude_program() -> Path:
    """Return the real Claude Code program: $CODING_AGENT_TEST_CLAUDE, else the one the project itself would use."""
    named = os.environ.get("CODING_AGENT_TEST_CLAUDE")
    if named:
        return Path(named)
    from coding_agent import claude

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache.FOLDER))
        return claude.find_or_install(None, claude.PINNED_VERSION, print)


@pytest.fixture(scope="session")
def engine_folder() -> Path:
    """Return the folder of the real engine, unpacked once for all tests of this machine."""
    from coding_agent import engine

    mirror = os.environ.get("CODING_AGENT_PULUMI_MIRROR") or (str(MIRROR) if MIRROR.is_dir() else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache.FOLDER))
        if mirror is not None:
            patch.setenv("CODING_AGENT_PULUMI_MIRROR", mirror)
        return engine.find_or_install(print).command.parent


@pytest.fixture
def user(home: Path, tmp_path: Path, messages_api: MessagesApi, claude_program: Path, engine_folder: Path) -> User:
    """Return a user with a project of his own, not yet a git repository."""
    return make_user(home, tmp_path / "project", messages_api, claude_program, engine_folder)


@pytest.fixture
def processes_with() -> Callable[[str], list[int]]:
    """Return a listing, from /proc and nothing of the project, of processes whose environment or argv has a text."""
    return processes_with_text
