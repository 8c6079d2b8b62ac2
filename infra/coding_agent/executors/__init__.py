"""Executors by type: to add one, add a module and a line to `MODULES`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from coding_agent.errors import ExecutorUnavailable

if TYPE_CHECKING:
    from coding_agent.executors.base import Executor
    from coding_agent.settings import ExecutorSpec

# Names, not modules: a type's library is only imported when the type is used.
MODULES = {"local": "coding_agent.executors.local"}


def connect(spec: ExecutorSpec) -> Executor:
    """Return the live executor of `spec`.

    Raises `ExecutorUnavailable` for a type that is not built, `ConnectionBroken` where the target can't be reached.
    """
    if spec.type not in MODULES:
        raise ExecutorUnavailable(
            f"executor {spec.name}: type {spec.type} is not built yet",
            next_step=f"use one of type {', '.join(sorted(MODULES))}",
        )
    executor: Executor = importlib.import_module(MODULES[spec.type]).connect(spec)
    return executor
