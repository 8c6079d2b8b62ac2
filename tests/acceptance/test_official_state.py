"""A stack that was made with the official plugins goes on with the ones that are built here.

The states are written as the official plugins write them: both are Terraform providers behind Pulumi's bridge, so
inputs name the defaults in `__defaults`, outputs repeat the id and hold Terraform's own notes in `__meta`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hcloud
import pytest
from hcloud.firewalls.domain import FirewallRule
from hcloud.images.domain import Image
from hcloud.locations.domain import Location
from hcloud.server_types.domain import ServerType

from containers import Docker
from fakes.hetzner_api import HetznerApi
from old_stack import CONTAINER, HETZNER, STACK, OldStack, urn
from renter import new_key
from user import User

pytestmark = pytest.mark.timeout(600)

_TIMEOUTS = "e2bfb730-ecaa-11e6-8f88-34363bc7c4c0"  # where Terraform notes how long an operation may take


@pytest.fixture
def old_stack(user: User) -> OldStack:
    """Return a project with one stack."""
    return OldStack.of(user)


def _resource(
    kind: str, name: str, number: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], *needs: str
) -> dict[str, Any]:
    """Return a resource as the official plugin leaves it: the outputs have the inputs, and the id once more."""
    given = {key: value for key, value in inputs.items() if key != "__defaults"}
    return {
        **{"urn": urn(kind, name), "type": kind, "custom": True, "id": number, "inputs": inputs},
        **{"outputs": {**given, **outputs, "id": number}, "dependencies": list(needs)},
    }


@pytest.fixture
def rented(old_stack: OldStack, hetzner_api: HetznerApi, hcloud_plugin: Path) -> OldStack:
    """Return a stack that the official plugin has made at Hetzner's: a key, a firewall, a server."""
    user = old_stack.user
    old_stack.use(hcloud_plugin)
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
    """Another type, other labels and a protection make a server of the official plugin's no other server; it runs again
    afterwards, and the protection keeps hands off it, not the stack that asked for it."""
    before = hetzner_api.servers()[0]["id"]
    changed = HETZNER.format(server_type="cx33").replace(
        'labels={"made-by": "tests"},\n)', "delete_protection=True,\n)"
    )
    rented.program(changed)

    rented.pulumi("up", "--stack", STACK, "--yes", "--skip-preview")

    (server,) = hetzner_api.servers()
    assert (server["id"], server["server_type"]["name"], server["status"]) == (before, "cx33", "running")
    assert (server["labels"], server["protection"]["delete"], server["primary_disk_size"]) == ({}, True, 80)
    rented.goes_on()
    rented.destroy()
    assert hetzner_api.listed() == []


def test_a_server_is_imported(rented: OldStack, hetzner_api: HetznerApi) -> None:
    """A server that no stack has is imported by its number alone, with what the cloud says of it."""
    (server,) = hetzner_api.servers()
    rented.pulumi("state", "delete", urn("hcloud:index/server:Server", "server"), "--stack", STACK, "--yes")
    of = ("hcloud:index/server:Server", "server", str(server["id"]))
    rented.pulumi(
        "import", *of, "--stack", STACK, "--yes", "--skip-preview", "--protect=false", "--generate-code=false"
    )

    known = rented.outputs()[urn("hcloud:index/server:Server", "server")]

    assert {name: known[name] for name in ("image", "location", "serverType", "name", "labels")} == {
        **{"image": "debian-12", "location": "nbg1", "serverType": "cx23", "name": "old-server"},
        "labels": {"made-by": "tests"},
    }
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
    assert urn("hcloud:index/server:Server", "second") in rented.outputs()
    rented.destroy()
    assert hetzner_api.listed() == []


_MINUTES = 60 * 10**9
_NOTES = {
    "schema_version": "2",
    _TIMEOUTS: {"create": 20 * _MINUTES, "delete": 20 * _MINUTES, "update": 20 * _MINUTES},
}


@pytest.fixture
def contained(old_stack: OldStack, docker: Docker, container_image: str, docker_plugin: Path) -> Iterator[OldStack]:
    """Return a stack that the official plugin has made here: a volume, a network, a container, and an image of ours."""
    old_stack.use(docker_plugin)
    name = f"coding-agent-test-{secrets.token_hex(6)}"
    try:
        docker("volume", "create", "--label", "made-by=tests", name)
        docker("network", "create", "--label", "made-by=tests", name)
        docker(
            *("create", "--name", name, "--init", "--user", "0:0", "--workdir", "/", "--cap-drop", "ALL"),
            *("--security-opt", "no-new-privileges:true", "--memory", "256m", "--memory-swap", "256m"),
            *("--mount", f"type=volume,source={name},target=/work", "--label", "made-by=tests"),
            *("--network", "bridge", "--entrypoint", "/bin/sh", container_image, "-c", "exec sleep 1000"),
        )
        docker("network", "connect", name, name)
        docker("network", "disconnect", "bridge", name)
        old_stack.program(CONTAINER.format(name=name, image=container_image))
        needed = [_volume(docker, name), _network(docker, name), _image(docker, container_image)]
        old_stack.take("docker", *needed, _container(docker, name, [each["urn"] for each in needed]))
        yield old_stack
    finally:
        for command in ("rm -f -v", "network rm", "volume rm"):
            with contextlib.suppress(AssertionError):  # gone, as it should be
                docker(*command.split(), name)


