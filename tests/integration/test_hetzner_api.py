"""The fake of Hetzner's cloud is like the real one, to its library, its command line, the engine's plugin, and ssh."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import hcloud
import pulumi
import pytest
import requests
from hcloud.actions import ActionFailedException
from hcloud.firewalls import BoundFirewall, FirewallResource, FirewallRule
from hcloud.images import Image
from hcloud.locations import Location
from hcloud.server_types import ServerType
from hcloud.servers import BoundServer, CreateServerResponse, Server
from hcloud.ssh_keys import BoundSSHKey
from pulumi import automation

from containers import Docker
from fakes.hetzner_api import HetznerApi, answers
from fakes.messages_api import MessagesApi
from machines.cloud_server import LABEL
from machines.machine import SSH_PORT
from testbed.needs import HCLOUD, requires
from waiting import until

READ_ONLY = ("server_types", "locations", "datacenters", "images", "primary_ips", "actions")
EMPTY = (
    *("volumes", "networks", "load_balancers", "load_balancer_types", "certificates", "placement_groups"),
    *("floating_ips", "isos"),
)
METADATA = "http://169.254.169.254/hetzner/v1/metadata/instance-id"
USER_DATA = "#cloud-config\nwrite_files: [{path: /etc/ordered, content: a server}]\n"


class Customer:
    """Somebody with an account there, who uses Hetzner's own library and command line."""

    def __init__(self, api: HetznerApi, token: str | None = None) -> None:
        self.api = api
        self.client = hcloud.Client(token or api.token, api_endpoint=api.endpoint, poll_interval=0.05, timeout=30.0)

    def key(self, name: str, file: Path | None = None, **options: Any) -> BoundSSHKey:
        """Upload a new key, whose private half is kept in a file."""
        new = asyncssh.generate_private_key("ssh-ed25519")
        if file is not None:
            new.write_private_key(str(file))
            file.chmod(0o600)
        return self.client.ssh_keys.create(name, new.export_public_key().decode(), **options)

    def firewall(self, name: str, *sources: str, **options: Any) -> BoundFirewall:
        """Make a firewall that lets these sources in to port 22."""
        rules = [FirewallRule(direction="in", protocol="tcp", port="22", source_ips=list(sources))] if sources else []
        return self.client.firewalls.create(name, rules=rules, **options).firewall

    def order(self, name: str, *, kind: str = "cx23", place: str = "fsn1", **options: Any) -> CreateServerResponse:
        """Order a server; without power, where nothing else is said: then nothing has to boot."""
        given = {"image": Image(name="debian-12"), "start_after_create": False, **options}
        return self.client.servers.create(name, ServerType(name=kind), location=Location(name=place), **given)

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Ask without the library's classes."""
        return self.client.request("GET", path, params=query)

    def command(self, *argv: str) -> str:
        """Run Debian's hcloud."""
        requires(HCLOUD)
        done = subprocess.run(
            ["hcloud", *argv],
            env={**os.environ, "HCLOUD_TOKEN": self.api.token, "HCLOUD_ENDPOINT": self.api.endpoint},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def customer(hetzner_api: HetznerApi, home: Path) -> Customer:
    """Return somebody with an account at the fake cloud."""
    return Customer(hetzner_api)


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> int | str:
    """Return the code of the error that a call ends with."""
    with pytest.raises(hcloud.APIException) as caught:
        call(*arguments, **options)
    return caught.value.code


def number(server: BoundServer) -> int:
    """Return a server's id."""
    assert server.id is not None
    return server.id


def address_of(server: BoundServer) -> str:
    """Return a server's address."""
    assert server.public_net is not None
    assert server.public_net.ipv4 is not None
    return str(server.public_net.ipv4.ip)


def named(server: BoundServer) -> list[FirewallResource]:
    """Return a server as firewalls name it."""
    return [FirewallResource(FirewallResource.TYPE_SERVER, server=Server(id=number(server)))]


def ssh(address: str, key: Path, command: str, source: str = "127.0.0.1") -> subprocess.CompletedProcess[str]:
    """Run a command as root, from an address of ours."""
    options = ("IdentitiesOnly=yes", "BatchMode=yes", "StrictHostKeyChecking=no", "ConnectTimeout=3")
    known = key.with_name("known_hosts")
    argv = ["ssh", "-F", "none", "-b", source, "-i", str(key), "-o", f"UserKnownHostsFile={known}"]
    argv += [each for option in options for each in ("-o", option)]
    return subprocess.run([*argv, f"root@{address}", command], capture_output=True, text=True, timeout=60, check=False)


def test_a_whole_life_is_as_described(hetzner_api: HetznerApi, customer: Customer) -> None:
    """From an order to its end every answer, also each refusal, is as Hetzner describes it, and lists are made of
    pages and are chosen from by name and by label; Hetzner's own library and command line understand all of it."""
    assert answers.DESCRIPTION.is_file(), "nothing says how answers have to be"
    client = customer.client
    for kind in (*READ_ONLY, *EMPTY):
        assert bool(customer.get(f"/{kind}")[kind]) == (kind in READ_ONLY[:4]), kind
    assert customer.get("/pricing")["pricing"]["currency"] == "EUR"
    for kind in READ_ONLY[:4]:
        assert customer.get(f"/{kind}/{customer.get(f'/{kind}')[kind][0]['id']}")
    assert [each.architecture for each in client.images.get_all(name="debian-12")] == ["x86", "arm"]

    keys = [customer.key(f"key-{number}", labels={"of": str(number % 2)}) for number in range(30)]
    first = customer.get("/ssh_keys")
    assert (len(first["ssh_keys"]), first["meta"]["pagination"]["next_page"]) == (25, 2)
    assert len(client.ssh_keys.get_all()) == 30
    assert len(client.ssh_keys.get_all(label_selector="of=1")) == 15
    assert len(client.ssh_keys.get_all(label_selector="of notin (1),of")) == 15
    found = client.ssh_keys.get_by_fingerprint(keys[3].fingerprint or "")
    assert found is not None
    assert found.id == keys[3].id
    wall = customer.firewall("wall", "127.0.0.1/32", labels={"of": "1"})
    made = customer.order("first", ssh_keys=keys[:2], firewalls=[wall], labels={"of": "1"}, user_data=USER_DATA)
    made.action.wait_until_finished()
    assert made.next_actions == []
    server = client.servers.get_by_id(number(made.server))
    assert (server.status, server.labels, made.root_password) == ("off", {"of": "1"}, None)
    net = server.public_net
    assert net is not None
    assert address_of(server).startswith("127.0.2.")
    assert [each.firewall.id for each in net.firewalls or ()] == [wall.id]
    assert [each.command for each in server.get_actions()] == ["create_server"]
    assert customer.get("/actions", id=made.action.id)["actions"][0]["status"] == "success"
    assert len(client.primary_ips.get_all()) == 2
    _refusals(customer, wall, keys[0], server)

    server.update(name="renamed", labels={"of": "2"})
    keys[0].update(name="key", labels={})
    wall.update(name="walls", labels={"of": "2"})
    for action in wall.set_rules([FirewallRule("in", "tcp", ["0.0.0.0/0", "::/0"], port="1-99")]):
        action.wait_until_finished()
    for action in (
        *wall.remove_from_resources(named(server)),
        *wall.apply_to_resources(named(server)),
    ):
        action.wait_until_finished()
    assert [each.name for each in client.servers.get_all(label_selector="of==2,of!=1")] == ["renamed"]
    server.change_protection(delete=True, rebuild=True).wait_until_finished()
    assert refusal(server.delete) == "protected"
    server.change_protection(delete=False, rebuild=False).wait_until_finished()
    assert json.loads(customer.command("server", "describe", "renamed", "-o", "json"))["id"] == server.id
    assert "1-99" in customer.command("firewall", "describe", "walls")
    for kind in ("server-type", "location", "datacenter", "image", "volume", "network", "iso"):
        customer.command(kind, "list")
    customer.command("ssh-key", "add-label", "key", "of=3")
    assert hetzner_api.listed()[:2] == ["server renamed", "ssh-key key"]

    customer.command("server", "delete", "renamed")
    customer.command("firewall", "delete", "walls")
    for each in keys:
        each.delete()

    assert refusal(client.servers.get_by_id, server.id) == "not_found"
    assert hetzner_api.listed() == []
    assert hetzner_api.wrong == []
    seen = {(each.method, re.sub(r"\d+", "N", each.path), each.status) for each in hetzner_api.requests}
    for kind, done in (("servers", 200), ("ssh_keys", 204), ("firewalls", 204)):
        assert {("POST", f"/{kind}", 201), ("PUT", f"/{kind}/N", 200), ("DELETE", f"/{kind}/N", done)} <= seen
    assert {401, 403, 404, 409, 422} <= {status for _, _, status in seen}


def _refusals(customer: Customer, wall: BoundFirewall, key: BoundSSHKey, server: BoundServer) -> None:
    client = customer.client
    assert refusal(Customer(customer.api, "x" * 64).get, "/servers") == "unauthorized"
    assert refusal(client.servers.get_by_id, 1) == "not_found"
    assert refusal(customer.get, f"/servers/{server.id}/actions/1") == "not_found"
    assert refusal(customer.get, "/servers", label_selector="a b") == "invalid_input"
    assert refusal(client.ssh_keys.create, "again", key.public_key or "") == "uniqueness_error"
    assert refusal(client.ssh_keys.create, "no key", "nothing") == "invalid_input"
    assert refusal(customer.key, "labelled", labels={"a": "no such value"}) == "invalid_input"
    assert refusal(customer.firewall, "wall") == "uniqueness_error"
    assert refusal(customer.firewall, "odd", "127.0.0.1/8") == "invalid_input"
    assert refusal(wall.delete) == "resource_in_use"
    assert refusal(wall.apply_to_resources, named(server)) == "firewall_already_applied"
    for name, options in (("a_b", {}), ("late", {"user_data": "x" * 40_000}), ("far", {"place": "ash"})):
        assert refusal(customer.order, name, **options) == "invalid_input"
    assert refusal(customer.order, "first") == "uniqueness_error"
    assert refusal(customer.order, "odd", kind="cx0") == "not_found"
    assert refusal(customer.order, "odd", image=Image(name="plan-9")) == "not_found"


def test_an_answer_otherwise_than_described_is_seen(hetzner_api: HetznerApi, customer: Customer) -> None:
    """An answer that lacks a field, has one of another kind or a value that there is not, or a status or a body that
    is not described, is told with its place; so the fake can't drift from the real one unseen."""
    body = customer.client.request("POST", "/ssh_keys", json={"name": "one", "public_key": "ssh-ed25519 AAAA"})
    key = body["ssh_key"]
    path = f"/ssh_keys/{key['id']}"
    assert answers.wrong("POST", "/ssh_keys", 201, body) is None
    for changed in ({**key, "id": "1"}, {**key, "labels": None}, {k: v for k, v in key.items() if k != "created"}):
        told = answers.wrong("POST", "/ssh_keys", 201, {"ssh_key": changed})
        assert told is not None
        assert told.startswith("POST /ssh_keys 201: $.ssh_key")
    action = {**dict.fromkeys(("finished", "error")), "id": 1, "command": "x", "status": "done", "progress": 0}
    assert answers.wrong("GET", "/actions/1", 200, {"action": {**action, "started": "now", "resources": []}})
    for answer in (("POST", "/ssh_keys", 200, body), ("DELETE", path, 204, body), ("GET", "/keys", 200, body)):
        assert answers.wrong(*answer), answer
    assert answers.wrong("GET", "/servers", 503, {"error": {"code": "unavailable"}})
    customer.client.request("DELETE", path)


def test_what_is_left_fails_a_test(hetzner_api: HetznerApi, customer: Customer) -> None:
    """A test that leaves something in the cloud fails, unless it says that it does so on purpose."""
    customer.key("left")
    with pytest.raises(AssertionError, match="ssh-key left"):
        hetzner_api.check()
    hetzner_api.left_on_purpose = True
    hetzner_api.check()


def test_what_the_cloud_refuses(hetzner_api: HetznerApi, customer: Customer) -> None:
    """Types of servers that a place has none of, one too many of a kind, locked servers, too many requests, failures
    and an API that is slow or down come to Hetzner's library as from the real one, and end when the test says so."""
    switches = hetzner_api.switches
    switches.unavailable.add(("cx23", "fsn1"))
    switches.misplaced.add(("cpx22", None))
    assert refusal(customer.order, "one") == "resource_unavailable"
    assert refusal(customer.order, "one", kind="cpx22") == "placement_error"
    server = customer.order("one", place="nbg1").server
    switches.servers = switches.keys = switches.firewalls = 1
    key, wall = customer.key("one"), customer.firewall("one")
    for more in (lambda: customer.order("two", place="nbg1"), lambda: customer.key("two")):
        assert refusal(more) == "resource_limit_exceeded"
    assert refusal(customer.firewall, "two") == "resource_limit_exceeded"

    until(lambda: not customer.client.servers.get_by_id(number(server)).locked)
    switches.locked.add(number(server))
    assert customer.client.servers.get_by_id(number(server)).locked
    assert refusal(server.delete) == refusal(server.power_on) == "locked"
    switches.locked.clear()

    switches.refuse(2, path="/servers", method="GET")
    assert [refusal(customer.client.servers.get_all) for _ in range(2)] == ["unavailable"] * 2
    assert len(customer.client.servers.get_all()) == 1
    switches.limit_rate(retry_after=7)
    limited = requests.get(f"{hetzner_api.endpoint}/servers", timeout=30)
    assert (limited.status_code, limited.headers["Retry-After"]) == (429, "7")
    switches.limit_rate()
    assert len(customer.client.servers.get_all()) == 1  # the library asks again by itself
    switches.delay = 0.5
    begun = time.monotonic()
    customer.get("/locations")
    assert time.monotonic() - begun >= 0.5
    switches.off()
    with hetzner_api.down(), pytest.raises(requests.ConnectionError):
        customer.get("/locations")

    hetzner_api.delete_server(number(server))
    assert refusal(server.delete) == "not_found"
    key.delete()
    wall.delete()
    assert hetzner_api.wrong == []


def test_actions_that_fail_or_take_long(hetzner_api: HetznerApi, customer: Customer) -> None:
    """An order whose making fails leaves no server, and what fails later leaves it; what takes long is seen to go on,
    and the server is locked meanwhile."""
    switches = hetzner_api.switches
    switches.fail_action("create_server", message="no hypervisor today")
    failed = customer.order("one")
    with pytest.raises(ActionFailedException, match="no hypervisor today"):
        failed.action.wait_until_finished()
    assert hetzner_api.listed() == []

    switches.slow["create_server"] = 1.0
    made = customer.order("two")
    assert customer.client.servers.actions.get_by_id(made.action.id).status == "running"
    assert customer.client.servers.get_by_id(number(made.server)).locked
    assert refusal(made.server.delete) == "locked"
    made.action.wait_until_finished()
    switches.fail_action("delete_server")
    with pytest.raises(ActionFailedException):
        made.server.delete().wait_until_finished()
    assert hetzner_api.listed()[0] == "server two"
    customer.client.servers.get_by_id(number(made.server)).delete().wait_until_finished()


def test_a_server(
    hetzner_api: HetznerApi, customer: Customer, messages_api: MessagesApi, docker: Docker, tmp_path: Path
) -> None:
    """A server boots with what it was ordered with: its user data are done, the uploaded key opens it for root, a model
    on this machine is reached from it, and only who its firewall lets in gets an answer; it is switched off and on, a
    server made of its snapshot has its files, and in the end nothing of either is left."""
    file, port = tmp_path / "key", int(messages_api.url.rpartition(":")[2])
    hetzner_api.ports = (port,)
    key, wall = customer.key("mine", file), customer.firewall("wall", "127.0.0.1/32")
    made = customer.order("one", ssh_keys=[key], firewalls=[wall], user_data=USER_DATA, start_after_create=True)
    for action in (made.action, *made.next_actions):
        action.wait_until_finished()
    machine, address = hetzner_api.machine("one"), address_of(made.server)
    machine.ready()

    asked = f"cat /etc/ordered /etc/hostname; curl -s -o /dev/null -w '%{{http_code}}' http://127.0.0.1:{port}/none"
    shown = ssh(address, file, f"{asked}; echo kept >/root/kept")
    assert shown.stdout == "a serverone\n404", shown
    assert "timed out" in ssh(address, file, "true", source="127.0.0.9").stderr
    for action in wall.remove_from_resources(named(made.server)):
        action.wait_until_finished()
    assert ssh(address, file, "true", source="127.0.0.9").returncode == 0
    hetzner_api.switches.silent = True
    assert "timed out" in ssh(address, file, "true").stderr
    hetzner_api.switches.off()
    assert made.server.id == json.loads(machine.run(["curl", "-s", METADATA])[1])

    made.server.power_off().wait_until_finished()
    assert customer.client.servers.get_by_id(number(made.server)).status == "off"
    assert "refused" in ssh(address, file, "true").stderr
    snapshot = made.server.create_image(description="of-one", labels={"of": "one"})
    snapshot.action.wait_until_finished()
    assert "image of-one" in hetzner_api.listed()
    made.server.power_on().wait_until_finished()
    until(lambda: ssh(address, file, "true").returncode == 0)

    another = customer.order("two", image=Image(id=snapshot.image.id), ssh_keys=[key], start_after_create=True)
    for action in (another.action, *another.next_actions):
        action.wait_until_finished()
    second = address_of(another.server)
    assert second != address
    until(lambda: ssh(second, file, "cat /root/kept").stdout == "kept\n")
    containers = docker("ps", "-q", "--filter", f"label={LABEL}").split()
    for each in customer.client.servers.get_all():
        each.delete().wait_until_finished()
    for owned in (snapshot.image, wall, key):
        owned.delete()

    assert len(set(containers) - set(docker("ps", "-aq", "--filter", f"label={LABEL}").split())) == 2
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, SSH_PORT), timeout=5).close()
    assert hetzner_api.listed() == []


