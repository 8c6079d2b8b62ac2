"""A Run's properties in the stack's state, and the record that they are made of and can be made into again."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from coding_agent import lifecycle, records
from coding_agent.errors import ConnectionBroken, InvalidInput
from coding_agent.records import Record
from coding_agent.run import State, outputs_dict, outputs_from

Values = Mapping[str, Any]
Say = Callable[[str], None]
# Of a record, what changes at every look is in the outputs already; what was collected lies on one machine.
_NOT_KEPT = ("outputs", "cpu_seen", "removed")


def properties(inputs: Values, record: Record) -> dict[str, Any]:
    """Return what the state holds of a run: the inputs, the outputs, and what another machine needs to find it."""
    plain = {name: value for name, value in asdict(record).items() if name not in _NOT_KEPT}
    # Names of secrets only: a mark, too, belongs on the machine that has their values.
    plain["secrets"] = dict.fromkeys(record.secrets, "")
    # As text: numbers in a state are all floating point.
    kept = json.dumps({"host": platform.node(), **plain}, sort_keys=True)
    return {**inputs, "outputs": outputs_dict(record.outputs), "record": kept}


def unknown(inputs: Values, marker: str) -> dict[str, Any]:
    """Return the properties of a run that has not been started: `marker` for each that its start will give."""
    return {**inputs, "outputs": marker, "record": marker}


def observe(run_id: str, olds: Values, say: Say) -> Record:
    """Return the record of a run as it is now."""
    record, elsewhere = _find(run_id, olds)
    if elsewhere and not record.outputs.status.final:
        outputs = replace(record.outputs, status=State.UNRESPONSIVE, reason="on_another_machine", detail=elsewhere)
        return record.with_outputs(outputs)
    return record if elsewhere else lifecycle.observe(record, say=say)


def change_timeout(run_id: str, olds: Values, news: Values, say: Say) -> dict[str, Any]:
    """Give a run another time limit and return its properties."""
    record, elsewhere = _find(run_id, olds)
    _refuse(record, elsewhere)
    if news.get("timeout") is not None:
        lifecycle.set_timeout(record, float(news["timeout"]))
    return properties(news, lifecycle.observe(record, say=say))


def remove(run_id: str, olds: Values, *, discard: bool, say: Say) -> None:
    """End a run, bring its work back and remove it from its target; nothing to do where that was done."""
    record, elsewhere = _find(run_id, olds)
    if elsewhere and (discard or (record.collected and record.outputs.status.final)):
        say(f"run {run_id} was on {elsewhere}: what it left there is removed by nobody")
        return
    _refuse(record, elsewhere)
    lifecycle.cleanup(record, discard=discard, say=say)


def remove_unfinished(run_id: str, *, discard: bool, say: Say) -> None:
    """Remove a run that this machine has a record of although the stack does not know it."""
    record = records.load(run_id)
    if record is not None and not record.removed:
        lifecycle.cleanup(record, discard=discard, say=say)


def _find(run_id: str, olds: Values) -> tuple[Record, str]:
    """Return the record of a run, rebuilt from the state where this machine has none, and whose machine it is on.

    The second is empty unless the run is on a machine that can't be reached from here.
    """
    known = records.load(run_id)
    if known is not None:
        return known, ""
    try:
        plain = json.loads(olds["record"])
        host = str(plain.pop("host", ""))
        for name in ("labels", "artifacts"):
            plain[name] = tuple(plain.get(name) or ())
        names = {each.name for each in fields(Record)}
        values = {name: value for name, value in plain.items() if name in names}
        record = Record(**values, outputs=outputs_from(olds["outputs"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"the stack's state has no readable record of run {run_id}") from error
    here = record.executor.get("type") != "local" or host == platform.node()
    return record, "" if here else host


def _refuse(record: Record, elsewhere: str) -> None:
    if elsewhere:
        raise ConnectionBroken(
            f"run {record.run_id} is on {elsewhere}, whose local executor can't be reached from here",
            next_step=f"repeat it on {elsewhere}, or give the run up with `coding-agent destroy --discard`",
        )
