"""How an error looks: one line what is wrong, one what to do next; as JSON too where --json asks; never a traceback."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from coding_agent import paths
from coding_agent.cli.screen import OutputClosed, write
from coding_agent.cli.signals import INTERRUPTED, TERMINATED
from coding_agent.errors import CodingAgentError
from coding_agent.text import neutralise

UNEXPECTED = 3
KEPT_REPORTS = 20


def known(error: CodingAgentError, *, as_json: bool) -> int:
    """Show an error that was foreseen; return its exit code."""
    problems = getattr(error, "problems", ())
    if problems:
        for problem in problems:
            _complain(str(problem))
    else:
        _complain(f"error: {error.message}")
    if error.next_step:
        _complain(f"next: {error.next_step}")
    entries = [{name: str(value) if isinstance(value, Path) else value for name, value in vars(each).items()}
               for each in problems]  # fmt: skip
    _as_json(as_json, error.exit_code, type=type(error).__name__, message=error.message, next_step=error.next_step,
             **({"problems": entries} if entries else {}))  # fmt: skip
    return error.exit_code


def usage(error: click.ClickException, *, as_json: bool) -> int:
    """Show a command line that can't be used; return exit code 2."""
    message = error.format_message()
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "coding-agent"
    step = f"{command} --help shows what it takes"
    _complain(f"error: {message}")
    _complain(f"next: {step}")
    _as_json(as_json, 2, type="UsageError", message=message, next_step=step)
    return 2


def interrupted(*, as_json: bool, closed_input: bool = False) -> int:
    """Say that the command was interrupted; return exit code 130 (2 for a question nobody could answer)."""
    if closed_input:
        _complain("error: a question was asked and the input is closed")
        _complain("next: answer it beforehand with --yes")
        _as_json(as_json, 2, type="UsageError", message="a question was asked and the input is closed")
        return 2
    _complain("interrupted; an agent that runs goes on (`coding-agent list` shows it)")
    _as_json(as_json, INTERRUPTED, type="Interrupted", message="interrupted")
    return INTERRUPTED


def terminated(*, as_json: bool) -> int:
    """Say that the command was ended by SIGTERM; return exit code 143."""
    _complain("terminated; an agent that runs goes on (`coding-agent list` shows it)")
    _as_json(as_json, TERMINATED, type="Terminated", message="terminated")
    return TERMINATED


def unexpected(error: Exception, *, as_json: bool) -> int:
    """Show an error nobody foresaw on one line; the whole of it goes into a file only the user can read."""
    if os.environ.get("CODING_AGENT_TRACEBACK") == "1":
        traceback.print_exception(error)
    kind = type(error).__name__
    first = (str(error).splitlines() or [""])[0][:300]
    message = f"unexpected {kind}: {first}" if first else f"unexpected {kind}"
    report = _report(error)
    step = f"please report it, with {report}" if report else "set CODING_AGENT_TRACEBACK=1 to see where"
    _complain(f"error: {message}")
    _complain(f"next: {step}")
    _as_json(as_json, UNEXPECTED, type=kind, message=message, next_step=step, report=str(report) if report else None)
    return UNEXPECTED


def _complain(text: str) -> None:
    with suppress(OSError):  # without a stderr there is nobody to tell
        sys.stderr.write(neutralise(text) + "\n")
        sys.stderr.flush()


def _as_json(wanted: bool, exit_code: int, **error: Any) -> None:
    if not wanted:
        return
    document: Mapping[str, Any] = {"error": error, "exit_code": exit_code}
    with suppress(OutputClosed):
        write(json.dumps(document, indent=2) + "\n")


def _report(error: Exception) -> Path | None:
    folder = paths.state_dir() / "reports"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in sorted(folder.glob("*.txt"))[: -KEPT_REPORTS + 1]:
            old.unlink(missing_ok=True)
        path = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}.txt"
        # Neither the environment nor local variables: both could hold a secret.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", errors="replace") as file:
            file.write(f"coding-agent {_version()}, Python {sys.version}\n\n")
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return None
    return path


def _version() -> str:
    from coding_agent import __version__

    return __version__
