"""What a change of a resource's inputs amounts to: a new run, another time limit, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coding_agent.executors.base import TARGET_GONE
from coding_agent.run import State

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """The properties that differ (path -> add, delete or update), and whether they need a replacement."""

    fields: Mapping[str, str] = field(default_factory=dict)
    replace: bool = False


def of_run_id(olds: Values, news: Values) -> Change:
    """Return the change of a RunId: another task, another image or another attempt is another id."""
    fields = {name: "update" for name in ("digest", "image", "attempt") if olds.get(name) != news.get(name)}
    return Change(fields, replace=bool(fields))


def of_companion(olds: Values, news: Values) -> Change:
    """Return the change of what goes with a run, such as what removes its leftovers: another run has others."""
    changed = olds.get("run_id") != news.get("run_id")
    return Change({"run_id": "update"} if changed else {}, replace=changed)


def of_run(olds: Values, news: Values, *, unknown: str) -> Change:
    """Return the change of a Run. `unknown` stands for a value that is not known yet.

    Everything that makes a new run is part of the id; so description, labels, artifacts, wait and where the task's file
    lies may differ freely.
    """
    ended = _ended(olds)
    if news.get("run_id") in (unknown, None) or news["run_id"] != olds.get("run_id"):
        return Change({"run_id": "update", **_fields("task", olds.get("task"), news.get("task"))}, replace=True)
    if (not ended or _target_gone(olds)) and _target(olds) != _target(news):
        return Change({"target": "update"}, replace=True)
    if not ended and olds.get("timeout") != news.get("timeout"):
        return Change({"timeout": "update"})
    return Change()


def _ended(olds: Values) -> bool:
    try:
        return State(olds["outputs"]["status"]).final
    except (KeyError, TypeError, ValueError):
        return False


def _target_gone(olds: Values) -> bool:
    """Whether a look has found that the run went with its target: that it is in another one now makes it a new run."""
    outputs = olds.get("outputs")
    return isinstance(outputs, Mapping) and outputs.get("reason") == TARGET_GONE


def _target(values: Values) -> Any:
    """Return what tells one target from another; what else is known of it may change with the executors file."""
    target = values.get("target")
    return target.get("id") if isinstance(target, Mapping) else target


def _fields(path: str, old: Any, new: Any) -> dict[str, str]:
    """Return the deepest paths at which two values differ."""
    if old == new:
        return {}
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return {path: "add" if old is None else "delete" if new is None else "update"}
    found: dict[str, str] = {}
    for name in sorted({*old, *new}):
        found |= _fields(f"{path}{_step(name)}", old.get(name), new.get(name))
    return found


def _step(name: str) -> str:
    return f".{name}" if name.isidentifier() else '["{}"]'.format(name.replace("\\", "\\\\").replace('"', '\\"'))
