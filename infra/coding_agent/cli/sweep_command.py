"""`sweep`: what is left in the cloud that no stack owns, and removing it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from coding_agent.cli import names
from coding_agent.cli.options import command, json_option
from coding_agent.cli.screen import Screen
from coding_agent.errors import InvalidInput
from coding_agent.times import span

if TYPE_CHECKING:
    from coding_agent.unowned import Unowned


@command(
    "sweep",
    examples=["sweep", "sweep --yes", "sweep --everything", "sweep --json"],
    codes=[(0, "it is listed, and removed where that was asked for"), 2, (3, "the cloud or the engine failed")],
)
@click.option("--yes", "-y", is_flag=True, help="Remove it without asking. Without a terminal nothing is asked either.")
@click.option("--everything", is_flag=True, help="Also what is of projects that are not known on this machine.")
@json_option
def sweep_command(yes: bool, everything: bool, as_json: bool) -> int:
    """List servers, firewalls and keys at Hetzner Cloud that coding-agent made and no stack owns, and remove them.

    Stacks are those in the backend of the project around the current folder, and of tasks that were dispatched here. A
    colleague's in another backend are not seen: what is of a project that was never used on this machine is left alone,
    unless --everything is given.
    """
    from coding_agent import unowned
    from coding_agent.executors import hetzner_api

    screen = Screen(as_json=as_json)
    cloud = hetzner_api.cloud()
    with screen.working("looking at Hetzner Cloud and at the stacks") as say:
        found = unowned.find(cloud, names.project_root(), say)
    wanted = [each for each in found if each.ours or everything]
    if not as_json:
        _show(screen, found, wanted)
    removes = bool(wanted) and (yes or (not as_json and sys.stdin.isatty() and _asked(len(wanted))))
    if removes:
        with screen.working("removing") as say:
            for each in wanted:
                say(f"removing the {each.left}")
                cloud.remove([each.left])
    if as_json:
        screen.data([_document(each, removed=removes and each in wanted) for each in found])
    elif removes:
        screen.say(f"removed: {len(wanted)}")
    elif wanted:
        screen.say("nothing was removed; `coding-agent sweep --yes` does it")
    return 0


def _show(screen: Screen, found: Sequence[Unowned], wanted: Sequence[Unowned]) -> None:
    if not found:
        screen.say("nothing is left in the cloud that no stack owns")
        return
    rows = [
        (
            each.left.kind.replace("_", " "),
            each.left.name,
            each.left.project,
            each.left.stack,
            span(max(time.time() - each.left.created_at, 0.0)),
            "" if each in wanted else "of a project that is not known here: left alone",
        )
        for each in found
    ]
    screen.table(("KIND", "NAME", "PROJECT", "STACK", "AGE", ""), rows)


def _asked(count: int) -> bool:
    if not click.confirm(f"Remove {count}? What runs there is lost", err=True):
        raise InvalidInput("not confirmed: nothing was removed")
    return True


def _document(found: Unowned, *, removed: bool) -> dict[str, object]:
    left = found.left
    return {
        "kind": left.kind,
        "id": left.id,
        "name": left.name,
        "project": left.project,
        "stack": left.stack,
        "run_id": left.run,
        "created_at": left.created_at,
        "known_project": found.ours,
        "removed": removed,
    }
