"""Many tasks, few slots: the queue, and the workers that serve it, through the doors that users have."""

from __future__ import annotations

import json
import os
import signal

import pytest

from fakes.scenarios import scenario
from processes import processes_with_text
from queues import FINAL, HOLD, all_are, all_ended, entries, local_executors, most_at_once, noted, state, working
from user import User
from waiting import until

pytestmark = pytest.mark.timeout(400)


def _dispatch(user: User, *calls: str) -> list[str]:
    """Call `dispatch` with these arguments from one script; return the ids."""
    lines = "\n".join(f"print(dispatch({call}).id)" for call in calls)
    return user.run("python3", "-c", f"from coding_agent import dispatch\n{lines}").stdout.split()


def test_slots_are_never_exceeded(user: User) -> None:
    """Of tasks for any of two executors with one and two slots, served by two workers, each runs once, on no executor
    more than its slots at once."""
    local_executors(user, a=1, b=2)
    log = user.home / "log"
    with working(user), working(user, name="second"):
        work = noted(HOLD.format(user.home))
        _dispatch(user, *[f"command={work!r}, labels={{'any'}}, name='t{n}'" for n in range(7)])
        until(lambda: log.exists() and log.read_text().count("begin") == 3)
        (user.home / "go").touch()
        until(lambda: all_ended(user, 7), limit=200)
    found = entries(user)
    assert {each["state"] for each in found.values()} == {"succeeded"}
    assert {each["executor"] for each in found.values()} == {"a", "b"}
    assert log.read_text().count("begin") == 7
    assert most_at_once(log) == {"a": 1, "b": 2}


def test_the_most_urgent_goes_first(user: User) -> None:
    """With one slot the task of the highest priority goes first, then the oldest; one that is for later waits."""
    local_executors(user, a=1)
    for name in ("old", "new", "urgent", "later", "first"):
        user.job(name, command=f"echo {name} >>$LOG; {HOLD.format(user.home) if name == 'first' else 'true'}")
        _on(user, name, "a")
    with working(user):
        user.cli("dispatch", "first")
        until(lambda: state(user, "first") == "running")
        user.cli("dispatch", "later", "--not-before", "2999-01-01")
        user.cli("dispatch", "old")
        user.cli("dispatch", "new")
        user.cli("dispatch", "urgent", "--priority", "3")
        waiting = [each for each, said in entries(user).items() if said["state"] == "queued"]
        assert waiting == ["urgent", "later", "old", "new"]
        assert "a is full, 1 of 1 tasks: first" in user.cli("why", "urgent").stdout
        assert "not to begin before 2999-01-01" in user.cli("why", "later").stdout
        (user.home / "go").touch()
        until(lambda: all_are(user, "succeeded", "old", "new", "urgent"), limit=120)
        assert state(user, "later") == "queued"
        user.cli("kill", "later")
        assert state(user, "later") == "killed"
    assert (user.home / "log").read_text().split() == ["first", "urgent", "old", "new"]


def _on(user: User, name: str, executor: str) -> None:
    """Name the executor of a task."""
    file = user.project / "tasks" / f"{name}.yaml"
    file.write_text(json.dumps({**json.loads(file.read_text()), "executor": executor}))


def test_a_worker_that_is_killed_is_replaced(user: User) -> None:
    """A worker that is killed leaves its agent at work; another notices, goes on with it, and the agent ran once."""
    user.job(prompt=scenario("gate"))
    with working(user) as first:
        user.cli("dispatch", "job")
        user.api.wait_for_turns(1)
        until(lambda: state(user, "job") == "running")
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert state(user, "job") == "running"
    assert "its worker is gone" in user.cli("why", "job").stdout
    with working(user, name="second") as second:
        until(lambda: f"worker {second.pid} on" in user.cli("why", "job").stdout)
        user.api.open_gate()
        until(lambda: state(user, "job") in FINAL)
    assert state(user, "job") == "succeeded"
    assert len(user.api.prompts()) == 1


@pytest.mark.parametrize(
    "moment",
    [*(pytest.param(each, marks=pytest.mark.slow) for each in ("target", "collecting")), "starting", "destroying"],
)
def test_a_worker_is_killed_at_each_moment(user: User, moment: str) -> None:
    """Wherever in a task's life its worker is killed, another ends it as it should, and the command ran once."""
    setup = HOLD.format(user.home) if moment == "starting" else "true"
    user.job(command=f"echo once >>{user.home}/ran", setup=[setup], artifacts=["x"])
    log = user.home / "worker.log"
    signs = {
        "target": "job: taken",
        "starting": "stage: setup",
        "collecting": "job: succeeded",
        "destroying": "removed",
    }
    with working(user) as first:
        user.cli("dispatch", "job")
        if moment == "destroying":
            until(lambda: state(user, "job") == "succeeded")
            _asked_to_remove(user)
            until(lambda: processes_with_text("coding_agent.work_queue.step"), limit=20)
        else:
            until(lambda: signs[moment] in log.read_text())
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    (user.home / "go").touch()
    with working(user, name="second"):
        if moment == "destroying":
            until(lambda: not entries(user), limit=120)
        else:
            until(lambda: state(user, "job") in FINAL, limit=120)
            assert state(user, "job") == "succeeded"
    assert (user.home / "ran").read_text().split() == ["once"]
    if moment != "destroying":
        user.cli("destroy", "job")
    assert not list((user.home / ".coding-agent" / "runs").glob("*"))


