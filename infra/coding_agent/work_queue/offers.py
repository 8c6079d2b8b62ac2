"""What executors offer to the queue: how many tasks at once, how many GPUs, and whether to all machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coding_agent import executors
from coding_agent.executors import gpus
from coding_agent.settings import INLINE, Settings

if TYPE_CHECKING:
    from coding_agent.settings import ExecutorSpec

MAX_TASKS = 4  # of an executor that does not say


@dataclass(frozen=True)
class Offer:
    """An executor, as a worker serves it."""

    key: str
    name: str
    rank: int  # its place in the executors file
    labels: tuple[str, ...]
    max_tasks: int
    gpus: int


def of(settings: Settings, machine: str, only: frozenset[str] = frozenset()) -> list[Offer]:
    """Return what is offered by the executors of a file (`only` those of these names), and by those in task files."""
    found = [
        _offer(each, rank, machine) for rank, each in enumerate(settings.executors) if not only or each.name in only
    ]
    inline = Offer(key=f"{INLINE}@{machine}", name=INLINE, rank=len(found), labels=(), max_tasks=MAX_TASKS, gpus=0)
    return found if only else [*found, inline]


def _offer(spec: ExecutorSpec, rank: int, machine: str) -> Offer:
    key = spec.name if executors.shared(spec) else f"{spec.name}@{machine}"
    options: Mapping[str, Any] = spec.options
    return Offer(
        key=key,
        name=spec.name,
        rank=rank,
        labels=spec.labels,
        max_tasks=int(options.get("max_tasks") or MAX_TASKS),
        gpus=gpus.count(options),
    )
