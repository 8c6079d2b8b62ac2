"""A task in podman: as root, through a service that is started when it is needed, and as an ordinary user's."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from containers import BASE, Docker, base_image
from fakes.scenarios import scenario
from processes import processes_with_text
from testbed.needs import PODMAN, ROOT, program, requires
from user import User
from waiting import until

pytestmark = [pytest.mark.slow]

LOOK = r"""
grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs|Uid):' /proc/self/status
cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null
cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null
touch "$HOME/x" && echo "home writable"
env | grep ^CODING_AGENT_LIMIT | sort
"""
FORKS = "while :; do sleep 300 & done"
# Podman asks for more open files and processes than a root without CAP_SYS_RESOURCE may have, and keeps two processes
# for 5 minutes for each command that ran in a container.
CONF = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
exit_command_delay = 5
"""
# Without it every container is a copy of the whole image, where fuse is not for everybody. Linux 5.13.
STORAGE = '[storage]\ndriver = "overlay"\n'
IMAGE = f"localhost/{BASE}"


@pytest.fixture
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder for the service's socket; a socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="ca-") as folder:
        path = Path(folder)
        (path / "containers.conf").write_text(CONF)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
        monkeypatch.setenv("CONTAINERS_CONF", str(path / "containers.conf"))
        yield path


@pytest.fixture
def podman(runtime_dir: Path) -> Docker:
    """Return root's podman, with the image that tests run in."""
    requires(ROOT, PODMAN)
    podman = Docker(program="podman")
    base_image(podman)
    return podman


@pytest.fixture
def podman_user(container_user: User, podman: Docker, runtime_dir: Path) -> Iterator[User]:
    """Return a user whose executor `box` makes a podman container for each run, and who has no podman service yet."""
    user = container_user
    user.environment.update(XDG_RUNTIME_DIR=str(runtime_dir), CONTAINERS_CONF=os.environ["CONTAINERS_CONF"])
    _box(user)
    yield user
    podman.remove_all_of(user.project)


def _box(user: User, /, **fields: Any) -> None:
    user.executors(
        {"name": "box", "type": "container", "runtime": "podman", "image": IMAGE, "network": "host", **fields}
    )


def _log(user: User, name: str = "job") -> str:
    return user.cli("logs", name, "-n", "1000").stdout


def _services(runtime_dir: Path) -> list[int]:
    return [pid for pid in processes_with_text(f"unix://{runtime_dir}/coding-agent/podman.sock") if pid != os.getpid()]


def test_agent_in_podman(podman_user: User, podman: Docker) -> None:
    """An agent works in a podman container on the user's repository, its commits arrive, `destroy` leaves nothing."""
    user = podman_user
    user.job(prompt=scenario("edit"), repo=".", executor="box")
    user.commit_all()

    user.cli("up", "job")

    outputs = user.outputs("job")
    assert (outputs["status"], outputs["executor"], outputs["num_turns"]) == ("succeeded", "box", 6)
    assert user.git("show", "coding-agent/job:note.txt") == "the second line\n"
    (container,) = podman.of_project(user.project)
    assert podman.inspect(container)["State"]["Running"]
    for argv in (["preview", "--json"], ["preview", "--json", "--refresh"]):
        changes = json.loads(user.pulumi(*argv, "--stack", "job").stdout)["changeSummary"]
        assert set(changes) == {"same"}, argv

    user.cli("destroy", "job")

    assert podman.left(user.project) == []
    assert user.outputs("job")["status"] == "succeeded"


def test_from_inside(podman_user: User, podman: Docker) -> None:
    """Inside, a command has no capability, can get no privilege, is not root, and the kernel holds its limits."""
    user = podman_user
    user.job(command=LOOK, executor="box", limits={"memory": "300MiB", "pids": 100, "cpus": 0.5})
    assert "watched" not in user.cli("preview", "job").stdout

    user.cli("up", "job")

    said = _log(user)
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert f"{name}:\t0000000000000000" in said
    assert "NoNewPrivs:\t1" in said
    uid = os.getuid() or 10001
    assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}" in said
    assert "home writable" in said
    assert f"\n{300 * 1024**2}\n" in said
    assert "\n116\n" in said  # what the supervisor needs comes on top
    for line in ("CPUS=0.5", f"MEMORY={300 * 1024**2}", "PIDS=100"):
        assert f"CODING_AGENT_LIMIT_{line}" in said
    settings = podman.inspect(podman.of_project(user.project)[0])["HostConfig"]
    assert (settings["Privileged"], settings["Init"], settings["NanoCpus"]) == (False, True, 500_000_000)
    user.cli("destroy", "job")
    assert podman.left(user.project) == []


