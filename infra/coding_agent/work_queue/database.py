"""The queue's Postgres: the user's own, or the one that CODING_AGENT_DATABASE_URL names."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg import Connection, sql
from psycopg.rows import DictRow, dict_row

from coding_agent.errors import DatabaseUnavailable
from coding_agent.work_queue import embedded

URL = "CODING_AGENT_DATABASE_URL"
SCHEMA = "coding_agent"
CHANNEL = "coding_agent"  # on which it is told that something changed
CONNECT_LIMIT = 10  # seconds
STATEMENT_LIMIT = 60  # seconds
RESTART_LIMIT = 5.0  # seconds
RETRY_POLL = 0.5  # seconds until a database that is away is tried again
_FILES = Path(__file__).parent / "schema"
_MIGRATING = 0x636F6465  # the advisory lock of whoever makes or renews the schema
_OPTIONS = f"-c search_path={SCHEMA} -c statement_timeout={STATEMENT_LIMIT}s -c client_min_messages=warning"
_KEEPALIVE: Mapping[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

Answer = TypeVar("Answer")
Row = DictRow


def in_use() -> bool:
    """Whether there may be a queue: none is made only to look into it."""
    return bool(os.environ.get(URL)) or embedded.exists()


def version() -> int:
    """Return the schema's version that this program is made for."""
    return max(map(_number, _FILES.glob("*.sql")))


class Database:
    """A connection that comes back by itself. Its methods may be called from any thread."""

    def __init__(self, address: Callable[[], str], patience: float) -> None:
        """`opened` makes it; `address` returns where it is, started again where that is ours to do."""
        self._address, self._patience = address, patience
        self._guard = threading.RLock()
        self._connection: Connection[Row] | None = None

    def do(self, work: Callable[[Connection[Row]], Answer], *, limit: float | None = None) -> Answer:
        """Do some work in a transaction of its own, anew where the connection breaks, for `limit` seconds.

        Without a limit that is how patient whoever opened it is.

        Raises `DatabaseUnavailable`.
        """
        deadline = time.monotonic() + (self._patience if limit is None else limit)
        while True:
            try:
                with self._guard:
                    connection = self._connected()
                    try:
                        with connection.transaction():
                            return work(connection)
                    except (psycopg.OperationalError, psycopg.InterfaceError):
                        self._drop()
                        raise
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if time.monotonic() >= deadline:
                    raise _unreachable(error) from error
            except DatabaseUnavailable:
                if time.monotonic() >= deadline:
                    raise
            except psycopg.Error as error:
                raise DatabaseUnavailable(f"the queue's database refuses it: {_said(error)}") from error
            time.sleep(RETRY_POLL)

    @contextmanager
    def listening(self) -> Iterator[Callable[[float], bool]]:
        """Give what waits until something has changed, at most so many seconds; it says whether something has.

        Raises `DatabaseUnavailable`, also while it waits.
        """
        try:
            with _connect(self._address()) as connection:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))

                def wait(seconds: float) -> bool:
                    try:
                        return bool(list(connection.notifies(timeout=seconds, stop_after=1)))
                    except psycopg.Error as error:
                        raise _unreachable(error) from error

                yield wait
        except psycopg.Error as error:
            raise _unreachable(error) from error

    def close(self) -> None:
        """End the connection."""
        with self._guard:
            self._drop()

    def _connected(self) -> Connection[Row]:
        if self._connection is None or self._connection.closed:
            connection = _connect(self._address())
            try:
                _renew(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()


@contextmanager
def opened(*, patience: float = RESTART_LIMIT) -> Iterator[Database]:
    """Give the database. Raises `DatabaseUnavailable`; connects when it is first used.

    `patience`: seconds for which one that does not answer is tried again, as it may be restarted.
    """
    with ExitStack() as stack:
        named = os.environ.get(URL)
        database = Database((lambda: named) if named else stack.enter_context(embedded.server()), patience)
        stack.callback(database.close)
        yield database


def notify(connection: Connection[Row], about: str = "") -> None:
    """Tell all who listen, once this transaction holds, that something has changed; `about` is a task's id."""
    connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, about))


def _connect(address: str) -> Connection[Row]:
    return Connection.connect(
        address,
        autocommit=True,
        connect_timeout=CONNECT_LIMIT,
        options=_OPTIONS,
        application_name="coding-agent",
        client_encoding="utf8",  # also where the database was made without an encoding
        row_factory=dict_row,
        **_KEEPALIVE,
    )


def _renew(connection: Connection[Row]) -> None:
    """Make the schema, or bring an older one up to date. Raises `DatabaseUnavailable` for a newer one."""
    if _present(connection) == version():
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
        present = _present(connection)
        if present > version():
            raise DatabaseUnavailable(
                f"the queue was made by a newer version of coding-agent (schema {present}, this one knows {version()})",
                next_step="update coding-agent on this machine",
            )
        if present == 0:
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(SCHEMA)))
            connection.execute("CREATE TABLE IF NOT EXISTS version (number int NOT NULL)")
            connection.execute("INSERT INTO version VALUES (0)")
        for file in sorted(_FILES.glob("*.sql"), key=_number):
            if _number(file) > present:
                connection.execute(file.read_bytes())
        connection.execute("UPDATE version SET number = %s", (version(),))


def _present(connection: Connection[Row]) -> int:
    try:
        with connection.transaction():
            row = connection.execute("SELECT number FROM version").fetchone()
    except psycopg.errors.UndefinedTable:
        return 0
    return int(row["number"]) if row else 0


def _number(file: Path) -> int:
    return int(file.stem)


def _unreachable(error: psycopg.Error) -> DatabaseUnavailable:
    named = f"; see that {URL} is right" if os.environ.get(URL) else ""
    return DatabaseUnavailable(
        f"the queue's database does not answer: {_said(error)}",
        next_step=f"see that it runs{named}, and repeat it",
    )


def _said(error: psycopg.Error) -> str:
    """Return the first line of what it says, without a password."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1@", first)
