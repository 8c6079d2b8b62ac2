"""A task in a container of its own: how it looks from inside and outside, through the doors users have."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from containers import Docker
from fakes.scenarios import scenario
from readme import declared, drawn
from user import User
from waiting import until

LOOK = r"""
grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs|Uid|Groups):' /proc/self/status
echo "home $HOME"; touch "$HOME/x" && echo "home writable"
ls /var/run/docker.sock /run/docker.sock 2>&1 | grep -c 'No such file'
env | grep ^CODING_AGENT_LIMIT | sort
"""


def _log(user: User, name: str = "job") -> str:
    return user.cli("logs", name, "-n", "1000").stdout


def _files(docker: Docker, container: str) -> set[str]:
    return set(docker("exec", container, "find", "/", "-xdev", "-not", "-path", "/proc/*").splitlines())


def test_agent_in_a_container_of_its_own(container_user: User, docker: Docker) -> None:
    """An agent works in a container on the user's repository, its commits arrive, and `destroy` leaves nothing."""
    user = container_user
    user.job(prompt=scenario("edit"), repo=".", executor="box")
    user.commit_all()

    shown = user.cli("up", "job").stdout

    outputs = user.outputs("job")
    assert (outputs["status"], outputs["executor"], outputs["num_turns"]) == ("succeeded", "box", 6)
    assert user.git("show", "coding-agent/job:note.txt") == "the second line\n"
    assert "turn 1:" in shown
    assert Path(outputs["log_path"]).is_file()
    (container,) = docker.of_project(user.project)
    assert docker.inspect(container)["State"]["Running"]
    # Its network is this machine's: no other is made.
    state = user.pulumi("stack", "export", "--stack", "job").stdout
    assert declared(state) | {"docker Network"} == drawn("container")
    assert user.pulumi("preview", "--stack", "job", "--json", "--refresh").returncode == 0
    changes = json.loads(user.pulumi("preview", "--stack", "job", "--json").stdout)["changeSummary"]
    assert set(changes) == {"same"}

    user.cli("destroy", "job")

    assert docker.left(user.project) == []
    assert user.outputs("job")["status"] == "succeeded"


def test_from_inside(container_user: User, docker: Docker) -> None:
    """Inside, the agent has no capability, can get no privilege, is not root, sees no socket, and knows its limits."""
    user = container_user
    user.job(command=LOOK, executor="box", limits={"memory": "300MiB", "pids": 100, "cpus": 0.5, "timeout": "10m"})

    user.cli("up", "job")

    said = _log(user)
    uid = os.getuid() or 10001
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert f"{name}:\t0000000000000000" in said
    assert "NoNewPrivs:\t1" in said
    assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}" in said
    assert "home writable" in said
    assert "\n2\n" in said  # neither socket
    for line in ("CPUS=0.5", f"MEMORY={300 * 1024**2}", "PIDS=100", "TIMEOUT=600"):
        assert f"CODING_AGENT_LIMIT_{line}" in said
    (container,) = docker.of_project(user.project)
    found = docker.inspect(container)
    settings = found["HostConfig"]
    assert (settings["CapDrop"], settings["SecurityOpt"]) == (["ALL"], ["no-new-privileges:true"])
    assert (settings["Privileged"], settings["Init"]) == (False, True)
    assert (settings["Memory"], settings["MemorySwap"]) == (300 * 1024**2, 300 * 1024**2)
    assert settings["NanoCpus"] == 500_000_000
    assert 100 <= settings["PidsLimit"] <= 120


@pytest.mark.slow
def test_defaults_of_limits(container_user: User, docker: Docker) -> None:
    """Where neither task nor executor says, a container gets 2 GiB and 512 processes, not the whole machine."""
    user = container_user
    user.job(command="true", executor="box")
    user.cli("up", "job")
    settings = docker.inspect(docker.of_project(user.project)[0])["HostConfig"]
    assert (settings["Memory"], settings["MemorySwap"]) == (2 * 1024**3, 2 * 1024**3)
    assert 512 <= settings["PidsLimit"] <= 532


