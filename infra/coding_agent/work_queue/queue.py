"""The queue's verbs, each one transaction: what must hold whatever the number of workers and crashes stands here.

A slot is a row: taken together with its task, and let go together with the state that says that the run has ended.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from psycopg import Connection

from coding_agent import processes, records
from coding_agent.errors import DatabaseUnavailable, InvalidInput, NotFound
from coding_agent.records import Record
from coding_agent.run import FINAL, State
from coding_agent.work_queue import database
from coding_agent.work_queue.database import Database, Row, notify
from coding_agent.work_queue.entry import CANCELLED, Entry, Order
from coding_agent.work_queue.offers import Offer
from coding_agent.work_queue.places import machine, store

DEAD_AFTER = 10.0  # seconds without a sign of a worker's after which its tasks are another's
_CLAIMING = 0x636C61696D  # the advisory lock of whoever takes or gives slots: one at a time
_FINAL = sorted(FINAL)

_LEFT = """
SELECT 1 FROM task WHERE (machine IS NULL OR machine = %s) AND (store IS NULL OR store = %s)
AND (state <> ALL(%s) OR wanted = 'destroyed') LIMIT 1
"""
_CLAIM = """
SELECT task.id, task.gpus, task.attempt, executor.key, slot.index,
  -- One that is resumed gets the GPUs that it had: its container was made with them.
  CASE WHEN task.resume IS NOT NULL THEN (task.record->'gpus')::text END AS held
FROM task
JOIN executor ON executor.key = ANY(%(serves)s)
  AND CASE WHEN task.resume IS NOT NULL THEN task.taken = executor.key
      WHEN task.executor IS NULL THEN task.labels <@ executor.labels ELSE task.executor = executor.name END
JOIN LATERAL (
  SELECT index FROM slot
  WHERE slot.executor = executor.key AND kind = 'run' AND slot.task IS NULL AND index < executor.max_tasks
  ORDER BY index LIMIT 1
) AS slot ON true
WHERE task.state = 'queued' AND task.not_before <= now() AND (task.machine IS NULL OR task.machine = %(machine)s)
  AND (task.store IS NULL OR task.store = %(store)s)
  AND (SELECT count(*) FROM slot AS used
       WHERE used.executor = executor.key AND kind = 'run' AND used.task IS NOT NULL) < executor.max_tasks
  AND (SELECT count(*) FROM slot AS free
       WHERE free.executor = executor.key AND kind = 'gpu' AND free.task IS NULL AND index < executor.gpus) >= task.gpus
  AND NOT EXISTS (SELECT 1 FROM slot AS other
       WHERE task.resume IS NOT NULL AND other.executor = executor.key AND kind = 'gpu' AND other.task IS NOT NULL
       AND task.record->'gpus' @> to_jsonb(other.index))
  AND NOT EXISTS (SELECT 1 FROM refusal WHERE refusal.task = task.id AND refusal.worker = %(worker)s)
