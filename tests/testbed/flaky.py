"""Tests that pass only at their second run: tests/flaky.json has how many runs in a row each of them did so.

A run of CI begins with a fresh clone, so the file is committed by whoever sees that it changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FILE = Path("tests/flaky.json")
PATIENCE = 3  # runs in a row; the next one fails


@dataclass(frozen=True)
class Flaky:
    """A test that passed only at its second run."""

    test: str
    runs: int  # in a row, this one too

    @property
    def tolerated(self) -> bool:
        """Whether the run may end well all the same."""
        return self.runs <= PATIENCE

    def __str__(self) -> str:
        end = "" if self.tolerated else ": FAILED, it must be mended"
        return f"{self.test} (runs in a row: {self.runs}){end}"


def note(at_first: Iterable[str], at_second: Iterable[str], file: Path = FILE) -> list[Flaky]:
    """Write down which tests passed at their first and which only at their second run; return the latter."""
    before: dict[str, int] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    flaky = [Flaky(test, before.get(test, 0) + 1) for test in sorted(at_second)]
    steady = set(at_first)
    runs = {test: count for test, count in before.items() if test not in steady}
    runs |= {each.test: each.runs for each in flaky}
    if runs != before:
        file.write_text(json.dumps(runs, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return flaky
