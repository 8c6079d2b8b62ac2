"""A task on a host that one logs in to: the host stays as it was, the run comes and goes, through users' doors."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shared_cache
from fakes.scenarios import scenario
from machines.relay import relay
from machines.ssh_host import SshHost
from user import API_KEY, User
from waiting import until

pytestmark = pytest.mark.timeout(600)

# Connections that a command tries to a host that hangs up before it gives the host up: four for each of its calls.
ATTEMPTS = 32


def _executor(user: User, server: SshHost, **options: Any) -> None:
    """Write the executors file: one executor `crib`; None leaves an option out."""
    user.executors(server.executor(**options))


def _left(host: SshHost) -> list[str]:
    """Return what is in the folder of runs on the host."""
    home = host.home("plain")
    return sorted(host.run("bash", "-c", f"cd {home}/.coding-agent 2>/dev/null && find . -maxdepth 2 || :").split())


def _changes(user: User, name: str = "job") -> set[str]:
    """Return the kinds of change that a bare preview shows."""
    return set(json.loads(user.pulumi("preview", "--stack", name, "--json").stdout)["changeSummary"])


def test_agent_on_a_host(crib: User, ssh_host: SshHost, claude_program: Path) -> None:
    """An agent works on a host on the user's repository, its commits arrive, and `destroy` leaves nothing there; no
    secret is in the state, not even the address in clear."""
    _executor(crib, ssh_host, claude_path=ssh_host.put_program(claude_program))
    crib.job(prompt=scenario("edit"), repo=".", executor="crib")
    crib.commit_all()

    shown = crib.cli("up", "job").stdout

    outputs = crib.outputs("job")
    assert (outputs["status"], outputs["executor"], outputs["num_turns"]) == ("succeeded", "crib", 6), shown
    assert crib.git("show", "coding-agent/job:note.txt") == "the second line\n"
    assert _changes(crib) == {"same"}
    key = ssh_host.key.read_text().splitlines()[2]
    held = [crib.pulumi("stack", "export", "--stack", "job", *more).stdout for more in ([], ["--show-secrets"])]
    for text in (*held, shown, *(file.read_text(errors="replace") for file in _texts(crib))):
        assert key not in text
        assert API_KEY not in text

    crib.cli("destroy", "job")

    assert _left(ssh_host) == []
    assert crib.outputs("job")["status"] == "succeeded"


def _texts(user: User) -> Iterator[Path]:
    for folder in (user.home / ".local", user.project / "stacks"):
        yield from (each for each in folder.rglob("*") if each.is_file() and each.stat().st_size < 10_000_000)


def test_everything_that_is_missing_is_said_at_once(crib: User, ssh_host: SshHost) -> None:
    """A host that lacks several things is refused with all of them in one line, without the command that looked, from
    either door; nothing is left of it, there or here."""
    _executor(crib, ssh_host, claude_path="/opt/nowhere/claude", root_dir="/proc/runs")
    crib.job(prompt=scenario("text"), executor="crib")

    refused = crib.cli("up", "job", code=3).stderr

    for each in ("executor crib: the host lacks", "Claude Code (/opt/nowhere/claude)", "a folder /proc/runs"):
        assert each in refused
    assert "sh -s" not in refused
    bare = crib.run(
        "bash", "-c", _BARE.format("pulumi up --stack job --yes --skip-preview"), "x", sys.executable, code=1
    )
    assert "the host lacks Claude Code (/opt/nowhere/claude), a folder /proc/runs" in bare.stdout + bare.stderr
    crib.cli("destroy", "job")
    assert _left(ssh_host) == []


_BARE = 'eval "$("$1" -m coding_agent env --shell bash)" && {}'


def test_what_makes_another_run(crib: User, ssh_host: SshHost, tmp_path: Path) -> None:
    """Another key file or label changes nothing; another command or `--rerun` does, and takes the old run's folder
    along; the supervisor stays while a run uses it and goes with the last."""
    crib.job(command="echo one", executor="crib")
    crib.job("other", command="echo other", executor="crib")
    crib.cli("up", "job")
    first = crib.outputs("job")["run_id"]
    copy = tmp_path / "another-key"
    shutil.copy2(ssh_host.key, copy)
    _executor(crib, ssh_host, key_path=str(copy), labels=["go"])

    assert _changes(crib) == {"same"}
    crib.cli("up", "job")
    assert crib.outputs("job")["run_id"] == first
    crib.job(command="echo two", executor="crib")
    crib.cli("up", "job")
    second = crib.outputs("job")["run_id"]
    crib.cli("up", "job", "--rerun")
    third = crib.outputs("job")["run_id"]
    assert len({first, second, third}) == 3
    there = _left(ssh_host)
    assert [each for each in there if each.startswith("./runs/")] == [f"./runs/{third}"]
    assert len([each for each in there if each.startswith("./supervisor-") and each.count("/") == 1]) == 1

    crib.cli("up", "other")
    crib.cli("destroy", "job")
    assert any(each.startswith("./supervisor-") for each in _left(ssh_host))
    crib.cli("destroy", "other")
    assert _left(ssh_host) == []


def test_the_bare_engine_after_env(crib: User, ssh_host: SshHost, processes_with: Callable[[str], list[int]]) -> None:
    """After `eval "$(coding-agent env)"` a bare `pulumi up`, a second preview and `pulumi destroy` work without an
    ssh agent of the user's; the one that was started ends with the shell."""
    crib.job(command="echo bare > out.txt", executor="crib", artifacts=["out.txt"])
    script = _BARE.format(
        "echo agent $SSH_AUTH_SOCK && pulumi stack init --no-select job && "
        "pulumi up --stack job --yes --skip-preview && "
        "pulumi preview --stack job --json && pulumi destroy --stack job --yes --skip-preview"
    )

    shown = crib.run("bash", "-c", script, "x", sys.executable).stdout

    assert '"same"' in shown
    assert '"create"' not in shown
    socket = next(line.split()[1] for line in shown.splitlines() if line.startswith("agent "))
    until(lambda: not Path(socket).exists())
    assert _left(ssh_host) == []


