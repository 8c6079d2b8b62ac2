"""What is missing for a container is named early, with the next step; what can't be removed is said, and stays."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from coding_agent.toolchain.pulumi.parts import Part, plugin_part
from containers import Docker
from fakes.scenarios import scenario
from user import User
from waiting import until


def _refused(user: User, *argv: str, **environment: Any) -> str:
    done = user.cli(*argv, code=3, **environment)
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert "next:" in said
    return said


def _box(user: User, **fields: object) -> None:
    box = {"name": "box", "type": "container", "image": "coding-agent-test/base:1", "network": "none"}
    user.executors({**box, **fields})


def test_no_container_engine(container_user: User, docker: Docker) -> None:
    """Where no dockerd answers, `up` and `preview` say so before anything is made, and how to go on."""
    user = container_user
    _box(user, docker_host=f"unix://{user.home}/no.sock")
    user.job(command="true", executor="box")
    for verb in ("up", "preview"):
        said = _refused(user, verb, "job")
        assert "no.sock does not answer: no such socket" in said
        assert "docker_host" in said
    assert docker.left(user.project) == []


def test_engine_that_refuses_the_user(container_user: User, docker: Docker, tmp_path: Path) -> None:
    """An engine that nobody listens behind any more is said to be gone, not to be broken."""
    import socket

    user, path = container_user, tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    _box(user, docker_host=f"unix://{path}")
    user.job(command="true", executor="box")
    assert "does not answer: nobody listens" in _refused(user, "up", "job")


def test_image_that_does_not_exist(container_user: User, docker: Docker) -> None:
    """An image that neither the engine nor its registry has is named, with the ways to get one; nothing is made."""
    user = container_user
    _box(user, image="127.0.0.1:1/no-such-image:1")
    user.job(command="true", executor="box")
    said = _refused(user, "up", "job")
    assert "there is no image 127.0.0.1:1/no-such-image:1 here, and it can't be pulled" in said
    assert "docker build" in said
    assert docker.left(user.project) == []


def test_image_without_bash(container_user: User, docker: Docker) -> None:
    """An image without bash is refused with everything that it lacks, and what to do about it."""
    user = container_user
    with docker.built("RUN rm /usr/bin/bash /usr/bin/flock") as image:
        _box(user, image=image)
        user.job(command="true", executor="box")
        for verb in ("preview", "up"):
            said = _refused(user, verb, "job")
            assert f"the image {image} lacks bash, flock, which every run needs" in said
            assert "apt-get install bash util-linux" in said
            assert "coding-agent image build" in said
        assert docker.left(user.project) == []


def test_image_that_no_claude_runs_in(container_user: User, docker: Docker) -> None:
    """An image with neither Claude Code nor a C library for it is refused for an agent, before anything is made."""
    user = container_user
    with docker.built("RUN rm -f /usr/lib64/ld-linux-x86-64.so.2 /usr/lib/ld-linux-aarch64.so.1") as image:
        _box(user, image=image)
        user.job(prompt=scenario("text"), executor="box")
        said = _refused(user, "up", "job")
        assert (
            f"the image {image} has neither Claude Code nor a C library for it (glibc or musl, x86-64 or ARM)" in said
        )
        assert "use an image of a usual Linux distribution" in said
        assert docker.left(user.project) == []


def test_image_without_git(container_user: User, docker: Docker) -> None:
    """An image without git is refused for a task with a repository."""
    user = container_user
    with docker.built("RUN mv /usr/bin/git /usr/bin/tig") as image:
        _box(user, image=image)
        user.job(prompt=scenario("text"), repo=".", executor="box")
        user.commit_all()
        assert "executor box lacks git" in _refused(user, "up", "job")


@pytest.mark.slow
def _mirror(folder: Path, part: Part, folder_of_plugin: Path) -> str:
    """Make a folder of archives that holds a plugin of this machine's, laid out as the official ones."""
    folder.mkdir()
    with tarfile.open(folder / part.archive, "w:gz", compresslevel=1) as packed:
        packed.add(folder_of_plugin / part.program, arcname=part.program)
    with (folder / part.archive).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  {part.archive}\n")
    return str(folder)


def test_plugin_that_is_missing(container_user: User, docker: Docker) -> None:
    """Without the engine's plugin every way to it is tried, and named with its reason; local tasks need none.

    So it is for `destroy`, of what was made where the plugin was.
    """
    user = container_user
    kept = user.home / ".pulumi" / "plugins"
    plugin = plugin_part("docker")
    mirror = _mirror(user.home / "mirror", plugin, kept.resolve() / plugin.folder.name)
    kept.unlink()
    nowhere: dict[str, Any] = {
        "CODING_AGENT_PULUMI_MIRROR": str(user.home / "no-mirror"),
        "https_proxy": "http://127.0.0.1:1",
        "GOPROXY": "off",
        "PIP_INDEX_URL": "http://127.0.0.1:1",
        "PIP_RETRIES": "0",
    }
    user.job(command="true", executor="box")

    def lacks(verb: str) -> None:
        said = _refused(user, verb, "job", **nowhere)
        assert "no plugin docker 5.1.0 for the engine" in said
        for way in ("PATH: ", "cache: ", "mirror: ", "download: ", "source: "):
            assert way in said
        assert "pulumi plugin install resource docker 5.1.0" in said

    lacks("up")
    user.job("here", command="true", executor="local")
    user.cli("up", "here", **nowhere)
    user.cli("destroy", "here")
    user.cli("up", "job", CODING_AGENT_PULUMI_MIRROR=mirror)
    shutil.rmtree(kept)
    lacks("destroy")
    assert docker.left(user.project) != []
    assert (
        f"unpacking {mirror}/{plugin.archive}" in user.cli("destroy", "job", CODING_AGENT_PULUMI_MIRROR=mirror).stdout
    )
    assert docker.left(user.project) == []


