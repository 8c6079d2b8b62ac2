"""Servers of the fake cloud as containers: systemd, cloud-init and sshd on a loopback address of their own, in seconds.

Nothing of them is on a bridge: their network namespace has nothing but what this process puts there, and ends with it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import select
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from containers import Docker
from machines import metadata
from machines.cloud_image import cloud_image
from machines.forwarding import Forwarding, relayed
from machines.loopback import Claim, claim, claim_address
from machines.machine import READY_LIMIT, SSH_PORT, Machine, ServerSpec
from machines.namespaces import Namespace
from waiting import until

LABEL = "coding-agent-test.cloud"  # its value names the process's claim
_SHUTDOWN_LIMIT = 30  # seconds
_SEED = "/var/lib/cloud/seed/nocloud"
_OPTIONS = (
    *("--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_PTRACE", "--cgroupns=host"),
    *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined", "--network", "none"),
    *("-v", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "--tmpfs", "/run", "--tmpfs", "/run/lock", "--tty"),
    *("-e", "container=docker", "--stop-signal", "SIGRTMIN+3"),
)
# The address of the metadata lies on the other end of a cable, so that rules of routing apply to it, as in the cloud.
_CABLE = """
ip link set lo up
ip link add cloud type veth peer name eth0 netns "$1"
ip address add "$2/32" dev cloud
ip link set cloud up
ip route add 198.51.100.2/32 dev cloud
"""
_PLUG = """
ip address add 198.51.100.2/32 dev eth0
ip link set eth0 up
ip route add "$1/32" dev eth0 src 198.51.100.2
"""


class CloudServer:
    """One server; see `machines.machine.Machine`."""

    def __init__(self, docker: Docker, image: str, server: ServerSpec, owner: str, program: Path | None = None) -> None:
        """Take an address; the container is made when it first gets power. `program`: see `CloudServers`."""
        self.server = server
        self._docker = docker
        self._image = image
        self._owner = owner
        self._program = program
        self._claim = claim_address()
        self._name = f"cloud-{server.id}-{secrets.token_hex(3)}"
        self._guard = threading.RLock()
        self._made = False
        self._deleted = False
        self._process: int | None = None  # a pidfd of its init
        self._network: contextlib.ExitStack = contextlib.ExitStack()

    @property
    def address(self) -> str:
        """Its address."""
        return self._claim.name

    @property
    def running(self) -> bool:
        """Whether it has power."""
        process = self._process
        if process is None:
            return False
        try:
            return not select.select([process], [], [], 0)[0]
        except OSError:
            return False  # closed meanwhile

    @property
    def pid(self) -> int:
        """Its init, as this machine counts."""
        return int(self._docker("inspect", "-f", "{{.State.Pid}}", self._name))

    def power_on(self) -> None:
        """Give it power."""
        with self._guard:
            if self.running or self._deleted:
                return
            self._unplug()
            if not self._made:
                self._make()
            self._docker("start", self._name)
            pid = self.pid
            self._process = os.pidfd_open(pid)
            self._plug(pid)

    def power_off(self) -> None:
        """Take the power away."""
        with self._guard:
            self._end("kill")

    def shutdown(self) -> None:
        """Ask the system to end."""
        with self._guard:
            self._end("stop", "-t", str(_SHUTDOWN_LIMIT))

    def reboot(self) -> None:
        """Boot anew."""
        with self._guard:
            self.shutdown()
            self.power_on()

    def ready(self, limit: float = READY_LIMIT) -> None:
        """Wait until cloud-init has ended."""
        end = time.monotonic() + limit
        try:
            # An init that has only just started is no host for a command yet.
            until(lambda: self.run(["test", "-e", "/run/systemd/private"])[0] == 0, limit=limit)
            self.run(["cloud-init", "status", "--wait"], limit=max(1.0, end - time.monotonic()))
        except (AssertionError, subprocess.TimeoutExpired) as error:
            raise AssertionError(f"not ready within {limit:.0f} s: {self.console()[-2000:]}") from error

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", limit: float = 60.0) -> tuple[int, str]:
        """Run a command there as root."""
        done = subprocess.run(
            [self._docker.program, "exec", "-i", self._name, *argv],
            env={**os.environ, **self._docker.environment},
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit,
            check=False,
        )
        return done.returncode, done.stdout.decode("utf-8", "replace")

    def console(self) -> str:
        """Return what it wrote to its console."""
        return self._docker("logs", self._name) if self._made else ""

    def snapshot(self) -> str:
        """Keep its disk as an image."""
        name = f"coding-agent-test/snapshot:{secrets.token_hex(6)}"
        with self._guard:
            if not self._made:
                self._make()
            self._docker("commit", "--change", f"LABEL {LABEL}={self._owner}", self._name, name)
        return name

    def delete(self) -> None:
        """Remove it."""
        with self._guard:
            if self._deleted:
                return
            self._deleted = True
            self._unplug()
            if self._made:
                self._docker("rm", "-f", "-v", self._name)
            self._claim.release()

    def _make(self) -> None:
        program = ["-v", f"{self._program.resolve()}:/usr/local/bin/claude:ro"] if self._program else []
        self._docker(
            *("create", "--name", self._name, "--hostname", self.server.name.partition(".")[0], *_OPTIONS, *program),
            *("--label", f"{LABEL}={self._owner}", "--memory", str(self.server.memory), self._image, "/sbin/init"),
        )
        self._made = True
        # Through Docker, which copies into a container that has never run: no folder of the machine's has to stay.
        self._docker("cp", "-", f"{self._name}:/", stdin=_archive(self._seed()))

    def _seed(self) -> dict[str, str]:
        meta = {
            "instance-id": str(self.server.id),
            "local-hostname": self.server.name,
            "public-keys": list(self.server.public_keys),
        }
        return {
            f"{_SEED}/meta-data": json.dumps(meta),
            f"{_SEED}/user-data": self.server.user_data or "#cloud-config\n{}\n",
            f"{_SEED}/vendor-data": metadata.VENDOR_DATA,
        }

    def _end(self, *command: str) -> None:
        if self.running:
            # It may end by itself meanwhile.
            with contextlib.suppress(AssertionError):
                self._docker(*command, self._name)
            until(lambda: not self.running, limit=_SHUTDOWN_LIMIT)
        self._unplug()

    def _plug(self, pid: int) -> None:
        """Give it a network: metadata, the ports it may reach, and port 22 of its address once its sshd answers."""
        network, inside, cloud = self._network, Namespace.of(pid), Namespace.new()
        network.callback(inside.close)
        network.callback(cloud.close)
        cloud.run(_CABLE, str(pid), metadata.ADDRESS)
        inside.run(_PLUG, metadata.ADDRESS)
        service = metadata.MetadataService(cloud.listen(metadata.ADDRESS, metadata.PORT), self.server, self.address)
        network.callback(service.close)
        for port in self.server.ports:
            network.callback(relayed(inside, port).close)
        ended = threading.Event()
        network.callback(ended.set)
        threading.Thread(target=self._open, args=(inside, ended), name="sshd", daemon=True).start()

    def _open(self, inside: Namespace, ended: threading.Event) -> None:
        """Listen on port 22 of its address from when its sshd does: until then a connection is refused."""
        while not ended.wait(0.05):
            with self._guard:
                if ended.is_set():
                    return
                try:
                    inside.connect("127.0.0.1", SSH_PORT).close()
                except OSError:
                    continue
                listener = socket.create_server((self.address, SSH_PORT), backlog=64)
                forwarding = Forwarding(listener, lambda: inside.connect("127.0.0.1", SSH_PORT), self.server.sources)
                self._network.callback(forwarding.close)
                return

    def _unplug(self) -> None:
        self._network.close()
        if self._process is not None:
            os.close(self._process)
            self._process = None


class CloudServers:
    """What makes them; see `machines.machine.Machines`."""

    def __init__(self, docker: Docker, program: Path | None = None) -> None:
        """Remove what a killed test left. `program` is a Claude Code that servers find on their PATH."""
        self._docker, self._program = docker, program
        self._image = cloud_image(docker)
        owner = claim(f"cloud-{secrets.token_hex(6)}")
        assert owner is not None
        self._claim: Claim = owner
        self._machines: list[CloudServer] = []
        self._remove_left()

    def create(self, server: ServerSpec) -> CloudServer:
        """Make a server, without power yet."""
        image = server.image if server.image.startswith("coding-agent-test/snapshot:") else self._image
        machine = CloudServer(self._docker, image, server, self._claim.name, self._program)
        self._machines.append(machine)
        return machine

    def forget(self, image: str) -> None:
        """Remove an image that `snapshot` made."""
        self._docker("rmi", "-f", image)

    def close(self) -> None:
        """Remove all of them."""
        for machine in self._machines:
            machine.delete()
        self._remove(self._claim.name)
        self._claim.release()

    def _remove_left(self) -> None:
        listed = self._docker("ps", "-a", "--filter", f"label={LABEL}", "--format", f'{{{{.Label "{LABEL}"}}}}')
        images = self._docker("images", "-q", "--filter", f"label={LABEL}").split()
        owners = {self._docker("inspect", "-f", f'{{{{index .Config.Labels "{LABEL}"}}}}', each) for each in images}
        for owner in {*listed.split(), *owners}:
            if dead := claim(owner):
                self._remove(owner)
                dead.release()

    def _remove(self, owner: str) -> None:
        label = f"label={LABEL}={owner}"
        for each in self._docker("ps", "-aq", "--filter", label).split():
            self._docker("rm", "-f", "-v", each)
        self._docker.remove(self._docker("images", "-q", "--filter", label).split())


def seen_from_here(machine: Machine, path: str) -> Path:
    """Return where this machine's root finds a path of a container's."""
    assert isinstance(machine, CloudServer)
    return Path(f"/proc/{machine.pid}/root{path}")


def _archive(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(text.encode()), 0o600
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()
