"""One run in words: how it went, what it cost, where its work is, what can be done next."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from coding_agent import executors
from coding_agent.cli.screen import Screen
from coding_agent.records import Record
from coding_agent.run import Outputs, ProcessUsage, State, outputs_dict
from coding_agent.times import instant, span


def exit_code(outputs: Outputs) -> int:
    """Return 0 for a run that succeeded or goes on, 1 for one that ended otherwise."""
    return 1 if outputs.status.final and outputs.status is not State.SUCCEEDED else 0


def took(outputs: Outputs) -> float | None:
    """Return the seconds from the run's start to its end, both on the target's clock; None before it ended."""
    start, end = instant(outputs.started_at), instant(outputs.finished_at)
    return end - start if start is not None and end is not None else None


def cost(outputs: Outputs) -> str:
    """Return the cost in dollars for people."""
    if outputs.cost_usd is None:
        return ""
    return f"${outputs.cost_usd:.2f}" if outputs.cost_usd >= 1 else f"${outputs.cost_usd:.4f}"


def document(record: Record, usage: ProcessUsage | None = None) -> dict[str, Any]:
    """Return what --json prints of a run: the outputs' names, and what its processes use now."""
    used = {"cpu": usage.cpu, "mem": usage.mem, "processes": usage.processes} if usage else None
    price = machine_price(record)
    machine = None if price is None else {"eur_per_hour": price, "eur_so_far": machine_cost(record)}
    return {**outputs_dict(record.outputs), "usage": used, "machine": machine}


def machine_price(record: Record) -> float | None:
    """Return what the run's machine costs an hour, in EUR; None where it costs nothing, or that is not known."""
    try:
        return float(record.place["price"])
    except (KeyError, TypeError, ValueError):
        return None


def machine_cost(record: Record) -> float | None:
    """Return what the run's machine has cost so far, in EUR: each hour that has begun counts whole."""
    price, made_at = machine_price(record), float(record.place.get("made_at") or record.created_at)
    if price is None or (record.removed and not record.removed_at):
        return None
    hours = math.ceil(max((record.removed_at or time.time()) - made_at, 1.0) / 3600)
    return round(price * hours, 4)


def rows(record: Record, usage: ProcessUsage | None = None) -> list[tuple[str, str]]:
    """Return the run as names and values, without what is empty."""
    outputs = record.outputs
    found = [
        ("run", outputs.run_id),
        ("task", record.stack + (f" ({', '.join(record.labels)})" if record.labels else "")),
        ("status", str(outputs.status)),
        ("reason", _reason(outputs)),
        ("executor", outputs.executor),
        ("server", _machine(record)),
        ("started", _started(record)),
        ("uses", f"{usage.cpu:.0f}% CPU, {usage.mem:.0f} MB, {usage.processes} processes" if usage else ""),
        ("turns", _turns(record)),
        ("cost", cost(outputs)),
        *(("does" if not outputs.status.final else "did", line) for line in outputs.activity[-3:]),
        ("result", _short(outputs.result or "")),
        *(("denied", _denial(each)) for each in outputs.permission_denials),
        *(("limit hit", ", ".join(f"{name} {value}" for name, value in each.items())) for each in outputs.limit_hits),
        *(("notice", each) for each in outputs.notices),
        ("branch", outputs.branch or ""),
        ("patch", outputs.patch or ""),
        ("artifacts", _artifacts(record)),
        ("log", outputs.log_path or ""),
        ("removed", "from the executor; its results are kept here" if record.removed else ""),
    ]
    return [(name, value) for name, value in found if value]


def show(screen: Screen, record: Record, usage: ProcessUsage | None = None) -> None:
    """Show a run as a table of two columns, or as JSON."""
    if screen.as_json:
        screen.data(document(record, usage))
    else:
        screen.table(("", ""), rows(record, usage))


def next_steps(record: Record) -> Sequence[str]:
    """Return the commands that one may want next."""
    name = record.stack
    if record.removed and not executors.gives_back(record.spec):
        return (f"coding-agent up {name}         # run it again",)
    if not record.outputs.status.final:
        return (
            f"coding-agent logs -f {name}    # follow it",
            f"coding-agent kill {name}       # end it, keep what it did",
            f"coding-agent destroy {name}    # end it and clean up",
        )
    steps = [f"coding-agent logs {name}       # what it did", f"coding-agent destroy {name}    # clean up"]
    if record.kind == "agent" and record.outputs.session_id and not record.removed:
        steps.insert(1, f"coding-agent resume {name}     # let it go on where it stopped")
    if record.outputs.branch:
        steps.insert(0, f"git log -p ..{record.outputs.branch}    # its commits")
    return steps


def age(record: Record) -> str:
    """Return how long ago the run was made, on this machine's clock."""
    return span(time.time() - record.created_at)


def _started(record: Record) -> str:
    start = instant(record.outputs.started_at)
    if start is None:
        return ""
    lasted = took(record.outputs)
    at = datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{at}, took {span(lasted)}" if lasted is not None else f"{at}, {age(record)} ago"


def _machine(record: Record) -> str:
    price, place = machine_price(record), record.place
    if price is None:
        return ""
    so_far = machine_cost(record)
    cost = "" if so_far is None else f", {so_far:.4f} EUR {'in all' if record.removed else 'so far'}"
    return f"{place.get('server_type')} in {place.get('location')}: {price:.4f} EUR an hour{cost}"


def _reason(outputs: Outputs) -> str:
    code = f" {outputs.exit_code}" if outputs.reason == "exit_code" and outputs.exit_code is not None else ""
    return ": ".join(part for part in (f"{outputs.reason or ''}{code}", _short(outputs.detail or "")) if part)


def _artifacts(record: Record) -> str:
    folder = record.folder / "artifacts"
    count = sum(each.is_file() for each in folder.rglob("*")) if record.artifacts else 0
    return f"{folder} ({count} file{'s' if count != 1 else ''})" if count else ""


def _turns(record: Record) -> str:
    outputs = record.outputs
    if record.kind != "agent":
        return ""
    own = outputs.agent_num_turns
    attempts = f" in {outputs.attempts} attempts" if outputs.attempts > 1 else ""
    counted = f" (Claude Code counts {own})" if own not in (None, outputs.num_turns) else ""
    return f"{outputs.num_turns}{attempts}{counted}"


def _denial(denial: Any) -> str:
    if not hasattr(denial, "get"):
        return str(denial)
    return _short(f"{denial.get('tool_name') or 'a tool'} {denial.get('tool_input') or ''}")


def _short(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