@pytest.mark.slow
def test_mounted_program_is_read_only(container_user: User) -> None:
    """The agent's program that is mounted into an image without one can't be changed from inside."""
    user = container_user
    program = "/opt/coding-agent/claude"
    command = f"echo x >>{program}; rm -f {program}; ls -l {program}"
    user.job(prompt=scenario("bash", command=command), executor="box")
    user.cli("up", "job")
    raw = user.cli("logs", "job", "--raw").stdout
    assert "Permission denied" in raw or "Read-only file system" in raw
    assert "/opt/coding-agent/claude" in raw


@pytest.mark.slow
def test_agent_cannot_end_its_container(container_user: User, docker: Docker) -> None:
    """An agent that kills everything it can reach ends itself, not its container."""
    user = container_user
    user.job(command="kill -KILL -1; sleep 1; echo survived", executor="box", limits={"grace": "1s"})
    user.cli("up", "job", code=None)
    # Its supervisor went with it, so nobody but the next look can say how it ended.
    assert until(lambda: (found := user.outputs("job"))["status"] != "unresponsive" and found)["status"] == "lost"
    (container,) = docker.of_project(user.project)
    assert docker.inspect(container)["State"]["Running"]
    user.cli("destroy", "job")
    assert docker.of_project(user.project) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [
        ['ENTRYPOINT ["/bin/false"]', "USER 4242:4242"],
        ["RUN useradd -m -u 10001 worker && echo yes >/home/worker/here", "USER worker", 'ENTRYPOINT ["bash"]'],
        ["RUN groupadd -r x && useradd -r -g x svc", "USER svc", "WORKDIR /nowhere", "ENV HOME=/nonexistent"],
    ],
    ids=["entrypoint that ends", "user with a home", "user without a home"],
)
def test_whatever_the_images_entrypoint_and_user(container_user: User, docker: Docker, lines: list[str]) -> None:
    """Neither an image's ENTRYPOINT nor its USER, HOME or WORKDIR keeps an agent from running, with a writable HOME."""
    user = container_user
    with docker.built(*lines) as image:
        user.executors({"name": "box", "type": "container", "image": image, "network": "host"})
        user.job(prompt=scenario("bash", command='touch "$HOME/x" && ls -A "$HOME" && id -u'), executor="box")
        user.cli("up", "job")
        raw = user.cli("logs", "job", "--raw").stdout
        assert "10001" in raw
        assert ("here" in raw) == ("useradd -m" in lines[0])
        user.cli("destroy", "job")


@pytest.mark.slow
def test_claude_of_the_image_is_used(container_user: User, docker: Docker, claude_program: Path) -> None:
    """An image's own Claude Code on its PATH is used, and nothing is mounted."""
    user = container_user
    folder = user.home / "context"
    folder.mkdir()
    (folder / "claude").write_bytes(claude_program.read_bytes())
    image = "coding-agent-test/with-claude:1"
    (folder / "Dockerfile").write_text("FROM coding-agent-test/base:1\nCOPY claude /usr/local/bin/claude\n")
    (folder / "claude").chmod(0o755)
    user.run("docker", "build", "-q", "-t", image, str(folder), DOCKER_BUILDKIT="0")
    user.executors({"name": "box", "type": "container", "image": image, "network": "host"})
    user.job(prompt=scenario("text"), executor="box")
    user.cli("up", "job")
    found = docker.inspect(docker.of_project(user.project)[0])
    assert [mount["Type"] for mount in found["Mounts"]] == ["volume"]
    user.cli("destroy", "job")
    docker.remove([image])


