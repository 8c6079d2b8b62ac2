"""The command group. It knows each command's name and one line about it; the module is loaded when it is called."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click


@dataclass(frozen=True)
class Entry:
    """Where a command is written, and its line in the list of commands."""

    module: str
    about: str


COMMANDS: Mapping[str, Mapping[str, Entry]] = {
    "Tasks": {
        "init": Entry("project", "Make a project in a folder: Pulumi.yaml, infra/, tasks/ with an example."),
        "validate": Entry("project", "Check task files and the executors file; runs nothing."),
        "preview": Entry("up", "Show what `up` would do; runs nothing."),
        "up": Entry("up", "Run a task, or adopt its run, and follow it."),
    },
    "Queue": {
        "dispatch": Entry("queue", "Put tasks into the queue."),
        "sync": Entry("sync", "Let the project's runs be what the files of a folder say."),
        "worker": Entry("queue", "Take tasks from the queue as executors have room."),
        "why": Entry("queue", "Say what a task in the queue waits for."),
    },
    "Runs": {
        "list": Entry("look", "List the runs known on this machine, or the queue."),
        "status": Entry("look", "Show how a run is doing."),
        "logs": Entry("look", "Show what the agent did, line by line."),
        "kill": Entry("end", "End a run's agent; its results stay."),
        "resume": Entry("resume", "Let an agent that has ended go on where it stopped."),
        "collect": Entry("end", "Bring back what an ended run made."),
        "destroy": Entry("end", "End a run and leave nothing behind but its results."),
    },
    "This machine": {
        "executors": Entry("project", "List the places where tasks can run."),
        "trust": Entry("trust", "Record by which keys the hosts of an executor are known."),
        "sweep": Entry("sweep", "List cloud resources that no stack owns, and remove them when asked to."),
        "image": Entry("image", "Make images that agents run in."),
        "env": Entry("machine", "Print what gives a shell the same engine and backend."),
        "doctor": Entry("machine", "Say what is here, what is missing and what to do about it."),
        "completion": Entry("machine", "Print the completion script of a shell."),
        "version": Entry("machine", "Print the versions of everything involved."),
    },
}
_ALL = {name: entry for section in COMMANDS.values() for name, entry in section.items()}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(_ALL)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the command."""
        entry = _ALL.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"coding_agent.cli.{entry.module}_command")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown one name the nearest."""
        if args and args[0] not in _ALL and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], _ALL, n=1)
            raise click.UsageError(f"no command {args[0]!r}" + (f"; did you mean {near[0]}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table; nothing is imported for it."""
        for title, section in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.about) for name, entry in section.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the end of the help as it is."""
        formatter.write(_EPILOG)


_EPILOG = """
Exit codes:
  0    succeeded
  1    the run failed, was killed, timed out or was lost
  2    bad input: a task file, an executors file, an option
  3    the engine or the executor could not do it
  4    no task, run or stack of that name
  130  interrupted; the agent goes on

A first run:
  coding-agent doctor
  coding-agent init
  coding-agent up example

Environment:
  CODING_AGENT_CONFIG       the executors file
  CODING_AGENT_DATABASE_URL the queue's Postgres, where it is not to be one of your own
  CODING_AGENT_TRACEBACK=1  show where an unexpected error came from
  NO_COLOR                  no colours
"""


def _show_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from coding_agent import __version__

        click.echo(f"coding-agent {__version__}")
        context.exit()


@click.command(
    cls=LazyGroup,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The executors file  [default: ~/.config/openclaw/coding-agent.yaml]",
)
@click.option(
    "-C",
    "folder",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Go to this folder first.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Print the version."
)
@click.pass_context
def coding_agent(context: click.Context, /, config: Path | None, folder: Path | None) -> None:
    """Run coding agents from task files, each run a Pulumi stack.

    A task is a YAML file in tasks/. `coding-agent up NAME` gives it a place to run, starts Claude Code there and
    follows it; `coding-agent destroy NAME` leaves nothing behind.
    """
    if config:
        # In the environment, because the engine's provider is a process of its own and reads the same file.
        os.environ["CODING_AGENT_CONFIG"] = str(config.expanduser().absolute())
    if folder:
        os.chdir(folder)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