def _marked() -> tuple[dict[str, Any], dict[str, Any]]:
    label = {"label": "made-by", "value": "tests"}
    return {"labels": [{"__defaults": [], **label}]}, {"labels": [label]}


def _volume(docker: Docker, name: str) -> dict[str, Any]:
    given, had = _marked()
    mountpoint = json.loads(docker("volume", "inspect", name))[0]["Mountpoint"]
    inputs = {"__defaults": [], "name": name, **given}
    outputs = {"__meta": json.dumps({"schema_version": "1"}), "driver": "local", "mountpoint": mountpoint, **had}
    return _resource("docker:index/volume:Volume", "volume", name, inputs, outputs)


def _network(docker: Docker, name: str) -> dict[str, Any]:
    given, had = _marked()
    said = json.loads(docker("network", "inspect", name))[0]
    (subnet,) = said["IPAM"]["Config"]
    inputs = {"__defaults": ["ipamDriver"], "ipamDriver": "default", "name": name, **given}
    outputs = {
        **{"__meta": json.dumps({"schema_version": "1"}), "attachable": False, "driver": "bridge", "ingress": False},
        **{"internal": False, "ipv6": False, "options": {}, "scope": "local", **had},
        "ipamConfigs": [{"auxAddress": {}, "gateway": subnet["Gateway"], "ipRange": "", "subnet": subnet["Subnet"]}],
    }
    return _resource("docker:index/network:Network", "network", str(said["Id"]), inputs, outputs)


def _image(docker: Docker, image: str) -> dict[str, Any]:
    number = str(docker.inspect(image)["Id"])
    inputs = {"__defaults": [], "keepLocally": True, "name": image}
    outputs = {"__meta": json.dumps({_TIMEOUTS: _NOTES[_TIMEOUTS]}), "imageId": number, "repoDigest": ""}
    return _resource("docker:index/remoteImage:RemoteImage", "image", f"{number}{image}", inputs, outputs)


def _container(docker: Docker, name: str, needs: list[str]) -> dict[str, Any]:
    given, had = _marked()
    said = docker.inspect(name)
    defaults = {
        **{"containerReadRefreshTimeoutMilliseconds": 15000, "networkMode": "bridge"},
        **{"removeVolumes": True, "waitTimeout": 60},
    }
    inputs = {
        **{"__defaults": sorted(defaults), **defaults, **given, "name": name, "image": said["Image"]},
        **{"entrypoints": ["/bin/sh"], "command": ["-c", "exec sleep 1000"], "user": "0:0", "workingDir": "/"},
        **{"init": True, "start": False, "mustRun": False, "restart": "no", "privileged": False},
        **{"securityOpts": ["no-new-privileges:true"], "memory": 256, "memorySwap": 256},
        "capabilities": {"__defaults": [], "drops": ["ALL"]},
        "networksAdvanced": [{"__defaults": [], "name": name}],
        "mounts": [{"__defaults": [], "target": "/work", "type": "volume", "source": name}],
    }
    nowhere = {
        **{"gateway": "", "globalIpv6Address": "", "globalIpv6PrefixLength": 0, "ipAddress": "", "ipPrefixLength": 0},
        **{"ipv6Gateway": "", "macAddress": ""},
    }
    asked = {"aliases": [], "driverOpts": [], "ipv4Address": "", "ipv6Address": "", "linkLocalIps": []}
    outputs = {
        **{"__meta": json.dumps(_NOTES), **had, "attach": False, "bridge": "", "cpuSet": "", "cpuShares": 0},
        **{"capabilities": {"adds": [], "drops": ["ALL"]}, "domainname": "", "exitCode": 0, "logs": False},
        **{"hostname": said["Config"]["Hostname"], "ipcMode": said["HostConfig"]["IpcMode"], "logDriver": "json-file"},
        **{"maxRetryCount": 0, "memoryReservation": 0, "platform": "linux", "publishAllPorts": False, "rm": False},
        **{"readOnly": False, "runtime": "runc", "shmSize": 64, "stdinOpen": False, "stopSignal": "", "tty": False},
        **{"stopTimeout": 0, "usernsMode": "", "wait": False, "envs": []},
        "mounts": [{"source": name, "target": "/work", "type": "volume"}],
        "networkDatas": [{**nowhere, "networkName": name}],
        "networksAdvanced": [{**asked, "name": name}],
    }
    return _resource("docker:index/container:Container", "container", str(said["Id"]), inputs, outputs, *needs)


def test_containers_go_on(contained: OldStack, docker: Docker) -> None:
    """A volume, a network and a container that the official plugin has made are read and are as wanted; nothing of the
    state changes; all are removed with the stack, and an image that it did not make stays."""
    name = contained.outputs()[urn("docker:index/container:Container", "container")]["name"]
    image = contained.outputs()[urn("docker:index/remoteImage:RemoteImage", "image")]["imageId"]
    contained.goes_on()

    contained.destroy()

    for kind in ("container", "volume", "network"):
        docker(kind, "inspect", name, succeeds=False)
    assert docker.inspect(image)["Id"] == image
