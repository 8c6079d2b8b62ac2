"""What runs beside the tests: a dockerd of the run's own, linters, what gets engine and plugins."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.needs import failure

START_ENGINE = "TESTBED_START_ENGINE"  # set by start.sh: "root", or the words that make a command root's; "" is no
_PATIENCE = 90.0  # seconds for something to start or to end
_SAY_EVERY = 30.0
_LAST_LINES = 30


def last_lines(log: Path) -> str:
    """Return what a log ends with."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])


@dataclass
class Job:
    """A command whose output goes to a file."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    def wait(self, limit: float) -> int | None:
        """Wait for its end, and say what for; return its exit code, None where it takes longer than `limit`."""
        deadline = time.monotonic() + limit
        while True:
            rest = deadline - time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(max(0.0, min(_SAY_EVERY, rest)))
            if rest <= 0:
                return None
            lines = self.log.read_text(errors="replace").splitlines()
            print(f"waiting for {self.name} (log: {self.log}): {lines[-1] if lines else 'nothing yet'}", flush=True)


@contextlib.contextmanager
def job(name: str, log: Path, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Job]:
    """Start a command; what is left of it at the block's end is ended."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C is for the tests first
        )
    try:
        yield Job(name, log, process)
    finally:
        for number in (signal.SIGINT, signal.SIGKILL):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_PATIENCE)


@contextlib.contextmanager
def container_engine(folder: Path) -> Iterator[None]:
    """Start a dockerd where none answers and this run may; it ends with the block, and also with this process."""
    how = os.environ.pop(START_ENGINE, "")
    if not how or failure("docker", "version") is None:
        yield
        return
    log, pid = folder / "dockerd.log", folder / "dockerd.pid"
    before = [] if how == "root" else how.split()
    script = Path(__file__).with_name("dockerd.sh")
    guard = subprocess.Popen(
        [*before, "bash", str(script), str(log.absolute()), str(pid.absolute())],
        stdin=subprocess.PIPE,
        process_group=0,
    )
    assert guard.stdin is not None
    why: str | None = "it was interrupted"
    try:
        why = _unanswered(guard)
        if why:
            print(f"dockerd does not answer: {why}", flush=True)
            print(last_lines(log) if log.is_file() else "it wrote no log", flush=True)
        yield
    finally:
        guard.stdin.close()
        guard.wait(_PATIENCE)
        if why is None:
            log.unlink(missing_ok=True)


def _unanswered(guard: subprocess.Popen[bytes]) -> str | None:
    deadline = time.monotonic() + _PATIENCE
    while (why := failure("docker", "version")) is not None:
        if guard.poll() is not None:
            return "it has ended"
        if time.monotonic() > deadline:
            return why
        time.sleep(0.2)
    return None


def python(module: str, *arguments: str) -> list[str]:
    """Return the arguments that run a module of this folder."""
    return [sys.executable, "-u", "-m", f"testbed.{module}", *arguments]
