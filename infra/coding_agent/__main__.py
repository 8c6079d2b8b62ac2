"""`python -m coding_agent` is `coding-agent`."""

from __future__ import annotations

import sys

from coding_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
