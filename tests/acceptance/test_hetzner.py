"""A task on a server of Hetzner Cloud: it is ordered for the run, and is gone when the work is here."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hcloud
import pytest
from hcloud.images.domain import Image
from hcloud.server_types.domain import ServerType
from hcloud.servers.domain import Server

from fakes.hetzner_api import HetznerApi
from fakes.scenarios import scenario
from machines.machine import Machine
from readme import declared, drawn
from renter import HELD, let_go, make_renter, new_key, rent
from user import API_KEY, User
from waiting import until

pytestmark = pytest.mark.timeout(600)

BOTH = {"server_types": ["cx23", "cpx22"], "locations": ["nbg1", "fsn1"]}


@pytest.fixture
def renter(user: User, hetzner_api: HetznerApi, server_plugins: Path) -> User:
    """Return a user with an executor `cloud`, at a cloud whose servers are containers."""
    return make_renter(user, hetzner_api, server_plugins)


def _changes(user: User, name: str = "job") -> dict[str, int]:
    """Return the kinds of change that a bare preview shows."""
    said: dict[str, int] = json.loads(user.pulumi("preview", "--stack", name, "--json").stdout)["changeSummary"]
    return said


def _project(user: User) -> str:
    """Return the project's name."""
    return (user.project / "Pulumi.yaml").read_text().partition("name: ")[2].split()[0].strip("'\"")


def _server(api: HetznerApi) -> dict[str, Any]:
    """Return the one server that there is."""
    (found,) = api.servers()
    return found


def _texts(user: User) -> Iterator[str]:
    for folder in (user.home / ".local", user.project / "stacks"):
        for file in folder.rglob("*"):
            if file.is_file() and file.stat().st_size < 10_000_000:
                yield file.read_text(errors="replace")


def test_agent_on_a_server(renter: User, hetzner_api: HetznerApi, claude_program: Path, tmp_path: Path) -> None:
    """`preview` says what an hour costs, an agent works on a server made for it, its commits arrive, and then the
    server is gone, what it cost is said, and nothing is to be done; no secret is in the state or in a log."""
    renter.job(prompt=scenario("edit"), repo=".", executor="cloud")
    renter.commit_all()
    assert "cx23 in fsn1 costs 0.0" in renter.cli("preview", "job").stdout

    shown = renter.cli("up", "job").stdout

    outputs = renter.outputs("job")
    assert (outputs["status"], outputs["executor"], outputs["num_turns"]) == ("succeeded", "cloud", 6), shown
    assert renter.git("show", "coding-agent/job:note.txt") == "the second line\n"
    assert hetzner_api.listed() == []
    assert outputs["machine"]["eur_so_far"] == outputs["machine"]["eur_per_hour"] > 0
    assert "EUR in all" in renter.cli("status", "job").stdout
    assert set(_changes(renter)) == {"same"}
    key = (tmp_path / "key").read_text().splitlines()[2]
    held = [renter.pulumi("stack", "export", "--stack", "job", *more).stdout for more in ([], ["--show-secrets"])]
    for text in (*held, shown, *_texts(renter)):
        for secret in (key, API_KEY, hetzner_api.token):
            assert secret not in text

    renter.cli("destroy", "job")

    assert renter.outputs("job")["status"] == "succeeded"


def test_what_a_server_is(renter: User, hetzner_api: HetznerApi, tmp_path: Path) -> None:
    """On the server there is no token and no key but the user's; its agent is not root, can't become it, and can't read
    what the server was ordered with; root can't log in any more, and its host key is another than it was ordered with;
    all that was made carries the labels of project, stack and run. From another address than the executor names nobody
    gets in. The state holds the first host key only as a secret, and what the README draws.

    Where the cloud does not answer when the server is to be given back, that is said, and the next look does it.
    """
    rent(renter, ssh_sources=["127.0.0.1"])
    asked = f"id -u; {_METADATA} && echo read; sudo -n true && echo root; env; {HELD}"
    renter.job(command=asked, executor="cloud")
    renter.cli("up", "job", "--detach")
    run = renter.outputs("job")["run_id"]
    server = hetzner_api.machine(_server(hetzner_api)["name"])

    _server_is_closed(server, renter, hetzner_api, tmp_path)
    for kind in ("servers", "firewalls", "ssh_keys"):
        (each,) = hetzner_api.all(kind)
        assert each["labels"] == {
            "coding-agent-project": _project(renter),
            "coding-agent-stack": "job",
            "coding-agent-run": run,
        }
    assert _greeting(server.address, "127.0.0.1") == b"SSH-"
    assert _greeting(server.address, "127.0.0.9") == b""
    state = renter.pulumi("stack", "export", "--stack", "job").stdout
    assert declared(state) == drawn("hetzner")
    assert "OPENSSH PRIVATE KEY" not in state
    assert "BEGIN" not in state

    with hetzner_api.down():
        let_go(server)
        until(lambda: renter.outputs("job")["status"] == "succeeded")
        assert any("its server costs until it is" in each for each in renter.outputs("job")["notices"])
    hetzner_api.switches.locked = {_server(hetzner_api)["id"]}
    with ThreadPoolExecutor(1) as pool:
        looked = pool.submit(renter.outputs, "job")
        until(lambda: any(each.status == 423 for each in hetzner_api.requests))
        hetzner_api.switches.locked = set()
        assert looked.result()["notices"] == []
    assert hetzner_api.listed() == []

    log = renter.cli("logs", "job").stdout
    assert log.splitlines()[0] == "10001"
    assert "read" not in log.split()
    assert "root" not in log.split()
    assert hetzner_api.token not in log
    renter.cli("destroy", "job")


