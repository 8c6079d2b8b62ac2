"""A stack that was made with the official plugins goes on with the ones that are built here.

The states are written as the official plugins write them: both are Terraform providers behind Pulumi's bridge, so
inputs name the defaults in `__defaults`, outputs repeat the id and hold Terraform's own notes in `__meta`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hcloud
import pytest
from hcloud.firewalls.domain import FirewallRule
from hcloud.images.domain import Image
from hcloud.locations.domain import Location
from hcloud.server_types.domain import ServerType

from coding_agent.toolchain.pulumi import plugins
from fakes.hetzner_api import HetznerApi
from renter import new_key
from user import User

pytestmark = pytest.mark.timeout(600)

PROJECT, STACK = "old", "job"
_ID = "11111111-2222-4333-8444-555555555555"  # of the provider
_TIMEOUTS = "e2bfb730-ecaa-11e6-8f88-34363bc7c4c0"  # where Terraform notes how long an operation may take


@dataclass(frozen=True)
class OldStack:
    """A project with one stack, whose state is what a test writes."""

    user: User
    environment: Mapping[str, str]

    def pulumi(self, *argv: str) -> str:
        """Run the engine in the project; return what it printed."""
        done = self.user.run("pulumi", *argv, "--non-interactive", code=None, **self.environment)
        assert done.returncode == 0, f"pulumi {' '.join(argv)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def program(self, text: str) -> None:
        """Write the project's program."""
        (self.user.project / "__main__.py").write_text(text, encoding="utf-8")

    def take(self, library: str, *resources: Mapping[str, Any]) -> None:
        """Let the stack be what the official plugin of a library has made."""
        version = plugins.version(library)
        kind = f"pulumi:providers:{library}"
        provider = {
            **{"urn": _urn(kind, _default(version)), "type": kind, "custom": True, "id": _ID},
            **{"inputs": {"version": version}, "outputs": {"version": version}},
        }
        kind = "pulumi:pulumi:Stack"
        stack = {"urn": _urn(kind, f"{PROJECT}-{STACK}"), "type": kind, "custom": False}
        within = {"parent": stack["urn"], "provider": f"{provider['urn']}::{_ID}"}
        made = [stack, provider, *({**each, **within} for each in resources)]
        file = self.user.project / "state.json"
        engine = "v3.259.0"
        magic = hashlib.sha256(engine.encode()).hexdigest()  # the engine's own mark of what it has written
        manifest = {"time": "2026-01-01T00:00:00Z", "magic": magic, "version": engine}
        file.write_text(json.dumps({"version": 3, "deployment": {"manifest": manifest, "resources": made}}))
        self.pulumi("stack", "import", "--stack", STACK, "--file", str(file))

    def goes_on(self) -> None:
        """Assert that nothing is to be done: by the program, after a look at what is there, by the program again."""
        before = self.outputs()
        self.pulumi("preview", "--stack", STACK, "--diff", "--expect-no-changes")
        self.pulumi("refresh", "--stack", STACK, "--yes", "--skip-preview", "--expect-no-changes")
        self.pulumi("up", "--stack", STACK, "--yes", "--skip-preview", "--expect-no-changes")
        after = self.outputs()
        assert after.keys() == before.keys()
        changed = [
            f"{urn} {name}: {outputs.get(name)!r} became {after[urn].get(name)!r}"
            for urn, outputs in before.items()
            for name in sorted(outputs.keys() | after[urn].keys())
            if outputs.get(name) != after[urn].get(name)
        ]
        assert not changed, "\n".join(changed)

    def outputs(self) -> dict[str, Mapping[str, Any]]:
        """Return the outputs of the resources in the state, without the notes that the bridge makes for itself."""
        said = json.loads(self.pulumi("stack", "export", "--stack", STACK))
        return {each["urn"]: _public(each.get("outputs", {})) for each in said["deployment"].get("resources") or ()}

    def destroy(self) -> None:
        """Destroy what the stack has."""
        self.pulumi("destroy", "--stack", STACK, "--yes", "--skip-preview")
        assert self.outputs() == {}


