"""What a run finds on a target that is asked for it: its home, its environment, the agent's program, what it lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coding_agent.errors import ConnectionBroken

if TYPE_CHECKING:
    from coding_agent.executors.base import Executor

LIMIT = 60.0  # seconds


@dataclass(frozen=True)
class Found:
    """What a target has; as hostile as the target."""

    home: str
    program: str | None  # the agent's, absolute
    version: str  # the program's, where it was asked for; empty where it did not say one
    missing: tuple[str, ...]
    environment: Mapping[str, str]  # of every command there


def survey(executor: Executor, program: str, *, git: bool, version: str) -> Found:
    """Ask a target what it has. `program` is a path or a name (empty: none is needed), `version` the one demanded.

    Raises `ConnectionBroken` where it does not answer, or not in a way that can be read.
    """
    done = executor.script("survey.sh", executor.root, program, "git" if git else "", version, timeout=LIMIT)
    executor.expect(done, "looking at what is there")
    head, *pairs = done.stdout.decode("utf-8", "replace").split("\0")
    try:
        said: dict[str, Any] = json.loads(head)
        home, claude, missing = str(said["home"]), str(said["claude"]), str(said["missing"]).split()
        has = str(said["version"]).split(" ")[0]
    except (ValueError, KeyError, TypeError) as error:
        raise ConnectionBroken(f"{executor.name} gave no readable answer to what it has") from error
    environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    for name in [each for each in environment if each.startswith("CODING_AGENT_")]:
        del environment[name]
    environment["HOME"] = home
    return Found(home, claude or None, has, tuple(missing), environment)
