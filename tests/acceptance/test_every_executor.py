"""Every type of executor in one file, and one script that gives each of them a task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.hetzner_api import HetznerApi
from fakes.scenarios import scenario
from machines.ssh_host import SshHost
from renter import key_of, make_renter
from user import User

pytestmark = pytest.mark.timeout(900)

# As in the executors file of the documentation, with hosts, images and folders that there are here, and a cloud.
EXECUTORS = """
executors:
  - name: crib
    type: ssh
    host: {host}
    host_key: {host_public}
    user: plain
    key_path: {host_key}
    claude_path: {host_claude}
    labels:
      - rust
      - heavy-compute

  - name: builder
    type: container
    image: {image}
    runtime: docker  # or podman
    network: host
    volumes:
      - {repos}:/work
    labels:
      - isolated
      - reproducible

  - name: local
    type: local
    claude_path: {claude}
    labels:
      - quick-tasks
      - lightweight

  - name: cloud
    type: hetzner
    server_types: cx23
    locations: fsn1
    key_path: {cloud_key}
"""

SCRIPT = """
import time

from coding_agent import dispatch

EXECUTORS = ("crib", "builder", "local", "cloud")
tasks = [
    dispatch(
        prompt={prompt!r},
        executor=executor,
        max_turns=100,
        labels={{"rust", "heavy"}}
    )
    for executor in EXECUTORS
]

for task in tasks:
    # Monitor
    while task.running:
        status = task.status()
        print(f"CPU: {{status.cpu}}%, MEM: {{status.mem}}MB")
        print(task.recent_activity())  # last 10 tool calls
        time.sleep(1)

for task, executor in zip(tasks, EXECUTORS, strict=True):
    outputs = task.outputs
    print("ENDED", executor, outputs.executor, outputs.status, outputs.num_turns, *task.recent_activity()[:1])
    task.cleanup()
"""


@pytest.fixture
def everywhere(
    user: User,
    hetzner_api: HetznerApi,
    ssh_host: SshHost,
    server_plugins: Path,
    docker_plugin: Path,
    container_image: str,
    claude_program: Path,
    tmp_path: Path,
) -> Iterator[User]:
    """Return a user with an executor of each type."""
    assert server_plugins == docker_plugin
    make_renter(user, hetzner_api, server_plugins)
    (tmp_path / "repos").mkdir()
    options = ssh_host.options()
    text = EXECUTORS.format(
        host=options["host"],
        host_public=options["host_key"],
        host_key=options["key_path"],
        host_claude=ssh_host.put_program(claude_program),
        image=container_image,
        repos=tmp_path / "repos",
        claude=claude_program,
        cloud_key=key_of(user),
    )
    user.executors_file.write_text(text)
    yield user
    ssh_host.run("bash", "-c", "pkill -KILL -u plain; rm -rf /home/plain/.coding-agent || :")


@pytest.mark.slow
def test_one_script_uses_them_all(everywhere: User, hetzner_api: HetznerApi, tmp_path: Path) -> None:
    """One script dispatches an agent to every type of executor by name, whatever its labels, watches each, and cleans
    up; each has run there once, and nothing is left of any."""
    user, script = everywhere, tmp_path / "script.py"
    script.write_text(SCRIPT.format(prompt=f"Fix the build... {scenario('bash', command='uname -n; sleep 3')}"))

    shown = user.run("python3", str(script)).stdout

    ended = [line.split() for line in shown.splitlines() if line.startswith("ENDED")]
    assert [each[1:5] for each in ended] == [
        [name, name, "succeeded", "2"] for name in ("crib", "builder", "local", "cloud")
    ]
    assert all(each[5] == "Bash" for each in ended)
    assert "CPU: " in shown
    assert len(user.api.sessions()) == 4
    assert hetzner_api.listed() == []
    assert user.cli("list", "--queue", "--all", "--json").stdout.strip() == "[]"
    assert not (user.home / ".coding-agent").exists()
