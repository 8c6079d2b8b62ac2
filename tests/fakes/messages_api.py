"""A scripted Messages API on loopback: the real Claude Code program talks to it as it would to the real one.

In a test::

    with MessagesApi() as api:
        run_claude(prompt=scenario("edit"), ANTHROPIC_BASE_URL=api.url)
        assert len(api.sessions()) == 1

As a program (prints its address, ends on SIGTERM, or with its stdin where `--until-eof` is given)::

    python -m fakes.messages_api --port 0 --scenario edit --script my-script.json --log requests.jsonl

The prompt chooses the scenario; `fakes.scenarios` lists them all, `fakes.script` describes scripts of one's own. The
step is read from the request alone, so resumed and concurrent sessions, several programs and restarts of this
server all work. Only `times` (fail so often, then answer) counts requests, per session.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from fakes.answer import Handler
from fakes.conversation import Conversation, read
from fakes.scenarios import build, scenario
from fakes.script import Script, Steps

__all__ = ["MessagesApi", "Request", "main", "scenario"]


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    number: int  # from 1
    at: float  # seconds, time.monotonic()
    method: str
    path: str  # without the query
    headers: Mapping[str, str] = field(repr=False)  # names in lower case
    size: int
    session: str | None = None
    prompt: str | None = field(default=None, repr=False)  # the user's first text, byte for byte
    scenario: str | None = None
    turn: int = 0  # index of the step that answers it
    main: bool = False  # a turn of an agent; a title or a summary is not
    tools: tuple[str, ...] = field(default=(), repr=False)
    body: bytes | None = field(default=None, repr=False)  # only with keep_bodies


class MessagesApi:
    """The server; a context manager. `url` is what ANTHROPIC_BASE_URL has to be."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        default: str = "text",
        script: Path | Mapping[str, Any] | None = None,
        keep_bodies: bool = False,
        log: Path | None = None,
    ) -> None:
        """Bind the address. `default` is the scenario of prompts without one; `log` gets a JSON line a request."""
        self.stopping = threading.Event()
        self.requests: list[Request] = []
        self._default = default
        self._script = Script.load(script)
        self._keep_bodies = keep_bodies
        self._log = log
        self._changed = threading.Condition()
        self._asked: Counter[tuple[str | None, str, int]] = Counter()
        self._gates: set[str] = set()
        self._server = _Server((host, port), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="messages-api")
        self.url = f"http://{host}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every answer that is under way, and the server."""
        self.stopping.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.hang_up()
        self._server.server_close()

    def turns(self, session: str | None = None) -> list[Request]:
        """Return the requests that were turns of an agent (of one session), in order."""
        with self._changed:
            return [r for r in self.requests if r.main and session in (None, r.session)]

    def sessions(self) -> list[str]:
        """Return the distinct session ids, in order of their first request."""
        return list(dict.fromkeys(r.session for r in self.turns() if r.session is not None))

    def prompts(self) -> list[str]:
        """Return the first user text of each session, byte for byte, in the order of `sessions`."""
        first = {r.session: r.prompt or "" for r in reversed(self.turns())}
        return [first[session] for session in self.sessions()]

    def saw(self, text: bytes) -> bool:
        """Return whether any request's body or headers held `text` (needs keep_bodies)."""
        assert self._keep_bodies, "MessagesApi(keep_bodies=True)"
        with self._changed:
            parts = [(r.body or b"", json.dumps(dict(r.headers)).encode()) for r in self.requests]
        return any(text in part for pair in parts for part in pair)

    def wait_for(self, predicate: Callable[[Request], bool], timeout: float = 30) -> Request:
        """Return the first request that satisfies `predicate`; raises TimeoutError after `timeout` seconds."""

        def found() -> Request | None:
            return next((request for request in self.requests if predicate(request)), None)

        with self._changed:
            if request := self._changed.wait_for(found, timeout):
                return request
        raise TimeoutError(f"no such request within {timeout} s; {len(self.requests)} came")

    def wait_for_turns(self, count: int, timeout: float = 30) -> None:
        """Wait until `count` turns were asked for; raises TimeoutError after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: sum(r.main for r in self.requests) >= count, timeout):
                raise TimeoutError(f"fewer than {count} turns within {timeout} s: {len(self.requests)} requests")

    def open_gate(self, name: str = "gate") -> None:
        """Let every answer that waits, or will wait, at this gate go on."""
        with self._changed:
            self._gates.add(name)
            self._changed.notify_all()

    def pass_gate(self, name: str) -> bool:
        """Wait at a gate; False when the server ends first."""
        with self._changed:
            self._changed.wait_for(lambda: name in self._gates or self.stopping.is_set())
        return not self.stopping.is_set()

    def record(self, method: str, path: str, headers: Mapping[str, str], raw: bytes) -> Request:
        """Note a request that is not a conversation (or not yet read as one)."""
        return self._note(Request(0, 0.0, method, path.partition("?")[0], headers, len(raw)), raw)

    def answer_to(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str], raw: bytes
    ) -> tuple[Steps, Conversation, int]:
        """Note a conversation's request; return its scenario's steps, what it says, how often this turn was asked."""
        said = read(body, headers)
        steps, name = self._steps(said)
        request = Request(0, 0.0, "POST", path.partition("?")[0], headers, len(raw), said.session, said.prompt)
        self._note(replace(request, scenario=name, turn=said.turn, main=said.main, tools=said.tools), raw)
        key = (said.session, name, said.turn)
        with self._changed:
            self._asked[key] += said.main
            return steps, said, self._asked[key]

    def _steps(self, said: Conversation) -> tuple[Steps, str]:
        name, parameters = said.scenario or self._default, said.parameters
        try:
            return build(name, parameters, self._script.scenarios), name
        except (KeyError, TypeError, ValueError) as error:
            # Said in the agent's own answer: a misspelt scenario must not look like a broken network.
            told = {"text": f"no such scenario, or a parameter is missing: {name} {dict(parameters)}: {error!r}"}
            return build("text", told, {}), name

    def _note(self, request: Request, raw: bytes) -> Request:
        with self._changed:
            body = raw if self._keep_bodies else None
            request = replace(request, number=len(self.requests) + 1, at=time.monotonic(), body=body)
            self.requests.append(request)
            self._changed.notify_all()
            if self._log is not None:
                brief = {
                    key: value for key, value in asdict(request).items() if key not in {"body", "headers", "tools"}
                }
                with self._log.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(brief) + "\n")
        return request


class _Server(ThreadingHTTPServer):
    """Knows its open connections, so that the end of a test ends them too."""

    daemon_threads = False  # joined by server_close: no thread of a test outlives it
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], api: MessagesApi) -> None:
        self.api = api
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Cut every open connection: its handler then meets the end of its input."""
        with self._guard:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # already gone

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or, with --until-eof, the end of stdin; print the address as the first line."""
    parser = argparse.ArgumentParser(prog="fakes.messages_api", description="A scripted Messages API on loopback.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 chooses a free one")
    parser.add_argument("--scenario", default="text", help="of prompts that name none")
    parser.add_argument("--script", type=Path, help="JSON file with scenarios of your own")
    parser.add_argument("--log", type=Path, help="gets one JSON line a request")
    parser.add_argument("--until-eof", action="store_true", help="end when stdin ends: nothing is left behind")
    options = parser.parse_args(argv)
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with MessagesApi(
        host=options.host, port=options.port, default=options.scenario, script=options.script, log=options.log
    ) as api:
        print(api.url, flush=True)
        if options.until_eof:
            threading.Thread(target=_at_eof, args=(ended,), daemon=True).start()
        ended.wait()
    return 0


def _at_eof(ended: threading.Event) -> None:
    while os.read(0, 65536):
        pass
    ended.set()


if __name__ == "__main__":
    sys.exit(main())
