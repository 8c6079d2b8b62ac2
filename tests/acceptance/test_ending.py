"""`kill` and `destroy`, and a supervisor or an agent that was killed: no process is left, the work is saved."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.scenarios import scenario
from runs import alive
from user import User
from waiting import until

# Everything a tool can leave behind; `escape` has neither environment, session nor parent of the run's.
KINDS = ("plain", "nohup", "setsid", "double_fork", "stubborn", "escape")
MARKED = KINDS[:-1]


def _start(user: User, *, kinds: tuple[str, ...] = KINDS, limits: str = "1s") -> dict[str, int]:
    """Start a run that has committed work, left children behind and is in a tool call; return its processes by name."""
    prompt = scenario("edit+background+sleep", kinds=kinds, seconds=600)
    user.task("job", json.dumps({"prompt": prompt, "repo": ".", "limits": {"grace": limits}}))
    user.commit_all()
    user.cli("up", "job", "--detach")
    run = user.run_dir(_run_id(user))
    workspace = run / "workspace"
    until(lambda: (workspace / "bash.pid").exists() and (workspace / "bash.pid").read_text())
    meta = json.loads((run / ".meta.json").read_text())
    pids = {file.stem: int(file.read_text()) for file in workspace.glob("*.pid")}
    pids |= {"agent": meta["pid"], "supervisor": meta["supervisor"]}
    assert set(pids) == {*kinds, "bash", "agent", "supervisor"}
    assert all(alive(pid) for pid in pids.values())
    return pids


def _run_id(user: User) -> str:
    run_id: str = user.outputs("job")["run_id"]
    return run_id


def _assert_saved(user: User, outputs: dict[str, Any]) -> None:
    assert outputs["branch"] == "coding-agent/job"
    assert user.git("show", "coding-agent/job:note.txt") == "the second line\n"
    assert "plain.pid" in Path(outputs["patch"]).read_text()


def _left(pids: dict[str, int]) -> list[str]:
    return [name for name, pid in pids.items() if alive(pid)]


def test_kill_leaves_no_process(user: User, processes_with: Callable[[str], list[int]]) -> None:
    """`kill` in the middle of a tool call ends it and all children, the escaped too; the work arrives."""
    pids = _start(user)

    shown = user.cli("kill", "job").stdout

    assert _left(pids) == []
    outputs = user.outputs("job")
    assert processes_with(outputs["run_id"]) == []
    assert (outputs["status"], outputs["reason"]) == ("killed", "killed")
    assert "killed" in shown
    _assert_saved(user, outputs)
    # The stack and its results stay; another kill changes nothing.
    assert "ended already" in user.cli("kill", "job").stderr + user.cli("kill", "job").stdout
    assert user.outputs("job") == outputs


@pytest.mark.slow
@pytest.mark.parametrize("door", ["coding-agent", "pulumi"])
def test_destroy_leaves_no_process(user: User, door: str, processes_with: Callable[[str], list[int]]) -> None:
    """`destroy`, through either door, in the middle of a tool call leaves no process, no folder, and the work."""
    pids = _start(user)
    run_id = _run_id(user)

    if door == "pulumi":
        user.pulumi("destroy", "--yes", "--stack", "job")
    else:
        user.cli("destroy", "job", "--yes")

    assert _left(pids) == []
    assert processes_with(run_id) == []
    assert not (user.home / ".coding-agent").exists()
    outputs = user.outputs(run_id)
    assert outputs["status"] == "killed"
    _assert_saved(user, outputs)


def test_a_run_that_ends_by_itself_leaves_no_process(user: User, processes_with: Callable[[str], list[int]]) -> None:
    """When the agent has ended, so has everything that it started and left running."""
    user.task("job", json.dumps({"prompt": scenario("background", kinds=KINDS), "limits": {"grace": "1s"}}))

    user.cli("up", "job")

    outputs = user.outputs("job")
    workspace = user.run_dir(outputs["run_id"]) / "workspace"
    assert _left({file.stem: int(file.read_text()) for file in workspace.glob("*.pid")}) == []
    assert processes_with(outputs["run_id"]) == []
    assert outputs["status"] == "succeeded"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "destroy"])
def test_a_dead_supervisor_is_reported_and_its_run_can_be_ended(
    user: User, how: str, processes_with: Callable[[str], list[int]]
) -> None:
    """After a kill -9 of the supervisor, `status` says so, and `kill` and `destroy` end the agent and save its work."""
    pids = _start(user, kinds=MARKED)
    run_id = _run_id(user)
    os.kill(pids["supervisor"], signal.SIGKILL)

    outputs = until(lambda: (now := user.outputs("job")) and now["status"] == "unresponsive" and now)
    assert outputs["reason"] == "supervisor_died"
    assert alive(pids["agent"])
    user.cli(how, "job", *(["--yes"] if how == "destroy" else []))

    assert _left(pids) == []
    assert processes_with(run_id) == []
    outputs = user.outputs(run_id)
    assert (outputs["status"], outputs["reason"]) == ("killed", "killed")
    _assert_saved(user, outputs)


def test_a_run_without_supervisor_and_agent_is_lost_with_its_work_saved(user: User) -> None:
    """Where both were killed the run is lost, said with its reason, its work arrives, and `up` does not repeat it."""
    pids = _start(user, kinds=("plain",))
    os.kill(pids["supervisor"], signal.SIGKILL)
    os.kill(pids["agent"], signal.SIGKILL)

    outputs = until(lambda: (now := user.outputs("job")) and now["status"] == "lost" and now)

    assert outputs["reason"] == "supervisor_died"
    assert _left(pids) == []
    _assert_saved(user, outputs)
    user.cli("up", "job", code=1)
    assert user.outputs("job")["run_id"] == outputs["run_id"]
    assert len(user.api.sessions()) == 1


def test_the_agent_gets_nothing_of_ours(user: User) -> None:
    """The agent's environment has what the task says; no passphrase, no setting of the engine's, no token of ours."""
    prompt = scenario("environment", file="env.txt")
    user.task("job", json.dumps({"prompt": prompt, "env": {"MINE": "yes"}}))
    secrets: dict[str, Any] = {
        "PULUMI_ACCESS_TOKEN": "pul-token",
        "HCLOUD_TOKEN": "h-token",
        "PULUMI_CONFIG_PASSPHRASE": "open sesame",
    }

    user.pulumi("stack", "init", "job", "--no-select", **secrets)
    user.pulumi("up", "--yes", "--skip-preview", "--stack", "job", **secrets)

    got = (user.run_dir(_run_id(user)) / "workspace" / "env.txt").read_text()
    names = {line.split("=", 1)[0] for line in got.splitlines()}
    assert "MINE=yes" in got.splitlines()
    assert {name for name in names if name.startswith(("PULUMI", "HCLOUD", "XDG_", "PYTHON"))} == set()
    assert {name for name in names if name.startswith("CODING_AGENT")} == {
        "CODING_AGENT_RUN_ID",
        "CODING_AGENT_LIMIT_TIMEOUT",
    }
    assert not any(word in got for word in secrets.values())
