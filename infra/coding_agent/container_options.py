"""What of a container executor's fields does not go together; each field by itself is the schema's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from coding_agent.document import FieldPath, quoted
from coding_agent.quantities import size

LEAST_MEMORY = 256 * 1000**2  # bytes; with less Claude Code itself is ended
_OF_ONE_MADE = ("volumes", "network", "gpus", "cpus", "memory", "pids")


def is_volume_name(source: str) -> bool:
    """Whether what is to be mounted is a volume of the engine's, by name, and not a folder."""
    return "/" not in source and not source.startswith((".", "~"))


def contradictions(executor: Mapping[str, Any]) -> Iterator[tuple[FieldPath, str]]:
    """Yield the place and the message of each."""
    if executor.get("type") != "container":
        return
    if "container" in executor and "image" in executor:
        yield (
            ("container",),
            "stands beside `image`; write one: the image for a container of each run's own, or one that exists",
        )
    elif "container" in executor:
        for name in _OF_ONE_MADE:
            if name in executor:
                yield (name,), "can't be chosen for a container that exists already; leave it out, or write `image`"
    elif str(executor.get("user", "")).partition(":")[0] in ("0", "root"):
        yield ("user",), "is root, which could end its own container; name another user, or leave it out"
    if isinstance(memory := executor.get("memory"), str) and size(memory) < LEAST_MEMORY:
        yield ("memory",), f"is {quoted(memory)}; an agent needs at least 256MB"
