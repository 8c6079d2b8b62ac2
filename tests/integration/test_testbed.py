"""How the tests are run: what is not run is listed, what fails is tried again, what a machine lacks is asked for."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from waiting import until

LIMIT = 120.0  # seconds
TESTS = Path(__file__).parents[1]
NOBODY = 65534
_OURS = ("STRICT", "RETRY", "INSTALL", "TESTBED_", "PYTEST_", "PYTHONPATH", "SUDO_")
# Fails where it has not been run before.
ACCIDENT = """
from pathlib import Path

def test_accident():
    seen = Path("seen")
    first = not seen.exists()
    seen.touch()
    assert not first

def test_steady():
    pass
"""
ALWAYS = "def test_always():\n    assert not 'this fails'\n"
NEEDS = """
import pytest
from testbed.needs import program, requires

@pytest.fixture(scope="session")
def engine():
    requires(program("no-such-program", "some-package"))

@pytest.mark.parametrize("number", range(3))
def test_with_a_fixture(engine, number):
    pass

def test_by_itself():
    requires(program("none-either", "another-package"))

def test_without_needs():
    pass

def test_skipped():
    pytest.skip("for a reason of its own")
"""


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**kept, **more}


@dataclass
class Checkout:
    """A folder with a few tests, run as the project's own are."""

    folder: Path

    def write(self, text: str, name: str = "test_it.py") -> None:
        """Write a file of tests."""
        (self.folder / "tests" / name).write_text(text)

    def run(self, *arguments: str, code: int, **environment: str) -> str:
        """Run the tests; return what is shown."""
        done = subprocess.run(
            [sys.executable, "-m", "testbed.sessions", *arguments],
            cwd=self.folder,
            env=_environment({"PYTHONPATH": str(TESTS), "COLUMNS": "160", **environment}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    @property
    def flaky(self) -> dict[str, int]:
        """What is written down of tests that passed only at their second run."""
        file = self.folder / "tests" / "flaky.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    @flaky.setter
    def flaky(self, runs: Mapping[str, int]) -> None:
        (self.folder / "tests" / "flaky.json").write_text(json.dumps(runs))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """Return such a folder, without tests."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {TESTS}\ntestpaths = tests\n")
    table = (
        "from testbed.table import Table\n\ndef pytest_configure(config):\n    config.pluginmanager.register(Table())\n"
    )
    (tmp_path / "tests" / "conftest.py").write_text(table)
    return Checkout(tmp_path)


def test_what_passes_at_its_second_run_is_written_down(checkout: Checkout) -> None:
    """With RETRY=1 a test that fails is run once more by itself; where it passes then, the run is good, its last lines
    name the test, and the file says in how many runs in a row that was so."""
    checkout.write(ACCIDENT)
    test = "tests/test_it.py::test_accident"

    shown = checkout.run(code=0, RETRY="1")

    assert "what failed, once more by itself: 1 tests" in shown
    assert f"{test} (runs in a row: 1)" in shown.splitlines()[-2]
    assert checkout.flaky == {test: 1}
    checkout.run(code=0, RETRY="1")
    assert checkout.flaky == {}, "it passed at its first run"


def test_a_test_that_is_not_run_keeps_its_place_there(checkout: Checkout) -> None:
    """A run of other tests says nothing of one that is written down."""
    checkout.write(ACCIDENT)
    checkout.flaky = {"tests/test_it.py::test_accident": 2}

    checkout.run("-k", "steady", code=0, RETRY="1")

    assert checkout.flaky == {"tests/test_it.py::test_accident": 2}


def test_the_fourth_run_in_a_row_fails(checkout: Checkout) -> None:
    """A test that passed only at its second run in three runs in a row fails the fourth."""
    checkout.write(ACCIDENT)
    test = "tests/test_it.py::test_accident"
    checkout.flaky = {test: 2}

    checkout.run(code=0, RETRY="1")
    (checkout.folder / "seen").unlink()
    shown = checkout.run(code=1, RETRY="1")

    assert f"{test} (runs in a row: 4): FAILED" in shown
    assert checkout.flaky == {test: 4}


def test_what_fails_twice_has_failed(checkout: Checkout) -> None:
    """A test that fails at its second run too has failed, and is not written down."""
    checkout.write(ALWAYS)

    shown = checkout.run(code=1, RETRY="1")

    assert shown.count("def test_always") == 2
    assert "  FAILED tests/test_it.py::test_always" in shown.splitlines()[-2]
    assert checkout.flaky == {}


def test_a_file_that_can_not_be_read_fails(checkout: Checkout) -> None:
    """A run with a file of tests that can't be imported fails, at its second run too."""
    checkout.write("import no_such_module\n")

    assert "no_such_module" in checkout.run(code=1, RETRY="1")


def test_without_retry_nothing_is_run_again(checkout: Checkout) -> None:
    """Without RETRY=1 the first failure is the end of it."""
    checkout.write(ACCIDENT)

    shown = checkout.run(code=1)

    assert "once more" not in shown
    assert checkout.flaky == {}


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_leaves_nothing_running(checkout: Checkout, how: str) -> None:
    """Ctrl-C, which reaches every process of the run, and SIGTERM, which reaches the first, end the tests too."""
    checkout.write(
        "import os, pathlib, time\n\ndef test_that_waits():\n"
        "    pathlib.Path('part').write_text(str(os.getpid()))\n    os.rename('part', 'pid')\n    time.sleep(600)\n"
    )
    environment = _environment({"PYTHONPATH": str(TESTS)})
    run = subprocess.Popen(
        [sys.executable, "-m", "testbed.sessions"],
        cwd=checkout.folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    until((checkout.folder / "pid").exists)

    os.killpg(run.pid, signal.SIGINT) if how == "Ctrl-C" else run.terminate()

    assert run.wait(LIMIT) == {"Ctrl-C": 130, "SIGTERM": 128 + signal.SIGTERM}[how]
    assert not Path(f"/proc/{(checkout.folder / 'pid').read_text()}").exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_is_not_run_is_in_one_table(checkout: Checkout, workers: str) -> None:
    """Tests whose needs the machine lacks keep nothing from passing; one table says how many, why and what helps."""
    checkout.write(NEEDS)

    shown = checkout.run("-n", workers, code=0)

    assert shown.count("Not run: 4 tests; no failure") == 1
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert [row[:2] for row in rows if row[0]] == [
        ["3", "Debian's package some-package"],
        ["1", "Debian's package another-package"],
    ]
    assert "there is no no-such-program on PATH" in shown
    assert "INSTALL=1" in shown
    assert "tests: 1 passed, 0 failed, 4 not run" in shown


@pytest.mark.parametrize("module", ["testbed.sessions", "pytest"])
def test_strict_lets_what_is_not_run_fail(checkout: Checkout, module: str) -> None:
    """With STRICT=1 every line of the table is a failure, and the table says so; also where pytest is run by itself."""
    checkout.write(NEEDS)
    environment = _environment({"PYTHONPATH": str(TESTS), "STRICT": "1", "RETRY": "1", "COLUMNS": "160"})
    argv = [sys.executable, "-m", module]

    done = subprocess.run(
        argv, cwd=checkout.folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )

    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("Not run: 4 tests; each line is a failure (STRICT=1)") == 1
    assert "once more" not in done.stdout, "another run finds the same machine"


def test_what_could_not_be_built_is_not_tried_again(checkout: Checkout) -> None:
    """Where engine or plugins could not be had, tests that need them fail at once with the reasons."""
    checkout.write("from testbed import toolchain\n\ndef test_with_engine():\n    toolchain.engine()\n")
    failures = checkout.folder / "failures.json"
    failures.write_text(json.dumps({"engine": "no usable engine: source: go ended with 2"}))

    shown = checkout.run(code=1, TESTBED_TOOLCHAIN_FAILURES=str(failures))

    assert "Unavailable: no usable engine: source: go ended with 2" in shown


@dataclass(frozen=True)
class Machine:
    """A machine that has next to nothing, and a user of it without root; what is asked of apt-get is written down."""

    folder: Path

    def start(self, terminal: int | None = None, **environment: str) -> subprocess.Popen[str]:
        """Start the set-up; a Python that is too old ends it before the tests begin."""
        programs = self.folder / "programs"
        more = {
            "PATH": str(programs),
            "PYTHON": str(programs / "python3.10"),
            "LOG": str(self.folder / "log"),
            **environment,
        }
        return subprocess.Popen(
            ["bash", str(self.folder / "tests" / "testbed" / "start.sh"), "quick"],
            env={**_environment({}), **more},
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if terminal is None else terminal,
            text=True,
            user=NOBODY if os.geteuid() == 0 else None,
            start_new_session=True,
        )

    def run(self, **environment: str) -> str:
        """Run the set-up without a terminal; return what it says."""
        process = self.start(None, **environment)
        shown, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 1, shown
        return shown

    def run_at_terminal(self, answer: str) -> str:
        """Run the set-up at a terminal where somebody answers a question; return what is on the screen."""
        ours, theirs = pty.openpty()
        os.write(ours, f"{answer}\n".encode())
        process = self.start(theirs)
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:
            pass  # nobody has the other end any more
        finally:
            os.close(ours)
        process.communicate(timeout=LIMIT)
        return shown.decode()

    @property
    def asked(self) -> list[str]:
        """What was asked of sudo so far."""
        log = self.folder / "log"
        return log.read_text().splitlines() if log.is_file() else []


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Return such a machine."""
    with tempfile.TemporaryDirectory(prefix="ca-") as name:
        folder = Path(name)
        (folder / "tests" / "testbed").mkdir(parents=True)
        shutil.copy(TESTS / "testbed" / "start.sh", folder / "tests" / "testbed" / "start.sh")
        programs = folder / "programs"
        programs.mkdir()
        for each in ("bash", "env", "mkdir", "dirname", "cat", "tail", "sort"):
            (programs / each).symlink_to(str(shutil.which(each)))
        for each, script in {
            "sudo": 'echo "$*" >>"$LOG"',
            "apt-get": "exit 1",
            "apt-cache": "[[ $2 == podman || $2 == git ]]",
            "python3.10": "exit 1",
        }.items():
            (programs / each).write_text(f"#!{shutil.which('bash')}\n{script}\n")
            (programs / each).chmod(0o755)
        folder.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        yield Machine(folder)


def test_nothing_is_installed_unasked(machine: Machine) -> None:
    """A user without root and without a terminal gets nothing installed; and a Python that is too old is one line."""
    shown = machine.run()

    assert machine.asked == []
    assert [line for line in shown.splitlines() if "older than 3.11" in line] == shown.splitlines()
    assert "apt-get install python3 python3-venv" in shown


def test_who_wants_it_gets_it_installed(machine: Machine) -> None:
    """With INSTALL=1 what is missing is installed with sudo, which must not ask where there is no terminal; what the
    release does not have is named and keeps nothing else out."""
    shown = machine.run(INSTALL="1")

    assert machine.asked == [
        "-n apt-get update -q",
        "-n env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends git podman",
    ]
    assert "still missing: " in shown


def test_a_question_is_asked_once(machine: Machine) -> None:
    """At a terminal the user is told what would be done and why, and asked; who says no is not asked the same again."""
    shown = machine.run_at_terminal("n")

    assert "With sudo this would now" in shown
    assert " podman" in shown
    assert "start a container engine (dockerd) for as long as the tests run" in shown
    assert machine.asked == []
    assert "With sudo" not in machine.run_at_terminal("y")
    assert machine.asked == []


def test_yes_is_an_answer(machine: Machine) -> None:
    """At a terminal, who says yes gets it installed with sudo, which may ask for a password."""
    machine.run_at_terminal("y")

    assert machine.asked[:2] == ["-v", "apt-get update -q"]


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_dockerd_ends_with_the_run(tmp_path: Path, end: str) -> None:
    """The dockerd that a run starts ends with the run, by its pid; also where the run is killed."""
    (tmp_path / "dockerd").write_text("#!/bin/sh\necho began\nexec sleep 600\n")
    (tmp_path / "dockerd").chmod(0o755)
    script, pid, log = TESTS / "testbed" / "dockerd.sh", tmp_path / "pid", tmp_path / "log"
    guard = ["bash", str(script), str(log), str(pid)]
    run = "import subprocess, sys; subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE).wait()"
    environment = _environment({"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    argv = guard if end == "closed" else [sys.executable, "-c", run, *guard]
    process = subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        number = int(until(lambda: pid.is_file() and pid.read_text().strip()))
        until(lambda: log.is_file() and log.read_text() == "began\n")

        process.stdin.close() if end == "closed" else process.kill()

        until(lambda: not pid.exists())
        assert not Path(f"/proc/{number}").exists()
    finally:
        process.stdin.close()
        process.kill()
        process.wait(LIMIT)
