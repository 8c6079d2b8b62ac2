"""Claude Code from npm, for real."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from coding_agent import claude


@pytest.mark.slow
def test_the_pinned_version_comes_from_npm(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real npm installs the real program at the pinned version, checked, with progress in MB, and only once."""
    folders = [f for f in os.environ["PATH"].split(os.pathsep) if not (Path(f) / "claude").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    said: list[str] = []

    command = claude.find_or_install(None, None, said.append)

    done = subprocess.run([str(command), "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(claude.PINNED_VERSION)
    assert any(line.endswith(" MB") for line in said)
    assert said[-1] == f"installed Claude Code {claude.PINNED_VERSION} in {command.parent}"
    assert sorted(path.name for path in command.parents[1].iterdir()) == [command.parent.name]
    said.clear()
    assert claude.find_or_install(None, claude.PINNED_VERSION, said.append) == command
    assert said == []
