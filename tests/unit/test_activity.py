"""Lines of Claude Code's stream-json become typed events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coding_agent.activity import (
    MAX_LINE,
    Activity,
    Init,
    Other,
    Result,
    Retry,
    Text,
    ToolCall,
    ToolResult,
    describe,
    parse,
)


def _assistant(turn: str, *blocks: dict[str, Any], **more: Any) -> str:
    return json.dumps({"type": "assistant", "message": {"id": turn, "content": list(blocks)}, **more})


def _call(name: str, call: str = "toolu_1", **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call, "name": name, "input": arguments}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_init() -> None:
    """The first event names session, model, tools and version."""
    line = '{"type":"system","subtype":"init","session_id":"s","model":"m","tools":["Bash"],"claude_code_version":"2"}'
    assert parse(line) == (Init("s", "m", ("Bash",), "2"),)


def test_several_blocks_make_several_events() -> None:
    """Every block of a message is an event of the same turn."""
    said, called, thought = parse(
        _assistant("msg_1", _text("I look."), _call("Read", file_path="/a"), {"type": "thinking"})
    )
    assert said == Text("msg_1", "I look.")
    assert isinstance(called, ToolCall)
    assert (called.turn_id, called.name, called.summary, called.id) == ("msg_1", "Read", "/a", "toolu_1")
    assert thought == Other("thinking", "msg_1")


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("Bash", {"description": "Test", "command": "cargo test"}, "Bash cargo test"),
        ("Bash", {"command": "cd x &&\n  make\t-j2\n"}, "Bash cd x && make -j2"),
        ("Write", {"content": "x", "file_path": "/w/a.txt"}, "Write /w/a.txt"),
        ("Edit", {"old_string": "x", "file_path": "/w/a.txt"}, "Edit /w/a.txt"),
        ("Grep", {"path": "/w", "pattern": "TODO"}, "Grep TODO"),
        ("Agent", {"prompt": "long", "description": "Do it"}, "Agent Do it"),
        ("mcp__x__y", {"number": 3, "query": "what"}, "mcp__x__y what"),
        ("TodoWrite", {"todos": []}, "TodoWrite"),
        ("Bash", {"command": 7}, "Bash"),
    ],
)
def test_calls_are_described_by_what_says_most(name: str, arguments: dict[str, Any], line: str) -> None:
    """A tool call is one line: the tool and its telling argument."""
    (event,) = parse(_assistant("msg_1", _call(name, **arguments)))
    assert describe(event) == line


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("bad", "bad"),
        ([{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}], "a\n\nb"),
        (None, ""),
    ],
)
def test_tool_results(content: Any, text: str) -> None:
    """A tool's answer has its text in either form, and its error is described."""
    block = {"type": "tool_result", "tool_use_id": "toolu_1", "content": content, "is_error": True}
    (event,) = parse(json.dumps({"type": "user", "message": {"content": [block]}}))
    assert event == ToolResult("toolu_1", True, text)
    assert (describe(event) or "").startswith("error:")


def test_prompts_of_the_user_are_no_events() -> None:
    """A user message without a tool's answer makes no event."""
    assert parse('{"type":"user","message":{"content":[{"type":"text","text":"hi"}]}}') == ()


def test_retry() -> None:
    """A retry says the status, or that there was no answer."""
    line = {
        "type": "system",
        "subtype": "api_retry",
        "attempt": 2,
        "max_retries": 10,
        "error_status": 429,
        "error": "rate",
    }
    (event,) = parse(json.dumps(line))
    assert event == Retry(2, 10, 429, "rate")
    assert describe(event) == "the API answered 429 (rate), attempt 2 of 10"
    (silent,) = parse(json.dumps({**line, "error_status": None}))
    assert "did not answer" in (describe(silent) or "")


def test_result_is_judged_by_is_error() -> None:
    """An API error calls itself a success; only a plain false in is_error is one."""
    line = {
        "duration_api_ms": 1,
        "is_error": True,
        "subtype": "success",
        "terminal_reason": "api_error",
        "api_error_status": 400,
        "result": "API Error: 400 x",
        "type": "result",
        "num_turns": 1,
        "total_cost_usd": 0.25,
        "session_id": "s",
        "permission_denials": [{"tool_name": "Bash"}, "junk"],
    }
    (event,) = parse(json.dumps(line))
    denials = ({"tool_name": "Bash"},)
    assert event == Result(True, "success", "api_error", "API Error: 400 x", 1, 0.25, "s", denials, 400)
    assert describe(event) == "failed (api_error), 1 turns, $0.2500: API Error: 400 x"
    (unclear,) = parse('{"type":"result"}')
    assert isinstance(unclear, Result)
    assert unclear.is_error
    (good,) = parse('{"type":"result","is_error":false,"result":"Done.","num_turns":3}')
    assert describe(good) == "succeeded, 3 turns: Done."


