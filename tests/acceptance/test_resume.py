"""`resume`: an agent that has ended goes on, with its session and its workspace, as its run's next attempt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.messages_api import MessagesApi
from fakes.scenarios import scenario
from machines.ssh_host import SshHost
from queues import local_executors, state, working
from runs import alive
from user import User
from waiting import until

LOOP = scenario("loop")
EDIT = scenario("edit")


def _sums(user: User, *, attempts: int, api: MessagesApi | None = None) -> dict[str, Any]:
    """Return the outputs; they agree with what the model was asked, however often the run was resumed."""
    outputs, api = user.outputs("job"), api or user.api
    assert outputs["attempts"] == attempts
    assert outputs["num_turns"] == len(api.turns(outputs["session_id"]))
    assert api.sessions() == [outputs["session_id"]]
    return outputs


def _last_text(api: MessagesApi) -> str:
    """Return what the user's side said last to the model."""
    body = json.loads(api.turns()[-1].body or b"{}")
    content = next(each["content"] for each in reversed(body["messages"]) if each["role"] == "user")
    return content if isinstance(content, str) else "".join(each.get("text", "") for each in content)


def test_after_max_turns(user: User) -> None:
    """A run that used up its turns goes on: same run, session and workspace; turns, cost and commits are of both."""
    user.job(prompt=f"Count. {scenario('loop')}", repo=".", agent={"max_turns": 8})
    user.commit_all()
    user.cli("up", "job", code=1)
    first = _sums(user, attempts=1)
    assert (first["reason"], first["num_turns"]) == ("max_turns", 8)

    shown = user.cli("resume", "job", "--prompt", f"Now edit. {EDIT}").stdout

    second = _sums(user, attempts=2)
    assert (second["run_id"], second["session_id"]) == (first["run_id"], first["session_id"])
    assert (second["status"], second["reason"], second["branch"]) == ("succeeded", None, "coding-agent/job")
    assert second["num_turns"] > 8
    assert second["cost_usd"] > first["cost_usd"]
    assert second["agent_num_turns"] > first["agent_num_turns"]
    assert second["started_at"] == first["started_at"]
    assert user.git("show", "coding-agent/job:note.txt") == "the second line\n"
    # Only what was done since is shown; the log has all of it.
    assert "attempt 2" in shown
    assert "turn 1:" in shown
    lines = user.cli("logs", "job").stdout.splitlines()
    assert [line for line in lines if line == "attempt 2"] == ["attempt 2"]
    assert sum("session" in line for line in lines) == 2
    # The stack says the same, and another `up` finds nothing to do.
    exported = json.loads(user.pulumi("stack", "output", "--json", "--stack", "job").stdout)
    assert (exported["attempts"], exported["num_turns"], exported["status"]) == (2, second["num_turns"], "succeeded")
    assert json.loads(user.cli("up", "job", "--json").stdout)["run_id"] == first["run_id"]


def test_after_kill(user: User, processes_with: Callable[[str], list[int]]) -> None:
    """A run that was killed in the middle of a tool call goes on without its setup, and is told to where nothing is."""
    prompt = f"Wait. {scenario('sleep', seconds=600)}"
    user.job(prompt=prompt, setup=["echo made >>setup.txt"], artifacts=["setup.txt"])
    user.cli("up", "job", "--detach")
    first = user.outputs("job")
    until(lambda: user.outputs("job")["activity"])
    user.cli("kill", "job")

    with MessagesApi(keep_bodies=True) as api:
        user.cli("resume", "job", "--detach", ANTHROPIC_BASE_URL=api.url)
        until(api.turns)
        assert user.outputs("job")["status"] == "running"
        assert "Go on with the task" in _last_text(api)
        until(lambda: user.outputs("job")["num_turns"] > first["num_turns"])
    user.cli("kill", "job")
    last = user.outputs("job")
    assert (last["status"], last["attempts"], last["run_id"]) == ("killed", 2, first["run_id"])
    assert (user.record_dir(first["run_id"]) / "artifacts" / "setup.txt").read_text() == "made\n"
    assert processes_with(first["run_id"]) == []


