"""A connection to a host over ssh: one for all commands, opened anew where it broke."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from coding_agent.executors.connection import Completed, FilesByCommand

if TYPE_CHECKING:
    from coding_agent.executors.ssh_login import Login

KEEPALIVE_INTERVAL = 10.0  # seconds between two questions whether the other side is there
KEEPALIVE_MAX = 3  # unanswered ones, after which the connection counts as broken


class SshConnection(FilesByCommand):
    """Commands and files of one host, as one user. Connects when it is first used."""

    def __init__(self, login: Login, *, keepalive: float = KEEPALIVE_INTERVAL) -> None:
        """Nothing is asked yet."""
        self._login = login
        self._keepalive = keepalive

    @property
    def login(self) -> Login:
        """Who is logged in, and where."""
        return self._login

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | BinaryIO | None = None,
        timeout: float,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command; see `Connection.run`. Raises `HostKeyUnknown`, `HostKeyChanged` and `LoginRefused` too."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it; can be repeated."""
        raise NotImplementedError
