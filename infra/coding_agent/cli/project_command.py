"""`init`, `validate` and `executors`: a project's files and the user's own, read and never run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coding_agent import paths
from coding_agent.cli import names
from coding_agent.cli.options import command, json_option
from coding_agent.cli.screen import Screen
from coding_agent.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from coding_agent.document import Problem
    from coding_agent.settings import ExecutorSpec, Settings


@command(
    "init",
    examples=["init", "init ~/work/shop", "init --name shop", "init --github"],
    codes=[(0, "the project is there"), 2],
)
@click.argument("folder", metavar="[DIR]", type=click.Path(file_okay=False, path_type=Path), default=Path())
@click.option("--name", help="The Pulumi project's name  [default: the folder's, and something that makes it unique]")
@click.option("--github", is_flag=True, help="Make a workflow for GitHub Actions, too, which says what it needs.")
@json_option
def init_command(folder: Path, name: str | None, github: bool, as_json: bool) -> int:
    """Make a project in DIR (default: here). A file that is there already stays as it is."""
    from coding_agent import scaffold

    screen = Screen(as_json=as_json)
    root = folder.resolve()
    made = scaffold.scaffold(root, name, github=github, say=screen.say)
    if as_json:
        screen.data({"root": str(root), "made": [str(path) for path in made]})
        return 0
    for path in made:
        screen.say(f"made {path.relative_to(root) if path.is_relative_to(root) else path}")
    if not made:
        screen.say("everything was there already")
    where = "" if root == Path.cwd() else f"cd {folder} && "
    screen.say("next:")
    if github:
        screen.say("  .github/workflows/coding-agent.yml    # says at its top which settings the repository needs")
    screen.say(f"  {where}coding-agent doctor        # is everything here?")
    screen.say(f"  {where}coding-agent up example    # run the example task")
    return 0


@command(
    "validate",
    examples=["validate", "validate tasks/fix-build.yaml", "validate ~/.config/openclaw/coding-agent.yaml"],
    codes=[(0, "every file is valid"), (2, "at least one is not"), 4],
)
@click.argument("files", metavar="[NAME|FILE]...", nargs=-1, shell_complete=names.complete_task)
@json_option
def validate_command(files: tuple[str, ...], as_json: bool) -> int:
    """Check task files; without any, all of the project and the executors file. Runs nothing, looks up no secret.

    Every error of every file is shown as `file:line:column: field: what is wrong`.
    """
    from coding_agent import task

    screen = Screen(as_json=as_json)
    settings, problems, checked = _settings()
    asked = [names.task_path(word) for word in files] if files else names.task_files()
    tasks = [path for path in asked if path.resolve() != paths.config_file().resolve()]
    problems += task.validate(tasks, settings)
    checked += tasks
    if not checked and not problems:
        raise NotFound("no task file here", next_step="`coding-agent init` makes one, or name a file")
    if as_json:
        valid = not problems
        found = [asdict(each) for each in problems]
        screen.data({"valid": valid, "files": [str(path) for path in checked], "problems": found})
    for problem in problems:
        screen.say(str(problem))
    if problems:
        count = len({each.file for each in problems})
        screen.say(f"{len(problems)} problem(s) in {count} of {len(checked)} file(s)")
        return InvalidInput.exit_code
    screen.say(f"{len(checked)} file(s) valid")
    return 0


@command(
    "executors",
    examples=["executors", "executors --json", "--config other.yaml executors"],
    codes=[0, (2, "the file is invalid")],
)
@json_option
def executors_command(as_json: bool) -> int:
    """List the places where tasks can run, from the executors file."""
    from coding_agent.settings import Settings

    screen = Screen(as_json=as_json)
    settings = Settings.load()
    if as_json:
        screen.data([_executor(each) for each in settings.executors])
        return 0
    rows = [(each.name, each.type, ", ".join(each.labels), _about(each)) for each in settings.executors]
    screen.table(("NAME", "TYPE", "LABELS", ""), rows)
    path = paths.config_file()
    screen.say(f"from {path}" if path.exists() else f"built in; {path} would name more")
    return 0


def _settings() -> tuple[Settings | None, list[Problem], list[Path]]:
    """Read the executors file; where it is invalid, tasks are checked without knowing the executors."""
    from coding_agent.document import InvalidFile
    from coding_agent.settings import Settings

    path = paths.config_file()
    checked = [path] if path.exists() else []
    try:
        return Settings.load(), [], checked
    except InvalidFile as error:
        return None, list(error.problems), checked


def _executor(spec: ExecutorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "type": spec.type,
        "labels": list(spec.labels),
        "claude_path": spec.claude_path,
        "options": dict(spec.options),
    }


def _about(spec: ExecutorSpec) -> str:
    names = ("host", "image", "server_types", "locations")
    return ", ".join(f"{name} {_listed(spec.options[name])}" for name in names if spec.options.get(name))


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
