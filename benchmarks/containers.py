"""Runs in containers against `docker run`, against the bare engine, and many at once."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from benchmarks.looking import ticks
from benchmarks.measure import Report, Series, side_by_side
from benchmarks.updates import automation
from benchmarks.world import World

BASE = "coding-agent-test/base:1"
TASK = "prompt: 'SCENARIO=text'\nexecutor: box\n"
SLEEP = "command: sleep 2\nexecutor: box\n"
# One container and nothing else, through the Automation API.
BARE = """
import sys
from pulumi import automation
import pulumi_docker as docker

def program():
    docker.Container("bare", image=sys.argv[3], entrypoints=["sleep"], command=["infinity"], network_mode="host")

stack = automation.create_or_select_stack(
    stack_name="bare", project_name="bare", program=program,
    opts=automation.LocalWorkspaceOptions(work_dir=sys.argv[1]),
)
stack.destroy() if sys.argv[2] == "destroy" else stack.up()
"""
ASK = """
import json, sys, time
from coding_agent import executors, records
record = records.find(sys.argv[1])
executor = executors.connect(record.spec, record.place)
executor.connection.run(["true"], timeout=30)
took = {"exec": [], "status": []}
for _ in range(int(sys.argv[2])):
    begun = time.perf_counter()
    executor.connection.run(["true"], timeout=30)
    took["exec"].append(time.perf_counter() - begun)
    begun = time.perf_counter()
    executor.status(record.run_id)
    took["status"].append(time.perf_counter() - begun)
print(json.dumps(took))
"""


def _box(world: World, image: str = BASE) -> None:
    """Give the world an executor `box`, and what it needs in its caches."""
    from coding_agent.paths import cache_dir
    from containers import Docker, base_image

    base_image(Docker())
    box = {"name": "box", "type": "container", "image": image, "network": "host"}
    (world.home / ".config" / "openclaw" / "coding-agent.yaml").write_text(json.dumps({"executors": [box]}))
    programs = world.home / ".cache" / "coding-agent" / "claude"
    if not programs.exists():
        from coding_agent import claude

        claude.for_platform(claude.platform_name(), None, print)
        programs.parent.mkdir(parents=True, exist_ok=True)
        programs.symlink_to(cache_dir() / "claude")
    world.plugin("docker")


def _docker(world: World, *argv: str) -> str:
    return world.run("docker", *argv).stdout.strip()


def first_up(world: World, times: int) -> Report:
    """Measure a first `up --detach` in a fresh container."""
    _box(world)
    ours, bare = Series("up --detach in a fresh container"), Series("one docker.Container through the Automation API")
    plain = Series("docker run -d of the same")
    world.task("boxed", TASK)

    def up() -> None:
        with ours.timing():
            world.cli("up", "boxed", "--detach")
        world.cli("destroy", "boxed", "--yes")

    def container() -> None:
        with bare.timing():
            automation(world, BARE, "up", BASE)
        automation(world, BARE, "destroy", BASE)

    def run() -> None:
        name = f"bench-{uuid.uuid4().hex[:8]}"
        mount = f"type=bind,source={world.claude},target=/opt/claude,readonly"
        variables = [f"{each}={world.environment[each]}" for each in ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY")]
        with plain.timing():
            _docker(
                world,
                *("run", "-d", "--init", "--name", name, "--network", "host", "--mount", mount, "--cap-drop", "ALL"),
                *[word for each in variables for word in ("-e", each)],
                *("-e", "HOME=/tmp", BASE, "/opt/claude", "-p", "SCENARIO=text"),
            )
        _docker(world, "rm", "-f", name)

    side_by_side(times, up, container, run)
    notes = ["the stack, the image's look, a volume, the container and the agent's start are in ours"]
    return Report("first up in a container", [ours, bare, plain], (), notes)


def connection(world: World, times: int) -> Report:
    """Measure a command's round trip and a look at a run through the Connection, against docker's own exec."""
    _box(world)
    world.task("asked", "command: sleep 600\nexecutor: box\n")
    world.cli("up", "asked", "--detach")
    ours, look, bare = Series("a command through the Connection"), Series("status"), Series("docker exec true")
    took = json.loads(world.run(sys.executable, "-c", ASK, "asked", str(times * 3)).stdout)
    ours.samples, look.samples = took["exec"], took["status"]
    (container,) = _docker(world, "ps", "-q", "--filter", "label=coding-agent.stack=asked").split()
    for _ in range(times):
        with bare.timing():
            _docker(world, "exec", container, "true")
    world.cli("destroy", "asked", "--yes")
    return Report("round trip to a container", [ours, look, bare])


def log_latency(world: World, times: int) -> Report:
    """Measure the time from an event in a container's log to the line on the screen of `logs -f`."""
    _box(world)
    return Report("log event to screen, from a container", [ticks(world, times, "executor: box\n")])


def program(world: World, times: int) -> Report:
    """Measure what the agent's start costs with the mounted program and with an image that has it, cold and warm."""
    image = f"coding-agent-bench/{uuid.uuid4().hex[:8]}"
    folder = world.home / "image"
    folder.mkdir(exist_ok=True)
    (folder / "claude").write_bytes(world.claude.read_bytes())
    (folder / "claude").chmod(0o755)
    (folder / "Dockerfile").write_text(f"FROM {BASE}\nCOPY claude /usr/local/bin/claude\n")
    _docker(world, "build", "-q", "-t", image, str(folder))
    made = {}
    for kind, of in (("mounted", BASE), ("in the image", image)):
        _box(world, of)
        for state in ("warm", "cold"):
            series = made[(kind, state)] = Series(f"to the first event, {kind}, {state}")
            world.task("started", TASK)
            world.cli("up", "started", "--detach")
            world.cli("destroy", "started", "--yes")
            for _ in range(max(2, times // 3)):
                if state == "cold":
                    _drop_caches()
                world.cli("up", "started")
                outputs = json.loads(world.cli("status", "started", "--json").stdout)
                line = outputs["timeline"]
                series.samples.append(line["first_event"] - line["target_ready"])
                world.cli("destroy", "started", "--yes")
    _docker(world, "rmi", "-f", image)
    _box(world)
    return Report("the agent's program in a container", list(made.values()), (), ["cold: after drop_caches"])


def _drop_caches() -> None:
    subprocess.run(["sync"], check=True, timeout=120)
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")


def at_once(world: World, times: int) -> list[Report]:
    """Measure 1, 5 and 20 tasks at once: until all have run, and the memory of everything on the controller."""
    del times
    _box(world)
    walls = [Series(f"{count} at once, up to ended") for count in (1, 5, 20)]
    peaks = [Series(f"{count} at once, controller's memory", "MB") for count in (1, 5, 20)]
    for count, wall, peak in zip((1, 5, 20), walls, peaks, strict=True):
        names = [f"many-{number}" for number in range(count)]
        for name in names:
            world.task(name, SLEEP)
        with _peak(peak), wall.timing(), ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda name: world.cli("up", name), names))
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda name: world.cli("destroy", name, "--yes"), names))
    return [Report("many containers at once", walls), Report("memory of the controller", peaks)]


@contextlib.contextmanager
def _peak(series: Series) -> Iterator[None]:
    """Add the highest sum of what this process's children use, shared memory counted once."""
    stop, highest = threading.Event(), [0.0]

    def watch() -> None:
        while not stop.wait(0.5):
            total = 0.0
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss / 1e6
            highest[0] = max(highest[0], total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        series.samples.append(highest[0])
