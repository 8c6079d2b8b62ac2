"""What the stack held when an update began: the program asks the engine for it before it declares anything."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pulumi

from coding_agent import records
from coding_agent.errors import EngineFailed
from coding_agent.executors.base import TARGET_GONE
from coding_agent.run import State

if TYPE_CHECKING:
    from coding_agent.executors.declared import Asked

LIMIT = 10.0  # seconds for which reading the stack is tried again
POLL = 0.1  # seconds between two tries
_READ = "pulumi:pulumi:readStackResourceOutputs"
_RUN_ID, _RUN = "coding-agent:index:RunId", "coding-agent:index:Run"


@dataclass(frozen=True)
class Before:
    """The stack before this update."""

    run_id: str = ""  # empty: it had none
    stays: bool = False  # whether that run is still the one that is wanted
    ended: bool = False  # it has ended, and its work is here
    lost: bool = False  # it ended because its target was removed
    begun: bool = False  # it was started, as far as is known
    resources: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # type -> outputs
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)  # type -> how the program calls them

    def one(self, kind: str) -> Mapping[str, Any] | None:
        """Return the outputs of the resource of that type, which a stack has at most one of; None where it has none."""
        return next(iter(self.resources.get(kind, ())), None)


def read(stack: str, asked: Asked, *, digest: str, image: str | None) -> Before:
    """Return what a stack held; `digest` and `image` are those of the run that is wanted.

    To be called before anything is declared: from then on the engine writes what is new.
    """
    answer = _asked(stack)
    resources: dict[str, list[Mapping[str, Any]]] = {}
    names: dict[str, list[str]] = {}
    for urn, each in (answer.get("outputs") or {}).items():
        resources.setdefault(str(each["type"]), []).append(each["outputs"] or {})
        names.setdefault(str(each["type"]), []).append(str(urn).rpartition("::")[2])
    id_before = next(iter(resources.get(_RUN_ID, ())), {})
    run_id = str(id_before.get("run") or "")
    if not run_id:
        return Before(resources=resources, names=names)
    same = (id_before.get("digest"), id_before.get("image")) == (digest, image)
    stays = same and not asked.rerun and asked.run_id in ("", run_id)
    run = next((each for each in resources.get(_RUN, ()) if each.get("run_id") == run_id), None)
    return Before(run_id, stays, *_became(run_id, run), resources=resources, names=names)


def _asked(stack: str) -> Mapping[str, Any]:
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            return pulumi.runtime.invoke(_READ, {"stackName": stack}).value or {}
        except Exception as error:
            # A backend of files may be in the middle of writing it.
            if time.monotonic() > deadline:
                raise EngineFailed(f"the engine can't read the stack {stack}: {error}") from error
            time.sleep(POLL)


def _became(run_id: str, run: Mapping[str, Any] | None) -> tuple[bool, bool, bool]:
    """Return whether the run has ended with its work here, whether it was lost, and whether it was started."""
    record = records.load(run_id)
    if record is not None:
        # It has seen more than the state, which is only written with an update.
        ended = record.outputs.status.final and record.collected
        return ended, record.outputs.reason == TARGET_GONE, bool(run) or record.outputs.started_at is not None
    try:
        outputs, kept = (run or {})["outputs"], json.loads((run or {})["record"])
        return State(outputs["status"]).final and bool(kept["collected"]), outputs.get("reason") == TARGET_GONE, True
    except (KeyError, TypeError, ValueError):
        return False, False, bool(run)
