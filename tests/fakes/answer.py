"""Send the scripted answers over HTTP, as the Messages API streams them."""

from __future__ import annotations

import json
import select
import uuid
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from fakes.conversation import last_output, working_directory
from fakes.script import Call, Drop, Failure, Gate, Hang, Step, Text

if TYPE_CHECKING:
    from fakes.messages_api import MessagesApi

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_TELEMETRY = ("/v1/metrics", "/v1/logs", "/v1/traces")
_PIECE = 4096  # characters of text or of a tool's input in one event


class _CutError(Exception):
    """The answer ends here: the script says so, the client is gone, or the server ends."""


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server_version = "scripted-messages-api"
    disable_nagle_algorithm = True  # else each turn waits 40 ms for an acknowledgement
    timeout = 600

    @property
    def api(self) -> MessagesApi:
        api: MessagesApi = self.server.api  # type: ignore[attr-defined]
        return api

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the requests are kept."""

    def do_HEAD(self) -> None:
        self.api.record("HEAD", self.path, self._headers(), b"")
        self._json(200, {})

    def do_GET(self) -> None:
        self.api.record("GET", self.path, self._headers(), b"")
        self._error(Failure(404, f"no such path: {self.path}"))

    def do_POST(self) -> None:
        raw = self._body()
        path, headers = self.path.partition("?")[0], self._headers()
        if path != "/v1/messages":
            self.api.record("POST", path, headers, raw)
            if path in _TELEMETRY:
                return self._json(200, {})
            if path == "/v1/messages/count_tokens":
                return self._json(200, {"input_tokens": 100})
            return self._error(Failure(404, f"no such path: {path}"))
        try:
            body = json.loads(raw)
        except ValueError:
            self.api.record("POST", path, headers, raw)
            return self._error(Failure(400, "the body is not JSON"))
        steps, said, asked = self.api.answer_to(path, body, headers, raw)
        step = steps[min(said.turn, len(steps) - 1)] if said.main else Step((Text("A title"),))
        try:
            self._answer(body, step, asked)
        except _CutError:
            self.close_connection = True
        return None

    def _answer(self, body: Mapping[str, Any], step: Step, asked: int) -> None:
        self._pause(step.delay)
        failure = step.failure
        if failure is not None and (failure.times < 0 or asked <= failure.times):
            return self._error(failure)
        blocks = list(step.blocks)
        while blocks and isinstance(blocks[0], Hang | Drop | Gate):
            self._obstacle(blocks.pop(0), asked)
        reason = step.stop or ("tool_use" if any(isinstance(b, Call) for b in blocks) else "end_turn")
        stream = _Stream(body, step, reason)
        if not body.get("stream"):
            return self._json(200, stream.whole(blocks))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("cache-control", "no-cache")
        self.send_header("request-id", "req_" + uuid.uuid4().hex[:20])
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        # What needs no pause goes out in one piece: hundreds of turns then take no longer than the program does.
        waiting = bytearray(stream.start())
        index = 0
        for block in blocks:
            if isinstance(block, Hang | Drop | Gate):
                self._chunk(waiting)
                self._obstacle(block, asked)
                continue
            for event, pause in stream.block(index, block):
                waiting += event
                if pause:
                    self._chunk(waiting)
                    self._pause(pause)
            index += 1
        waiting += stream.end()
        self._chunk(waiting, last=True)
        return None

    def _obstacle(self, block: object, asked: int) -> None:
        match block:
            case Gate(name):
                if not self.api.pass_gate(name):
                    raise _CutError
            case Hang():
                while not self.api.stopping.is_set():
                    # Readable means that the client has gone: it sends nothing before the answer.
                    if select.select([self.connection], [], [], 0.2)[0]:
                        break
                raise _CutError
            case Drop(times) if times < 0 or asked <= times:
                raise _CutError

    def _pause(self, seconds: float) -> None:
        if seconds and self.api.stopping.wait(seconds):
            raise _CutError

    def _chunk(self, data: bytearray, *, last: bool = False) -> None:
        framed = b"%x\r\n%s\r\n" % (len(data), data) if data else b""
        data.clear()
        try:
            self.wfile.write(framed + (b"0\r\n\r\n" if last else b""))
        except OSError as error:
            raise _CutError from error

    def _headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items()}

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", "").lower():
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        whole = bytearray()
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(whole)

    def _error(self, failure: Failure) -> None:
        kind = failure.kind or _KINDS.get(failure.status, "api_error")
        headers = {} if failure.retry_after is None else {"retry-after": f"{failure.retry_after:g}"}
        error = {"type": "error", "error": {"type": kind, "message": failure.message}}
        self._json(failure.status, error, headers)

    def _json(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        every = {"content-type": "application/json", "request-id": "req_" + uuid.uuid4().hex[:20], **(headers or {})}
        for name, text in every.items():
            self.send_header(name, text)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class _Stream:
    """The events of one answer, or the answer as a whole."""

    def __init__(self, body: Mapping[str, Any], step: Step, reason: str) -> None:
        self._body = body
        self._step = step
        self._reason = reason

    def start(self) -> bytes:
        return _event("message_start", message=self._message()) + _event("ping")

    def block(self, index: int, block: Text | Call) -> Iterator[tuple[bytes, float]]:
        """Yield the events of a block, each with the seconds to wait after it."""
        started = self._content(block)
        if isinstance(block, Call):
            pieces, kind, key = _pieces(json.dumps(started["input"])), "input_json_delta", "partial_json"
            started = {**started, "input": {}}
        else:
            pieces, kind, key = _pieces(started["text"], words=block.interval > 0), "text_delta", "text"
            started = {**started, "text": ""}
        yield _event("content_block_start", index=index, content_block=started), 0.0
        for piece in pieces:
            event = _event("content_block_delta", index=index, delta={"type": kind, key: piece})
            yield event, block.interval if isinstance(block, Text) else 0.0
        yield _event("content_block_stop", index=index), 0.0

    def end(self) -> bytes:
        delta = {"stop_reason": self._reason, "stop_sequence": None}
        usage = {"output_tokens": self._step.output_tokens}
        return _event("message_delta", delta=delta, usage=usage) + _event("message_stop")

    def whole(self, blocks: list[Any]) -> dict[str, Any]:
        content = [self._content(block) for block in blocks if isinstance(block, Text | Call)]
        return {**self._message(), "content": content, "stop_reason": self._reason}

    def _content(self, block: Text | Call) -> dict[str, Any]:
        if isinstance(block, Text):
            return {"type": "text", "text": _filled(block.text, self._body)}
        arguments = _filled(block.input, self._body)
        return {"type": "tool_use", "id": "toolu_" + uuid.uuid4().hex[:24], "name": block.tool, "input": arguments}

    def _message(self) -> dict[str, Any]:
        usage = {
            "input_tokens": self._step.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": self._step.output_tokens,
        }
        return {
            "id": "msg_" + uuid.uuid4().hex[:24],
            "type": "message",
            "role": "assistant",
            "model": self._body.get("model", "scripted"),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }


def _filled(value: Any, body: Mapping[str, Any]) -> Any:
    """Return the value with what the conversation puts in the place of `$CWD` and `$LAST_OUTPUT`."""
    if isinstance(value, str):
        for name, found in (("$CWD", working_directory), ("$LAST_OUTPUT", last_output)):
            value = value.replace(name, found(body)) if name in value else value
        return value
    if isinstance(value, Mapping):
        return {key: _filled(item, body) for key, item in value.items()}
    return [_filled(item, body) for item in value] if isinstance(value, list | tuple) else value


def _pieces(text: str, *, words: bool = False) -> Iterator[str]:
    if words:
        yield from (word + " " for word in text.split(" "))
        return
    for start in range(0, len(text), _PIECE):
        yield text[start : start + _PIECE]


def _event(kind: str, **content: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **content})}\n\n".encode()