def test_existing_container_that_is_not_there(container_user: User, docker: Docker) -> None:
    """A container named in the executors file that is not there, or does not run, is said to be so."""
    user = container_user
    user.executors({"name": "theirs", "type": "container", "container": "no-such-container"})
    user.job(command="true", executor="theirs")
    assert "there is no container no-such-container" in _refused(user, "up", "job")
    with docker.running() as name:
        docker("stop", "-t", "0", name)
        user.executors({"name": "theirs", "type": "container", "container": name})
        assert f"the container {name} is exited, not running" in _refused(user, "up", "job")


def test_folder_to_mount_that_is_not_there(container_user: User) -> None:
    """A folder to mount that does not exist is named; the engine would have made an empty one of root's."""
    user = container_user
    _box(user, volumes=["./nowhere:/x"])
    user.job(command="true", executor="box")
    assert "nowhere to mount" in _refused(user, "up", "job")
    assert not (user.project / "nowhere").exists()


@pytest.mark.slow
def test_destroy_when_the_container_was_removed(container_user: User, docker: Docker) -> None:
    """A container that was removed by hand is no obstacle: what the agent had made is brought back, the rest goes."""
    user = container_user
    user.job(command="echo precious >kept; echo started; sleep 600", executor="box", limits={"grace": "1s"})
    user.cli("up", "job", "--detach")
    until(lambda: "started" in user.cli("logs", "job", code=None).stdout)
    docker("rm", "-f", *docker.of_project(user.project))
    user.cli("destroy", "job", "--yes")
    assert docker.left(user.project) == []
    outputs = user.outputs("job")
    assert outputs["status"] == "lost"
    assert "precious" in Path(outputs["patch"]).read_text()
    user.cli("destroy", "job", "--yes")


@pytest.mark.slow
def test_destroy_when_a_volume_is_in_use(container_user: User, docker: Docker) -> None:
    """A volume that somebody else's container uses keeps `destroy` from ending; it is said, and can be repeated."""
    user = container_user
    _box(user, volumes=["coding-agent-test-used:/used"])
    user.job(command="true", executor="box")
    user.cli("up", "job")
    with docker.running("-v", "coding-agent-test-used:/x"):
        done = user.cli("destroy", "job", code=3)
        assert "in_use" in done.stderr
        assert "next: remove the container that still uses the volume" in done.stderr
        assert docker.of_project(user.project, "volumes") == ["coding-agent-test-used"]
    user.cli("destroy", "job")
    assert docker.left(user.project) == []


@pytest.mark.slow
def test_destroy_when_the_engine_does_not_answer(container_user: User, docker: Docker, tmp_path: Path) -> None:
    """While the engine is down `destroy` says so, leaves everything as it is, and works once it is up again."""
    user, link = container_user, tmp_path / "docker.sock"
    link.symlink_to("/var/run/docker.sock")
    _box(user, docker_host=f"unix://{link}")
    user.job(command="echo started; sleep 600", executor="box", limits={"grace": "1s"})
    user.cli("up", "job", "--detach")
    link.unlink()
    said = _refused(user, "destroy", "job", "--yes")
    assert "does not answer" in said
    assert len(docker.left(user.project)) == 2
    status = user.outputs("job")
    assert (status["status"], status["reason"]) == ("unresponsive", "no_connection")
    link.symlink_to("/var/run/docker.sock")
    assert user.outputs("job")["status"] == "running"
    user.cli("destroy", "job", "--yes")
    assert docker.left(user.project) == []


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["up", "status"])
def test_paused_container(container_user: User, docker: Docker, verb: str) -> None:
    """A run whose container is paused is unresponsive, not lost; it goes on with it, and can be destroyed."""
    user = container_user
    user.job(command="echo started; sleep 600", executor="box", limits={"grace": "1s"})
    user.cli("up", "job", "--detach")
    (container,) = docker.of_project(user.project)
    docker("pause", container)
    outputs = user.outputs("job")
    assert (outputs["status"], outputs["reason"]) == ("unresponsive", "no_connection")
    assert "is paused" in outputs["detail"]
    if verb == "status":
        docker("unpause", container)
        assert user.outputs("job")["status"] == "running"
    user.cli("destroy", "job", "--yes")
    assert docker.left(user.project) == []


def test_doctor(container_user: User, tmp_path: Path) -> None:
    """`doctor` says of each container executor whether its engine answers and has its image, and of the plugin."""
    user = container_user
    dead = f"unix://{tmp_path}/no.sock"
    box = {"name": "box", "type": "container", "image": "coding-agent-test/base:1"}
    user.executors(
        box,
        {**box, "name": "dead", "docker_host": dead},
        {**box, "name": "bare", "image": "127.0.0.1:1/nowhere:1"},
    )
    found = {each["name"]: each for each in json.loads(user.cli("doctor", "--json", code=None).stdout)["findings"]}
    assert found["executor box"]["state"] == "ok"
    assert found["executor dead"]["state"] == "missing"
    assert "does not answer" in found["executor dead"]["found"]
    assert found["executor bare"]["state"] == "warning"
    assert "without the image" in found["executor bare"]["found"]
    assert found["docker plugin"]["state"] == "ok"
