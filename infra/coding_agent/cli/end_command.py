"""`kill`, `collect` and `destroy`: how a run ends and what stays of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coding_agent import records
from coding_agent.cli import names, summary
from coding_agent.cli.options import command, json_option, run_argument
from coding_agent.cli.screen import Screen
from coding_agent.errors import InvalidInput, NotFound
from coding_agent.run import outputs_dict

if TYPE_CHECKING:
    from coding_agent.records import Record
    from coding_agent.work_queue.entry import Entry


@command("kill", examples=["kill fix-build", "kill 3f9a2c --json"], codes=[(0, "the agent has ended"), 3, 4])
@run_argument
@json_option
def kill_command(run: str, as_json: bool) -> int:
    """End a run's agent and everything it started. Its stack and its results stay.

    A task that waits in the queue, or is being started, is ended there.
    """
    from coding_agent import lifecycle

    screen = Screen(as_json=as_json)
    entry = names.queued(run)
    if entry is not None and not entry.state.final:
        _end_in_queue(screen, entry)
        return 0
    found = names.find_run(run, say=Screen(as_json=True).say)
    ended = found.outputs.status.final
    if ended:
        screen.say(f"run {found.run_id} has ended already: {found.outputs.status}")
    else:
        found = lifecycle.kill(found, say=screen.say)
    if as_json:
        screen.data(summary.document(found))
    elif not ended:
        summary.show(screen, found)
    return 0


def _end_in_queue(screen: Screen, entry: Entry) -> None:
    from coding_agent.api import Task

    task = Task(entry=entry)
    with screen.working(f"{entry.name}: ending"):
        task.kill()
    outputs = task.outputs
    known = records.load(outputs.run_id)
    if known is not None:
        screen.data(summary.document(known)) if screen.as_json else summary.show(screen, known)
    elif screen.as_json:
        screen.data(outputs_dict(outputs))
    else:
        screen.say(f"{entry.name} is {outputs.status}: it had not been started")


@command("collect", examples=["collect fix-build"], codes=[(0, "what it made is here"), (2, "it still runs"), 3, 4])
@run_argument
@json_option
def collect_command(run: str, as_json: bool) -> int:
    """Bring back what an ended run made: its commits as a branch, its patch, artifacts and logs."""
    from coding_agent import lifecycle

    screen = Screen(as_json=as_json)
    found = names.find_run(run, say=Screen(as_json=True).say)
    if not found.collected:
        found = lifecycle.observe(found, say=screen.say, collect=True)
    if not found.outputs.status.final:
        raise InvalidInput(
            f"run {found.run_id} is still {found.outputs.status}",
            next_step=f"follow it with `coding-agent logs -f {found.stack}` or end it with `coding-agent kill`",
        )
    files = sorted(_files(found.folder))
    if as_json:
        screen.data({**summary.document(found), "folder": str(found.folder), "files": [str(each) for each in files]})
        return 0
    kept = [("branch", found.outputs.branch or ""), *(("notice", each) for each in found.outputs.notices)]
    screen.table(("", ""), [*(each for each in kept if each[1]), *(("file", str(each)) for each in files)])
    return 0


@command(
    "destroy",
    examples=["destroy fix-build", "destroy fix-build --discard --yes"],
    codes=[(0, "nothing is left but the results"), 2, 3, 4],
)
@run_argument
@click.option("--discard", is_flag=True, help="Don't bring the run's work back first: it is lost.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask. Without a terminal nothing is asked either.")
@json_option
def destroy_command(run: str, discard: bool, yes: bool, as_json: bool) -> int:
    """End a run, bring its work back, remove it from its executor and remove its stack.

    The branch, the patch and the logs that came back stay; `logs` and `status` go on working.
    """
    screen = Screen(as_json=as_json)
    entry, found = names.queued(run), _known(run)
    name = entry.name if entry else found.stack if found else _stack_alone(run)
    if not yes and sys.stdin.isatty():
        _ask(found, name, discard)
    with screen.working(f"{name}: removing") as say:
        if entry is not None:
            from coding_agent.api import Task

            Task(found, entry).cleanup(discard=discard)
        else:
            _remove(found, name, discard, say)
    if as_json:
        screen.data({"stack": name, "run_id": found.run_id if found else None, "destroyed": True})
        return 0
    fresh = _known(found.run_id) if found else None
    replaced = found is not None and _known(name) not in (None, fresh)
    screen.say(f"run {found.run_id} is removed; {name} has a later one" if found and replaced else f"{name} is removed")
    if fresh and fresh.outputs.branch:
        screen.say(f"  its commits are in the branch {fresh.outputs.branch}")
    if fresh and fresh.outputs.patch and Path(fresh.outputs.patch).is_file():
        screen.say(f"  its changes are in {fresh.outputs.patch}")
    return 0


def _known(word: str) -> Record | None:
    try:
        return names.record(word)
    except NotFound:
        return None


def _stack_alone(word: str) -> str:
    """Return the name of a stack that has no run on this machine. Raises NotFound outside of a project."""
    if names.project_root() is None:
        names.record(word)  # raises, saying what is known
    return word


def _remove(found: Record | None, name: str, discard: bool, say: Callable[[str], None]) -> None:
    if found:
        from coding_agent import dispatched

        dispatched.destroy(found, discard=discard, say=say)
        return
    from coding_agent import stack

    root = names.project_root() or Path.cwd()
    try:
        stack.open_stack(root, name, create=False, progress=say).destroy(discard=discard, say=say)
    except NotFound:
        names.record(name)  # raises too, and knows where else there is such a run
        raise


def _ask(found: Record | None, name: str, discard: bool) -> None:
    running = found is not None and not found.outputs.status.final
    if not running and not discard:
        return
    what = f"{name} is still running; it will be ended" if running else name
    loss = ", and its work will be LOST" if discard else ""
    if not click.confirm(f"{what}{loss}. Go on?", err=True):
        raise InvalidInput("not confirmed: nothing was done")


def _files(folder: Path) -> list[Path]:
    return [each for each in folder.rglob("*") if each.is_file() and each.name != "record.json"]
