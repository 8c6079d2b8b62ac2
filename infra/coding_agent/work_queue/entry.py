"""A task in the queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from coding_agent.records import Record, of_plain
from coding_agent.run import Outputs, State

START_FAILED = "start_failed"  # the reason of a task whose run could not be started
CANCELLED = "cancelled"  # the reason of a task that was ended before it had a run


@dataclass(frozen=True)
class Order:
    """What is put into the queue."""

    id: str
    name: str
    fields: Mapping[str, Any]
    digest: str
    executor: str | None
    labels: tuple[str, ...]
    repo: Any = None  # a folder, or a mapping with `url` and `ref`
    file: str | None = None  # the task's file in a project here
    gpus: int = 0
    priority: int = 0
    not_before: datetime | None = None
    retries: int = 2
    backoff: float = 10.0  # seconds
    machine: str | None = None


@dataclass(frozen=True)
class Entry:
    """A task in the queue, as its row says."""

    id: str
    name: str
    fields: Mapping[str, Any]
    repo: Any
    file: str | None
    digest: str
    executor: str | None
    labels: tuple[str, ...]
    gpus: int
    priority: int
    not_before: datetime
    retries: int
    enqueued_at: datetime
    machine: str | None
    store: str | None
    state: State
    reason: str | None
    detail: str | None
    wanted: str  # run, killed or destroyed
    discard: bool
    attempt: int
    run_id: str | None
    worker: str | None
    taken: str | None
    record: Record | None
    resume: Mapping[str, Any] | None  # `attempt` and `prompt` of another attempt of its run

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Entry:
        """Return what a row of the table holds."""
        known = {each.name: row[each.name] for each in fields(cls)}
        known |= {"labels": tuple(row["labels"]), "state": State(row["state"])}
        return cls(**{**known, "record": of_plain(row["record"]) if row["record"] else None})

    @property
    def outputs(self) -> Outputs:
        """What is known of it: its run's outputs as a worker has last written them, or that it has none yet."""
        executor = (self.taken or self.executor or "").partition("@")[0]
        if self.record is not None:
            known = self.record.outputs
            return known if known.status.final == self.state.final else _as(known, self)
        return _as(Outputs(status=self.state, executor=executor, run_id=self.run_id or self.id), self)


def _as(outputs: Outputs, entry: Entry) -> Outputs:
    from dataclasses import replace

    return replace(outputs, status=entry.state, reason=entry.reason, detail=entry.detail)
