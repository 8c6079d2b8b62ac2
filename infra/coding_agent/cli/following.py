"""Following a run that a command has started, and what is shown at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coding_agent.cli import summary
from coding_agent.cli.screen import Screen
from coding_agent.cli.signals import INTERRUPTED, stopping
from coding_agent.errors import CodingAgentError

if TYPE_CHECKING:
    from coding_agent.records import Record
    from coding_agent.stack import Stack


def record(outputs: dict[str, Any]) -> Record:
    """Return the record of the run whose outputs these are. Raises `CodingAgentError` where this machine has none."""
    from coding_agent import records

    run_id = str(outputs.get("run_id", ""))
    found = records.load(run_id) if run_id else None
    if found is None:
        raise CodingAgentError(
            f"the run {run_id or 'of this stack'} is not known on this machine",
            next_step="`coding-agent up` once more reads it anew; `coding-agent doctor` says what is missing here",
        )
    return found


def follow(screen: Screen, run: Record, *, attempt: int | None = None) -> tuple[Record, bool]:
    """Show what the agent does; return the run as it is then, and whether Ctrl-C ended the following.

    With `attempt` what was before that one is not shown.
    """
    from coding_agent import lifecycle

    screen.say(f"{run.stack}: run {run.run_id} on {run.outputs.executor}; Ctrl-C stops following, not the agent")
    with stopping() as stop:
        run = lifecycle.follow(run, say=screen.say, stop=stop, attempt=attempt)
        return run, stop.is_set() and not run.outputs.status.final


def refresh(screen: Screen, stack: Stack, run: Record) -> None:
    """Let the stack say how the run ended: it still says what was true when the agent started."""
    from coding_agent import executors

    try:
        if executors.gives_back(run.spec):
            stack.up(wait=False, say=lambda _line: None)  # nor has it any more what was made for the run
        else:
            stack.refresh(say=lambda _line: None)
    except CodingAgentError as error:
        # How the run ended is known all the same.
        screen.say(f"the stack's outputs are not up to date, the next `up` does it: {error.message}")


def finish(screen: Screen, run: Record, *, interrupted: bool) -> int:
    """Show how a run that was followed stands, and what can be done next; return the exit code that says so."""
    outputs = run.outputs
    screen.say("")
    if interrupted:
        screen.say(f"interrupted; the agent goes on as run {run.run_id}")
    elif not outputs.status.final:
        screen.say(f"run {run.run_id} is {outputs.status} and can't be followed: {outputs.reason or 'no answer'}")
    if screen.as_json:
        screen.data(summary.document(run))
    elif outputs.status.final:
        summary.show(screen, run)
    for step in summary.next_steps(run):
        screen.say(f"  {step}")
    if interrupted:
        return INTERRUPTED
    return summary.exit_code(outputs) if outputs.status.final else CodingAgentError.exit_code


def detached(screen: Screen, run: Record) -> int:
    """Show that a run was started which is not followed; return the exit code that says how it stands."""
    status = run.outputs.status
    screen.say(f"{run.stack}: run {run.run_id} on {run.outputs.executor}: {status}")
    if screen.as_json:
        screen.data(summary.document(run))
    for step in summary.next_steps(run):
        screen.say(f"  {step}")
    return summary.exit_code(run.outputs)