def test_limits_are_held(podman_user: User) -> None:
    """A tool that takes too much memory ends alone, a run that forks without end is ended; both are said."""
    user = podman_user
    user.job("eats", prompt=scenario("memory", mb=900, hold=8), executor="box", limits={"memory": "400MB"})
    user.job("forks", command=FORKS, executor="box", limits={"pids": 64, "grace": "1s"})
    user.cli("up", "eats")
    outputs = user.outputs("eats")
    assert outputs["status"] == "succeeded"
    assert [each["limit"] for each in outputs["limit_hits"]] == ["memory"]
    user.cli("up", "forks", code=1)
    outputs = user.outputs("forks")
    assert (outputs["status"], outputs["reason"]) == ("failed", "pids")
    for name in ("eats", "forks"):
        user.cli("destroy", name)


def test_network_of_its_own(podman_user: User, podman: Docker) -> None:
    """By default a run in podman has a network of its own, which goes with it."""
    user = podman_user
    user.executors({"name": "box", "type": "container", "runtime": "podman", "image": IMAGE})
    user.job(command="ls /sys/class/net", executor="box")
    user.cli("up", "job")
    assert len(podman.of_project(user.project, "networks")) == 1
    assert "eth0" in _log(user)
    user.cli("destroy", "job")
    assert podman.left(user.project) == []


def test_short_image_name(podman_user: User, podman: Docker) -> None:
    """An image that was built or imported here is found under the name it was given, without `localhost/`."""
    user = podman_user
    _box(user, image=BASE)
    user.job(command="echo found", executor="box")
    user.cli("up", "job")
    assert "found" in _log(user)
    user.cli("destroy", "job")
    assert podman.left(user.project) == []


def test_service_comes_and_goes(podman_user: User, podman: Docker, runtime_dir: Path) -> None:
    """Podman's service is started when nothing answers, has no secret, ends by itself, and is started again."""
    user = podman_user
    socket = runtime_dir / "coding-agent" / "podman.sock"
    script = (
        "from coding_agent.executors import container_engine as engine\n"
        "engine.PODMAN_IDLE = 2\n"
        "engine.reach({'runtime': 'podman'}).close()\n"
    )
    assert not socket.exists()
    user.run(sys.executable, "-c", script, PYTHONPATH=str(Path(__file__).parents[2] / "infra"))
    (service,) = _services(runtime_dir)
    environment = Path(f"/proc/{service}/environ").read_bytes()
    assert b"XDG_RUNTIME_DIR=" in environment
    assert user.environment["ANTHROPIC_API_KEY"].encode() not in environment
    until(lambda: not _services(runtime_dir))

    user.job(command="echo once", executor="box")
    user.cli("up", "job")
    (service,) = _services(runtime_dir)
    os.kill(service, signal.SIGTERM)
    until(lambda: not _services(runtime_dir))
    assert "once" in _log(user)
    user.cli("destroy", "job")
    assert podman.left(user.project) == []


@dataclass(frozen=True)
class Rootless:
    """An ordinary user whose podman serves a socket of his own."""

    uid: int
    gid: int
    folder: Path  # anybody may look into it
    url: str
    podman: Docker

    def box(self, user: User, volumes: Sequence[str] = ()) -> None:
        """Give `user` an executor that makes containers of this podman."""
        # What is in root's cache this podman can't read.
        mounted = [f"{self.folder}/programs:/programs:ro", *volumes]
        _box(
            user,
            docker_host=self.url,
            user=f"{self.uid}:{self.gid}",
            volumes=mounted,
            claude_path="/programs/claude",
        )


@pytest.fixture(scope="module")
def rootless(claude_program: Path) -> Iterator[Rootless]:
    """Make an ordinary user with a podman service; both are gone after the module."""
    requires(ROOT, PODMAN, program("newuidmap", "uidmap"))
    name, number = f"ca-{secrets.token_hex(4)}", 0x20000000
    with tempfile.TemporaryDirectory(prefix="ca-") as there, contextlib.ExitStack() as undo:
        folder = Path(there)
        folder.chmod(0o755)
        _run("useradd", "--no-create-home", "--home-dir", str(folder / "home"), name)
        undo.callback(_run, "userdel", name)
        entry = pwd.getpwnam(name)
        for kind in ("uids", "gids"):
            # Not every machine's useradd gives these.
            if f"{name}:" not in Path(f"/etc/sub{kind[:-1]}").read_text():
                _run("usermod", f"--add-sub{kind}", f"{number}-{number + 65535}", name)
        for each in ("home", "run"):
            (folder / each).mkdir(mode=0o700)
            os.chown(folder / each, entry.pw_uid, entry.pw_gid)
        (folder / "containers.conf").write_text(CONF)
        (folder / "storage.conf").write_text(STORAGE)
        socket = folder / "run" / "podman.sock"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }
        service = subprocess.Popen(
            ["podman", "system", "service", "--time=0", f"unix://{socket}"],
            env=environment,
            cwd="/",
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        undo.callback(_end_all_of, entry.pw_uid, service)
        until(lambda: socket.is_socket() or service.poll() is not None)
        assert service.poll() is None, "podman's service does not start for an ordinary user"
        (folder / "programs").mkdir()
        shutil.copy(claude_program, folder / "programs" / "claude")
        podman = Docker({"CONTAINER_HOST": f"unix://{socket}"}, program="podman")
        base_image(podman)
        yield Rootless(entry.pw_uid, entry.pw_gid, folder, f"unix://{socket}", podman)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True)


