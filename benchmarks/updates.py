"""`up` against a bare engine and against a bare agent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

from benchmarks.measure import Goal, Report, Series, side_by_side
from benchmarks.world import World

# The least a program can do through the Automation API: an inline stack without resources.
BARE = """
import sys
from pulumi import automation
stack = automation.create_or_select_stack(
    stack_name="bare", project_name="bare", program=lambda: None,
    opts=automation.LocalWorkspaceOptions(work_dir=sys.argv[1]),
)
stack.destroy() if sys.argv[2] == "destroy" else stack.up()
"""
TASK = "prompt: 'SCENARIO=text'\n"


def automation(world: World, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program that uses the Automation API, in a folder and with a backend of its own."""
    folder = world.home / "bare"
    state = world.home / "bare-state"
    folder.mkdir(exist_ok=True)
    state.mkdir(exist_ok=True)
    environment = {
        **world.environment,
        "PULUMI_BACKEND_URL": f"file://{state}",
        "PULUMI_CONFIG_PASSPHRASE": "bench",
    }
    argv = [sys.executable, "-c", script, str(folder), *arguments]
    return subprocess.run(argv, env=environment, check=True, capture_output=True, text=True, timeout=600)


def _claude(world: World, series: Series) -> None:
    argv = [str(world.claude), "-p", "--output-format", "stream-json", "--verbose"]
    with subprocess.Popen(
        argv, env=world.environment, cwd=world.home, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with series.timing():
            process.stdin.write(b"SCENARIO=text")
            process.stdin.close()
            process.stdout.readline()
        process.stdout.read()


def first_up(world: World, times: int) -> Report:
    """Measure a first `up --detach`: from nothing to an agent that has started."""
    ours, bare, agent = Series("up --detach"), Series("empty inline stack"), Series("claude alone, to its first event")
    world.task("bench", TASK)

    def up() -> None:
        with ours.timing():
            world.cli("up", "bench", "--detach")
        world.cli("destroy", "bench", "--yes")

    def empty() -> None:
        with bare.timing():
            automation(world, BARE, "up")
        automation(world, BARE, "destroy")

    side_by_side(times, up, empty, lambda: _claude(world, agent))
    notes = ["a first up with the stack's creation; what `destroy` takes is not in it"]
    return Report("first up", [ours, bare, agent], [Goal(1.3, "empty inline stack")], notes)


def repeated_up(world: World, times: int) -> Report:
    """Measure an `up` that changes nothing."""
    ours, bare = Series("up, nothing changed"), Series("empty inline stack, nothing changed")
    world.task("again", TASK)
    world.cli("up", "again")
    automation(world, BARE, "up")

    def up() -> None:
        with ours.timing():
            world.cli("up", "again", "--detach")

    def empty() -> None:
        with bare.timing():
            automation(world, BARE, "up")

    side_by_side(times, up, empty)
    world.cli("destroy", "again", "--yes")
    return Report("repeated up", [ours, bare], [Goal(1.2, "empty inline stack, nothing changed")])


OURS = """
import json
from pathlib import Path
from coding_agent import stack
opened = stack.open_stack(Path.cwd(), "calls")
opened.up(wait=False, say=lambda line: None)
print(json.dumps([[call.arguments, call.seconds] for call in opened.calls]))
"""
# The same way to the same stack as the Automation API goes it, its calls timed from outside.
AUTOMATION = """
import json, subprocess, sys, time
from pulumi import automation
calls, start = [], subprocess.Popen.__init__
def timed(self, argv, *rest, **options):
    calls.append([argv[1:], time.monotonic()])
    start(self, argv, *rest, **options)
wait = subprocess.Popen.wait
def waited(self, *rest, **options):
    code = wait(self, *rest, **options)
    if calls and len(calls[-1]) == 2:
        calls[-1].append(time.monotonic())
    return code
subprocess.Popen.__init__, subprocess.Popen.wait = timed, waited
stack = automation.create_or_select_stack(
    stack_name="bare", project_name="bare", program=lambda: None,
    opts=automation.LocalWorkspaceOptions(work_dir=sys.argv[1]),
)
stack.up()
print(json.dumps([[argv, end - begun] for argv, begun, end in calls]))
"""


def _called(argv: Sequence[str]) -> str:
    """Return a call as people say it: without options, and without what differs from run to run."""
    words = [word for word in argv if not word.startswith("-")]
    return " ".join(["pulumi", *words[: 2 if words[0] in ("stack", "config", "plugin") else 1]])


def engine_calls(world: World, times: int) -> list[Report]:
    """Measure each call of the engine that a first `up --detach` makes, and those of the Automation API for the same.

    The calls that only the second table has are those that were cut.
    """
    world.task("calls", TASK)
    ours: dict[str, Series] = {}
    theirs: dict[str, Series] = {}

    def up() -> None:
        _add(ours, world.run(sys.executable, "-c", OURS).stdout)
        world.cli("destroy", "calls", "--yes")

    def bare() -> None:
        _add(theirs, automation(world, AUTOMATION).stdout)
        automation(world, BARE, "destroy")

    side_by_side(times, up, bare)
    cut = sorted(theirs.keys() - ours.keys())
    notes = [f"of the Automation API's calls these were cut: {', '.join(cut)}"]
    return [
        Report("engine calls of a first up --detach", list(ours.values()), notes=notes),
        Report("engine calls of an empty inline stack through the Automation API", list(theirs.values())),
    ]


def _add(series: dict[str, Series], said: str) -> None:
    """Add the seconds of each call; one that is made several times counts as often as it was made."""
    count: Counter[str] = Counter()
    for argv, seconds in json.loads(said.splitlines()[-1]):
        name = _called(argv)
        count[name] += 1
        name += f" ({count[name]})" if count[name] > 1 else ""
        series.setdefault(name, Series(name)).samples.append(seconds)
