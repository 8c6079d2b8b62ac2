"""What the engine starts as the provider `coding-agent`: it serves `servicer.py` until the engine is gone."""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Serve the engine that started this program; return the exit code."""
    # What is loaded stays. Looking through it for garbage while it is loaded takes a third of the time until the engine
    # has its first answer.
    gc.disable()
    from coding_agent.plugin import serve
    from coding_agent.servicer import Servicer

    gc.freeze()
    gc.enable()
    return serve(Servicer)


if __name__ == "__main__":
    sys.exit(main())
