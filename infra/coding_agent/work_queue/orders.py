"""From a task to its place in the queue."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coding_agent import credentials, dispatched, executors, task, worker
from coding_agent.dispatched import Repo
from coding_agent.settings import BUILT_IN, INLINE, Settings
from coding_agent.work_queue import database
from coding_agent.work_queue.entry import Entry, Order
from coding_agent.work_queue.places import machine
from coding_agent.work_queue.queue import Queue

if TYPE_CHECKING:
    from coding_agent.task import Task

Say = Callable[[str], None]
RETRIES = 2
BACKOFF = 10.0  # seconds


def of_fields(fields: Mapping[str, Any], *, name: str | None, repo: Repo) -> Order:
    """Return the order for a task that no file says. Raises `InvalidInput`; nothing is made."""
    name = name or dispatched.new_name(fields)
    found = dispatched.check(fields, name=name, repo=repo)
    where = repo if repo is None or isinstance(repo, Mapping) else str(Path(repo).expanduser().resolve())
    order = _order(found, dict(fields))
    near = isinstance(where, str)
    digest = hashlib.sha256(json.dumps([found.digest, where, list(found.labels)]).encode()).hexdigest()
    return replace(order, repo=where, machine=machine() if near else None, digest=digest)


def of_file(path: Path) -> Order:
    """Return the order for a task of a project here. Raises `InvalidFile`."""
    settings = Settings.load()
    found = task.load(path, settings=settings)
    # Its stack is the project's: with `up` it runs on the first that carries its labels, and so it does here.
    return replace(
        _order(found, {}),
        executor=settings.choose(found).name,
        labels=(),
        file=str(found.source),
        machine=machine(),
        digest=digest(found),
    )


def digest(found: Task) -> str:
    """Return what tells an order of a project's task from that of a changed one."""
    image = executors.image(Settings.load().choose(found), found) or ""
    return hashlib.sha256(f"{found.digest} {image}".encode()).hexdigest()


def put(orders: Sequence[Order], say: Say, *, again: bool = False) -> list[Entry]:
    """Put tasks into the queue, and see that a worker lives; with `again` those that have ended, once more.

    Raises `InvalidInput` for a name that is taken, `CredentialMissing` where we are about to start the worker and have
    not what the agent needs, `DatabaseUnavailable`.
    """
    with database.opened() as found:
        queue = Queue(found)
        for order in orders:
            if not queue.served(order.executor, order.labels, order.machine):
                _check_credentials(order, Settings.load())
        entries = queue.enqueue(orders, again=again)
        waiting = [each for each in entries if not each.state.final]

        def served() -> bool:
            return all(queue.served(each.executor, each.labels, each.machine) for each in waiting)

        # Asked once more: a worker may have ended meanwhile.
        if not served():
            worker.start(served, say)
        return entries


def resume(entry: Entry, prompt: str | None, say: Say) -> Entry:
    """Let a task that has ended wait for another attempt of its run, and see that a worker lives.

    Raises what `Queue.resume` does.
    """
    with database.opened() as found:
        queue = Queue(found)
        entry = queue.resume(entry.id, prompt)
        machine = (entry.taken or "").partition("@")[2] or entry.machine

        def served() -> bool:
            return queue.served(entry.executor, (), machine)

        if not served():
            worker.start(served, say)
        return entry


def scheduled(
    order: Order, *, priority: int = 0, not_before: datetime | None = None, retries: int | None = None
) -> Order:
    """Return the order with what says when it is taken, and how often it is tried again."""
    return replace(
        order, priority=priority, not_before=not_before, retries=RETRIES if retries is None else max(0, retries)
    )


def _order(found: Task, fields: dict[str, Any]) -> Order:
    settings = Settings.load()
    named = found.executor if isinstance(found.executor, str) else None
    if named is None and not isinstance(found.executor, str | None):
        named = INLINE
    if named is None and not found.labels:
        named = settings.defaults.executor or BUILT_IN
    return Order(
        id=secrets.token_hex(8),
        name=found.name,
        fields=fields,
        digest=found.digest,
        executor=named,
        labels=found.labels if named is None else (),
        gpus=0 if named == INLINE else found.limits.gpus or 0,  # nobody shares out those of an executor of its own
        retries=RETRIES,
        backoff=BACKOFF,
    )


def _check_credentials(order: Order, settings: Settings) -> None:
    if order.file is not None:
        found = task.load(Path(order.file), settings=settings)
    else:
        found = dispatched.check(order.fields, name=order.name, repo=order.repo)
    credentials.check(found, settings, settings.choose(found))
