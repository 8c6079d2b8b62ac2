"""Declarative executor framework for AI coding agents, on Pulumi.

>>> from coding_agent import dispatch

A task is a YAML file; `dispatch` makes one from arguments and starts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coding_agent.api import Task, dispatch, dispatch_file, get_task

__all__ = ["Task", "__version__", "dispatch", "dispatch_file", "get_task"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy, so that `coding-agent --help` loads neither the engine's library nor a connection's.
    if name in {"Task", "dispatch", "dispatch_file", "get_task"}:
        from coding_agent import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
