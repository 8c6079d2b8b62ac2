"""Where the engine keeps its state, and what the user's own settings change about it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

import package_index
from coding_agent import backend
from coding_agent.errors import EngineMissing, InvalidInput
from coding_agent.toolchain.pulumi import engine


@pytest.fixture
def fake_engine(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> engine.Engine:
    """Put a small program that calls itself pulumi on PATH, in a folder with a difficult name."""
    folder = tmp_path / "the engine's $HOME"
    folder.mkdir()
    command = folder / "pulumi"
    command.write_text("#!/bin/sh\necho v3.259.0\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"/usr/bin:/bin:{folder}")
    monkeypatch.chdir(tmp_path)
    return engine.find_or_install()


def state(home: Path) -> Path:
    """Return the state folder of the test's home."""
    return home / ".local" / "state" / "coding-agent"


def login(folder: Path, url: str) -> None:
    """Write what `pulumi login` writes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "credentials.json").write_text(json.dumps({"current": url, "accounts": {url: {}}}))


def test_default_is_files_in_the_state_folder(fake_engine: engine.Engine, home: Path) -> None:
    """With nothing chosen, stacks lie in the state folder, under a passphrase of this user's, both private."""
    added = backend.environment()
    assert added["PULUMI_BACKEND_URL"] == f"file://{state(home)}/backend"
    passphrase = Path(added["PULUMI_CONFIG_PASSPHRASE_FILE"])
    assert passphrase == state(home) / "passphrase"
    assert stat.S_IMODE(passphrase.stat().st_mode) == 0o600
    assert stat.S_IMODE((state(home) / "backend").stat().st_mode) == 0o700
    assert len(passphrase.read_text()) >= 32
    assert added["PULUMI_SKIP_UPDATE_CHECK"] == "true"
    assert added["PULUMI_FALLBACK_TO_STATE_SECRETS_MANAGER"] == "true"


def test_passphrase_is_made_once(fake_engine: engine.Engine, home: Path) -> None:
    """Of many first uses at once one passphrase stays, it never changes, and a mode too wide is narrowed."""
    with ThreadPoolExecutor(8) as pool:
        seen = {path.read_text() for path in pool.map(lambda _: backend.passphrase_file(), range(32))}
    assert len(seen) == 1
    path = backend.passphrase_file()
    path.chmod(0o644)
    assert backend.passphrase_file().read_text() in seen
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in state(home).iterdir()] == ["passphrase"]


