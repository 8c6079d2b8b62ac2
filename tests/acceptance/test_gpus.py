"""GPUs: what an engine is asked for, and what a host's run sees. This machine has none: the hook is a stand-in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from containers import BASE
from fakes.scenarios import scenario
from machines.dockerd import dockerd
from machines.ssh_host import SshHost
from queues import all_ended, entries, local_executors, working
from user import User
from waiting import until


def _shown(user: User, *argv: str, code: int = 0) -> str:
    done = user.cli(*argv, code=code)
    return " ".join((done.stdout + done.stderr).split())


def _said(user: User, name: str) -> str:
    return until(lambda: str(user.outputs(name)["log_tail"]).strip())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpus", "wanted", "asks"),
    [("all", None, (-1, None)), (2, None, (2, None)), (4, 2, (0, ["0", "1"]))],
)
def test_gpus_are_asked_for(
    container_user: User, tmp_path: Path, gpus: str | int, wanted: int | None, asks: tuple[int, list[str] | None]
) -> None:
    """A task's `limits.gpus` become the container's device request; without them its executor's `gpus` do."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "nvidia-container-runtime-hook").write_text("#!/bin/sh\nexit 0\n")
    (programs / "nvidia-container-runtime-hook").chmod(0o755)
    with dockerd(tmp_path / "docker", programs=programs) as engine:
        box = {"name": "box", "type": "container", "image": BASE, "network": "none", "docker_host": engine.url}
        container_user.executors({**box, "gpus": gpus})
        container_user.job(command="true", executor="box", limits={"gpus": wanted} if wanted else {})
        container_user.cli("up", "job")
        (container,) = engine.docker.of_project(container_user.project)
        (asked,) = engine.docker.inspect(container)["HostConfig"]["DeviceRequests"]
        assert (asked["Count"], asked["DeviceIDs"], asked["Capabilities"]) == (*asks, [["gpu"]])


def test_no_two_runs_have_the_same_gpu(user: User) -> None:
    """The queue gives each GPU to one run at a time, and each run sees its own; a task without sees none."""
    local_executors(user, rack=6)
    said = json.loads(user.executors_file.read_text())["executors"]
    user.executors({**said[0], "gpus": 3})
    log, go = user.home / "log", user.home / "go"
    hold = f'echo "$1 $CUDA_VISIBLE_DEVICES." >>{log}; until test -e {go}; do sleep 0.05; done'
    for name, gpus in (("two", 2), ("one", 1), ("more", 2), ("none", 0)):
        limits = {"gpus": gpus} if gpus else {}
        user.job(name, command=hold.replace("$1", name), executor="rack", limits=limits)
    with working(user):
        user.cli("dispatch", "two")
        user.cli("dispatch", "one")
        user.cli("dispatch", "more")
        user.cli("dispatch", "none")
        until(lambda: log.exists() and len(log.read_text().splitlines()) == 3)
        assert sorted(log.read_text().splitlines()) == ["none .", "one 2.", "two 0,1."]
        assert "rack has 0 of 3 GPUs free, and it wants 2" in user.cli("why", "more").stdout
        go.touch()
        until(lambda: all_ended(user, 4))
    assert "more 0,1." in log.read_text()
    assert {each["state"] for each in entries(user).values()} == {"succeeded"}


def test_without_the_queue_they_are_the_first_ones_and_that_is_said(user: User) -> None:
    """Of the executors that carry a task's labels, the first one with enough GPUs is chosen. `up` gives a run the first
    of them, whoever else uses them, and says so before and after."""
    user.executors(
        {"name": "small", "type": "local", "labels": ["fast"]},
        {"name": "rack", "type": "local", "labels": ["fast"], "gpus": 3},
    )
    user.job(command="echo $CUDA_VISIBLE_DEVICES $CODING_AGENT_LIMIT_GPUS", labels=["fast"], limits={"gpus": 2})
    assert "GPU 0, 1 of executor rack, whoever else uses it" in _shown(user, "preview", "job")
    user.cli("up", "job")
    outputs = user.outputs("job")
    assert (outputs["executor"], outputs["log_tail"].split()) == ("rack", ["0,1", "2"])
    assert any("only the queue shares them out" in each for each in outputs["notices"])


