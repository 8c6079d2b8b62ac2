"""What is installed is the wheel: the package as others get it, in an environment without this repository."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distributions import REPOSITORY, build, install
from fakes.messages_api import MessagesApi
from fakes.scenarios import scenario
from user import API_KEY

PACKAGE = "infra/coding_agent"
LIMIT = 240.0  # seconds for one command


@dataclass(frozen=True)
class Shop:
    """A repository in which somebody uses the installed package, and knows nothing but its commands."""

    root: Path
    environment: dict[str, str]

    def sh(self, script: str, code: int = 0) -> str:
        """Run a line of shell and return what it printed."""
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == code, f"{script} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout

    def bare(self, arguments: str) -> str:
        """Run the engine's own command."""
        return self.sh(f'eval "$(coding-agent env)" && pulumi --non-interactive {arguments}')

    def status(self) -> dict[str, Any]:
        """Return what is known of the task's run."""
        said: dict[str, Any] = json.loads(self.sh("coding-agent status job --json"))
        return said

    def changes(self) -> list[dict[str, int]]:
        """Return what either door would change."""
        ours = json.loads(self.sh("coding-agent preview job --json"))["changes"]
        bare = json.loads(self.bare("preview --json --stack job"))["changeSummary"]
        return [{kind: count for kind, count in each.items() if kind != "same"} for each in (ours, bare)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs of a fresh environment that holds the wheel, and what it depends on from this one."""
    return install(tmp_path_factory.mktemp("venv"), str(wheel))


@pytest.fixture
def environment(
    home: Path, messages_api: MessagesApi, installed: Path, engine_folder: Path, claude_program: Path
) -> dict[str, str]:
    """Return the environment of a user who has installed the wheel, and has the engine and Claude Code on his PATH."""
    others = [each for each in os.environ["PATH"].split(os.pathsep) if not (Path(each) / "coding-agent").exists()]
    path = os.pathsep.join([str(installed), str(engine_folder), str(claude_program.parent), *others])
    model = {"ANTHROPIC_BASE_URL": messages_api.url, "ANTHROPIC_API_KEY": API_KEY}
    given = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**given, "PATH": path, **model}


def _shop(root: Path, environment: dict[str, str]) -> Shop:
    """Make an empty repository a project with a task, as somebody new does it."""
    root.mkdir(parents=True)
    shop = Shop(root, environment)
    shop.sh("git init -q && coding-agent init")
    task = {"prompt": scenario("edit", message=f"Work in {root.parent.name}"), "repo": "."}
    (root / "tasks" / "job.yaml").write_text(json.dumps(task))
    shop.sh("coding-agent validate && git add -A && git commit -q -m Begin")
    return shop


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """The wheel holds every file of the package: code, schemas, the supervisor, templates, sources of the engine."""
    argv = ["git", "ls-files", "-co", "--exclude-standard", "--deduplicate", PACKAGE]
    listed = subprocess.run(argv, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.splitlines()
    files = {name.removeprefix("infra/") for name in listed if (REPOSITORY / name).exists()}

    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    assert held == files
    assert {
        "coding_agent/py.typed",
        "coding_agent/schemas/task.schema.json",
        "coding_agent/supervisor/supervise.sh",
        "coding_agent/template/Pulumi.yaml",
        "coding_agent/toolchain/pulumi/build/go.mod",
    } <= held


def test_what_runs_is_the_wheel(environment: dict[str, str], installed: Path, tmp_path: Path) -> None:
    """In the fresh environment the package comes from the wheel, for the command, the program and the provider."""
    shop = Shop(tmp_path, environment)

    found = shop.sh("python3 -c 'import coding_agent, pulumi; print(coding_agent.__file__)'").strip()
    programs = shop.bare("version >/dev/null && type -P coding-agent pulumi-resource-coding-agent python3")

    assert Path(found).is_relative_to(installed.parent)
    assert {Path(line).parent for line in programs.splitlines()} == {installed}
    assert shop.sh("coding-agent version").split()[1].startswith("0.")


@pytest.mark.slow
def test_both_doors_work_in_two_repositories_with_tasks_of_one_name(
    environment: dict[str, str], tmp_path: Path, messages_api: MessagesApi
) -> None:
    """In two repositories, both made by `init`, tasks of the same name are stacks of their own, for both doors.

    Neither touches the other's: not by running, not by destroying.
    """
    one, two = (_shop(tmp_path / name / "shop", environment) for name in ("one", "two"))

    one.sh("coding-agent up job")
    two.bare("stack init job && pulumi up --yes --skip-preview --stack job")

    runs = [shop.status()["run_id"] for shop in (one, two)]
    assert len({*runs}) == 2
    for shop in (one, two):
        assert shop.status()["status"] == "succeeded"
        assert shop.sh("git log -1 --format=%s coding-agent/job") == f"Work in {shop.root.parent.name}\n"
        assert shop.changes() == [{}, {}]
    # Each through the door that made the other's: nothing is run again.
    one.bare("up --yes --skip-preview --stack job")
    two.sh("coding-agent up job")
    assert [shop.status()["run_id"] for shop in (one, two)] == runs
    assert len(messages_api.sessions()) == 2

    one.sh("coding-agent destroy job --yes")

    assert json.loads(one.bare("stack ls --json")) == []
    assert [each["name"] for each in json.loads(two.bare("stack ls --json"))] == ["job"]
    assert two.changes() == [{}, {}]
    assert two.status()["run_id"] == runs[1]
    two.bare("destroy --yes --remove --stack job")