_METADATA = "timeout 5 bash -c 'exec 3<>/dev/tcp/169.254.169.254/80' 2>/dev/null"


def _server_is_closed(server: Machine, renter: User, api: HetznerApi, tmp_path: Path) -> None:
    public = " ".join((tmp_path / "key.pub").read_text().split()[:2])
    keys = server.run(["bash", "-c", "cat /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys"])[1]
    assert {
        " ".join(line.split()[-3:-1]) if "command=" in line else " ".join(line.split()[:2])
        for line in keys.splitlines()
        if line and not line.startswith("#")
    } == {public}
    held = server.run(["bash", "-c", "cat /proc/[0-9]*/environ; grep -rs . /etc /root /home /var/lib/cloud"])[1]
    assert api.token not in held
    assert API_KEY not in held.replace("\0", "\n").replace(f"ANTHROPIC_API_KEY={API_KEY}", "")
    assert server.run(["bash", "-c", _METADATA])[0] == 0
    # Another key than the first, which cloud-init still has.
    ordered = server.run(["bash", "-c", "grep -rhs 'ed25519_public' /var/lib/cloud/instance/user-data.txt"])[1]
    shown = server.run(["cut", "-d", " ", "-f", "2", "/etc/ssh/ssh_host_ed25519_key.pub"])[1].strip()
    assert "ssh-ed25519" in ordered
    assert shown not in ordered
    root = ["ssh", "-F", "none", "-i", str(tmp_path / "key"), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
    root += [
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        f"UserKnownHostsFile={tmp_path / 'known'}",
        f"root@{server.address}",
    ]
    assert "Permission denied" in renter.run(*root, "true", code=255).stderr


def _greeting(address: str, source: str) -> bytes:
    with socket.create_connection((address, 22), timeout=5, source_address=(source, 0)) as caller:
        caller.settimeout(3)
        try:
            return caller.recv(4)
        except TimeoutError:
            return b""


def test_what_orders_another_server(renter: User, hetzner_api: HetznerApi, tmp_path: Path) -> None:
    """Another key file or label changes nothing at all; another type of server is a replacement that `preview` shows; a
    server that is kept stays after the run, and once it is deleted by hand it is not missed. A snapshot of it is an
    image for others, which are as safe as the first."""
    rent(renter, keep=True)
    renter.job(command="echo one", executor="cloud")
    renter.cli("up", "job")
    first = _server(hetzner_api)
    new_key(tmp_path / "another")
    rent(renter, keep=True, key_path=str(tmp_path / "another"), labels=["big"])

    assert set(_changes(renter)) == {"same"}
    renter.cli("up", "job")
    assert _server(hetzner_api)["id"] == first["id"]
    rent(renter, keep=True, server_types="cpx22")
    shown = renter.cli("preview", "job").stdout
    assert "hcloud:index/server:Server: (replace)" in shown
    assert '"cx23" => "cpx22"' in shown

    client = hcloud.Client(token=hetzner_api.token, api_endpoint=hetzner_api.endpoint)
    made = client.servers.create_image(Server(id=first["id"]), description="ours")
    made.action.wait_until_finished()
    key = _host_key(hetzner_api, first)
    rent(renter, keep=True)
    hetzner_api.delete_server(first["id"])
    renter.cli("up", "job")
    assert hetzner_api.servers() == []
    assert renter.outputs("job")["status"] == "succeeded"
    renter.cli("destroy", "job")
    assert hetzner_api.all("ssh_keys") == hetzner_api.all("firewalls") == []

    rent(renter, image=str(made.image.id), keep=True)
    renter.cli("up", "job")
    second = _server(hetzner_api)
    assert renter.outputs("job")["status"] == "succeeded"
    assert _host_key(hetzner_api, second) != key
    said = hetzner_api.machine(second["name"]).run(["sshd", "-T"])[1]
    assert "permitrootlogin no" in said
    renter.cli("destroy", "job")
    client.images.delete(made.image)
    assert hetzner_api.listed() == []


def _host_key(api: HetznerApi, server: dict[str, Any]) -> str:
    return api.machine(server["name"]).run(["cat", "/etc/ssh/ssh_host_ed25519_key.pub"])[1]


def test_the_next_is_ordered(renter: User, hetzner_api: HetznerApi) -> None:
    """What the cloud has none left of, or no more of for this project, is ordered in the next place or type; where it
    has nothing at all that is said, with what was tried, and nothing is left."""
    rent(renter, **BOTH)
    renter.job(command="true", executor="cloud")
    hetzner_api.switches.unavailable |= {("cx23", "nbg1")}
    hetzner_api.switches.misplaced |= {("cx23", "fsn1")}

    shown = renter.cli("up", "job").stdout

    for each in (
        "cx23 in nbg1 can't be had now (resource_unavailable)",
        "cx23 in fsn1 can't be had now (placement_error)",
    ):
        assert each in shown
    assert "ordering cpx22 in nbg1" in shown
    hetzner_api.switches.unavailable.add((None, None))
    refused = renter.cli("up", "job", "--rerun", code=3)
    assert "no server can be had now: cx23 in nbg1, cx23 in fsn1, cpx22 in nbg1, cpx22 in fsn1" in refused.stderr
    assert hetzner_api.listed() == []
    renter.cli("destroy", "job")


def test_what_a_server_fails_of(renter: User, hetzner_api: HetznerApi) -> None:
    """A server that can't become what was ordered is told in cloud-init's own words, one that never answers is told as
    such, and one whose making fails in the cloud's words; it is given back each time."""
    rent(renter, packages=["no-such-package-anywhere"])
    renter.job(command="true", executor="cloud")
    refused = renter.cli("up", "job", code=3).stderr
    assert "the server could not be set up as ordered; cloud-init says:" in refused
    assert "no-such-package-anywhere" in refused
    assert hetzner_api.listed() == []

    rent(renter, boot_limit="5s")
    hetzner_api.switches.silent = True
    assert "did not answer over ssh within 5 s" in renter.cli("up", "job", code=3).stderr
    assert hetzner_api.listed() == []
    hetzner_api.switches.off()

    hetzner_api.switches.fail_action("create_server", message="no hypervisor today")
    assert "no hypervisor today" in renter.cli("up", "job", code=3).stderr
    assert hetzner_api.listed() == []
    renter.cli("destroy", "job")


def test_an_api_that_fails(renter: User, hetzner_api: HetznerApi) -> None:
    """An API that is down or refuses the token is told as that, with what to do, and nothing is made;
    one that is slow, limits its callers or fails now and then is asked again; a server that is locked for a while is
    removed all the same."""
    renter.job(command="true", executor="cloud")
    assert "HCLOUD_TOKEN" in renter.cli("up", "job", code=2, HCLOUD_TOKEN="").stderr
    assert "refuses the token" in renter.cli("up", "job", code=2, HCLOUD_TOKEN="x" * 64).stderr
    with hetzner_api.down():
        assert "does not answer" in renter.cli("up", "job", code=3).stderr
    hetzner_api.switches.delay = 0.3
    hetzner_api.switches.limit_rate(2)
    hetzner_api.switches.refuse(2, status=503)
    hetzner_api.switches.slow["create_server"] = 2.0

    renter.cli("up", "job")

    assert renter.outputs("job")["status"] == "succeeded"
    assert hetzner_api.listed() == []
    with hetzner_api.down():
        renter.cli("status", "job")
    renter.cli("destroy", "job")


def test_the_bare_engine(renter: User, hetzner_api: HetznerApi) -> None:
    """A bare `pulumi up` gives the server back at the run's end, the next one has nothing of it in the stack any more,
    and `pulumi destroy` ends with nothing."""
    renter.job(command="echo bare > out.txt", executor="cloud", artifacts=["out.txt"])
    bare = (
        'eval "$("$1" -m coding_agent env --shell bash)" && pulumi stack init --no-select job && '
        "pulumi up --stack job --yes --skip-preview && pulumi up --stack job --yes --skip-preview && "
        "pulumi stack --stack job --show-urns && pulumi destroy --stack job --yes --skip-preview --remove"
    )

    shown = renter.run("bash", "-ec", bare, "x", sys.executable).stdout

    assert "is given back" in shown
    assert "hcloud" not in shown.partition("Current stack resources")[2].partition("Current stack outputs")[0]
    assert hetzner_api.listed() == []


def test_deleted_and_restarted(renter: User, hetzner_api: HetznerApi) -> None:
    """A server that boots anew while the agent works: the run is unresponsive, then lost, and what it had saved is
    brought back. One that is deleted meanwhile: the run is lost with it, and the next `up` runs the task on another."""
    renter.job(command=f"echo kept >kept.txt; {HELD}", executor="cloud", artifacts=["kept.txt"])
    renter.cli("up", "job", "--detach")
    server = hetzner_api.machine(_server(hetzner_api)["name"])
    until(lambda: server.run(["bash", "-c", "ls /home/agent/.coding-agent/runs/*/workspace/waits"])[0] == 0)
    server.power_off()
    assert renter.outputs("job")["status"] == "unresponsive"
    server.power_on()
    until(lambda: renter.outputs("job")["status"] == "lost", limit=60.0)
    run = renter.outputs("job")["run_id"]
    assert (renter.record_dir(run) / "artifacts" / "kept.txt").read_text() == "kept\n"
    assert hetzner_api.listed() == []

    renter.cli("up", "job", "--detach", "--rerun")
    hetzner_api.delete_server(_server(hetzner_api)["id"])
    lost = renter.outputs("job")
    assert (lost["status"], lost["reason"]) == ("lost", "target_gone")
    assert hetzner_api.listed() == []
    renter.job(command="true", executor="cloud")
    renter.cli("up", "job")
    assert renter.outputs("job")["status"] == "succeeded"
    renter.cli("destroy", "job")


def test_sweep(renter: User, hetzner_api: HetznerApi) -> None:
    """`sweep` lists what no stack owns and removes it when asked to; what a stack owns, and what is of a project that
    is not known here, stays."""
    rent(renter, keep=True)
    renter.job(command="true", executor="cloud")
    renter.cli("up", "job")
    # As when a stack was removed by hand: what carries its labels is there, and no stack.
    lost = {**_server(hetzner_api)["labels"], "coding-agent-stack": "lost", "coding-agent-run": "0123456789abcdef"}
    hetzner_api.add_firewall("lost", lost)
    client = hcloud.Client(token=hetzner_api.token, api_endpoint=hetzner_api.endpoint)
    client.servers.create(
        "lost", ServerType(name="cx23"), Image(name="debian-12"), labels=lost, start_after_create=False
    )
    of = {"coding-agent-project": "p", "coding-agent-stack": "s", "coding-agent-run": "r"}
    hetzner_api.add_firewall("theirs", of)

    listed = json.loads(renter.cli("sweep", "--json").stdout)
    assert {(each["kind"], each["stack"], each["known_project"], each["removed"]) for each in listed} == {
        ("server", "lost", True, False),
        ("firewall", "lost", True, False),
        ("firewall", "s", False, False),
    }
    assert len(hetzner_api.servers()) == 2
    assert "removed: 2" in renter.cli("sweep", "--yes").stdout
    assert [each["labels"]["coding-agent-stack"] for each in hetzner_api.servers()] == ["job"]
    assert "left alone" in renter.cli("sweep").stdout
    renter.cli("sweep", "--everything", "--yes")
    renter.cli("destroy", "job")
    assert hetzner_api.listed() == []


def test_three_at_once(renter: User, hetzner_api: HetznerApi) -> None:
    """Three tasks at once with one key: three servers, three results, and none is left."""
    names = [f"job{number}" for number in range(3)]
    for name in names:
        renter.job(name, command=f"echo {name} | tee out.txt; {HELD}", executor="cloud", artifacts=["out.txt"])
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: renter.cli("up", name, "--detach"), names))
        machines = [hetzner_api.machine(each["name"]) for each in hetzner_api.servers()]
        assert len({each.address for each in machines}) == len(names)
        for each in machines:
            let_go(each)
        list(pool.map(lambda name: renter.cli("up", name), names))
    for name in names:
        run = renter.outputs(name)["run_id"]
        assert (renter.record_dir(run) / "artifacts" / "out.txt").read_text() == f"{name}\n"
    assert hetzner_api.listed() == []
    for name in names:
        renter.cli("destroy", name)
    assert os.environ.get("HCLOUD_TOKEN") is None
