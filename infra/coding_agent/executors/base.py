"""The seed's executor interface, written once over a Connection.

A new executor type brings a Connection and, where there is something to provision, a target; not another Executor.
"""

from __future__ import annotations

import io
import json
import secrets
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from coding_agent.errors import ConnectionBroken, StartFailed, TargetGone, Untrusted
from coding_agent.executors import meta as meta_file
from coding_agent.executors.connection import Completed, Connection
from coding_agent.executors.meta import Meta
from coding_agent.run import State
from coding_agent.supervisor import SCRIPTS

if TYPE_CHECKING:
    from coding_agent.agent_settings import Limits
    from coding_agent.task import Task
    from coding_agent.toolchain.installation import Progress

HEARTBEAT_LIMIT = 60.0  # seconds without a heartbeat after which a supervisor that lives is called unresponsive
CHUNK = 4 * 1024 * 1024  # bytes fetched at once
UNREADABLE = "no_readable_state"  # the reason of a run whose supervisor lives, while its state can't be believed
NOTHING_LEFT = "nothing_left"  # the reason of a run that has a folder, and neither processes nor a state
REPLACED = "folder_replaced"  # the reason of a run whose folder somebody put something else in the place of
TARGET_GONE = "target_gone"  # the reason of a run whose target was removed with everything in it
_KILLED = (137, -9)  # the exit code of what was killed, as a shell and as a parent tells it
_NO_SUCH_SCRIPT = 127  # bash's exit code


@dataclass(frozen=True)
class Launch:
    """Everything a run needs on its target. `secrets` goes over stdin; the rest lies in the run's folder."""

    run_id: str
    params: Mapping[str, str]
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)
    files: Mapping[str, tuple[bytes | Path, int]] = field(repr=False)  # name in the run's folder -> content, mode


@dataclass(frozen=True)
class Look:
    """What one look at a run found."""

    state: State | None  # None: there is no such run on the target
    reason: str | None = None
    meta: Meta | None = None
    now: float = 0.0  # target's clock, seconds since the epoch
    uptime: float = 0.0  # target's, seconds
    processes: int = 0
    ticks: int = 0  # CPU, cumulative
    ticks_per_second: int = 100
    resident: int = 0  # bytes
    log_size: int = 0  # bytes of the stream, or of a command's output
    refused: str | None = None  # what of .meta.json was not believed


@dataclass(frozen=True)
class Surroundings:
    """What a run finds on its target."""

    environment: Mapping[str, str]  # of every command there
    home: str
    program: str | None  # Claude Code's, absolute; None for a task that is a command
    limits: Limits  # the task's, and the executor's where they are narrower
    held: frozenset[str] = frozenset()  # which of memory, pids, cpus and disk the target's kernel holds
    scope: bool = False  # whether a run gets a cgroup of its own there, where it can; the supervisor sees what it holds


