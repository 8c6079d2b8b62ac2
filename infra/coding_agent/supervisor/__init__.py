"""The scripts that run on a target; `SCRIPTS` is their folder in the installed package."""

from __future__ import annotations

from pathlib import Path

SCRIPTS = Path(__file__).parent
