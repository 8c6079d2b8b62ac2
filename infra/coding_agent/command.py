"""The engine's command line as the Automation API calls it: every call timed, none without an end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from pulumi.automation import CommandResult, PulumiCommand
from pulumi.automation.errors import create_command_error
from semver import VersionInfo

from coding_agent.errors import EngineFailed
from coding_agent.toolchain.pulumi.engine import Engine

UPDATE_LIMIT = 24 * 3600.0  # seconds; an update that waits for its run takes as long as that
CALL_LIMIT = 300.0  # seconds for everything else
GIVE_UP = 30.0  # seconds an interrupted engine gets to end in order
_UPDATES = ("up", "destroy", "refresh", "preview")

OnLine = Callable[[str], Any]


@dataclass(frozen=True)
class Call:
    """One call of the engine's command line."""

    arguments: tuple[str, ...]
    seconds: float


class Command(PulumiCommand):
    """The engine's program. Unlike the base, it does not ask for its version at each start."""

    def __init__(self, engine: Engine) -> None:
        """Nothing is run: `engine` was examined when it was found."""
        self.command = str(engine.command)
        self.version = VersionInfo.parse(engine.version)
        self.calls: list[Call] = []

    def run(
        self,
        args: list[str],
        cwd: str,
        additional_env: Mapping[str, str],
        on_output: OnLine | None = None,
        on_error: OnLine | None = None,
    ) -> CommandResult:
        """Run a command and return what it wrote.

        Raises the Automation API's CommandError when it fails, `EngineFailed` when it exceeds its time limit.
        """
        begun = time.monotonic()
        limit = UPDATE_LIMIT if any(word in _UPDATES for word in args[:2]) else CALL_LIMIT
        # Never a question: whoever calls has no terminal, or is not asked twice.
        argv = [self.command, "--non-interactive", *args]
        environment = {**os.environ, **additional_env, "PULUMI_AUTOMATION_API": "true"}
        try:
            result = _run(argv, cwd, environment, (on_output, on_error), limit)
        finally:
            self.calls.append(Call(tuple(args), time.monotonic() - begun))
        if result.code != 0:
            raise create_command_error(result)
        return result


def _run(
    argv: list[str],
    cwd: str,
    environment: Mapping[str, str],
    heard: tuple[OnLine | None, OnLine | None],
    limit: float,
) -> CommandResult:
    process = subprocess.Popen(
        argv,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    chunks: tuple[list[str], list[str]] = ([], [])
    streams = (process.stdout, process.stderr)
    parts = zip(streams, heard, chunks, strict=True)
    readers = [threading.Thread(target=_read, args=part, daemon=True) for part in parts]
    for reader in readers:
        reader.start()
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        _end(process)
        raise EngineFailed(f"`pulumi {' '.join(argv[2:4])}` did not end within {limit:.0f} s") from None
    except BaseException:
        # Interrupted: it ends in order, so that what has started is saved and the lock is given back.
        _end(process)
        raise
    for reader in readers:
        # A child that inherited the pipe could hold it open for ever.
        reader.join(GIVE_UP)
    return CommandResult("\n".join(chunks[0]), "\n".join(chunks[1]), process.returncode)


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GIVE_UP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read(stream: IO[str], heard: OnLine | None, into: list[str]) -> None:
    with stream:
        for line in stream:
            into.append(line.rstrip())
            if heard is not None:
                heard(into[-1])
