"""What a task in the queue waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection

from coding_agent.run import State
from coding_agent.work_queue.database import Row
from coding_agent.work_queue.entry import Entry
from coding_agent.work_queue.queue import DEAD_AFTER

_SHOWN = 5  # tasks of which the names are told


def of(connection: Connection[Row], entry: Entry) -> list[str]:
    """Return why a task does not go on, or how it does; a line for each thing."""
    workers = connection.execute(
        "SELECT * FROM worker WHERE seen_at > now() - make_interval(secs => %s) ORDER BY started_at", (DEAD_AFTER,)
    ).fetchall()
    if entry.state.final:
        reason = f" ({entry.outputs.reason})" if entry.outputs.reason else ""
        removal = "; its removal is asked for" if entry.wanted == "destroyed" else ""
        return [f"it has ended: {entry.state}{reason}{removal}"]
    if entry.state is not State.QUEUED:
        return [*_at_work(entry, workers)]
    return [*_later(entry), *_served(connection, entry, workers)]


def _at_work(entry: Entry, workers: list[Row]) -> list[str]:
    where = f"it is {entry.state} on {_name(entry.taken)}"
    attends = next((each for each in workers if each["id"] == entry.worker), None)
    if attends is not None:
        return [f"{where}; worker {_worker(attends)} attends to it"]
    others = [each for each in workers if each["store"] == entry.store]
    if others:
        return [f"{where}; its worker is gone, and worker {_worker(others[0])} is about to take it over"]
    return [
        f"{where}, or was; its worker is gone, and its stack is kept by {entry.store}: "
        "`coding-agent worker` there takes it over"
    ]


def _later(entry: Entry) -> list[str]:
    lines = []
    if entry.attempt:
        said = ": ".join(each for each in (entry.reason, entry.detail) if each)
        lines.append(f"attempt {entry.attempt} of {entry.retries + 1} failed ({said})")
    seconds = (entry.not_before - datetime.now(UTC)).total_seconds()
    if seconds > 0:
        lines.append(f"it is not to begin before {entry.not_before.astimezone():%Y-%m-%d %H:%M:%S}")
    return lines


def _served(connection: Connection[Row], entry: Entry, workers: list[Row]) -> list[str]:
    if not workers:
        return ["no worker lives: `coding-agent worker` starts one"]
    near = [each for each in workers if entry.machine in (None, each["machine"])]
    if not near:
        return [
            f"what it needs is on {entry.machine}, and no worker lives there: `coding-agent worker` there starts one"
        ]
    offered = connection.execute(
        "SELECT executor.*, ("
        " SELECT count(*) FROM slot WHERE executor = key AND kind = 'run' AND task IS NOT NULL) AS used, ("
        " SELECT count(*) FROM slot WHERE executor = key AND kind = 'gpu' AND task IS NULL AND index < gpus) "
        "AS free_gpus "
        "FROM executor WHERE key = ANY(%s) ORDER BY rank",
        ([key for each in near for key in each["serves"]],),
    ).fetchall()
    fitting = [each for each in offered if _fits(entry, each)]
    if not fitting:
        names = ", ".join(dict.fromkeys(_shown(each) for each in offered)) or "none"
        wanted = f"an executor {entry.executor}" if entry.executor else f"one that carries {', '.join(entry.labels)}"
        return [f"no worker serves {wanted}; there are: {names}"]
    lines = [line for each in fitting if (line := _full(connection, entry, each))]
    for each in connection.execute(
        "SELECT refusal.reason, worker.* FROM refusal JOIN worker ON worker.id = refusal.worker "
        "WHERE refusal.task = %s",
        (entry.id,),
    ).fetchall():
        lines.append(f"worker {_worker(each)} can't take it: {each['reason']}")
    return lines or ["it is next"]


def _fits(entry: Entry, offer: Mapping[str, Any]) -> bool:
    if entry.resume is not None:
        return bool(entry.taken == offer["key"])
    if entry.executor is not None:
        return bool(entry.executor == offer["name"])
    return set(entry.labels) <= set(offer["labels"])


def _full(connection: Connection[Row], entry: Entry, offer: Mapping[str, Any]) -> str:
    if entry.gpus > offer["gpus"]:
        return f"{offer['name']} has {offer['gpus']} GPUs, and it wants {entry.gpus}"
    rows = connection.execute(
        "SELECT DISTINCT task.name FROM slot JOIN task ON task.id = slot.task WHERE slot.executor = %s ORDER BY 1",
        (offer["key"],),
    ).fetchall()
    names = [row["name"] for row in rows]
    told = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    if offer["used"] >= offer["max_tasks"]:
        return f"{offer['name']} is full, {offer['used']} of {offer['max_tasks']} tasks: {told}"
    if entry.gpus > offer["free_gpus"]:
        return (
            f"{offer['name']} has {offer['free_gpus']} of {offer['gpus']} GPUs free, and it wants {entry.gpus}: {told}"
        )
    if entry.resume is not None and entry.record is not None and entry.record.gpus:
        return _had(connection, entry.record.gpus, offer)
    return ""


def _had(connection: Connection[Row], gpus: Sequence[int], offer: Mapping[str, Any]) -> str:
    """Say who has a GPU that a run had and is to have again."""
    row = connection.execute(
        "SELECT slot.index, task.name FROM slot JOIN task ON task.id = slot.task "
        "WHERE slot.executor = %s AND kind = 'gpu' AND slot.index = ANY(%s) ORDER BY slot.index LIMIT 1",
        (offer["key"], list(gpus)),
    ).fetchone()
    return f"its GPU {row['index']} is not free: {row['name']}" if row else ""


def _shown(offer: Mapping[str, Any]) -> str:
    return f"{offer['name']} ({', '.join(offer['labels'])})" if offer["labels"] else str(offer["name"])


def _name(key: str | None) -> str:
    return (key or "").partition("@")[0]


def _worker(row: Mapping[str, Any]) -> str:
    return f"{row['pid']} on {row['host']}"