def test_host_keys(crib: User, ssh_host: SshHost) -> None:
    """A host that is not known is refused with what it shows, `trust` makes it known, also one behind a jump; another
    key in its place is refused by the engine's plugin and by our own connection. So is a host without SFTP."""
    ssh_host.run("bash", "-c", "cd /etc/ssh && for n in a b; do ssh-keygen -q -t ed25519 -N '' -f other-$n; done")
    port, sftp = 2201, "Subsystem=sftp internal-sftp"
    _executor(crib, ssh_host, host_key=None, port=port, proxy_jump=f"root@{ssh_host.address}")
    crib.job(command="echo begun; sleep 300", executor="crib")
    with ssh_host.another_server(port, "HostKey=/etc/ssh/other-a"):
        refused = crib.cli("up", "job", code=3).stderr
        assert "is not known" in refused
        assert "coding-agent trust crib" in refused
        crib.cli("trust", "crib", "--yes")
        assert "has no SFTP" in crib.cli("up", "job", code=3).stderr
    with ssh_host.another_server(port, "HostKey=/etc/ssh/other-a", sftp):
        crib.cli("up", "job", "--detach")
    with ssh_host.another_server(port, "HostKey=/etc/ssh/other-b"):
        ours = crib.cli("kill", "job", code=3).stderr
        crib.job(command="echo changed", executor="crib")
        plugin = crib.cli("up", "job", code=3).stderr
    for said in (ours, plugin):
        assert "shows another key than it is known by" in said
    assert "sh -s" not in plugin
    with ssh_host.another_server(port, "HostKey=/etc/ssh/other-a", sftp):
        crib.cli("destroy", "job", "--yes")
    assert _left(ssh_host) == []


def test_a_host_that_does_not_answer(crib: User, ssh_host: SshHost) -> None:
    """`destroy` of a run on a host that does not answer ends with 3 and loses nothing, and works once it does; a few
    attempts are enough for it, and for `up`; `--discard` gives a host up that is gone for good."""
    with relay(ssh_host.address) as way:
        _executor(crib, ssh_host, host=way.address[0], port=way.address[1])
        for name in ("job", "gone"):
            crib.job(name, command="echo kept > kept.txt; sleep 300", executor="crib", artifacts=["kept.txt"])
            crib.cli("up", name, "--detach")
        way.refusing = True
        way.cut()

        def few_attempts(*argv: str) -> str:
            before = way.accepted
            said = crib.cli(*argv, code=3).stderr
            print("ATTEMPTS", argv, way.accepted - before)
            assert 0 < way.accepted - before <= ATTEMPTS
            return said

        refused = few_attempts("destroy", "job", "--yes")
        assert way.address[0] in refused
        assert "destroy job --discard" in refused
        crib.job("late", command="true", executor="crib")
        assert way.address[0] in few_attempts("up", "late")
        few_attempts("destroy", "gone", "--yes")

        way.refusing = False
        crib.cli("destroy", "job", "--yes")
        (record,) = {crib.record_dir(crib.outputs("job")["run_id"])}
        assert (record / "artifacts" / "kept.txt").read_text() == "kept\n"

    crib.cli("destroy", "gone", "--yes", code=3)
    given_up = crib.cli("destroy", "gone", "--discard", "--yes").stderr
    outputs = crib.outputs("gone")
    assert (outputs["status"], outputs["reason"]) == ("lost", "given_up")
    assert "removed by nobody" in given_up + str(outputs["notices"])
    assert "gone" not in crib.pulumi("stack", "ls", "--json").stdout


