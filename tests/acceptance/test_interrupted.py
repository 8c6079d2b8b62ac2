"""A kill -9 at any moment of an `up`, and another `up` after it: one run, one result, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.messages_api import MessagesApi
from fakes.scenarios import scenario
from processes import arguments_of, kill_engines, processes_with_text
from user import User, make_home, make_user
from waiting import until

# From before anything has started to after the end, in parts of the time that an `up` takes on this machine; by turns
# through either door. At which step it is killed, by name, for either door: the table of faults.
MOMENTS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.5)
LIMIT = 120.0  # seconds
TASK = f"""\
prompt: {scenario("calls", count=6, delay=0.2)!r}
limits:
  timeout: 2m
"""

pytestmark = [pytest.mark.slow]


def _plugins(home: Path) -> list[int]:
    return [pid for pid in processes_with_text(f"HOME={home}") if _is_plugin(arguments_of(pid))]


def _is_plugin(argv: list[str]) -> bool:
    return any(word == "coding_agent.provider" or word.endswith("/pulumi-resource-coding-agent") for word in argv)


def _others(pids: list[int]) -> list[int]:
    """Leave out Pulumi's own language host: orphaned, it looks for its engine every five minutes and then ends."""
    return [pid for pid in pids if not any("pulumi-language-python" in word for word in arguments_of(pid)[:1])]


def _assert_one_run(user: User, processes_with: Callable[[str], list[int]]) -> None:
    until(lambda: not _plugins(user.home))
    again = user.cli("up", "job")
    assert "Traceback" not in again.stdout + again.stderr
    outputs = user.outputs("job")
    assert outputs["status"] == "succeeded"
    assert len(user.api.sessions()) == 1
    assert len(list(user.record_dir("x").parent.iterdir())) == 1
    user.cli("destroy", "job", "--yes")
    assert not (user.home / ".coding-agent").exists()
    until(lambda: not _others(processes_with(str(user.home))))


def _new_stack(user: User) -> None:
    user.pulumi("stack", "init", "job", "--no-select")


def _start_bare(user: User) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["pulumi", "up", "--yes", "--skip-preview", "--stack", "job"],
        cwd=user.project,
        env={**user.environment, **user.engine_environment()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, claude_program: Path, engine_folder: Path) -> dict[str, float]:
    """Return how many seconds an undisturbed `up` takes, through each door."""
    took = {}
    for door in ("coding-agent", "pulumi"):
        with pytest.MonkeyPatch.context() as patch, MessagesApi() as api:
            folder = tmp_path_factory.mktemp(door)
            user = make_user(make_home(folder / "home", patch), folder / "project", api, claude_program, engine_folder)
            user.task("job", TASK)
            if door == "pulumi":
                _new_stack(user)
            process = _start_bare(user) if door == "pulumi" else user.start("up", "job")
            begun = time.monotonic()
            with process:
                assert process.wait(timeout=LIMIT) == 0
            took[door] = time.monotonic() - begun
    return took


@pytest.mark.parametrize("moment", MOMENTS[::2])
def test_killed_command_line_leaves_one_run(
    user: User, lasting: dict[str, float], moment: float, processes_with: Callable[[str], list[int]]
) -> None:
    """After a kill -9 of `coding-agent` at any moment, `up` again ends with one session and nothing left."""
    user.task("job", TASK)
    process = user.start("up", "job")
    try:
        process.wait(timeout=moment * lasting["coding-agent"])
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=LIMIT)
    assert process.stdout is not None
    process.stdout.close()
    # The engine ends by itself once its program is gone; a lock it may leave is that of a dead owner.
    _assert_one_run(user, processes_with)


@pytest.mark.parametrize("moment", MOMENTS[1::2])
def test_killed_engine_leaves_one_run(
    user: User, lasting: dict[str, float], moment: float, processes_with: Callable[[str], list[int]]
) -> None:
    """After a kill -9 of `pulumi` at any moment of a bare `pulumi up`, `up` again ends with one session."""
    user.task("job", TASK)
    _new_stack(user)
    process = _start_bare(user)
    try:
        process.wait(timeout=moment * lasting["pulumi"])
    except subprocess.TimeoutExpired:
        assert kill_engines(user.home) >= 1
        process.wait(timeout=LIMIT)
    _assert_one_run(user, processes_with)