@pytest.mark.parametrize("name", ["PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"])
@pytest.mark.parametrize("value", ["/my/secret", ""])
def test_own_passphrase_wins(
    fake_engine: engine.Engine, home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A passphrase that the user has set, an empty one too, is left alone; an empty file name is none."""
    monkeypatch.setenv(name, value)
    own = bool(value) or name == "PULUMI_CONFIG_PASSPHRASE"
    assert ("PULUMI_CONFIG_PASSPHRASE_FILE" not in backend.environment()) == own
    assert (state(home) / "passphrase").exists() != own


def test_own_backend_url_wins(fake_engine: engine.Engine, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PULUMI_BACKEND_URL of the user's is left alone, before Pulumi.yaml and a login."""
    monkeypatch.setenv("PULUMI_BACKEND_URL", "s3://mine")
    login(home / ".pulumi", "https://api.example.invalid")
    Path("Pulumi.yaml").write_text("name: x\nruntime: python\nbackend: {url: 'file:///elsewhere'}\n")
    assert "PULUMI_BACKEND_URL" not in backend.environment()
    assert backend.backend() == backend.Backend("s3://mine", "environment", "PULUMI_BACKEND_URL")
    assert not (state(home) / "backend").exists()


@pytest.mark.parametrize("variable", ["PULUMI_HOME", "PULUMI_CREDENTIALS_PATH", None])
def test_own_login_wins(
    fake_engine: engine.Engine, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    """A `pulumi login`, wherever its credentials lie, is left alone."""
    monkeypatch.delenv("PULUMI_HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: SimpleNamespace(pw_dir=str(home)))
    folder = tmp_path / "own" if variable else home / ".pulumi"
    if variable:
        monkeypatch.setenv(variable, str(folder))
    login(folder, "file://~")
    assert "PULUMI_BACKEND_URL" not in backend.environment()
    assert backend.backend().chosen_by == "login"
    login(folder, "")  # what `pulumi logout` leaves
    assert backend.backend().ours


def test_own_access_token_wins(fake_engine: engine.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An access token in the environment, as CI has it, means Pulumi Cloud: no backend is set."""
    monkeypatch.setenv("PULUMI_ACCESS_TOKEN", "pul-x")
    assert "PULUMI_BACKEND_URL" not in backend.environment()
    assert not backend.backend().ours


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("name: x\nruntime: python\nbackend:\n  url: s3://bucket\n", "Pulumi.yaml", "s3://bucket"),
        ("name: x\nbackend:\n  url: file://./here\n", "Pulumi.yml", "file://{root}/here"),
        ('{"name": "x", "backend": {"url": "file:///abs"}}', "Pulumi.json", "file:///abs"),
        ("name: x\nbackend: {url: file://~}\n", "Pulumi.yaml", "file://~"),
    ],
)
def test_backend_of_the_project_wins_over_ours(
    fake_engine: engine.Engine, home: Path, tmp_path: Path, text: str, name: str, url: str
) -> None:
    """A backend that Pulumi.yaml names is used from any folder of the project, also after a login."""
    login(home / ".pulumi", "https://api.example.invalid")
    root = tmp_path / "project"
    (root / "deep" / "er").mkdir(parents=True)
    (root / name).write_text(text)
    assert backend.environment(root / "deep" / "er")["PULUMI_BACKEND_URL"] == url.format(root=root)
    assert "PULUMI_BACKEND_URL" not in backend.exports(root=root)
    assert not (state(home) / "backend").exists()


@pytest.mark.parametrize("text", ["backend: [", "- backend", "backend: yes", "backend: {url: 3}", "# backend"])
def test_projects_without_a_usable_backend_get_ours(fake_engine: engine.Engine, tmp_path: Path, text: str) -> None:
    """A Pulumi.yaml that can't be read or names no backend changes nothing here: the engine says what is wrong."""
    (tmp_path / "Pulumi.yaml").write_text(text)
    assert backend.backend(tmp_path).ours


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_exports_give_a_shell_the_same(
    fake_engine: engine.Engine, home: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    """What a shell has after evaluating the lines is what a process of ours gets, with every character of it."""
    lines = backend.exports(shell)
    expected = backend.environment()
    if shell == "bash":
        script = f"{lines}\nenv -0"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=30)
        got = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if "=" in entry)
        assert {name: got[name] for name in expected} == expected
    elif shell == "zsh":
        assert lines == backend.exports("bash")
    else:
        folder = str(fake_engine.command.parent).replace("'", "\\'")
        assert f"'{folder}'" in next(line for line in lines.splitlines() if line.startswith("set -gx PATH "))
        assert f"set -gx PULUMI_BACKEND_URL '{expected['PULUMI_BACKEND_URL']}';" in lines


def test_exports_in_a_shell_that_has_them(
    fake_engine: engine.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluating the lines twice changes nothing, and ours, once exported, doesn't beat a Pulumi.yaml's backend."""
    first = backend.environment()
    for name, value in first.items():
        monkeypatch.setenv(name, value)
    assert backend.environment()["PATH"] == first["PATH"]
    assert backend.backend().ours
    (tmp_path / "Pulumi.yaml").write_text("name: x\nbackend: {url: 's3://bucket'}\n")
    assert backend.environment()["PULUMI_BACKEND_URL"] == "s3://bucket"


def test_exports_for_an_unknown_shell(fake_engine: engine.Engine) -> None:
    """A shell that isn't known is refused, with the known ones named."""
    with pytest.raises(InvalidInput, match="'tcsh'") as refused:
        backend.exports("tcsh")
    assert "bash, zsh or fish" in str(refused.value)


def test_path_begins_with_this_python(fake_engine: engine.Engine) -> None:
    """`python3` and the provider's program are this environment's, `pulumi` is the engine that was found."""
    path = backend.environment()["PATH"]
    assert shutil.which("python3", path=path) == str(Path(sys.executable).with_name("python3"))
    assert shutil.which("pulumi", path=path) == str(fake_engine.command)
    assert shutil.which(backend.PROVIDER, path=path) is not None


def test_path_when_an_old_engine_comes_first(
    fake_engine: engine.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that was passed over for its age doesn't hide the one that was chosen."""
    old = tmp_path / "old" / "pulumi"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho v3.100.0\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{old.parent}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("pulumi", path=backend.environment()["PATH"]) == str(fake_engine.command)


def test_state_folder_that_cannot_be_made(
    fake_engine: engine.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state folder that can't be written is an error that names it and the variable that moves it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(InvalidInput, match="can't be written") as refused:
        backend.environment()
    assert "XDG_STATE_HOME" in str(refused.value)


def test_no_engine_is_said(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an engine and a way to one there is no environment, but the error that names each way."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CODING_AGENT_PULUMI_MIRROR", raising=False)
    monkeypatch.setenv("CODING_AGENT_PULUMI_DOWNLOAD", "http://127.0.0.1:9")
    package_index.refuse(monkeypatch)
    with pytest.raises(EngineMissing):
        backend.environment()