def test_after_it_was_lost(user: User) -> None:
    """A run whose supervisor and agent were killed is lost, and goes on: its disk is alive."""
    user.job(prompt=f"Wait. {scenario('sleep', seconds=600)}")
    user.cli("up", "job", "--detach")
    first = until(lambda: (now := user.outputs("job"))["activity"] and now)
    meta = json.loads((user.run_dir(first["run_id"]) / ".meta.json").read_text())
    for pid in (meta["supervisor"], meta["pid"]):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(meta["supervisor"]) and not alive(meta["pid"]))
    assert until(lambda: (now := user.outputs("job"))["status"] == "lost" and now)

    user.cli("resume", "job", "--prompt", f"Say it. {scenario('text', text='I am back.')}")

    last = _sums(user, attempts=2)
    assert (last["status"], last["result"]) == ("succeeded", "I am back.")


def test_a_finished_run_is_told_more_and_more(user: User, tmp_path: Path) -> None:
    """A run that has succeeded can be told more, any number of times, from a file too; each answer is the result."""
    hostile = "$(touch hacked) \"'` --help\n-x \N{PILE OF POO}"
    file = tmp_path / "more.md"
    with MessagesApi(keep_bodies=True) as api:
        user.job(prompt=scenario("text", text="One."))
        user.cli("up", "job", ANTHROPIC_BASE_URL=api.url)
        assert _sums(user, attempts=1, api=api)["result"] == "One."
        for attempt, word in enumerate(("Two.", "Three."), 2):
            file.write_text(f"{hostile} {scenario('text', text=word)}")
            argv = ("resume", "job", "--prompt-file", str(file), "--json")
            said = json.loads(user.cli(*argv, ANTHROPIC_BASE_URL=api.url).stdout)
            assert (said["status"], said["result"], said["attempts"]) == ("succeeded", word, attempt)
            assert hostile in _last_text(api)
        assert _sums(user, attempts=3, api=api)["num_turns"] == 3
    assert not list(user.home.rglob("hacked"))


def test_in_a_folder_of_the_executors_own(user: User, tmp_path: Path) -> None:
    """A run that works in a folder of its executor's, of which nothing is saved, goes on there."""
    user.job(prompt=scenario("text", text="One."), workdir=str(tmp_path))
    user.cli("up", "job")
    user.cli("resume", "job", "--prompt", scenario("bash", command="echo here >>it"))
    assert _sums(user, attempts=2)["status"] == "succeeded"
    assert (tmp_path / "it").read_text() == "here\n"


