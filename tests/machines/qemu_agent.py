"""A door into a virtual machine: QEMU's guest agent, past its network, its firewall and its sshd."""

from __future__ import annotations

import base64
import json
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ANSWER_LIMIT = 10.0  # seconds; without hardware support and under load an answer takes a while
_POLL = 0.1  # seconds between two looks at a command
# One stream, as on a terminal.
_TOGETHER = ("-c", 'exec "$@" 2>&1', "sh")


class Agent:
    """The agent's socket; it answers while the machine's system runs."""

    def __init__(self, path: Path) -> None:
        """Take the socket's path: its machine need not run yet."""
        self._path = path
        self._guard = threading.Lock()

    def run(self, argv: Sequence[str], stdin: bytes, limit: float) -> tuple[int, str]:
        """Run a command as root; return exit code and output. Raises OSError where no agent answers."""
        end = time.monotonic() + limit
        started = self.ask(
            "guest-exec",
            {
                "path": "/bin/sh",
                "arg": [*_TOGETHER, *argv],
                "input-data": base64.b64encode(stdin).decode(),
                "capture-output": True,
            },
        )
        while not (status := self.ask("guest-exec-status", {"pid": started["pid"]}))["exited"]:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(list(argv), limit)
            time.sleep(_POLL)
        output = base64.b64decode(status.get("out-data", ""))
        return status.get("exitcode", -status.get("signal", 0)), output.decode("utf-8", "replace")

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Return what the agent answers. Raises OSError where none answers."""
        with self._guard, self._connected() as connection:
            return self._asked(connection, {"execute": command, "arguments": arguments or {}})

    def tell(self, command: str, arguments: dict[str, Any]) -> None:
        """Give a command that has no answer. Raises OSError where no agent is."""
        with self._guard, self._connected() as connection:
            connection.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            # It reads before it does: an end of the connection would come first otherwise.
            connection.settimeout(1.0)
            try:
                connection.recv(1)
            except TimeoutError:
                return

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_ANSWER_LIMIT)
            connection.connect(str(self._path))
            # What an earlier connection left half said is done with where the same number comes back.
            number = secrets.randbelow(1 << 31)
            while self._asked(connection, {"execute": "guest-sync", "arguments": {"id": number}}) != number:
                pass
        except BaseException:
            connection.close()
            raise
        return connection

    def _asked(self, connection: socket.socket, message: dict[str, Any]) -> Any:
        connection.sendall(json.dumps(message).encode() + b"\n")
        line = b""
        while not line.endswith(b"\n"):
            if not (more := connection.recv(1 << 16)):
                raise ConnectionError("the machine has no power")
            line += more
        answer = json.loads(line)
        if "error" in answer:
            raise OSError(f"{message['execute']}: {answer['error']['desc']}")
        return answer["return"]
