"""Runs on an SSH host, against ssh and Ansible doing the same, and from 80 ms away."""

from __future__ import annotations

import contextlib
import getpass
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.delay import FAR, delayed
from benchmarks.looking import ticks
from benchmarks.measure import Report, Series, side_by_side
from benchmarks.world import LIMIT, World

AWAY = 0.08  # seconds there and back
PORT = 22_022
TASK = "prompt: 'SCENARIO=text'\nexecutor: far\n"
PLAYBOOK = """\
- hosts: all
  gather_facts: false
  tasks:
    - file: {{path: "{folder}", state: directory, mode: "0700"}}
    - copy: {{dest: "{folder}/prompt.txt", content: "SCENARIO=text", mode: "0600"}}
    - shell:
        cmd: {claude} -p --output-format stream-json --verbose <prompt.txt >stream.jsonl 2>stderr.log
        chdir: "{folder}"
      environment: {environment}
      async: 600
      poll: 0
"""
ASK = """
import json, sys, time
from coding_agent import executors, records
record = records.find(sys.argv[1])
took = {"first": [], "reused": [], "log": []}
for _ in range(int(sys.argv[2])):
    executor = executors.connect(record.spec, record.place)
    for name in ("first", "reused", "reused"):
        begun = time.perf_counter()
        executor.status(record.run_id)
        took[name].append(time.perf_counter() - begun)
    begun = time.perf_counter()
    executor.read(record.run_id, "output.log")
    took["log"].append(time.perf_counter() - begun)
    executor.close()
print(json.dumps(took))
"""


