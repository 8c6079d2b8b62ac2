"""The command line. This module is what starts: it runs a command and turns whatever happens into an exit code."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Sequence

import click

from coding_agent.cli import failure, signals
from coding_agent.cli.root import coding_agent
from coding_agent.cli.screen import OutputClosed, flush
from coding_agent.errors import CodingAgentError

PROGRAM = "coding-agent"
GARBAGE = 50_000  # new objects after which they are looked through
OUTPUT_CLOSED = 141  # as a shell reports a program ended by SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; no exception leaves here, so no traceback reaches the user."""
    # A command loads what it needs, and all of that stays: looking through it for garbage while it is loaded would take
    # a third of the time.
    gc.set_threshold(GARBAGE, 20, 20)
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given[: given.index("--")] if "--" in given else "--json" in given
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that can't show every character
    try:
        with signals.ending_cleanly():
            code = _run(given, as_json=as_json)
        flush()
    except OutputClosed as closed:
        # Python would complain once more at its own end.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the rest of the process
        if closed.reason is None:
            return OUTPUT_CLOSED
        return failure.known(CodingAgentError(f"the output can't be written: {closed.reason}"), as_json=False)
    return code


def _run(arguments: list[str], *, as_json: bool) -> int:
    try:
        result = coding_agent.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.Abort as abort:
        return failure.interrupted(as_json=as_json, closed_input=isinstance(abort.__cause__, EOFError))
    except KeyboardInterrupt:
        return failure.interrupted(as_json=as_json)
    except click.ClickException as error:
        return failure.usage(error, as_json=as_json)
    except CodingAgentError as error:
        return failure.known(error, as_json=as_json)
    except OutputClosed:
        raise
    except signals.Terminated:
        return failure.terminated(as_json=as_json)
    except Exception as error:
        return failure.unexpected(error, as_json=as_json)
    return result if isinstance(result, int) else 0
