"""Read one Messages API request: which session, which prompt, which scenario, which turn.

Everything is read from the request itself, nothing from what was answered before. So a resumed session, a
hundred sessions at once and a server that was restarted half-way all get the right next step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Texts that the program itself puts beside or after the user's own: they neither are the prompt nor start a new one.
_PROGRAM_TEXT = re.compile(
    r"\s*(?:<(?:system-reminder|task-notification|local-command|command-name|new-diagnostics)|\[Request interrupted"
    r"|Output token limit hit|Your response above was stopped)"
)
_SCENARIO = re.compile(r"SCENARIO=(\w+(?:\+\w+)*)")
_CWD = re.compile(r"[Ww]orking directory: (/[^\n]*)")
_DECODER = json.JSONDecoder()

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """What a request says of the session it belongs to."""

    session: str | None
    prompt: str | None  # the first text of the user's own, byte for byte
    scenario: str | None
    parameters: Mapping[str, Any]
    turn: int  # tool-calling answers since the last prompt: the index of the step to answer with
    tools: tuple[str, ...]

    @property
    def main(self) -> bool:
        """Whether this is a turn of an agent (requests for titles and summaries carry no tools)."""
        return bool(self.tools)


def read(body: Mapping[str, Any], headers: Mapping[str, str]) -> Conversation:
    """Return what `body` and the (lower-case) `headers` say; missing parts are None or empty."""
    prompt: str | None = None
    scenario: str | None = None
    parameters: Mapping[str, Any] = {}
    turn = 0
    for message in body.get("messages", []):
        if message.get("role") == "assistant":
            turn += any(block.get("type") == "tool_use" for block in _blocks(message))
        if message.get("role") != "user":
            continue
        for text in _own_texts(message):
            prompt = text if prompt is None else prompt
            turn = 0
            for found in _SCENARIO.finditer(text):
                scenario, parameters = found[1], _parameters(text, found.end())
    tools = tuple(str(tool.get("name")) for tool in body.get("tools", []))
    return Conversation(_session(body, headers), prompt, scenario, parameters, turn, tools)


def working_directory(body: Mapping[str, Any]) -> str:
    """Return the folder that the program says it works in, "." where it does not say."""
    for message in [{"content": body.get("system", "")}, *body.get("messages", [])]:
        for text in _texts(message):
            if found := _CWD.search(text):
                return found[1].strip()
    return "."


def last_output(body: Mapping[str, Any]) -> str:
    """Return what the last tool call gave back, as the model sees it; nothing where none was made."""
    results = [block for message in body.get("messages", []) for block in _blocks(message)]
    for block in reversed(results):
        if block.get("type") == "tool_result":
            content = block.get("content")
            return content if isinstance(content, str) else "".join(_texts({"content": content}))
    return ""


def _session(body: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
    if named := headers.get("x-claude-code-session-id"):
        return named
    try:
        user = json.loads(body["metadata"]["user_id"])
        return str(user["session_id"])
    except (KeyError, TypeError, ValueError):
        return None


def _parameters(text: str, start: int) -> Mapping[str, Any]:
    try:
        value, _ = _DECODER.raw_decode(text, start)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _blocks(message: Message) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _texts(message: Message) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    for block in _blocks(message):
        if block.get("type") == "text":
            yield str(block.get("text", ""))


def _own_texts(message: Message) -> Iterator[str]:
    return (text for text in _texts(message) if text.strip() and not _PROGRAM_TEXT.match(text))
