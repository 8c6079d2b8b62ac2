"""A connection that breaks in the middle of a call: said as such, soon, and never taken for the command's end."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from coding_agent import executors
from coding_agent.errors import ConnectionBroken
from coding_agent.executors.container import ContainerExecutor
from containers import Docker
from machines.relay import Relay, relay_of_sockets
from places import PLACES, Place, in_container, made_container
from waiting import until


@contextmanager
def _relayed(place: Place, path: Path) -> Iterator[tuple[Place, Relay]]:
    """Give the same place through a relay."""
    assert isinstance(place.executor, ContainerExecutor)
    spec = place.executor._spec
    there = dataclasses.replace(spec, options={**spec.options, "docker_host": f"unix://{path}"})
    place.bash("true")
    with relay_of_sockets(path, "/var/run/docker.sock") as relay:
        executor = executors.connect(there, place.executor.place)
        with closing(executor):
            yield Place(executor, place.folder, place.owner, place.token), relay


def _cut_once_there(relay: Relay, place: Place, path: str) -> None:
    until(lambda: place.bash("[[ ! -e $1 ]] || echo there", path))
    relay.cut()


@pytest.mark.parametrize("kind", ["container", "existing"])
def test_cut_in_the_middle_of_a_call(kind: str, home: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A call whose connection is cut raises `ConnectionBroken` at once; the next one works, and a run went on."""
    with ExitStack() as stack:
        place = stack.enter_context(PLACES[kind](tmp_path / "place", request))
        far, relay = stack.enter_context(_relayed(place, tmp_path / "relay.sock"))
        far.start("echo here >here; until [[ -e go ]]; do sleep 0.05; done")
        far.says("here")
        mark = f"{place.folder}/goes-on"
        cut = threading.Thread(target=lambda: _cut_once_there(relay, place, mark))
        begun = time.monotonic()
        cut.start()
        with pytest.raises(ConnectionBroken):
            far.run("bash", "-c", 'touch "$1"; sleep 50', "test", mark, timeout=60)
        assert time.monotonic() - begun < 30
        cut.join()
        assert str(far.look().state) == "running"
        place.executor.connection.put(f"{place.executor.run_dir(place.id())}/workspace/go", b"")
        assert str(far.ended().state) == "succeeded"


@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_container_that_ends_in_the_middle_of_a_call(
    fault: str, home: Path, docker: Docker, container_image: str
) -> None:
    """A call in a container that is ended does not hang, and its run is lost, not unknown, once it is looked at."""
    with made_container(docker, container_image) as target, in_container(target) as place:
        place.start("echo here >here; sleep 600")
        place.says("here")
        name = place.executor.place["id"]
        threading.Timer(1.0, lambda: docker(fault, name)).start()
        begun = time.monotonic()
        with suppress(ConnectionBroken):  # or the exit code of what was killed
            assert place.run("sleep", "50", timeout=60).exit_code == 137
        assert time.monotonic() - begun < 30
        until(lambda: not docker.inspect(name)["State"]["Running"])
        look = place.look()
        assert (str(look.state), look.reason) == ("lost", "machine_restarted")
