"""The queue: putting a task in, until a worker takes it, how many it does a minute, and looking at a long one."""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.measure import Goal, Report, Series
from benchmarks.remote import nearby
from benchmarks.supervisor import pss
from benchmarks.world import World

LENGTHS = (10, 100, 1000)
TRIVIAL = 20  # tasks, for how many there are a minute
_PUT = """
import json, sys, time
from coding_agent import dispatch
took, tasks = [], []
for _ in range(int(sys.argv[1])):
    begun = time.perf_counter()
    tasks.append(dispatch(command="true"))
    took.append(time.perf_counter() - begun)
    tasks[-1].wait(60)
    if sys.argv[2]: tasks[-1].cleanup()
print(json.dumps({"took": took, "ids": [task.id for task in tasks]}))
"""
_CLAIMED = """
import json
from coding_agent.work_queue import database
with database.opened() as found:
    query = "SELECT extract(epoch FROM claimed_at - enqueued_at)::float8 AS seconds FROM task WHERE attempt > 0"
    print(json.dumps([row["seconds"] for row in found.do(lambda c: c.execute(query).fetchall())]))
"""
_ONE = """
import json, sys, time
from coding_agent import dispatch, records
from coding_agent.work_queue import database
put = time.time()
task = dispatch(prompt="SCENARIO=text", executor=sys.argv[1])
task.wait(120)
record = records.load(task.outputs.run_id)
with database.opened() as found:
    query = "SELECT extract(epoch FROM claimed_at)::float8 AS at FROM task WHERE id = %s"
    claimed = found.do(lambda c: c.execute(query, (task.id,)).fetchone())["at"]
line = record.outputs.timeline
print(json.dumps({"put": put, "at": [claimed, record.created_at, line["target_ready"], line["started"]]}))
task.cleanup()
"""
_STAY = """
import sys, time
from coding_agent import dispatch
from coding_agent.run import State
tasks = [dispatch(command="sleep 900", executor=sys.argv[1], name=f"stay{n}") for n in range(*map(int, sys.argv[2:4]))]
while any(task.outputs.status is not State.RUNNING for task in tasks):
    time.sleep(0.2)
time.sleep(3)  # what started them has ended
"""
_GONE = """
import json
from coding_agent.api import Task
from coding_agent.work_queue import database
from coding_agent.work_queue.queue import Queue
with database.opened() as found:
    entries = [each for each in Queue(found).entries(ended=True) if each.name.startswith("stay")]
for each in entries:
    Task(entry=each).cleanup(discard=True)
"""
_MANY = """
import sys
from datetime import datetime, timezone
from coding_agent.work_queue import database, orders
from coding_agent.work_queue.queue import Queue
far = datetime(2999, 1, 1, tzinfo=timezone.utc)
made = [orders.of_fields({"command": "true"}, name=f"far-{n}", repo=None) for n in range(*map(int, sys.argv[1:3]))]
with database.opened() as found:
    Queue(found).enqueue([orders.scheduled(each, not_before=far) for each in made])
"""


def waiting(world: World, times: int) -> list[Report]:
    """Measure all of it, with one worker of four slots."""
    python = (sys.executable, "-c")
    with _worker(world):
        said = json.loads(world.run(*python, _PUT, str(times), "").stdout)
        put = Series("dispatch()", samples=said["took"])
        claims = json.loads(world.run(*python, _CLAIMED).stdout)
        claimed = Series("from the queue to a worker's hands", samples=claims)
        worst = statistics.quantiles(claims, n=20)[-1] if len(claims) > 1 else claims[0]
        rate = Series("trivial tasks a minute", "a minute", [_rate(world)])
        looks, filled = [], 0
        for length in LENGTHS:
            world.run(*python, _MANY, str(filled), str(length))
            filled = length
            look = Series(f"list --queue of {length}")
            for _ in range(times):
                with look.timing():
                    world.cli("list", "--queue")
            looks.append(look)
    return [
        Report("the queue: until a worker takes it", [claimed, put], [Goal(0.01)], [f"p95: {worst * 1000:.1f} ms"]),
        Report("the queue: how much it does", [rate], (), ["what bounds it is the engine: two calls a task"]),
        Report("the queue: looking at it", looks),
    ]


