"""What a new server is told first, over the connection that its one-use host key makes safe."""

from __future__ import annotations

from pathlib import Path

SCRIPTS = Path(__file__).parent
