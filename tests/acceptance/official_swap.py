"""The official plugins and those built here take over each other's stacks, for real.

No suite collects this file: it downloads the official plugins and builds ours. By hand, and in the project's workflow:
`pytest tests/acceptance/official_swap.py`. Where the official plugins are unpacked already, as in
`$PULUMI_HOME/plugins`, $CODING_AGENT_TEST_OFFICIAL names that folder.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from coding_agent.toolchain.pulumi import parts, plugins
from containers import Docker
from fakes.hetzner_api import HetznerApi
from machines.ssh_host import SshHost
from old_stack import CONTAINER, HETZNER, STACK, OldStack
from renter import new_key
from user import User

NAMES = ("command", "hcloud", "docker")
OFFICIAL, OURS = "official", "ours"
LIMIT = 30 * 60.0  # seconds for a download or a build
pytestmark = [pytest.mark.timeout(3 * LIMIT), pytest.mark.parametrize("first", [OFFICIAL, OURS])]

LOCAL = """
import pulumi_command as command

command.local.Command("step", create="echo made", delete="echo gone", environment={"A": "b"}, triggers=["one", 2])
"""
REMOTE = """
import pulumi
import pulumi_command.remote as remote

connection = remote.ConnectionArgs(
    host={host!r}, user="plain", private_key=open({key!r}).read(), host_key={host_key!r}
)
step = remote.Command(
    "step", connection=connection, create="cat >made", delete="rm made", stdin="a text", logging=remote.Logging.STDERR
)
remote.CopyToRemote(
    "copy",
    connection=connection,
    source=pulumi.StringAsset("copied"),
    remote_path="/home/plain/copied",
    triggers=[step.id],
)
"""


@pytest.fixture(scope="session")
def sets(engine_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Return the folder of the official plugins and that of ours."""
    return {
        OFFICIAL: _downloaded(engine_folder / "pulumi", tmp_path_factory.mktemp("official")),
        OURS: _built(tmp_path_factory.mktemp("ours")),
    }


def _downloaded(engine: Path, home: Path) -> Path:
    if folder := os.environ.get("CODING_AGENT_TEST_OFFICIAL"):
        return Path(folder)
    for name in NAMES:
        argv = [str(engine), "plugin", "install", "resource", name, plugins.version(name), "--non-interactive"]
        subprocess.run(argv, env={**os.environ, "PULUMI_HOME": str(home)}, check=True, timeout=LIMIT)
    return home / "plugins"


def _built(folder: Path) -> Path:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    for name in NAMES:
        target = folder / f"resource-{name}-v{plugins.version(name)}"
        target.mkdir()
        argv = ["go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", f"{target}/"]
        subprocess.run(
            [*argv, f"./pulumi-resource-{name}"], cwd=parts.MODULE, env=environment, check=True, timeout=LIMIT
        )
    return folder


def _change_hands(stack: OldStack, sets: Mapping[str, Path], first: str) -> None:
    """Let one set of plugins make what the program says, and the other go on with it and remove it."""
    stack.use(sets[first])
    stack.pulumi("up", "--stack", STACK, "--yes", "--skip-preview")
    # What others do to a resource after its making, such as a server to its firewall, is no change of hands.
    stack.pulumi("refresh", "--stack", STACK, "--yes", "--skip-preview")
    stack.use(sets[OURS if first == OFFICIAL else OFFICIAL])
    stack.goes_on()
    stack.destroy()


def test_servers(user: User, hetzner_api: HetznerApi, sets: Mapping[str, Path], first: str) -> None:
    """A key, a firewall and a server change hands, and are removed."""
    user.environment.update(HCLOUD_TOKEN=hetzner_api.token, HCLOUD_ENDPOINT=hetzner_api.endpoint)
    stack = OldStack.of(user)
    new_key(user.project / "key")
    stack.program(HETZNER.format(server_type="cx23"))

    _change_hands(stack, sets, first)

    assert hetzner_api.listed() == []


def test_containers(user: User, docker: Docker, container_image: str, sets: Mapping[str, Path], first: str) -> None:
    """A volume, a network and a container change hands, and are removed."""
    name = f"coding-agent-test-{secrets.token_hex(6)}"
    stack = OldStack.of(user)
    stack.program(CONTAINER.format(name=name, image=container_image))

    _change_hands(stack, sets, first)

    for kind in ("container", "volume", "network"):
        docker(kind, "inspect", name, succeeds=False)


def test_commands(user: User, sets: Mapping[str, Path], first: str) -> None:
    """A command on this machine changes hands, and ends."""
    stack = OldStack.of(user)
    stack.program(LOCAL)

    _change_hands(stack, sets, first)


def test_commands_on_hosts(user: User, ssh_host: SshHost, sets: Mapping[str, Path], first: str) -> None:
    """A command on a host and a copy change hands; the command for the end runs."""
    stack = OldStack.of(user)
    stack.program(REMOTE.format(host=ssh_host.address, key=str(ssh_host.key), host_key=ssh_host.host_key()))

    _change_hands(stack, sets, first)

    assert ssh_host.run("ls", "/home/plain").split() == ["copied"]
    ssh_host.run("rm", "/home/plain/copied")
