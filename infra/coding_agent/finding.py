"""One part of what the project needs on a machine, as `doctor` found it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How well a part is there."""

    OK = "ok"
    WARNING = "warning"  # it works, but not everything
    MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """One part, as it was found."""

    name: str
    state: State
    found: str
    prevents: str | None = None
    next_step: str | None = None
