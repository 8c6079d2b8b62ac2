"""`coding-agent image build`: what the image holds, that it is the same each time, and that agents run in it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import shared_cache
from coding_agent import agent_image, claude
from containers import Docker, base_image
from fakes.scenarios import scenario
from processes import end_processes_of
from testbed.needs import PODMAN, requires
from user import User
from waiting import until

TASK = Path(__file__).parents[2] / "tasks" / "in-container.yaml"
NAME = f"coding-agent:{claude.PINNED_VERSION}"
INSIDE = """id; echo "home $HOME"; touch "$HOME/x" && echo writable; stat -c '%a %U' "$HOME" "$(type -P claude)"
type -P claude bash flock setsid tar grep find stat timeout git; claude --version"""


def _tag() -> str:
    return f"coding-agent-test/{secrets.token_hex(6)}:built"


def _build(*arguments: str, **environment: str) -> dict[str, Any]:
    """Build from a shell with the tests' own cache; return what --json printed."""
    done = subprocess.run(
        [sys.executable, "-m", "coding_agent", "image", "build", "--json", *arguments],
        env={**os.environ, "XDG_CACHE_HOME": str(shared_cache.FOLDER), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _inside(docker: Docker, image: str, command: str = INSIDE) -> list[str]:
    return docker("run", "--rm", "--network", "none", image, "bash", "-c", command).splitlines()


def _packages(docker: Docker) -> set[str]:
    return set(docker("images", "-q", "--no-trunc", agent_image.PACKAGES).split())


def _left_of(docker: Docker, base: str) -> list[str]:
    """Return the containers and images that were made from a base that nobody else uses."""
    base_id = docker.inspect(base)["Id"]
    images = docker("images", "-aq", "--no-trunc").split()
    made = [each for each in images if docker.inspect(each).get("Parent") == base_id]
    return [*made, *docker("ps", "-aq", "--filter", f"ancestor={base_id}").split()]


@contextlib.contextmanager
def _removed(docker: Docker, *images: str) -> Iterator[None]:
    try:
        yield
    finally:
        docker.remove(images)


@pytest.fixture(scope="module")
def built(docker: Docker, container_image: str) -> Iterator[dict[str, Any]]:
    """Return what is said of an image that is built from the tests' base."""
    tag = _tag()
    with _removed(docker, tag):
        yield _build("--from", container_image, "--tag", tag)


@pytest.fixture
def without_git(docker: Docker, container_image: str) -> Iterator[str]:
    """Return an image of Debian that lacks git, whose user is not root."""
    name, mark = _tag(), secrets.token_hex(6)
    text = f"FROM {container_image}\nRUN dpkg --purge git && echo {mark} >/mark\nUSER nobody\n"
    docker("build", "-q", "--network", "none", "-t", name, "-", stdin=text.encode())
    before = _packages(docker)
    with _removed(docker, name):
        yield name
        docker.remove(sorted(_packages(docker) - before))


def test_what_is_in_it(built: dict[str, Any], docker: Docker, container_image: str) -> None:
    """The image has the exact Claude Code and all tools, its user is 10001 with a home of his own; --json says it."""
    assert sorted(built) == ["base", "claude", "id", "image", "size"]
    assert (built["claude"], built["base"]) == (claude.PINNED_VERSION, container_image)
    found = docker.inspect(built["image"])
    assert (built["id"], built["size"]) == (found["Id"], found["Size"])
    said = _inside(docker, built["image"])
    assert said[0] == "uid=10001(agent) gid=10001(agent) groups=10001(agent)"
    assert said[1:5] == ["home /home/agent", "writable", "755 agent", "755 root"]
    assert said[5] == "/usr/local/bin/claude"
    assert len(said) == 16
    assert said[-1].startswith(claude.PINNED_VERSION)


@pytest.mark.slow
def test_same_again(built: dict[str, Any], docker: Docker, container_image: str) -> None:
    """Built once more from nothing the image has the same id and layers; a third time it only gets another name."""
    layers = docker.inspect(built["image"])["RootFS"]["Layers"]
    other = _tag()
    with _removed(docker, other):
        docker("rmi", built["image"])
        again = _build("--from", container_image, "--tag", built["image"])
        assert again == built
        assert docker.inspect(built["image"])["RootFS"]["Layers"] == layers
        assert _build("--from", container_image, "--tag", other)["id"] == built["id"]
        changed = _build("--from", container_image, "--tag", other, "--uid", "2000", "--user", "someone")
        assert changed["id"] != built["id"]
        assert _inside(docker, other, "id -un; id -u; echo $HOME") == ["someone", "2000", "/home/someone"]


def test_again_from_what_was_built(built: dict[str, Any], docker: Docker) -> None:
    """An image that was built is itself a base: its user stays who he is."""
    tag = _tag()
    with _removed(docker, tag):
        _build("--from", built["image"], "--tag", tag)
        assert _inside(docker, tag, "id -u; grep -c agent /etc/passwd /etc/group") == [
            *("10001", "/etc/passwd:1", "/etc/group:1")
        ]


@pytest.mark.slow
def test_agent_in_it(built: dict[str, Any], container_user: User, docker: Docker) -> None:
    """An agent's task runs in the image as its user, with its Claude Code: only the run's volume is mounted."""
    user = container_user
    user.executors({"name": "box", "type": "container", "image": built["image"], "network": "host"})
    command = 'touch "$HOME/x" && echo "$(id -un) $HOME $(type -P claude)"'
    user.job(prompt=scenario("bash", command=command), executor="box")
    user.cli("up", "job")
    (container,) = docker.of_project(user.project)
    assert [each["Type"] for each in docker.inspect(container)["Mounts"]] == ["volume"]
    assert user.outputs("job")["status"] == "succeeded"
    if os.getuid() == 0:  # else the agent has the caller's number
        assert "agent /home/agent /usr/local/bin/claude" in user.cli("logs", "job", "--raw").stdout
    user.cli("destroy", "job")


@pytest.mark.slow
def test_task_of_this_repository(container_user: User, docker: Docker, container_image: str) -> None:
    """tasks/in-container.yaml runs as it is once `image build` made its image, under the name it has by default."""
    user = container_user
    before = docker("images", "-q", "--no-trunc", NAME)
    try:
        shown = user.cli("image", "build", "--from", container_image).stdout
        assert NAME in shown
        user.task("in-container", TASK.read_text())
        user.commit_all("The commit to be seen")
        user.cli("up", "in-container")
        log = user.cli("logs", "in-container").stdout
        assert "The commit to be seen" in log
        assert f"{claude.PINNED_VERSION} (Claude Code)" in log
        user.cli("destroy", "in-container")
    finally:
        docker.remove([NAME])
        if before:
            docker("tag", before, NAME)


@pytest.mark.slow
def test_lacking_is_installed(without_git: str, docker: Docker) -> None:
    """What a base lacks is installed with its own package manager, once; the next build uses that."""
    tag = _tag()
    with _removed(docker, tag):
        first = _build("--from", without_git, "--tag", tag, "--network", "host")
        assert _inside(docker, tag, "id -un; git --version")[0] == "agent"
        assert _build("--from", without_git, "--tag", tag, "--network", "none")["id"] == first["id"]


@pytest.mark.slow
def test_failed_install_leaves_nothing(without_git: str, container_user: User, docker: Docker) -> None:
    """Where packages can't be had, that is said in the manager's words, and no image or container is left."""
    tag = _tag()
    shown = container_user.cli("image", "build", "--from", without_git, "--tag", tag, "--network", "none", code=3)
    assert "git ca-certificates can't be installed" in shown.stderr
    assert "E: " in shown.stderr
    assert "next: " in shown.stderr
    assert "Traceback" not in shown.stderr + shown.stdout
    assert _left_of(docker, without_git) == []
    assert docker("images", "-q", tag) == ""


def test_base_that_cannot_be_completed(container_user: User, docker: Docker) -> None:
    """A base that lacks programs and has no package manager is refused with their names and what to do."""
    name, archive = _tag(), io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for file in ("lib64/ld-linux-x86-64.so.2", "lib/ld-linux-aarch64.so.1", "usr/bin/tar"):
            tar.addfile(tarfile.TarInfo(file))
    docker("import", "-", name, stdin=archive.getvalue())
    with _removed(docker, name):
        shown = container_user.cli("image", "build", "--from", name, "--tag", _tag(), "--json", code=3)
        error = json.loads(shown.stdout)["error"]
        assert "lacks bash, flock, setsid, grep, find, stat, timeout, git, and has neither apt-get" in error["message"]
        assert "--from" in error["next_step"]
        assert _left_of(docker, name) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--user", "root"], 2, "'root' is no name for a user who has no rights"),
        (["--user", "a b:c\n"], 2, "is no name for a user"),
        (["--user", "nobody"], 2, "has the user nobody already, with the uid 65534"),
        (["--uid", "1"], 2, "has the user daemon already, with the uid 1 "),
        (["--uid", "0"], 2, "0 is not in the range"),
        (["--tag", "No Name"], 2, "'No Name' is no name for an image"),
        (["--claude-version", "latest"], 2, "'latest' is not a version of Claude Code"),
        (["--from", "$(id)"], 2, "'$(id)' is no name of an image"),
        (["--from", "coding-agent-test/nothing:1"], 3, "there is no image coding-agent-test/nothing:1 here"),
        (["--docker-host", "unix:///nothing.sock"], 3, "unix:///nothing.sock does not answer"),
    ],
)
def test_what_is_refused(
    container_user: User, container_image: str, arguments: Sequence[str], code: int, message: str
) -> None:
    """What can't be made is refused in a line that names it and one that says what to do."""
    shown = container_user.cli("image", "build", "--from", container_image, *arguments, code=code)
    first, second, *rest = shown.stderr.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert second.startswith("next: ")
    assert rest == []


