"""An offender for every limit, on every executor: what stops it, how that shows, how far it got, and its neighbour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fakes.scenarios import scenario
from user import User
from waiting import until

pytestmark = [pytest.mark.slow]

NEIGHBOUR = "i=0; while :; do echo $((i += 1)); sleep 0.1; done"
DISK, PIDS = 60_000_000, 64
BUSY = "for i in 1 2 3; do (while :; do :; done) & done; sleep 6; kill $(jobs -p); true"
FORKS = "while :; do sleep 300 & done"
WRITES = "for i in {1..60}; do head -c 10000000 /dev/zero >>fill; sleep 0.2; done; sleep 60"


@dataclass(frozen=True)
class Offender:
    """A task that goes too far, and what has to be seen of it."""

    task: Mapping[str, Any]
    status: str
    reason: str | None = None
    hit: str | None = None  # the limit that is named although the run went on
    unenforced: tuple[str, ...] = ()  # executors that can't hold it, which `preview` says


def _agent(prompt: str, **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "limits": {"grace": "1s", "linger": "2s"}, **fields}


def _command(command: str, **limits: Any) -> dict[str, Any]:
    return {"command": command, "limits": {"grace": "1s", **limits}}


OFFENDERS = {
    "memory": Offender(
        {**_agent(scenario("memory", mb=900, hold=8)), "limits": {"memory": "400MB", "grace": "1s"}},
        "succeeded",
        hit="memory",
    ),
    "cpus": Offender(_command(BUSY, cpus=0.5), "succeeded", hit="cpus", unenforced=("local",)),
    "pids": Offender(_command(FORKS, pids=PIDS), "failed", "pids"),
    "disk": Offender(_command(WRITES, disk="60MB"), "failed", "disk"),
    "timeout": Offender(_command(NEIGHBOUR, timeout="3s"), "timed_out", "timeout"),
    "turns": Offender(_agent(scenario("loop", turns=100), agent={"max_turns": 3}), "failed", "max_turns"),
    "budget": Offender(_agent(scenario("loop", turns=100), agent={"max_budget_usd": 0.003}), "failed", "budget"),
}
EXECUTORS = {"local": "local", "container": "box"}


@pytest.fixture
def executors(container_user: User, claude_program: Path, container_image: str) -> User:
    """Return a user with an executor of each type."""
    container_user.executors(
        {"name": "local", "type": "local", "claude_path": str(claude_program)},
        {"name": "box", "type": "container", "image": container_image, "network": "host"},
    )
    return container_user


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("limit", OFFENDERS)
def test_limit(executors: User, limit: str, executor: str) -> None:
    """An offender is stopped, or what it started is, with the limit's name; a run beside it goes on undisturbed."""
    user, offender = executors, OFFENDERS[limit]
    user.job("neighbour", command=NEIGHBOUR, executor=EXECUTORS[executor])
    user.job(**offender.task, executor=EXECUTORS[executor])
    user.cli("up", "neighbour", "--detach")
    if executor in offender.unenforced:
        assert f"limits.{limit} is not enforced" in user.cli("preview", "job").stdout

    user.cli("up", "job", code=None)

    outputs, beside = user.outputs("job"), user.outputs("neighbour")
    assert (outputs["status"], outputs["reason"]) == (offender.status, offender.reason), outputs
    hits = {each["limit"] for each in outputs["limit_hits"]}
    if executor in offender.unenforced:
        assert any(f"limits.{limit} is not enforced" in each for each in outputs["notices"])
    elif offender.hit:
        assert offender.hit in hits
    _assert_overshoot(limit, executor, outputs)
    assert (beside["status"], beside["limit_hits"]) == ("running", [])
    last = _counted(user)
    until(lambda: _counted(user) > last)
    for name in ("job", "neighbour"):
        user.cli("destroy", name, "--yes")


def _counted(user: User) -> int:
    lines = user.cli("logs", "neighbour", "-n", "1").stdout.split()
    return int(lines[-1]) if lines else 0


def _assert_overshoot(limit: str, executor: str, outputs: Mapping[str, Any]) -> None:
    """How far beyond its limit an offender got: not at all where the kernel holds it, else what a watch leaves."""
    detail = str(outputs["detail"])
    match limit:
        case "turns":
            assert outputs["num_turns"] <= 4
        case "timeout":
            counted = [int(line) for line in outputs["log_tail"].splitlines() if line.isdigit()]
            assert 0 < counted[-1] < 100  # ten a second at most
        case "budget":
            assert outputs["cost_usd"] < 0.02
        case "disk":
            assert int(detail.split(" MB")[0]) * 1_000_000 < DISK * 6
        case "pids" if executor == "local":
            assert int(detail.split()[0]) > PIDS


def test_preview_says_what_is_held_otherwise(executors: User) -> None:
    """Before anything runs, `preview` says which limits are only watched, and that an executor allows less."""
    user = executors
    user.executors({"name": "box", "type": "container", "image": "coding-agent-test/base:1", "memory": "512MiB"})
    user.job(command="true", executor="box", limits={"memory": "4GiB", "disk": "1GB"})
    said = user.cli("preview", "job").stdout
    assert "limits.disk: watched by the supervisor" in said
    assert "limits.memory: executor box allows less" in said


def test_executors_limit_is_the_upper_one(executors: User) -> None:
    """A task can't have more memory than its executor allows: what runs is told the smaller one, and gets it."""
    user = executors
    user.executors(
        {"name": "box", "type": "container", "image": "coding-agent-test/base:1", "network": "none", "memory": "512MiB"}
    )
    user.job(command="echo $CODING_AGENT_LIMIT_MEMORY", executor="box", limits={"memory": "4GiB"})
    user.cli("up", "job")
    assert str(512 * 1024**2) in user.cli("logs", "job", "-n", "10").stdout
    user.cli("destroy", "job")