def test_the_engine_s_plugin(
    hetzner_api: HetznerApi,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine_folder: Path,
    hcloud_plugin: Path,
) -> None:
    """The engine's own plugin for Hetzner makes a key, a firewall and a server, finds them unchanged, changes a label
    without another server, and removes all."""
    import pulumi_hcloud

    label = "first"

    def program() -> None:
        public = asyncssh.import_private_key(private).export_public_key().decode()
        key = pulumi_hcloud.SshKey("key", public_key=public, labels={"of": label})
        rule = pulumi_hcloud.FirewallRuleArgs(direction="in", protocol="tcp", port="22", source_ips=["127.0.0.0/8"])
        wall = pulumi_hcloud.Firewall("wall", rules=[rule])
        server = pulumi_hcloud.Server(
            "server",
            server_type="cx23",
            image="debian-12",
            location="fsn1",
            ssh_keys=[key.id],
            firewall_ids=[wall.id.apply(int)],
            user_data=USER_DATA,
            labels={"of": label},
        )
        pulumi.export("address", server.ipv4_address)

    private = asyncssh.generate_private_key("ssh-ed25519").export_private_key()
    (home / ".pulumi").mkdir(exist_ok=True)
    (home / ".pulumi" / "plugins").symlink_to(hcloud_plugin)
    (tmp_path / "state").mkdir()
    environment = {
        "PULUMI_BACKEND_URL": (tmp_path / "state").as_uri(),
        "PULUMI_CONFIG_PASSPHRASE": "a passphrase",
        "PULUMI_HOME": str(home / ".pulumi"),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "HCLOUD_TOKEN": hetzner_api.token,
        "HCLOUD_ENDPOINT": hetzner_api.endpoint,
    }
    monkeypatch.setenv("PATH", os.pathsep.join([str(engine_folder), os.environ["PATH"]]))
    options = automation.LocalWorkspaceOptions(env_vars=environment)
    stack = automation.create_stack("dev", project_name="cloud", program=program, opts=options)

    address = stack.up().outputs["address"].value
    (server,) = hetzner_api.servers()
    assert server["public_net"]["ipv4"]["ip"] == address
    assert [len(hetzner_api.all(kind)) for kind in ("ssh_keys", "firewalls")] == [1, 1]
    assert stack.preview(refresh=True).change_summary == {automation.OpType.SAME: 4}
    label = "second"
    assert stack.up().summary.resource_changes == {"same": 2, "update": 2}
    assert [(each["id"], each["labels"]) for each in hetzner_api.servers()] == [(server["id"], {"of": "second"})]
    stack.destroy()
    assert hetzner_api.listed() == []
