"""Looking at a run: `status`, and how long an event takes from the log to the screen."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.measure import Goal, Report, Series, side_by_side
from benchmarks.world import World

# Prints its own clock; what `logs -f` shows later is compared with it.
TICKER = """\
command: |
  for ((i = 0; i < 40; i++)); do echo "tick $EPOCHREALTIME"; sleep 0.25; done
"""


def status(world: World, times: int) -> Report:
    """Measure `status` of a run that goes on, and what of it is the interpreter, our imports, and the look itself."""
    world.task("idle", "command: sleep 600\n")
    world.cli("up", "idle", "--detach")
    ours = Series("status")
    parts = {
        "python alone": "pass",
        "+ click and our command": "import coding_agent.cli.look_command",
        "+ the verbs": "import coding_agent.cli.look_command, coding_agent.lifecycle",
        "+ one look at the run": (
            "import coding_agent.cli.look_command\n"
            "from coding_agent import lifecycle, records\n"
            "lifecycle.observe(records.find('idle'), say=print)"
        ),
    }
    series = [Series(name) for name in parts]

    def whole() -> None:
        with ours.timing():
            world.cli("status", "idle")

    def part(one: Series) -> None:
        with one.timing():
            world.run(sys.executable, "-c", parts[one.name])

    side_by_side(times, whole, *(lambda one=one: part(one) for one in series))
    world.cli("destroy", "idle", "--yes")
    return Report("status", [ours, *series], [Goal(0.3)], ["each line after the first adds to the one before it"])


def show_help(world: World, times: int) -> Report:
    """Measure `--help`, against an interpreter that does nothing."""
    ours, bare = Series("--help"), Series("python alone")

    def whole() -> None:
        with ours.timing():
            world.cli("--help")

    def nothing() -> None:
        with bare.timing():
            world.run(sys.executable, "-c", "pass")

    side_by_side(times, whole, nothing)
    return Report("--help", [ours, bare], [Goal(0.2)])


def follow(world: World, times: int) -> Report:
    """Measure the time from an event in the log to the line on the screen of `logs -f`."""
    return Report("log event to screen", [ticks(world, times)], [Goal(0.25)])


def ticks(world: World, times: int, more: str = "") -> Series:
    """Follow a run that tells its own clock; `more` is what else its task says."""
    ours = Series("event to screen")
    world.task("ticker", f"{TICKER}{more}")
    world.cli("up", "ticker", "--detach")
    argv = ["coding-agent", "logs", "ticker", "-f", "-n", "0"]
    with subprocess.Popen(
        argv, cwd=world.project, env=world.environment, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("tick "):
                ours.samples.append(time.time() - float(line.split()[1]))
    world.cli("destroy", "ticker", "--yes")
    assert len(ours.samples) >= times, "too few lines were seen"
    return ours