def first_request(world: World, times: int) -> list[Report]:
    """Measure from `dispatch()` until the model is asked for the first time, on this machine and through ssh."""
    local = _first_requests(world, "local", times)
    with nearby(world):
        return [local, _first_requests(world, "far", times)]


def _first_requests(world: World, executor: str, times: int) -> Report:
    parts = ("in the queue", "the engine, up to our provider", "up to the agent's process", "the agent's own start")
    whole, spans = Series(f"dispatch() to the model's first request, on {executor}"), [Series(each) for each in parts]
    with _worker(world):
        for number in range(times + 1):
            seen = len(world.api.turns())
            begun = time.time()
            said = json.loads(world.run(sys.executable, "-c", _ONE, executor).stdout)
            asked = time.time() - (time.monotonic() - world.api.turns()[seen].at)
            # `dispatch()` is timed in the script: what Python takes to start is not its.
            put, (claimed, created, ready, started) = said["put"], said["at"]
            assert begun < put < asked
            process = created + started - ready
            if number:  # the first one finds nothing in any cache
                whole.samples.append(asked - put)
                for span, ends, starts in zip(
                    spans, (claimed, created, process, asked), (put, claimed, created, process), strict=True
                ):
                    span.samples.append(ends - starts)
    return Report(f"dispatch() to the first request: {executor}", [whole, *spans])


def memory(world: World, times: int) -> Report:
    """Measure what a task that runs costs its worker in memory."""
    name = "many"
    file = world.home / ".config" / "openclaw" / "coding-agent.yaml"
    before = file.read_text()
    file.write_text(json.dumps({"executors": [{"name": name, "type": "local", "max_tasks": 100}]}))
    numbers, seen = (0, 5, 10 + times), []
    each = Series("a task that runs, in its worker", "MB PSS")
    try:
        with _worker(world) as worker:
            for least, most in itertools.pairwise((0, *numbers)):
                world.run(sys.executable, "-c", _STAY, name, str(least), str(most))
                seen.append(pss(worker))
        each.samples.append((seen[-1] - seen[1]) / (numbers[-1] - numbers[1]))
        world.run(sys.executable, "-c", _GONE)
    finally:
        file.write_text(before)
    note = ", ".join(f"{number} tasks: {size:.0f} MB" for number, size in zip(numbers, seen, strict=True))
    return Report("the worker's memory", [each], (), [note])


def looking(world: World, times: int) -> Report:
    """Measure `status`, `list` and `sync --dry-run` where there are many runs, and many task files."""
    world.task("known", "command: 'true'\n")
    run_id = json.loads(world.cli("up", "known", "--json").stdout)["run_id"]
    folder = world.home / ".local" / "state" / "coding-agent" / "runs"
    record = (folder / run_id / "record.json").read_text()
    series, made = [], 0
    for length in LENGTHS:
        for number in range(made, length):
            other = f"{number:016x}"
            (folder / other).mkdir()
            (folder / other / "record.json").write_text(
                record.replace(run_id, other).replace('"known"', f'"known{number}"')
            )
            world.task(f"file{number}", "command: 'true'\n")
        made = length
        for argv in (("status", "known"), ("list",), ("sync", "--dry-run")):
            look = Series(f"{' '.join(argv)} of {length}")
            for _ in range(times):
                with look.timing():
                    world.cli(*argv)
            series.append(look)
    for number in range(made):
        shutil.rmtree(folder / f"{number:016x}")
        (world.project / "tasks" / f"file{number}.yaml").unlink()
    return Report("looking where there is much", series)


def _rate(world: World) -> float:
    names = [f"trivial{number}" for number in range(TRIVIAL)]
    for name in names:
        world.task(name, "command: 'true'\n")
    begun = time.perf_counter()
    world.cli("dispatch", *names)
    while True:
        found = json.loads(world.cli("list", "--queue", "--all", "--json").stdout)
        if sum(each["state"] == "succeeded" and each["name"] in names for each in found) == len(names):
            return 60 * len(names) / (time.perf_counter() - begun)


@contextmanager
def _worker(world: World) -> Iterator[int]:
    """Run a worker, and give its process."""
    process = subprocess.Popen(
        ["coding-agent", "worker"], cwd=world.project, env=world.environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()  # that it serves
    try:
        yield process.pid
    finally:
        process.terminate()
        process.communicate(timeout=60)
