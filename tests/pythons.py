"""Run the quick tests, and install the wheel, on each Python that the project supports and this machine has.

`make test-python` runs this. A version that is not here is listed; with STRICT=1 it is a failure where the distribution
packages it. With PYTHONS=3.12 only that one is asked for, and has to be here; with `--others`, as in `make test-slow`,
the version that runs this is left out: its tests are the suites'. Each version has an environment in the
tests' shared cache, made anew when what is pinned changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import shared_cache
from distributions import REPOSITORY, build
from release import pins

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
# What runs without an engine, without containers and without Claude Code.
TESTS = ("tests/unit", "tests/acceptance/test_broken_files.py", "tests/acceptance/test_pinned_workflow.py")
# What these tests need beside the package's own dependencies.
_TOOLS = ("build", "editables", "hatchling", "psutil", "pytest", "pytest-timeout", "pytest-xdist")
_INSTALL_LIMIT = 600.0  # seconds
_TEST_LIMIT = 1200.0  # seconds


@dataclass(frozen=True)
class Result:
    """What came of one version."""

    version: str
    python: Path | None
    wheel: str
    tests: str
    seconds: float
    failed: bool


class Broken(Exception):
    """What did not work on a version."""


def find(version: str) -> Path | None:
    """Return a Python of that version: the distribution's, else one on PATH, else pyenv's, else uv's."""
    return next((each for each in _candidates(version) if _works(each, version)), None)


def _candidates(version: str) -> Iterator[Path]:
    yield Path(f"/usr/bin/python{version}")
    if on_path := shutil.which(f"python{version}", path=_path()):
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    for folder, pattern in ((pyenv / "versions", f"{version}.*"), (uv, f"cpython-{version}.*")):
        for found in sorted(folder.glob(pattern), key=_newest, reverse=True):
            yield found / "bin" / f"python{version}"


def _path() -> str:
    """Return PATH without environments of Python's own: what is made of one goes with it."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    return os.pathsep.join(each for each in folders if not (Path(each).parent / "pyvenv.cfg").exists())


def _newest(folder: Path) -> list[int]:
    return [int(each) for each in folder.name.replace("-", ".").split(".") if each.isdigit()]


def _works(python: Path, version: str) -> bool:
    """Whether it is one, and can make environments: pyenv's stand-ins on PATH may be none, Debian's may lack that."""
    script = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([str(python), "-c", script], capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return False
    return done.stdout.strip() == version


def packaged(version: str) -> bool:
    """Whether the distribution has a package of it, as far as this machine knows."""
    if shutil.which("apt-cache") is None:
        return False
    argv = ["apt-cache", "show", "--no-all-versions", f"python{version}"]
    return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0


def environment(python: Path, version: str) -> Path:
    """Return the Python of an environment with what the tests need, by hash; made where there is none yet."""
    lock = pins.read((REPOSITORY / "requirements.lock").read_text(encoding="utf-8"))
    text = pins.text(pins.runtime(lock, [*pins.direct(), *_TOOLS]))
    state = hashlib.sha256(f"{python.resolve()}\n{text}".encode()).hexdigest()[:16]
    folders = shared_cache.FOLDER / "pythons"
    folder = folders / f"{version}-{state}"
    inside = folder / "bin" / "python"
    if (folder / ".installed").exists():
        return inside
    for outdated in folders.glob(f"{version}-*"):
        shutil.rmtree(outdated)
    _do([str(python), "-m", "venv", str(folder)], _INSTALL_LIMIT)
    asked = folder / "requirements.txt"
    asked.write_text(text)
    pip = [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _do([*pip, "--require-hashes", "--only-binary", ":all:", "-r", str(asked)], _INSTALL_LIMIT)
    (folder / ".installed").touch()
    return inside


def install(inside: Path, wheel: Path, scratch: Path) -> str:
    """Install the wheel, and let its commands say and make something; return the version that it says."""
    pip = [str(inside), "-m", "pip", "--disable-pip-version-check"]
    _do([*pip, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", str(wheel)], _INSTALL_LIMIT)
    _do([*pip, "check"], _INSTALL_LIMIT)
    shop, program = scratch / "shop", str(inside.parent / "coding-agent")
    shop.mkdir()
    home = {"HOME": str(scratch), "PATH": f"{inside.parent}:/usr/bin:/bin"}
    said = json.loads(_do([program, "version", "--json"], 60, cwd=shop, environment=home))
    for arguments in (["init", "--github"], ["validate"], ["--help"]):
        _do([program, *arguments], 60, cwd=shop, environment=home)
    return str(said["coding_agent"])


def check(inside: Path, scratch: Path) -> str:
    """Run the tests; return their last line."""
    argv = [str(inside), "-m", "pytest", *TESTS, "-q", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider"]
    variables = {**os.environ, "PATH": f"{inside.parent}:{_path()}", "PYTHONPATH": ""}
    variables.pop("VIRTUAL_ENV", None)
    said = _do([*argv, f"--basetemp={scratch / 'pytest'}"], _TEST_LIMIT, cwd=REPOSITORY, environment=variables)
    return said.strip().splitlines()[-1]


def _do(
    argv: Sequence[str], limit: float, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Broken(f"{' '.join(argv)}: no end after {limit:.0f} s") from error
    if done.returncode:
        raise Broken(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def on(version: str, wheel: Path, *, strict: bool, wanted: bool) -> Result:
    """Do all of it on one version; one that is `wanted` has to be here, and with `strict` one that could easily be."""
    python = find(version)
    if python is None:
        missing = packaged(version)
        why = (
            f"not here (apt install python{version}-venv)" if missing else "not here; this system has no package of it"
        )
        return Result(version, None, why, "", 0.0, failed=wanted or (strict and missing))
    began, installed, tests, failed = time.monotonic(), "failed", "not run", True
    with tempfile.TemporaryDirectory(prefix=f"test-python-{version}-") as scratch:
        try:
            inside = environment(python, version)
            installed = f"installed {install(inside, wheel, Path(scratch))}"
            tests = "failed"
            tests, failed = check(inside, Path(scratch)), False
        except Broken as error:
            print(f"Python {version} ({python}): {error}", file=sys.stderr, flush=True)
    return Result(version, python, installed, tests, time.monotonic() - began, failed)


def main() -> int:
    """Do it on all versions, and say in a table what came of it."""
    strict, wanted = os.environ.get("STRICT") == "1", os.environ.get("PYTHONS", "").split()
    if unknown := {*wanted} - {*VERSIONS}:
        print(f"PYTHONS names {', '.join(sorted(unknown))}; the project supports {', '.join(VERSIONS)}")
        return 2
    with tempfile.TemporaryDirectory(prefix="test-wheel-") as folder:
        wheel = build(Path(folder))
        results = []
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        for version in wanted or [each for each in VERSIONS if each != own or "--others" not in sys.argv]:
            print(f"Python {version} ...", file=sys.stderr, flush=True)
            results.append(on(version, wheel, strict=strict, wanted=bool(wanted)))
    rows = [("PYTHON", "", "WHEEL", "TESTS", "SECONDS")]
    for each in results:
        rows.append((each.version, str(each.python or "-"), each.wheel, each.tests, f"{each.seconds:.0f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if "--others" not in sys.argv and not any(each.python for each in results):
        print("no supported Python is here")
        return 1
    return 1 if any(each.failed for each in results) else 0


if __name__ == "__main__":
    sys.exit(main())