# An executor, and what a task is told that wants two GPUs of it.
LACKING: list[tuple[dict[str, Any], str]] = [
    ({"type": "local"}, "has no GPUs by the executors file, and 2 are wanted; give it `gpus: N`"),
    ({"type": "local", "gpus": 1}, "has 1 by the executors file, and 2 are wanted"),
    ({"type": "hetzner"}, "Hetzner Cloud has no servers with GPUs; name an executor of type ssh or container"),
    ({"type": "container", "image": "x", "gpus": "all"}, "says `gpus: all`, so they can't be shared out"),
    ({"type": "container", "container": "x"}, "exists already, whose GPUs were chosen when it was made"),
]


def test_gpus_that_an_executor_has_not(user: User) -> None:
    """A task that wants GPUs which its executor has not is refused at its line, with what would work."""
    racks = [{"name": f"rack{n}", "labels": [f"fast{n}"], **executor} for n, (executor, _said) in enumerate(LACKING)]
    user.executors(*racks)
    for number in range(len(racks)):
        user.job(f"named{number}", command="true", limits={"gpus": 2}, executor=f"rack{number}")
        user.job(f"chosen{number}", command="true", limits={"gpus": 2}, labels=[f"fast{number}"])
    lines = _lines(user.cli("validate", code=2).stdout)
    for number, (_executor, said) in enumerate(LACKING):
        for name in (f"named{number}", f"chosen{number}"):
            (line,) = [each for each in lines if each.startswith(f"tasks/{name}.yaml:1:")]
            assert "limits.gpus" in line
            assert said in line


def _lines(shown: str) -> list[str]:
    """Return what was said of each task file, in one line for each."""
    return [" ".join(each.split()) for each in re.split(r"\n(?=tasks/)", shown)]


def test_on_a_host_each_run_sees_its_own(crib: User, ssh_host: SshHost) -> None:
    """On a host that one logs in to, tasks of the queue see the GPUs that they were given, and no others."""
    crib.executors({**ssh_host.executor(), "gpus": 2, "max_tasks": 2})
    command = "echo GPU $CUDA_VISIBLE_DEVICES; until test -e {0}/go; do sleep 0.1; done"
    for name in ("one", "two"):
        crib.job(name, command=command.format(ssh_host.home("plain")), executor="crib", limits={"gpus": 1})
    with working(crib):
        crib.cli("dispatch", "one", "two")
        until(lambda: [each["state"] for each in entries(crib).values()] == ["running"] * 2, limit=120)
        assert [_said(crib, name) for name in ("one", "two")] == ["GPU 0", "GPU 1"]
        ssh_host.run("touch", f"{ssh_host.home('plain')}/go", user="plain")
        until(lambda: all_ended(crib, 2), limit=120)
    ssh_host.run("rm", f"{ssh_host.home('plain')}/go")


def test_one_that_is_resumed_has_the_gpus_that_it_had(user: User) -> None:
    """A run that is resumed waits for the GPUs that it had, though others are free."""
    local_executors(user, rack=3)
    said = json.loads(user.executors_file.read_text())["executors"]
    user.executors({**said[0], "gpus": 2})
    go = user.home / "go"
    see = scenario("bash", command="echo GPU $CUDA_VISIBLE_DEVICES >>seen")
    user.job("agent", prompt=see, executor="rack", limits={"gpus": 1}, artifacts=["seen"])
    user.job("other", command=f"until test -e {go}; do sleep 0.05; done", executor="rack", limits={"gpus": 1})
    with working(user):
        user.cli("dispatch", "agent")
        until(lambda: all_ended(user, 1))
        user.cli("dispatch", "other")
        until(lambda: entries(user)["other"]["state"] == "running")
        user.cli("resume", "agent", "--prompt", see, "--detach")
        assert "its GPU 0 is not free: other" in user.cli("why", "agent").stdout
        go.touch()
        until(lambda: all_ended(user, 2) and user.outputs("agent")["attempts"] == 2)
    run = user.record_dir(user.outputs("agent")["run_id"])
    assert (run / "artifacts" / "seen").read_text() == "GPU 0\nGPU 0\n"