def _end_all_of(uid: int, service: subprocess.Popen[bytes]) -> None:
    """End the service, and the process that holds the user's namespace for the next one."""

    def left() -> list[int]:
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # A zombie has no arguments any more.
                if each.stat().st_uid == uid and (each / "cmdline").read_bytes():
                    found.append(int(each.name))
        return found

    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        with contextlib.suppress(AssertionError):
            until(lambda: service.poll() is not None and not left(), limit=5.0)
    service.wait()


@pytest.fixture
def rootless_user(container_user: User, rootless: Rootless) -> Iterator[User]:
    """Return a user whose executor `box` makes containers of an ordinary user's podman."""
    rootless.box(container_user)
    yield container_user
    rootless.podman.remove_all_of(container_user.project)


def test_agent_in_rootless_podman(rootless_user: User, rootless: Rootless) -> None:
    """An agent in an ordinary user's podman writes as that user into a folder of his, and is nobody else there."""
    user = rootless_user
    work = rootless.folder / "work"
    work.mkdir()
    os.chown(work, rootless.uid, rootless.gid)
    rootless.box(user, volumes=[f"{work}:/work"])
    look = "cat /proc/self/uid_map; grep -E '^(CapEff|CapBnd|NoNewPrivs|Uid):' /proc/self/status"
    user.job(prompt=scenario("bash", command=f"{{ {look}; }} >/work/made"), executor="box")

    user.cli("up", "job")

    assert user.outputs("job")["status"] == "succeeded"
    made = work / "made"
    assert (made.stat().st_uid, made.stat().st_gid) == (rootless.uid, rootless.gid)
    said = made.read_text()
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", f"Uid:\t{rootless.uid}\t"):
        assert line in said
    # Inside and outside the same number; its root is not this machine's.
    assert [str(rootless.uid), "0", "1"] in [line.split() for line in said.splitlines()]
    assert "4294967295" not in said
    assert len(rootless.podman.of_project(user.project)) == 1

    user.cli("destroy", "job")

    assert rootless.podman.left(user.project) == []


def test_lost_rootless_container(rootless_user: User, rootless: Rootless) -> None:
    """What an agent wrote is brought back though somebody removed its container of an ordinary user's podman."""
    user = rootless_user
    user.job(command="echo precious >kept; echo started; sleep 600", executor="box", limits={"grace": "1s"})
    user.cli("up", "job", "--detach")
    until(lambda: "started" in _log(user))
    rootless.podman("rm", "-f", "-t", "0", rootless.podman.of_project(user.project)[0])

    user.cli("up", "job", code=1)

    outputs = user.outputs("job")
    assert (outputs["status"], outputs["reason"]) == ("lost", "target_gone")
    assert "precious" in Path(outputs["patch"]).read_text()
    user.cli("destroy", "job")
    assert rootless.podman.left(user.project) == []


@pytest.mark.slow
def test_limits_in_rootless_podman(rootless_user: User, rootless: Rootless) -> None:
    """What an ordinary user's podman can't have the kernel hold is watched instead, and `preview` says so."""
    user = rootless_user
    controllers = json.loads(rootless.podman("info", "--format", "{{json .Host.CgroupControllers}}")) or []
    user.job("eats", prompt=scenario("memory", mb=900, hold=8), executor="box", limits={"memory": "400MB", "cpus": 0.5})
    user.job("forks", command=FORKS, executor="box", limits={"pids": 64, "grace": "1s"})
    said = user.cli("preview", "eats").stdout
    assert ("limits.cpus is not enforced by executor box" in said) == ("cpu" not in controllers)
    assert ("limits.memory" in said and "watched by the supervisor" in said) == ("memory" not in controllers)
    user.cli("up", "eats")
    outputs = user.outputs("eats")
    assert outputs["status"] == "succeeded"
    assert "memory" in [each["limit"] for each in outputs["limit_hits"]]
    assert any("limits.cpus" in each for each in outputs["notices"]) == ("cpu" not in controllers)
    user.cli("up", "forks", code=1)
    outputs = user.outputs("forks")
    assert (outputs["status"], outputs["reason"]) == ("failed", "pids")
    for name in ("eats", "forks"):
        user.cli("destroy", name)
    assert rootless.podman.left(user.project) == []
