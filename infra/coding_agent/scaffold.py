"""The files of a new project, over the installed package."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
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
_HASHES = ".github/coding-agent-requirements.txt"
_ABOUT_HASHES = """\
# What .github/workflows/coding-agent.yml installs: coding-agent {version} and all that it needs, each by its hash. For
# another version install that one at home, remove this file, and let `coding-agent init --github` write it anew.
"""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


def scaffold(
    root: Path, project_name: str | None = None, *, github: bool = False, say: Callable[[str], None] = print
) -> list[Path]:
    """Make `root` a project and return the files that were made; what is there already stays as it is.

    Without `project_name` the project gets the folder's, and something that makes it unique: two projects of one name
    on one backend would share their stacks. With `github` a workflow of GitHub Actions is made, too, and the file of
    hashes that it installs from; `say` is told what is left to do there. Raises `InvalidInput` for a name that the
    engine refuses, and where a file can't be written.
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
    if github and not (root / _HASHES).exists():
        _write(root / _HASHES, _hashes(say), 0o644)
        made.append(root / _HASHES)
    return made


def _hashes(say: Callable[[str], None]) -> str:
    from coding_agent import __version__, own_wheel

    needed = (_HERE / "template" / "requirements.txt").read_text(encoding="utf-8")
    lines = [line for line in needed.splitlines() if not line.startswith("#")]
    try:
        ours = own_wheel.requirement()
    except own_wheel.NotPinned as error:
        ours = (
            f"# The hash of this one was not known: {error}.\n"
            f"# Add it from the release's SHA256SUMS, as `--hash=sha256:...`: pip installs nothing without.\n"
            f"{own_wheel.unpinned()}"
        )
        say(f"the hash of coding-agent {__version__} itself is not known here: {error}; {_HASHES} says what to add")
    return _ABOUT_HASHES.format(version=__version__) + "\n".join([*lines, ours]) + "\n"


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