def _asked_to_remove(user: User) -> None:
    """Ask for a task's removal, as another machine does, and go away."""
    code = (
        "from coding_agent.work_queue import database; from coding_agent.work_queue.queue import Queue\n"
        "with database.opened() as found:\n"
        "    queue = Queue(found); queue.end(queue.find('job').id, destroy=True)"
    )
    user.run("python3", "-c", code)


def test_a_worker_that_is_ended_leaves_the_agents(user: User) -> None:
    """SIGTERM ends a worker and no agent; where nobody serves, `dispatch` starts a worker that ends when it is idle."""
    user.job(command=HOLD.format(user.home))
    with working(user) as first:
        user.cli("dispatch", "job")
        until(lambda: state(user, "job") == "running")
        first.terminate()
        assert first.wait(timeout=60) == 0
    run_id = entries(user)["job"]["run_id"]
    assert processes_with_text(f"CODING_AGENT_RUN_ID={run_id}")
    user.job("other", command="true")
    assert "no worker lived: started one" in user.cli("dispatch", "other").stderr
    assert "no worker lived" not in user.cli("dispatch", "other").stderr
    until(lambda: state(user, "other") == "succeeded")
    (user.home / "go").touch()
    until(lambda: state(user, "job") == "succeeded")


def test_a_task_is_ended_at_each_stage(user: User) -> None:
    """`kill` ends a task that waits, one that is being started and one that runs, and nothing of it goes on."""
    local_executors(user, a=1)
    user.job("first", command=HOLD.format(user.home), executor="a")
    for name in ("queued", "provisioning", "running"):
        user.job(name, command=f"touch {user.home}/{name}-ran; sleep 600", executor="a", setup=["sleep 1"])
    with working(user):
        user.cli("dispatch", "first")
        until(lambda: state(user, "first") == "running")
        user.cli("dispatch", "queued")
        _killed(user, "queued")
        (user.home / "go").touch()
        until(lambda: state(user, "first") == "succeeded")

        user.cli("dispatch", "provisioning")
        until(lambda: state(user, "provisioning") == "provisioning")
        _killed(user, "provisioning")

        user.cli("dispatch", "running")
        until(lambda: state(user, "running") == "running" and (user.home / "running-ran").exists())
        _killed(user, "running")
    assert not (user.home / "queued-ran").exists()


def _killed(user: User, name: str) -> None:
    user.cli("kill", name)
    assert state(user, name) == "killed"
    run_id = entries(user)[name]["run_id"]
    assert run_id is None or not processes_with_text(f"CODING_AGENT_RUN_ID={run_id}")
    user.cli("destroy", name)
    assert name not in entries(user)


def test_an_executor_that_is_gone_from_the_file(user: User) -> None:
    """A task of an executor that the file has no more goes on where it runs, waits where it does not, and says why.

    One with labels that no executor carries is refused at once, with those that there are.
    """
    local_executors(user, a=1, b=1)
    user.job("never", command="true", labels=["gpu"])
    refused = user.cli("dispatch", "never", code=2).stderr
    assert "no executor carries all of gpu" in refused
    assert "any" in refused
    assert entries(user) == {}
    user.job("runs", command=HOLD.format(user.home), executor="a")
    user.job("waits", command="true", executor="a")
    with working(user):
        user.cli("dispatch", "runs", "waits")
        until(lambda: state(user, "runs") == "running")
        local_executors(user, b=1)
        until(lambda: "no worker serves an executor a; there are: b (any)" in user.cli("why", "waits").stdout)
        (user.home / "go").touch()
        until(lambda: state(user, "runs") == "succeeded")
        assert state(user, "waits") == "queued"
        local_executors(user, a=1, b=1)
        until(lambda: state(user, "waits") == "succeeded")


def test_what_failed_for_a_passing_reason_is_tried_again(user: User) -> None:
    """A run whose API fails is run again, later, as often as was said; one that ran out of turns is not."""
    user.job("again", prompt=scenario("error", status=400))
    user.job("once", prompt=scenario("loop"), agent={"max_turns": 2})
    with working(user):
        user.cli("dispatch", "again", "once", "--retries", "1")
        until(lambda: all_ended(user, 2), limit=200)
    found = entries(user)
    assert (found["again"]["state"], found["again"]["reason"], found["again"]["attempt"]) == ("failed", "api_error", 2)
    assert (found["once"]["state"], found["once"]["attempt"]) == ("failed", 1)
    assert found["once"]["reason"] == "max_turns"