ORDER BY task.priority DESC, task.enqueued_at, task.id, executor.rank
LIMIT 1
"""


class Queue:
    """The queue, as one process sees it. Every method raises `DatabaseUnavailable`."""

    def __init__(self, found: Database) -> None:
        """`database.opened` gives `found`."""
        self._database = found

    def enqueue(self, orders: Sequence[Order], *, again: bool = False) -> list[Entry]:
        """Put tasks in, all or none; one that is in already, the same under the same name, is that one.

        With `again` that holds only for one that has not ended.

        Raises `InvalidInput` where another task of that name has not ended.
        """
        return self._database.do(lambda connection: [_enqueue(connection, order, again) for order in orders])

    def get(self, task: str) -> Entry | None:
        """Return the task of that id, or whose run has it."""
        return self._one(
            "SELECT * FROM task WHERE id = %s OR run_id = %s ORDER BY enqueued_at DESC LIMIT 1", task, task
        )

    def gpus(self, task: str) -> list[int]:
        """Return the indices of the GPUs that a task has."""
        query = "SELECT index FROM slot WHERE task = %s AND kind = 'gpu' ORDER BY index"
        rows = self._database.do(lambda connection: connection.execute(query, (task,)).fetchall())
        return [row["index"] for row in rows]

    def find(self, word: str, *, root: str | None = None) -> Entry:
        """Return the task of that id or its beginning, else the newest of that name. Raises `NotFound`.

        With `root`, of tasks with files only those of that project go by their name.
        """
        query = (
            "SELECT * FROM task WHERE id = %(word)s OR run_id = %(word)s "
            "OR (name = %(word)s AND (file IS NULL OR %(root)s::text IS NULL OR starts_with(file, %(root)s || '/'))) "
            "OR (length(%(word)s) >= 4 AND starts_with(id, %(word)s)) ORDER BY enqueued_at DESC LIMIT 1"
        )
        given = {"word": word, "root": root}
        found = self._database.do(lambda connection: connection.execute(query, given).fetchone())
        if found is None:
            raise NotFound(f"no task {word!r} is in the queue", next_step="`coding-agent list --queue` shows what is")
        return Entry.of_row(found)

    def entries(self, *, ended: bool) -> list[Entry]:
        """Return the tasks, in the order in which they are taken; with `ended` those that have, too, at the end."""
        query = (
            "SELECT * FROM task WHERE %s OR state <> ALL(%s) "
            "ORDER BY state = ANY(%s), worker IS NULL, priority DESC, enqueued_at, id"
        )
        found = self._database.do(lambda connection: connection.execute(query, (ended, _FINAL, _FINAL)).fetchall())
        return [Entry.of_row(row) for row in found]

    def end(self, task: str, *, destroy: bool = False, discard: bool = False) -> Entry:
        """Ask for a task's end, and for its removal too (`destroy`). One that no worker has taken ends at once."""

        def work(connection: Connection[Row]) -> Entry:
            _alone(connection)
            row = connection.execute(
                "UPDATE task SET wanted = CASE WHEN wanted = 'destroyed' THEN wanted ELSE %s END, discard = %s "
                "WHERE id = %s RETURNING *",
                ("destroyed" if destroy else "killed", discard, task),
            ).fetchone()
            if row is None:
                raise NotFound(f"no task {task!r} is in the queue")
            if row["state"] == State.QUEUED:
                # One that waits to be resumed has ended before, and that stands.
                row = connection.execute(
                    "UPDATE task SET "
                    "state = CASE WHEN resume IS NULL THEN 'killed' ELSE record->'outputs'->>'status' END, "
                    "reason = CASE WHEN resume IS NULL THEN %s ELSE record->'outputs'->>'reason' END, "
                    "finished_at = now() WHERE id = %s RETURNING *",
                    (CANCELLED, task),
                ).fetchone()
                assert row is not None
            if destroy and row["attempt"] == 0:
                connection.execute("DELETE FROM task WHERE id = %s", (task,))
            notify(connection, task)
            return Entry.of_row(row)

        return self._database.do(work)

    def resume(self, task: str, prompt: str | None) -> Entry:
        """Let a task that has ended wait for its executor once more, for another attempt of its run.

        Raises `NotFound`, and `InvalidInput` where it has not ended, or has no run.
        """

        def work(connection: Connection[Row]) -> Entry:
            _alone(connection)
            row = connection.execute("SELECT * FROM task WHERE id = %s", (task,)).fetchone()
            if row is None:
                raise NotFound(f"no task {task!r} is in the queue")
            entry = Entry.of_row(row)
            if not entry.state.final or entry.wanted == "destroyed":
                doing = entry.state if not entry.state.final else "being removed"
                raise InvalidInput(f"task {entry.name} is {doing}", next_step="wait until it has ended, or kill it")
            if entry.record is None:
                raise InvalidInput(
                    f"task {entry.name} can't go on: it never had a run",
                    next_step="dispatch it again" if entry.file is None else f"`coding-agent dispatch {entry.name}`",
                )
            asked = {"attempt": entry.record.outputs.attempts + 1, "prompt": prompt}
            row = connection.execute(
                "UPDATE task SET state = 'queued', wanted = 'run', worker = NULL, reason = NULL, detail = NULL, "
                "executor = split_part(taken, '@', 1), not_before = now(), finished_at = NULL, resume = %s "
                "WHERE id = %s RETURNING *",
                (json.dumps(asked), task),
            ).fetchone()
            assert row is not None
            notify(connection, task)
            return Entry.of_row(row)

        return self._database.do(work)

    def end_unknown(self, name: str, file: str, record: Record | None) -> Entry:
        """Ask for the removal of a stack of a project here that the queue has no task of."""

        def work(connection: Connection[Row]) -> Entry:
            _alone(connection)
            state = record.outputs.status if record and record.outputs.status.final else State.KILLED
            row = connection.execute(
                "INSERT INTO task (id, name, fields, file, digest, labels, retries, backoff, machine, store, state, "
                "wanted, record) VALUES (%s, %s, '{}', %s, '', '{}', 0, 0, %s, %s, %s, 'destroyed', %s) RETURNING *",
                (secrets.token_hex(8), name, file, machine(), store(), state, _packed(record) if record else None),
            ).fetchone()
            assert row is not None
            notify(connection, row["id"])
            return Entry.of_row(row)

        return self._database.do(work)

    def forget(self, task: str) -> None:
        """Take a task out of the table, once nothing of it is left."""
        self._run("DELETE FROM task WHERE id = %s AND worker IS NULL", task)

    # What workers do.

    def register(self, worker: str, offers: Sequence[Offer]) -> None:
        """Say that a worker lives and what it serves; the executors' slots become as many as they offer."""

        serves = [each.key for each in offers]

        def work(connection: Connection[Row]) -> None:
            _alone(connection)
            connection.execute(
                "INSERT INTO worker (id, machine, store, host, pid, begun, serves) VALUES (%s, %s, %s, %s, %s, %s, %s) "
                "ON CONFLICT (id) DO UPDATE SET serves = excluded.serves, seen_at = now()",
                (worker, machine(), store(), platform.node(), os.getpid(), processes.begun(os.getpid()), serves),
            )
            connection.execute("DELETE FROM refusal WHERE worker = %s", (worker,))
            for offer in offers:
                _offer(connection, offer)
            notify(connection)

        self._database.do(work)

    def alive(self, worker: str) -> None:
        """Give a sign of life. Raises `NotFound` where the worker was taken for dead."""
        if self._run("UPDATE worker SET seen_at = now() WHERE id = %s", worker) == 0:
            raise NotFound(f"worker {worker} is not known any more")

    def retire(self, worker: str) -> None:
        """Say that a worker ends; what it has is another's from now on."""

        def work(connection: Connection[Row]) -> None:
            connection.execute("UPDATE task SET worker = NULL WHERE worker = %s", (worker,))
            connection.execute("DELETE FROM worker WHERE id = %s", (worker,))
            notify(connection)

        self._database.do(work)

    def retire_idle(self, worker: str) -> bool:
        """Say that a worker ends, unless something was put in for workers of this machine; return whether it may.

        Whoever puts something in afterwards sees that nobody serves it.
        """

        def work(connection: Connection[Row]) -> bool:
            _alone(connection)
            if connection.execute(_LEFT, (machine(), store(), _FINAL)).fetchone() is not None:
                return False
            connection.execute("DELETE FROM worker WHERE id = %s", (worker,))
            return True

        return self._database.do(work)

    def workers(self) -> list[Row]:
        """Return the workers that live."""
        self.bury()
        query = "SELECT * FROM worker WHERE seen_at > now() - make_interval(secs => %s) ORDER BY started_at"
        return self._database.do(lambda connection: connection.execute(query, (DEAD_AFTER,)).fetchall())

    def served(self, executor: str | None, labels: Sequence[str], machine: str | None) -> bool:
        """Whether a worker lives that may take such a task."""
        self.bury()
        query = (
            "SELECT 1 FROM worker JOIN executor ON executor.key = ANY(worker.serves) "
            "WHERE seen_at > now() - make_interval(secs => %(limit)s) "
            "AND (%(machine)s::text IS NULL OR worker.machine = %(machine)s) AND CASE WHEN %(executor)s::text IS NULL "
            "THEN %(labels)s::text[] <@ executor.labels ELSE executor.name = %(executor)s END LIMIT 1"
        )
        given = {"limit": DEAD_AFTER, "machine": machine, "executor": executor, "labels": list(labels)}
        return self._database.do(lambda connection: connection.execute(query, given).fetchone()) is not None

    def attended(self) -> bool:
        """Whether a worker of this machine lives."""
        return any(each["machine"] == machine() for each in self.workers())

    def bury(self) -> None:
        """Forget the workers of this machine whose processes are gone: nobody has to wait for a sign of theirs."""
        here = "SELECT * FROM worker WHERE host = %s"
        rows = self._database.do(lambda connection: connection.execute(here, (platform.node(),)).fetchall())
        for row in rows:
            if processes.begun(row["pid"]) != row["begun"]:
                self._run("DELETE FROM worker WHERE id = %s", row["id"])

    def claim(self, worker: str, serves: Sequence[str]) -> Entry | None:
        """Take the next task that there is a slot for, with the slot; None where there is none.

        The highest priority, then the oldest goes first; of its executors the first that has room.
        """

        def work(connection: Connection[Row]) -> Entry | None:
            _alone(connection)
            _known_version(connection)
            given = {"worker": worker, "machine": machine(), "store": store(), "serves": list(serves)}
            found = connection.execute(_CLAIM, given).fetchone()
            if found is None:
                return None
            task, key = found["id"], found["key"]
            connection.execute(
                "UPDATE slot SET task = %s WHERE executor = %s AND kind = 'run' AND index = %s",
                (task, key, found["index"]),
            )
            connection.execute(
                "UPDATE slot SET task = %s WHERE executor = %s AND kind = 'gpu' AND index IN "
                "(SELECT index FROM slot JOIN executor ON key = slot.executor WHERE slot.executor = %s "
                "AND kind = 'gpu' AND task IS NULL AND index < gpus "
                "AND (%s::jsonb IS NULL OR %s::jsonb @> to_jsonb(index)) "
                "ORDER BY index LIMIT %s)",
                (task, key, key, found["held"], found["held"], found["gpus"]),
            )
            row = connection.execute(
                "UPDATE task SET state = 'provisioning', worker = %s, taken = %s, store = %s, "
                "claimed_at = clock_timestamp(), reason = NULL, detail = NULL, "
                # One that is resumed keeps its run.
                "attempt = attempt + CASE WHEN resume IS NULL THEN 1 ELSE 0 END, "
                "record = CASE WHEN resume IS NULL THEN NULL ELSE record END, "
                "run_id = CASE WHEN resume IS NOT NULL THEN run_id WHEN attempt = 0 THEN id ELSE %s END "
                "WHERE id = %s RETURNING *",
                (worker, key, store(), secrets.token_hex(8), task),
            ).fetchone()
            assert row is not None
            notify(connection, task)
            return Entry.of_row(row)

        return self._database.do(work)

    def take_over(self, worker: str) -> list[Entry]:
        """Take what nobody attends to any more: its worker has retired or is dead, or its removal was asked for.

        Only what can be gone on with here: its stack is within reach, and its files and its executor are.
        """

        self.bury()

        def work(connection: Connection[Row]) -> list[Entry]:
            _alone(connection)
            # A database that was away for a while has heard of nobody meanwhile.
            connection.execute(
                "DELETE FROM worker WHERE id <> %s AND greatest(seen_at, pg_postmaster_start_time()) "
                "< now() - make_interval(secs => %s)",
                (worker, DEAD_AFTER),
            )
            rows = connection.execute(
                "UPDATE task SET worker = %(worker)s WHERE store = %(store)s "
                "AND (machine IS NULL OR machine = %(machine)s) "
                "AND (coalesce(position('@' IN taken), 0) = 0 OR split_part(taken, '@', 2) = %(machine)s) "
                "AND (worker IS NULL OR NOT EXISTS (SELECT 1 FROM worker WHERE worker.id = task.worker)) "
                "AND ((state <> ALL(%(final)s) AND state <> 'queued') OR wanted = 'destroyed') RETURNING *",
                {"worker": worker, "machine": machine(), "store": store(), "final": _FINAL},
            ).fetchall()
            return [Entry.of_row(row) for row in rows]

        return self._database.do(work)

    def refuse(self, entry: Entry, worker: str, reason: str) -> None:
        """Give a task back that this worker can't take, and say why; others may."""

        def work(connection: Connection[Row]) -> None:
            _alone(connection)
            _free(connection, entry.id)
            connection.execute(
                "UPDATE task SET state = 'queued', worker = NULL, taken = NULL, run_id = NULL, attempt = attempt - 1, "
                "store = CASE WHEN attempt = 1 THEN NULL ELSE store END "
                "WHERE id = %s AND worker = %s",
                (entry.id, worker),
            )
            connection.execute(
                "INSERT INTO refusal VALUES (%s, %s, %s) "
                "ON CONFLICT (task, worker) DO UPDATE SET reason = excluded.reason",
                (entry.id, worker, reason),
            )
            notify(connection, entry.id)

        self._database.do(work)

    def progress(self, entry: Entry, worker: str, record: Record, *, limit: float) -> Entry | None:
        """Write down what is known of a task's run; None where the task is another worker's by now."""
        state = record.outputs.status
        row = self._database.do(
            lambda connection: _fetched(
                connection,
                "UPDATE task SET state = CASE WHEN %s THEN state ELSE %s END, record = %s, run_id = %s "
                "WHERE id = %s AND worker = %s RETURNING *",
                (state.final, state.value, _packed(record), record.run_id, entry.id, worker),
                about=entry.id,
            ),
            limit=limit,
        )
        return Entry.of_row(row) if row else None

    def finish(
        self,
        entry: Entry,
        worker: str,
        state: State,
        *,
        record: Record | None = None,
        reason: str | None = None,
        detail: str | None = None,
        limit: float,
    ) -> Entry | None:
        """Write down how a task has ended, once, and let its slots go. None where it is another worker's by now."""

        def work(connection: Connection[Row]) -> Row | None:
            _alone(connection)
            row = connection.execute(
                "UPDATE task SET state = CASE WHEN state = ANY(%(all)s) THEN state ELSE %(state)s END, "
                "reason = %(reason)s, detail = %(detail)s, record = coalesce(%(record)s::jsonb, record), "
                "finished_at = coalesce(finished_at, now()), "
                "worker = CASE WHEN wanted = 'destroyed' THEN worker END WHERE id = %(id)s AND worker = %(worker)s "
                "RETURNING *",
                {
                    "all": _FINAL,
                    "state": state.value,
                    "reason": reason,
                    "detail": detail,
                    "record": _packed(record) if record else None,
                    "id": entry.id,
                    "worker": worker,
                },
            ).fetchone()
            if row is not None:
                _free(connection, entry.id)
                notify(connection, entry.id)
            return row

        row = self._database.do(work, limit=limit)
        return Entry.of_row(row) if row else None

    def again(self, entry: Entry, worker: str, reason: str, detail: str | None, *, limit: float) -> None:
        """Let a task that failed wait for another attempt; its slots go to others meanwhile."""

        def work(connection: Connection[Row]) -> None:
            _alone(connection)
            row = connection.execute(
                "UPDATE task SET state = 'queued', worker = NULL, taken = NULL, run_id = NULL, "
                "reason = %s, detail = %s, not_before = now() + make_interval(secs => backoff * power(2, attempt - 1)) "
                "WHERE id = %s AND worker = %s RETURNING id",
                (reason, detail, entry.id, worker),
            ).fetchone()
            if row is not None:
                _free(connection, entry.id)
                notify(connection, entry.id)

        self._database.do(work, limit=limit)

    def not_removed(self, entry: Entry, worker: str, detail: str, *, limit: float) -> None:
        """Write down that a task could not be removed, and why: it stays until that is asked for again."""

        def work(connection: Connection[Row]) -> None:
            connection.execute(
                "UPDATE task SET wanted = 'killed', worker = NULL, detail = %s WHERE id = %s AND worker = %s",
                (detail, entry.id, worker),
            )
            notify(connection, entry.id)

        self._database.do(work, limit=limit)

    def removed(self, entry: Entry, worker: str, *, limit: float) -> None:
        """Write down that nothing of a task is left but its results."""

        def work(connection: Connection[Row]) -> None:
            connection.execute("DELETE FROM task WHERE id = %s AND worker = %s", (entry.id, worker))
            notify(connection, entry.id)

        self._database.do(work, limit=limit)

    def next_change(self) -> float | None:
        """Return in how many seconds a task that waits for its time may be taken; None where none does."""
        query = (
            "SELECT extract(epoch FROM min(not_before) - now())::float8 AS seconds FROM task "
            "WHERE state = 'queued' AND not_before > now() "
            "AND (machine IS NULL OR machine = %s)"
        )
        row = self._database.do(lambda connection: connection.execute(query, (machine(),)).fetchone())
        return None if row is None or row["seconds"] is None else max(0.0, float(row["seconds"]))

    def idle(self) -> bool:
        """Whether nothing is left to do for workers of this machine."""
        given = (machine(), store(), _FINAL)
        return self._database.do(lambda connection: connection.execute(_LEFT, given).fetchone()) is None

    def slots(self, key: str) -> list[Row]:
        """Return an executor's slots, with what has them."""
        query = (
            "SELECT slot.kind, slot.index, slot.task, task.name FROM slot LEFT JOIN task ON task.id = slot.task "
            "WHERE slot.executor = %s ORDER BY kind, index"
        )
        return self._database.do(lambda connection: connection.execute(query, (key,)).fetchall())

    def why(self, entry: Entry) -> list[str]:
        """Say what a task waits for, a line each."""
        self.bury()
        from coding_agent.work_queue import reasons

        return self._database.do(lambda connection: reasons.of(connection, entry))

    def _one(self, query: str, *values: object) -> Entry | None:
        row = self._database.do(lambda connection: connection.execute(query, values).fetchone())
        return Entry.of_row(row) if row else None

    def _run(self, query: str, *values: object) -> int:
        return self._database.do(lambda connection: connection.execute(query, values).rowcount)


