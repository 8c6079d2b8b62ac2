"""Where things are that not every worker reaches: the files of one machine, and the stacks."""

from __future__ import annotations

import os
import platform
import secrets
from contextlib import suppress
from pathlib import Path

from coding_agent import backend, paths


def store() -> str:
    """Return the name of what holds the stacks of dispatched tasks: this machine, or a backend that others use too."""
    shared = backend.shared(paths.state_dir())
    return machine() if shared is None else f"backend-{shared}"


def machine() -> str:
    """Return the name of this machine's state folder: another for each, made on first use."""
    file = paths.state_dir() / "machine"
    with suppress(OSError):
        return file.read_text().strip()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = Path(f"{file}.{secrets.token_hex(4)}")
    part.write_text(f"{platform.node() or 'machine'}-{secrets.token_hex(4)}\n")
    with suppress(FileExistsError):  # of two at once the first wins
        os.link(part, file)
    part.unlink()
    return file.read_text().strip()
