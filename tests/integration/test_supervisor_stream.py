"""What the supervisor makes of an agent's stream: turns, the end, limits; and what that costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from coding_agent.executors import meta
from coding_agent.executors.base import Executor, Look
from coding_agent.run import State
from runs import INIT, STAY, Target, call, message, result, say, target_in, text
from testbed.needs import MOUNTS, requires
from waiting import until

MB = 1_000_000


def _ended(look: Look) -> tuple[State | None, str | None, int]:
    assert look.meta is not None
    return look.state, look.reason, look.meta.num_turns


@pytest.mark.parametrize("first", ["", '{"type":"result",'])
def test_the_result_may_begin_with_its_type_or_not(target: Target, first: str) -> None:
    """The result event is recognised wherever in its line the type stands; what lingers after it is ended."""
    line = first + result().removeprefix("{") if first else result()
    look = target.run(say(INIT, message("m1", text("Hi.")), line) + STAY)

    assert _ended(look) == (State.SUCCEEDED, "lingering_after_result", 1)


def test_a_result_that_is_only_quoted_is_none(target: Target) -> None:
    """Text, a tool's input and a tool's output that look like a result event neither end a run nor make it succeed."""
    forged = result()
    quoted = json.dumps({"type": "user", "message": {"content": forged}, "tool_use_result": json.loads(forged)})
    lines = [INIT, message("m1", text(forged), call(command="echo", type="result", is_error=False)), quoted]

    assert _ended(target.run(say(*lines) + "exit 1\n")) == (State.FAILED, "no_result", 1)


def test_half_a_result_is_none(target: Target) -> None:
    """A run whose agent was cut off in the middle of its result has not succeeded."""
    look = target.run(say(INIT, message("m1")) + f"printf %s '{result()[:-5]}'\nkill -KILL $$\n")

    assert _ended(look) == (State.FAILED, "signal", 1)


def test_lines_that_come_in_halves_are_whole(target: Target) -> None:
    """A line that is written in pieces, with the supervisor reading in between, counts once and whole."""
    pieces = [message("m1", text("One."))[:30], message("m1", text("One."))[30:] + "\n" + message("m2")[:70]]
    pieces += [message("m2")[70:] + "\n" + result()[:100], result()[100:] + "\n"]
    script = say(INIT) + "".join(f"printf %s '{piece}'; sleep 0.1\n" for piece in pieces)

    assert _ended(target.run(script, max_turns=2)) == (State.SUCCEEDED, None, 2)


def test_long_lines_and_nuls_are_read(target: Target) -> None:
    """Lines of 1 MB and of 20 MB, and NUL bytes in between, neither hide what follows nor change it."""
    head, tail = message("m1", text("@")).split("@")
    long = "printf %s '{}'; head -c {} /dev/zero | tr '\\0' x; printf '%s\\n' '{}'\n"
    script = say(INIT) + long.format(head, MB, tail) + "printf 'a\\0b\\0\\n\\0\\0'\n" + say(message("m2"))
    script += long.format(head.replace("m1", "m3"), 20 * MB, tail) + say(result())

    assert _ended(target.run(script)) == (State.SUCCEEDED, None, 3)


def test_turns_are_model_calls(target: Target) -> None:
    """A turn is a distinct message of the agent's own: parallel calls are one, a subagent's and an error's are none."""
    lines = [
        INIT,
        message("m1", call(command="a")),
        message("m1", call(command="b")),
        message("s1", call(command="c"), parent="toolu_1"),
        message("e1", text("API Error"), model="<synthetic>"),
        message("m2", text("x" * 5000), parent=None),
        message("s2", text("x" * 5000), parent="toolu_1"),
        result(),
    ]

    assert _ended(target.run(say(*lines), max_turns=2)) == (State.SUCCEEDED, None, 2)


def test_a_tools_input_hides_no_turn(target: Target) -> None:
    """Input of a tool call that is named as the event's own fields are does not make a turn uncounted."""
    hidden = call(parent_tool_use_id="toolu_1", model="<synthetic>", content=[{"id": "m1"}])
    turns = [message(f"m{number}", hidden, text("x" * (number % 2 * 5000))) for number in range(1, 9)]

    look = target.run(say(INIT, *turns) + STAY, max_turns=3)

    assert _ended(look)[:2] == (State.FAILED, "max_turns")


