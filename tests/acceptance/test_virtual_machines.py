"""A server with a kernel of its own, which cloud-init finds to be Hetzner's: what a container can't show."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.hetzner_api import HetznerApi
from fakes.scenarios import scenario
from machines.machine import Machine
from processes import processes_with_text
from renter import make_renter, rent
from user import User
from waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

BOOT = 1200.0  # seconds: without hardware support, and beside other tests


def test_agent_on_a_virtual_machine(user: User, hetzner_api_on_vms: HetznerApi, server_plugins: Path) -> None:
    """From `up` to its commits in the repository an agent works on a machine that boots: what comes of the user data by
    Hetzner's own source of it, the metadata closed to the agent, and the cgroup that holds its limits are
    real ones; then nothing of the machine is left."""
    make_renter(user, hetzner_api_on_vms, server_plugins, boot_limit="20m", keep=True)
    user.job(prompt=scenario("edit"), repo=".", executor="cloud", limits={"memory": "600MB"})
    user.commit_all()

    with user.start("up", "job", "--detach") as process:
        said = process.communicate(timeout=BOOT)[0]
        assert process.returncode == 0, said
    (server,) = hetzner_api_on_vms.servers()
    machine = hetzner_api_on_vms.machine(server["name"])
    shown = user.cli("up", "job").stdout

    assert user.outputs("job")["status"] == "succeeded", shown
    assert user.git("show", "coding-agent/job:note.txt") == "the second line\n"
    assert machine.run(["cloud-id"])[1].strip() == "hetzner"
    assert not [each for each in user.outputs("job")["notices"] if "memory" in each]
    ask = "timeout 5 bash -c 'exec 3<>/dev/tcp/169.254.169.254/80'"
    assert machine.run(["bash", "-c", ask])[0] == 0
    assert machine.run(["runuser", "-u", "agent", "--", "bash", "-c", ask])[0] != 0
    machine.reboot()
    until(lambda: _up(machine), limit=BOOT)
    assert machine.run(["runuser", "-u", "agent", "--", "bash", "-c", ask])[0] != 0
    rent(user, boot_limit="20m")
    user.cli("up", "job")
    assert hetzner_api_on_vms.listed() == []
    assert processes_with_text(str(server["id"])) == []
    user.cli("destroy", "job")


def _up(machine: Machine) -> bool:
    try:
        return machine.run(["systemctl", "is-active", "ssh"])[0] == 0
    except OSError:
        return False