def _interrupt(user: User, when: str, *arguments: str) -> None:
    """Send a build a Ctrl-C once it says that."""
    with user.start("image", "build", *arguments) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any(when in line for line in lines)
        process.send_signal(signal.SIGINT)
        rest = "".join(lines)
    assert process.returncode == 130, rest
    assert "Traceback" not in rest


def test_interrupted(container_user: User, docker: Docker, container_image: str) -> None:
    """Ctrl-C ends a build with 130; neither an image of that name nor a container of the base is left."""
    base, tag = _tag(), _tag()
    docker("build", "-q", "-t", base, "-", stdin=f"FROM {container_image}\nLABEL mark={tag}\n".encode())
    with _removed(docker, base, tag):
        _interrupt(container_user, "putting the image together", "--from", base, "--tag", tag)
        assert docker("images", "-q", tag) == ""
        assert _left_of(docker, base) == []


@pytest.mark.slow
def test_interrupted_while_it_installs(container_user: User, docker: Docker, without_git: str) -> None:
    """Ctrl-C while packages are installed ends that too: no container and no image of it is left."""
    _interrupt(container_user, "installing git", "--from", without_git, "--tag", _tag(), "--network", "host")
    assert until(lambda: _left_of(docker, without_git) == [])


@pytest.fixture
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder for the socket of podman's service, which is ended after the test; a socket's path is short."""
    with tempfile.TemporaryDirectory(prefix="ca-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)
        monkeypatch.undo()
        end_processes_of(Path(folder))


@pytest.mark.slow
def test_podman(docker: Docker, runtime_dir: Path) -> None:
    """With `--runtime podman` the image is made there."""
    requires(PODMAN)
    podman = Docker(program="podman")
    tag, base = _tag(), base_image(podman)
    with _removed(podman, tag):
        said = _build("--runtime", "podman", "--from", base, "--tag", tag)
        found = podman.inspect(tag)
        assert said["id"] == f"sha256:{found['Id']}"
        assert found["Config"]["User"] == "agent"
        podman("rmi", tag)
        assert _build("--runtime", "podman", "--from", base, "--tag", tag) == said