def test_a_start_that_failed_leaves_nothing(crib: User, ssh_host: SshHost) -> None:
    """What a start that failed has left on the host goes with `destroy`, and is in nobody's way before."""
    crib.job(command="true", executor="crib", secrets=["NOWHERE"])

    crib.cli("up", "job", code=2)
    assert _left(ssh_host)
    crib.cli("up", "job", code=2)
    crib.cli("destroy", "job")

    assert _left(ssh_host) == []


@pytest.mark.slow
def test_claude_is_brought(crib: User, ssh_host: SshHost, claude_program: Path) -> None:
    """With `install: true` a host without Claude Code gets it, once, in spite of a connection that is cut."""
    shared_cache.known_program(crib.home)
    with relay(ssh_host.address) as way:
        _executor(crib, ssh_host, host=way.address[0], port=way.address[1], install=True)
        crib.job(prompt=scenario("text"), executor="crib")
        size = "stat -c %s /home/plain/.coding-agent/claude/.*.part 2>/dev/null || echo 0"
        with crib.start("up", "job") as begun:
            until(lambda: int(ssh_host.run("bash", "-c", size)) > 20_000_000, limit=60)
            connections = way.accepted
            way.cut()
            said = begun.communicate(timeout=240)[0]

        assert begun.returncode == 0, said
        assert way.accepted > connections
        sent = [int(each) for each in re.findall(r"copying Claude Code .*: (\d+) of", said)]
        assert sent == sorted(sent), said
        installed = [each for each in _left(ssh_host) if each.startswith("./claude/")]
        assert len(installed) == 1, said
        again = crib.cli("up", "job", "--rerun", "--json")
        assert json.loads(again.stdout)["status"] == "succeeded"
        assert "copying" not in again.stderr


def test_a_key_with_a_passphrase(crib: User, ssh_host: SshHost, tmp_path: Path) -> None:
    """A key that a passphrase protects, and no agent holds, is named, with what to do; nobody is asked for it."""
    key = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", key], check=True, timeout=30)
    _executor(crib, ssh_host, key_path=str(key))
    crib.job(command="true", executor="crib")

    refused = crib.cli("up", "job", code=3).stderr

    assert f"passphrase protects {key}" in refused
    assert f"`ssh-add {key}`" in refused


def test_a_step_that_freezes(crib: User, ssh_host: SshHost) -> None:
    """A step of the engine's plugin on a host that says nothing any more is ended; afterwards it is done again."""
    impatient = (
        "import sys; from coding_agent.executors import frozen_steps; frozen_steps.LIMIT = 3.0; "
        "from coding_agent.cli import main; sys.exit(main())"
    )
    with relay(ssh_host.address) as way:
        _executor(crib, ssh_host, host=way.address[0], port=way.address[1])
        crib.job(command="true", executor="crib")
        way.freeze()
        ended = crib.run(sys.executable, "-c", impatient, "up", "job", code=3).stderr
        assert "the step job-ready on the host did not end in time" in ended
        way.thaw()
        crib.cli("up", "job")
        crib.cli("destroy", "job")
    assert _left(ssh_host) == []


def test_doctor(crib: User, ssh_host: SshHost, tmp_path: Path) -> None:
    """`doctor` says of each executor on a host whether one can log in, and what to do where not; and of the plugin."""
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True, timeout=30)
    crib.executors(
        ssh_host.executor(),
        ssh_host.executor(name="strange", host_key=None),
        ssh_host.executor(name="closed", key_path=str(other)),
        ssh_host.executor(name="off", port=1),
    )

    found = {each["name"]: each for each in json.loads(crib.cli("doctor", "--json", code=None).stdout)["findings"]}

    assert found["executor crib"]["state"] == found["command plugin"]["state"] == "ok"
    for name, problem, step in (
        ("strange", "is not known: it shows SHA256:", "coding-agent trust strange"),
        ("closed", "lets nobody in", "authorized_keys"),
        ("off", "refused the connection", "ssh server runs"),
    ):
        finding = found[f"executor {name}"]
        assert finding["state"] == "missing"
        assert problem in finding["found"]
        assert step in finding["next_step"]
