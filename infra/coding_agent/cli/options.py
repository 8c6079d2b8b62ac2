"""What commands share: --json, the argument that names a run, examples and exit codes below each --help."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import click

from coding_agent.cli.names import complete_run, complete_task

MEANINGS: Mapping[int, str] = {
    0: "done",
    1: "the run failed, was killed, timed out or was lost",
    2: "bad input",
    3: "the engine or the executor could not do it",
    4: "no task or run of that name",
    130: "interrupted; the agent goes on",
}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout; lines for people on stderr.")
run_argument = click.argument("run", metavar="NAME|RUN_ID", shell_complete=complete_run)
task_argument = click.argument("task", metavar="NAME|FILE", shell_complete=complete_task)


class _Epilog(click.Command):
    """Its help ends with its examples and exit codes, line by line as they are written."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the end of the help without wrapping it."""
        formatter.write(f"\n{self.epilog}\n" if self.epilog else "")


class Command(_Epilog):
    """A command whose help ends with its examples and exit codes."""


class Group(_Epilog, click.Group):
    """A group of commands whose help ends in the same way."""


def command(
    name: str, *, examples: Sequence[str], codes: Sequence[int | tuple[int, str]]
) -> Callable[[Callable[..., int]], click.Command]:
    """Return a decorator that makes a command; a code stands alone where it means the usual, else with its meaning."""
    return click.command(name, cls=Command, epilog=_epilog(examples, codes))


def group(
    name: str, *, examples: Sequence[str], codes: Sequence[int | tuple[int, str]]
) -> Callable[[Callable[..., None]], click.Group]:
    """Return a decorator that makes a group of commands; by itself it shows its help."""
    return click.group(name, cls=Group, epilog=_epilog(examples, codes), invoke_without_command=True)


def _epilog(examples: Sequence[str], codes: Sequence[int | tuple[int, str]]) -> str:
    lines = ["Examples:", *(f"  coding-agent {example}" for example in examples), "", "Exit codes:"]
    for each in codes:
        code, meaning = each if isinstance(each, tuple) else (each, MEANINGS[each])
        lines.append(f"  {code:<4} {meaning}")
    return "\n".join(lines)
