"""`up` and `preview`: from a task's file to a run, or only what would be done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coding_agent.cli import following, names, summary
from coding_agent.cli.options import command, json_option, task_argument
from coding_agent.cli.screen import Screen
from coding_agent.cli.signals import INTERRUPTED
from coding_agent.executors.base import TARGET_GONE

if TYPE_CHECKING:
    from coding_agent.stack import Stack
    from coding_agent.task import Task


@command(
    "up",
    examples=[
        "up fix-build",
        "up tasks/fix-build.yaml --detach",
        "up fix-build --rerun",
        "up fix-build --refresh",
        "up fix-build --json | jq .branch",
    ],
    codes=[(0, "the run succeeded (with --detach: it was started)"), 1, 2, 3, 4, 130],
)
@task_argument
@click.option("--detach", "-d", is_flag=True, help="Return once the agent has started; don't follow it.")
@click.option("--rerun", is_flag=True, help="Run it again although nothing changed.")
@click.option("--refresh", is_flag=True, help="Look first what is left of its target: what is gone is made anew.")
@json_option
def up_command(task: str, detach: bool, rerun: bool, refresh: bool, as_json: bool) -> int:
    """Run a task, or adopt its run, and follow it to its end.

    Where the task has a run already and nothing about it changed, that run is followed; a changed task ends the run and
    starts anew. Ctrl-C stops the following, not the agent. A task with `wait: false` is not followed either.
    """
    screen = Screen(as_json=as_json)
    loaded = _load(names.task_file(task))
    begun = time.time()
    try:
        with screen.working(f"{loaded.name}: preparing") as say:
            stack = _stack(loaded, say)
            run = following.record(stack.up(wait=False, rerun=rerun, refresh=refresh, say=say))
    except KeyboardInterrupt:
        return _interrupted(screen, loaded)
    if detach or (not loaded.wait and not run.outputs.status.final):
        return following.detached(screen, run)
    ended, fresh, interrupted = run.outputs.status.final, run.created_at >= begun, False
    if not ended or fresh:  # a quick one may have ended already: what it did is shown all the same
        run, interrupted = following.follow(screen, run)
    elif not as_json:
        screen.say(f"nothing changed: the run of {summary.age(run)} ago stands; --rerun makes another")
    # Where its target is gone, a refresh would find that out, and the next `up` make another and run the task again.
    known = ended and not (fresh and run.removed)  # of one that was given back the stack has still all
    if run.outputs.status.final and not known and run.outputs.reason != TARGET_GONE:
        following.refresh(screen, stack, run)
        run = names.record(run.run_id)
    return following.finish(screen, run, interrupted=interrupted)


@command("preview", examples=["preview fix-build"], codes=[(0, "the preview worked, whatever it shows"), 2, 3, 4])
@task_argument
@json_option
def preview_command(task: str, as_json: bool) -> int:
    """Show what `up` would do with a task. Runs nothing of it and looks up no secret."""
    screen = Screen(as_json=as_json)
    loaded = _load(names.task_file(task))
    with screen.working(f"{loaded.name}: comparing") as say:
        found = _stack(loaded, say).preview(say=say)
    if as_json:
        screen.data(asdict(found))
    else:
        screen.say(str(found))
    return 0


def _load(path: Path) -> Task:
    from coding_agent import task
    from coding_agent.settings import Settings

    settings = Settings.load()
    loaded = task.load(path, settings=settings)
    settings.choose(loaded)  # raises before the engine is asked for anything
    return loaded


def _stack(task: Task, say: Callable[[str], None]) -> Stack:
    from coding_agent import stack

    return stack.open_stack(task.root, task.name, task_file=task.source, progress=say)


def _interrupted(screen: Screen, task: Task) -> int:
    """Say what an interrupted start left: a run that goes on, or nothing yet."""
    from coding_agent import records

    known = [each for each in records.everything() if each.stack == task.name and Path(each.root) == task.root]
    if known and not known[0].outputs.status.final:
        return following.finish(screen, known[0], interrupted=True)
    screen.say(f"interrupted before the agent of {task.name} had started")
    screen.say(f"  coding-agent up {task.name}    # goes on from there: what has started is adopted, not repeated")
    if screen.as_json:
        screen.data({"error": {"type": "Interrupted", "message": "interrupted"}, "exit_code": INTERRUPTED})
    return INTERRUPTED