@pytest.fixture
def old_stack(user: User) -> OldStack:
    """Return a project of the engine's, with no plugin yet."""
    backend = user.home / "backend"
    backend.mkdir()
    for file in user.project.iterdir():
        if file.is_file():
            file.unlink()
    (user.project / "Pulumi.yaml").write_text(f"name: {PROJECT}\nruntime: python\n")
    (user.project / "__main__.py").write_text("")
    stack = OldStack(
        user,
        {"PULUMI_BACKEND_URL": f"file://{backend}", "PULUMI_CONFIG_PASSPHRASE": "", "PULUMI_SKIP_UPDATE_CHECK": "true"},
    )
    stack.pulumi("stack", "init", STACK)
    return stack


def _public(outputs: Mapping[str, Any]) -> Mapping[str, Any]:
    # No list and an empty one are the same to Terraform.
    return {name: value for name, value in outputs.items() if not name.startswith("__") and value != []}


def _default(version: str) -> str:
    return f"default_{version.replace('.', '_')}"


def _urn(kind: str, name: str) -> str:
    return f"urn:pulumi:{STACK}::{PROJECT}::{kind}::{name}"


def _resource(
    kind: str, name: str, number: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], *needs: str
) -> dict[str, Any]:
    """Return a resource as the official plugin leaves it: the outputs have the inputs, and the id once more."""
    given = {key: value for key, value in inputs.items() if key != "__defaults"}
    return {
        **{"urn": _urn(kind, name), "type": kind, "custom": True, "id": number, "inputs": inputs},
        **{"outputs": {**given, **outputs, "id": number}, "dependencies": list(needs)},
    }


HETZNER = """
import pulumi
import pulumi_hcloud as hcloud

key = hcloud.SshKey("key", public_key=open("key.pub").read())
firewall = hcloud.Firewall(
    "wall",
    name="wall",
    labels={{"made-by": "tests"}},
    rules=[hcloud.FirewallRuleArgs(direction="in", protocol="tcp", port="22", source_ips=["0.0.0.0/0", "::/0"])],
)
hcloud.Server(
    "server",
    name="old-server",
    server_type="{server_type}",
    image="debian-12",
    location="nbg1",
    ssh_keys=[key.id],
    firewall_ids=[firewall.id.apply(int)],
    user_data="#cloud-config\\n",
    labels={{"made-by": "tests"}},
)
"""


@pytest.fixture
def rented(old_stack: OldStack, hetzner_api: HetznerApi, hcloud_plugin: Path) -> OldStack:
    """Return a stack that the official plugin has made at Hetzner's: a key, a firewall, a server."""
    user = old_stack.user
    (user.home / ".pulumi" / "plugins").symlink_to(hcloud_plugin)
    user.environment.update(HCLOUD_TOKEN=hetzner_api.token, HCLOUD_ENDPOINT=hetzner_api.endpoint)
    new_key(user.project / "key")
    public = (user.project / "key.pub").read_text()
    client = hcloud.Client(token=hetzner_api.token, api_endpoint=hetzner_api.endpoint)
    key = client.ssh_keys.create("key-0a1b2c3", public)
    rule = FirewallRule("in", "tcp", ["0.0.0.0/0", "::/0"], port="22")
    wall = client.firewalls.create("wall", rules=[rule]).firewall
    client.firewalls.update(wall, labels={"made-by": "tests"})
    made = client.servers.create(
        "old-server",
        ServerType(name="cx23"),
        Image(name="debian-12"),
        location=Location(name="nbg1"),
        ssh_keys=[key],
        firewalls=[wall],
        user_data="#cloud-config\n",
        labels={"made-by": "tests"},
    )
    made.action.wait_until_finished()
    for action in made.next_actions:
        action.wait_until_finished()
    assert made.server.id is not None
    assert key.id is not None
    assert wall.id is not None
    server = client.servers.get_by_id(made.server.id)
    old_stack.program(HETZNER.format(server_type="cx23"))
    rules = [{"direction": "in", "port": "22", "protocol": "tcp", "sourceIps": ["0.0.0.0/0", "::/0"]}]
    ours = [
        _resource(
            "hcloud:index/sshKey:SshKey",
            "key",
            str(key.id),
            {"name": "key-0a1b2c3", "publicKey": public},
            {"fingerprint": key.fingerprint, "labels": {}},
        ),
        _resource(
            "hcloud:index/firewall:Firewall",
            "wall",
            str(wall.id),
            {
                **{"__defaults": [], "name": "wall", "labels": {"made-by": "tests"}},
                "rules": [{**rules[0], "__defaults": []}],
            },
            {
                "applyTos": [{"labelSelector": "", "server": server.id}],
                "rules": [{**rules[0], "destinationIps": [], "description": ""}],
            },
        ),
    ]
    ours.append(_server(server, key.id, wall.id, [each["urn"] for each in ours]))
    old_stack.take("hcloud", *ours)
    return old_stack


