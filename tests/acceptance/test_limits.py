"""Every limit of a run: it ends with the reason named, and what the agent had done is saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fakes.scenarios import scenario
from user import User

# Claude Code is not told: only our own count is left.
OWN_COUNT_ONLY: dict[str, Any] = {"CODING_AGENT_TEST_NO_MAX_TURNS_FLAG": "1"}


def _task(user: User, **fields: Any) -> None:
    user.task("job", json.dumps(fields))


def _limits(**own: Any) -> dict[str, Any]:
    return {"grace": "1s", "linger": "2s", **own}


def _ended(user: User, *, code: int = 1, **environment: str) -> dict[str, Any]:
    """Run the task to its end; `up` says how it went in its exit code, its last lines and the outputs alike."""
    shown = user.cli("up", "job", code=code, **environment).stdout
    outputs = user.outputs("job")
    assert outputs["status"] in shown
    assert outputs["finished_at"]
    if outputs["reason"]:
        assert outputs["reason"] in shown
    return outputs


def _how(outputs: Mapping[str, Any]) -> tuple[str, str | None]:
    return outputs["status"], outputs["reason"]


def _patch(outputs: Mapping[str, Any]) -> str:
    return Path(outputs["patch"]).read_text(errors="replace")


def _program(user: User, then: str) -> None:
    """Make the executor's agent a program that tells its version and otherwise does `then`."""
    program = user.home / "claude"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "2.1.330 (Claude Code)" && exit\n{then}\n')
    program.chmod(0o755)
    config = user.home / ".config" / "openclaw" / "coding-agent.yaml"
    config.write_text(f"executors:\n  - name: local\n    type: local\n    claude_path: {program}\n")


def test_max_turns_without_claudes_own_flag(user: User) -> None:
    """Of 500 turns 5 are made where Claude Code itself knows no limit: failed, max_turns, and the work is saved."""
    prompt = scenario("edit+loop", turns=500, delay=0.2)
    _task(user, prompt=prompt, repo=".", agent={"max_turns": 5}, limits=_limits())
    user.commit_all()

    outputs = _ended(user, **OWN_COUNT_ONLY)

    assert _how(outputs) == ("failed", "max_turns")
    assert outputs["num_turns"] == 6
    assert "the limit is 5" in outputs["detail"]
    assert len(user.api.turns()) <= 8
    # Five turns of `edit`, the last of them its commit; of the sixth nothing, or what its tool did in a moment.
    assert outputs["branch"] == "coding-agent/job"
    assert user.git("show", "coding-agent/job:note.txt") == "the second line\n"
    assert "loop.txt" not in user.git("ls-tree", "--name-only", "coding-agent/job")


def test_max_turns_saves_what_was_not_committed(user: User) -> None:
    """What the agent had changed and not committed when it came to its limit is in the patch."""
    prompt = scenario("loop", turns=500, delay=0.2)
    _task(user, prompt=prompt, repo=".", agent={"max_turns": 5}, limits=_limits())
    user.commit_all()

    outputs = _ended(user, **OWN_COUNT_ONLY)

    assert _how(outputs) == ("failed", "max_turns")
    added = [line for line in _patch(outputs).splitlines() if line.startswith("+") and line[1:].isdigit()]
    assert added[:5] == ["+1", "+2", "+3", "+4", "+5"]
    assert len(added) <= 7


def test_max_turns_by_claudes_own_flag(user: User) -> None:
    """With Claude Code's own limit, the ordinary case, the run ends after exactly so many turns, with that reason."""
    _task(user, prompt=scenario("loop", turns=500), agent={"max_turns": 3}, limits=_limits())

    outputs = _ended(user)

    assert _how(outputs) == ("failed", "max_turns")
    assert (outputs["num_turns"], outputs["exit_code"], len(user.api.turns())) == (3, 1, 3)
    assert "loop.txt" in _patch(outputs)


@pytest.mark.slow
def test_parallel_calls_and_subagents_are_not_turns(user: User) -> None:
    """Parallel tool calls are one turn and a subagent's calls none, so a limit of two is not touched."""
    _task(user, prompt=scenario("parallel", count=4), agent={"max_turns": 2}, limits=_limits())
    assert _ended(user, code=0, **OWN_COUNT_ONLY)["num_turns"] == 2

    _task(user, prompt=scenario("subagent", count=4), agent={"max_turns": 2}, limits=_limits())
    assert _ended(user, code=0, **OWN_COUNT_ONLY)["num_turns"] == 2


def test_budget(user: User) -> None:
    """An agent that has spent its budget is ended with that reason."""
    _task(user, prompt=scenario("loop", turns=500), agent={"max_budget_usd": 0.003}, limits=_limits())

    outputs = _ended(user)

    assert _how(outputs) == ("failed", "budget")
    assert 0 < outputs["cost_usd"] < 0.02


def test_timeout(user: User) -> None:
    """An agent that exceeds the run's time is timed out in the middle of its tool call; what it committed arrives."""
    prompt = scenario("edit+sleep", seconds=600)
    # A long limit until the agent is at that call, however slow the machine is; then one that it is over already.
    _task(user, prompt=prompt, repo=".", limits=_limits(timeout="10m"))
    user.commit_all()
    user.cli("up", "job", "--detach")
    user.api.wait_for_turns(6, timeout=120)
    _task(user, prompt=prompt, repo=".", limits=_limits(timeout="2s"))

    outputs = _ended(user)

    assert _how(outputs) == ("timed_out", "timeout")
    assert len(user.api.turns()) <= 7  # the call did not end by itself; at most its death was told
    assert user.git("show", "coding-agent/job:note.txt") == "the second line\n"


