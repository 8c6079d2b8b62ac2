"""A project as our door to the engine sees it: a work folder of our own that stands for the user's.

In the user's own folder the engine would change which stack is selected there, and would run in another folder than
`pulumi up` does. The work folder's Pulumi.yaml says the same as the user's, with absolute paths.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from coding_agent import paths
from coding_agent.errors import InvalidInput

FILE = "Pulumi.yaml"
PLUGIN = "pulumi-resource-coding-agent"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Project:
    """A user's project and its work folder."""

    root: Path
    name: str
    work: Path
    settings: Path  # the folder with Pulumi.<stack>.yaml

    def stack_file(self, stack: str) -> Path:
        """Return the file with a stack's configuration."""
        return self.settings / f"Pulumi.{stack}.yaml"


def open_project(root: Path) -> Project:
    """Return the project at `root`, its work folder ready. Raises `InvalidInput` for a Pulumi.yaml that can't be read.

    A folder without a Pulumi.yaml is a project too, known on this machine only.
    """
    root = root.resolve()
    mark = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    work = paths.state_dir() / "projects" / mark
    declared = _declared(root)
    name = str(declared.get("name") or default_name(root, mark[:6]))
    if declared:
        settings = root / str(declared.get("stackConfigDir") or declared.get("config-dir") or "")
    else:
        settings = work / "stacks"
    project = Project(root, name, work, settings)
    try:
        settings.mkdir(parents=True, exist_ok=True)
        _prepare(project, declared)
    except OSError as error:
        raise InvalidInput(
            f"{error.filename or work} can't be written: {error.strerror}",
            next_step="make it writable; XDG_STATE_HOME names another folder for what is ours",
        ) from error
    return project


def _prepare(project: Project, declared: Mapping[str, Any]) -> None:
    project.work.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(project.work / FILE, yaml.safe_dump(_own(declared, project), sort_keys=False), 0o600)
    starter = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m coding_agent.provider "$@"\n'
    (project.work / "plugin").mkdir(exist_ok=True)
    _write(project.work / "plugin" / PLUGIN, starter, 0o700)


def default_name(root: Path, mark: str) -> str:
    """Return a project's name: the folder's, as far as the engine accepts it, and what makes it unique.

    >>> default_name(Path("/home/me/My Shop!"), "3f9a2c")
    'My-Shop-3f9a2c'
    """
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", root.name).strip("-.")[:60]
    return f"{word or 'project'}-{mark}"


def name_task(project: Project, stack: str, task: Path) -> None:
    """Let the stack's configuration name the task's file, where it isn't the one that a stack of this name has."""
    file = project.stack_file(stack)
    usual = {project.root / "tasks" / f"{stack}{suffix}" for suffix in (".yaml", ".yml")}
    settings = _load(file) if file.is_file() else {}
    config = settings.get("config")
    config = dict(config) if isinstance(config, Mapping) else {}
    named = config.get("coding-agent:task")
    wanted = str(task.relative_to(project.root)) if task.is_relative_to(project.root) else str(task)
    if named == wanted or (named is None and task in usual):
        return
    if task in usual:
        del config["coding-agent:task"]
    else:
        config["coding-agent:task"] = wanted
    _write(file, yaml.safe_dump({**settings, "config": config}, sort_keys=False), 0o600)


def _declared(root: Path) -> Mapping[str, Any]:
    file = root / FILE
    return _load(file) if file.is_file() else {}


def _load(file: Path) -> dict[str, Any]:
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - a safe loader, in C
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"{file} can't be read: {' '.join(str(error).split())}", next_step="correct it") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InvalidInput(f"{file} is no mapping", next_step="correct it")
    return data


def _own(declared: Mapping[str, Any], project: Project) -> dict[str, Any]:
    """Return what the work folder's Pulumi.yaml says."""
    kept = {name: value for name, value in declared.items() if name not in ("main", "plugins", "backend", "config-dir")}
    plugins = declared.get("plugins")
    plugins = dict(plugins) if isinstance(plugins, Mapping) else {}
    for kind, entries in plugins.items():
        plugins[kind] = [_absolute(entry, project.root) for entry in entries or ()]
    others = [each for each in plugins.get("providers", ()) if each.get("name") != "coding-agent"]
    ours = {"name": "coding-agent", "path": str(project.work / "plugin")}
    return {
        **kept,
        "name": project.name,
        "runtime": "python",
        # Relative: to an absolute one the engine puts its working folder in front.
        "stackConfigDir": os.path.relpath(project.settings.resolve(), project.work.resolve()),
        "plugins": {**plugins, "providers": [*others, ours]},
    }


def _absolute(entry: Mapping[str, Any], root: Path) -> dict[str, Any]:
    return {**entry, "path": str(root / str(entry["path"]))} if "path" in entry else dict(entry)


def _write(file: Path, text: str, mode: int) -> None:
    """Write a file that others may be reading, unless it says so already."""
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as out:
            out.write(text)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
