"""What the supervisor itself costs on the target while an agent works."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from benchmarks.measure import Goal, Report, Series
from benchmarks.world import World

SPAN = 2.0  # seconds of one CPU sample
TASK = """\
prompt: 'SCENARIO=loop{"turns": 400, "sleep": 0.2}'
agent:
  max_turns: 1000
limits:
  memory: 8GiB
  disk: 8GiB
  pids: 500
"""


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return sum(int(field) for field in fields[11:15])


def pss(pid: int) -> float:
    """Return the memory of a process in MB, of what it shares its part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


def cost(world: World, times: int) -> list[Report]:
    """Measure CPU (of one core) and memory of the supervisor while the agent makes turn after turn."""
    cpu, memory = Series("supervisor", "% of a core"), Series("supervisor", "MB PSS")
    world.task("busy", TASK)
    run_id = json.loads(world.cli("up", "busy", "--detach", "--json").stdout)["run_id"]
    meta = json.loads((world.home / ".coding-agent" / "runs" / run_id / ".meta.json").read_text())
    pid = int(meta["supervisor"])
    for _ in range(times):
        before, begun = _ticks(pid), time.monotonic()
        time.sleep(SPAN)
        used = (_ticks(pid) - before) / os.sysconf("SC_CLK_TCK")
        cpu.samples.append(used / (time.monotonic() - begun) * 100)
        memory.samples.append(pss(pid))
    world.cli("destroy", "busy", "--yes")
    notes = ["all three watched limits are on; the short processes it starts (grep, mv, du) are counted"]
    return [
        Report("supervisor, CPU", [cpu], [Goal(1.0)], notes),
        Report("supervisor, memory", [memory], [Goal(8.0)]),
    ]
