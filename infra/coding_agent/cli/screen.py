"""What reaches the terminal: lines, tables, JSON, a spinner. Colours and movement only where someone watches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from coding_agent.text import neutralise

COLOURS: Mapping[str, str] = {
    "succeeded": "green", "ok": "green",
    "failed": "red", "killed": "red", "timed_out": "red", "lost": "red", "missing": "red",
    "warning": "yellow", "unresponsive": "yellow",
    "queued": "cyan", "provisioning": "cyan", "starting": "cyan", "running": "cyan",
}  # fmt: skip


class OutputClosed(BaseException):
    """Our output can't be written. Not an Exception: nothing on the way may take it for a failure of its own.

    Without a reason whoever read it went away (`... | head`).
    """

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason


def flush() -> None:
    """Write out what is still buffered. Raises OutputClosed."""
    _to(sys.stdout, "")


def write(text: str) -> None:
    """Write text as it is to stdout, at once. Raises OutputClosed."""
    _to(sys.stdout, text)


def _to(stream: TextIO | None, text: str) -> None:
    if stream is None:
        raise OutputClosed("it is closed")
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        raise OutputClosed(error.strerror or "unknown error") from None


class Screen:
    """Where one command shows its results: for people, or with --json for programs.

    With --json stdout carries exactly one JSON document (or one a line), and what people would read goes to stderr.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    @property
    def stream(self) -> TextIO:
        """Where lines for people go."""
        return sys.stderr if self.as_json else sys.stdout

    @property
    def terminal(self) -> bool:
        """Whether people watch."""
        return self.stream is not None and self.stream.isatty()

    def say(self, text: str = "") -> None:
        """Show text to people, made harmless for a terminal and a CI log."""
        _to(self.stream, neutralise(text) + "\n")

    def data(self, value: Any) -> None:
        """Print a JSON document on stdout; only ASCII, so nothing in it can reach the terminal raw."""
        write(json.dumps(value, indent=2, default=str) + "\n")

    def line(self, value: Any) -> None:
        """Print a JSON document on one line of stdout."""
        write(json.dumps(value, default=str) + "\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show rows in aligned columns; no heading row where every heading is empty."""
        cells = [[" ".join(neutralise(cell).split("\n")) for cell in row] for row in rows]
        if self.terminal:
            self._rich_table(columns, cells)
            return
        lines = [*([list(columns)] if any(columns) else []), *cells]
        widths = [max((len(line[place]) for line in lines), default=0) for place in range(len(columns))]
        for line in lines:
            padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            _to(self.stream, "  ".join(padded).rstrip() + "\n")

    def _rich_table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=any(columns), header_style="bold", padding=(0, 2, 0, 0))
        for number, column in enumerate(columns):
            # What one may want to copy stays in one piece: the last column alone gives way.
            last = number == len(columns) - 1
            table.add_column(Text(column), overflow="fold", no_wrap=not last)
        for row in rows:
            # Text, not a string: a string would be read as markup, and cells come from tasks and targets.
            table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
        Console(file=self.stream).print(table)

    @contextmanager
    def working(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show that something goes on, and give what shows its lines: a spinner on a terminal, else plain lines."""
        if not self.terminal:
            self.say(text)
            yield self.say
            return
        from rich.console import Console
        from rich.status import Status
        from rich.text import Text

        console = Console(file=self.stream)
        with Status(Text(text), console=console):

            def show(line: str) -> None:
                console.print(Text(neutralise(line)), soft_wrap=True)

            yield show
