"""Where tests keep what is slow to fetch between runs: $CODING_AGENT_TEST_CACHE, else a folder in the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

# Read at import: the tests themselves run with a home of their own.
FOLDER = Path(os.environ.get("CODING_AGENT_TEST_CACHE") or Path.home() / ".cache" / "coding-agent-tests")
