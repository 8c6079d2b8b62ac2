"""What an outsider does to a run and sees of it: moments are awaited, things are broken and put in order again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acceptance.faults.table import Row
from containers import BASE
from fakes.hetzner_api import HetznerApi
from fakes.scenarios import scenario
from machines.cloud_server import seen_from_here
from machines.dockerd import Dockerd
from machines.machine import Machine
from machines.relay import Relay
from machines.ssh_host import SshHost
from processes import arguments_of, processes_with_text
from testbed.needs import MOUNTS, requires
from user import User
from waiting import until

LISTING = Path(__file__).with_name("listing.sh")
LIMIT = 150.0  # seconds
FROZEN_LIMIT = 270.0  # seconds until everything has given up a connection that is open and says nothing
# Of the engine's own program there is only one while a bare `pulumi up` waits.
BARE = ("kill engine", "kill plugin", "kill docker plugin")
# A shell whose keys are lent to it keeps them for what takes its place.
_BARE_UP = 'eval "$("$1" -m coding_agent env --shell bash)" && exec pulumi up --yes --skip-preview --stack job'
SMALL = {"disk full there": 40, "disk full here": 24}  # MB


@dataclass(frozen=True)
class Host:
    """A host that one logs in to, the way there, and where runs are to be on it."""

    host: SshHost
    way: Relay
    root: str  # there
    program: str  # Claude Code's, there

    @property
    def seen(self) -> Path:
        """The folder of runs, from here."""
        return self.host.seen_from_here(self.root)


@dataclass
class Scene:
    """One row of the table, as it is played."""

    row: Row
    user: User
    engine: Dockerd | None
    there: Host | None = None
    cloud: HetznerApi | None = None
    process: subprocess.Popen[str] | None = None
    healing: list[Callable[[], object]] = field(default_factory=list)
    # For whoever reads why a test failed: what the command said, and what was left.
    said: str = ""
    last_left: list[str] = field(default_factory=list)

    # What there is

    def listing(self) -> list[str]:
        """Return what a run could have left behind, by a script that knows nothing of the project."""
        argv = [str(LISTING), str(self.user.home), str(self.user.project), self.engine.url if self.engine else ""]
        if self.there and not self._removed():
            argv += [self.there.root, str(self.there.seen)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT, check=True)
        return sorted([*done.stdout.splitlines(), *(self.cloud.listed() if self.cloud else [])])

    def left(self, before: list[str]) -> list[str]:
        """Return what is there that was not there before."""
        self.last_left = sorted(set(self.listing()) - set(before))
        return self.last_left

    def records(self) -> list[Path]:
        """Return the folders of what is known of runs."""
        folder = self.user.record_dir("x").parent
        return sorted(each for each in folder.iterdir() if len(each.name) == 16) if folder.is_dir() else []

    def run_folder(self) -> Path | None:
        """Return the folder of the run, as the disk of its machine has it."""
        roots = [self.user.home / ".coding-agent"]
        if self.engine:
            roots = list(self.engine.volumes.glob("coding-agent-*/_data"))
        if self.there:
            roots = [self.there.seen]
        if self.cloud:
            roots = [seen_from_here(each, "/home/agent/.coding-agent") for each in self.machines()]
        found = [folder for root in roots for folder in root.glob("runs/*") if (folder / ".meta.json").exists()]
        return found[0] if found else None

    def container(self) -> str | None:
        """Return the run's container."""
        assert self.engine
        found = self.engine.docker.of_project(self.user.project)
        return found[0] if found else None

    def machines(self) -> list[Machine]:
        """Return the servers that there are."""
        assert self.cloud
        return [self.cloud.machine(each["name"]) for each in self.cloud.servers()]

    # Moments

    def set_up(self) -> None:
        """Write the task, and make the stack where the moment is to be in its first update; nothing has started yet."""
        user = self.user
        if self.engine:
            box = {"name": "box", "type": "container", "image": BASE, "network": "host"}
            user.executors({**box, "docker_host": self.engine.url})
        if self.there:
            host, port = self.there.way.address
            options = {"host": host, "port": port, "root_dir": self.there.root, "claude_path": self.there.program}
            user.executors(self.there.host.executor(**options))
        user.job(
            prompt=scenario("edit+gate"),
            repo=".",
            executor={"container": "box", "ssh": "crib", "hetzner": "cloud"}.get(self.row.executor, "local"),
            limits={"grace": "1s", "linger": "2s", "timeout": "5m"},
        )
        user.commit_all()
        if self.row.fault in BARE or self.row.moment == "target":
            user.pulumi("stack", "init", "job", "--no-select")  # else `up` makes it
        (user.home / ".began").touch()

    def begin(self) -> None:
        """Start `up` (or what removes the run) and return at the row's moment."""
        match self.row.moment:
            case "target":
                self._start_up()
                until(self._making, limit=LIMIT)
            case "start":
                self._start_up()
                until(self._starting, limit=LIMIT)
            case "run":
                self._start_up()
                self.user.api.wait_for_turns(7, timeout=LIMIT)
            case "collect":
                self._start_up()
                self.user.api.wait_for_turns(7, timeout=LIMIT)
                if self.row.fault != "disk full here":
                    self.user.api.open_gate()
                    until(self._saving, limit=LIMIT)
            case "destroy":
                self.user.api.open_gate()
                self.user.cli("up", "job")
                self.process = self.user.start("destroy", "job", "--yes")
                until(lambda: self._locks() or self._ended(), limit=LIMIT)

    def _start_up(self) -> None:
        if self.row.fault in BARE:
            self.process = subprocess.Popen(
                ["bash", "-c", _BARE_UP, "up", sys.executable],
                cwd=self.user.project,
                env=self.user.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        else:
            self.process = self.user.start("up", "job")

    def _making(self) -> bool:
        if self.there:
            return any(self.there.seen.glob(".incoming/*"))
        if self.cloud:
            return bool(self.cloud.servers())
        return bool(self.engine.docker.left(self.user.project) if self.engine else self._of("pulumi"))

    def _starting(self) -> bool:
        if not self.engine:
            return bool(self.records())
        found = self.container()
        return bool(found and self.engine.docker.inspect(found)["State"]["Running"])

    def _saving(self) -> bool:
        folder = self.run_folder()
        with contextlib.suppress(OSError, ValueError):
            meta = json.loads((folder / ".meta.json").read_bytes()) if folder else {"stage": "ended"}
            return meta["stage"] in ("saving", "ended")
        return self._ended()

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def _locks(self) -> list[Path]:
        return list((self.user.home / ".local/state/coding-agent/backend").rglob("locks/**/*.json"))

    # Faults

    def break_it(self) -> None:
        """Do what the row says."""
        getattr(self, "_" + self.row.fault.replace(" ", "_"))()

    def _kill_engine(self) -> None:
        self._kill(self._of("pulumi"))

    def _kill_cli(self) -> None:
        assert self.process
        self._kill([self.process.pid])

    def _kill_plugin(self) -> None:
        self._kill(self._of("coding_agent.provider", "pulumi-resource-coding-agent"))

    def _kill_docker_plugin(self) -> None:
        self._kill(self._of("pulumi-resource-docker"))

    def _kill_command_plugin(self) -> None:
        self._kill(self._of("pulumi-resource-command"))

    def _cut_connection(self) -> None:
        assert self.there
        self.there.way.cut()

    def _freeze_connection(self) -> None:
        assert self.there
        self.there.way.freeze()
        self.healing.append(self.there.way.thaw)

    def _kill_sshd(self) -> None:
        assert self.there
        self.there.host.stop()
        self.there.host.start()

    def _restart_host(self) -> None:
        assert self.there
        self.there.host.down()
        self.there.host.up()

    def _remove_host(self) -> None:
        assert self.there
        self.there.host.docker("rm", "-f", "-v", self.there.host.container)

    def _delete_server(self) -> None:
        assert self.cloud
        for each in self.cloud.servers():
            self.cloud.delete_server(each["id"])

    def _restart_server(self) -> None:
        for each in self.machines():
            each.power_off()
            each.power_on()

    def _api_down(self) -> None:
        assert self.cloud
        down = contextlib.ExitStack()
        down.enter_context(self.cloud.down())
        self.healing.append(down.close)

    def _api_fails(self) -> None:
        assert self.cloud
        self.cloud.switches.limit_rate(3)
        self.cloud.switches.refuse(3, status=503)

    def _api_slow(self) -> None:
        assert self.cloud
        self.cloud.switches.delay = 0.4
        self.healing.append(self.cloud.switches.off)

    def _removed(self) -> bool:
        return self.row.fault == "remove host" and self.process is not None

    def _kill_supervisor(self) -> None:
        self._kill([pid for pid in self._of_run() if any("supervise.sh" in word for word in arguments_of(pid))])

    def _kill_agent(self) -> None:
        self._kill([pid for pid in self._of_run() if arguments_of(pid)[0].endswith("/claude")])

    def _restart_dockerd(self) -> None:
        assert self.engine
        self.engine.stop()
        self.engine.start()

    def _kill_dockerd(self) -> None:
        assert self.engine
        self.engine.kill()
        self.engine.start()

    def _stop_dockerd(self) -> None:
        assert self.engine
        self.engine.stop()
        self.healing.append(self.engine.start)

    def _remove_container(self) -> None:
        self._docker("rm", "-f")

    def _pause_container(self) -> None:
        self._docker("pause")
        self.healing.append(lambda: self._docker("unpause"))

    def _restart_container(self) -> None:
        self._docker("restart", "-t", "1")

    def _docker(self, *command: str) -> None:
        assert self.engine
        if found := self.container():
            self.engine.docker(*command, found)

    def _disk_full_there(self) -> None:
        folder = self.run_folder()
        assert folder
        self._fill(folder.parent.parent / "filler")

    def _disk_full_here(self) -> None:
        self._fill(self.user.record_dir("filler"))
        self.user.api.open_gate()

    def _fill(self, file: Path) -> None:
        with contextlib.suppress(OSError), file.open("wb", buffering=0) as out:
            while True:
                out.write(b"x" * 65536)
        self.healing.append(file.unlink)

    def _truncate_meta(self) -> None:
        folder = self.run_folder()
        assert folder
        os.truncate(folder / ".meta.json", 40)

    def _truncate_record(self) -> None:
        (folder,) = self.records()
        os.truncate(folder / "record.json", 40)

    def _truncate_state(self) -> None:
        (file,) = (self.user.home / ".local/state/coding-agent/backend").rglob("stacks/**/job.json")
        backup = file.with_suffix(".kept")
        shutil.copy(file, backup)
        os.truncate(file, 400)
        self.healing.append(lambda: backup.replace(file))

    def _stack_lock(self) -> None:
        file = self._lock_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        gone = subprocess.Popen(["true"])
        gone.wait()
        lock = {"pid": gone.pid, "username": "somebody", "hostname": os.uname().nodename}
        file.write_text(json.dumps({**lock, "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z")}))

    def _lock_file(self) -> Path:
        (state,) = (self.user.home / ".local/state/coding-agent/backend").rglob("stacks/**/job.json")
        project = state.parent.name
        return (
            state.parents[2] / "locks" / "organization" / project / "job" / "0d5b4f8e-0000-4000-8000-000000000001.json"
        )

    def _of(self, *names: str) -> list[int]:
        mine = processes_with_text(f"HOME={self.user.home}")
        return [pid for pid in mine if any(Path(word).name in names or word in names for word in arguments_of(pid)[:4])]

    def _of_run(self) -> list[int]:
        (folder,) = self.records()
        return until(lambda: processes_with_text(folder.name), limit=LIMIT)

    def _kill(self, pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # Afterwards

    def go_on(self) -> None:
        """Let the agent end where it can, wait until the command has given up, and put in order what was broken."""
        if self.row.fault != "pause container":
            self.user.api.open_gate()
        if self.process is not None:
            try:
                limit = FROZEN_LIMIT if self.row.fault == "freeze connection" else LIMIT
                self.said = self.process.communicate(timeout=limit)[0] or ""
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.communicate()
        for heal in self.healing:
            heal()
        self.user.api.open_gate()

    def final(self) -> dict[str, Any]:
        """Repeat `up` until the run has come to its end; return how."""
        for _ in range(4):
            done = self.user.cli("up", "job", "--json", code=None)
            assert "Traceback" not in done.stdout + done.stderr
            with contextlib.suppress(ValueError, KeyError):
                said: dict[str, Any] = json.loads(done.stdout)
                if said["status"] in ("succeeded", "failed", "killed", "timed_out", "lost"):
                    return said
        raise AssertionError(f"no final state: {done.stdout}\n{done.stderr}")

    def destroy(self) -> None:
        """Remove everything; work that could not be saved is given up."""
        for _ in range(3):
            done = self.user.cli("destroy", "job", "--yes", code=None)
            assert "Traceback" not in done.stdout + done.stderr
            if done.returncode in (0, 4):
                return
            if done.returncode == 2 or self._removed():
                self.user.cli("destroy", "job", "--yes", "--discard")
                return
        raise AssertionError(f"not destroyed: {done.stdout}\n{done.stderr}")


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Let `folder` be a file system of so many MB."""
    requires(MOUNTS)
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(folder)], check=True, timeout=30)
    try:
        yield
    finally:
        # A dockerd that had it may have unmounted it when it was tidied up.
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True, timeout=30)
