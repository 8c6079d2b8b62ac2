"""A Run's properties in the stack's state, and the record that they are made of and can be made into again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from coding_agent import executors, lifecycle, records
from coding_agent.errors import CodingAgentError, ConnectionBroken, ExecutorUnavailable, InvalidInput, OnAnotherMachine
from coding_agent.records import Record
from coding_agent.run import outputs_dict, outputs_from
from coding_agent.settings import ExecutorSpec

Values = Mapping[str, Any]
Say = Callable[[str], None]
# Of a record, what changes at every look is in the outputs already; what was collected lies on one machine.
_NOT_KEPT = ("outputs", "cpu_seen", "removed", "removed_at")


def properties(inputs: Values, record: Record) -> dict[str, Any]:
    """Return what the state holds of a run: the inputs, the outputs, and what another machine needs to find it."""
    plain = {name: value for name, value in asdict(record).items() if name not in _NOT_KEPT}
    # Names of secrets only: a mark, too, belongs on the machine that has their values.
    plain["secrets"] = dict.fromkeys(record.secrets, "")
    # As text: numbers in a state are all floating point.
    return {**inputs, "outputs": outputs_dict(record.outputs), "record": json.dumps(plain, sort_keys=True)}


def unknown(inputs: Values, marker: str) -> dict[str, Any]:
    """Return the properties of a run that has not been started: `marker` for each that its start will give."""
    return {**inputs, "outputs": marker, "record": marker}


def observe(run_id: str, olds: Values, say: Say) -> Record:
    """Return the record of a run as it is now."""
    record = _find(run_id, olds)
    if not record.removed:
        # The engine's own provider is about to ask it, and can't start what is ours to start.
        with contextlib.suppress(CodingAgentError):
            executors.reach(record.spec)
    try:
        return lifecycle.observe(record, say=say)
    except OnAnotherMachine:
        return record  # it has ended, and its work is where it was brought back


def change_timeout(run_id: str, olds: Values, news: Values, say: Say) -> dict[str, Any]:
    """Give a run another time limit and return its properties."""
    record = _find(run_id, olds)
    if news.get("timeout") is not None:
        lifecycle.set_timeout(record, float(news["timeout"]))
    return properties(news, lifecycle.observe(record, say=say))


def remove(run_id: str, olds: Values, *, discard: bool, say: Say) -> None:
    """End a run, bring its work back and remove it from its target; nothing to do where that was done."""
    record = _find(run_id, olds)
    try:
        lifecycle.cleanup(record, discard=discard, say=say)
    except OnAnotherMachine as error:
        if not (discard or (record.collected and record.outputs.status.final)):
            raise
        say(f"{error.message}; what it left there is removed by nobody")


def remove_unfinished(run_id: str, olds: Values, *, discard: bool, say: Say) -> None:
    """Remove a run that this machine has a record of although the stack does not know it, and what was made for it."""
    record = records.load(run_id)
    if record is None:
        records.forget(run_id)  # what a start that was killed left before there was a record
    elif not record.removed:
        lifecycle.cleanup(record, discard=discard, say=say)
    try:
        sweep({**olds, "run_id": run_id}, everything=True)
    except (ConnectionBroken, ExecutorUnavailable) as error:
        if not discard:
            raise
        say(f"{error.message}: what run {run_id} left there is removed by nobody")


def sweep(olds: Values, *, everything: bool) -> None:
    """Remove what was made for a run and is in no stack; unless `everything`, only what uses the rest of it."""
    if isinstance(executor := olds.get("executor"), Mapping) and executor.get("type"):
        executors.sweep(ExecutorSpec.of_plain(executor), str(olds["run_id"]), everything=everything)


def _find(run_id: str, olds: Values) -> Record:
    """Return the record of a run, rebuilt from the state where this machine has none, or resumed on another since."""
    known = records.load(run_id)
    try:
        plain = json.loads(olds["record"])
        for name in ("labels", "artifacts", "earlier", "gpus"):
            plain[name] = tuple(plain.get(name) or ())
        names = {each.name for each in fields(Record)}
        values = {name: value for name, value in plain.items() if name in names}
        kept = Record(**values, outputs=outputs_from(olds["outputs"]))
    except (KeyError, TypeError, ValueError) as error:
        if known is not None:
            return known
        raise InvalidInput(f"the stack's state has no readable record of run {run_id}") from error
    return kept if known is None or len(kept.earlier) > len(known.earlier) else known
