"""A kill -9 at any moment while a server is made: afterwards there is one, or none, as was asked for."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from fakes.hetzner_api import HetznerApi
from fakes.messages_api import MessagesApi
from machines.cloud_server import CloudServers
from processes import kill_engines
from renter import HELD, let_go, make_renter
from user import User, make_home, make_user

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# In parts of the time that an `up` takes here until the command on the server runs.
MOMENTS = (0.15, 0.25, 0.35, 0.5, 0.7, 0.95)
LIMIT = 120.0  # seconds


@pytest.fixture(scope="module")
def lasting(
    tmp_path_factory: pytest.TempPathFactory,
    claude_program: Path,
    engine_folder: Path,
    server_plugins: Path,
    cloud_servers: CloudServers,
) -> float:
    """Return how many seconds an undisturbed `up --detach` takes."""
    folder = tmp_path_factory.mktemp("lasting")
    with pytest.MonkeyPatch.context() as patch, MessagesApi() as model, HetznerApi(cloud_servers) as cloud:
        home = make_home(folder / "home", patch)
        user = make_user(home, folder / "project", model, claude_program, engine_folder)
        make_renter(user, cloud, server_plugins)
        user.job(command="true", executor="cloud")
        begun = time.monotonic()
        user.cli("up", "job", "--detach")
        return time.monotonic() - begun


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_a_server_is_made(
    user: User, hetzner_api: HetznerApi, server_plugins: Path, lasting: float, moment: float
) -> None:
    """After a kill -9 of every `pulumi` (at each other moment of `coding-agent` too) while a server is made, `up` ends
    with one server and one run, and `destroy` with none."""
    make_renter(user, hetzner_api, server_plugins)
    user.job(command=f"echo begun >>~/begun; {HELD}", executor="cloud")
    number = MOMENTS.index(moment)
    with user.start("up", "job", "--detach") as process:
        try:
            process.wait(timeout=moment * lasting)
        except subprocess.TimeoutExpired:
            if number % 2:
                process.send_signal(signal.SIGKILL)
            kill_engines(user.home)
        process.wait(timeout=LIMIT)
    if number % 5 == 4:
        user.cli("destroy", "job", code=None)
        assert hetzner_api.listed() == []

    again = user.cli("up", "job", "--detach")

    assert "Traceback" not in again.stdout + again.stderr
    (server,) = hetzner_api.servers()
    machine = hetzner_api.machine(server["name"])
    let_go(machine)
    assert machine.run(["cat", "/home/agent/begun"])[1] == "begun\n"
    user.cli("up", "job")
    assert hetzner_api.listed() == []
    user.cli("destroy", "job")
