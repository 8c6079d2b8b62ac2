"""One session of pytest that writes down what came of its tests: `python -m testbed.session FILE [arguments]`."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from testbed import table


@dataclass(eq=False)  # pytest wants a plugin that can be hashed
class Record:
    """What came of tests."""

    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    not_run: Counter[table.Line] = field(default_factory=Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the end of a part of a test."""
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.passed and report.when == "call":
            self.passed.add(report.nodeid)
        self.not_run.update(table.lines_of(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that could not be read."""
        if report.failed:
            self.failed.add(report.nodeid)

    def plain(self) -> dict[str, Any]:
        """Return it for a file."""
        passed = sorted(self.passed - self.failed)
        return {"passed": passed, "failed": sorted(self.failed), "not run": list(self.not_run.items())}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Record:
        """Return what a file holds."""
        not_run = Counter({(what, why, help): count for (what, why, help), count in plain["not run"]})
        return cls(set(plain["passed"]), set(plain["failed"]), not_run)


def main(file: Path, arguments: list[str]) -> int:
    """Run the session."""
    os.environ.pop("PYTHONPATH", None)  # it was for finding this module
    record = Record()
    code = pytest.main(arguments, plugins=[record])
    file.write_text(json.dumps(record.plain()))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
