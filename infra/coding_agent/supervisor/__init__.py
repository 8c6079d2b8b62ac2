"""The scripts that run on a target; `SCRIPTS` is their folder in the installed package."""

from __future__ import annotations

import hashlib
from pathlib import Path

SCRIPTS = Path(__file__).parent


def mark() -> str:
    """Return what tells one version of the scripts from another."""
    digest = hashlib.sha256()
    for file in sorted(SCRIPTS.glob("*.sh")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
