"""What a machine of the fake cloud is: what makes machines implements this, and the cloud's API needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

SSH_PORT = 22
READY_LIMIT = 240.0  # seconds; a virtual machine without hardware support takes a minute

Networks = Sequence[IPv4Network | IPv6Network]


def everybody() -> Networks | None:
    """Return the sources of a server without a firewall."""
    return None


@dataclass(frozen=True)
class ServerSpec:
    """A server as it was ordered."""

    id: int  # unique on this machine's fake clouds; cloud-init's instance-id
    name: str  # also its hostname
    user_data: str
    public_keys: tuple[str, ...]  # lines as in authorized_keys, for root
    image: str  # the name of a system image, as debian-12, or what `Machine.snapshot` returned
    server_type: str = "cx22"
    cores: int = 2
    memory: int = 4 << 30  # bytes
    location: str = "fsn1"
    datacenter: str = "fsn1-dc14"
    # Ports of this machine's 127.0.0.1 that programs on the server find on the server's own 127.0.0.1: a model's API.
    ports: tuple[int, ...] = ()
    # Who may connect to port 22, asked at every connection: firewalls change; None is everybody, () nobody. Who may
    # not gets no answer, as from a firewall that drops: the connection stands and nothing comes.
    sources: Callable[[], Networks | None] = field(default=everybody, repr=False)


class Machine(Protocol):
    """One server. All methods may be called from any thread, and wait until what they do is done."""

    @property
    def address(self) -> str:
        """Its address, 127.0.2.N: its own from its creation to its deletion; sshd answers there on port 22."""

    @property
    def running(self) -> bool:
        """Whether it has power: False also after it was shut down from inside."""

    def power_on(self) -> None:
        """Give it power; returns once it has it: it boots from then on. Nothing to do where it runs."""

    def power_off(self) -> None:
        """Take the power away, as by the plug."""

    def shutdown(self) -> None:
        """Ask the system to end, as by the power button; returns once it has, at the latest after half a minute."""

    def reboot(self) -> None:
        """Ask the system to boot anew."""

    def ready(self, limit: float = READY_LIMIT) -> None:
        """Wait until cloud-init has ended, well or not; fail after `limit` seconds with the console's last lines."""

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", limit: float = 60.0) -> tuple[int, str]:
        """Run a command there as root, past firewall and sshd: a door for tests. Return exit code and output."""

    def console(self) -> str:
        """Return what it wrote to its console."""

    def snapshot(self) -> str:
        """Keep its disk as an image; return the name that a later `ServerSpec.image` has."""

    def delete(self) -> None:
        """Remove it and everything of it; may be called again."""


class Machines(Protocol):
    """What makes machines. Making it removes what a killed test left of its kind."""

    def create(self, server: ServerSpec) -> Machine:
        """Make a machine, without power yet; quick: its address is known at once."""

    def forget(self, image: str) -> None:
        """Remove an image that `Machine.snapshot` made."""

    def close(self) -> None:
        """Remove all machines and images that it made."""
