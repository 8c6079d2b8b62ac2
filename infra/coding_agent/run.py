"""What is known of a run: its states, its status at a moment, its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """The life of a run: queued -> provisioning -> starting -> running -> one of the final states.

    `unresponsive` is not final: no heartbeat or no connection, nothing proven. `lost` is only said when the
    machine's boot id, or the process's pid and start time, prove the end.
    """

    QUEUED = "queued"
    PROVISIONING = "provisioning"
    STARTING = "starting"
    RUNNING = "running"
    UNRESPONSIVE = "unresponsive"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    KILLED = "killed"
    TIMED_OUT = "timed_out"
    LOST = "lost"

    @property
    def final(self) -> bool:
        """Whether nothing can follow this state."""
        return self in FINAL


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.KILLED, State.TIMED_OUT, State.LOST})


@dataclass(frozen=True)
class ProcessUsage:
    """What the run's processes use, at the moment of asking."""

    cpu: float  # percent of one core since the previous look (or since the start)
    mem: float  # MB (10^6 bytes), resident, all processes of the run
    processes: int


@dataclass(frozen=True)
class Outputs:
    """What a run exports: the Pulumi stack's outputs and `--json` carry exactly these names."""

    status: State
    executor: str
    run_id: str
    reason: str | None = None  # why it ended: max_turns, timeout, api_error, ...; None after plain success
    detail: str | None = None  # the reason in the words of whoever gave it (an API's message, a signal)
    exit_code: int | None = None
    pid: int | None = None
    session_id: str | None = None
    attempts: int = 1  # 1, and one more each time that it was resumed; turns and cost are of all of them
    num_turns: int = 0  # model calls: distinct top-level assistant message ids
    agent_num_turns: int | None = None  # Claude Code's own count
    cost_usd: float | None = None
    started_at: str | None = None  # RFC 3339, UTC, the target's clock
    finished_at: str | None = None
    result: str | None = None
    permission_denials: tuple[Mapping[str, Any], ...] = ()
    limit_hits: tuple[Mapping[str, Any], ...] = ()  # limits touched though the agent went on
    activity: tuple[str, ...] = ()  # last 10 tool calls, oldest first
    log_tail: str = ""
    log_path: str | None = None  # on the target
    patch: str | None = None  # path on the controller, once collected
    branch: str | None = None  # branch in the user's repository that holds the agent's commits
    timeline: Mapping[str, float] = field(default_factory=dict)  # stage -> seconds since creation
    notices: tuple[str, ...] = ()  # what was refused, kept back, redacted or could not be enforced
    # Which coding-agent started the last attempt; None: one that did not say so yet. Of the run's record, not of the
    # code that looks: a newer one shows no change of an older one's runs.
    coding_agent_version: str | None = None


def outputs_dict(outputs: Outputs) -> dict[str, Any]:
    """Return the outputs under their exported names, JSON-able."""
    plain = asdict(outputs)
    for name in ("permission_denials", "limit_hits", "activity", "notices"):
        plain[name] = list(plain[name])
    plain["status"] = str(outputs.status)
    return plain


def outputs_from(plain: Mapping[str, Any]) -> Outputs:
    """Return the outputs that `outputs_dict` made `plain` of; names it does not know are ignored."""
    known = {f.name for f in fields(Outputs)}
    values = {name: value for name, value in plain.items() if name in known}
    for name in ("permission_denials", "limit_hits", "activity", "notices"):
        values[name] = tuple(values.get(name) or ())
    for name in ("exit_code", "pid", "attempts", "num_turns", "agent_num_turns"):
        # An engine's numbers are all floating point.
        if values.get(name) is not None:
            values[name] = int(values[name])
    values["status"] = State(values["status"])
    values["timeline"] = dict(values.get("timeline") or {})
    return Outputs(**values)
