"""Ending a run: every process that can be found, its work saved, whoever of supervisor and agent is dead."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

from coding_agent.executors.base import Executor
from coding_agent.executors.connection import Completed
from coding_agent.executors.local import LocalConnection
from coding_agent.run import State
from coding_agent.supervisor import SCRIPTS
from runs import INIT, STAY, Target, alive, result, say, start_time
from testbed.needs import ROOT, requires
from waiting import until

# A name that a careless reader of /proc/PID/stat takes for the end of the name.
NAME = "$'x) S 1 1\\n(y) Z 1'"
RESPAWN = """\
again() { setsid bash respawn.sh & exit; }
trap again TERM
echo $$ > child.pid
while :; do sleep 0.05; done
"""
LONG = "tail -f /dev/null >/dev/null 2>&1 </dev/null"
# Ways to start a process, each with its pid in child.pid, and whether it still has a parent of the run's.
WAYS = {
    "background": f"{LONG} & echo $! > child.pid",
    "nohup": f"nohup {LONG} & echo $! > child.pid",
    "setsid": f"setsid bash -c 'echo $$ > child.pid; exec {LONG}' &",
    "double fork": f"( ( bash -c 'echo $$ > child.pid; exec {LONG}' & ) & )",
    "ignores TERM": f"bash -c 'trap \"\" TERM HUP INT; echo $$ > child.pid; exec {LONG}' &",
    "stopped": f"{LONG} & kill -STOP $!; echo $! > child.pid",
    "other name": f'ln -s "$(command -v tail)" {NAME}; env -i setsid ./{NAME} -f /dev/null & echo $! > child.pid',
    "without environment": f"env -i {LONG} & echo $! > child.pid",
    "all of it": f"( ( env -i setsid \"$BASH\" -c 'echo $$ > child.pid; exec {LONG}' & ) & )",
    "respawns": "bash respawn.sh &",
}
FILES = {"files/respawn.sh": (RESPAWN.encode(), 0o644)}
STARTED = "until [ -s child.pid ]; do sleep 0.02; done\n"
NOBODY = 65534


@pytest.fixture
def none_left(processes_with: Callable[[str], list[int]]) -> Callable[[Target], bool]:
    """Return whether no process of the run is left, by the marks of environment and folder."""

    def none_left(target: Target) -> bool:
        return not processes_with(f"CODING_AGENT_RUN_ID={target.id()}") and not processes_with(str(target.folder()))

    return none_left


@pytest.mark.parametrize("how", ["by itself", "kill", "cleanup"])
@pytest.mark.parametrize("way", WAYS)
def test_no_child_outlives_its_run(target: Target, way: str, how: str, none_left: Callable[[Target], bool]) -> None:
    """However a process was started, it ends with the run: when the agent ends by itself, at `kill`, at `cleanup`."""
    after = say(result()) if how == "by itself" else STAY
    target.start(f"{say(INIT)}{WAYS[way]}\n{STARTED}{after}", files=FILES)
    child = target.pid("child.pid")

    if how == "by itself":
        assert target.ended().state is State.SUCCEEDED
    elif how == "kill":
        target.executor.kill(target.id())
        assert target.look().state is State.KILLED
    else:
        target.executor.cleanup(target.id(), grace=2)
        assert not Path(target.executor.root).exists()

    assert not alive(child)
    assert none_left(target)


@pytest.mark.parametrize("how", ["kill", "cleanup"])
@pytest.mark.parametrize("way", [way for way in WAYS if way != "all of it"])
def test_no_child_outlives_a_run_whose_supervisor_was_killed(
    target: Target, way: str, how: str, none_left: Callable[[Target], bool]
) -> None:
    """After a kill -9 of its supervisor the run is reported, and `kill` and `cleanup` still end all of it."""
    run = target.start(f"{say(INIT)}echo work > made.txt\n{WAYS[way]}\n{STARTED}{STAY}", files=FILES)
    child = target.pid("child.pid")
    until(lambda: target.look().state is State.RUNNING)
    _kill_supervisor(target)
    assert (target.look().state, target.look().reason) == (State.UNRESPONSIVE, "supervisor_died")

    if how == "kill":
        target.executor.kill(target.id())
        assert target.look().state is State.KILLED
        assert b"made.txt" in (run / "work.patch").read_bytes()
    else:
        target.executor.cleanup(target.id(), grace=1)
        assert not run.exists()

    assert not alive(child)
    assert none_left(target)


def test_what_escapes_is_what_sheds_every_mark(target: Target) -> None:
    """Without its supervisor a process escapes that shed environment, session and parents, as is documented."""
    target.start(f"{say(INIT)}{WAYS['all of it']}\n{STARTED}{STAY}")
    child = target.pid("child.pid")
    _kill_supervisor(target)

    target.executor.kill(target.id())

    assert alive(child)
    os.kill(child, signal.SIGKILL)


def _kill_supervisor(target: Target) -> None:
    supervisor = target.meta()["supervisor"]
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not alive(supervisor))


def test_both_dead_is_lost_with_the_work_saved(target: Target) -> None:
    """Where supervisor and agent are both dead the run is lost, and what the agent had done is saved."""
    run = target.start(f"{say(INIT)}echo work > made.txt\necho $$ > pid\n{STAY}")
    agent = target.pid("pid")
    _kill_supervisor(target)
    os.kill(agent, signal.SIGKILL)
    look = until(lambda: (now := target.look()).state is State.LOST and now)
    assert look.reason == "supervisor_died"

    target.executor.kill(target.id(), reason="supervisor_died")

    look = target.look()
    assert (look.state, look.reason) == (State.LOST, "supervisor_died")
    assert look.meta is not None
    assert (look.meta.final, look.meta.session_id, look.meta.started_at is None) == (True, "session-1", False)
    assert b"made.txt" in (run / "work.patch").read_bytes()


@pytest.mark.parametrize("what", ["stopped", "stopped, and its agent dead"])
def test_a_supervisor_that_does_not_obey_is_replaced(target: Target, what: str) -> None:
    """A supervisor that is stopped, as the agent could do, is ended by `kill`, and the run with it."""
    run = target.start(f"{say(INIT)}echo work > made.txt\necho $$ > pid\n{STAY}")
    agent, supervisor = target.pid("pid"), target.meta()["supervisor"]
    until(lambda: target.look().state is State.RUNNING)
    os.kill(supervisor, signal.SIGSTOP)
    if "dead" in what:
        os.kill(agent, signal.SIGKILL)

    target.executor.kill(target.id(), wait=1)

    assert (target.look().state, target.look().reason) == (State.KILLED, "killed")
    assert not alive(supervisor)
    assert not alive(agent)
    assert b"made.txt" in (run / "work.patch").read_bytes()


def test_a_stopped_supervisor_is_removed_with_its_run(target: Target) -> None:
    """`cleanup` also removes a run whose supervisor is stopped."""
    target.start(f"{say(INIT)}echo $$ > pid\n{STAY}")
    agent, supervisor = target.pid("pid"), target.meta()["supervisor"]
    os.kill(supervisor, signal.SIGSTOP)

    target.executor.cleanup(target.id(), grace=1)

    assert not Path(target.executor.root).exists()
    assert not alive(agent)
    assert not alive(supervisor)


@pytest.mark.parametrize("field", ["pid", "supervisor"])
def test_a_pid_in_the_metadata_that_is_anothers_is_left_alone(target: Target, field: str) -> None:
    """Nobody else's process is ended because its pid, even with its start time, stands in a run's metadata."""
    run = target.start(f"{say(INIT)}echo $$ > pid\n{STAY}")
    agent = target.pid("pid")
    bystander = subprocess.Popen(["tail", "-f", "/dev/null"], start_new_session=True)
    try:
        until(lambda: target.look().state is State.RUNNING)
        _kill_supervisor(target)
        forged = {**target.meta(), field: bystander.pid, f"{field}_start": int(start_time(bystander.pid))}
        (run / ".meta.json").write_text(json.dumps(forged, separators=(",", ":")))

        target.executor.kill(target.id())
        target.executor.cleanup(target.id(), grace=1)

        assert alive(bystander.pid)
        assert not alive(agent)
    finally:
        bystander.kill()
        bystander.wait()


def test_an_end_that_the_agent_wrote_is_none(target: Target) -> None:
    """An end in the metadata does not count while its supervisor lives, and does not keep `kill` from its work."""
    wait = "until grep -q '\"first_event_at\":[0-9]' ../.meta.json; do sleep 0.02; done\n"
    forge = 'sed -e \'s/"state":"[a-z]*"/"state":"succeeded"/; s/"final":false/"final":true/\' ../.meta.json > x\n'
    target.start(f"{say(INIT)}echo $$ > pid\n{wait}{forge}mv x ../.meta.json; touch forged\n{STAY}", heartbeat=3600)
    agent = target.pid("pid")
    until(lambda: (target.folder() / "workspace" / "forged").exists())
    assert target.meta()["final"] is True
    assert target.look().state is State.RUNNING

    target.executor.kill(target.id())

    assert target.look().state is State.KILLED
    assert not alive(agent)


def test_a_kill_in_the_middle_of_setup_ends_it(target: Target, none_left: Callable[[Target], bool]) -> None:
    """A setup command that runs is ended by `kill`, with what it left in the background; the agent never starts."""
    setup = f"{WAYS['setsid']}\n{STARTED}{STAY}".encode()
    target.start("touch started", files={"setup/00.sh": (setup, 0o600)})
    child = target.pid("child.pid")

    target.executor.kill(target.id())

    assert target.look().state is State.KILLED
    assert not alive(child)
    assert none_left(target)
    assert not (target.folder() / "workspace" / "started").exists()


def test_a_kill_does_not_wait_for_a_checkout(target: Target, none_left: Callable[[Target], bool]) -> None:
    """A run whose repository's server never answers can be killed at once, and its time limit holds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"git://127.0.0.1:{silent.getsockname()[1]}/x.git"
        target.start(say(INIT), "slow", repo=address, repo_ref="HEAD", timeout=1)
        target.start(say(INIT), repo=address, repo_ref="HEAD")
        until(lambda: (look := target.look()).meta is not None and look.meta.stage == "workspace")

        target.executor.kill(target.id(), wait=10)

        assert target.look().state is State.KILLED
        assert none_left(target)
        assert target.ended("slow").state is State.TIMED_OUT