def test_result_without_text_has_its_errors() -> None:
    """Where a limit ended the session its errors stand in for the missing text."""
    (event,) = parse('{"type":"result","is_error":true,"errors":["Reached maximum number of turns (1)"]}')
    assert isinstance(event, Result)
    assert event.result == "Reached maximum number of turns (1)"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"12",
        b'{"type": 5}',
        b'{"no": "type"}',
        b'{"type":"assistant","message":{"content":[',
        b'{"type":"user","message":{"content":[5,null,[]]}}',
        b"\xff\xfe\x00",
        b"not json at all",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"n": ' + b"9" * 10_000 + b"}",
        b'{"type":"result"' + b" " * (MAX_LINE + 1),
    ],
)
def test_what_is_no_event_makes_none(line: bytes) -> None:
    """Half lines, other JSON, bytes that are no text, nesting and lines beyond measure make no event and no error."""
    assert parse(line) == ()


@pytest.mark.parametrize("junk", [None, 5, -1, 1e400, "x", [], {}, True, [5, {"a": 1}, None], "\ud800"])
def test_wrong_types_do_no_harm(junk: Any) -> None:
    """Any value in any field makes an event with harmless values, which can be described."""
    fields = ["session_id", "model", "tools", "num_turns", "total_cost_usd", "result", "permission_denials", "errors"]
    fields += ["attempt", "error_status", "error", "is_error", "terminal_reason", "message", "parent_tool_use_id"]
    wild = dict.fromkeys(fields, junk)
    block = dict.fromkeys(["id", "name", "input", "text", "content", "tool_use_id"], junk)
    kinds: list[dict[str, Any]] = [
        {"type": "result"},
        {"type": "system", "subtype": "init"},
        {"type": "system", "subtype": "api_retry"},
    ]
    kinds += [{"type": kind, "message": {"id": junk, "content": [{**block, "type": inner}, junk]}}
              for kind in ("assistant", "user") for inner in ("tool_use", "tool_result", "text", junk)]  # fmt: skip
    activity = Activity()
    for kind in kinds:
        for event in activity.feed([json.dumps({**wild, **kind})]):
            describe(event)
    assert activity.result is None or activity.result.cost_usd != float("inf")


def test_invalid_utf8_inside_a_text() -> None:
    """Bytes that are no UTF-8 are replaced, the event stays."""
    (event,) = parse(b'{"type":"assistant","message":{"id":"m","content":[{"type":"text","text":"a\xffb"}]}}')
    assert event == Text("m", "a\ufffdb")


def test_turns_are_distinct_messages_of_the_agent_itself() -> None:
    """One event a block does not count twice; subagents and the program's own messages do not count at all."""
    activity = Activity()
    activity.feed(
        [
            '{"type":"system","subtype":"init","session_id":"s1"}',
            _assistant("msg_1", _call("Bash", command="a")),
            _assistant("msg_1", _call("Bash", "toolu_2", command="b")),
            _assistant("msg_2", {"type": "thinking", "thinking": "..."}),
            _assistant("msg_3", _call("Bash", command="c"), parent_tool_use_id="toolu_9"),
            json.dumps(
                {"type": "assistant", "message": {"id": "x", "model": "<synthetic>", "content": [_text("API Error")]}}
            ),
            _assistant("msg_1", _text("again")),
        ]
    )
    assert (activity.turns, activity.session_id) == (2, "s1")
    assert list(activity.recent) == ["Bash a", "Bash b", "Bash c"]


def test_last_ten_calls_are_kept() -> None:
    """Of many tool calls the last ten stay, oldest first."""
    activity = Activity()
    for number in range(500):
        activity.feed([_assistant(f"msg_{number}", _call("Bash", command=f"step {number}"))])
    assert activity.turns == 500
    assert list(activity.recent) == [f"Bash step {number}" for number in range(490, 500)]


def test_feed_returns_what_it_read() -> None:
    """Feeding gives the events back, so that nobody parses a line twice."""
    activity = Activity()
    assert activity.feed(["junk", '{"type":"result","is_error":false}']) == [activity.result]
