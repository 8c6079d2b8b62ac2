"""`.meta.json`, the seed's task metadata, as the supervisor writes it and as nobody has to believe it.

The agent can write into the run's folder. So every field is checked for type and range, paths are never read from it,
and a pid in it is only used together with its start time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coding_agent.errors import Untrusted
from coding_agent.run import State

MAX_BYTES = 65_536
_STATES = {State.STARTING, State.RUNNING, State.SUCCEEDED, State.FAILED, State.KILLED, State.TIMED_OUT, State.LOST}
_STAGES = {"starting", "workspace", "setup", "agent", "command", "ending", "saving", "ended"}
_SHA = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})?")
_WORD = re.compile(r"[A-Za-z0-9_.-]{0,200}")
_LATEST = 4_102_444_800.0  # 2100-01-01, seconds since the epoch


@dataclass(frozen=True)
class Meta:
    """One state of a run. Times are seconds since the epoch on the target's clock."""

    run_id: str
    kind: str
    attempt: int  # 1, and one more each time that the run was resumed
    state: State
    stage: str
    final: bool
    reason: str | None
    detail: str
    exit_code: int | None
    pid: int
    pid_start: int
    boot_id: str
    session_id: str
    num_turns: int
    created_at: float
    started_at: float | None
    first_event_at: float | None
    first_tool_at: float | None
    finished_at: float | None
    unsaved: bool  # of the agent's work something is on the target alone
    heartbeat: float
    base: str
    head: str
    limit_hits: tuple[Mapping[str, Any], ...]
    notices: tuple[str, ...]


def parse(raw: bytes, run_id: str) -> Meta:
    """Return the state that `raw` tells of run `run_id`.

    Raises `Untrusted` naming the first field that can't have been written by the supervisor of that run.
    """
    if len(raw) >= MAX_BYTES:
        raise Untrusted(f".meta.json is larger than {MAX_BYTES} bytes")
    try:
        data = json.loads(raw.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise Untrusted(".meta.json is not JSON") from error
    if not isinstance(data, dict):
        raise Untrusted(".meta.json is not an object")
    if data.get("run_id") != run_id:
        raise Untrusted(".meta.json is of another run")
    values = {name: _field(data, name, check) for name, check in _CHECKS.items()}
    meta = Meta(**values)
    if meta.final != meta.state.final:
        raise Untrusted(".meta.json: field final contradicts field state")
    return meta


def _field(data: Mapping[str, Any], name: str, check: Callable[[Any], Any]) -> Any:
    try:
        return check(data.get(name))
    except (ValueError, TypeError, OverflowError) as error:
        raise Untrusted(f".meta.json: field {name} can't be what it is") from error


def _one_of(allowed: set[Any], make: Callable[[str], Any] = str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        made = make(value)
        if made not in allowed:
            raise ValueError(value)
        return made

    return check


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(value)
        return value

    return check


def _time(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < _LATEST:
        raise ValueError(value)
    return float(value)


def _text(pattern: re.Pattern[str] | None = None, longest: int = 4000) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or (pattern and not pattern.fullmatch(value)):
            raise ValueError(value)
        return value[:longest]

    return check


def _optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _limit_hits(value: Any) -> tuple[Mapping[str, Any], ...]:
    return tuple(
        {
            "limit": _text(_WORD)(hit["limit"]),
            "at": _time(hit["at"]),
            "detail": _text(longest=500)(hit["detail"]),
        }
        for hit in list(value)[:100]
    )


def _notices(value: Any) -> tuple[str, ...]:
    return tuple(_text(longest=1000)(notice) for notice in list(value)[:100])


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "run_id": _text(_WORD),
    "kind": _one_of({"agent", "command"}),
    "attempt": lambda value: 1 if value is None else _whole(1, 10**6 - 1)(value),
    "state": _one_of(_STATES, State),
    "stage": _one_of(_STAGES),
    "final": _truth,
    "reason": _optional(_text(_WORD)),
    "detail": _text(),
    "exit_code": _optional(_whole(0, 255)),
    "pid": _whole(0, 2**31),
    "pid_start": _whole(0, 2**63),
    "boot_id": _text(_WORD),
    "session_id": _text(_WORD),
    "num_turns": _whole(0, 10**9),
    "created_at": _time,
    "started_at": _optional(_time),
    "first_event_at": _optional(_time),
    "first_tool_at": _optional(_time),
    "finished_at": _optional(_time),
    "unsaved": lambda value: value is not None and _truth(value),
    "heartbeat": _time,
    "base": _text(_SHA),
    "head": _text(_SHA),
    "limit_hits": _limit_hits,
    "notices": _notices,
}
