"""Where tests keep what is slow to fetch between runs: $CODING_AGENT_TEST_CACHE, else a folder in the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

# Read at import: the tests themselves run with a home of their own.
FOLDER = Path(os.environ.get("CODING_AGENT_TEST_CACHE") or Path.home() / ".cache" / "coding-agent-tests")


def known_program(home: Path) -> None:
    """Let a home have the Claude Code that all tests share, so that it needn't be fetched."""
    ours = home / ".cache" / "coding-agent" / "claude"
    ours.parent.mkdir(parents=True, exist_ok=True)
    ours.symlink_to(FOLDER / "coding-agent" / "claude")


def known_versions(home: Path) -> None:
    """Let a home know the versions of the programs that all tests share, so that not each of them is asked again."""
    known, ours = FOLDER / "coding-agent" / "versions.json", home / ".cache" / "coding-agent" / "versions.json"
    if known.is_file():
        ours.parent.mkdir(parents=True, exist_ok=True)
        ours.write_bytes(known.read_bytes())
