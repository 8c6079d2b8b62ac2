"""What integration tests share: a project of a test's own, with the real engine on the PATH."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import projects
from coding_agent import backend


@pytest.fixture
def workplace(home: Path, tmp_path: Path, engine_folder: Path, monkeypatch: pytest.MonkeyPatch) -> projects.Workplace:
    """Return a project in a shell that `coding-agent env` was told to."""
    path = [str(Path(sys.executable).parent), str(engine_folder), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    for name, value in backend.environment().items():
        monkeypatch.setenv(name, value)
    return projects.make(tmp_path / "shop")
