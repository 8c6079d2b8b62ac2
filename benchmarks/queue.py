"""The queue: putting a task in, until a worker takes it, how many it does a minute, and looking at a long one."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.measure import Goal, Report, Series
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
def _worker(world: World) -> Iterator[None]:
    process = subprocess.Popen(
        ["coding-agent", "worker"], cwd=world.project, env=world.environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()  # that it serves
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)
