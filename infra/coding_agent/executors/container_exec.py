"""Commands inside a container, through the engine's exec: a stream each way, a time limit, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from docker.errors import APIError, NotFound

from coding_agent.errors import CommandTimeout, ConnectionBroken
from coding_agent.executors.connection import Completed
from coding_agent.executors.container_engine import Engine, answering

CALL = "CODING_AGENT_CALL"  # in the environment of a command: what finds it and its children again
LARGEST = 64 * 1024 * 1024  # bytes of what a command may say
END_LIMIT = 10.0  # seconds
_PIECE = 1 << 16
_HEADER = 8  # bytes: the stream's number, three zeros, the length
# The engine can't be told that the input has ended, so the length is.
_WITH_INPUT = 'head -c "$1" | "${@:2}"; exit "${PIPESTATUS[1]}"'
_END = """for round in 1 2 3; do
  grep -lsazx -- "$1" /proc/[0-9]*/environ | while IFS=/ read -r _ _ pid _; do kill -KILL "$pid" 2>/dev/null; done
done"""


class NotRunning(ConnectionBroken):
    """The command was not begun: the container is not there, or does not run."""


@dataclass
class _Heard:
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    whole: bool = False
    too_much: bool = False


def run(
    engine: Engine,
    container: str,
    argv: Sequence[str],
    *,
    user: str,
    stdin: bytes | BinaryIO | None,
    timeout: float,
    env: Mapping[str, str],
) -> Completed:
    """Run a command in a container; see `Connection.run`. Raises `NotRunning` where it was not even begun."""
    call = secrets.token_hex(8)
    command = list(argv)
    if stdin is not None:
        command = ["bash", "-c", _WITH_INPUT, "input", str(_size(stdin)), *argv]
    environment = {**env, CALL: call}
    try:
        with answering(engine.url, f"running {argv[0]}"):
            execution = engine.api.exec_create(
                container, command, stdin=stdin is not None, user=user, environment=environment
            )["Id"]
    except NotFound as error:
        raise NotRunning(f"the container {container[:12]} is not there any more") from error
    except ConnectionBroken as error:
        if isinstance(error.__cause__, APIError):
            raise NotRunning(error.message) from error
        raise
    with answering(engine.url, f"running {argv[0]}"):
        stream = _begin(engine, execution, container)
    heard = _Heard()
    listener = threading.Thread(target=_listen, args=(stream, heard), daemon=True)
    speaker = threading.Thread(target=_speak, args=(stream, stdin), daemon=True) if stdin is not None else None
    try:
        listener.start()
        if speaker:
            speaker.start()
        listener.join(timeout)
        if listener.is_alive():
            raise CommandTimeout(f"{argv[0]} did not end within {timeout:g} seconds")  # noqa: TRY301 - ended below
    except BaseException:
        with contextlib.suppress(Exception):
            _end(engine, container, user, call)
        raise
    finally:
        _shut(stream)
        listener.join(END_LIMIT)
        if speaker:
            speaker.join(END_LIMIT)
    if heard.too_much:
        _end(engine, container, user, call)
        raise ConnectionBroken(f"{argv[0]} said more than {LARGEST // 1_000_000} MB")
    if not heard.whole:
        raise ConnectionBroken(f"the connection to the container {container[:12]} broke off")
    return Completed(_exit_code(engine, execution, container, heard), bytes(heard.out), bytes(heard.err))


def _begin(engine: Engine, execution: str, container: str) -> Any:
    try:
        return engine.api.exec_start(execution, socket=True)
    except NotFound as error:
        raise ConnectionBroken(f"the container {container[:12]} was restarted or removed meanwhile") from error


def _exit_code(engine: Engine, execution: str, container: str, heard: _Heard) -> int:
    try:
        with answering(engine.url, "asking how a command ended"):
            code = engine.api.exec_inspect(execution)["ExitCode"]
    except NotFound as error:
        raise ConnectionBroken(f"the container {container[:12]} was restarted or removed meanwhile") from error
    if code is None:
        raise ConnectionBroken(f"the connection to the container {container[:12]} broke off")
    said = bytes(heard.out[:400] + heard.err[:400])
    if code in (125, 126, 127) and re.search(rb"OCI (runtime|permission)", said):
        # The engine says in the command's own words that it could not be started: Docker on stdout, podman on stderr.
        raise ConnectionBroken(f"it can't be started in the container: {said.decode('utf-8', 'replace').strip()}")
    return int(code)


def _end(engine: Engine, container: str, user: str, call: str) -> None:
    """End a command and its children; they carry the call's mark."""
    argv = ["bash", "-c", _END, "end", f"{CALL}={call}"]
    with answering(engine.url, "ending a command"), contextlib.suppress(NotFound):
        execution = engine.api.exec_create(container, argv, user=user)["Id"]
        engine.api.exec_start(execution)


def _listen(stream: Any, heard: _Heard) -> None:
    # What came together with the answer's head is in the reader's buffer, not in the socket any more.
    reader = stream._response.raw._fp.fp
    with contextlib.suppress(OSError, ValueError, AttributeError):
        while True:
            header = reader.read(_HEADER)
            if len(header) < _HEADER:
                heard.whole = not header
                return
            number, length = struct.unpack(">BxxxL", header)
            into = heard.err if number == 2 else heard.out
            while length:
                piece = reader.read(min(length, _PIECE))
                if not piece:
                    return
                length -= len(piece)
                into += piece
            if len(heard.out) + len(heard.err) > LARGEST:
                heard.too_much = True
                return


def _speak(stream: Any, stdin: bytes | BinaryIO) -> None:
    connection = getattr(stream, "_sock", stream)
    # Whoever does not listen to the end ends by himself: his exit code tells.
    with contextlib.suppress(OSError, ValueError):
        if isinstance(stdin, bytes):
            connection.sendall(stdin)
        else:
            while piece := stdin.read(_PIECE):
                connection.sendall(piece)


def _shut(stream: Any) -> None:
    import socket

    connection = getattr(stream, "_sock", stream)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError, AttributeError):
        stream._response.close()
    with contextlib.suppress(OSError):
        stream.close()


def _size(stdin: bytes | BinaryIO) -> int:
    if isinstance(stdin, bytes):
        return len(stdin)
    here = stdin.tell()
    size = stdin.seek(0, os.SEEK_END) - here
    stdin.seek(here)
    return size
