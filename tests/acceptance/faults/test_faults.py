"""Every row of the table of faults: whatever breaks, one agent at most, a right end, the work kept, nothing left."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.faults.scene import SMALL, Host, Scene, small_disk
from acceptance.faults.table import TABLE, Row
from containers import Docker
from fakes.hetzner_api import HetznerApi
from machines import ssh_host as ssh_hosts
from machines.dockerd import Dockerd, dockerd
from machines.relay import relay
from machines.ssh_host import SshHost
from renter import make_renter
from testbed.needs import MOUNTS, requires
from user import User
from waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    """Run a container engine that these tests may stop."""
    with dockerd(tmp_path_factory.mktemp("engine") / "docker") as engine:
        yield engine


@pytest.fixture(scope="module")
def claude_there(ssh_host: SshHost, claude_program: Path) -> str:
    """Return Claude Code's program on the host that these tests share."""
    return ssh_host.put_program(claude_program)


@contextlib.contextmanager
def _host(row: Row, user: User, request: pytest.FixtureRequest) -> Iterator[Host]:
    (user.home / ".pulumi" / "plugins").symlink_to(request.getfixturevalue("command_plugin"))
    with contextlib.ExitStack() as after:
        if row.fault == "remove host":
            docker: Docker = request.getfixturevalue("docker")
            host = after.enter_context(ssh_hosts.ssh_host(docker, user.home))
            program = host.put_program(request.getfixturevalue("claude_program"))
        else:
            host, program = request.getfixturevalue("ssh_host"), request.getfixturevalue("claude_there")
        folder = ssh_hosts.SMALL if row.fault == "disk full there" else host.home("plain")
        there = Host(host, after.enter_context(relay(host.address)), f"{folder}/{secrets.token_hex(6)}", program)
        yield there
        if row.fault != "remove host":
            host.run("bash", "-c", 'pkill -KILL -u plain; rm -rf -- "$1" || :', "end", there.root)


@contextlib.contextmanager
def _scene(row: Row, user: User, request: pytest.FixtureRequest) -> Iterator[Scene]:
    with contextlib.ExitStack() as after:
        engine: Dockerd | None = None
        there: Host | None = None
        if row.executor == "ssh":
            there = after.enter_context(_host(row, user, request))
        cloud: HetznerApi | None = None
        if row.executor == "hetzner":
            cloud = request.getfixturevalue("hetzner_api")
            make_renter(user, cloud, request.getfixturevalue("server_plugins"))
        if row.executor == "container":
            request.getfixturevalue("container_user")
            engine = request.getfixturevalue("engine")
        if row.fault == "disk full here":
            after.enter_context(small_disk(user.record_dir("x").parent, SMALL[row.fault]))
        if row.fault == "disk full there":
            if engine is not None:
                # A volume of its own disk: only dockerd can make one, so all of its volumes are there.
                engine = after.enter_context(_dockerd_on_small_disk(user, SMALL[row.fault]))
            elif there is None:
                after.enter_context(small_disk(user.home / ".coding-agent", SMALL[row.fault]))
        yield Scene(row, user, engine, there, cloud)


@contextlib.contextmanager
def _dockerd_on_small_disk(user: User, size: int) -> Iterator[Dockerd]:
    folder = user.home.parent / "small" / "docker"
    data = folder / "data"
    data.mkdir(parents=True)
    requires(MOUNTS)
    # Otherwise dockerd mounts the folder over itself, and hides what is mounted in it.
    for options in (("--bind", str(data), str(data)), ("--make-shared", str(data))):
        subprocess.run(["mount", *options], check=True, timeout=30)
    with small_disk(folder / "data" / "volumes", size), dockerd(folder) as engine:
        yield engine


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_fault(row: Row, user: User, request: pytest.FixtureRequest) -> None:
    """A run to which this happens comes to a right end with its work kept, was begun once, and leaves nothing."""
    with _scene(row, user, request) as scene:
        scene.set_up()
        before = scene.listing()
        scene.begin()
        scene.break_it()
        scene.go_on()

        if row.moment != "destroy":
            outputs = scene.final()
            assert outputs["status"] in row.status, outputs
        assert len(user.api.sessions()) <= row.agents
        if row.kept:
            assert user.git("show", "coding-agent/job:note.txt") == "the second line\n"
        scene.destroy()

        with contextlib.suppress(AssertionError):
            until(lambda: not scene.left(before), limit=30)
        assert scene.last_left == []


def test_table_names_each_moment_and_fault_that_it_explains() -> None:
    """What the table explains it uses, and what it uses it explains."""
    from acceptance.faults import table

    assert {row.fault for row in TABLE} == set(table.FAULTS)
    assert {row.moment for row in TABLE} == set(table.MOMENTS)
    assert len({row.id for row in TABLE}) == len(TABLE)
    assert Path(__file__).with_name("listing.sh").stat().st_mode & 0o100
