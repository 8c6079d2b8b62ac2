"""Starting a run once, whoever tries and whatever breaks, and what the agent gets and does not get."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from coding_agent.errors import StartFailed
from coding_agent.executors.base import Executor, Launch
from coding_agent.run import State
from runs import INIT, STAY, Target, alive, message, result, say
from waiting import until

DONE = say(INIT, message("m1"), result())


def _together(count: int, act: Callable[[], object]) -> list[BaseException]:
    """Run `act` in so many threads that begin at the same moment; return what was raised."""
    barrier, errors = threading.Barrier(count), []

    def one() -> None:
        try:
            barrier.wait()
            act()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("round_number", range(3))
def test_six_concurrent_starts_are_one(target: Target, round_number: int) -> None:
    """Six starts of one run at the same moment start one agent; the others adopt it."""
    launch = target.launch(f"echo began >> began.txt\n{say(INIT)}{STAY}")

    errors = _together(6, lambda: target.executor.start(launch))

    assert errors == []
    until(lambda: target.look().state is State.RUNNING)
    assert target.says("began.txt") == "began\n"
    assert [each.name for each in Path(target.executor.root, "runs").iterdir()] == [target.id()]


def test_a_run_that_ended_is_not_started_again(target: Target) -> None:
    """A start of a run that has ended changes nothing: its results stand."""
    launch = target.launch("echo began >> began.txt\n" + DONE)
    target.executor.start(launch)
    ended = target.ended()

    target.executor.start(launch)

    assert target.look().meta == ended.meta
    assert target.says("began.txt") == "began\n"


def _start_with(executor: Executor, launch: Launch, stdin: bytes) -> None:
    """Start a run as `Executor.start` does, but let these bytes arrive as its secrets."""
    broken = _Cut(executor, stdin)
    broken.start(launch)


class _Cut(Executor):
    """An executor whose connection breaks while the secrets go over it."""

    def __init__(self, executor: Executor, stdin: bytes) -> None:
        super().__init__(executor.name, executor.connection, root=executor.root, scripts=executor.scripts)
        self._arrives = stdin

    def script(self, name, *argv, stdin=None, timeout):  # type: ignore[no-untyped-def]
        return super().script(name, *argv, stdin=self._arrives if name == "start.sh" else stdin, timeout=timeout)


@pytest.mark.parametrize("arrived", [b"", b"2", b"2\n", b"2\nA=one\0", b"2\nA=one\0B=tw", b"2\nA=one\0B=two"])
def test_secrets_that_are_cut_half_way_start_nothing(
    target: Target, arrived: bytes, processes_with: Callable[[str], list[int]]
) -> None:
    """Where the connection breaks before all secrets have arrived, nothing runs, nothing is left, a retry starts."""
    launch = target.launch(f'echo "$A $B" > got.txt\n{DONE}', secrets={"A": "one", "B": "two"})

    with pytest.raises(StartFailed, match="the secrets did not arrive whole"):
        _start_with(target.executor, launch, arrived)

    assert not Path(target.executor.root).exists()
    assert processes_with(target.executor.run_dir(target.id())) == []
    target.executor.start(launch)
    assert target.ended().state is State.SUCCEEDED
    assert target.says("got.txt") == "one two\n"


def test_the_locks_tell_who_is_alive(target: Target) -> None:
    """A busy first lock means adopt; the agent's alone, that its supervisor died; both free, that the run is lost."""
    launch = target.launch(f"echo began >> began.txt\necho $$ > pid\n{say(INIT)}{STAY}")
    assert target.look().state is None
    target.executor.start(launch)
    agent = target.pid("pid")
    until(lambda: target.look().state is State.RUNNING)

    os.kill(target.meta()["supervisor"], signal.SIGKILL)
    look = until(lambda: (now := target.look()).state is State.UNRESPONSIVE and now)
    assert look.reason == "supervisor_died"
    target.executor.start(launch)  # adopted, as it is: the agent goes on
    assert (target.look().state, alive(agent)) == (State.UNRESPONSIVE, True)

    os.kill(agent, signal.SIGKILL)
    look = until(lambda: (now := target.look()).state is State.LOST and now)
    assert look.reason == "supervisor_died"
    target.executor.start(launch)
    assert target.look().state is State.LOST
    assert target.says("began.txt") == "began\n"


@pytest.mark.parametrize("left", [(".lock",), (".lock", "files/made.txt", "setup/00.sh", "params")])
def test_a_folder_without_a_state_is_started_in(target: Target, left: tuple[str, ...]) -> None:
    """Where a start was cut half-way, before its run had any state, the next start begins anew."""
    for name in left:
        (target.folder() / name).parent.mkdir(parents=True, exist_ok=True)
        (target.folder() / name).write_text("exit 9\n")

    assert target.run(DONE, files={"files/other.txt": (b"x", 0o600)}).state is State.SUCCEEDED
    assert not (target.folder() / "workspace" / "made.txt").exists()


