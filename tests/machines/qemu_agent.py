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
from typing import Any, BinaryIO

# Seconds: without hardware support, and beside other tests, either takes a while. What is sent before there is an agent
# waits for it.
_GREETING_LIMIT = 60.0
_ANSWER_LIMIT = 300.0
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
        with self._guard, self._connected() as connection, _synchronised(connection) as answers:
            _send(connection, command, arguments or {})
            return _returned(command, answers)

    def tell(self, command: str, arguments: dict[str, Any]) -> None:
        """Give a command that has no answer. Raises OSError where no agent is."""
        with self._guard, self._connected() as connection, _synchronised(connection):
            _send(connection, command, arguments)
            # It reads before it does: an end of the connection would come first otherwise.
            connection.settimeout(1.0)
            try:
                connection.recv(1)
            except TimeoutError:
                return

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_GREETING_LIMIT)
            connection.connect(str(self._path))
        except BaseException:
            connection.close()
            raise
        return connection


def _synchronised(connection: socket.socket) -> BinaryIO:
    """Return the answers that are to come, from where nothing is left of what an earlier connection asked."""
    answers = connection.makefile("rb")
    try:
        number = secrets.randbelow(1 << 31)
        # Once: each would be answered, and what is asked next would get that answer.
        _send(connection, "guest-sync", {"id": number})
        while _answer(answers).get("return") != number:
            pass
        connection.settimeout(_ANSWER_LIMIT)
    except BaseException:
        answers.close()
        raise
    return answers


def _send(connection: socket.socket, command: str, arguments: dict[str, Any]) -> None:
    connection.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")


def _answer(answers: BinaryIO) -> dict[str, Any]:
    line = answers.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("the machine has no power")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _returned(command: str, answers: BinaryIO) -> Any:
    answer = _answer(answers)
    if "error" in answer:
        raise OSError(f"{command}: {answer['error']['desc']}")
    return answer["return"]
