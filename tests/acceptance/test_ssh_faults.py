"""A host that goes away while a run is on it, and comes back: what a user sees of it, and has afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.scenarios import scenario
from machines.relay import relay
from machines.ssh_host import SshHost
from user import User
from waiting import until

pytestmark = pytest.mark.timeout(300)

BOUND = 60.0  # seconds


def _reaches(lines: Callable[[], list[int]], count: int) -> None:
    until(lambda: len(lines()) >= count, limit=BOUND)


@pytest.mark.parametrize("fault", ["cut", pytest.param("freeze", marks=pytest.mark.slow)])
def test_following_a_log(crib: User, ssh_host: SshHost, fault: str, tmp_path: Path) -> None:
    """`logs -f` goes on where the connection broke, cut or frozen, and shows each line once."""
    with relay(ssh_host.address) as way:
        crib.executors(ssh_host.executor(host=way.address[0], port=way.address[1]))
        count = 'i=0; until [[ -e go ]]; do echo "line $((i += 1))"; sleep 0.02; done; echo "line $((i + 1))"'
        crib.job(command=count, executor="crib")
        crib.cli("up", "job", "--detach")
        run_id = crib.outputs("job")["run_id"]
        shown = tmp_path / "shown"
        process = crib.start("logs", "-f", "job", "-n", "100000", into=shown)

        def lines() -> list[int]:
            return [int(each) for each in re.findall(r"(?m)^line (\d+)$", shown.read_text())]

        for _ in range(3 if fault == "cut" else 1):
            wanted = len(until(lines)) + 50
            getattr(way, fault)()
            if fault == "freeze":
                until(lambda: "the connection is broken" in shown.read_text(), limit=2 * BOUND)
                way.thaw()
            _reaches(lines, wanted)
        ssh_host.run("bash", "-c", f"touch /home/plain/.coding-agent/runs/{run_id}/workspace/go", user="plain")
        assert process.wait(BOUND) == 0, shown.read_text()
        assert lines() == list(range(1, len(lines()) + 1))
        assert fault == "cut" or "connected again" in shown.read_text()  # a cut one is mostly replaced unnoticed


def test_a_host_that_restarts(crib: User, ssh_host: SshHost, claude_program: Path) -> None:
    """A run on a host that is down is `unresponsive`, and `lost` at the first look after its return; what the agent had
    committed comes back, and `destroy` leaves nothing there."""
    crib.executors(ssh_host.executor(claude_path=ssh_host.put_program(claude_program)))
    crib.job(prompt=scenario("edit+gate"), repo=".", executor="crib")
    crib.commit_all()
    crib.cli("up", "job", "--detach")
    crib.api.wait_for_turns(7, timeout=BOUND)
    ssh_host.down()
    try:
        assert (crib.outputs("job")["status"], crib.outputs("job")["reason"]) == ("unresponsive", "no_connection")
    finally:
        ssh_host.up()

    assert crib.outputs("job")["status"] == "lost"

    assert crib.git("show", "coding-agent/job:note.txt") == "the second line\n"
    crib.cli("destroy", "job")
    assert ssh_host.run("bash", "-c", "ls -A /home/plain/.coding-agent 2>/dev/null || :") == ""
    crib.api.open_gate()
