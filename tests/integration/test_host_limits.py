"""Limits on a host: the kernel holds them in the run's own cgroup where it gets one, else the supervisor watches.

The hosts are containers of this machine: with systemd as init, and without one but with cgroups that root may make.
Which version of cgroups they have is this machine's; what is particular to v2 is tested on virtual machines.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from coding_agent import executors
from coding_agent.executors.base import Look
from coding_agent.run import State
from coding_agent.settings import ExecutorSpec
from containers import Docker
from machines.cloud_image import cloud_image
from places import Place
from waiting import until

MB = 1_000_000
# A shell's tool that takes 200 MB; the shell goes on.
HOG = "head -c 200m /dev/zero | tail >/dev/null; echo $? >hog\n"
# Until it is seen, whatever else the machine has to do.
BUSY = (
    "(while :; do :; done) & (while :; do :; done) & "
    """until grep -q '"limit":"cpus"' ../.meta.json; do sleep 0.1; done; kill %1 %2\n"""
)
FORKS = "while :; do sleep 300 & done\n"
# Sheds environment, session and parents, with its pid in the workspace.
ESCAPE = "( ( env -i setsid bash -c 'echo $$ >escaped; exec tail -f /dev/null' & ) & )\nexec tail -f /dev/null\n"
MOUNTED = ("--cgroupns=host", "-v", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "--tmpfs", "/run", "--tmpfs", "/tmp")
MAY = ("--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined")


@dataclass
class Host:
    """A host, as this machine's Docker sees it."""

    docker: Docker
    name: str

    @contextlib.contextmanager
    def place(self, user: str) -> Iterator[Place]:
        """Return the host as one of its users has it."""
        ids = self.docker("exec", "--user", user, self.name, "bash", "-c", "echo $(id -u):$(id -g)")
        spec = ExecutorSpec("host", "container", options={"container": self.name, "user": ids})
        target = {"id": self.docker.inspect(self.name)["Id"], "user": ids}
        place = Place(executors.connect(spec, target), "/tmp", ids.replace(":", " "))
        yield place
        place.executor.cleanup(place.id(), grace=1)
        place.executor.close()
        # However a run ended, nothing of its cgroup is left: of the kernel's folders, and of systemd's units.
        until(lambda: not self.cgroups(place), limit=10)

    def cgroups(self, place: Place) -> str:
        """Return what there is of the run's cgroup."""
        script = f"find /sys/fs/cgroup -name '*{place.id()}*'; ! [ -d /run/systemd/system ] || "
        script += f"systemctl list-units --all --plain --no-legend '*{place.id()}*'"
        return self.docker("exec", self.name, "bash", "-c", script)

    def kill(self, pid: int) -> None:
        """Kill a process there."""
        self.docker("exec", self.name, "bash", "-c", f"kill -{int(signal.SIGKILL)} {pid}")

    def alive(self, pid: int) -> bool:
        """Return whether a process goes on there."""
        said = self.docker("exec", self.name, "bash", "-c", f"cat /proc/{pid}/stat || true")
        return bool(said) and said.rpartition(") ")[2][0] not in "ZX"


@contextlib.contextmanager
def _host(docker: Docker, *options: str, image: str, main: str) -> Iterator[Host]:
    name = f"test-{secrets.token_hex(6)}"
    docker("run", "-d", "--name", name, "--network", "none", *options, image, main, *(["infinity"] * (main == "sleep")))
    try:
        yield Host(docker, name)
    finally:
        docker("rm", "-f", "-v", name)


@pytest.fixture(scope="module")
def systemd_host(docker: Docker) -> Iterator[Host]:
    """Return a host with systemd, whose user `dev` lingers."""
    options = (*MAY, *MOUNTED, "--cap-add=SYS_PTRACE", "-e", "container=docker", "--stop-signal", "SIGRTMIN+3")
    with _host(docker, *options, image=cloud_image(docker), main="/sbin/init") as host:
        until(lambda: _answers(host))
        host.docker("exec", host.name, "bash", "-c", "useradd -m -s /bin/bash dev && loginctl enable-linger dev")
        yield host


def _answers(host: Host) -> bool:
    said = host.docker("exec", host.name, "bash", "-c", "systemctl is-system-running || true")
    return said in ("running", "degraded")


