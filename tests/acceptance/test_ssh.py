"""A task on a host that one logs in to: the host stays as it was, the run comes and goes, through the doors users have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.scenarios import scenario
from machines.ssh_host import SshHost
from user import User

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def crib(user: User, ssh_host: SshHost, claude_program: Path, command_plugin: Path) -> Iterator[User]:
    """Return a user with an executor `crib`: a host that has Claude Code, that he knows, and a key to log in with."""
    (user.home / ".pulumi" / "plugins").symlink_to(command_plugin)
    program = ssh_host.put_program(claude_program)
    user.executors({"name": "crib", "type": "ssh", "claude_path": program, **ssh_host.options()})
    yield user
    ssh_host.run("bash", "-c", "rm -rf /home/*/.coding-agent", user="root")


def _left(host: SshHost, name: str = "plain") -> list[str]:
    return host.run("bash", "-c", f"find '{host.home(name)}/.coding-agent' 2>/dev/null | head -50").splitlines()


def test_agent_on_a_host(crib: User, ssh_host: SshHost) -> None:
    """An agent works on a host on the user's repository, its commits arrive, and `destroy` leaves nothing there."""
    crib.job(prompt=scenario("edit"), repo=".", executor="crib")
    crib.commit_all()

    shown = crib.cli("up", "job").stdout

    outputs = crib.outputs("job")
    assert (outputs["status"], outputs["executor"], outputs["num_turns"]) == ("succeeded", "crib", 6), shown
    assert crib.git("show", "coding-agent/job:note.txt") == "the second line\n"
    changes = json.loads(crib.pulumi("preview", "--stack", "job", "--json").stdout)["changeSummary"]
    assert set(changes) == {"same"}

    crib.cli("destroy", "job")

    assert _left(ssh_host) == []
    assert crib.outputs("job")["status"] == "succeeded"