class Executor:
    """Start, look at, end and remove runs on one target.

    A type of executor adds what only it knows: `prepare`, and where it matters `place` and `wake`.
    """

    shares_files = False  # whether paths on the target are paths on this machine

    def __init__(self, name: str, connection: Connection, *, root: str, scripts: str, deliver: bool = False) -> None:
        """`root` is the absolute folder of runs on the target, `scripts` the supervisor's there.

        With `deliver` the scripts are brought there when they turn out to be missing.
        """
        self.name = name
        self.connection = connection
        self.root = root
        self.scripts = scripts
        self._deliver = deliver

    @property
    def place(self) -> Mapping[str, Any]:
        """What finds this target again, on this machine or another."""
        return {}

    def prepare(self, task: Task, say: Progress) -> Surroundings:
        """Look at what a run of `task` finds here. Raises what says everything that is missing."""
        raise NotImplementedError

    @property
    def target_gone(self) -> bool:
        """Whether only the run's folder is left of its target."""
        return False

    def wake(self) -> None:
        """Let a target that was paused go on, so that a run there can be ended."""

    def run_dir(self, task_id: str) -> str:
        """Return the absolute folder of a run on the target."""
        return f"{self.root}/runs/{task_id}"

    def log_file(self, kind: str) -> str:
        """Return the name of the file that holds what the agent, or the command, says."""
        return "stream.jsonl" if kind == "agent" else "output.log"

    def start(self, launch: Launch, *, timeout: float = 120.0) -> str:
        """Start a run, or adopt it where it was started before; return its id.

        Raises `StartFailed` when the supervisor did not come up; then nothing is left on the target.
        """
        done = self._start(launch, attempt=1, timeout=timeout)
        if done.exit_code != 0:
            self.cleanup(launch.run_id)
        self.expect(done, "starting")
        return launch.run_id

    def resume(self, launch: Launch, *, attempt: int, timeout: float = 120.0) -> str:
        """Let a run that has ended go on with another attempt, in what it has left; return how it stands.

        That is `started`; `ended` or `adopted` where it had that attempt before, or somebody gave it another; and what
        there is nothing to go on with: `orphaned`, `lost` or `gone`. `launch` brings the files that are others this
        time. Raises `StartFailed` when the supervisor did not come up; the run is then as it was.
        """
        done = self._start(launch, attempt=attempt, timeout=timeout)
        self.expect(done, "starting")
        return done.stdout.decode("utf-8", "replace").strip()

    def _start(self, launch: Launch, *, attempt: int, timeout: float) -> Completed:
        runs, staging = f"{self.root}/runs", f".staging-{launch.run_id}-{secrets.token_hex(4)}"
        with tempfile.TemporaryFile() as archive:
            _pack(launch, archive)
            archive.seek(0)
            self.expect(self.script("stage.sh", runs, staging, stdin=archive, timeout=timeout), "staging")
        argv = (runs, launch.run_id, staging, str(attempt))
        return self.script("start.sh", *argv, stdin=_frame(launch.secrets), timeout=timeout)

    def status(self, task_id: str, *, usage: bool = False) -> Look:
        """Look at a run; one round trip. With `usage` its processes are added up too."""
        argv = [self.run_dir(task_id), *(["processes"] if usage else [])]
        try:
            done = self.script("status.sh", *argv, timeout=30.0)
        except TargetGone:
            return Look(state=None, reason=TARGET_GONE)
        if done.exit_code in _KILLED:
            raise ConnectionBroken("the look at the run was ended by somebody there")
        self.expect(done, "looking at the run")
        seen, _, raw = done.stdout.partition(b"\n")
        try:
            probe: dict[str, Any] = json.loads(seen)
        except ValueError as error:
            raise ConnectionBroken("the target gave no readable status") from error
        look = _judge(task_id, probe, raw)
        return replace(look, reason=TARGET_GONE) if look.state is State.LOST and self.target_gone else look

    def fetch_logs(self, task_id: str, n: int = 10) -> list[str]:
        """Return the last `n` lines of the run's JSONL activity (of a command's output), as they are."""
        look = self.status(task_id)
        if look.state is None:
            return []
        name = self.log_file(look.meta.kind if look.meta else "agent")
        start = max(0, look.log_size - CHUNK)
        data = self.connection.get(f"{self.run_dir(task_id)}/{name}", offset=start, limit=CHUNK) or b""
        lines = data.decode("utf-8", "replace").splitlines()
        return (lines[1:] if start else lines)[-n:]

    def read(self, task_id: str, name: str, *, offset: int = 0, limit: int = CHUNK) -> bytes:
        """Return up to `limit` bytes of a file in the run's folder; empty where there is none."""
        return self.connection.get(f"{self.run_dir(task_id)}/{name}", offset=offset, limit=limit) or b""

    def no_plain_files(self, task_id: str, names: tuple[str, ...]) -> list[str]:
        """Return which of these are in the run's folder and are links, pipes or anything else but files."""
        script = 'cd -P -- "$1" && shift && for n; do [[ ! -e $n && ! -L $n || -f $n && ! -L $n ]] || echo "$n"; done'
        argv = ["bash", "-c", script, "no_plain_files", self.run_dir(task_id), *names]
        return self.connection.run(argv, timeout=30.0).stdout.decode("utf-8", "replace").splitlines()

    def transcripts(self, task_id: str, session_id: str) -> list[str]:
        """Return the names, in the run's folder, of the session's transcripts; they are as hostile as the target."""
        script = 'cd -P -- "$1" && for f in home/projects/*/"$2".jsonl; do [[ -f $f && ! -L $f ]] && echo "$f"; done'
        argv = ["bash", "-c", script, "transcripts", self.run_dir(task_id), session_id]
        return self.connection.run(argv, timeout=30.0).stdout.decode("utf-8", "replace").splitlines()

    def fetch(self, task_id: str, name: str, into: IO[bytes], *, limit: int, cut: bool = False) -> bool:
        """Write a file of the run's folder into `into`, which is then at its beginning; False where there is none.

        Raises `Untrusted` over `limit` bytes, before they are fetched; with `cut`, the first `limit` bytes are enough.
        """
        path, offset = f"{self.run_dir(task_id)}/{name}", 0
        chunk = self.connection.get(path, offset=0, limit=min(CHUNK, limit))
        if chunk is None:
            return False
        if len(chunk) == min(CHUNK, limit) and not cut and self.connection.get(path, offset=limit, limit=1):
            raise Untrusted(f"{name} is larger than {limit // 1_000_000} MB: not fetched")
        while chunk:
            into.write(chunk)
            offset += len(chunk)
            chunk = (
                self.connection.get(path, offset=offset, limit=min(CHUNK, limit - offset)) if offset < limit else b""
            )
        into.seek(0)
        return True

    def set_timeout(self, task_id: str, seconds: int) -> None:
        """Give a run that goes on another limit of time, counted from its beginning; nothing to do where none is."""
        written = 'new=$(mktemp "$1/.timeout.XXXXXXXX") && echo "$2" >"$new" && mv -fT "$new" "$1/.timeout"'
        script = f'[ ! -d "$1" ] || {{ {written}; }}'
        argv = ["bash", "-c", script, "timeout", self.run_dir(task_id), str(seconds)]
        self.expect(self.connection.run(argv, timeout=10.0), "changing the time limit")

    def pack_artifacts(self, task_id: str, globs: tuple[str, ...], *, limit: int) -> bool:
        """Pack what matches in the workspace into artifacts.tar there, up to `limit` bytes; False when nothing does."""
        stdin = b"".join(glob.encode() + b"\0" for glob in globs)
        done = self.script("artifacts.sh", self.run_dir(task_id), str(limit), stdin=stdin, timeout=600.0)
        self.expect(done, "packing the artifacts")
        return done.stdout.strip() == b"packed"

    def kill(self, task_id: str, *, reason: str = "killed", wait: float = 60.0) -> None:
        """End a run and wait up to `wait` seconds until its end is written; nothing to do where it has ended."""
        self.wake()
        done = self.script("stop.sh", self.run_dir(task_id), reason, str(int(wait)), timeout=wait + 700.0)
        self.expect(done, "ending the run")

    def cleanup(self, task_id: str, *, grace: int = 5) -> None:
        """Remove what is left of a run on the target: processes and folders. Can be repeated.

        Raises `ConnectionBroken` naming the processes that could not be ended.
        """
        try:
            self.wake()
            done = self.script("cleanup.sh", f"{self.root}/runs", task_id, str(grace), timeout=300.0)
        except TargetGone:
            return
        if done.exit_code == 95:
            pids = done.stdout.decode("ascii", "replace").strip()[:200]
            raise ConnectionBroken(
                f"processes of run {task_id} can't be ended: {pids}",
                next_step=f"end them as their owner on {self.name}, then repeat",
            )
        self.expect(done, "removing the run")

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def script(self, name: str, *argv: str, stdin: bytes | BinaryIO | None = None, timeout: float) -> Completed:
        """Run one of the supervisor's scripts on the target; see `Connection.run`."""
        command = ["bash", f"{self.scripts}/{name}", *argv]
        done = self.connection.run(command, stdin=stdin, timeout=timeout)
        if not (self._deliver and done.exit_code == _NO_SUCH_SCRIPT):
            return done
        self.bring_scripts(timeout)
        if stdin is not None and not isinstance(stdin, bytes):
            stdin.seek(0)
        return self.connection.run(command, stdin=stdin, timeout=timeout)

    def bring_scripts(self, timeout: float) -> None:
        """Bring the supervisor to the target: all of it or nothing, whoever else does the same."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for file in sorted(SCRIPTS.glob("*.sh")):
                _add(tar, file.name, file, 0o644)
        script = (
            'umask 077 && t=$1.$$ && mkdir -p -- "$t" && chmod 755 -- "$t" && tar --no-same-owner -xf - -C "$t" && '
            '{ mv -T -- "$t" "$1" 2>/dev/null || { [[ -f $1/start.sh ]] && rm -rf -- "$t"; }; }'
        )
        argv = ["bash", "-c", script, "deliver", self.scripts]
        self.expect(self.connection.run(argv, stdin=archive.getvalue(), timeout=timeout), "bringing the supervisor")

    def expect(self, done: Completed, doing: str) -> None:
        """Raise `StartFailed` with what the target said where a command has failed."""
        if done.exit_code != 0:
            from coding_agent.text import neutralise

            said = neutralise(done.stderr.decode("utf-8", "replace").strip()[-600:])
            raise StartFailed(
                f"{doing} on {self.name} failed with exit code {done.exit_code}: {said or 'nothing said'}"
            )


def _judge(task_id: str, probe: Mapping[str, Any], raw: bytes) -> Look:
    """Tell the state from who is alive (the two locks), the machine's boot and, last, from what was written."""
    if not probe.get("exists"):
        return Look(state=None, now=float(probe.get("now", 0)))
    if probe.get("replaced"):
        return Look(
            state=State.UNRESPONSIVE if probe.get("supervised") else State.LOST,
            reason=REPLACED,
            now=float(probe["now"]),
            refused="what is in the place of the run's folder is not the folder that was made",
        )
    parsed, refused = None, None
    if raw.strip():
        try:
            parsed = meta_file.parse(raw, task_id)
        except Untrusted as error:
            refused = error.message
    state, reason = _state(probe, parsed)
    return Look(
        state=state,
        reason=reason,
        meta=parsed,
        now=float(probe["now"]),
        uptime=float(probe["uptime"]),
        processes=int(probe["processes"]),
        ticks=int(probe["ticks"]),
        ticks_per_second=int(probe["ticks_per_second"]),
        resident=int(probe["resident"]),
        log_size=int(probe["output"] if parsed and parsed.kind == "command" else probe["stream"]),
        refused=refused,
    )


