"""Who holds which limit of a run on a host that it shares: the kernel where it gives the run a cgroup, else the watch.

What of it came true only the host knows, once the run has started: the supervisor says it in the run's notices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coding_agent.settings import ExecutorSpec
    from coding_agent.task import Task

DISK = "limits.disk: watched by the supervisor every 3 s or more, in the run's folder"


def unenforced(task: Task, spec: ExecutorSpec) -> tuple[str, ...]:
    """Say which limits are held otherwise than by the kernel, or may be."""
    limits, said = task.limits, []
    asked = [f"limits.{name}" for name in ("memory", "pids", "cpus") if getattr(limits, name) is not None]
    if asked:
        otherwise = [
            *(["memory and processes are watched by the supervisor every 2 s"] if asked != ["limits.cpus"] else []),
            *(["cpus is not enforced"] if limits.cpus is not None else []),
        ]
        said.append(
            f"{' and '.join(asked)}: held by the kernel where the host of executor {spec.name} has systemd and its "
            f"user is root or lingers (`loginctl enable-linger`; cgroups v2); else {' and '.join(otherwise)}"
        )
    if limits.disk is not None:
        said.append(DISK)
    return tuple(said)
