"""What is left in the cloud that no stack owns: of a stack that was removed while the cloud did not answer, or lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coding_agent import paths
from coding_agent.project import open_project

if TYPE_CHECKING:
    from coding_agent.executors.hetzner_api import Cloud, Left

Say = Callable[[str], None]


@dataclass(frozen=True)
class Unowned:
    """Something in the cloud that carries our labels, while no stack that is known here has their name."""

    left: Left
    ours: bool  # whether its project is known on this machine: of another one the stacks may be in another backend


def find(cloud: Cloud, root: Path | None, say: Say) -> list[Unowned]:
    """Return what no stack owns, of those in the backend of the project at `root` and in the default one.

    Raises `EngineMissing`, `EngineFailed`, and what `Cloud.left` does.
    """
    from coding_agent import stack
    from coding_agent.executors.hetzner_api import label

    # Looked for first: what a stack orders meanwhile is not among it.
    left = cloud.left()
    if not left:
        return []
    homes = {each for each in (root, paths.state_dir() / "dispatch") if each is not None and each.is_dir()}
    stacks = {pair for home in homes or {Path.cwd()} for pair in stack.known(home, say)}
    owned = {(label(project), label(name)) for project, name in stacks}
    projects = {project for project, _ in owned} | {label(name) for name in _projects(root)}
    return [Unowned(each, each.project in projects) for each in left if (each.project, each.stack) not in owned]


def _projects(root: Path | None) -> Iterable[str]:
    """Return the names of the projects that were used on this machine."""
    if root is not None:
        yield open_project(root).name
    for file in (paths.state_dir() / "projects").glob("*/Pulumi.yaml"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("name: "):
                yield line.removeprefix("name: ").strip("'\"")
