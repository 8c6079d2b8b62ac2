"""`resume`: an agent that has ended goes on."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING

import click

from coding_agent import records
from coding_agent.cli import following, names
from coding_agent.cli.options import command, json_option, run_argument
from coding_agent.cli.screen import Screen
from coding_agent.errors import CodingAgentError, InvalidInput

if TYPE_CHECKING:
    from coding_agent.records import Record
    from coding_agent.work_queue.entry import Entry


@command(
    "resume",
    examples=[
        "resume fix-build",
        'resume fix-build --prompt "The tests still fail: look at test_parser."',
        "resume fix-build --prompt-file notes.md --detach",
        "resume review --prompt-file - <notes.md",
    ],
    codes=[(0, "the run succeeded (with --detach: it goes on)"), 1, 2, 3, 4, 130],
)
@run_argument
@click.option("--prompt", metavar="TEXT", help="What the agent is told. Without it: to go on where it stopped.")
@click.option(
    "--prompt-file", type=click.File("rb"), metavar="FILE", help="A file with what the agent is told; - for stdin."
)
@click.option("--detach", "-d", is_flag=True, help="Return once the agent goes on; don't follow it.")
@json_option
def resume_command(run: str, prompt: str | None, prompt_file: IO[bytes] | None, detach: bool, as_json: bool) -> int:
    """Let an agent that has ended go on: its own session, in its own workspace.

    It may have reached its limits, been killed, been lost with its machine's disk alive, or have finished. This is the
    next attempt of the same run: turns and cost are those of all attempts, and its patch is what all of them changed.
    The limits hold for each attempt. A task that was dispatched waits for room on its executor.
    """
    screen = Screen(as_json=as_json)
    said = _said(prompt, prompt_file)
    entry = names.queued(run)
    if entry is not None:
        return _in_queue(screen, entry, said, detach)
    found = names.find_run(run, say=Screen(as_json=True).say)
    attempt = found.outputs.attempts + 1
    with screen.working(f"{found.stack}: resuming") as say:
        from coding_agent.resume import resume

        found = resume(found, prompt=said, say=say)
    if detach:
        _refresh(screen, found)
        return following.detached(screen, found)
    found, interrupted = following.follow(screen, found, attempt=attempt)
    _refresh(screen, found)
    return following.finish(screen, names.record(found.run_id), interrupted=interrupted)


def _said(prompt: str | None, file: IO[bytes] | None) -> str | None:
    if prompt is not None and file is not None:
        raise InvalidInput("--prompt and --prompt-file say two things", next_step="give one of them")
    if file is None:
        return prompt
    if file.name == "<stdin>" and sys.stdin.isatty():
        raise InvalidInput("there is nothing on stdin", next_step="name a file, or give the text with --prompt")
    try:
        return file.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file.name} is not UTF-8 text: {error}") from None


def _in_queue(screen: Screen, entry: Entry, prompt: str | None, detach: bool) -> int:
    from coding_agent.api import Task

    task = Task(entry=entry)
    before = task.outputs.attempts
    with screen.working(f"{entry.name}: resuming") as say:
        task.resume(prompt, say=say)
    if detach:
        screen.say(f"{entry.name} waits in the queue; `coding-agent why {entry.name}` says what for")
        if screen.as_json:
            from coding_agent.cli.queue_command import document
            from coding_agent.work_queue import database
            from coding_agent.work_queue.queue import Queue

            with database.opened() as found:
                screen.data(document(Queue(found).find(entry.id)))
        return 0
    interrupted = False
    try:
        task.wait(say=screen.say)
    except KeyboardInterrupt:
        interrupted = True
    known = records.load(task.outputs.run_id)
    if known is None:
        raise CodingAgentError(f"the run of task {entry.name} is not known on this machine")
    if not interrupted and known.outputs.attempts <= before:
        ended = names.queued(entry.id)
        raise InvalidInput(f"{entry.name} does not go on: {(ended and ended.detail) or 'nobody said why'}")
    return following.finish(screen, known, interrupted=interrupted)


def _refresh(screen: Screen, run: Record) -> None:
    """Let the stack say what its run says; where that fails, the next `up` does it."""
    from coding_agent import dispatched, stack

    try:
        opened = stack.open_stack(dispatched.stack_root(run), run.stack, create=False, progress=lambda _line: None)
    except CodingAgentError as error:
        screen.say(f"the stack's outputs are not up to date, the next `up` does it: {error.message}")
    else:
        following.refresh(screen, opened, run)
