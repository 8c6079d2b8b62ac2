"""A line of Claude Code's stream-json -> typed events; what a run has done so far.

A stream comes from a target and is not believed: whatever is not as expected (half a line, a wrong type, invalid
UTF-8) makes no event. Texts in events are as the agent wrote them: redact and neutralise before anyone sees them, and
cut only afterwards.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

from coding_agent.text import one_line

MAX_LINE = 16_000_000  # bytes; longer lines are skipped, unread
RECENT = 10  # tool calls that are remembered

# The argument of a tool that says best what a call does; for others the first text among its arguments.
_TELLING = {
    "Agent": "description",
    "Bash": "command",
    "Edit": "file_path",
    "Glob": "pattern",
    "Grep": "pattern",
    "NotebookEdit": "notebook_path",
    "Read": "file_path",
    "Skill": "skill",
    "Task": "description",
    "WebFetch": "url",
    "WebSearch": "query",
    "Write": "file_path",
}


@dataclass(frozen=True)
class Init:
    """The session begins."""

    session_id: str
    model: str
    tools: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Attempt:
    """The run was resumed: what follows is another attempt's. The supervisor writes it."""

    number: int


@dataclass(frozen=True)
class ToolCall:
    """The agent calls a tool."""

    turn_id: str | None  # id of the model's message; None: not a turn of the agent itself (a subagent's)
    name: str
    summary: str  # the argument that says most, on one line
    id: str
    input: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Text:
    """The agent says something."""

    turn_id: str | None  # None also for what the program itself says in the agent's place
    text: str


@dataclass(frozen=True)
class ToolResult:
    """A tool has answered, or was denied."""

    id: str
    is_error: bool
    text: str


@dataclass(frozen=True)
class Retry:
    """The API failed and is asked again."""

    attempt: int
    max_retries: int
    status: int | None  # HTTP; None: no answer at all
    error: str


@dataclass(frozen=True)
class Result:
    """The session's end in its own words. Judge by `is_error`: an API error has the subtype "success"."""

    is_error: bool
    subtype: str
    terminal_reason: str | None
    result: str | None  # the closing text; for an error what it says
    num_turns: int | None  # Claude Code's own count
    cost_usd: float | None  # since the session's first run
    session_id: str
    permission_denials: tuple[Mapping[str, Any], ...]
    api_error_status: int | None = None


@dataclass(frozen=True)
class Other:
    """An event of another kind, or a turn's content of another kind (thinking)."""

    kind: str
    turn_id: str | None = None


Event = Init | Attempt | ToolCall | Text | ToolResult | Retry | Result | Other


def parse(line: bytes | str) -> tuple[Event, ...]:
    """Return the events of one line of the stream: several blocks make several, anything unusable none.

    >>> parse('{"type": "system", "subtype": "status"}')
    (Other(kind='system status', turn_id=None),)
    >>> parse('{"type": "assis')
    ()
    """
    if len(line) > MAX_LINE:
        return ()
    text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    match event:
        case {"type": "system", "subtype": "init"}:
            tools = tuple(tool for tool in _list(event.get("tools")) if isinstance(tool, str))
            version = _text(event.get("claude_code_version"))
            return (Init(_text(event.get("session_id")), _text(event.get("model")), tools, version),)
        case {"type": "coding-agent", "subtype": "attempt"}:
            return (Attempt(_whole(event.get("attempt")) or 0),)
        case {"type": "system", "subtype": "api_retry"}:
            status, error = _whole(event.get("error_status")), _text(event.get("error"))
            return (Retry(_whole(event.get("attempt")) or 0, _whole(event.get("max_retries")) or 0, status, error),)
        case {"type": "assistant", "message": {"content": list(blocks)} as message}:
            turn = _turn(event, message)
            return tuple(_said(block, turn) for block in blocks)
        case {"type": "user", "message": {"content": list(blocks)}}:
            return tuple(_answered(block) for block in _dicts(blocks) if block.get("type") == "tool_result")
        case {"type": "result"}:
            return (_result(event),)
        case {"type": str(kind), "subtype": str(subtype)}:
            return (Other(f"{kind} {subtype}"),)
        case {"type": str(kind)}:
            return (Other(kind),)
    return ()


