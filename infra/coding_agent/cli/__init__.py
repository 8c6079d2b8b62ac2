"""The command line. This module is what starts: it runs a command and turns whatever happens into an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from coding_agent.cli import failure, signals
from coding_agent.cli.root import coding_agent
from coding_agent.cli.screen import OutputClosed, flush
from coding_agent.errors import CodingAgentError

PROGRAM = "coding-agent"
OUTPUT_CLOSED = 141  # as a shell reports a program ended by SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; no exception leaves here, so no traceback reaches the user."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given[: given.index("--")] if "--" in given else "--json" in given
    try:
        with signals.ending_cleanly():
            code = _run(given, as_json=as_json)
        flush()
    except OutputClosed:
        # Whoever read our output went away (`... | head`). Python would complain once more at its own end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
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
