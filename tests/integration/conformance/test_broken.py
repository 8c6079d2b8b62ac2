"""A connection that breaks in the middle of a call: said as such, soon, and never taken for the command's end."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
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


@contextmanager
def _once_begun(place: Place, path: str, then: Callable[[], object]) -> Iterator[None]:
    """Do `then` as soon as the file `path` is there, beside what the block does."""

    def wait() -> None:
        until(lambda: place.bash("[[ ! -e $1 ]] || echo begun", path))
        then()

    beside = threading.Thread(target=wait)
    beside.start()
    try:
        yield
    finally:
        beside.join()


# A call that nothing but its connection's or its container's end could end within the hour.
HOUR = 3600.0
STAY = 'touch "$1"; sleep 3600'


@pytest.mark.parametrize("kind", ["container", "existing"])
def test_cut_in_the_middle_of_a_call(kind: str, home: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A call whose connection is cut raises `ConnectionBroken` at once; the next one works, and a run went on."""
    with ExitStack() as stack:
        place = stack.enter_context(PLACES[kind](tmp_path / "place", request))
        far, relay = stack.enter_context(_relayed(place, tmp_path / "relay.sock"))
        far.start("echo here >here; until [[ -e go ]]; do sleep 0.05; done")
        far.says("here")
        mark = f"{place.folder}/goes-on"
        with _once_begun(place, mark, relay.cut), pytest.raises(ConnectionBroken):
            far.run("bash", "-c", STAY, "test", mark, timeout=HOUR)
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
        mark = f"{place.folder}/goes-on"
        with _once_begun(place, mark, lambda: docker(fault, name)):
            with suppress(ConnectionBroken):  # or the exit code of what was killed
                assert place.run("bash", "-c", STAY, "test", mark, timeout=HOUR).exit_code == 137
        until(lambda: not docker.inspect(name)["State"]["Running"])
        look = place.look()
        assert (str(look.state), look.reason) == ("lost", "machine_restarted")
