"""The engine's plugins live no longer than the engine, however that ends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from coding_agent.toolchain.pulumi import plugins
from user import User
from waiting import until

NAMES = ("command", "hcloud", "docker")
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
    ours = [name for name in NAMES if _MODULE in _program(docker_plugin, name).read_bytes()]
    if not ours:
        pytest.skip("the plugins are the official ones")
    folder = user.home / ".pulumi" / "plugins"
    folder.symlink_to(docker_plugin)
    backend = user.home / "backend"
    backend.mkdir()
    for file in user.project.iterdir():
        if file.is_file():
            file.unlink()
    (user.project / "Pulumi.yaml").write_text("name: held\nruntime: python\n")
    (user.project / "__main__.py").write_text(PROGRAM)
    environment = {
        **{"PULUMI_BACKEND_URL": f"file://{backend}", "PULUMI_CONFIG_PASSPHRASE": ""},
        **user.environment,
    }
    user.run("pulumi", "stack", "init", "one", "--non-interactive", code=0, **environment)
    engine = subprocess.Popen(
        ["pulumi", "preview", "--stack", "one", "--non-interactive"],
        cwd=user.project,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for name in ours:
            until(partial(processes_with, f"{folder}/resource-{name}-"))
    finally:
        engine.kill()
        engine.wait(60)

    until(lambda: not any(processes_with(f"{folder}/resource-{name}-") for name in NAMES))


def _program(folder: Path, name: str) -> Path:
    return folder / f"resource-{name}-v{plugins.version(name)}" / f"pulumi-resource-{name}"
