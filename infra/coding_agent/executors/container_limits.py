"""Who holds which limit of a run in a container: the kernel, the supervisor's watch, or nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coding_agent.errors import CodingAgentError
from coding_agent.executors.container_engine import reach
from coding_agent.executors.host_limits import DISK
from coding_agent.quantities import size

if TYPE_CHECKING:
    from coding_agent.agent_settings import Limits
    from coding_agent.settings import ExecutorSpec
    from coding_agent.task import Task

MEMORY, PIDS = 2 * 1024**3, 512  # of a container made for a run, where neither task nor executor says
ROOM = 16  # processes that the supervisor and a look at the run need beside the agent's own


def effective(limits: Limits, options: Mapping[str, Any]) -> Limits:
    """Return the task's limits, and the executor's where they are narrower or the task has none."""
    own = {
        "cpus": options.get("cpus"),
        "memory": size(options["memory"]) if options.get("memory") else None,
        "pids": options.get("pids"),
        "disk": size(options["disk"]) if options.get("disk") else None,
    }
    if options.get("image"):
        own = {**own, "memory": own["memory"] or limits.memory or MEMORY, "pids": own["pids"] or limits.pids or PIDS}
    changed = {}
    for name, value in own.items():
        asked = getattr(limits, name)
        if value is not None:
            changed[name] = value if asked is None else min(asked, value)
    return replace(limits, **changed)


def held(said: Mapping[str, Any], pids: str | None = None) -> frozenset[str]:
    """Return which limits the kernel holds, of what the engine says of a container.

    `pids` is what the kernel says of it inside, where the engine can't be asked.
    """
    settings = said["HostConfig"]
    allowed = str(settings.get("PidsLimit")) if pids is None else pids
    found = {
        "memory": settings.get("Memory"),
        "cpus": settings.get("NanoCpus") or settings.get("CpuQuota"),
        # The engine may have kept another limit than the one that was asked for: then it is watched.
        "pids": allowed == (said["Config"].get("Labels") or {}).get("coding-agent.pids"),
    }
    return frozenset(name for name, value in found.items() if value)


def unenforced(task: Task, spec: ExecutorSpec) -> tuple[str, ...]:
    """Say which limits are held otherwise than by the kernel."""
    limits, said = effective(task.limits, spec.options), []
    if spec.options.get("container"):
        if limits.cpus is not None:
            said.append(f"limits.cpus is not enforced by executor {spec.name}: its container exists already")
        watched = [f"limits.{name}" for name in ("memory", "pids") if getattr(limits, name) is not None]
        if watched:
            said.append(
                f"{' and '.join(watched)}: watched by the supervisor every 2 s, as the container of executor "
                f"{spec.name} exists already and keeps its own"
            )
    else:
        said += _without_the_kernel(limits, spec)
    asked = task.limits
    narrower = [
        name for name in ("cpus", "memory", "pids", "disk") if getattr(asked, name) not in (None, getattr(limits, name))
    ]
    if narrower:
        said.append(
            f"{', '.join(f'limits.{name}' for name in narrower)}: executor {spec.name} allows less, which holds"
        )
    if limits.disk is not None and spec.options.get("container"):
        said.append(DISK)
    return tuple(said)


def _without_the_kernel(limits: Limits, spec: ExecutorSpec) -> Iterator[str]:
    """Say which limits the engine can't have the kernel hold: one of an ordinary user's may not be allowed to."""
    try:
        with contextlib.closing(reach(spec.options)) as engine:
            can, disk = engine.limits, limits.disk is not None and engine.limits_disk
            name = f"{'rootless ' if engine.rootless else ''}{'podman' if engine.podman else 'Docker'}"
    except CodingAgentError:
        return  # what needs the engine says so
    if limits.cpus is not None and "cpus" not in can:
        yield f"limits.cpus is not enforced by executor {spec.name}: its {name} can't limit it on this machine"
    watched = [f"limits.{each}" for each in ("memory", "pids") if getattr(limits, each) and each not in can]
    if watched:
        yield (
            f"{' and '.join(watched)}: watched by the supervisor every 2 s, as the {name} of executor {spec.name} "
            "can't have the kernel hold it on this machine"
        )
    if limits.disk is not None:
        elsewhere = "limited by the engine" if disk else "not limited"
        yield f"{DISK}; what is written elsewhere is {elsewhere}"
