"""A user with a project: the doors of the product as a person at a shell goes through them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import shared_cache
from coding_agent.scaffold import scaffold
from fakes.messages_api import MessagesApi

LIMIT = 240.0  # seconds for one command
API_KEY = "sk-ant-test-key-of-the-suite"
_OURS = ("ANTHROPIC_", "PULUMI_", "CODING_AGENT_", "CLAUDE_", "CLAUDECODE", "GIT_", "SSH_")


@dataclass(frozen=True)
class User:
    """One user: a home, a project in it, an engine and an agent's program, and a model that answers on loopback."""

    home: Path
    project: Path
    api: MessagesApi
    environment: dict[str, str]

    def cli(self, *argv: str, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `coding-agent` in the project; `code` is the exit code it must end with (None: any)."""
        return self.run(sys.executable, "-m", "coding_agent", *argv, code=code, **environment)

    def pulumi(self, *argv: str, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the engine's own command in the project, as after `eval "$(coding-agent env)"`."""
        return self.run("pulumi", *argv, code=code, **{**self.engine_environment(), **environment})

    def run(self, *argv: str, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project."""
        done = subprocess.run(
            argv,
            cwd=self.project,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        if code is not None and done.returncode != code:
            shown = f"{' '.join(argv)} ended with {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
            raise AssertionError(shown)
        return done

    def start(self, *argv: str, into: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        """Start `coding-agent` in a session of its own and return at once; what it says is written `into` a file."""
        with into.open("wb") if into else contextlib.nullcontext(subprocess.PIPE) as output:
            return subprocess.Popen(
                [sys.executable, "-m", "coding_agent", *argv],
                cwd=self.project,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def engine_environment(self) -> dict[str, str]:
        """Return what `coding-agent env` tells a shell to set."""
        script = 'eval "$("$1" -m coding_agent env)" && env -0'
        done = self.run("bash", "-c", script, "env", sys.executable)
        return dict(pair.split("=", 1) for pair in done.stdout.split("\0") if "=" in pair)

    def task(self, name: str, text: str) -> Path:
        """Write tasks/<name>.yaml."""
        file = self.project / "tasks" / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    @property
    def executors_file(self) -> Path:
        """The executors file."""
        return self.home / ".config" / "openclaw" / "coding-agent.yaml"

    def executors(self, *executors: Mapping[str, Any], **fields: Any) -> Path:
        """Write the executors file: these executors, and what else is in `fields`."""
        file = self.executors_file
        file.write_text(json.dumps({"executors": list(executors), **fields}), encoding="utf-8")
        return file

    def job(self, name: str = "job", **fields: Any) -> Path:
        """Write tasks/<name>.yaml of fields; what is JSON is YAML."""
        return self.task(name, json.dumps(fields))

    def outputs(self, name: str) -> dict[str, Any]:
        """Return what `status --json` prints of a task."""
        said: dict[str, Any] = json.loads(self.cli("status", name, "--json").stdout)
        return said

    def git(self, *argv: str, code: int | None = 0) -> str:
        """Run git in the project and return what it printed."""
        return self.run("git", *argv, code=code).stdout

    def commit_all(self, message: str = "All") -> str:
        """Make the project a repository if it is none, commit everything and return the commit."""
        if not (self.project / ".git").exists():
            self.git("init", "-q", "-b", "main")
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD").strip()

    def run_dir(self, run_id: str) -> Path:
        """Return the folder of a run on the local executor's target."""
        return self.home / ".coding-agent" / "runs" / run_id

    def record_dir(self, run_id: str) -> Path:
        """Return the folder of a run's record."""
        return self.home / ".local" / "state" / "coding-agent" / "runs" / run_id

    def elsewhere(self, home: Path) -> User:
        """Return the same user at another machine: another state folder, the same project."""
        (home / ".config" / "openclaw").mkdir(parents=True)
        moved = {name: each.replace(str(self.home), str(home)) for name, each in self.environment.items()}
        other = replace(self, home=home, environment={**moved, "PULUMI_HOME": self.environment["PULUMI_HOME"]})
        (home / ".cache").symlink_to(self.home / ".cache")
        other.executors_file.write_text(self.executors_file.read_text())
        return other


def make_home(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make `folder` the home; nothing of the real user's environment is left that could matter."""
    mirror = os.environ.get("CODING_AGENT_PULUMI_MIRROR")
    for name in [name for name in os.environ if name.startswith(_OURS)]:
        patch.delenv(name)
    folders = {
        "HOME": folder,
        "XDG_STATE_HOME": folder / ".local" / "state",
        "XDG_CACHE_HOME": folder / ".cache",
        "XDG_CONFIG_HOME": folder / ".config",
        "PULUMI_HOME": folder / ".pulumi",
    }
    for name, path in folders.items():
        path.mkdir(parents=True, exist_ok=True)
        patch.setenv(name, str(path))
    (folder / ".gitconfig").write_text("[user]\n\tname = A Tester\n\temail = tester@example.invalid\n")
    patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    if mirror is not None:
        patch.setenv("CODING_AGENT_PULUMI_MIRROR", mirror)
    return folder


def make_user(home: Path, project: Path, api: MessagesApi, claude: Path, engine: Path) -> User:
    """Return a user whose executors file names the agent's program and whose project `coding-agent init` made."""
    config = home / ".config" / "openclaw"
    config.mkdir(parents=True, exist_ok=True)
    (config / "coding-agent.yaml").write_text(
        f"executors:\n  - name: local\n    type: local\n    claude_path: {claude}\n", encoding="utf-8"
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), str(engine), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "ANTHROPIC_BASE_URL": api.url, "ANTHROPIC_API_KEY": API_KEY}
    environment.pop("PYTHONPATH", None)
    project.mkdir(parents=True)
    shared_cache.known_versions(home)
    scaffold(project)
    return User(home, project, api, environment)
