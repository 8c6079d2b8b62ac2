"""The engine's plugins live no longer than the engine, however that ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from coding_agent.toolchain.pulumi import plugins
from machines.relay import relay
from machines.ssh_host import SshHost
from old_stack import STACK, OldStack
from user import User
from waiting import until

NAMES = ("command", "hcloud", "docker")
DECLARED = ("command:local:Command", "docker:index:Volume", "hcloud:index:SshKey")  # as the engine shows them
STEP = """
import pulumi_command.remote as remote

connection = remote.ConnectionArgs(
    host={host!r}, port={port}, user="plain", private_key=open({key!r}).read(), host_key={host_key!r}
)
remote.Command("step", connection=connection, create="touch /tmp/{mark}; exec sleep 600")
"""
_MODULE = b"coding-agent-toolchain/pulumi-resource-"  # in every program that Go makes of the project's module
PROGRAM = """
import asyncio

import pulumi
import pulumi_command
import pulumi_docker
import pulumi_hcloud

pulumi_command.local.Command("command", create="true")
pulumi_docker.Volume("volume")
pulumi_hcloud.SshKey("key", public_key="ssh-ed25519 AAAA")
pulumi.export("held", asyncio.sleep(600))
"""


@pytest.mark.usefixtures("docker")
def test_no_plugin_outlives_a_killed_engine(
    user: User,
    command_plugin: Path,
    hcloud_plugin: Path,
    docker_plugin: Path,
    processes_with: Callable[[str], list[int]],
) -> None:
    """After kill -9 of the engine none of the plugins that are built here stays; the official ones do, for minutes."""
    assert command_plugin == hcloud_plugin == docker_plugin
    ours = [name for name in NAMES if _is_ours(docker_plugin, name)]
    if not ours:
        pytest.skip("the plugins are the official ones")
    stack = OldStack.of(user)
    stack.use(docker_plugin)
    stack.program(PROGRAM)
    folder = user.home / ".pulumi" / "plugins"
    with stack.start("preview", "--stack", STACK) as engine:
        try:
            assert engine.stdout is not None
            waiting = set(DECLARED)
            while waiting:  # a plugin that has answered is up
                line = engine.stdout.readline()
                assert line, f"the engine ended before {waiting}"
                waiting -= {kind for kind in waiting if kind in line}
            assert all(processes_with(f"{folder}/resource-{name}-") for name in ours)
        finally:
            engine.kill()

    until(lambda: not any(processes_with(f"{folder}/resource-{name}-") for name in ours))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_host_that_falls_silent_ends_a_step(user: User, ssh_host: SshHost, command_plugin: Path) -> None:
    """A step on a host that stops to answer ends by itself, with the reason: the official plugin waits for ever."""
    if not _is_ours(command_plugin, "command"):
        pytest.skip("the plugin is the official one")
    stack = OldStack.of(user)
    stack.use(command_plugin)
    with relay(ssh_host.address) as way:
        host, port = way.address
        stack.program(
            STEP.format(host=host, port=port, key=str(ssh_host.key), host_key=ssh_host.host_key(), mark=f"began-{port}")
        )
        with stack.start("up", "--stack", STACK, "--yes", "--skip-preview") as engine:
            try:
                until(lambda: f"began-{port}" in ssh_host.run("ls", "/tmp"))
                way.freeze()
                shown, _ = engine.communicate(timeout=300)
            finally:
                engine.kill()

    assert engine.returncode != 0
    assert "the host has not answered for 45s" in shown
    assert 'running "touch /tmp/began' in shown


def _is_ours(folder: Path, name: str) -> bool:
    program = folder / f"resource-{name}-v{plugins.version(name)}" / f"pulumi-resource-{name}"
    return _MODULE in program.read_bytes()
