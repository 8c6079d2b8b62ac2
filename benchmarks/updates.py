"""`up` against a bare engine and against a bare agent."""

from __future__ import annotations

import json
import subprocess
import sys

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


def _bare(world: World, verb: str) -> None:
    folder = world.home / "bare"
    state = world.home / "bare-state"
    folder.mkdir(exist_ok=True)
    state.mkdir(exist_ok=True)
    environment = {
        **world.environment,
        "PULUMI_BACKEND_URL": f"file://{state}",
        "PULUMI_CONFIG_PASSPHRASE": "bench",
    }
    subprocess.run(
        [sys.executable, "-c", BARE, str(folder), verb], env=environment, check=True, capture_output=True, timeout=600
    )


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
            _bare(world, "up")
        _bare(world, "destroy")

    side_by_side(times, up, empty, lambda: _claude(world, agent))
    notes = ["a first up with the stack's creation; what `destroy` takes is not in it"]
    return Report("first up", [ours, bare, agent], [Goal(1.3, "empty inline stack")], notes)


def repeated_up(world: World, times: int) -> Report:
    """Measure an `up` that changes nothing."""
    ours, bare = Series("up, nothing changed"), Series("empty inline stack, nothing changed")
    world.task("again", TASK)
    world.cli("up", "again")
    _bare(world, "up")

    def up() -> None:
        with ours.timing():
            world.cli("up", "again", "--detach")

    def empty() -> None:
        with bare.timing():
            _bare(world, "up")

    side_by_side(times, up, empty)
    world.cli("destroy", "again", "--yes")
    return Report("repeated up", [ours, bare], [Goal(1.2, "empty inline stack, nothing changed")])


def engine_calls(world: World, times: int) -> Report:
    """Measure each call of the engine that an `up --detach` makes."""
    script = (
        "import json, sys; from pathlib import Path; from coding_agent import stack; "
        "s = stack.open_stack(Path.cwd(), 'calls'); s.up(wait=False, say=lambda line: None); "
        "print(json.dumps([[' '.join(call.arguments), call.seconds] for call in s.calls]))"
    )
    world.task("calls", TASK)
    series: dict[str, Series] = {}
    for _ in range(times):
        said = world.run(sys.executable, "-c", script).stdout
        for name, seconds in json.loads(said.splitlines()[-1]):
            words = [word for word in name.split() if not word.startswith("-")][:2]
            series.setdefault(f"pulumi {' '.join(words)}", Series(f"pulumi {' '.join(words)}")).samples.append(seconds)
        world.cli("destroy", "calls", "--yes")
    return Report("engine calls of one up --detach", list(series.values()))
