"""Servers of the fake cloud as virtual machines: a kernel of their own, and cloud-init's own source for Hetzner.

QEMU without hardware support: a device /dev/kvm says nothing of a processor that has it. So they are slow, have one
core and little memory, whatever was ordered. Each is in a network namespace where nothing is but the metadata service
and the ports that it may reach.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from machines import metadata
from machines.forwarding import Forwarding, relayed
from machines.loopback import claim_address
from machines.machine import READY_LIMIT, SSH_PORT, ServerSpec
from machines.namespaces import Namespace
from machines.qemu_agent import Agent
from machines.qemu_disk import Disk, disk
from waiting import until

_MEMORY = 1 << 30  # bytes, at most
_CODE = 256  # MiB that QEMU may keep of what it translated
_SHUTDOWN_LIMIT = 180.0  # seconds
_END_LIMIT = 60.0  # seconds
_GREETING_LIMIT = 15.0  # seconds; sshd takes some to say its first word
_KERNEL = "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet"
_SNAPSHOT = "snapshot-"
_NETWORK = 'ip link set lo up; ip address add "$1/32" dev lo'


class QemuServer:
    """One server; see `machines.machine.Machine`."""

    def __init__(self, server: ServerSpec, boots: Disk, folder: Path) -> None:
        """Take an address; its disk is made when it first gets power."""
        self.server = server
        self._boots = boots
        self._folder = folder
        self._claim = claim_address()
        self._guard = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._network = contextlib.ExitStack()
        self._agent = Agent(folder / "agent")
        self._deleted = False

    @property
    def address(self) -> str:
        """Its address."""
        return self._claim.name

    @property
    def running(self) -> bool:
        """Whether it has power."""
        process = self._process
        return process is not None and process.poll() is None

    def power_on(self) -> None:
        """Give it power."""
        with self._guard:
            if self.running or self._deleted:
                return
            self._unplug()
            self._make()
            inside = Namespace.new()
            self._network.callback(inside.close)
            self._plug(inside)
            with (self._folder / "errors").open("ab") as errors:
                self._process = subprocess.Popen(
                    [*inside.entering(), *self._argv()],
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    start_new_session=True,
                )
            until(lambda: not self.running or (self._folder / "agent").exists())
            assert self.running, (self._folder / "errors").read_text(errors="replace")

    def power_off(self) -> None:
        """Take the power away: what its system had not written is lost."""
        with self._guard:
            if self._process is not None:
                self._process.terminate()
                try:
                    self._process.wait(_END_LIMIT)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait(_END_LIMIT)
            self._unplug()

    def shutdown(self) -> None:
        """Ask the system to end."""
        with self._guard:
            if self.running:
                with contextlib.suppress(OSError, AssertionError):
                    self._agent.tell("guest-shutdown", {"mode": "powerdown"})
                    until(lambda: not self.running, limit=_SHUTDOWN_LIMIT)
            self.power_off()

    def reboot(self) -> None:
        """Boot anew."""
        with self._guard:
            self.shutdown()
            self.power_on()

    def ready(self, limit: float = READY_LIMIT) -> None:
        """Wait until cloud-init has ended."""
        try:
            until(lambda: not self.running or self._has_result(), limit=limit)
        except AssertionError as error:
            raise AssertionError(f"not ready within {limit:.0f} s: {self.console()[-2000:]}") from error
        assert self.running, f"it has no power: {self.console()[-2000:]}"

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", limit: float = 300.0) -> tuple[int, str]:
        """Run a command there as root."""
        return self._agent.run(argv, stdin, limit)

    def console(self) -> str:
        """Return what it wrote to its console."""
        path = self._folder / "console"
        return path.read_text(errors="replace") if path.exists() else ""

    def snapshot(self) -> str:
        """Keep its disk as an image."""
        name = f"{_SNAPSHOT}{secrets.token_hex(6)}"
        with self._guard:
            self._make()
            running = self.running
            if running:
                self._agent.ask("guest-fsfreeze-freeze")
            try:
                _copy(self._folder / "disk", self._folder.parent / name)
            finally:
                if running:
                    self._agent.ask("guest-fsfreeze-thaw")
        return name

    def delete(self) -> None:
        """Remove it."""
        with self._guard:
            if self._deleted:
                return
            self._deleted = True
            self.power_off()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._claim.release()

    def _has_result(self) -> bool:
        try:
            # Of this boot: the folder is gone with the power.
            return self.run(["test", "-e", "/run/cloud-init/result.json"])[0] == 0
        except OSError:
            return False

    def _make(self) -> None:
        if not (self._folder / "disk").exists():
            self._folder.mkdir(exist_ok=True)
            _copy(self._boots.file, self._folder / "disk")

    def _argv(self) -> list[str]:
        address = metadata.hardware_address(self.server)
        kernel = " ".join([_KERNEL, *(f"systemd.wants=relayed@{port}.socket" for port in self.server.ports)])
        return [
            *("qemu-system-x86_64", "-machine", "q35", "-accel", f"tcg,tb-size={_CODE}", "-cpu", "max", "-smp", "1"),
            *("-m", str(min(self.server.memory, _MEMORY) >> 20), "-nodefaults", "-no-user-config", "-display", "none"),
            # By this cloud-init knows where it is.
            *("-smbios", f"type=1,manufacturer=Hetzner,product=vServer,serial={self.server.id}"),
            *("-kernel", str(self._boots.kernel), "-initrd", str(self._boots.initrd), "-append", kernel),
            *("-drive", f"file={self._folder}/disk,if=virtio,format=raw,cache=unsafe"),
            *("-netdev", f"user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:{SSH_PORT}-:{SSH_PORT}"),
            *("-device", f"virtio-net-pci,netdev=net,mac={address},romfile=", "-device", "virtio-rng-pci"),
            *("-chardev", f"socket,id=agent,path={self._folder}/agent,server=on,wait=off", "-device", "virtio-serial"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
            *("-chardev", f"file,id=console,path={self._folder}/console,append=on", "-serial", "chardev:console"),
        ]

    def _plug(self, inside: Namespace) -> None:
        """Give it what its network has: metadata, the ports it may reach, port 22 of its address once sshd answers."""
        inside.run(_NETWORK, metadata.ADDRESS)
        service = metadata.MetadataService(inside.listen(metadata.ADDRESS, metadata.PORT), self.server, self.address)
        self._network.callback(service.close)
        for port in self.server.ports:
            self._network.callback(relayed(inside, port).close)
        ended = threading.Event()
        self._network.callback(ended.set)
        threading.Thread(target=self._open, args=(inside, ended), name="sshd", daemon=True).start()

    def _open(self, inside: Namespace, ended: threading.Event) -> None:
        """Listen on port 22 of its address from when its sshd does: until then a connection is refused."""
        while not ended.wait(0.2):
            if not _greets(inside):
                continue
            with self._guard:
                if not ended.is_set():
                    listener = socket.create_server((self.address, SSH_PORT), backlog=64)
                    forwarding = Forwarding(
                        listener, lambda: inside.connect("127.0.0.1", SSH_PORT), self.server.sources
                    )
                    self._network.callback(forwarding.close)
                return

    def _unplug(self) -> None:
        self._network.close()
        self._process = None
        (self._folder / "agent").unlink(missing_ok=True)


class QemuServers:
    """What makes them; see `machines.machine.Machines`."""

    def __init__(self) -> None:
        """Make their folder; the disk takes two minutes, once a machine."""
        self._disk = disk()
        self._machines: list[QemuServer] = []
        # Sockets' paths may have 104 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="virtual-machines-", dir="/tmp"))
        # Whatever ends this process, they end with it: nothing is left for a next one to remove.
        tests = str(Path(__file__).parents[1])
        self._watch = subprocess.Popen(
            [sys.executable, "-m", "machines.qemu_watch", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": tests},
            start_new_session=True,
        )

    def create(self, server: ServerSpec) -> QemuServer:
        """Make a server, without power yet."""
        image = self._folder / server.image
        boots = self._disk
        if server.image.startswith(_SNAPSHOT):
            boots = Disk(image, self._disk.kernel, self._disk.initrd)
        machine = QemuServer(server, boots, self._folder / str(server.id))
        self._machines.append(machine)
        return machine

    def forget(self, image: str) -> None:
        """Remove an image that `snapshot` made."""
        (self._folder / image).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all of them."""
        for machine in self._machines:
            machine.delete()
        assert self._watch.stdin is not None
        self._watch.stdin.close()
        self._watch.wait(_END_LIMIT)


def _greets(inside: Namespace) -> bool:
    """Whether the machine's sshd says what it is: QEMU takes connections before there is one."""
    try:
        with inside.connect("127.0.0.1", SSH_PORT) as connection:
            connection.settimeout(_GREETING_LIMIT)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _copy(disk: Path, to: Path) -> None:
    """Copy a disk, without what was never written there."""
    done = subprocess.run(
        ["cp", "--sparse=always", "--reflink=auto", str(disk), str(to)], capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"cp {shlex.quote(str(disk))}: {done.stderr.decode('utf-8', 'replace')}"
