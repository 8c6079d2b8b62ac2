"""Sessions of pytest that make up one run: `python -m testbed.sessions [arguments]` runs one.

With RETRY=1 what fails is run once more by itself: where other work on the machine made a test miss its time, it holds
alone. What fails twice has failed; what passes only then is written down (see `testbed.flaky`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from testbed import flaky, table
from testbed.session import Record

FOLDER = Path("build/testbed")
MANY = 40  # so many failures are no accident: they are not run again
_PATIENCE = 120.0  # seconds for a session to clean up once it is interrupted
_HARMLESS = (0, 5)  # all passed; nothing selected
_FAILED = 1


@dataclass
class Sessions:
    """What came of the sessions so far."""

    scratch: Path | None  # a folder for the tests' own, where nothing of other sessions matters
    retry: bool
    record: Record = field(default_factory=Record)
    flaky: list[flaky.Flaky] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    selected: bool = False
    _arguments: list[str] = field(default_factory=list)  # of all sessions, as one
    _count: int = 0

    def run(self, arguments: Sequence[str], part: Sequence[str] = ()) -> None:
        """Run a session: `part` are the arguments that make it a part of all that `arguments` select."""
        self._arguments = list(arguments)
        code, record = self._session([*part, *arguments])
        self.selected |= code != 5
        self.record.passed |= record.passed
        self.record.failed |= record.failed
        self.record.not_run += record.not_run
        # Without a test to blame, pytest's own word counts.
        if code not in (*_HARMLESS, _FAILED) or (code == _FAILED and not (record.failed or record.not_run)):
            self.problems.append(f"pytest ended with {code}")

    def again(self) -> None:
        """Run what failed once more by itself, and write down what passes only now."""
        if not self.retry:
            return
        failed, second = self.record.failed, Record()
        if len(failed) > MANY:
            print(f"\n{len(failed)} tests failed: too many for an accident, none is run again", flush=True)
        elif failed:
            print(f"\nwhat failed, once more by itself: {len(failed)} tests", flush=True)
            alone = ["--last-failed", "--last-failed-no-failures", "none", "-n", "0"]
            _, second = self._session([*self._arguments, *alone])
        self.flaky = flaky.note(self.record.passed - failed, failed & (second.passed - second.failed))
        self.record.failed = failed - {each.test for each in self.flaky}
        self.record.passed |= {each.test for each in self.flaky}

    def conclude(self) -> int:
        """Say how it ended, in the last lines; return the exit code."""
        if not self.selected:
            self.problems.append("no test was selected")
        if self.record.not_run:
            print(f"\n{table.render(self.record.not_run, shutil.get_terminal_size((120, 24)).columns)}")
        counts = {"passed": len(self.record.passed - self.record.failed), "failed": len(self.record.failed)}
        counts["not run"] = sum(self.record.not_run.values())
        print("\ntests: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
        for test in sorted(self.record.failed):
            print(f"  FAILED {test}")
        if self.flaky:
            print(f"passed only at the second run (commit {flaky.FILE}; four runs in a row are a failure):")
            for each in self.flaky:
                print(f"  {each}")
        for problem in self.problems:
            print(problem)
        bad = self.record.failed or self.problems or (self.record.not_run and table.strict())
        bad = bad or not all(each.tolerated for each in self.flaky)
        print("result: FAILED" if bad else "result: passed", flush=True)
        return 1 if bad else 0

    def _session(self, arguments: Sequence[str]) -> tuple[int, Record]:
        self._count += 1
        file = FOLDER / f"session-{self._count}.json"
        file.unlink(missing_ok=True)
        options = []
        if self.scratch:
            options = [f"--basetemp={self.scratch / str(self._count)}", "-o", f"cache_dir={self.scratch / 'cache'}"]
        code = _call(
            [sys.executable, "-m", "testbed.session", str(file.absolute()), *options, *arguments],
            {"PYTHONPATH": str(Path(__file__).parents[1]), table.LATER: "1"},
        )
        record = Record.from_plain(json.loads(file.read_text())) if file.is_file() else Record()
        return code, record


@contextlib.contextmanager
def sessions() -> Iterator[Sessions]:
    """Begin a run: RETRY=1 in the environment lets it run what fails once more."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RETRY", "") in ("", "0"):
        yield Sessions(None, retry=False)
        return
    with tempfile.TemporaryDirectory(prefix="tests-of-coding-agent-", ignore_cleanup_errors=True) as scratch:
        yield Sessions(Path(scratch), retry=True)


def _call(argv: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command; where this process is interrupted, the command gets time to clean up."""
    process = subprocess.Popen(argv, env={**os.environ, **environment})
    try:
        return process.wait()
    except BaseException as error:
        # Ctrl-C at a terminal reached both; anything else reached this process alone.
        if not isinstance(error, KeyboardInterrupt):
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
        process.kill()
        process.wait()
        raise


def main(arguments: Sequence[str]) -> int:
    """Run one session."""
    with sessions() as run:
        run.run(arguments)
        run.again()
        return run.conclude()


def interruptible(main: Callable[[], int]) -> int:
    """Run a main function whose `finally` is to be reached by Ctrl-C and by SIGTERM; return its exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _terminated(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(interruptible(lambda: main(sys.argv[1:])))
