"""`list`, `status` and `logs`: what is known of runs. They need records and the target, never the engine."""

from __future__ import annotations

import click

from coding_agent import records
from coding_agent.cli import names, summary
from coding_agent.cli.options import command, json_option, run_argument
from coding_agent.cli.screen import Screen, write
from coding_agent.cli.signals import INTERRUPTED, stopping
from coding_agent.errors import InvalidInput
from coding_agent.records import Record

_FOLLOW_FROM = 10  # lines shown before following goes on with new ones


@command("list", examples=["list", "list --project --json", "list --queue --all"], codes=[0, 3])
@click.option("--project", is_flag=True, help="Only the runs of the project around the current folder.")
@click.option("--queue", is_flag=True, help="The tasks in the queue, in the order in which they are taken.")
@click.option("--all", "ended", is_flag=True, help="With --queue: those that have ended, too.")
@json_option
def list_command(project: bool, queue: bool, ended: bool, as_json: bool) -> int:
    """List the runs known on this machine, newest first, as they were when last looked at."""
    screen = Screen(as_json=as_json)
    if queue or ended:
        from coding_agent.cli import queue_command

        queue_command.show(screen, ended=ended)
        return 0
    found = records.everything()
    if project:
        root = names.project_root()
        if root is None:
            raise InvalidInput("this folder is in no project", next_step="go to one, or leave --project out")
        found = [each for each in found if names.same_folder(each.root, root)]
    if as_json:
        screen.data([{**summary.document(each), **_origin(each)} for each in found])
    elif found:
        screen.table(("TASK", "RUN", "STATUS", "AGE", "TURNS", "COST", "EXECUTOR", "PROJECT"), [*map(_row, found)])
        if any(not each.outputs.status.final for each in found):
            screen.say("as they were when last looked at; `coding-agent status NAME` looks now")
    else:
        screen.say("no runs yet: `coding-agent up NAME` makes one")
    return 0


@command(
    "status",
    examples=["status fix-build", "status 3f9a2c --json"],
    codes=[(0, "it is shown, whatever became of the run"), 3, 4],
)
@run_argument
@json_option
def status_command(run: str, as_json: bool) -> int:
    """Show how a run is doing, as it is now. One that has ended is brought back: its branch, patch and artifacts."""
    from coding_agent import lifecycle

    screen = Screen(as_json=as_json)
    quiet = Screen(as_json=True)  # what is being done goes to stderr: stdout shows the status alone
    found = names.find_run(run, say=quiet.say)
    found, usage = lifecycle.examine(found, say=quiet.say)
    summary.show(screen, found, usage)
    return 0


@command(
    "logs",
    examples=["logs fix-build", "logs -f -n 20 fix-build", "logs --raw fix-build | jq .type", "logs --debug fix-build"],
    codes=[0, 2, 3, 4, (130, "interrupted while following; the agent goes on")],
)
@run_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until the run has ended.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Only the last lines  [default: all; with -f 10]")
@click.option("--raw", is_flag=True, help="The agent's own stream of events instead of lines for people.")
@click.option("--debug", is_flag=True, help="The agent's debug log and stderr, and the supervisor's own.")
@json_option
def logs_command(run: str, follow: bool, lines: int | None, raw: bool, debug: bool, as_json: bool) -> int:
    """Show what the agent of a run did. Works while it runs, after it ended and after `destroy`."""
    from coding_agent import logs

    if raw and debug:
        raise InvalidInput("--raw and --debug are two different logs", next_step="choose one")
    screen = Screen(as_json=as_json)
    quiet = Screen(as_json=True)  # what goes on goes to stderr: stdout shows the log alone
    found = names.find_run(run, say=quiet.say)

    def show(text: str) -> None:
        if as_json:
            for line in text.splitlines():
                screen.line({"run_id": found.run_id, "line": line})
        else:
            write(text if text.endswith("\n") else text + "\n")

    count = _FOLLOW_FROM if lines is None and follow else lines
    with stopping() as stop:
        logs.logs(found, n=count, follow=follow, raw=raw, debug=debug, write=show, say=quiet.say, stop=stop)
        return INTERRUPTED if stop.is_set() else 0


def _row(record: Record) -> tuple[str, ...]:
    outputs = record.outputs
    turns = str(outputs.num_turns) if record.kind == "agent" else ""
    return (
        record.stack,
        record.run_id,
        str(outputs.status),
        summary.age(record),
        turns,
        summary.cost(outputs),
        outputs.executor,
        record.root,
    )


def _origin(record: Record) -> dict[str, object]:
    return {
        "task": record.task,
        "stack": record.stack,
        "project": record.project,
        "root": record.root,
        "created_at": record.created_at,
        "labels": list(record.labels),
        "collected": record.collected,
        "removed": record.removed,
    }
