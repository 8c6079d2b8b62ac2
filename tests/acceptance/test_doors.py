"""Two doors, one stack: `coding-agent up` and a bare `pulumi up` do the same, and each knows what the other did."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from fakes.scenarios import scenario
from user import User
from waiting import until


def _agent(text: str = "Just text.") -> str:
    return json.dumps({"prompt": scenario("text", text=text)})


def _new_stack(user: User, name: str, *, select: bool = False) -> None:
    user.pulumi("stack", "init", name, *([] if select else ["--no-select"]), "--non-interactive")


def _bare_up(user: User, name: str, *, code: int = 0) -> str:
    done = user.pulumi("up", "--yes", "--skip-preview", "--non-interactive", "--stack", name, code=code)
    shown = done.stdout + done.stderr
    assert "Traceback" not in shown, shown
    return shown


def _bare_changes(user: User, name: str) -> dict[str, int]:
    said = json.loads(user.pulumi("preview", "--json", "--non-interactive", "--stack", name).stdout)
    return {kind: count for kind, count in said["changeSummary"].items() if kind != "same"}


def _our_changes(user: User, name: str) -> dict[str, int]:
    said = json.loads(user.cli("preview", name, "--json").stdout)
    return {kind: count for kind, count in said["changes"].items() if kind != "same"}


def _exported(user: User, name: str) -> dict[str, Any]:
    outputs: dict[str, Any] = json.loads(user.pulumi("stack", "output", "--json", "--stack", name).stdout)
    return outputs


def _stacks(user: User) -> dict[str, bool]:
    """Return the project's stacks, and of each whether it is the one that the user selected."""
    listed = json.loads(user.pulumi("stack", "ls", "--json").stdout)
    return {each["name"]: each["current"] for each in listed}


def test_both_doors_make_the_same_stack(user: User) -> None:
    """After an update through either door the other's preview is empty and its update runs nothing again.

    The stack that the user had selected is selected still.
    """
    user.task("ours", _agent())
    user.task("bare", _agent())
    _new_stack(user, "chosen", select=True)
    _new_stack(user, "bare")

    user.cli("up", "ours")
    _bare_up(user, "bare")

    assert _bare_changes(user, "ours") == {}
    assert _our_changes(user, "bare") == {}
    before = {name: _exported(user, name) for name in ("ours", "bare")}
    _bare_up(user, "ours")
    user.cli("up", "bare")
    assert {name: _exported(user, name) for name in ("ours", "bare")} == before
    assert [each["status"] for each in before.values()] == ["succeeded", "succeeded"]
    assert len(user.api.sessions()) == 2
    assert _stacks(user) == {"ours": False, "bare": False, "chosen": True}
    user.cli("destroy", "ours", "--yes")
    assert _stacks(user) == {"bare": False, "chosen": True}


@pytest.mark.slow
def test_each_door_destroys_what_the_other_made(user: User) -> None:
    """A stack made through one door is destroyed through the other, and its run is gone from the executor."""
    user.task("ours", "command: echo ours\n")
    user.task("bare", "command: echo bare\n")
    _new_stack(user, "bare")
    user.cli("up", "ours")
    _bare_up(user, "bare")
    runs = [user.run_dir(_exported(user, name)["run_id"]) for name in ("ours", "bare")]
    assert [run.is_dir() for run in runs] == [True, True]

    user.pulumi("destroy", "--yes", "--remove", "--non-interactive", "--stack", "ours")
    user.cli("destroy", "bare", "--yes")

    assert [run.exists() for run in runs] == [False, False]
    assert _stacks(user) == {}


@pytest.mark.slow
def test_a_task_of_another_name_than_its_file_is_one_stack(user: User) -> None:
    """A task whose name is not its file's, named from another folder by its file, is the same stack for both doors."""
    file = user.task("file", json.dumps({"name": "other", "command": "echo done"}))

    user.run("bash", "-c", 'cd / && exec coding-agent up "$0"', str(file))

    assert _bare_changes(user, "other") == {}
    _bare_up(user, "other")
    assert _our_changes(user, str(file)) == {}
    assert _exported(user, "other")["log_tail"] == "done\n"
    assert _stacks(user) == {"other": False}


def test_a_bare_up_of_a_failed_run_fails_with_its_outputs_readable(user: User) -> None:
    """A bare `pulumi up` whose run failed exits non-zero, says why without a traceback, and exports the outputs.

    So does the next one, which runs nothing again.
    """
    user.task("job", json.dumps({"prompt": scenario("calls+error", count=1, status=400, message="the API's words")}))
    _new_stack(user, "job")

    for _ in range(2):
        shown = _bare_up(user, "job", code=1)

        assert "400 the API's words" in shown
        outputs = _exported(user, "job")
        assert (outputs["status"], outputs["reason"], outputs["exit_code"]) == ("failed", "api_error", 1)
        assert outputs["activity"] == ["Bash echo step 1"]
        assert "400 the API's words" in outputs["detail"]
    assert len(user.api.sessions()) == 1


def test_a_bare_up_shows_what_the_agent_does(user: User) -> None:
    """A bare `pulumi up` shows the agent's calls, turn by turn, while it waits for the run's end."""
    user.task("job", json.dumps({"prompt": scenario("calls", count=2)}))
    _new_stack(user, "job")

    shown = _bare_up(user, "job")

    assert [text for text in ("turn 1: Bash echo step 1", "turn 2: Bash echo step 2") if text not in shown] == []


@pytest.mark.slow
def test_a_later_bare_up_shows_the_state_of_that_moment(user: User) -> None:
    """A bare `pulumi up` of a task that is not waited for shows the run as it is then, as does each later one."""
    user.task("job", json.dumps({"prompt": scenario("gate"), "wait": False}))
    _new_stack(user, "job")

    _bare_up(user, "job")
    first = _exported(user, "job")
    user.api.wait_for_turns(2)
    again = _bare_up(user, "job")
    second = _exported(user, "job")
    user.api.open_gate()
    until(lambda: user.outputs("job")["status"] == "succeeded")
    ended = _bare_up(user, "job")
    third = _exported(user, "job")

    assert first["status"] in ("starting", "running")
    assert (second["status"], second["activity"]) == ("running", ["Bash echo at the gate"])
    assert "Bash echo at the gate" in again
    assert (third["status"], third["result"], third["num_turns"]) == ("succeeded", "Through.", 2)
    assert re.search(r'~ status +: "running" => "succeeded"', ended)
    assert first["run_id"] == second["run_id"] == third["run_id"]
    assert len(user.api.sessions()) == 1
    assert _bare_changes(user, "job") == {}


@pytest.mark.parametrize("broken", ["promt: hello\n", "prompt: [\n"])
def test_a_bare_up_of_a_broken_task_says_so_without_a_traceback(user: User, broken: str) -> None:
    """A bare `pulumi up` of a task file that is invalid fails with its file, line and column, and no traceback."""
    user.task("job", broken)
    _new_stack(user, "job")

    shown = _bare_up(user, "job", code=1)

    assert re.search(r"error: .*tasks/job\.yaml:\d+:\d+: ", shown)
    assert user.api.requests == []