@pytest.mark.slow
def test_volumes(container_user: User, docker: Docker) -> None:
    """Folders and volumes are mounted as written; a volume that was there stays, one that was made goes."""
    user = container_user
    (user.project / "shared").mkdir()
    (user.project / "shared" / "in").write_text("from outside")
    (user.project / "shared").chmod(0o777)
    docker("volume", "create", "coding-agent-test-old")
    try:
        volumes = ["./shared:/shared", "./tasks:/tasks:ro", "coding-agent-test-old:/old", "coding-agent-test-new:/new"]
        user.executors(
            {
                "name": "box",
                "type": "container",
                "image": "coding-agent-test/base:1",
                "network": "none",
                "volumes": volumes,
            }
        )
        user.job(command="cat /shared/in; echo back >/shared/out; touch /tasks/x; ls -d /old /new", executor="box")
        user.cli("up", "job", code=None)
        assert "from outside" in _log(user)
        assert "Read-only file system" in _log(user) or "Permission denied" in _log(user)
        assert (user.project / "shared" / "out").read_text() == "back\n"
        assert "coding-agent-test-new" in docker("volume", "ls", "-q").split()
        user.cli("destroy", "job")
        left = docker("volume", "ls", "-q").split()
        assert "coding-agent-test-old" in left
        assert "coding-agent-test-new" not in left
    finally:
        docker("volume", "rm", "coding-agent-test-old")


@pytest.mark.slow
def test_network_of_its_own(container_user: User, docker: Docker, container_image: str) -> None:
    """By default a run has a network of its own, which goes with it; `none` has no way out."""
    user = container_user
    user.executors({"name": "box", "type": "container", "image": container_image})
    user.job(command="ls /sys/class/net", executor="box")
    user.cli("up", "job")
    (network,) = docker.of_project(user.project, "networks")
    assert list(docker.inspect(network)["Containers"]) == docker.of_project(user.project)
    assert "eth0" in _log(user)
    user.cli("destroy", "job")
    assert docker.left(user.project) == []
    user.executors({"name": "box", "type": "container", "image": container_image, "network": "none"})
    user.cli("up", "job")
    assert "eth0" not in _log(user)


@pytest.mark.slow
def test_existing_container_is_left_as_it_was(container_user: User, docker: Docker) -> None:
    """A container that exists is used and left: the same before and after, with no file or process of ours in it."""
    user = container_user

    def seen(name: str) -> dict[str, Any]:
        found = docker.inspect(name)
        found.pop("ExecIDs", None)  # those that ended; the engine forgets them in time
        return found

    with docker.running() as name:
        files = _files(docker, name)
        before = seen(name)
        user.executors({"name": "theirs", "type": "container", "container": name, "user": "10001:10001"})
        user.job(command="id -u; pwd; sleep 1", executor="theirs")
        user.cli("up", "job")
        assert "10001" in _log(user)
        assert docker.left(user.project) == []
        user.cli("destroy", "job")
        assert seen(name) == before
        assert _files(docker, name) ^ files == set()


@pytest.mark.slow
def test_image_built_from_a_dockerfile(container_user: User, docker: Docker) -> None:
    """`image.build` makes an image of a Dockerfile in the project, another one another run; `destroy` removes it."""
    user = container_user
    folder = user.project / "image"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM coding-agent-test/base:1\nARG WORD=none\nRUN echo $WORD >/built\n")
    built = {"build": {"context": "image", "args": {"WORD": "first"}}}
    user.executors({"name": "box", "type": "container", "image": built, "network": "none"})
    user.job(command="cat /built", executor="box")
    user.cli("up", "job")
    assert "first" in _log(user)
    one = user.outputs("job")["run_id"]
    (folder / "Dockerfile").write_text("FROM coding-agent-test/base:1\nRUN echo second >/built\n")
    user.cli("up", "job")
    assert "second" in _log(user)
    assert user.outputs("job")["run_id"] != one
    user.cli("destroy", "job")
    assert docker.left(user.project) == []
    assert f"coding-agent/{user.project.name}" not in docker("images", "--format", "{{.Repository}}")


@pytest.mark.slow
def test_mounted_folder_is_writable_for_its_owner(container_user: User, tmp_path: Path) -> None:
    """An agent with the uid and gid of a mounted folder's owner can write there, though the image has no such user."""
    user = container_user
    folder = tmp_path / "repos"
    folder.mkdir()
    os.chown(folder, 4321, 4322)
    user.executors(
        {
            **{"name": "box", "type": "container", "image": "coding-agent-test/base:1", "network": "none"},
            **{"user": "4321:4322", "volumes": [f"{folder}:/work"]},
        }
    )
    user.job(command="echo mine >/work/made; echo $HOME", executor="box")
    user.cli("up", "job")
    assert ((folder / "made").stat().st_uid, (folder / "made").stat().st_gid) == (4321, 4322)