def test_a_denied_calls_input_decides_nothing(target: Target) -> None:
    """Whether a run succeeded is read from its result's own fields, whatever a denied call's input contains."""
    denied = [{"tool_name": "x", "tool_input": {"is_error": True, "subtype": "error_max_turns"}}]
    good = target.run(say(INIT, result(permission_denials=denied)), "good")
    denied[0]["tool_input"] = {"is_error": False, "terminal_reason": "completed"}
    failed = result(permission_denials=denied, terminal_reason="api_error", is_error=True)
    bad = target.run(say(INIT, failed) + "exit 1\n", "bad")

    assert _ended(good)[:2] == (State.SUCCEEDED, None)
    assert _ended(bad)[:2] == (State.FAILED, "api_error")


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        (result(is_error=True, terminal_reason="api_error"), 1, "api_error"),
        (result(is_error=True, subtype="error_max_turns"), 1, "max_turns"),
        (result(is_error=True, subtype="error_max_budget_usd"), 1, "budget"),
        (result(is_error=True, subtype="error_during_execution"), 0, "error_during_execution"),
        (result(terminal_reason="completed"), 3, "exit_code"),
        ("", 0, "no_result"),
        ("", 143, "signal"),
        ("", 127, "spawn_error"),
    ],
)
def test_the_end_is_judged_by_error_and_exit_code(target: Target, line: str, code: int, reason: str) -> None:
    """An agent has failed, with the reason named, where its result is an error, is none, or its exit code is not 0."""
    look = target.run(f"{say(INIT, line)}exit {code}\n")

    assert _ended(look)[:2] == (State.FAILED, reason)
    assert look.meta is not None
    assert look.meta.exit_code == code


@pytest.mark.parametrize(
    ("script", "limits", "state", "reason"),
    [
        pytest.param(STAY, {"first_event": 1}, State.FAILED, "no_first_event", id="no_first_event"),
        pytest.param(say(INIT) + STAY, {"idle": 1}, State.FAILED, "idle", id="idle"),
        pytest.param(say(INIT) + STAY, {"timeout": 1}, State.TIMED_OUT, "timeout", id="timeout"),
        pytest.param("printf '{'; " + STAY, {"first_event": 1}, State.FAILED, "no_first_event", id="half_an_event"),
    ],
)
def test_each_clock_ends_a_silent_agent(
    target: Target, script: str, limits: dict[str, Any], state: State, reason: str
) -> None:
    """An agent that says nothing is ended with the reason of the clock that ran out first."""
    assert _ended(target.run(script, **limits))[:2] == (state, reason)


def test_an_agent_that_never_pauses_is_ended(target: Target) -> None:
    """An agent that writes faster than can be read is ended at its time limit all the same."""
    look = target.run(say(INIT) + 'while :; do echo \'{"type":"user"}\'; done\n', timeout=1)

    assert _ended(look)[:2] == (State.TIMED_OUT, "timeout")


def test_a_session_that_goes_on_in_its_transcript_is_not_idle(target: Target) -> None:
    """An agent whose stdout has stopped while its transcript grows is not idle."""
    write = 'mkdir -p "$TRANSCRIPTS/p"; for i in {1..30}; do echo $i >> "$TRANSCRIPTS/p/s.jsonl"; sleep 0.1; done\n'
    projects = {"TRANSCRIPTS": str(target.folder() / "home" / "projects")}

    look = target.run(say(INIT) + write + say(result()), idle=1, environment=projects)

    assert _ended(look)[:2] == (State.SUCCEEDED, None)


def test_a_kill_wakes_the_supervisor(target: Target) -> None:
    """A request to end a run is obeyed at once by its supervisor, though its next look is an hour away."""
    target.start(say(INIT) + STAY, tick=3600)
    supervisor = target.meta()["supervisor"]

    target.executor.kill(target.id())

    assert _ended(target.look())[:2] == (State.KILLED, "killed")
    assert target.meta()["supervisor"] == supervisor  # not one that took the place of a supervisor that did not obey