def test_no_first_event(user: User) -> None:
    """An agent that hangs before its first event is ended with that reason."""
    _program(user, "echo starting >&2; exec tail -f /dev/null")
    _task(user, prompt="Do it.", limits=_limits(first_event="1s"))

    outputs = _ended(user)

    assert _how(outputs) == ("failed", "no_first_event")
    assert "first_event" not in outputs["timeline"]
    assert user.api.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("words", [scenario("idle"), scenario("hang", where="midstream")])
def test_idle(user: User, words: str) -> None:
    """An agent whose model falls silent, after a tool call or in the middle of an answer, is ended with that reason."""
    _task(user, prompt=words, limits=_limits(idle="1s"))

    assert _how(_ended(user)) == ("failed", "idle")


def test_lingering_after_the_result(user: User) -> None:
    """An agent whose process stays after its result is ended, has succeeded, and the reason says what happened."""
    _task(user, prompt=scenario("background_task"), limits=_limits(linger="1s"))

    outputs = _ended(user, code=0)

    assert _how(outputs) == ("succeeded", "lingering_after_result")
    assert outputs["result"] == "The task runs in the background."


@pytest.mark.slow
def test_a_tool_killed_for_memory(user: User) -> None:
    """A tool's child that takes too much memory is killed; the agent goes on and succeeds, and the limit shows."""
    _task(user, prompt=scenario("memory", mb=1000, hold=60), limits=_limits(memory="700MB"))

    outputs = _ended(user, code=0)

    assert _how(outputs) == ("succeeded", None)
    assert outputs["result"] == "I go on without that memory."
    assert [hit["limit"] for hit in outputs["limit_hits"]] == ["memory"]
    assert "the limit is 700 MB" in outputs["limit_hits"][0]["detail"]
    exported = json.loads(user.pulumi("stack", "output", "--json", "--stack", "job").stdout)
    assert exported["limit_hits"] == outputs["limit_hits"]


@pytest.mark.slow
def test_memory(user: User) -> None:
    """An agent that is over its memory even without its largest child is ended with that reason."""
    prompt = scenario("edit+memory", mb=800, hold=60, count=3)
    _task(user, prompt=prompt, repo=".", limits=_limits(memory="700MB"))
    user.commit_all()

    outputs = _ended(user)

    assert _how(outputs) == ("failed", "memory")
    assert "the limit is 700 MB" in outputs["detail"]
    assert outputs["branch"] == "coding-agent/job"


@pytest.mark.slow
def test_disk(user: User) -> None:
    """An agent that writes more than it may is ended with that reason; what it committed arrives."""
    _task(user, prompt=scenario("edit+disk", mb=120, hold=60), repo=".", limits=_limits(disk="100MB"))
    user.commit_all()

    outputs = _ended(user)

    assert _how(outputs) == ("failed", "disk")
    assert "the limit is 100 MB" in outputs["detail"]
    assert user.git("show", "coding-agent/job:note.txt") == "the second line\n"


@pytest.mark.slow
def test_pids(user: User) -> None:
    """A run with more processes than it may have is ended with that reason."""
    _task(user, command="for i in {1..40}; do sleep 60 & done; wait", limits=_limits(pids=20))

    outputs = _ended(user)

    assert _how(outputs) == ("failed", "pids")
    assert "the limit is 20" in outputs["detail"]


def test_setup_that_fails(user: User) -> None:
    """A setup command that fails ends the run before the agent starts, with that reason and the command's output."""
    _task(user, prompt=scenario("text"), setup=["echo fine", "echo no such tool; exit 3"], limits=_limits())

    outputs = _ended(user)

    assert _how(outputs) == ("failed", "setup_failed")
    assert "exit code 3" in outputs["detail"]
    assert "no such tool" in (user.record_dir(outputs["run_id"]) / "setup.log").read_text()
    assert user.api.requests == []


def test_setup_that_lasts(user: User) -> None:
    """Setup commands that take too long end the run, with that reason; none of their processes is left."""
    _task(user, prompt=scenario("text"), setup=["sleep 600 & sleep 600"], limits=_limits(setup="1s"))

    outputs = _ended(user)

    assert _how(outputs) == ("failed", "setup_timeout")
    assert user.api.requests == []


def test_spawn_error(user: User) -> None:
    """An agent's program that can't be executed when it comes to it is said as that."""
    _program(user, "exec /nonexistent/claude")
    _task(user, prompt="Do it.", limits=_limits())

    assert _how(_ended(user)) == ("failed", "spawn_error")


def test_commands_exit_code(user: User) -> None:
    """A command that fails has failed with its exit code, and what it wrote is shown."""
    _task(user, command="echo it went wrong; echo made > made.txt; exit 7", limits=_limits())

    outputs = _ended(user)

    assert _how(outputs) == ("failed", "exit_code")
    assert outputs["exit_code"] == 7
    assert "it went wrong" in outputs["log_tail"]
    assert "made.txt" in _patch(outputs)