def test_what_can_not_go_on_says_so(user: User) -> None:
    """A command, a run that goes on, one whose task has changed or whose target is gone: said, and left as it was."""
    user.job("command", command="true")
    user.cli("up", "command")
    assert "it is a command" in user.cli("resume", "command", code=2).stderr

    user.job(prompt=scenario("gate", name="open"))
    user.cli("up", "job", "--detach")
    assert "is still" in user.cli("resume", "job", code=2).stderr
    user.api.open_gate("open")
    until(lambda: user.outputs("job")["status"] == "succeeded")
    before = user.outputs("job")

    user.job(prompt=scenario("text", text="Another."))
    assert "has changed since" in user.cli("resume", "job", code=2).stderr
    (user.project / "tasks" / "job.yaml").unlink()
    assert "is not there" in user.cli("resume", "job", code=2).stderr
    assert "empty" in user.cli("resume", "job", "--prompt", " ", code=2).stderr
    assert "two things" in user.cli("resume", "job", "--prompt", "x", "--prompt-file", "-", code=2).stderr
    assert "no run of a task" in user.cli("resume", "nobody", code=4).stderr
    assert user.outputs("job") == before

    user.job(prompt=scenario("gate", name="open"))
    user.cli("destroy", "job", "--yes")
    assert "target is gone" in user.cli("resume", "job", code=2).stderr


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["staged", "recorded", "begun"])
def test_a_resume_that_is_killed_is_repeated(user: User, tmp_path: Path, moment: str) -> None:
    """`resume` killed -9 at any moment leaves the run as it was or going on; once more it goes on, once."""
    user.job(prompt=scenario("text", text="One."))
    user.cli("up", "job")
    argv = ("resume", "job", "--prompt", scenario("wait_for_file", file="go"), "--detach")
    process = user.start(*argv, into=tmp_path / "said")
    run_id = user.outputs("job")["run_id"]
    record, run = user.record_dir(run_id) / "record.json", user.run_dir(run_id)
    seen: Callable[[], bool] = {
        "staged": lambda: bool(list(run.parent.glob(".staging-*"))),
        "recorded": lambda: len(json.loads(record.read_text())["earlier"]) == 1,
        "begun": lambda: json.loads((run / ".meta.json").read_text())["attempt"] == 2,
    }[moment]
    until(lambda: seen() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    again = user.cli(*argv, code=None)

    assert again.returncode == 0 or "is still" in again.stderr
    (run / "workspace" / "go").touch()
    until(lambda: user.outputs("job")["status"] == "succeeded")
    assert _sums(user, attempts=2)["attempts"] == 2


def test_in_the_queue(user: User) -> None:
    """A task of the queue that is resumed waits for its executor's room, and holds it until it has ended again."""
    local_executors(user, one=1)
    user.job(prompt=scenario("text", text="One."), executor="one")
    user.job("other", command=f"until test -e {user.home}/go; do sleep 0.05; done", executor="one")
    with working(user):
        user.cli("dispatch", "job")
        until(lambda: state(user, "job") == "succeeded")
        user.cli("dispatch", "other")
        until(lambda: state(user, "other") == "running")

        user.cli("resume", "job", "--prompt", scenario("text", text="Two."), "--detach")

        assert state(user, "job") == "queued"
        assert "one" in user.cli("why", "job").stdout
        # What waits can be given up: what the run was stands.
        user.cli("kill", "job")
        assert state(user, "job") == "succeeded"
        user.cli("resume", "job", "--prompt", scenario("text", text="Two."), "--detach")
        (user.home / "go").touch()
        until(lambda: state(user, "job") == "succeeded" and user.outputs("job")["attempts"] == 2)
        assert _sums(user, attempts=2)["result"] == "Two."
        user.cli("resume", "job", "--prompt", scenario("text", text="Three."))
        assert _sums(user, attempts=3)["result"] == "Three."
        assert "it is a command" in user.cli("resume", "other", code=2).stderr
        user.job(prompt=scenario("text", text="Another."), executor="one")
        assert "has changed since" in user.cli("resume", "job", code=2).stderr
        assert _sums(user, attempts=3)["status"] == "succeeded"
        assert state(user, "job") == "succeeded"


@pytest.mark.slow
def test_in_a_container_that_was_restarted(container_user: User) -> None:
    """A run in a container whose machine has restarted is lost, and goes on in what its volume has kept."""
    user = container_user
    user.job(prompt=f"Wait. {scenario('sleep', seconds=600)}", executor="box")
    user.cli("up", "job", "--detach")
    until(lambda: user.outputs("job")["activity"])
    name = subprocess.check_output(
        ["docker", "ps", "-q", "--filter", f"label=coding-agent.run={user.outputs('job')['run_id']}"], text=True
    ).strip()
    subprocess.run(["docker", "restart", "-t", "0", name], check=True, capture_output=True)
    until(lambda: user.outputs("job")["status"] == "lost")

    user.cli("resume", "job", "--prompt", scenario("text", text="I am back."))

    last = _sums(user, attempts=2)
    assert (last["status"], last["result"]) == ("succeeded", "I am back.")


@pytest.mark.slow
def test_on_a_host(crib: User, ssh_host: SshHost, claude_program: Path) -> None:
    """A run on a host that one logs in to goes on there, over a connection of its own, and `destroy` leaves nothing."""
    crib.executors(ssh_host.executor(claude_path=ssh_host.put_program(claude_program)))
    crib.job(prompt=f"Wait. {scenario('sleep', seconds=600)}", executor="crib", repo=".")
    crib.commit_all()
    crib.cli("up", "job", "--detach")
    until(lambda: crib.outputs("job")["activity"])
    crib.cli("kill", "job")

    crib.cli("resume", "job", "--prompt", f"Edit. {EDIT}")

    last = _sums(crib, attempts=2)
    assert (last["status"], last["branch"]) == ("succeeded", "coding-agent/job")
    assert crib.git("show", "coding-agent/job:note.txt") == "the second line\n"
    crib.cli("destroy", "job")
    assert ssh_host.run("bash", "-c", f"ls -A {ssh_host.home('plain')}/.coding-agent 2>/dev/null || :").strip() == ""
