"""What `doctor` sees and says."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import pytest

import package_index
from coding_agent import backend, doctor
from coding_agent.doctor import Finding, State
from coding_agent.toolchain.pulumi import parts


def program(path: Path, script: str) -> Path:
    """Write a shell program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def findings() -> dict[str, Finding]:
    """Return the findings by their names, each of which occurs once."""
    found = doctor.examine()
    assert len({each.name for each in found}) == len(found)
    return {each.name: each for each in found}


@pytest.fixture
def empty_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, the only one on PATH, on a machine without a mirror."""
    folder = home / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CODING_AGENT_PULUMI_MIRROR", raising=False)
    monkeypatch.chdir(home)
    return folder


def test_everything_missing_is_named(empty_path: Path) -> None:
    """On a bare machine each missing part says what it prevents and what to do, and nothing is raised or fetched."""
    found = findings()
    for name in ("bash", "git", "flock", "setsid", "tar", "Pulumi engine", "Claude Code", "agent credential"):
        assert found[name].state is State.MISSING, found[name]
        assert found[name].prevents, name
        assert found[name].next_step, name
    assert found["npm"].state is State.WARNING
    assert "util-linux" in str(found["flock"].next_step)
    assert "doctor --fix" in str(found["Pulumi engine"].next_step)
    assert "ANTHROPIC_API_KEY" in found["agent credential"].found


def test_examining_changes_nothing(home: Path, empty_path: Path) -> None:
    """Looking makes neither a backend nor a passphrase nor an installation."""
    findings()
    state = home / ".local" / "state" / "coding-agent"
    assert not state.exists()
    assert not parts.engine_part().folder.exists()


def test_not_linux_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another system it is said that agents run on Linux only, and what still works."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    found = findings()["system"]
    assert found.state is State.WARNING
    assert found.found.startswith("Darwin")
    assert "only on Linux" in str(found.prevents)


def test_old_bash_is_said(empty_path: Path) -> None:
    """A bash that the supervisor can't use counts as missing, with its version."""
    program(empty_path / "bash", "printf '3 2'")
    found = findings()["bash"]
    assert found.state is State.MISSING
    assert "3.2: too old" in found.found


def test_old_engine_is_said(empty_path: Path) -> None:
    """An engine that is too old is named with its version."""
    program(empty_path / "pulumi", "echo v3.100.0")
    found = findings()["Pulumi engine"]
    assert found.state is State.MISSING
    assert "is v3.100.0, older than 3.235.0" in found.found


def test_engine_without_a_language_plugin_is_a_warning(empty_path: Path) -> None:
    """Without the language plugin it is said that a bare `pulumi up` doesn't work, and what does."""
    program(empty_path / "pulumi", "echo v3.259.0")
    assert findings()["language plugin"].state is State.WARNING
    assert "bare `pulumi up`" in str(findings()["language plugin"].prevents)
    program(empty_path / "pulumi-language-python", "")
    assert findings()["language plugin"].state is State.OK


