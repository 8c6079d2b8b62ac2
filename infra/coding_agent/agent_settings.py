"""What a task and the defaults of the executors file both can say: the agent's settings, limits, environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coding_agent.document import Document, FieldPath, quoted
from coding_agent.near_files import NearFiles
from coding_agent.quantities import seconds, size

# What an ordinary coding task needs, allowed without asking; an allow list works for root too.
STANDARD_TOOLS = (
    *("Bash", "BashOutput", "KillShell", "Edit", "MultiEdit", "Write", "Read", "Glob", "Grep", "LS", "NotebookEdit"),
    *("WebFetch", "WebSearch", "TodoWrite", "Task", "Agent", "Skill", "ExitPlanMode"),
)

MCP_FILE_LIMIT = 1_000_000  # bytes
_LONGEST = 366 * 86400.0  # seconds
_LARGEST = 2**60  # bytes
_SIZES = ("memory", "disk")
_PLAIN = ("cpus", "pids", "gpus")
_CREDENTIALS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
_OURS = ("CLAUDE_CONFIG_DIR", "IS_SANDBOX")


@dataclass(frozen=True)
class Agent:
    """How Claude Code is called."""

    model: str | None = None  # None: its own default
    version: str | None = None  # None: what the executor has
    max_turns: int = 100  # model calls
    max_budget_usd: float | None = None
    permission_mode: str | None = None
    allowed_tools: tuple[str, ...] = ()  # empty: STANDARD_TOOLS
    append_system_prompt: str | None = None
    mcp_config: str | None = None  # JSON
    debug: bool = False


@dataclass(frozen=True)
class Limits:
    """What a run may use. Times are in seconds, sizes in bytes; None is no limit."""

    cpus: float | None = None
    memory: int | None = None
    disk: int | None = None
    pids: int | None = None
    gpus: int | None = None  # not a limit alone: the run gets so many
    timeout: float = 7200.0  # of the whole run
    setup: float = 900.0  # all setup commands together
    first_event: float = 120.0  # until the agent's first sign of life
    idle: float = 1800.0  # between two of them
    linger: float = 10.0  # the process, after its result
    grace: float = 5.0  # between TERM and KILL


def read_agent(
    document: Document, path: FieldPath, values: Mapping[str, Any], near: NearFiles | None
) -> dict[str, Any]:
    """Return arguments for `Agent`; where `near` is None, a file can't be named."""
    given = {name: value for name, value in values.items() if document.usable((*path, name))}
    if "max_turns" in given:
        given["max_turns"] = int(given["max_turns"])
    if "max_budget_usd" in given:
        given["max_budget_usd"] = float(given["max_budget_usd"])
    if "allowed_tools" in given:
        given["allowed_tools"] = tuple(given["allowed_tools"])
    if "mcp_config" in given:
        given["mcp_config"] = _mcp_config(document, (*path, "mcp_config"), given["mcp_config"], near)
    return given


def read_limits(document: Document, path: FieldPath, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments for `Limits`."""
    given: dict[str, Any] = {}
    for name, value in values.items():
        inner = (*path, name)
        if not document.usable(inner):
            continue
        if name in _PLAIN:
            given[name] = float(value) if name == "cpus" else int(value)
            continue
        amount, largest = (size(value), _LARGEST) if name in _SIZES else (seconds(value), _LONGEST)
        if amount <= 0:
            document.report(inner, f"is {quoted(value)}; it must be more than zero, leave it out for the default")
        elif amount > largest:
            document.report(inner, f"is {quoted(value)}; at most {'1 EiB' if name in _SIZES else '366d'} is possible")
        given[name] = amount
    return given


def read_environment(document: Document, path: FieldPath, values: Mapping[str, Any]) -> dict[str, str]:
    """Return environment variables; those that are secrets or our own are reported."""
    for name, value in values.items():
        inner = (*path, name)
        if name in _CREDENTIALS:
            message = (
                f"a credential; give it a source under `secrets` in the executors file, as {name}: {{env: {name}}}"
            )
            document.report(inner, message, at_key=True)
        elif name in _OURS or name.startswith("CODING_AGENT_"):
            document.report(inner, "is set by coding-agent itself; choose another name", at_key=True)
        elif document.usable(inner) and isinstance(value, str) and len(value.encode()) > 100_000:
            message = f"is {len(value.encode())} bytes long; no environment can carry more than 100000, use a file"
            document.report(inner, message)
    return dict(values)


def _mcp_config(document: Document, path: FieldPath, value: Any, near: NearFiles | None) -> str | None:
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    if near is None:
        document.report(path, "names a file; write the mapping itself here, `mcpServers: {...}`")
        return None
    raw = near.read(path, value, limit=MCP_FILE_LIMIT)
    if raw is None:
        return None
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        document.report(path, f"{quoted(value)} is not JSON: {error}")
        return None
    if not isinstance(content, dict) or not isinstance(content.get("mcpServers"), dict):
        document.report(path, f'{quoted(value)} has no mapping "mcpServers"; write {{"mcpServers": {{...}}}}')
    return json.dumps(content, sort_keys=True, ensure_ascii=False)