def _enqueue(connection: Connection[Row], order: Order, again: bool) -> Entry:
    _alone(connection)
    before = connection.execute(
        "SELECT * FROM task WHERE name = %s AND file IS NOT DISTINCT FROM %s "
        "AND (file IS NULL OR machine = %s) ORDER BY enqueued_at DESC LIMIT 1",
        (order.name, order.file, order.machine),
    ).fetchone()
    if before is not None:
        known = Entry.of_row(before)
        if known.digest == order.digest and known.wanted == "run" and not (again and known.state.final):
            return known
        if not known.state.final:
            raise InvalidInput(
                f"another task named {order.name} is in the queue and has not ended: {known.id}",
                next_step=f"choose another name, or end that one with `coding-agent kill {order.name}`",
            )
        connection.execute("DELETE FROM task WHERE id = %s AND worker IS NULL", (known.id,))
    plain = asdict(order)
    plain |= {"fields": json.dumps(order.fields), "labels": list(order.labels)}
    plain |= {"repo": None if order.repo is None else json.dumps(order.repo)}
    plain |= {"not_before": order.not_before or datetime.fromtimestamp(0).astimezone()}
    names = list(plain)
    row = connection.execute(
        f"INSERT INTO task ({', '.join(names)}, enqueued_at) "  # noqa: S608 - names of ours
        f"VALUES ({', '.join(f'%({name})s' for name in names)}, clock_timestamp()) RETURNING *",
        plain,
    ).fetchone()
    assert row is not None
    notify(connection, order.id)
    return Entry.of_row(row)


