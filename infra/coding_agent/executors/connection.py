"""How the controller talks to a target: run a command, put and get files, each with a time limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from coding_agent.errors import ConnectionBroken


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


_NO_FILE = 44  # what the script says where there is no regular file
_PUT = """
umask 077
part=${1%/*}/.${1##*/}.$$
cat >"$part" && [[ $(stat -c %s -- "$part") == "$2" ]] && chmod -- "$3" "$part" && mv -fT -- "$part" "$1" && exit
rm -f -- "$part"
exit 1
"""
_GET = """
folder=${1%/*}
[[ $(cd -P -- "${folder:-/}" 2>/dev/null && pwd) == "${folder:-/}" && -f $1 && ! -L $1 && -r $1 ]] || exit 44
tail -c "+$(($2 + 1))" -- "$1" | head -c "$3"
"""


class FilesByCommand(Connection, Protocol):
    """`put` and `get` for a connection that can run commands: bash, with coreutils, does the rest."""

    def put(self, path: str, source: bytes | Path, *, mode: int = 0o600, timeout: float = 60.0) -> None:
        """Write a file by rename; see `Connection.put`."""
        if isinstance(source, Path):
            size = source.stat().st_size
            with source.open("rb") as file:
                done = self.run(["bash", "-c", _PUT, "put", path, str(size), f"{mode:o}"], stdin=file, timeout=timeout)
        else:
            argv = ["bash", "-c", _PUT, "put", path, str(len(source)), f"{mode:o}"]
            done = self.run(argv, stdin=source, timeout=timeout)
        if done.exit_code != 0:
            said = done.stderr.decode("utf-8", "replace").strip()[-300:]
            raise ConnectionBroken(f"{path} can't be written: {said or 'nothing said'}")

    def get(self, path: str, *, offset: int = 0, limit: int, timeout: float = 60.0) -> bytes | None:
        """Read a part of a regular file; see `Connection.get`. No part of the path may be a symlink."""
        done = self.run(["bash", "-c", _GET, "get", path, str(offset), str(limit)], timeout=timeout)
        if done.exit_code == _NO_FILE:
            return None
        if done.exit_code != 0:
            said = done.stderr.decode("utf-8", "replace").strip()[-300:]
            raise ConnectionBroken(f"{path} can't be read: {said or 'nothing said'}")
        return done.stdout
