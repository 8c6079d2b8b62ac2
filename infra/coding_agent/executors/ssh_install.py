"""Claude Code brought to a host, once: in pieces, so that a connection that breaks costs one of them, and checked."""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING

from coding_agent import claude
from coding_agent.errors import ClaudeMissing, ConnectionBroken
from coding_agent.toolchain.installation import sha256

if TYPE_CHECKING:
    from pathlib import Path

    from coding_agent.executors.base import Executor
    from coding_agent.toolchain.installation import Progress

PIECE = 8 * 1024 * 1024  # bytes of the program that are sent at once
PIECE_LIMIT = 300.0  # seconds for one
ATTEMPTS = 5  # how often in a row a piece is tried
_SAY_EVERY = 1.0  # seconds
_LOOK_LIMIT = 60.0  # seconds
_ELSEWHERE = 45  # what the host says where another has gone on meanwhile
_PLATFORM = """
case $(uname -s)-$(uname -m) in
  Linux-x86_64) name=linux-x64 ;;
  Linux-aarch64) name=linux-arm64 ;;
  *) uname -sm; exit 44 ;;
esac
if ! compgen -G "/lib*/ld-linux*" >/dev/null && compgen -G "/lib/ld-musl-*" >/dev/null; then name+=-musl; fi
echo "$name"
"""
_SIZE = '[[ -f $1 ]] && stat -c "whole %s" -- "$1" || { [[ -f $2 ]] && stat -c "part %s" -- "$2" || echo part 0; }'
# Two that bring the same one go on from each other: whoever holds the file looks first how far it has come.
_APPEND = """
umask 077
mkdir -p -- "${1%/*}" && exec 9>>"$1" && flock 9 || exit
[[ -e $1 && $(stat -L -c %s /dev/fd/9) == "$2" ]] || exit 45
gzip -dc >&9
"""
_FINISH = """
[[ $(sha256sum <"$1") == "$3 "* ]] || { rm -f -- "$1"; exit 46; }
mkdir -p -- "${2%/*}" && chmod -- 755 "$1" && mv -fT -- "$1" "$2"
"""


def install(executor: Executor, version: str | None, say: Progress) -> str:
    """Return Claude Code's program on the executor's host, brought there where it is not yet.

    `version` is by default the pinned one. Raises `ClaudeMissing`, and `ConnectionBroken` where the connection breaks
    again and again.
    """
    done = executor.connection.run(["bash", "-c", _PLATFORM], timeout=_LOOK_LIMIT)
    platform = done.stdout.decode("utf-8", "replace").strip()
    if done.exit_code != 0:
        raise ClaudeMissing(
            f"Claude Code is brought to Linux (x86-64, arm64) only; the host of executor {executor.name} is "
            f"{platform[:80]!r}",
            next_step="install it there, and name it in the executor's claude_path",
        )
    wanted = version or claude.PINNED_VERSION
    target = f"{executor.root}/claude/{wanted}-{platform}/claude"
    source = claude.for_platform(platform, wanted, say)
    digest = sha256(source)
    part = f"{executor.root}/claude/.{digest[:16]}.part"
    if _bring(executor, source, part, target, f"Claude Code {wanted}", say):
        argv = ["bash", "-c", _FINISH, "finish", part, target, digest]
        done = executor.connection.run(argv, timeout=PIECE_LIMIT)
        if done.exit_code != 0 and not _size(executor, part, target)[0]:
            raise ClaudeMissing(
                f"what arrived of Claude Code {wanted} on executor {executor.name} is not what was sent",
                next_step="run this again; what was wrong is removed",
            )
        say(f"installed Claude Code {wanted} on {executor.name}")
    _must_run(executor, target)
    return target


def _bring(executor: Executor, source: Path, part: str, target: str, what: str, say: Progress) -> bool:
    """Send what is missing of the program; return whether it has yet to be put in its place."""
    total, said, failed = source.stat().st_size, 0.0, 0
    with source.open("rb") as file:
        while True:
            try:
                whole, size = _size(executor, part, target)
                if whole or size >= total:
                    return not whole
                file.seek(size)
                piece = _packed(file.read(PIECE))
                argv = ["bash", "-c", _APPEND, "append", part, str(size)]
                done = executor.connection.run(argv, stdin=piece, timeout=PIECE_LIMIT)
            except ConnectionBroken as error:
                failed += 1
                if failed >= ATTEMPTS:
                    raise
                say(f"the connection is broken, going on with {what}: {error.message}")
                continue
            if done.exit_code not in (0, _ELSEWHERE):
                reason = done.stderr.decode("utf-8", "replace").strip()[-200:]
                raise ClaudeMissing(
                    f"{what} can't be written on executor {executor.name}: {reason or 'nothing said'}",
                    next_step=f"make room for {total / 1e6:.0f} MB in {executor.root} if it is full, then repeat this",
                )
            failed = 0
            if time.monotonic() - said >= _SAY_EVERY:
                sent = min(size + PIECE, total)
                say(f"copying {what} to {executor.name}: {sent / 1e6:.0f} of {total / 1e6:.0f} MB")
                said = time.monotonic()


def _size(executor: Executor, part: str, target: str) -> tuple[bool, int]:
    """Return whether the program is in its place, and else how many bytes of it have arrived."""
    done = executor.connection.run(["bash", "-c", _SIZE, "size", target, part], timeout=_LOOK_LIMIT)
    kind, _, size = done.stdout.decode("ascii", "replace").strip().partition(" ")
    return kind == "whole", int(size) if size.isdigit() else 0


def _packed(piece: bytes) -> bytes:
    # A third of it, for a moment's work.
    packer = zlib.compressobj(1, wbits=31)
    return packer.compress(piece) + packer.flush()


def _must_run(executor: Executor, program: str) -> None:
    argv = ["env", "DISABLE_AUTOUPDATER=1", program, "--version"]
    done = executor.connection.run(argv, timeout=_LOOK_LIMIT)
    if done.exit_code != 0:
        reason = done.stderr.decode("utf-8", "replace").strip()[-200:]
        raise ClaudeMissing(
            f"{program} does not run on executor {executor.name}: {reason or f'exit code {done.exit_code}'}",
            next_step="name a folder on a file system that programs may run from with root_dir, or install it yourself",
        )