def _offer(connection: Connection[Row], offer: Offer) -> None:
    given = {**asdict(offer), "labels": list(offer.labels)}
    connection.execute(
        "INSERT INTO executor (key, name, rank, labels, max_tasks, gpus) "
        "VALUES (%(key)s, %(name)s, %(rank)s, %(labels)s, %(max_tasks)s, %(gpus)s) ON CONFLICT (key) DO UPDATE SET "
        "rank = excluded.rank, labels = excluded.labels, max_tasks = excluded.max_tasks, gpus = excluded.gpus",
        given,
    )
    for kind, number in (("run", offer.max_tasks), ("gpu", offer.gpus)):
        connection.execute(
            "INSERT INTO slot (executor, kind, index) SELECT %s, %s, generate_series(0, %s) ON CONFLICT DO NOTHING",
            (offer.key, kind, number - 1),
        )
    _trim(connection)


def _free(connection: Connection[Row], task: str) -> None:
    connection.execute("UPDATE slot SET task = NULL WHERE task = %s", (task,))
    _trim(connection)


def _trim(connection: Connection[Row]) -> None:
    """Remove slots beyond what is offered, once nobody has them."""
    connection.execute(
        "DELETE FROM slot USING executor WHERE key = slot.executor AND task IS NULL "
        "AND index >= CASE kind WHEN 'run' THEN max_tasks ELSE gpus END"
    )


def _alone(connection: Connection[Row]) -> None:
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_CLAIMING,))


def _known_version(connection: Connection[Row]) -> None:
    row = connection.execute("SELECT number FROM version").fetchone()
    if row is None or row["number"] > database.version():
        raise DatabaseUnavailable(
            "the queue was renewed by a newer version of coding-agent; this worker takes nothing any more",
            next_step="update coding-agent on this machine, and start its worker again",
        )


def _fetched(connection: Connection[Row], query: str, values: Sequence[object], *, about: str) -> Row | None:
    row = connection.execute(query, values).fetchone()
    if row is not None:
        notify(connection, about)
    return row


def _packed(record: Record) -> str:
    # jsonb takes no NUL; nothing of ours has one that matters.
    return json.dumps(records.to_plain(record)).replace("\\u0000", "")
