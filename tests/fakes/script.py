"""The parts of a scripted answer, and the JSON form of a script of one's own.

A script file holds scenarios by name, each a list of steps; a step answers one request::

    {"fix": [
        {"blocks": [{"text": "I will look."}, {"tool": "Bash", "input": {"command": "ls"}}]},
        {"blocks": [{"tool": "Write", "input": {"file_path": "$CWD/a.txt", "content": "a"}}]},
        {"error": {"status": 529, "times": 2}, "blocks": [{"text": "Done."}]}
    ]}

`$CWD` becomes the folder that the agent works in, `$LAST_OUTPUT` what its last tool call printed. The last step repeats
if more is asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Text:
    """Say `text`; in words, `interval` seconds apart, where an interval is given."""

    text: str
    interval: float = 0.0


@dataclass(frozen=True)
class Call:
    """Call a tool."""

    tool: str
    input: Mapping[str, Any]


@dataclass(frozen=True)
class Hang:
    """Send nothing more and keep the connection; as the first block, not even the answer's first byte."""


@dataclass(frozen=True)
class Drop:
    """Close the connection, the first `times` times (-1: for ever); as the first block, before any byte."""

    times: int = -1


@dataclass(frozen=True)
class Gate:
    """Go on when `MessagesApi.open_gate(name)` is called; as the first block, before the first byte."""

    name: str


Block = Text | Call | Hang | Drop | Gate


@dataclass(frozen=True)
class Failure:
    """An HTTP error in place of the answer, the first `times` times that a session asks (-1: for ever)."""

    status: int
    message: str = "scripted error"
    kind: str | None = None  # the API's own name of the error; None: the usual one of that status
    times: int = -1
    retry_after: float | None = None  # seconds, sent as a header


@dataclass(frozen=True)
class Step:
    """The answer to one request."""

    blocks: tuple[Block, ...] = ()
    stop: str | None = None  # stop_reason; None: tool_use after a call, else end_turn
    failure: Failure | None = None
    delay: float = 0.0  # seconds before the first byte
    input_tokens: int = 100
    output_tokens: int = 25

    @property
    def ends_the_turn(self) -> bool:
        """Whether the agent stops after this step because no tool is called and nothing goes wrong."""
        return self.failure is None and self.stop is None and all(isinstance(b, Text) for b in self.blocks)


Steps = Sequence[Step]


@dataclass(frozen=True)
class Script:
    """Scenarios of a file or of a mapping in the file's form."""

    scenarios: Mapping[str, Steps] = field(default_factory=dict)

    @classmethod
    def load(cls, source: Path | Mapping[str, Any] | None) -> Script:
        """Read a script; raises ValueError for anything that is not one."""
        if source is None:
            return cls()
        data = json.loads(source.read_text(encoding="utf-8")) if isinstance(source, Path) else source
        if not isinstance(data, Mapping):
            raise ValueError("a script is a mapping of scenario names to lists of steps")  # noqa: TRY004
        return cls({str(name): [_step(step) for step in steps] for name, steps in data.items()})


def _step(data: Mapping[str, Any]) -> Step:
    rest = {key: value for key, value in data.items() if key not in {"blocks", "error"}}
    failure = Failure(**data["error"]) if "error" in data else None
    return Step(blocks=tuple(_block(block) for block in data.get("blocks", [])), failure=failure, **rest)


def _block(data: Mapping[str, Any] | str) -> Block:
    interval = float(data.get("interval", 0)) if isinstance(data, Mapping) else 0.0
    match data:
        case "hang":
            return Hang()
        case "drop":
            return Drop()
        case {"gate": str(name)}:
            return Gate(name)
        case {"text": str(text)}:
            return Text(text, interval)
        case {"tool": str(tool), "input": Mapping() as arguments}:
            return Call(tool, arguments)
    raise ValueError(f"not a block of a script: {data!r}")
