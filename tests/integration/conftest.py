"""What integration tests share: a project with the real engine on the PATH, and a target without an engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import projects
import shared_cache
from coding_agent import backend
from runs import Target, target_in


@pytest.fixture
def workplace(home: Path, tmp_path: Path, engine_folder: Path, monkeypatch: pytest.MonkeyPatch) -> projects.Workplace:
    """Return a project in a shell that `coding-agent env` was told to."""
    shared_cache.known_versions(home)
    path = [str(Path(sys.executable).parent), str(engine_folder), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    for name, value in backend.environment().items():
        monkeypatch.setenv(name, value)
    return projects.make(tmp_path / "shop")


@pytest.fixture
def target(home: Path, tmp_path: Path) -> Iterator[Target]:
    """Return a target of this test's own; nothing of its runs is left."""
    target = target_in(tmp_path / "target")
    yield target
    target.clean_up()
