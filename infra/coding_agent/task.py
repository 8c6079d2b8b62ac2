"""A task file -> a frozen `Task`. No later stage sees YAML. Reading a file runs nothing and resolves no secret."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from coding_agent.agent_settings import STANDARD_TOOLS, Agent, Limits
from coding_agent.document import InvalidFile, Problem
from coding_agent.settings import ExecutorSpec, Settings
from coding_agent.task_text import dump

__all__ = [
    "STANDARD_TOOLS",
    "Agent",
    "File",
    "InvalidFile",
    "Limits",
    "Problem",
    "Repo",
    "Task",
    "dump",
    "load",
    "validate",
]

# No task file has these keys.
_OF_EXECUTORS_FILE = {"executors", "defaults", "allow_inline"}


@dataclass(frozen=True)
class Repo:
    """What is checked out: the repository around the task file (`path`), or another by its address."""

    path: bool = False
    url: str | None = None
    ref: str | None = None  # None: HEAD
    uncommitted: Literal["include", "ignore", "refuse"] = "refuse"  # of the repository around the task file


@dataclass(frozen=True)
class File:
    """A file for the workspace."""

    path: str  # relative to the workspace, never out of it
    content: bytes
    mode: int = 0o644


@dataclass(frozen=True)
class Task:
    """What to do, where, with what, and within which limits."""

    name: str
    description: str
    prompt: str | None  # None: `command` is set
    command: str | None
    executor: str | ExecutorSpec | None
    labels: tuple[str, ...]
    repo: Repo | None
    branch: str  # begins with coding-agent/
    workdir: str | None  # relative to the workspace, or (beginning with / or ~) a folder of the executor's
    files: tuple[File, ...]
    setup: tuple[str, ...]
    env: Mapping[str, str]
    secrets: tuple[str, ...]  # names
    agent: Agent
    limits: Limits
    artifacts: tuple[str, ...]
    wait: bool
    source: Path
    root: Path  # the project: where the nearest Pulumi.yaml is, else the repository, else the file's own folder

    def payload(self) -> dict[str, Any]:
        """Return exactly what makes a new run when it changes, JSON-able; what says nothing is left out.

        Leaving it out keeps a task's digest when a later version knows more fields.
        """
        limits = asdict(self.limits)
        del limits["timeout"]  # changed in place
        agent = asdict(self.agent) | {"mcp_config": _digested(self.agent.mcp_config)}
        payload = {
            "prompt": _digested(self.prompt),
            "command": self.command,
            "agent": _said(agent) if self.prompt is not None else None,
            "executor": _said(asdict(self.executor)) if isinstance(self.executor, ExecutorSpec) else self.executor,
            "repo": _said(asdict(self.repo)) if self.repo else None,
            "branch": self.branch if self.repo else None,
            "workdir": self.workdir,
            "files": {file.path: {**_digest(file.content), "mode": f"{file.mode:04o}"} for file in self.files},
            "setup": list(self.setup),
            "env": dict(self.env),
            "secrets": sorted(self.secrets),
            "limits": _said(limits),
        }
        return _said(payload)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the payload, in hexadecimal digits."""
        text = json.dumps(self.payload(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def load(path: Path, *, settings: Settings | None = None) -> Task:
    """Read a task file. Raises `InvalidFile` with everything that is wrong with it.

    With `settings` executors are looked up by name, and defaults fill in what the task doesn't say; without, neither.
    """
    from coding_agent import document, task_reading

    found = document.load(Path(path))
    task = task_reading.read(found, settings)
    found.check()
    return task


def validate(paths: Sequence[Path], settings: Settings | None) -> list[Problem]:
    """Return everything that is wrong with all the files: tasks, and executors files (those with `executors:`)."""
    from coding_agent import document, task_reading
    from coding_agent.settings import read

    problems: list[Problem] = []
    for path in paths:
        try:
            found = document.load(Path(path))
            if _is_executors_file(found.data):
                read(found)
            else:
                task_reading.read(found, settings)
            problems += found.problems
        except InvalidFile as error:
            problems += error.problems
    return problems


def _is_executors_file(data: Any) -> bool:
    if not isinstance(data, dict):
        return False
    # A file with secrets alone can be one; in a task file they are a list, and there is something to do.
    secrets_alone = isinstance(data.get("secrets"), dict) and not {"prompt", "prompt_file", "command"} & data.keys()
    return secrets_alone or bool(_OF_EXECUTORS_FILE & data.keys())


def _digested(text: str | None) -> dict[str, Any] | None:
    return None if text is None else _digest(text.encode())


def _digest(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    empty: tuple[Any, ...] = (None, False, "", [], {}, ())
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if not any(value is each or (value == each and type(value) is type(each)) for each in empty)
    }
