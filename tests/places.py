"""Places to run, one of each type of executor: what passes here is an executor. A new type is one more entry."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from coding_agent import executors
from coding_agent.executors import cloud_init
from coding_agent.executors.base import Executor, Launch, Look
from coding_agent.settings import ExecutorSpec
from containers import Docker
from machines.ssh_host import SshHost
from renter import RentedServer
from waiting import until

FOLDER = "/tmp/files"
SHORT = {"first_event": 30, "idle": 60, "linger": 1, "grace": 1, "timeout": 120, "tick": 0.02, "heartbeat": 1}


@dataclass
class Place:
    """An executor, and a folder there for files."""

    executor: Executor
    folder: str
    owner: str  # "uid gid" of what the agent makes
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def id(self, which: str = "") -> str:
        """Return the id of a run of this test's."""
        return which + self.token

    def run(self, *argv: str, **options: Any) -> Any:
        """Run a command there."""
        return self.executor.connection.run(list(argv), **{"timeout": 60.0, **options})

    def bash(self, script: str, *argv: str) -> str:
        """Run a script there and return what it prints."""
        done = self.run("bash", "-c", script, "test", *argv)
        assert done.exit_code == 0, done
        return str(done.stdout.decode().strip())

    def launch(self, script: str, which: str = "", secret: Mapping[str, str] | None = None) -> Launch:
        """Return what starts a command."""
        run_id = self.id(which)
        params = {"name": "job", "kind": "command", **{name: str(value) for name, value in SHORT.items()}}
        return Launch(
            run_id=run_id,
            params=params,
            argv=("bash", f"{self.executor.run_dir(run_id)}/command.sh"),
            environment={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": self.folder},
            secrets=secret or {},
            files={"command.sh": (script.encode(), 0o600)},
        )

    def start(self, script: str, which: str = "", **options: Any) -> str:
        """Start a command as a run; return its id."""
        return self.executor.start(self.launch(script, which, **options))

    def look(self, which: str = "") -> Look:
        """Look at a run."""
        return self.executor.status(self.id(which))

    def ended(self, which: str = "") -> Look:
        """Wait for a run's end."""
        return until(lambda: (look := self.look(which)).state is not None and look.state.final and look)

    def says(self, name: str, which: str = "") -> str:
        """Return what a file in a run's workspace holds, once it holds something."""
        path = f"{self.executor.run_dir(self.id(which))}/workspace/{name}"
        return until(lambda: (self.executor.connection.get(path, limit=10_000) or b"").decode().strip())


@contextlib.contextmanager
def _local(tmp_path: Path, _request: pytest.FixtureRequest) -> Iterator[Place]:
    scratch = tmp_path / "files"
    scratch.mkdir(parents=True)
    spec = ExecutorSpec("here", "local", options={"root_dir": str(tmp_path / "target")})
    place = Place(executors.connect(spec), str(scratch), f"{os.getuid()} {os.getgid()}")
    yield place
    for folder in (tmp_path / "target").glob("runs/*"):
        place.executor.cleanup(folder.name, grace=1)


@contextlib.contextmanager
def made_container(docker: Docker, image: str) -> Iterator[Mapping[str, Any]]:
    """Make a container as `container_target` declares it; the acceptance tests look at what it declares."""
    from coding_agent.executors import container

    name = f"test-{secrets.token_hex(6)}"
    spec = ExecutorSpec("box", "container", options={"image": image})
    labels = [f"--label={container.RUN}={name}", f"--label={container.PIDS}=128"]
    docker("volume", "create", name)
    docker(
        *("create", "--name", name, "--init", "--user", "0:0", "--cap-drop", "ALL", "--network", "none"),
        *("--security-opt", "no-new-privileges", "-v", f"{name}:{container.ROOT}", *labels),
        *("--entrypoint", "bash", image, "-c", container.main(spec)),
    )
    try:
        target = {"id": docker.inspect(name)["Id"], "volume": name, "image": image, "root": container.ROOT}
        yield {**target, "user": "10001:10001", "run": name}
    finally:
        docker("rm", "-f", "-v", name)
        docker("volume", "rm", name)


@contextlib.contextmanager
def in_container(target: Mapping[str, Any]) -> Iterator[Place]:
    """Give a folder of its own in a container that was made for runs."""
    spec = ExecutorSpec("box", "container", options={"image": target["image"]})
    with _in_container(executors.connect(spec, target)) as place:
        yield place


@contextlib.contextmanager
def existing_container(docker: Docker, image: str) -> Iterator[Mapping[str, Any]]:
    """Run a container that is none of ours."""
    with docker.running(image=image) as name:
        yield {"name": name, "id": docker.inspect(name)["Id"], "user": "10001:10001"}


@contextlib.contextmanager
def in_existing_container(target: Mapping[str, Any]) -> Iterator[Place]:
    """Give a folder of its own in a container that exists already."""
    spec = ExecutorSpec("theirs", "container", options={"container": target["name"], "user": target["user"]})
    with _in_container(executors.connect(spec, {name: target[name] for name in ("id", "user")})) as place:
        yield place


@contextlib.contextmanager
def _in_container(executor: Executor) -> Iterator[Place]:
    place = Place(executor, f"{FOLDER}-{secrets.token_hex(6)}", "10001 10001")
    try:
        place.bash('mkdir "$1"', place.folder)
        yield place
        for run_id in place.bash('ls -A "$1/runs" 2>/dev/null || :', executor.root).split():
            executor.cleanup(run_id, grace=1)
        place.bash('rm -rf -- "$1"', place.folder)
    finally:
        executor.close()


@contextlib.contextmanager
def _container(_tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    with in_container(request.getfixturevalue("made_container")) as place:
        yield place


@contextlib.contextmanager
def _existing(_tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    with in_existing_container(request.getfixturevalue("existing_container")) as place:
        yield place


@contextlib.contextmanager
def _ssh(_tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    host: SshHost = request.getfixturevalue("ssh_host")
    here = f"{host.home('plain')}/{secrets.token_hex(6)}"
    owner = host.run(
        "bash", "-c", 'mkdir -p "$1/files" && echo "$(id -u) $(id -g)"', "make", here, user="plain"
    ).strip()
    place = Place(executors.connect(host.spec(root_dir=f"{here}/runs")), f"{here}/files", owner)
    try:
        yield place
        for run_id in place.bash('ls -A "$1/runs" 2>/dev/null || :', place.executor.root).split():
            place.executor.cleanup(run_id, grace=1)
    finally:
        place.executor.close()
        host.run("rm", "-rf", here)


@contextlib.contextmanager
def _hetzner(_tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """Give a folder on a server as `hetzner_target` orders it; the acceptance tests look at what it declares."""
    server: RentedServer = request.getfixturevalue("rented_server")
    spec = ExecutorSpec("cloud", "hetzner", options={"key_path": str(server.key)})
    here = f"/home/{cloud_init.USER}/{secrets.token_hex(6)}"
    place = Place(executors.connect(spec, {**server.place, "root": f"{here}/runs"}), f"{here}/files", server.owner)
    try:
        place.bash('mkdir -p -- "$1" "$2"', place.folder, place.executor.root)
        yield place
        for run_id in place.bash('ls -A "$1/runs" 2>/dev/null || :', place.executor.root).split():
            place.executor.cleanup(run_id, grace=1)
        place.bash('rm -rf -- "$1"', here)
    finally:
        place.executor.close()


PLACES: dict[str, Callable[[Path, pytest.FixtureRequest], contextlib.AbstractContextManager[Place]]] = {
    "local": _local,
    "container": _container,
    "existing": _existing,
    "ssh": _ssh,
    "hetzner": _hetzner,
}
