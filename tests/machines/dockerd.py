"""A container engine of a test's own: the real dockerd with its own folders, which may be stopped and killed."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from containers import Docker, base_image
from processes import processes_with_text
from testbed.needs import ROOT, program, requires
from waiting import until

LIMIT = 60.0  # seconds
BRIDGE_ADDRESS = "198.51.100.1/24"  # of a range for documentation: nothing is sent there


@dataclass
class Dockerd:
    """One dockerd; its containers use this machine's network, or none."""

    folder: Path
    programs: Path | None = None  # a folder of programs that it finds before all others
    process: subprocess.Popen[bytes] | None = None
    # Its sockets': their paths may have 104 characters.
    sockets: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="dockerd-", dir="/tmp")))
    # Without one of its own it would take that of the machine's dockerd away.
    bridge: str = field(default_factory=lambda: f"ca{secrets.token_hex(5)}")
    docker: Docker = field(init=False)

    def __post_init__(self) -> None:
        self.docker = Docker({"DOCKER_HOST": self.url})

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"unix://{self.sockets}/docker.sock"

    @property
    def volumes(self) -> Path:
        """The folder with its volumes' files."""
        return self.folder / "data" / "volumes"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        # One that was killed leaves its pid and its containerd's, which may be somebody else's by now, or a zombie's.
        for left in (self.folder / "pid", self.sockets / "exec" / "containerd" / "containerd.pid"):
            left.unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *("dockerd", "--data-root", str(self.folder / "data"), "--exec-root", str(self.sockets / "exec")),
                    *("--pidfile", str(self.folder / "pid"), "--host", self.url, "--group", str(os.getgid())),
                    *(f"--bridge={self.bridge}", "--iptables=false", "--ip6tables=false", "--log-level=warn"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Nothing of the test that comes first: what mentions a test's home is ended after it.
                env={"PATH": f"{self.programs or '/bin'}:{os.environ['PATH']}", "HOME": str(self.folder)},
            )
        until(self._answers, limit=LIMIT)

    def stop(self) -> None:
        """Stop it in order: it ends its containers."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it, and the containerd that it started: its containers go on until it is started again."""
        self._end(signal.SIGKILL)
        for pid in processes_with_text(f"{self.sockets}/exec/containerd/containerd.toml"):
            os.kill(pid, signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(LIMIT)
            self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text(errors="replace")[-2000:]
        try:
            self.docker("version")
        except AssertionError:
            return False
        return True


@contextmanager
def dockerd(folder: Path, *, programs: Path | None = None) -> Iterator[Dockerd]:
    """Run a dockerd with the image that tests run in; nothing of it is left after the block."""
    requires(ROOT, program("dockerd", "docker.io"), program("ip", "iproute2"))
    folder.mkdir(parents=True, exist_ok=True)
    engine = Dockerd(folder, programs)
    _ip("link", "add", engine.bridge, "type", "bridge")
    _ip("address", "add", BRIDGE_ADDRESS, "dev", engine.bridge)
    try:
        engine.start()
        base_image(engine.docker)
        yield engine
    finally:
        if engine.process is None:
            engine.start()
        if left := engine.docker("ps", "-aq").split():
            engine.docker("rm", "-f", "-v", *left)
        engine.stop()
        _ip("link", "delete", engine.bridge)
        for each in (folder, engine.sockets):
            _unmount(each)
        shutil.rmtree(engine.sockets, ignore_errors=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=LIMIT)


def _unmount(folder: Path) -> None:
    """A dockerd that was killed leaves what it had mounted."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for path in sorted((each for each in mounted if each.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", path], check=False, capture_output=True, timeout=LIMIT)
