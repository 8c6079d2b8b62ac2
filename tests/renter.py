"""A user who rents servers: an executor `cloud`, a key, and a fake of Hetzner's cloud that is the one he knows."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import hcloud
from hcloud.images.domain import Image
from hcloud.server_types.domain import ServerType

import shared_cache
from coding_agent.executors import cloud_init
from coding_agent.executors.host_keys import KeyPair
from coding_agent.settings import ExecutorSpec
from fakes.hetzner_api import HetznerApi
from machines.machine import Machine
from user import User
from waiting import until

HELD = "test -e go || { touch waits; until test -e go; do sleep 0.1; done; }"  # a command that a test ends


def make_renter(user: User, api: HetznerApi, plugins: Path, **options: Any) -> User:
    """Let a user rent servers at `api`; `options` are the executor's."""
    (user.home / ".pulumi" / "plugins").symlink_to(plugins)
    shared_cache.known_program(user.home)  # what is brought to a server
    new_key(key_of(user))
    api.ports = (int(user.api.url.rpartition(":")[2]),)
    user.environment.update(HCLOUD_TOKEN=api.token, HCLOUD_ENDPOINT=api.endpoint)
    rent(user, **options)
    return user


def rent(user: User, **options: Any) -> None:
    """Write the executors file: one executor `cloud`."""
    fields = {"server_types": "cx23", "locations": "fsn1", "key_path": str(key_of(user)), "boot_limit": "3m", **options}
    user.executors({"name": "cloud", "type": "hetzner", **fields})


def key_of(user: User) -> Path:
    """Return the file of the user's private key."""
    return user.home.parent / "key"


def new_key(path: Path) -> None:
    """Make a pair of keys."""
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a tester", "-f", str(path)]
    subprocess.run(argv, check=True, timeout=60)


def let_go(server: Machine) -> None:
    """Let the command on a server (`HELD`) end, once it waits for that."""
    script = "cd /home/agent/.coding-agent/runs/*/workspace && test -e waits && touch go"
    until(lambda: server.run(["bash", "-c", script])[0] == 0)


@dataclass(frozen=True)
class RentedServer:
    """A server that was ordered as ours are, and is ready."""

    place: Mapping[str, Any]  # what is known of it when it was declared
    key: Path
    owner: str  # "uid gid" of the agent's user


def rented_server(api: HetznerApi, folder: Path) -> RentedServer:
    """Order one, without the engine."""
    key = folder / "key"
    new_key(key)
    host = asyncssh.generate_private_key("ssh-ed25519")
    private, public = host.export_private_key("openssh").decode(), host.export_public_key().decode().strip()
    ordered = cloud_init.user_data(
        ExecutorSpec("cloud", "hetzner"),
        KeyPair(private, public),
        key.with_suffix(".pub").read_text().strip(),
        git=True,
    )
    client = hcloud.Client(token=api.token, api_endpoint=api.endpoint)
    client.servers.create("rented", ServerType(name="cx23"), Image(name="debian-12"), user_data=ordered)
    machine = api.machine("rented")
    machine.ready()
    owner = " ".join(machine.run(["id", option, cloud_init.USER])[1].strip() for option in ("-u", "-g"))
    (server,) = api.servers()
    known = {"id": str(server["id"]), "host": machine.address, "port": 22, "user": cloud_init.USER}
    return RentedServer({**known, "host_key": public}, key, owner)
