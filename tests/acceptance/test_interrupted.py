"""A kill -9 at any moment of an `up`, and another `up` after it: one run, one result, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.scenarios import scenario
from user import User

MOMENTS = (0.1, 0.4, 0.7, 1.0, 1.3, 1.7, 2.1, 2.6, 3.3, 5.0)  # seconds after the beginning of an `up` of about 4
LIMIT = 60.0  # seconds
TASK = f"""\
prompt: {scenario("calls", count=6, delay=0.2)!r}
limits:
  timeout: 2m
"""

pytestmark = [pytest.mark.slow]


def _processes() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            except OSError:
                continue


def _belongs(pid: int, home: Path) -> bool:
    try:
        return f"HOME={home}".encode() in (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _kill_engines(home: Path) -> int:
    """Kill every `pulumi` of that home; return how many there were."""
    killed = 0
    for pid, argv in _processes():
        if Path(argv[0]).name == "pulumi" and _belongs(pid, home):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed += 1
    return killed


def _plugins(home: Path) -> list[int]:
    return [
        pid
        for pid, argv in _processes()
        if any(word in ("coding_agent.provider", "coding_agent.plugin") for word in argv) and _belongs(pid, home)
    ]


def _others(pids: list[int]) -> list[int]:
    """Leave out Pulumi's own language host: orphaned, it looks for its engine every five minutes and then ends."""
    return [pid for pid in pids if not any("pulumi-language-python" in argv[0] for p, argv in _processes() if p == pid)]


def _wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, f"{what} within {LIMIT:g} s"
        time.sleep(0.05)


def _assert_one_run(user: User, processes_with: Callable[[str], list[int]]) -> None:
    _wait_until(lambda: not _plugins(user.home), "the plugin ends with its engine")
    again = user.cli("up", "job")
    assert "Traceback" not in again.stdout + again.stderr
    outputs = user.outputs("job")
    assert outputs["status"] == "succeeded"
    assert len(user.api.sessions()) == 1
    assert len(list(user.record_dir("x").parent.iterdir())) == 1
    user.cli("destroy", "job", "--yes")
    assert not (user.home / ".coding-agent").exists()
    _wait_until(lambda: not _others(processes_with(str(user.home))), "no process is left")


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_command_line_leaves_one_run(
    user: User, moment: float, processes_with: Callable[[str], list[int]]
) -> None:
    """After a kill -9 of `coding-agent` at any moment, `up` again ends with one session and nothing left."""
    user.task("job", TASK)
    process = user.start("up", "job")
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=LIMIT)
    assert process.stdout is not None
    process.stdout.close()
    # The engine ends by itself once its program is gone; a lock it may leave is that of a dead owner.
    _assert_one_run(user, processes_with)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_engine_leaves_one_run(user: User, moment: float, processes_with: Callable[[str], list[int]]) -> None:
    """After a kill -9 of `pulumi` at any moment of a bare `pulumi up`, `up` again ends with one session."""
    user.task("job", TASK)
    environment = {**user.environment, **user.engine_environment()}
    subprocess.run(
        ["pulumi", "stack", "init", "job", "--no-select"],
        cwd=user.project,
        env=environment,
        check=True,
        capture_output=True,
        timeout=LIMIT,
    )
    process = subprocess.Popen(
        ["pulumi", "up", "--yes", "--skip-preview", "--stack", "job"],
        cwd=user.project,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        assert _kill_engines(user.home) >= 1
        process.wait(timeout=LIMIT)
    _assert_one_run(user, processes_with)
