"""`sync`: the folder of task files is what shall be; everything else follows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coding_agent.cli import names
from coding_agent.cli.options import command, json_option
from coding_agent.cli.screen import Screen
from coding_agent.errors import CodingAgentError, InvalidInput, RunFailed

if TYPE_CHECKING:
    from coding_agent.sync import Change, Outcome


@command(
    "sync",
    examples=["sync --dry-run", "sync tasks/ --prune", "sync --detach --json"],
    codes=[(0, "all is as the files say, and each run that was made succeeded"), 1, 2, 3],
)
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option("--prune", is_flag=True, help="Remove the runs whose task file is gone.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--detach", "-d", is_flag=True, help="Return once all of it is in the queue.")
@json_option
def sync_command(folder: Path | None, prune: bool, dry_run: bool, detach: bool, as_json: bool) -> int:
    """Let the project's runs be what the task files of DIR (default: tasks/) say.

    A task without a run is run, one whose file was changed is ended and run anew, one that is as it was stays. All of
    it goes through the queue, several at once; what failed is run again when its file is changed.
    """
    from coding_agent import sync

    screen = Screen(as_json=as_json)
    where = (folder or _usual()).resolve()
    with screen.working(f"comparing {where} with what there is") as say:
        changes = sync.plan(where, prune=prune, say=say)
    if not as_json:
        screen.table(("TASK", "CHANGE", "WHY"), [(each.name, each.kind, each.why) for each in changes])
    if dry_run or all(each.kind in ("kept", "left") for each in changes):
        screen.say(_counted(changes))
        if as_json:
            screen.data([_document(each) for each in changes])
        return 0
    with screen.working("bringing it about") as say:
        entries = sync.carry_out(changes, where, say)
        outcomes = [sync.Outcome(each, "queued") for each in changes] if detach else sync.wait(changes, entries, say)
    screen.say(_counted(changes))
    if as_json:
        screen.data([_document(each.change, each) for each in outcomes])
    failed = [each for each in outcomes if each.failed]
    if any(each.state == "not_removed" for each in failed):
        return CodingAgentError.exit_code
    return RunFailed.exit_code if failed else 0


def _usual() -> Path:
    root = names.project_root()
    if root is None:
        raise InvalidInput("this folder is in no project", next_step="name the folder with the task files")
    return root / "tasks"


def _counted(changes: list[Change]) -> str:
    kinds = [each.kind for each in changes]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "no tasks, and no runs"


def _document(change: Change, outcome: Outcome | None = None) -> dict[str, Any]:
    document = {
        "task": change.name,
        "change": change.kind,
        "why": change.why,
        "file": str(change.file) if change.file else None,
    }
    return {**document, **({"state": outcome.state, "detail": outcome.detail} if outcome else {})}
