"""Show a run's log: as lines for people or as it is, from its target while it is there and from the record after."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from coding_agent import outcome, records
from coding_agent.activity import Activity, Attempt, Init, Result, describe
from coding_agent.credentials import Redactor
from coding_agent.errors import ConnectionBroken, NotFound, TargetGone
from coding_agent.executors.base import CHUNK, Executor
from coding_agent.outcome import Screen
from coding_agent.patience import Patience
from coding_agent.records import Record
from coding_agent.text import one_line

SHOWN = 500  # characters of an event; `--raw` shows all of it
LONGEST_LINE = 64 * 1024 * 1024  # bytes; a longer one is dropped rather than kept in memory
MOST = 256 * 1024 * 1024  # bytes of a log that are looked at: a forged one may seem endless


class Renderer:
    """Turn whole lines of a log into what is shown of them, with the turn each belongs to."""

    def __init__(self, name: str, screen: Screen, *, raw: bool = False) -> None:
        self.plain = raw or name != "stream.jsonl"
        self.screen = screen
        self.result_seen = False
        self._activity = Activity()

    def render(self, lines: list[bytes]) -> list[str]:
        """Return the lines to show; an event nobody needs to see makes none."""
        if self.plain:
            return [self.screen.text(line.decode("utf-8", "replace")) for line in lines]
        shown: list[str] = []
        for line in lines:
            for event in self._activity.feed([line]):
                if isinstance(event, Result | Attempt):
                    self.result_seen = isinstance(event, Result)
                if text := describe(event):
                    turn = "" if isinstance(event, Result | Init | Attempt) else f"turn {self._activity.turns}: "
                    # Cut last: half a secret would not be recognised any more.
                    shown.append(one_line(self.screen.text(turn + text), SHOWN))
        return shown


class Follower:
    """Read what a log grows by; each line once, half lines when they are whole."""

    def __init__(self, record: Record, executor: Executor, renderer: Renderer, name: str, *, offset: int = 0) -> None:
        """`offset` is where in the log to begin, in bytes."""
        self._run_id, self._executor, self._name = record.run_id, executor, name
        self.renderer = renderer
        self._offset = offset
        self._rest = b""

    def new_lines(self, *, last: bool = False) -> Iterator[str]:
        """Yield the lines since the last call; with `last` also a line without its end.

        Where the connection breaks, what was yielded is not read again.
        """
        while self._offset < MOST and (chunk := self._executor.read(self._run_id, self._name, offset=self._offset)):
            self._offset += len(chunk)
            if self._offset >= MOST:
                yield f"[{self._name} is larger than {MOST // 1_000_000} MB: no more of it is shown]"
                return
            lines = (self._rest + chunk.replace(b"\0", b"")).split(b"\n")  # the holes of a sparse file say nothing
            self._rest = lines.pop()
            if len(self._rest) > LONGEST_LINE:
                self._rest = b""
            yield from self.renderer.render(lines)
            if len(chunk) < CHUNK:
                break
        if last and self._rest:
            rest, self._rest = self._rest, b""
            yield from self.renderer.render([rest])


def logs(
    record: Record,
    *,
    n: int | None,
    follow: bool,
    raw: bool,
    debug: bool,
    write: Callable[[str], None],
    say: Callable[[str], None],
    stop: threading.Event,
    poll: float = 0.1,
) -> None:
    """Write the last `n` lines of the run's log (all when None), then, with `follow`, what comes until its end.

    `raw` shows the lines as the agent wrote them (still redacted), `debug` Claude Code's debug log. `poll` is in
    seconds. While it follows, a connection that breaks is tried again; `say` is told. Raises `NotFound` where there is
    no such log, and `ConnectionBroken`.
    """
    from coding_agent.lifecycle import reach

    record = records.latest(record)
    name = "debug.log" if debug else "stream.jsonl" if record.kind == "agent" else "output.log"
    if not debug and record.outputs.status.final and record.outputs.started_at is None:
        name = "setup.log"  # it never came to another
    if record.removed or record.collected:
        for line in _last(_recorded(record, name, raw), n):
            write(line)
        return
    with contextlib.closing(reach(record)) as executor:
        follower = Follower(record, executor, Renderer(name, outcome.screen(record), raw=raw), name)
        lines = list(follower.new_lines(last=not follow))
        shown = len(lines)
        for line in _last(lines, n):
            write(line)
        rounds, patience = 0, Patience(say)
        while follow and not stop.wait(poll):
            rounds += 1
            try:
                for line in follower.new_lines():
                    shown += 1
                    write(line)
                if not (follower.renderer.result_seen or rounds % 5 == 0):
                    continue
                state = executor.status(record.run_id).state
                patience.rewarded()
                if state is None or state.final:
                    for line in follower.new_lines(last=True):
                        write(line)
                    return
            except TargetGone:
                if not records.latest(record).collected:
                    raise
                # Given back meanwhile by another process, which has brought the log here.
                for line in _recorded(record, name, raw)[shown:]:
                    write(line)
                return
            except ConnectionBroken as error:
                if not patience.lasts(error):
                    raise


def recorded(record: Record) -> list[str]:
    """Return the lines of a log that has been brought back; none where there is none."""
    try:
        return _recorded(record, records.log_file(record).name, raw=False)
    except NotFound:
        return []


def _last(lines: list[str], n: int | None) -> list[str]:
    return lines if n is None else lines[-n:] if n > 0 else []


def _recorded(record: Record, name: str, raw: bool) -> list[str]:
    file = records.log_file(record).with_name(name)
    if not file.is_file():
        raise NotFound(f"run {record.run_id} left no {name}")
    # It was redacted when it was collected; what remains is to make it harmless on a terminal.
    lines = file.read_bytes().removesuffix(b"\n").split(b"\n")
    return Renderer(name, Screen(record.run_id, Redactor({})), raw=raw).render(lines)
