"""What executors on hosts need, as `doctor` looks at it: a login that works, the engine's plugin."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from coding_agent import executors
from coding_agent.doctor_engine import installed_plugin
from coding_agent.errors import CodingAgentError
from coding_agent.finding import Finding, State
from coding_agent.settings import ExecutorSpec, Settings
from coding_agent.toolchain.installation import Progress

_AT_ONCE = 8  # hosts; each has time limits of its own, and the slowest is waited for


def hosts(fix: bool, progress: Progress) -> Iterator[Finding]:
    """Yield what is found for each executor that one logs in to; nothing where there is none."""
    try:
        found = [each for each in Settings.load().executors if each.type in executors.LOGINS]
    except CodingAgentError:
        return  # said elsewhere
    if not found:
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(_host, found)
    yield installed_plugin("command", "the first run on a host waits for it", fix, progress)
    if any(each.type == "hetzner" for each in found):
        yield installed_plugin("hcloud", "the first server waits for it", fix, progress)


def _host(spec: ExecutorSpec) -> Finding:
    name = f"executor {spec.name}"
    try:
        return Finding(name, State.OK, f"it answers: {executors.try_out(spec)}")
    except CodingAgentError as error:
        prevents = f"no task can run on {spec.name}"
        return Finding(name, State.MISSING, error.message, prevents, error.next_step)