@pytest.mark.slow
def test_lost_container_is_reported_and_replaced_when_asked(container_user: User, docker: Docker) -> None:
    """A container removed under a running agent: said by `up`, replaced by `up --refresh`, its work kept."""
    user = container_user
    user.job(command="echo precious >kept; echo started; sleep 600", executor="box", limits={"grace": "1s"})
    user.cli("up", "job", "--detach")
    first = user.outputs("job")["run_id"]
    until(lambda: "started" in _log(user))
    docker("rm", "-f", docker.of_project(user.project)[0])

    shown = user.cli("up", "job", code=1).stdout
    outputs = user.outputs("job")
    assert (outputs["status"], outputs["reason"]) == ("lost", "target_gone")
    assert "lost" in shown
    assert "precious" in Path(outputs["patch"]).read_text()

    said = user.cli("up", "job", "--refresh", "--detach").stdout
    assert f"run {first} is lost (target_gone) and went with its target: kept as {first}.1, another is started" in said
    again = user.outputs("job")
    assert again["status"] == "running"
    assert again["run_id"] == first
    assert "lost" in [each["status"] for each in json.loads(user.cli("list", "--json").stdout)]
    user.cli("destroy", "job", "--yes")
    assert docker.of_project(user.project) == []
    assert docker.of_project(user.project, "volumes") == []


@pytest.mark.slow
def test_ended_run_stands_without_its_container(container_user: User, docker: Docker) -> None:
    """A container removed after its run had ended changes nothing about the run's results."""
    user = container_user
    user.job(command="echo result", executor="box")
    user.cli("up", "job")
    before = user.outputs("job")
    docker("rm", "-f", docker.of_project(user.project)[0])
    user.cli("up", "job")
    user.pulumi("up", "--refresh", "--yes", "--skip-preview", "--stack", "job")
    assert user.outputs("job") == before
    user.cli("destroy", "job")
    assert docker.of_project(user.project) == []


def test_secret_is_nowhere_but_in_the_agent(container_user: User, docker: Docker) -> None:
    """A secret reaches a run in a container, and neither its inspection, the engine's events nor the stack show it."""
    user = container_user
    canary = "canary-of-the-container-7391"
    box = {"name": "box", "type": "container", "image": "coding-agent-test/base:1", "network": "none"}
    user.executors(box, secrets={"DEPLOY_TOKEN": {"env": "MY_TOKEN"}})
    user.job(command='echo "${#DEPLOY_TOKEN}"; sleep 1', executor="box", secrets=["DEPLOY_TOKEN"])
    begun = str(int(time.time()) - 1)

    user.cli("up", "job", MY_TOKEN=canary)

    (container,) = docker.of_project(user.project)
    assert str(len(canary)) in user.cli("logs", "job", MY_TOKEN=canary).stdout
    assert canary not in docker("inspect", container)
    assert canary not in docker("events", "--since", begun, "--until", str(int(time.time()) + 1))
    assert canary not in user.pulumi("stack", "export", "--stack", "job", "--show-secrets").stdout


@pytest.mark.slow
def test_following_leaves_nothing_in_the_container(container_user: User, docker: Docker) -> None:
    """Whoever stops following a run, or is killed while he follows, leaves no process in its container."""
    user = container_user
    user.job(command="echo started; sleep 600", executor="box", limits={"grace": "1s"})
    user.cli("up", "job", "--detach")
    (container,) = docker.of_project(user.project)
    until(lambda: "started" in _log(user))

    def processes() -> list[str]:
        return sorted(line.split(None, 1)[-1] for line in docker("top", container, "-eo", "pid,args").splitlines())

    before = processes()
    with user.start("logs", "-f", "job") as follower:
        assert follower.stdout is not None
        follower.stdout.readline()
        follower.kill()
    until(lambda: processes() == before)