def test_looks_at_a_start_do_not_disturb_it(target: Target) -> None:
    """However often a run is looked at while it starts and ends, nobody takes it for lost, and its end is seen."""
    for number in range(3):
        which = f"run{number}"
        ended = threading.Event()
        seen: set[tuple[State | None, str | None]] = set()

        def watch(which: str = which, ended: threading.Event = ended, seen: set[Any] = seen) -> None:
            while not ended.is_set():
                look = target.look(which)
                seen.add((look.state, look.reason))

        with ThreadPoolExecutor(3) as pool:
            looking = [pool.submit(watch) for _ in range(3)]
            try:
                assert target.run(DONE, which).state is State.SUCCEEDED
                assert [target.look(which).state for _ in range(10)] == [State.SUCCEEDED] * 10
            finally:
                ended.set()
            for each in looking:
                each.result(60)
        assert not [each for each in seen if each[0] is State.LOST], seen


def test_a_staging_that_fails_leaves_nothing(target: Target) -> None:
    """Where the run's files don't arrive whole nothing of them stays on the target."""
    runs = Path(target.executor.root) / "runs"
    argv = ["bash", f"{target.executor.scripts}/stage.sh", str(runs), ".staging-x"]

    done = target.executor.connection.run(argv, stdin=b"no archive", timeout=30)

    assert done.exit_code != 0
    assert list(runs.iterdir()) == []


# Signals 32 and 33 are the C library's own: no program can set them through it, and some that start us ignore them.
OF_THE_C_LIBRARY = 1 << 31 | 1 << 32


@pytest.mark.parametrize("program", ["perl and env", "env", "perl"])
def test_the_agent_ignores_no_signal(target: Target, tmp_path: Path, program: str) -> None:
    """Signals have their default effect in the agent, also where whoever started it ignores them, as under nohup."""
    script = f"grep SigIgn /proc/self/status > signals.txt\n{DONE}"
    ignored = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        with pytest.MonkeyPatch.context() as patch:
            if program != "perl and env":
                patch.setenv("PATH", str(_programs_without(tmp_path, "perl" if program == "env" else "env")))
            assert target.run(script).state is State.SUCCEEDED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    name, mask = target.says("signals.txt").split()
    assert name == "SigIgn:"
    assert not int(mask, 16) & ~OF_THE_C_LIBRARY, mask


def _programs_without(tmp_path: Path, name: str) -> Path:
    """Return a folder with every program of the PATH but one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            link = folder / program.name
            link.unlink(missing_ok=True)
            if program.name != name:
                link.symlink_to(program)
    return folder


def test_the_agent_inherits_three_files_and_its_lock(target: Target) -> None:
    """The agent has stdin, stdout, stderr and its own lock; the supervisor's lock and pipe it has not."""
    script = f"find /proc/$$/fd -type l -printf '%f %l\\n' > fds.txt\n{DONE}"
    target.run(script)

    # What a program of the agent's has beyond these, the agent gave it.
    has = dict(line.split(" ", 1) for line in target.says("fds.txt").splitlines())
    has.pop("255", None)  # bash reads its script there
    run = target.folder()
    names = {"0": "prompt.txt", "1": "stream.jsonl", "2": "stderr.log", "7": ".lock.agent"}
    assert {fd: Path(place).name for fd, place in has.items()} == names
    assert {Path(place).parent for place in has.values()} == {run}


def test_the_agent_gets_the_runs_environment_and_nothing_else(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's environment is what the launch says, its secrets and the run's id; the supervisor has none of it."""
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "open sesame")
    script = f"tr '\\0' '\\n' < /proc/$$/environ > env.txt\n{say(INIT)}{STAY}"
    odd = "several\nlines and 'quotes' $HOME `x` ü"
    target.start(script, environment={"ODD": odd, "EMPTY": ""}, secrets={"TOKEN": "a secret"})

    got = target.says("env.txt")
    said = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "ODD": odd, "EMPTY": "", "TOKEN": "a secret"}
    expected = [f"{name}={value}" for name, value in {**said, "CODING_AGENT_RUN_ID": target.id()}.items()]
    assert sorted("\n".join(expected).split("\n")) == sorted(got.strip("\n").split("\n"))
    supervisor = Path("/proc", str(target.meta()["supervisor"]))
    for name in ("environ", "cmdline"):
        assert not any(
            word in (supervisor / name).read_bytes()
            for word in (b"a secret", b"sesame", f"RUN_ID={target.id()}".encode())
        )