def _state(probe: Mapping[str, Any], meta: Meta | None) -> tuple[State, str | None]:
    supervised, agent = bool(probe["supervised"]), not probe["agent_free"]
    if meta is None:
        if supervised:
            return State.UNRESPONSIVE, UNREADABLE
        return (State.UNRESPONSIVE, "supervisor_died") if agent else (State.LOST, NOTHING_LEFT)
    if meta.final:
        # With a supervisor it was written by it a moment ago, or by the agent, or before the run was resumed.
        return (State.RUNNING, None) if supervised else (meta.state, meta.reason)
    if meta.boot_id != probe["boot_id"]:
        return State.LOST, "machine_restarted"
    if supervised:
        stale = float(probe["now"]) - meta.heartbeat > HEARTBEAT_LIMIT and meta.stage != "saving"
        return (State.UNRESPONSIVE, "no_heartbeat") if stale else (meta.state, None)
    return (State.UNRESPONSIVE, "supervisor_died") if agent else (State.LOST, "supervisor_died")


def _frame(values: Mapping[str, str]) -> bytes:
    pairs = b"".join(f"{name}={value}".encode() + b"\0" for name, value in values.items())
    return f"{len(values)}\n".encode() + pairs


def _pack(launch: Launch, into: BinaryIO) -> None:
    lists = {
        "params": [f"{name}={value}" for name, value in launch.params.items()],
        "environment": [f"{name}={value}" for name, value in launch.environment.items()],
        "argv": list(launch.argv),
    }
    with tarfile.open(fileobj=into, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, strings in lists.items():
            _add(tar, name, b"".join(string.encode() + b"\0" for string in strings), 0o600)
        for name, (content, mode) in launch.files.items():
            _add(tar, name, content, mode)


def _add(tar: tarfile.TarFile, name: str, content: bytes | Path, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.mode = mode
    if isinstance(content, Path):
        info.size = content.stat().st_size
        with content.open("rb") as file:
            tar.addfile(info, file)
    else:
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
