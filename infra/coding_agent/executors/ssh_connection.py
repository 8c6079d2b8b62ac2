"""A connection to a host over ssh: one for all commands, opened anew where it broke.

An event loop in a thread of its own does the talking. What a command is goes over its stdin, so that it meets no shell
of the host's: whatever the login shell is, it reads one constant line.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import secrets
import signal
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeVar

import asyncssh

from coding_agent.errors import CommandTimeout, ConnectionBroken
from coding_agent.executors.connection import Completed, FilesByCommand
from coding_agent.executors.ssh_handshake import Link, connect
from coding_agent.executors.ssh_login import Login
from coding_agent.text import neutralise

KEEPALIVE_INTERVAL = 10.0  # seconds between two questions whether the other side is there
KEEPALIVE_MAX = 3  # unanswered ones, after which the connection counts as broken
CALL = "CODING_AGENT_CALL"  # in the environment of a command: what finds it and its children again
LARGEST = 64 * 1024 * 1024  # bytes of what a command may say
END_LIMIT = 15.0  # seconds for ending a command
_AT_ONCE = 6  # commands; sshd's own limit (MaxSessions) is 10, and counts some that have just ended
_NO_ROOM = (0.1, 0.5, 2.0)  # seconds before asking again where it has no room for one more
_PIECE = 1 << 16  # bytes
_SHOWN = 300  # characters of what a host says in place of what was asked

Answer = TypeVar("Answer")

# Read by the login shell, which may be fish, zsh or csh: nothing in it may mean something else to one of them, so it
# has no single quote, backslash, exclamation mark or newline inside. While SSH_CLIENT is set bash takes a command for a
# login's and reads .bashrc, and so would every `bash -c` below it. The mark stands before what the command says, since
# a .bashrc may have said something before. What arrives half is not begun.
_BEGIN = (
    "exec env -u SSH_CLIENT -u SSH2_CLIENT -u SSH_CONNECTION -u BASH_ENV -u ENV bash --norc --noprofile -c '"
    '_g() { IFS= read -rd "" "$1" || exit 97; }; _p=(); _a=(); _g _m; '
    '_g _n; for ((; _n > 0; _n--)); do _g _v; _p+=("$_v"); done; '
    '_g _n; for ((; _n > 0; _n--)); do _g _v; _a+=("$_v"); done; '
    'for _v in "${_p[@]}"; do export "$_v"; done; '
    'type -P -- "${_a[0]}" >/dev/null && _n=1; printf "%s%s:" "$_m" "$_n"; printf "%s:" "$_m" >&2; '
    'exec -- "${_a[@]}"\''
)
_END = """for round in 1 2 3; do
  grep -lsazx -- "$1" /proc/[0-9]*/environ | while IFS=/ read -r _ _ pid _; do kill -KILL "$pid" 2>/dev/null; done