def test_backend_that_cannot_be_reached_is_said(empty_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend the user chose that doesn't answer is named with who chose it and the engine's own words."""
    program(
        empty_path / "pulumi", '[ "$1" = version ] && echo v3.259.0 && exit; echo "error: no such bucket" >&2; exit 255'
    )
    monkeypatch.setenv("PULUMI_BACKEND_URL", "s3://gone")
    found = findings()["backend"]
    assert found.state is State.MISSING
    assert found.found == (
        "s3://gone (chosen by environment: PULUMI_BACKEND_URL) can't be reached: error: no such bucket"
    )
    monkeypatch.delenv("PULUMI_BACKEND_URL")
    (home / ".pulumi" / "credentials.json").write_text(json.dumps({"current": "https://x.invalid"}))
    assert "chosen by login" in findings()["backend"].found


def test_state_folder_that_cannot_be_written_is_said(
    empty_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the default backend's folder can't be made the variable that moves it is named."""
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/1")
    found = findings()["backend"]
    assert found.state is State.MISSING
    assert "XDG_STATE_HOME" in str(found.next_step)


def test_passphrase_file_that_cannot_be_read_is_said(empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A passphrase file that isn't there is named before a stack fails on it; a passphrase's value is never shown."""
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE_FILE", "/nowhere/passphrase")
    assert findings()["passphrase"].state is State.MISSING
    assert "/nowhere/passphrase" in findings()["passphrase"].found
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "a canary")
    assert findings()["passphrase"].state is State.OK
    assert "canary" not in str(doctor.examine())


def test_provider_that_does_not_start_is_said_with_its_cause(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin that fails at its start is shown with the last line it wrote, not with a traceback's first."""
    script = 'echo KeyboardInterrupt >&2; echo "ImportError: no module named grpc" >&2; exit 1'
    command = program(tmp_path / "venv" / backend.PROVIDER, script)
    monkeypatch.setattr(sys, "executable", str(command.with_name("python3")))
    found = findings()["provider plugin"]
    assert found.state is State.MISSING
    assert found.found == f"{command} does not start: ImportError: no module named grpc"


def test_provider_of_this_installation_starts(home: Path) -> None:
    """The provider's program that is installed beside this Python says its port when it is started."""
    found = findings()["provider plugin"]
    assert found.state is State.OK, found.found


def test_broken_executors_file_is_a_finding(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An executors file that can't be loaded is shown with its own error, and the other parts are still examined."""
    broken = home / "executors.yaml"
    broken.write_text("executors: [\n")
    monkeypatch.setenv("CODING_AGENT_CONFIG", str(broken))
    found = findings()
    assert found["executors file"].state is State.MISSING
    assert str(broken) in found["executors file"].found
    assert found["agent credential"].state is State.WARNING
    assert "Claude Code" in found


@pytest.mark.parametrize("name", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"])
def test_credential_is_named_and_never_shown(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A credential in the environment is found by its name; its value appears nowhere."""
    monkeypatch.setenv(name, "sk-canary-value")
    found = doctor.examine()
    credential = next(each for each in found if each.name == "agent credential")
    assert credential.state is State.OK
    assert name in credential.found
    assert "sk-canary-value" not in str(found)


def test_credential_sources_are_not_resolved(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that is a command is named by its program and not run: looking has no effect."""
    ran = home / "ran"
    config = home / "executors.yaml"
    config.write_text(f"secrets:\n  ANTHROPIC_API_KEY:\n    command: [touch, {ran}]\n")
    monkeypatch.setenv("CODING_AGENT_CONFIG", str(config))
    found = findings()["agent credential"]
    assert found.state is State.OK
    assert found.found == "ANTHROPIC_API_KEY from command touch"
    assert not ran.exists()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("env: NO_SUCH_VARIABLE", "NO_SUCH_VARIABLE, which is not set"),
        ("file: /nowhere/key", "/nowhere/key, which can't be read"),
        ("command: [no-such-program]", "no-such-program, which is not on PATH"),
    ],
)
def test_credential_source_that_gives_nothing_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, source: str, problem: str
) -> None:
    """A declared source that can't give a value is missing, although another credential is in the environment."""
    config = home / "executors.yaml"
    config.write_text(f"secrets:\n  ANTHROPIC_API_KEY:\n    {source}\n")
    monkeypatch.setenv("CODING_AGENT_CONFIG", str(config))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    found = findings()["agent credential"]
    assert found.state is State.MISSING
    assert found.found.endswith(problem)


def test_fix_installs_the_engine(empty_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `fix` what can be installed is, and what can't is said with each way that failed."""
    monkeypatch.setenv("CODING_AGENT_PULUMI_DOWNLOAD", "http://127.0.0.1:9")
    package_index.refuse(monkeypatch)
    found = {each.name: each for each in doctor.examine(fix=True)}
    assert "mirror: CODING_AGENT_PULUMI_MIRROR is not set" in found["Pulumi engine"].found
    assert "source: Go is not installed" in found["Pulumi engine"].found
    assert "there is no npm" in found["Claude Code"].found
    assert os.environ["PATH"] == str(empty_path)