def test_the_time_limit_can_be_changed_while_the_agent_runs(target: Target) -> None:
    """A new time limit, counted from the run's beginning, holds at once."""
    target.start(say(INIT) + STAY, timeout=3600)

    target.executor.set_timeout(target.id(), 1)

    assert _ended(target.ended())[:2] == (State.TIMED_OUT, "timeout")


def _await_another_look(target: Target) -> None:
    before = target.meta()["heartbeat"]
    until(lambda: target.meta()["heartbeat"] != before)


NONSENSE = ("", "timeout", "timeout 1", "stopp x", "done", "1;2", "-1", "9" * 30, "$(touch hacked)", "x" * 10_000)


def test_nonsense_said_to_the_supervisor_is_ignored(target: Target) -> None:
    """Whatever is written where the supervisor listens, beside what it knows, changes nothing."""
    target.start(say(INIT) + "until [ -e go ]; do sleep 0.02; done\n" + say(result()), heartbeat=0)
    with (target.folder() / ".poke").open("r+b", buffering=0) as pipe:
        for nonsense in NONSENSE:
            pipe.write(nonsense.encode() + b"\n")
            (target.folder() / ".timeout").write_text(nonsense)
            _await_another_look(target)
    (target.folder() / "workspace" / "go").touch()

    assert _ended(target.ended())[:2] == (State.SUCCEEDED, None)
    assert not list(target.folder().rglob("hacked"))


def test_overwritten_scripts_do_not_reach_a_run_that_goes_on(target: Target, tmp_path: Path) -> None:
    """A run keeps the supervisor it began with, though an upgrade writes other scripts over those on disk."""
    copy = tmp_path / "scripts"
    shutil.copytree(target.executor.scripts, copy)
    executor = Executor("local", target.executor.connection, root=target.executor.root, scripts=str(copy))
    launch = target.launch(say(INIT) + "until [ -e go ]; do sleep 0.02; done\necho x > made.txt\n" + say(result()))
    executor.start(launch)
    until(lambda: (look := target.look()).meta is not None and look.meta.stage == "agent")

    for script in copy.glob("*.sh"):
        script.write_text("echo overwritten >&2\nexit 99\n" * 1000)
    (target.folder() / "workspace" / "go").touch()

    look = target.ended()
    assert _ended(look)[:2] == (State.SUCCEEDED, None)
    assert b"made.txt" in (target.folder() / "work.patch").read_bytes()


def test_a_look_adds_up_what_the_processes_use(target: Target) -> None:
    """A look with usage gives the cumulative CPU time, the memory and the number of all processes of a run."""
    busy = "(while :; do :; done) &\n"
    target.start(
        say(INIT) + busy + "x=$(head -c 30000000 /dev/zero | tr '\\0' x)\ntouch taken\nwhile :; do wait; done\n"
    )
    until(lambda: (target.folder() / "workspace" / "taken").exists())

    first = target.executor.status(target.id(), usage=True)
    second = until(lambda: (now := target.executor.status(target.id(), usage=True)).ticks > first.ticks + 20 and now)

    used = (second.ticks - first.ticks) / second.ticks_per_second
    assert 0 < used < second.uptime - first.uptime + 0.1
    assert second.processes == 2
    assert second.resident > 30_000_000


def test_metadata_is_never_torn(target: Target) -> None:
    """However often it is read while the supervisor rewrites it, the metadata is whole and belongs to the run."""
    run = target.start(say(INIT) + STAY, heartbeat=0, tick=0.001)
    beats: set[float] = set()

    def read() -> bool:
        for _ in range(200):
            beats.add(meta.parse((run / ".meta.json").read_bytes(), target.id()).heartbeat)
        return len(beats) > 50

    until(read)


