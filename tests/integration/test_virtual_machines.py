"""Servers of the fake cloud as virtual machines, asked for with Hetzner's own library as anybody's program would."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hcloud import Client
from hcloud.firewalls.domain import FirewallRule
from hcloud.images import Image
from hcloud.server_types import ServerType

from fakes.hetzner_api import HetznerApi
from fakes.messages_api import MessagesApi
from machines.loopback import claim
from machines.machine import SSH_PORT
from machines.qemu_server import QemuServers
from processes import processes_with_text
from renter import new_key
from waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

BOOT = 1200.0  # seconds: without hardware support, and beside other tests
_SILENCE = 8.0  # seconds without a greeting; where one is awaited, it is asked for again
_USER_DATA = """\
#cloud-config
write_files: [{path: /etc/of-the-user-data, content: written}]
runcmd: [[sh, -c, "id -un >/root/ran"]]
"""
# Makes a server that runs, says its address, and is then killed.
_KILLED = """\
import signal, sys
from machines.machine import ServerSpec
from machines.qemu_server import QemuServers
machine = QemuServers().create(ServerSpec(id=1, name="killed", user_data="", public_keys=(), image="debian-12"))
machine.power_on()
print(machine.address, machine._folder.parent, flush=True)
signal.pause()
"""


def test_life_of_a_virtual_machine(
    hetzner_api_on_vms: HetznerApi, messages_api: MessagesApi, home: Path, tmp_path: Path
) -> None:
    """A server ordered with hcloud-python boots as one of Hetzner's, takes its user data, lets in who has its key from
    where its firewall says, reaches a model, survives a reboot, and leaves nothing when it is deleted."""
    api, key, before = hetzner_api_on_vms, tmp_path / "key", _namespaces()
    new_key(key)
    api.ports = (port,) = (int(messages_api.url.rpartition(":")[2]),)
    cloud = Client(token=api.token, api_endpoint=api.endpoint, poll_interval=0.2)
    uploaded = cloud.ssh_keys.create(name="key", public_key=key.with_suffix(".pub").read_text().strip())
    firewall = cloud.firewalls.create(name="wall", rules=_from("127.0.0.0/8")).firewall

    made = cloud.servers.create(
        name="virtual",
        server_type=ServerType(name="cx22"),
        image=Image(name="debian-12"),
        ssh_keys=[uploaded],
        firewalls=[firewall],
        user_data=_USER_DATA,
    )
    for action in (made.action, *made.next_actions):
        action.wait_until_finished()
    (shown,), machine = api.servers(), api.machine("virtual")
    number, address = shown["id"], machine.address
    assert shown["public_net"]["ipv4"]["ip"] == address
    machine.ready(BOOT)

    assert _logged_in(key, address, "cloud-id").stdout == "hetzner\n", machine.console()
    assert _logged_in(key, address, "cat", "/etc/of-the-user-data", "/root/ran").stdout == "writtenroot\n"
    asked = "curl -sf http://169.254.169.254/hetzner/v1/metadata/instance-id"
    assert _logged_in(key, address, asked).stdout == str(number)
    model = f"curl -s -o /dev/null -w '%{{http_code}}' http://127.0.0.1:{port}/nothing"
    assert _logged_in(key, address, model).stdout == "404"
    needed = ["bash", "git", "ip", "timeout", "ps", "apt-get", "systemd-run", "loginctl", "cloud-init", "dbus-daemon"]
    assert machine.run(["sh", "-c", 'command -v "$@" >/dev/null || exit 1', "sh", *needed]) == (0, "")
    limited = "systemd-run --user --scope -q -p MemoryMax=50M true"
    # A user's manager is there once he is let stay.
    assert _logged_in(key, address, f"XDG_RUNTIME_DIR=/run/user/0 {limited}").returncode == 0

    for action in firewall.set_rules(_from("192.0.2.0/24")):
        action.wait_until_finished()
    assert not _greets(address)
    for action in firewall.set_rules(_from("0.0.0.0/0")):
        action.wait_until_finished()
    until(lambda: _greets(address), limit=BOOT)

    boot = "cat /proc/sys/kernel/random/boot_id"
    first = _logged_in(key, address, boot).stdout
    made.server.reboot().wait_until_finished()
    machine.ready(BOOT)
    until(lambda: _greets(address), limit=BOOT)
    assert _logged_in(key, address, boot).stdout not in ("", first)
    made.server.power_off().wait_until_finished()
    assert cloud.servers.get_by_id(number).status == "off"

    identity, folders = f"serial={number}", list(Path("/tmp").glob(f"virtual-machines-*/{number}"))
    made.server.power_on().wait_until_finished()
    assert processes_with_text(identity)
    assert folders
    made.server.delete().wait_until_finished()
    firewall.delete()
    uploaded.delete()
    assert processes_with_text(identity) == []
    assert not any(folder.exists() for folder in folders)
    until(lambda: _namespaces() == before)
    given_back = claim(address)
    assert given_back is not None
    given_back.release()


def test_killed_while_a_virtual_machine_runs(virtual_machines: QemuServers) -> None:
    """A test that is killed with SIGKILL leaves no virtual machine, no file and no address taken."""
    assert virtual_machines  # its disk is made, and QEMU is there
    tests = str(Path(__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": tests}
    ) as process:
        assert process.stdout is not None
        address, folder = process.stdout.readline().split()
        running = processes_with_text(folder)
        process.send_signal(signal.SIGKILL)
    assert len(running) == 2  # the machine, and what watches over it
    until(lambda: not processes_with_text(folder) and not Path(folder).exists())
    given_back = claim(address)
    assert given_back is not None
    given_back.release()


def _logged_in(key: Path, address: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command there as root. Whose host key it is, is not what these tests are about."""
    options = ("BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
    flags = [part for option in options for part in ("-o", option)]
    return subprocess.run(
        ["ssh", "-F", "none", "-q", "-i", str(key), *flags, f"root@{address}", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _from(network: str) -> list[FirewallRule]:
    return [FirewallRule(direction="in", protocol="tcp", port=str(SSH_PORT), source_ips=[network])]


def _greets(address: str) -> bool:
    """Whether an sshd says what it is to who connects."""
    try:
        with socket.create_connection((address, SSH_PORT), _SILENCE) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _namespaces() -> set[str]:
    """Return the network namespaces that this process holds open."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return {name for name in map(_target, links) if name.startswith("net:")}


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""  # closed meanwhile
