"""What a type of executor is asked to declare for a run, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coding_agent.executors.before import Before

if TYPE_CHECKING:
    import pulumi

    from coding_agent.settings import ExecutorSpec
    from coding_agent.task import Task


def _forgotten(_what: str, _kept: bool) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Asked:
    """What is asked of one update, beside what the files say."""

    rerun: bool = False  # run it again although nothing changed
    run_id: str = ""  # the id that the run is to have; empty: the one it has, or any
    without_target: bool = False  # give back what was made for a run that could not be started
    passed_over: frozenset[str] = frozenset()  # what was refused when it was ordered before
    tried: Callable[[str, bool], None] = _forgotten  # is told what is ordered, and whether it stays without a run


@dataclass(frozen=True)
class Wanted:
    """A run that needs a target."""

    task: Task
    spec: ExecutorSpec
    project: str
    stack: str
    run_id: pulumi.Output[str]
    run: pulumi.Output[str]  # the same, also in the preview of an update that keeps it
    parent: pulumi.Resource
    preview: bool  # nothing may be run or fetched
    say: Callable[[str], None]
    asked: Asked = field(default_factory=Asked)
    before: Before = field(default_factory=Before)  # what the stack held; read for machines that cost alone


@dataclass(frozen=True)
class Declared:
    """What tells one target from another, and finds it; and the resources that it consists of."""

    target: Mapping[str, Any] = field(default_factory=dict)
    resources: tuple[pulumi.Resource, ...] = ()
