"""Secret names become values from the sources that the executors file names, and from nowhere else."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from pathlib import Path

import pytest
import yaml

from coding_agent import credentials
from coding_agent.credentials import AGENT_CREDENTIALS, agent_credential, agent_environment, check, resolve
from coding_agent.errors import CredentialMissing
from coding_agent.settings import ExecutorSpec, Settings
from coding_agent.task import load
from processes import processes_with_text
from waiting import until


def _settings(home: Path, **content: object) -> Settings:
    file = home / ".config" / "openclaw" / "coding-agent.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content))
    return Settings.load()


def _local(settings: Settings) -> ExecutorSpec:
    return settings.executor("local")


def test_each_kind_of_source(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values come from the environment, from a file and from a command, without the newline at their end."""
    monkeypatch.setenv("MY_TOKEN", "from env ")
    (home / "token").write_bytes(b"from file\r\n")
    sources = {
        "A": {"env": "MY_TOKEN"},
        "B": {"file": "~/token"},
        "C": {"command": [sys.executable, "-c", "print('from $(x) command')"]},
    }
    settings = _settings(home, secrets=sources)
    assert resolve(["A", "B", "C", "A"], settings) == {"A": "from env ", "B": "from file", "C": "from $(x) command"}
    assert resolve([], settings) == {}


def test_values_keep_newlines_inside_and_unicode(home: Path) -> None:
    """Only one newline at the end goes."""
    (home / "key").write_text("line 1\nläne 2\n\n")
    assert resolve(["K"], _settings(home, secrets={"K": {"file": str(home / "key")}})) == {"K": "line 1\nläne 2\n"}


def test_all_missing_ones_are_named_at_once(home: Path) -> None:
    """Every name without a source or a value is in one error, which names the file to edit and no value."""
    (home / "binary").write_bytes(b"\xffcanary")
    (home / "empty").write_text("\n")
    (home / "nul").write_bytes(b"canary\0x")
    (home / "long").write_text("canary" * 30_000)
    failing = "import sys; print('canary'); sys.exit(3)"
    sources = {
        "UNSET": {"env": "NOT_SET_ANYWHERE"},
        "NO_FILE": {"file": "~/none"},
        "BINARY": {"file": "~/binary"},
        "EMPTY": {"file": "~/empty"},
        "NUL": {"file": "~/nul"},
        "LONG": {"file": "~/long"},
        "NO_PROGRAM": {"command": ["no-such-program-here"]},
        "FAILING": {"command": [sys.executable, "-c", failing]},
    }
    settings = _settings(home, secrets=sources)
    with pytest.raises(CredentialMissing) as caught:
        resolve([*sources, "UNKNOWN"], settings)
    message = str(caught.value)
    assert all(name in message for name in [*sources, "UNKNOWN"])
    assert "exit code 3" in message
    assert "$NOT_SET_ANYWHERE" in message
    assert str(settings.path) in message
    assert "canary" not in message
    assert caught.value.exit_code == 2


def test_an_undeclared_name_is_not_taken_from_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task cannot have a variable of the user's by naming it."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    with pytest.raises(CredentialMissing, match="AWS_SECRET_ACCESS_KEY has no source"):
        resolve(["AWS_SECRET_ACCESS_KEY"], _settings(home))


def test_a_command_that_does_not_end_is_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command source has a time limit, and is gone with its children after it."""
    monkeypatch.setattr(credentials, "_COMMAND_TIMEOUT", 2.0)
    mark = f"CANARY_{secrets.token_hex(8)}"
    monkeypatch.setenv("MARK", mark)
    settings = _settings(home, secrets={"S": {"command": ["bash", "-c", f"touch {home}/began; sleep 300 & wait"]}})
    with pytest.raises(CredentialMissing, match="within"):
        resolve(["S"], settings)
    assert (home / "began").exists()
    until(lambda: not processes_with_text(mark))


@pytest.mark.parametrize("name", AGENT_CREDENTIALS)
def test_agent_credential_from_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each of the three variables serves, where the executors file declares none of them."""
    monkeypatch.setenv(name, "a-value")
    settings = _settings(home)
    assert agent_credential(settings, _local(settings)) == {name: "a-value"}