done
:"""


@dataclass
class _Session(asyncssh.SSHClientSession[bytes]):
    """What one command says, and how it ended."""

    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    begun: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    may_write: asyncio.Event = field(default_factory=asyncio.Event)
    lost: Exception | None = None
    too_much: bool = False
    channel: asyncssh.SSHClientChannel[bytes] | None = None

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self.channel, self.begun = chan, True
        self.may_write.set()

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        into = self.err if datatype == asyncssh.EXTENDED_DATA_STDERR else self.out
        into += data
        if len(self.out) + len(self.err) > LARGEST and not self.too_much:
            self.too_much = True
            self.ended.set()

    def eof_received(self) -> bool:
        return True  # its exit code is still to come

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc
        self.ended.set()
        self.may_write.set()


class SshConnection(FilesByCommand):
    """Commands and files of one host, as one user. Connects when it is first used."""

    def __init__(self, login: Login, *, keepalive: float = KEEPALIVE_INTERVAL) -> None:
        """`keepalive`: seconds between two questions whether the other side is there."""
        self._login = login
        self._keepalive = (keepalive, KEEPALIVE_MAX)
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._link: Link | None = None

    @property
    def login(self) -> Login:
        """Who is logged in, and where."""
        return self._login

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | BinaryIO | None = None,
        timeout: float,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command; see `Connection.run`. Connecting has a time limit of its own (`CONNECT_LIMIT`).

        Raises `LoginRefused`, `HostKeyUnknown` and `HostKeyChanged` too.
        """
        return self._wait(self._run(list(argv), stdin, timeout, dict(env or {})))

    def close(self) -> None:
        """Close it; can be repeated, and the next call opens it again."""
        with self._starting:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(self._shut(), loop).result(END_LIMIT)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(END_LIMIT)

    def _wait(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        over = threading.Event()

        async def whole() -> Answer:
            try:
                return await work
            finally:
                over.set()

        future = asyncio.run_coroutine_threadsafe(whole(), self._running_loop())
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise ConnectionBroken(f"the connection to {self._login.address} was closed") from error
        except BaseException:
            # An interrupted caller leaves no command behind.
            future.cancel()
            over.wait(END_LIMIT)
            raise

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._connecting, self._slots = asyncio.Lock(), asyncio.Semaphore(_AT_ONCE)
                # Whoever waits for a command is told what went wrong; nothing else is to be printed.
                self._loop.set_exception_handler(lambda _loop, _context: None)
                self._thread = threading.Thread(target=_serve, args=(self._loop,), daemon=True, name="ssh")
                self._thread.start()
            return self._loop

    async def _run(
        self, argv: list[str], stdin: bytes | BinaryIO | None, timeout: float, env: dict[str, str]
    ) -> Completed:
        async with self._slots:
            for pause in (*_NO_ROOM, None):
                known = self._link is not None
                link = await self._connected()
                session = _Session()
                try:
                    return await self._command(link, session, argv, stdin, timeout, env)
                except (asyncssh.Error, OSError, EOFError) as error:
                    refused = isinstance(error, asyncssh.ChannelOpenError) and not link.connection.is_closed()
                    if not refused:
                        self._drop(link)
                    # A connection that lay idle may have broken unnoticed: nothing was begun over it.
                    if pause is None or not (refused or (known and not session.begun)):
                        raise self._broken(error) from error
                    if refused:
                        await asyncio.sleep(pause)
        raise AssertionError("a command that neither ended nor failed")

    async def _command(
        self,
        link: Link,
        session: _Session,
        argv: list[str],
        stdin: bytes | BinaryIO | None,
        timeout: float,
        env: dict[str, str],
    ) -> Completed:
        call, mark = secrets.token_hex(8), secrets.token_hex(8).encode()
        speaker: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(timeout):
                await link.connection.create_session(lambda: session, _BEGIN, encoding=None)
                speaker = asyncio.create_task(_speak(session, _frame(mark, argv, {**env, CALL: call}), stdin))
                await session.ended.wait()
        except TimeoutError as error:
            await self._end(link, session, call)
            raise CommandTimeout(f"{argv[0]} did not end within {timeout:g} seconds") from error
        except asyncio.CancelledError:
            with contextlib.suppress(ConnectionBroken):
                await self._end(link, session, call)
            raise
        finally:
            if speaker:
                speaker.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await speaker
        if session.too_much:
            await self._end(link, session, call)
            raise ConnectionBroken(f"{argv[0]} said more than {LARGEST // 1_000_000} MB")
        return self._completed(session, mark, argv)

    def _completed(self, session: _Session, mark: bytes, argv: Sequence[str]) -> Completed:
        assert session.channel is not None
        if session.lost is not None:
            raise session.lost
        ended_by, code = session.channel.get_exit_signal(), session.channel.get_exit_status()
        if ended_by:
            code = 128 + getattr(signal, f"SIG{ended_by[0]}", signal.SIGKILL)
        before, found, out = bytes(session.out).partition(mark)
        if not found:
            if code is None:
                raise ConnectionBroken(f"the connection to {self._login.address} broke off")
            raise self._not_bash(before + session.err)
        begun, _, out = out.partition(b":")
        if begun != b"1":
            raise ConnectionBroken(f"{argv[0]} can't be started on {self._login.address}: there is no such program")
        if code is None:
            raise ConnectionBroken(f"the connection to {self._login.address} broke off")
        _, told, err = bytes(session.err).partition(mark + b":")
        return Completed(code, out, err if told else bytes(session.err))

    def _not_bash(self, said: bytes) -> ConnectionBroken:
        shown = neutralise(said.decode("utf-8", "replace").strip()[-_SHOWN:])
        return ConnectionBroken(
            f"{self._login.address} runs no commands for this user: {shown or 'nothing said'}",
            next_step="it needs bash, and a login shell that runs it: "
            f"`ssh {self._login.user}@... bash -c true` has to work, and nothing in its start files may read the input",
        )

    async def _connected(self) -> Link:
        async with self._connecting:
            if self._link is not None and self._link.connection.is_closed():
                self._drop(self._link)
            if self._link is None:
                self._link = await connect(self._login, keepalive=self._keepalive)
            return self._link

    def _drop(self, link: Link) -> None:
        if self._link is link:
            self._link = None
        link.abort()

    async def _end(self, link: Link, session: _Session, call: str) -> None:
        """End a command and its children; they carry its mark. Raises `ConnectionBroken` where that is unsure."""
        if session.channel is not None:
            session.channel.abort()
        ending, mark = _Session(), secrets.token_hex(8).encode()
        try:
            async with asyncio.timeout(END_LIMIT):
                await link.connection.create_session(lambda: ending, _BEGIN, encoding=None)
                await _speak(ending, _frame(mark, ["bash", "-c", _END, "end", f"{CALL}={call}"], {}), None)
                await ending.ended.wait()
            self._completed(ending, mark, ["bash"])
        except (TimeoutError, asyncssh.Error, OSError, EOFError) as error:
            self._drop(link)
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> ConnectionBroken:
        said = neutralise(str(getattr(error, "reason", "") or error))[:_SHOWN]
        return ConnectionBroken(
            f"the connection to {self._login.address} broke" + (f": {said}" if said else ""),
            next_step="what runs there goes on; try again once the host can be reached",
        )

    async def _shut(self) -> None:
        others = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        link, self._link = self._link, None
        if link:
            link.connection.close()
            for below in reversed(link.below):
                below.close()
            with contextlib.suppress(TimeoutError, asyncssh.Error, OSError):
                async with asyncio.timeout(1.0):
                    await link.connection.wait_closed()
            link.abort()
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


async def _speak(session: _Session, frame: bytes, stdin: bytes | BinaryIO | None) -> None:
    """Say what the command is, then its input, as fast as the other side takes it."""
    channel = session.channel
    assert channel is not None
    # Whoever does not listen to the end ends by himself: his exit code tells.
    with contextlib.suppress(OSError, ValueError):
        channel.write(frame)
        if isinstance(stdin, bytes):
            for start in range(0, len(stdin), _PIECE):
                await session.may_write.wait()
                channel.write(stdin[start : start + _PIECE])
        elif stdin is not None:
            while piece := stdin.read(_PIECE):
                await session.may_write.wait()
                channel.write(piece)
        channel.write_eof()


def _frame(mark: bytes, argv: Sequence[str], env: Mapping[str, str]) -> bytes:
    pairs = [f"{name}={value}" for name, value in env.items()]
    strings = [str(len(pairs)), *pairs, str(len(argv)), *argv]
    return b"\0".join([mark, *(each.encode("utf-8", "surrogateescape") for each in strings), b""])