@dataclass(frozen=True)
class Host:
    """An sshd of a benchmark's own, for the user who runs it."""

    address: str
    port: int
    key: Path
    known_hosts: Path
    host_key: str

    def ssh(self, command: str) -> list[str]:
        """Return OpenSSH's argv for a command there."""
        options = ["-F", "none", "-i", str(self.key), "-p", str(self.port), "-o", "IdentitiesOnly=yes"]
        known = ["-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "BatchMode=yes"]
        return ["ssh", *options, *known, f"{getpass.getuser()}@{self.address}", command]


@contextlib.contextmanager
def nearby(world: World) -> Iterator[None]:
    """Give the world an executor `far` on this machine, through an sshd of its own."""
    with _host("127.0.0.1", PORT) as host, _far(world, host):
        yield


@contextlib.contextmanager
def _host(address: str, port: int, prefix: Sequence[str] = ()) -> Iterator[Host]:
    """Run an sshd at the address, started by `prefix` (`ip netns exec NAME`), until the block ends."""
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    with tempfile.TemporaryDirectory(prefix="coding-agent-sshd-") as folder:
        here = Path(folder)
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(here / name)],
                check=True,
                timeout=LIMIT,
            )
        public = (here / "host.pub").read_text().strip()
        (here / "known").write_text(f"[{address}]:{port} {public}\n{address} {public}\n")
        settings = {
            "ListenAddress": f"{address}:{port}",
            "HostKey": here / "host",
            "AuthorizedKeysFile": here / "user.pub",
            "StrictModes": "no",
            "PidFile": "none",
            "UsePAM": "no",
            "Subsystem": "sftp internal-sftp",
            "PasswordAuthentication": "no",
            "MaxStartups": "100",
        }
        (here / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        Path("/run/sshd").mkdir(exist_ok=True)
        with subprocess.Popen(
            [*prefix, sshd, "-D", "-e", "-f", str(here / "config")], stderr=subprocess.PIPE
        ) as server:
            try:
                assert server.stderr is not None
                for line in server.stderr:
                    if b"listening" in line:
                        break
                threading.Thread(target=server.stderr.read, daemon=True).start()  # so that it can always write
                yield Host(address, port, here / "user", here / "known", public)
            finally:
                server.terminate()


@contextlib.contextmanager
def _far(world: World, host: Host) -> Iterator[None]:
    """Give the world an executor `far` on the host."""
    far = {
        "name": "far",
        "type": "ssh",
        "host": host.address,
        "port": host.port,
        "user": getpass.getuser(),
        "key_path": str(host.key),
        "host_key": host.host_key,
        "root_dir": str(world.home / "far"),
        "claude_path": str(world.claude),
    }
    file = world.home / ".config" / "openclaw" / "coding-agent.yaml"
    before = file.read_text()
    file.write_text(json.dumps({"executors": [far]}))
    world.plugin("command")
    try:
        yield
    finally:
        file.write_text(before)


def first_up(world: World, times: int) -> Report:
    """Measure `up --detach` on an SSH host, against what people type, and against Ansible doing that."""
    ours, bare, ansible = (
        Series("up --detach on an SSH host"),
        Series("ssh host 'nohup claude ... &'"),
        Series("ansible"),
    )
    world.task("far", TASK)
    folder = world.home / "bare-run"
    folder.mkdir(exist_ok=True)
    names = ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY")
    environment = {name: world.environment[name] for name in names}
    with _host("127.0.0.1", PORT) as host, _far(world, host):

        def up() -> None:
            with ours.timing():
                world.cli("up", "far", "--detach")
            world.cli("destroy", "far", "--yes")

        def typed() -> None:
            set_them = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
            claude = f"{world.claude} -p --output-format stream-json --verbose"
            command = f"cd {folder} && {set_them} nohup {claude} SCENARIO=text >stream.jsonl 2>stderr.log </dev/null &"
            with bare.timing():
                world.run(*host.ssh(command))

        steps = [up, typed]
        playbook = shutil.which("ansible-playbook")
        if playbook:
            steps.append(lambda: _play(world, playbook, host, folder, environment, ansible))
        side_by_side(times, *steps)
    notes = [
        "in ours: the stack, the checks of the host, the supervisor, the run's folder and the agent's start; in the "
        "others the start alone",
        *([] if playbook else ["not run: ansible (no ansible-playbook on PATH)"]),
    ]
    return Report("first up on an SSH host", [each for each in (ours, bare, ansible) if each.samples], (), notes)


def _play(world: World, playbook: str, host: Host, folder: Path, environment: dict[str, str], series: Series) -> None:
    inventory, play = world.home / "inventory", world.home / "play.yaml"
    common = f"-F none -o IdentitiesOnly=yes -o UserKnownHostsFile={host.known_hosts}"
    inventory.write_text(
        f"far ansible_host={host.address} ansible_port={host.port} ansible_user={getpass.getuser()} "
        f"ansible_ssh_private_key_file={host.key} ansible_ssh_common_args='{common}' "
        f"ansible_python_interpreter={sys.executable}\n"
    )
    play.write_text(PLAYBOOK.format(folder=folder, claude=world.claude, environment=json.dumps(environment)))
    with series.timing():
        world.run(playbook, "-i", str(inventory), str(play))


def from_afar(world: World, times: int) -> list[Report]:
    """Measure a look at a run, the reading of its log and `logs -f`, on a host that is 80 ms away."""
    with delayed(AWAY) as namespace:
        with _host(FAR, 22, ("ip", "netns", "exec", namespace)) as host, _far(world, host):
            bare = Series("ssh host true")
            for _ in range(times):
                with bare.timing():
                    world.run(*host.ssh("true"))
            world.task("asked", "command: echo here; sleep 600\nexecutor: far\n")
            world.cli("up", "asked", "--detach")
            took = json.loads(world.run(sys.executable, "-c", ASK, "asked", str(times)).stdout)
            shown = Series("`coding-agent status`")
            for _ in range(times):
                with shown.timing():
                    world.cli("status", "asked")
            world.cli("destroy", "asked", "--yes")
            first, reused, log = (
                Series("status, first connection", samples=took["first"]),
                Series("status, connection reused", samples=took["reused"]),
                Series("a read of the log, connection reused", samples=took["log"]),
            )
            latency = ticks(world, times, "executor: far\n")
    notes = [f"{AWAY * 1000:.0f} ms there and back: each packet is late by half of that"]
    return [
        Report("a host 80 ms away: looking", [reused, first, log, bare, shown], (), notes),
        Report("a host 80 ms away: log event to screen", [latency]),
    ]
