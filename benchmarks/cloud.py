"""A task on a server of Hetzner Cloud that boots as a virtual machine: which part of the waiting is ours."""

from __future__ import annotations

import json
import time
from pathlib import Path

import hcloud
from hcloud.servers.domain import Server

from benchmarks.measure import Goal, Report, Series
from benchmarks.world import LIMIT, World
from fakes.hetzner_api import HetznerApi
from machines.machine import Machine
from machines.qemu_server import QemuServers
from renter import new_key

MOST = 3  # samples: without hardware support a boot takes a minute
TASK = """\
prompt: 'SCENARIO=bash{"command": "date +%s.%N >first"}'
executor: cloud
artifacts: [first]
"""
WHOLE = "from `up` to the agent's first tool call"


def first_call(world: World, times: int) -> list[Report]:
    """Measure it on a new system, and on a snapshot that has Claude Code."""
    machines = QemuServers()
    try:
        with HetznerApi(machines) as api:
            api.ports = (int(world.environment["ANTHROPIC_BASE_URL"].rpartition(":")[2]),)
            world.environment.update(HCLOUD_TOKEN=api.token, HCLOUD_ENDPOINT=api.endpoint)
            for name in ("command", "hcloud"):
                world.plugin(name)
            key = world.home / "key"
            new_key(key)
            world.task("far", TASK)
            new = _measured(world, api, "a new system, to which Claude Code is brought", times, key)
            _executor(world, key, keep=True)
            world.cli("up", "far")
            (server,) = api.servers()
            client = hcloud.Client(token=api.token, api_endpoint=api.endpoint, poll_interval=1)
            made = client.servers.create_image(Server(id=server["id"]), description="with Claude Code")
            made.action.wait_until_finished(max_retries=int(LIMIT))
            world.cli("destroy", "far", "--yes")
            assert made.image.id is not None
            ready = _measured(world, api, "a snapshot that has Claude Code", times, key, image=made.image.id)
            return [ready, new]
    finally:
        machines.close()


def _measured(world: World, api: HetznerApi, what: str, times: int, key: Path, **options: object) -> Report:
    ours, boot, agent, whole = (
        Series("ours: neither boot nor agent"),
        Series("boot, until cloud-init is done"),
        Series("the agent, from its start to its first tool call"),
        Series(WHOLE),
    )
    _executor(world, key, keep=True, **options)
    api.requests.clear()
    for _ in range(min(times, MOST)):
        begun = time.time()
        world.cli("up", "far")
        (server,) = api.servers()
        ordered = next(each.at for each in api.requests if (each.method, each.path) == ("POST", "/servers"))
        machine = api.machine(server["name"])
        behind = _clock(machine)
        status = json.loads(world.cli("status", "far", "--json").stdout)
        run = f"/home/agent/.coding-agent/runs/{status['run_id']}"
        called = float(machine.run(["cat", f"{run}/workspace/first"])[1]) + behind
        ready = float(machine.run(["stat", "-c", "%.Y", "/run/cloud-init/result.json"])[1]) + behind
        # Made at once when the agent starts.
        started = float(machine.run(["stat", "-c", "%.W", f"{run}/stream.jsonl"])[1]) + behind
        world.cli("destroy", "far", "--yes")
        api.requests.clear()
        whole.samples.append(called - begun)
        boot.samples.append(ready - ordered)
        agent.samples.append(called - started)
        ours.samples.append(called - begun - (ready - ordered) - (called - started))
    return Report(f"hetzner: {what}", [ours, boot, agent, whole], [Goal(0.1, WHOLE)])


def _clock(machine: Machine) -> float:
    """Return the seconds by which a machine's clock is behind ours."""
    before = time.time()
    there = float(machine.run(["date", "+%s.%N"])[1])
    return (before + time.time()) / 2 - there


def _executor(world: World, key: Path, **options: object) -> None:
    cloud = {"name": "cloud", "type": "hetzner", "server_types": "cx23", "locations": "fsn1", "key_path": str(key)}
    file = world.home / ".config" / "openclaw" / "coding-agent.yaml"
    file.write_text(json.dumps({"executors": [{**cloud, "boot_limit": "10m", **options}]}))
