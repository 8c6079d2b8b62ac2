"""The tests as `make` runs them, on a machine that start.sh set up: `python -m testbed quick|slow [arguments]`.

Engine and plugins are got (or built, for minutes) beside linters and unit tests, which need none of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from testbed import toolchain
from testbed.background import Job, container_engine, job, last_lines, python
from testbed.sessions import FOLDER, Sessions, interruptible, sessions

_BUILD_LIMIT = 60 * 60.0  # seconds
_LINT_LIMIT = 15 * 60.0
_PYTHONS_LIMIT = 30 * 60.0
# One test at a time: a worker that was given many long ones would be waited for by the others.
_WORKERS = ("-n", "4", "--dist", "load", "--maxschedchunk", "1", "--durations", "10")
_SELECTED = {"quick": "not slow", "slow": "slow"}


def main(suite: str, given: Sequence[str]) -> int:
    """Run a suite; `given` are more arguments for pytest."""
    started = time.monotonic()
    arguments = ["-m", _SELECTED[suite], *_WORKERS, *given]
    failures = FOLDER / "toolchain.json"
    with sessions() as run, contextlib.ExitStack() as beside:
        os.environ[toolchain.FAILURES] = str(failures.absolute())
        failures.unlink(missing_ok=True)
        tools = beside.enter_context(
            job("engine and plugins", FOLDER / "toolchain.log", python("toolchain", str(failures)))
        )
        # Soon: what sudo may do without its password lasts some minutes.
        beside.enter_context(container_engine(FOLDER))
        # Whoever names a file waits for all that it could need; so does what is slow.
        if suite == "quick":
            lint = beside.enter_context(
                job("linters", FOLDER / "lint.log", [os.environ.get("MAKE", "make"), "--no-print-directory", "lint"])
            )
            if not _names_files(given):
                run.run(arguments, ["tests/unit"])
                arguments_of_rest = ["tests", "--ignore=tests/unit"]
            else:
                arguments_of_rest = []
            _linters(lint, run)
        else:
            arguments_of_rest = []
        _toolchain(tools)
        print(f"engine and plugins are there, {time.monotonic() - started:.0f} s after the start", flush=True)
        pythons = None
        if suite == "slow" and not given:
            argv = [sys.executable, "tests/pythons.py", "--others"]
            pythons = beside.enter_context(job("other Pythons", FOLDER / "pythons.log", argv))
        run.run(arguments, arguments_of_rest)
        run.again()
        if pythons:
            _pythons(pythons, run)
    return run.conclude()


def _names_files(given: Sequence[str]) -> bool:
    return any(not each.startswith("-") and Path(each.partition("::")[0]).exists() for each in given)


def _linters(lint: Job, run: Sessions) -> None:
    code = lint.wait(_LINT_LIMIT)
    print("linters: clean" if code == 0 else lint.log.read_text(errors="replace"), flush=True)
    if code != 0:
        run.problems.append(f"linters: they {'do not end' if code is None else 'complain'} (see above, or `make lint`)")


def _pythons(pythons: Job, run: Sessions) -> None:
    code = pythons.wait(_PYTHONS_LIMIT)
    print(f"\nother Pythons (log: {pythons.log}):\n{last_lines(pythons.log)}", flush=True)
    if code != 0:
        run.problems.append("other Pythons: some of it failed (see above, or `make test-python`)")


def _toolchain(tools: Job) -> None:
    code = tools.wait(_BUILD_LIMIT)
    if code != 0:
        print(f"engine, plugins or agent are missing (all of it: {tools.log}):\n{last_lines(tools.log)}", flush=True)


if __name__ == "__main__":
    sys.exit(interruptible(lambda: main(sys.argv[1], sys.argv[2:])))