def _server(server: Any, key: int, wall: int, needs: list[str]) -> dict[str, Any]:
    off = {
        **{"allowDeprecatedImages": False, "backups": False, "deleteProtection": False, "keepDisk": False},
        **{"ignoreRemoteFirewallIds": False, "rebuildProtection": False, "shutdownBeforeDeletion": False},
    }
    ordered = "#cloud-config\n"
    inputs = {
        **{"__defaults": sorted(off), **off, "name": "old-server", "serverType": "cx23", "image": "debian-12"},
        **{"location": "nbg1", "sshKeys": [str(key)], "firewallIds": [wall], "userData": ordered},
        "labels": {"made-by": "tests"},
    }
    network = server.public_net.ipv6.ip
    outputs = {
        **{"__meta": json.dumps({_TIMEOUTS: {"create": 5400 * 10**9}}), "backupWindow": "", "datacenter": "nbg1-dc3"},
        **{"ipv4Address": server.public_net.ipv4.ip, "ipv6Network": network, "placementGroupId": 0},
        **{"ipv6Address": network.replace("::/64", "::1"), "primaryDiskSize": server.primary_disk_size},
        # Of what a server is ordered with the state has a digest alone.
        **{"status": "running", "userData": base64.b64encode(hashlib.sha1(ordered.encode()).digest()).decode()},
    }
    return _resource("hcloud:index/server:Server", "server", str(server.id), inputs, outputs, *needs)


def test_rented_servers_go_on(rented: OldStack, hetzner_api: HetznerApi) -> None:
    """A key, a firewall and a server that the official plugin has made are read and are as wanted; nothing of the state
    changes; all are removed with the stack."""
    rented.goes_on()
    server = hetzner_api.servers()[0]

    rented.destroy()

    assert server["name"] == "old-server"
    assert hetzner_api.listed() == []


def test_a_rented_server_is_changed_where_it_stands(rented: OldStack, hetzner_api: HetznerApi) -> None:
    """Other labels and another firewall make a server of the official plugin's no other server."""
    before = hetzner_api.servers()[0]["id"]
    program = (rented.user.project / "__main__.py").read_text()
    rented.program(program.replace('labels={"made-by": "tests"},\n)', "delete_protection=True,\n)"))

    rented.pulumi("up", "--stack", STACK, "--yes", "--skip-preview")

    (server,) = hetzner_api.servers()
    assert (server["id"], server["labels"], server["protection"]["delete"]) == (before, {}, True)
    rented.goes_on()
    rented.destroy()
    assert hetzner_api.listed() == []


def test_a_server_made_half_way_is_kept(rented: OldStack, hetzner_api: HetznerApi) -> None:
    """A server whose making fails half-way is in the state, so that the stack can remove it."""
    hetzner_api.switches.fail_action("change_protection", message="no protection today")
    program = (rented.user.project / "__main__.py").read_text()
    more = program.partition("hcloud.Server(")[2].replace('"server"', '"second"').replace("old-server", "new-server")
    rented.program(f"{program}hcloud.Server({more.rstrip()[:-1]}    delete_protection=True,\n)\n")

    done = rented.user.run("pulumi", "up", "--stack", STACK, "--yes", "--skip-preview", code=None, **rented.environment)

    assert done.returncode != 0
    assert "no protection today" in done.stdout + done.stderr
    assert _urn("hcloud:index/server:Server", "second") in rented.outputs()
    rented.destroy()
    assert hetzner_api.listed() == []
