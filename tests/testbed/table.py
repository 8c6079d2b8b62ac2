"""The table of what was not run, at the end of a session of pytest; with STRICT=1 each of its lines is a failure."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Mapping

import pytest

from testbed import needs
from testbed.needs import NotRun

PROPERTY = "not run"
LATER = "TESTBED_TABLE_LATER"  # set by the runner, which has several sessions and shows one table for all

Line = tuple[str, str, str]  # what is needed, why it is not there, what would help


def strict() -> bool:
    """Whether what was not run is a failure."""
    return os.environ.get("STRICT", "") not in ("", "0")


def lines_of(report: pytest.TestReport) -> list[Line]:
    """Return why a test was not run; nothing of one that was."""
    return [(str(line[0]), str(line[1]), str(line[2])) for name, line in report.user_properties if name == PROPERTY]  # type: ignore[index]


def render(counts: Mapping[Line, int], width: int) -> str:
    """Return the table as text."""
    from rich.console import Console
    from rich.table import Table

    total = sum(counts.values())
    end = "each line is a failure (STRICT=1)" if strict() else "no failure (with STRICT=1 it would be one)"
    table = Table("tests", "need", "why not here", "what would help", title=f"Not run: {total} tests; {end}")
    for line, count in sorted(counts.items(), key=lambda item: -item[1]):
        table.add_row(str(count), *line)
    console = Console(width=max(width, 80), highlight=False, markup=False, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


class Table:
    """The part of pytest that counts what was not run."""

    def __init__(self) -> None:
        self.counts: Counter[Line] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Write into the report why a test was not run: it may come from another process."""
        report = yield
        if call.excinfo is not None and isinstance(call.excinfo.value, NotRun):
            report.user_properties = [*report.user_properties, (PROPERTY, call.excinfo.value.line)]
            # One place for all: pytest then says the same reason once.
            report.longrepr = (needs.__file__, 1, f"Skipped: {call.excinfo.value.msg}")
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count."""
        self.counts.update(lines_of(report))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Let the session fail where it has to."""
        if self.counts and strict() and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the table."""
        if self.counts and LATER not in os.environ:
            terminalreporter.write_line("")
            terminalreporter.write(render(self.counts, terminalreporter._tw.fullwidth))