@pytest.fixture
def plain_host(docker: Docker, container_image: str) -> Iterator[Host]:
    """Return a host without systemd, whose root may make cgroups."""
    with _host(docker, "--init", *MAY, *MOUNTED, image=container_image, main="sleep") as host:
        yield host


def _start(place: Place, script: str, **params: Any) -> None:
    launch = place.launch(script)
    place.executor.start(replace(launch, params={**launch.params, "scope": "yes", **params}))


def _run(place: Place, script: str, **params: Any) -> Look:
    _start(place, script, **params)
    return place.ended()


def _hits(look: Look) -> dict[str, str]:
    assert look.meta is not None
    return {hit["limit"]: hit["detail"] for hit in look.meta.limit_hits}


def _v2() -> bool:
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


@pytest.mark.parametrize("which", ["systemd_host", "plain_host"])
def test_the_kernel_holds_memory_and_cpus(which: str, request: pytest.FixtureRequest) -> None:
    """Root's run has a cgroup of its own: a tool that takes too much ends, both limits show, and the run succeeds."""
    host: Host = request.getfixturevalue(which)
    with host.place("root") as place:
        _start(place, HOG + BUSY, memory=100 * MB, cpus="0.500")
        assert place.says("hog") == "137"
        assert f"coding-agent-{place.id()}.scope" in host.cgroups(place)
        look = place.ended()
        hits = _hits(look)
        assert (look.state, sorted(hits)) == (State.SUCCEEDED, ["cpus", "memory"]), look
        assert "the kernel ended" in hits["memory"]
        assert look.meta is not None
        assert look.meta.notices == ()
        # With the run's end, not with its removal.
        until(lambda: not host.cgroups(place), limit=10)


def test_the_kernel_holds_processes(systemd_host: Host) -> None:
    """A fork bomb of root's gets no further than its limit, is ended within seconds, and nothing of it is left."""
    with systemd_host.place("root") as place:
        _start(place, FORKS, pids=64)
        most = 0
        while not ((look := place.executor.status(place.id(), usage=True)).state is not None and look.state.final):
            most = max(most, look.processes)
        assert (look.state, look.reason, list(_hits(look))) == (State.FAILED, "pids", ["pids"])
        assert 32 < most <= 64 + 16
        assert place.bash("pgrep -fxc 'sleep 300' || true") == "0"


@pytest.mark.parametrize("which", ["systemd_host", "plain_host"])
def test_what_sheds_every_mark_but_the_cgroup(which: str, request: pytest.FixtureRequest) -> None:
    """Even when its supervisor was killed, nothing of a run in a cgroup of its own escapes `kill`."""
    host: Host = request.getfixturevalue(which)
    with host.place("root") as place:
        _start(place, ESCAPE)
        child = int(place.says("escaped"))
        until(lambda: place.look().state is State.RUNNING)
        host.kill(json.loads(place.executor.read(place.id(), ".meta.json"))["supervisor"])
        until(lambda: place.look().reason == "supervisor_died")

        place.executor.kill(place.id())

        assert place.look().state is State.KILLED
        assert not host.alive(child)


def test_a_user(systemd_host: Host) -> None:
    """A user's run has its limits held by his own systemd on cgroups v2; on v1 they are watched, which is said."""
    with systemd_host.place("dev") as place:
        look = _run(place, "for i in {1..40}; do sleep 60 & done; wait", pids=20, memory=500 * MB, cpus="0.500")
        assert (look.state, look.reason) == (State.FAILED, "pids")
        assert look.meta is not None
        notices = look.meta.notices
        if _v2():
            assert not any("limits.cpus" in notice for notice in notices)
        else:
            why = "this host has cgroups v1, which only root can use"
            assert f"limits.cpus is not enforced: {why}" in notices
            assert f"limits.memory and limits.pids: watched by the supervisor every 2 s: {why}" in notices
            assert "the limit is 20" in str(look.meta.detail)


def test_a_host_without_cgroups(docker: Docker) -> None:
    """Where neither systemd nor a cgroup is to be had, limits are watched as on this machine, and that is said."""
    with docker.running() as name, Host(docker, name).place("root") as place:
        look = _run(place, "for i in {1..40}; do sleep 60 & done; wait", pids=20, memory=500 * MB, cpus="2.000")
        assert look.meta is not None
        why = "this host has neither systemd nor cgroups that can be written"
        assert (look.state, look.reason) == (State.FAILED, "pids")
        assert f"limits.cpus is not enforced: {why}" in look.meta.notices
