"""`make demo` on a fresh clone: what a newcomer types first."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fakes.messages_api import MessagesApi
from user import API_KEY

REPOSITORY = Path(__file__).parents[2]
LIMIT = 240.0  # seconds


@dataclass(frozen=True)
class Demo:
    """What `make demo` printed."""

    text: str

    @property
    def outputs(self) -> dict[str, Any]:
        """The outputs of the run, as it showed them."""
        shown = self.text.partition("$ coding-agent status demo --json\n")[2]
        found, _ = json.JSONDecoder().raw_decode(shown)
        outputs: dict[str, Any] = found
        return outputs


@pytest.fixture
def clone(home: Path, tmp_path: Path, claude_program: Path, engine_folder: Path) -> Iterator[Path]:
    """Clone this repository as it is in the work tree, set up as `make` does it, but without a network."""
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    argv = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    for name in subprocess.run(argv, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (REPOSITORY / name).is_file():
            (origin / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, origin / name)
    for command in ("init -q -b main", "add -A", "commit -q -m All", f"clone -q . {clone}"):
        _run("git", *command.split(), cwd=origin)
    _set_up(clone)
    config = home / ".config" / "openclaw" / "coding-agent.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(f"executors:\n  - name: local\n    type: local\n    claude_path: {claude_program}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{engine_folder}{os.pathsep}{os.environ['PATH']}")
        yield clone


def _set_up(clone: Path) -> None:
    """Make the clone's .venv: the package from the clone, what it depends on from the environment of this test."""
    venv = clone / ".venv"
    _run(sys.executable, "-m", "venv", "--without-pip", str(venv), cwd=clone)
    libraries = venv / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (libraries / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = ["-m", "pip", "--python", str(venv / "bin" / "python"), "install", "-q", "--disable-pip-version-check"]
    _run(sys.executable, *pip, "--no-deps", "--no-index", "--no-build-isolation", "-e", str(clone), cwd=clone)
    (venv / ".installed").touch()


def _run(*argv: str, cwd: Path) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _make_demo(clone: Path, **environment: str) -> Demo:
    done = subprocess.run(
        ["timeout", f"{LIMIT}", "make", "demo"],
        cwd=clone,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return Demo(done.stdout)


def test_make_demo_ends_with_outputs_a_branch_and_no_stack(clone: Path, home: Path) -> None:
    """`make demo` on a fresh clone ends with a succeeded run's outputs, its commit on a branch and a destroyed stack.

    Without a credential it says that the model is scripted; with one it uses the API that the user's environment names.
    The second time nothing is set up or fetched any more.
    """
    head = _run("git", "rev-parse", "HEAD", cwd=clone).strip()

    first = _make_demo(clone)

    assert "SCRIPTED" in first.text
    _ended_well(clone, home, head, first, "coding-agent/demo")

    with MessagesApi(default="demo", script=clone / "demo" / "model.json") as api:
        second = _make_demo(clone, ANTHROPIC_BASE_URL=api.url, ANTHROPIC_API_KEY=API_KEY)

        assert len(api.sessions()) == 1
    assert "SCRIPTED" not in second.text
    _ended_well(clone, home, head, second, "coding-agent/demo-2")
    assert not re.search(r"^(setting up|unpacking|fetching|installed) ", second.text, re.MULTILINE)


def _ended_well(clone: Path, home: Path, head: str, demo: Demo, branch: str) -> None:
    assert (demo.outputs["status"], demo.outputs["branch"]) == ("succeeded", branch), demo.text
    assert _run("git", "log", "--format=%s", f"{head}..{branch}", cwd=clone) == "Say how to run the tests\n"
    assert re.search(rf"^\$ git .* {branch}$", demo.text, re.MULTILINE)
    assert _run("git", "show", f"{branch}:NOTES.md", cwd=clone) == "The tests are run with `make test`.\n"
    # The clone itself is as it was: the branch is all that there is to see.
    assert _run("git", "rev-parse", "HEAD", cwd=clone).strip() == head
    assert _run("git", "status", "--porcelain", cwd=clone) == ""
    backend = home / ".local" / "state" / "coding-agent" / "backend"
    assert list(backend.rglob("demo.json")) == []
    assert not (home / ".coding-agent" / "runs" / demo.outputs["run_id"]).exists()
