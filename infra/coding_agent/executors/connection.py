"""How the controller talks to a target: run a command, put and get files, each with a time limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class Completed:
    """A command that ended by itself; what it wrote is as hostile as its target."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Connection(Protocol):
    """A live way to a target. Every call ends within its time limit.

    Raises `CommandTimeout` when the limit is reached (the command and its children are ended first) and
    `ConnectionBroken` when the target can't be reached; nothing is known of the command then.
    """

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | BinaryIO | None = None,
        timeout: float,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run `argv` without a shell; `timeout` in seconds; `env` is added to the target's plain environment."""
        ...

    def put(self, path: str, source: bytes | Path, *, mode: int = 0o600, timeout: float = 60.0) -> None:
        """Write a file so that a reader sees the old one or the whole new one."""
        ...

    def get(self, path: str, *, offset: int = 0, limit: int, timeout: float = 60.0) -> bytes | None:
        """Return up to `limit` bytes from `offset`; None where there is no regular file. Follows no symlink."""
        ...

    def close(self) -> None:
        """Give back what the connection holds; can be repeated."""
        ...
