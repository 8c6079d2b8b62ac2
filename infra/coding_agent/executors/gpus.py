"""GPUs: how many an executor has, which of them a run gets, and how its agent sees no others.

The queue shares them out: each index is a slot. A run that did not come through the queue gets the first ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coding_agent.settings import ExecutorSpec
    from coding_agent.task import Task

GIVEN = "CODING_AGENT_GPUS"  # to the process that starts a run: the indices that the queue has given it
VISIBLE = "CUDA_VISIBLE_DEVICES"  # what CUDA reads: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#env-vars
# Where the run shares the machine's GPUs with others; a container sees those alone that its engine gives it.
_BY_VARIABLE = ("local", "ssh")


def count(options: Mapping[str, Any]) -> int:
    """Return how many GPUs an executor has to share out; 0 where it has none, or does not say how many (`all`)."""
    said = options.get("gpus")
    return int(said) if isinstance(said, int | float) else 0


def refusal(spec: ExecutorSpec, wanted: int | None) -> tuple[str, str] | None:
    """Return why an executor can't give a run so many GPUs, and what would; None where it can."""
    has = count(spec.options)
    if not wanted or wanted <= has:
        return None
    if spec.type == "hetzner":
        return (
            "Hetzner Cloud has no servers with GPUs",
            "name an executor of type ssh or container with `gpus:`, on a host that has them",
        )
    if spec.options.get("container"):
        return (
            f"executor {spec.name} is a container that exists already, whose GPUs were chosen when it was made",
            "name an executor with `image:` and `gpus:`",
        )
    if spec.options.get("gpus") == "all":
        return (
            f"executor {spec.name} says `gpus: all`, so they can't be shared out",
            "write how many there are",
        )
    said = f"has {has}" if has else "has no GPUs"
    return (
        f"executor {spec.name} {said} by the executors file, and {wanted} are wanted",
        "give it `gpus: N`, or name one that has them",
    )


def chosen(task: Task) -> tuple[int, ...]:
    """Return the indices of the GPUs that a run of the task gets: those the queue has given it, else the first ones."""
    wanted = task.limits.gpus or 0
    given = [int(each) for each in os.environ.get(GIVEN, "").split(",") if each.isdigit()]
    return tuple(given[:wanted]) if len(given) >= wanted else tuple(range(wanted))


def environment(spec: ExecutorSpec, indices: Sequence[int]) -> dict[str, str]:
    """Return what shows a run on a host its GPUs, and none where the host's are shared out and it asked for none."""
    if spec.type not in _BY_VARIABLE or not (indices or count(spec.options)):
        return {}
    return {VISIBLE: ",".join(map(str, indices))}


def request(spec: ExecutorSpec, indices: Sequence[int]) -> str | None:
    """Return what a container's engine is asked for, as `docker run --gpus` has it; None for no GPUs.

    A run that asks for none gets what the executor's containers get.
    """
    if indices:
        # The plugin (pulumi-docker 5.1) asks for one more by itself where no count is given, which the engine refuses.
        return f'"device={",".join(map(str, indices))}",count=0'
    said = spec.options.get("gpus")
    return None if said is None else str(said)


def unshared(spec: ExecutorSpec, task: Task) -> tuple[str, ...]:
    """Say where the GPUs of a run may be used by others as well."""
    if not task.limits.gpus or os.environ.get(GIVEN):
        return ()
    named = ", ".join(map(str, chosen(task)))
    return (f"limits.gpus: GPU {named} of executor {spec.name}, whoever else uses it; only the queue shares them out",)
