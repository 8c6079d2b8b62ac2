"""Which program counts as an engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coding_agent.toolchain.pulumi import engine


def program(folder: Path, says: str, *, code: int = 0, name: str = "pulumi") -> Path:
    """Write a program that prints `says` and counts its starts in a file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho x >> {folder}/starts\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("says", ["v3.235.0", "v3.259.0", "3.300.1", "v4.0.0", "v3.236.0-alpha.1+dirty"])
def test_new_enough_on_path_is_taken(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    """A pulumi on PATH from 3.235 on is used, whatever stands behind its numbers."""
    command = program(tmp_path / "bin", says)
    monkeypatch.setenv("PATH", str(command.parent))
    assert engine.find_or_install() == engine.Engine(command, says.removeprefix("v"), "PATH")


@pytest.mark.parametrize(
    ("says", "code", "reason"),
    [
        ("v3.234.9", 0, "is v3.234.9, older than 3.235.0"),
        ("v2.400.0", 0, "is v2.400.0, older than 3.235.0"),
        ("hello", 0, "calls its version 'hello'"),
        ("v3.259.0", 3, "does not run (exit code 3)"),
        ("", 0, "does not run (exit code 0): it says nothing"),
    ],
)
def test_other_programs_are_passed_over(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, code: int, reason: str
) -> None:
    """What is too old, broken or something else is named with its reason, and the next one on PATH is taken."""
    bad = program(tmp_path / "one", says, code=code)
    good = program(tmp_path / "two", "v3.259.0")
    monkeypatch.setenv("PATH", f"{bad.parent}{os.pathsep}{good.parent}")
    found, missed = engine.find()
    assert found is not None
    assert found.command == good
    assert len(missed) == 1
    assert str(missed[0]).startswith(f"PATH: {bad} ")
    assert reason in str(missed[0])


def test_relative_entries_of_path_are_ignored(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pulumi that lies in a checkout isn't run because PATH has an empty or relative entry."""
    planted = program(tmp_path / "checkout" / "bin", "v3.259.0")
    monkeypatch.chdir(tmp_path / "checkout")
    monkeypatch.setenv("PATH", f":bin:.{os.pathsep}")
    assert engine.find()[0] is None
    assert not planted.with_name("starts").exists()


def test_known_engine_is_not_started_again(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is asked once, remembered until the file changes, and then found without a start."""
    command = program(tmp_path / "bin", "v3.259.0")
    monkeypatch.setenv("PATH", str(command.parent))
    engine.find_or_install()
    engine.find_or_install()
    assert command.with_name("starts").read_text() == "x\n"
    program(tmp_path / "bin", "v3.260.10")
    assert engine.find_or_install().version == "3.260.10"


def test_a_damaged_memory_of_versions_does_no_harm(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-written or foreign file of remembered versions is asked again instead of believed."""
    command = program(tmp_path / "bin", "v3.259.0")
    monkeypatch.setenv("PATH", str(command.parent))
    memory = home / ".cache" / "coding-agent" / "versions.json"
    memory.parent.mkdir(parents=True)
    for damaged in ('{"', "[]", f'{{"{command}": 7}}', f'{{"{command}": [0, 0, "v9.9.9"]}}'):
        memory.write_text(damaged)
        assert engine.find_or_install().version == "3.259.0"


def test_finding_an_engine_imports_no_engine_library() -> None:
    """Looking for the engine loads neither pulumi nor the download's and the parser's libraries."""
    listing = "import sys; import coding_agent.toolchain.pulumi.engine, coding_agent.backend; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    assert not {"pulumi", "yaml", "urllib.request", "tarfile", "http.client"} & set(done.stdout.split())