def describe(event: Event) -> str | None:
    """Return one line for people, as long as it is; None for what nobody needs to see."""
    match event:
        case Init():
            return f"session {event.session_id}, {event.model}, Claude Code {event.version}"
        case Attempt():
            return f"attempt {event.number}"
        case ToolCall():
            return f"{event.name} {event.summary}".rstrip()
        case Text():
            return one_line(event.text) or None
        case ToolResult():
            return f"error: {one_line(event.text)}" if event.is_error else None
        case Retry():
            answer = f"answered {event.status}" if event.status is not None else "did not answer"
            return f"the API {answer} ({one_line(event.error)}), attempt {event.attempt} of {event.max_retries}"
        case Result():
            return _ending(event)
        case Other():
            return None
    assert_never(event)


@dataclass
class Activity:
    """What a stream amounts to so far; feed it whole lines, in order."""

    turns: int = 0  # model calls: distinct ids of the agent's own messages, subagents' not counted
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=RECENT))  # last tool calls, oldest first
    result: Result | None = None
    session_id: str | None = None
    _turn_ids: set[str] = field(default_factory=set, repr=False)

    def feed(self, lines: Iterable[bytes | str]) -> list[Event]:
        """Take in `lines`; return their events."""
        events = [event for line in lines for event in parse(line)]
        for event in events:
            self._take(event)
        return events

    def _take(self, event: Event) -> None:
        match event:
            case Init():
                self.session_id = event.session_id or self.session_id
            case Attempt():
                self.result = None
            case Result():
                self.result = event
                self.session_id = event.session_id or self.session_id
            case ToolCall() | Text() | Other():
                if event.turn_id is not None and event.turn_id not in self._turn_ids:
                    self._turn_ids.add(event.turn_id)
                    self.turns += 1
                if isinstance(event, ToolCall):
                    self.recent.append(describe(event) or event.name)
            case ToolResult() | Retry():
                pass


def _turn(event: Mapping[str, Any], message: Mapping[str, Any]) -> str | None:
    # The program writes its own errors as messages of a model "<synthetic>": no model was called for them.
    if event.get("parent_tool_use_id") or message.get("model") == "<synthetic>":
        return None
    return _text(message.get("id")) or None


def _said(block: object, turn: str | None) -> Event:
    match block:
        case {"type": "tool_use", "name": str(name), "id": str(call), "input": dict(arguments)}:
            return ToolCall(turn, one_line(name), _summary(name, arguments), call, arguments)
        case {"type": "text", "text": str(text)}:
            return Text(turn, text)
        case {"type": str(kind)}:
            return Other(kind, turn)
    return Other("assistant", turn)


def _answered(block: Mapping[str, Any]) -> ToolResult:
    content = block.get("content")
    parts = [content] if isinstance(content, str) else [_text(part.get("text")) for part in _dicts(content)]
    return ToolResult(_text(block.get("tool_use_id")), block.get("is_error") is True, "\n".join(parts))


def _result(event: Mapping[str, Any]) -> Result:
    said = event.get("result")
    errors = [error for error in _list(event.get("errors")) if isinstance(error, str)]
    return Result(
        # Only a plain `false` is success: a result that does not say is none.
        is_error=event.get("is_error") is not False,
        subtype=_text(event.get("subtype")),
        terminal_reason=_text(event.get("terminal_reason")) or None,
        result=said if isinstance(said, str) else "\n".join(errors) or None,
        num_turns=_whole(event.get("num_turns")),
        cost_usd=_number(event.get("total_cost_usd")),
        session_id=_text(event.get("session_id")),
        permission_denials=tuple(_dicts(event.get("permission_denials"))),
        api_error_status=_whole(event.get("api_error_status")),
    )


def _ending(result: Result) -> str:
    how = "failed" if result.is_error else "succeeded"
    why = f" ({one_line(result.terminal_reason)})" if result.is_error and result.terminal_reason else ""
    turns = f", {result.num_turns} turns" if result.num_turns is not None else ""
    cost = f", ${result.cost_usd:.4f}" if result.cost_usd is not None else ""
    said = f": {one_line(result.result)}" if result.result else ""
    return f"{how}{why}{turns}{cost}{said}"


def _summary(name: str, arguments: Mapping[str, Any]) -> str:
    telling = arguments.get(_TELLING.get(name, ""))
    texts = [telling, *arguments.values()]
    return one_line(next((text for text in texts if isinstance(text, str)), ""))


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in _list(value) if isinstance(item, dict)]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
