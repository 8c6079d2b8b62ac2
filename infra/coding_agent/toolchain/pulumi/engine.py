"""Find the Pulumi engine, or get one: from PATH, the cache, a folder of archives, a download, or its source."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from coding_agent.errors import EngineMissing
from coding_agent.paths import cache_dir
from coding_agent.toolchain.installation import Progress, lock, quiet, version_of

VERSION = "3.259.0"  # what is installed where there is none
MINIMUM = (3, 235, 0)  # the oldest one that is accepted on PATH
LANGUAGE_PLUGIN = "pulumi-language-python"
# Asked for its version, the engine would otherwise look for a newer one on the internet.
_OFFLINE = {"PULUMI_SKIP_UPDATE_CHECK": "true"}


@dataclass(frozen=True)
class Engine:
    """A Pulumi command that works here."""

    command: Path
    version: str  # without a leading v
    origin: str  # PATH, cache, mirror, download, source

    @property
    def language_plugin(self) -> Path | None:
        """The program that lets a bare `pulumi up` run a Python project; None where there is none."""
        import shutil

        beside = self.command.resolve().parent / LANGUAGE_PLUGIN
        found = str(beside) if os.access(beside, os.X_OK) else shutil.which(LANGUAGE_PLUGIN)
        return Path(found) if found else None


@dataclass(frozen=True)
class Missed:
    """A way to an engine that did not work, and why."""

    way: str
    reason: str

    def __str__(self) -> str:
        return f"{self.way}: {self.reason}"


def find() -> tuple[Engine | None, tuple[Missed, ...]]:
    """Look on PATH and in the cache; fetch nothing. Return the engine, if any, and why each other place has none."""
    missed: list[Missed] = []
    for origin, command in _candidates():
        found = examine(command, origin)
        if isinstance(found, Engine):
            return found, tuple(missed)
        missed.append(found)
    ways = {each.way for each in missed}
    missed += [Missed(way, "no pulumi there") for way in ("PATH", "cache") if way not in ways]
    return None, tuple(missed)


def find_or_install(progress: Progress = quiet) -> Engine:
    """Return the engine; get one where there is none, saying each step that fails.

    Raises EngineMissing with the reason of every step, Installing when another installer never ends.
    """
    engine, _ = find()
    if engine:
        return engine
    from coding_agent.toolchain.pulumi import ways

    with lock("pulumi", progress):
        engine, missed = find()  # whoever held the lock may have installed it meanwhile
        if engine:
            return engine
        failures = list(missed)
        steps: tuple[Callable[[Path, Progress], str], ...] = (ways.from_mirror, ways.from_download, ways.from_source)
        for step in steps:
            try:
                origin = step(installed_folder(), progress)
            except ways.StepFailed as failure:
                failures.append(Missed(failure.way, failure.reason))
                progress(f"engine from {failures[-1]}")
                continue
            found = examine(installed_folder() / "pulumi", origin)
            if isinstance(found, Engine):
                progress(f"engine: pulumi {found.version} from {origin}")
                return found
            failures.append(found)
    raise EngineMissing(
        "no usable Pulumi engine: " + "".join(f"\n  {each}" for each in failures),
        next_step=f"install Pulumi {'.'.join(map(str, MINIMUM))} or newer (https://www.pulumi.com/docs/install/), or "
        f"set {ways.MIRROR} to a folder that holds {ways.archive_name()} and its SHA256SUMS",
    )


def installed_folder() -> Path:
    """Return where this project's own engine lies once it is installed."""
    return cache_dir() / "pulumi" / f"v{VERSION}-{sys.platform}-{os.uname().machine}"


def examine(command: Path, origin: str) -> Engine | Missed:
    """Return the command as an engine, or why it is none."""
    try:
        said = version_of(command, ["version"], _OFFLINE)
    except OSError as error:  # TimeoutError is one, too
        return Missed(origin, str(error))
    numbers = re.match(r"v?(\d+)\.(\d+)\.(\d+)", said)
    if not numbers:
        return Missed(origin, f"{command} calls its version {said[:80]!r}")
    if tuple(map(int, numbers.groups())) < MINIMUM:
        return Missed(origin, f"{command} is {said}, older than {'.'.join(map(str, MINIMUM))}")
    return Engine(command, said.removeprefix("v"), origin)


def _candidates() -> Iterator[tuple[str, Path]]:
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        command = Path(folder) / "pulumi"
        # A relative or empty entry of PATH means the current folder, which may be anyone's checkout.
        if folder.startswith("/") and command.is_file() and os.access(command, os.X_OK):
            yield "PATH", command
    command = installed_folder() / "pulumi"
    if command.is_file():
        yield "cache", command
