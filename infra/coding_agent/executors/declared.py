"""What a type of executor is asked to declare for a run, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pulumi

    from coding_agent.settings import ExecutorSpec
    from coding_agent.task import Task


@dataclass(frozen=True)
class Wanted:
    """A run that needs a target."""

    task: Task
    spec: ExecutorSpec
    project: str
    stack: str
    run_id: pulumi.Output[str]
    parent: pulumi.Resource
    preview: bool  # nothing may be run or fetched
    say: Callable[[str], None]


@dataclass(frozen=True)
class Declared:
    """What tells one target from another, and finds it; and the resources that it consists of."""

    target: Mapping[str, Any] = field(default_factory=dict)
    resources: tuple[pulumi.Resource, ...] = ()