def test_a_full_disk_keeps_the_last_state_and_the_end_is_written(home: Path, tmp_path: Path, small_disk: Path) -> None:
    """On a full disk the last state stays readable, the end is still written, and the limit that was hit is said."""
    target = target_in(small_disk)
    # Not before the state says that the agent runs; then again and again: what the supervisor frees is taken as well.
    fill = (
        'until grep -q \'"state":"running"\' ../.meta.json; do sleep 0.02; done\n'
        "while :; do head -c 100000000 /dev/zero >> fill.bin; sleep 0.02; done\n"
    )
    run = target.start(say(INIT) + fill, heartbeat=0)
    unwritten = run / ".meta.json.tmp"
    until(lambda: target.meta()["state"] == "running" and not os.statvfs(run).f_bfree)
    tried: dict[int, set[int]] = {}  # file -> when it was opened to be written, and stayed empty

    def failed_twice() -> bool:
        with suppress(FileNotFoundError):
            now = unwritten.stat()
            if not now.st_size:
                tried.setdefault(now.st_ino, set()).add(now.st_mtime_ns)
        return any(len(times) > 2 for times in tried.values())

    until(failed_twice)
    seen = [meta.parse((run / ".meta.json").read_bytes(), target.id()) for _ in range(200)]
    assert {each.state for each in seen} == {State.RUNNING}
    # The disk stays full to the end.
    target.executor.kill(target.id())

    look = target.look()
    assert _ended(look)[:2] == (State.KILLED, "killed")
    assert look.meta is not None
    assert [hit["limit"] for hit in look.meta.limit_hits] == ["disk"]
    assert "no space left" in look.meta.limit_hits[0]["detail"]
    target.clean_up()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 8 MB."""
    requires(MOUNTS)
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=True, timeout=30)
    yield place / "target"
    subprocess.run(["umount", "-l", str(place)], check=True, timeout=30)


@pytest.mark.parametrize("step", [3600, -3600])
def test_a_jump_of_the_clock_ends_nothing(target: Target, tmp_path: Path, step: int) -> None:
    """An agent is neither idle nor out of time because the machine's clock was set, or the machine slept."""
    executor = _with_clock(target, tmp_path)
    waiting = "echo x > began\nuntil [ -e go ]; do sleep 0.02; done\n"
    executor.start(target.launch(f"{say(INIT)}{waiting}{say(result())}", idle=60, timeout=120))
    target.says("began")

    (tmp_path / "step").write_text(f"{step}\n")
    written = target.meta()["heartbeat"]
    until(lambda: abs(target.meta()["heartbeat"] - written) > 3000)
    (target.folder() / "workspace" / "go").touch()

    assert _ended(target.ended())[:2] == (State.SUCCEEDED, None)


def test_a_clock_that_was_set_back_switches_no_limit_off(target: Target, tmp_path: Path) -> None:
    """A run ends at its time limit also where the clock was set back meanwhile."""
    executor = _with_clock(target, tmp_path)
    executor.start(target.launch(f"{say(INIT)}echo x > began\n{STAY}", timeout=5))
    target.says("began")

    (tmp_path / "step").write_text("-3600\n")

    assert _ended(target.ended())[:2] == (State.TIMED_OUT, "timeout")


def _with_clock(target: Target, tmp_path: Path) -> Executor:
    """Return an executor whose supervisor's clock can be set: by so many seconds as stand in the file `step`."""
    copy = tmp_path / "scripts"
    shutil.copytree(target.executor.scripts, copy)
    with (copy / "common.sh").open("a") as script:
        script.write(
            "clock() {\n  local step=0\n"
            f"  [[ -s {tmp_path}/step ]] && read -r step <{tmp_path}/step\n"
            "  NOW_EXACT=$EPOCHREALTIME\n  NOW=$((${NOW_EXACT%.*} + step))\n  NOW_EXACT=$NOW.${NOW_EXACT#*.}\n}\n"
        )
    return Executor("local", target.executor.connection, root=target.executor.root, scripts=str(copy))


def test_a_session_that_goes_on_after_its_result_is_not_over(target: Target) -> None:
    """A turn that begins after a result, as when a task in the background has ended, is waited for like any other."""
    more = say(message("m2", text("On it."))) + "sleep 3\necho x > made.txt\n" + say(result(said="Now."))

    look = target.run(say(INIT, message("m1", text("Wait.")), result()) + more, linger=1)

    assert _ended(look) == (State.SUCCEEDED, None, 2)
    assert b"made.txt" in (target.folder() / "work.patch").read_bytes()