class _AsNobody(LocalConnection):
    """This machine as a user who may not signal another's processes."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | BinaryIO | None = None,
        timeout: float,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command as that user."""
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        return super().run([*user, *argv], stdin=stdin, timeout=timeout, env=env)


def test_what_cannot_be_ended_is_said(home: Path) -> None:
    """A process that became another user's, and so can't be signalled, is named in the run's notices."""
    requires(ROOT)
    folder = Path(tempfile.mkdtemp(prefix="test-of-coding-agent-", dir="/tmp"))
    shutil.copytree(SCRIPTS, folder / "scripts")
    # A program that may become root, as sudo may.
    become = folder / "become"
    shutil.copy(str(shutil.which("setpriv")), become)
    become.chmod(0o755 | stat.S_ISUID)
    os.chown(folder, NOBODY, NOBODY)
    folder.chmod(0o755)
    executor = Executor("local", _AsNobody(), root=str(folder / "root"), scripts=str(folder / "scripts"))
    target = Target(executor)
    other = f"{become} --reuid=0 --regid=0 --clear-groups tail -f /dev/null & echo $! > child.pid\n"
    changed = "until grep -q '^Uid:.0.0' /proc/$!/status; do sleep 0.02; done\n"
    try:
        look = target.run(say(INIT) + other + changed + say(result()))
        child = target.pid("child.pid")

        assert look.state is State.SUCCEEDED
        assert look.meta is not None
        assert look.meta.notices == (f"processes that could not be ended: {child}",)
        assert alive(child)
        os.kill(child, signal.SIGKILL)
        executor.cleanup(target.id(), grace=1)
        assert not target.folder().exists()
    finally:
        shutil.rmtree(folder)
