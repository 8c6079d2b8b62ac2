"""What a look at a run and the end of its log amount to: the run's outputs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from coding_agent import credentials
from coding_agent.activity import Activity, describe, parse
from coding_agent.executors.base import Look
from coding_agent.run import Outputs, State
from coding_agent.settings import Settings
from coding_agent.text import neutralise

if TYPE_CHECKING:
    from coding_agent.executors.meta import Meta
    from coding_agent.records import Record

TAIL = 1_000_000  # bytes of a log that are read for its last lines
TAIL_LINES = 20
_LONGEST = 20_000  # characters of a text in the outputs
WITHHELD, NOT_COLLECTED = "[withheld:", "not collected:"  # how texts and notices begin that a missing secret causes
_NAME = re.compile(r"[a-z_]{1,40}")  # what a reason or a limit is called
_SESSION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DENIALS = 100  # of which the outputs tell
_DENIAL = ("tool_name", "tool_use_id", "tool_input")


@dataclass(frozen=True)
class Screen:
    """What agent-made text passes before anybody sees it: redaction, then neutralisation.

    Without a redactor (a secret's value is not to be had here, so it could not be found in a text) text is withheld.
    """

    run_id: str
    redactor: credentials.Redactor | None
    missing: tuple[str, ...] = ()
    renewed: tuple[str, ...] = ()  # another value than the run was given is looked for

    def text(self, text: str) -> str:
        """Return what may be shown of `text`."""
        if self.redactor is None:
            return f"{WITHHELD} {', '.join(self.missing)} can't be read here, so it can't be redacted]" if text else ""
        # Paths in the workspace are read more easily from there.
        return neutralise(_from_workspace(self.redactor.text(text), self.run_id))

    def name(self, name: str, form: re.Pattern[str] = _NAME) -> str:
        """Return what may be shown of a name; without a redactor, names that have the usual `form`."""
        return name if self.redactor is None and form.fullmatch(name) else self.text(name)


def _from_workspace(text: str, run_id: str) -> str:
    """Return the text with paths in the workspace relative to it; in linear time, whatever the text."""
    *before, last = text.split(f"/runs/{run_id}/workspace/")
    return "".join([*(_without_path_at_end(part) for part in before), last])


def _without_path_at_end(text: str) -> str:
    begins = text.find("/", max(text.rfind(character) for character in " \t\r\n\"'") + 1)
    return text if begins < 0 else text[:begins]


def screen(record: Record) -> Screen:
    """Return the screen for a run's texts: its secrets' values are read from their sources once more.

    A value that can't be read, or is not the one the run was given, could not be found in a text. Only a host's login
    may be another by now, because Claude Code renews it: then the new one is looked for, and that is said.
    """
    settings = Settings.load() if record.secrets else Settings()
    values: dict[str, str] = {}
    renewed: list[str] = []
    for name, given in record.secrets.items():
        found = list(credentials.candidates(name, settings, record.spec))
        same = [value for value in found if given in ("", mark(record.run_id, value))]
        if not same and name in credentials.AGENT_CREDENTIALS and credentials.uses_host_login(record.spec):
            same, renewed = found, [*renewed, name]
        if same:
            values[name] = same[0]
    missing = tuple(name for name in record.secrets if name not in values)
    redactor = None if missing else credentials.Redactor(values)
    return Screen(record.run_id, redactor, missing, tuple(renewed) if redactor else ())


def mark(run_id: str, value: str) -> str:
    """Return a mark that tells whether a value is still the same; far too short to guess the value by."""
    return hashlib.sha256(f"{run_id}\0{value}".encode()).hexdigest()[:4]


def measure(record: Record, look: Look, log: bytes, whole: bool, screen: Screen, log_path: str) -> Outputs:
    """Return the outputs of a run that exists on its target; `log` is the end of its log, all of it if `whole`."""
    meta = look.meta
    before = record.outputs
    assert look.state is not None
    # The holes of a sparse file say nothing.
    lines = log.replace(b"\0", b"").split(b"\n")
    if not whole:
        lines = lines[1:]
    outputs = replace(
        before,
        status=look.state,
        reason=screen.name(look.reason or (meta.reason if meta else None) or "") or None,
        log_path=log_path,
        notices=_notices(before, look, screen),
    )
    if meta is not None:
        outputs = _from_meta(outputs, record, meta, screen)
    if record.kind == "command":
        # All of it, and cut afterwards: a value of several lines is not recognised by its last ones.
        shown = screen.text(b"\n".join(lines).decode("utf-8", "replace"))
        return replace(outputs, log_tail="\n".join(shown.split("\n")[-TAIL_LINES - 1 :])[-_LONGEST:])
    return _from_stream(outputs, record.earlier[: outputs.attempts - 1], lines, screen)


def described(lines: Iterable[bytes]) -> list[str]:
    """Return the lines for people that stream lines make; not yet screened."""
    return [text for line in lines for event in parse(line) if (text := describe(event))]


def _from_meta(outputs: Outputs, record: Record, meta: Meta, screen: Screen) -> Outputs:
    stages = {
        "started": meta.started_at,
        "first_event": meta.first_event_at,
        "first_tool_call": meta.first_tool_at,
        "end": meta.finished_at,
    }
    timeline = {"target_ready": round(record.target_ready, 3)}
    for stage, at in stages.items():
        if at is not None:
            # Differences of the target's clock alone, put behind what the controller measured before.
            timeline[stage] = round(record.target_ready + max(0.0, at - meta.created_at), 3)
    earlier = record.earlier[: meta.attempt - 1]
    began = next((each["started_at"] for each in earlier if each["started_at"]), None)
    return replace(
        outputs,
        attempts=meta.attempt,
        detail=screen.text(meta.detail) or None,
        exit_code=meta.exit_code,
        pid=meta.pid or None,
        session_id=screen.name(meta.session_id, _SESSION) or None,
        num_turns=_sum(earlier, "num_turns") + meta.num_turns,
        started_at=began or _rfc3339(meta.started_at),
        finished_at=_rfc3339(meta.finished_at),
        limit_hits=tuple(
            {**hit, "limit": screen.name(str(hit["limit"])), "detail": screen.text(str(hit["detail"]))}
            for hit in meta.limit_hits
        ),
        timeline=timeline,
    )


def _sum(earlier: Iterable[Mapping[str, Any]], name: str) -> int:
    return sum(int(each[name] or 0) for each in earlier)


def _from_stream(outputs: Outputs, earlier: Iterable[Mapping[str, Any]], lines: list[bytes], screen: Screen) -> Outputs:
    activity = Activity()
    activity.feed(lines)
    result = activity.result
    shown = described(lines[-400:])[-TAIL_LINES:]
    outputs = replace(
        outputs,
        activity=tuple(screen.text(call)[:500] for call in activity.recent) or outputs.activity,
        log_tail="\n".join(screen.text(line)[:1000] for line in shown) or outputs.log_tail,
    )
    if result is None:
        return outputs
    said = screen.text(result.result or "")[:_LONGEST] or None
    denials = tuple(
        {key: screen.text(_shown(denial[key]))[:500] for key in _DENIAL if key in denial}
        for denial in result.permission_denials[:_DENIALS]
    )
    failed = outputs.status is State.FAILED and result.is_error
    return replace(
        outputs,
        agent_num_turns=None if result.num_turns is None else _sum(earlier, "agent_num_turns") + result.num_turns,
        cost_usd=result.cost_usd,  # Claude Code adds up those of a session
        result=said,
        permission_denials=denials,
        detail=outputs.detail or (said[:2000] if failed and said else None),
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _notices(before: Outputs, look: Look, screen: Screen) -> tuple[str, ...]:
    new = [screen.text(text) for text in (look.meta.notices if look.meta else ())]
    if look.refused:
        new.append(f"not believed: {look.refused}")
    kept = before.notices
    if screen.redactor is not None:
        # Once the secrets can be read again, what their absence caused is no more.
        kept = tuple(notice for notice in kept if not notice.startswith((WITHHELD, NOT_COLLECTED)))
    return (*kept, *(notice for notice in dict.fromkeys(new) if notice not in kept))


def _rfc3339(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