def test_a_declared_agent_credential_wins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source in the executors file wins over the environment, and only one credential is given."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "from-environment")
    (home / "token").write_text("declared")
    settings = _settings(home, secrets={"CLAUDE_CODE_OAUTH_TOKEN": {"file": "~/token"}})
    assert agent_credential(settings, _local(settings)) == {"CLAUDE_CODE_OAUTH_TOKEN": "declared"}


def test_no_agent_credential(home: Path, tmp_path: Path) -> None:
    """Without a credential the error names all ways to give one, before anything starts."""
    settings = _settings(home)
    task = tmp_path / "task.yaml"
    task.write_text("prompt: Do it\n")
    for call in (
        lambda: agent_credential(settings, _local(settings)),
        lambda: check(load(task, settings=settings), settings, _local(settings)),
    ):
        with pytest.raises(CredentialMissing) as caught:
            call()
        assert all(name in str(caught.value) for name in (*AGENT_CREDENTIALS, "use_host_login"))


def _log_in(home: Path, **account: object) -> None:
    folder = home / ".claude"
    folder.mkdir(exist_ok=True)
    (folder / ".credentials.json").write_text(json.dumps({"claudeAiOauth": account}))


def test_host_login_only_where_the_user_says_so(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With use_host_login on a local executor the agent gets this machine's login, and nothing else."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "from-environment")
    _log_in(home, accessToken="the-token", expiresAt=(time.time() + 60) * 1000)
    settings = _settings(home, executors=[{"name": "own", "type": "local", "use_host_login": True}])
    task = tmp_path / "task.yaml"
    task.write_text("prompt: Do it\n")

    assert agent_credential(settings, settings.executor("own")) == {"CLAUDE_CODE_OAUTH_TOKEN": "the-token"}
    assert agent_credential(settings, _local(settings)) == {"ANTHROPIC_API_KEY": "from-environment"}
    check(load(task, settings=settings), settings, settings.executor("own"))


def test_host_login_of_a_console_account(home: Path) -> None:
    """A login that is an API key is given to the agent as that."""
    (home / ".claude.json").write_text(json.dumps({"primaryApiKey": "the-key"}))
    settings = _settings(home, executors=[{"name": "local", "type": "local", "use_host_login": True}])
    assert agent_credential(settings, _local(settings)) == {"ANTHROPIC_API_KEY": "the-key"}


@pytest.mark.parametrize("account", [{}, {"accessToken": "the-token", "expiresAt": 1}, {"accessToken": 7}])
def test_no_host_login(home: Path, tmp_path: Path, account: dict[str, object]) -> None:
    """Where there is no login, or one that has expired, that is said with what to do, before anything starts."""
    _log_in(home, **account)
    settings = _settings(home, executors=[{"name": "local", "type": "local", "use_host_login": True}])
    task = tmp_path / "task.yaml"
    task.write_text("prompt: Do it\n")
    with pytest.raises(CredentialMissing, match=r"(?s)this machine.*run `claude`") as caught:
        check(load(task, settings=settings), settings, _local(settings))
    assert "the-token" not in str(caught.value)


def test_check_runs_nothing_and_names_what_is_missing(home: Path, tmp_path: Path) -> None:
    """The check looks a command up without running it, and names every secret that can't be had."""
    marker = tmp_path / "ran"
    sources = {"RUNS": {"command": ["touch", str(marker)]}, "UNSET": {"env": "NOT_SET_ANYWHERE"}}
    settings = _settings(home, secrets=sources)
    task = tmp_path / "task.yaml"
    task.write_text("command: make\nsecrets: [RUNS]\n")
    check(load(task, settings=settings), settings, _local(settings))
    task.write_text("command: make\nsecrets: [RUNS, UNSET, NONE]\n")
    with pytest.raises(CredentialMissing) as caught:
        check(load(task, settings=settings), settings, _local(settings))
    assert "UNSET" in str(caught.value)
    assert "NONE" in str(caught.value)
    assert not marker.exists()


def test_base_url_passes_through(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API's address reaches the agent; the credential is not part of what is not secret."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary")
    assert agent_environment() == {}
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:1")
    assert agent_environment() == {"ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}
    assert os.environ["HOME"] == str(home)
