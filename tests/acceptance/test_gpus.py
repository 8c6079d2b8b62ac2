"""GPUs for a container: what the engine is asked for. This machine has none, so the engine's hook is a stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from containers import BASE
from machines.dockerd import dockerd
from user import User

pytestmark = [pytest.mark.slow]


@pytest.mark.parametrize(("gpus", "count"), [("all", -1), (2, 2)])
def test_gpus_are_asked_for(container_user: User, tmp_path: Path, gpus: str | int, count: int) -> None:
    """An executor's `gpus` become the container's device request: all of them, or so many."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "nvidia-container-runtime-hook").write_text("#!/bin/sh\nexit 0\n")
    (programs / "nvidia-container-runtime-hook").chmod(0o755)
    with dockerd(tmp_path / "docker", programs=programs) as engine:
        box = {"name": "box", "type": "container", "image": BASE, "network": "none", "docker_host": engine.url}
        container_user.executors({**box, "gpus": gpus})
        container_user.job(command="true", executor="box")
        container_user.cli("up", "job")
        (container,) = engine.docker.of_project(container_user.project)
        (request,) = engine.docker.inspect(container)["HostConfig"]["DeviceRequests"]
        assert (request["Count"], request["Capabilities"]) == (count, [["gpu"]])
        container_user.cli("destroy", "job")
