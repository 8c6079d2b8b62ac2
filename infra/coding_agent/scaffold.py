"""The files of a new project, over the installed package."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from coding_agent.errors import InvalidInput

_HERE = Path(__file__).parent
# Where a file goes in the project, the one that it is made of, and its mode.
_FILES = (
    ("Pulumi.yaml", "template/Pulumi.yaml", 0o644),
    ("infra/__main__.py", "template/main.txt", 0o644),
    ("infra/plugin/pulumi-resource-coding-agent", "template/plugin.sh", 0o755),
    ("tasks/example.yaml", "template/example.yaml", 0o644),
    ("tasks/task.schema.json", "schemas/task.schema.json", 0o644),
    ("infra/.gitignore", "template/gitignore-infra.txt", 0o644),
    ("stacks/.gitignore", "template/gitignore-stacks.txt", 0o644),
)
_GITHUB = (
    (".github/workflows/coding-agent.yml", "template/workflow.yml", 0o644),
    (".github/coding-agent.yaml", "template/executors.yaml", 0o644),
)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


def scaffold(root: Path, project_name: str | None = None, *, github: bool = False) -> list[Path]:
    """Make `root` a project and return the files that were made; what is there already stays as it is.

    Without `project_name` the project gets the folder's, and something that makes it unique: two projects of one name
    on one backend would share their stacks. With `github` a workflow of GitHub Actions is made, too. Raises
    `InvalidInput` for a name that the engine refuses, and where a file can't be written.
    """
    if project_name is not None and not _NAME.fullmatch(project_name):
        raise InvalidInput(
            f"{project_name!r} can't be the name of a project",
            next_step="use up to 100 letters, digits, points, hyphens and underscores",
        )
    name = project_name or _unique_name(root)
    made = []
    for place, source, mode in (*_FILES, *(_GITHUB if github else ())):
        path = root / place
        text = (_HERE / source).read_text(encoding="utf-8")
        if place == "Pulumi.yaml":
            text = text.format(project=name)
        if _write(path, text, mode):
            made.append(path)
    return made


def _unique_name(root: Path) -> str:
    from coding_agent.project import default_name

    return default_name(root.absolute(), secrets.token_hex(3))


def _write(path: Path, text: str, mode: int) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        path.chmod(mode)
    except FileExistsError:
        if path.parent.is_dir():
            return False
        raise InvalidInput(f"{path.parent} is no folder", next_step="move it away") from None
    except OSError as error:
        raise InvalidInput(f"{path} can't be written: {error.strerror}", next_step="choose another folder") from error
    return True
