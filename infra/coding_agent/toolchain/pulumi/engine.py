"""Find the Pulumi engine, or get one: from PATH, the cache, a folder of archives, a download, or its source."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coding_agent.errors import EngineMissing
from coding_agent.paths import cache_dir
from coding_agent.toolchain.installation import Progress, lock, on_path, quiet, version_of
from coding_agent.toolchain.pulumi.parts import Missed, Part, engine_part, kind_of

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
    def kind(self) -> str:
        """Whether it is official or built here, as far as that is known."""
        return kind_of(self.origin, self.command.resolve().parent)

    @property
    def language_plugin(self) -> Path | None:
        """The program that lets a bare `pulumi up` run a Python project; None where there is none."""
        import shutil

        beside = self.command.resolve().parent / LANGUAGE_PLUGIN
        found = str(beside) if os.access(beside, os.X_OK) else shutil.which(LANGUAGE_PLUGIN)
        return Path(found) if found else None


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
        if engine.origin == "cache" and any(cache_dir().glob(".go-build.*")):
            from coding_agent.toolchain.pulumi.source import remove_left

            remove_left(progress)
        return engine
    from coding_agent.toolchain.pulumi import ways

    part = engine_part()
    with lock("pulumi", progress):
        engine, missed = find()  # the process that held the lock may have installed it meanwhile
        if engine:
            return engine

        def check(_part: Part) -> str | None:
            examined = examine(command, "cache")
            return examined.reason if isinstance(examined, Missed) else None

        command = part.folder / part.program
        attempt = ways.install([part], progress, ways.engine_download, check)[part]
        result = examine(command, attempt.way) if attempt.way else None
        if isinstance(result, Engine):
            progress(f"engine: pulumi {result.version} from {result.origin}")
            return result
    raise EngineMissing(
        "no usable Pulumi engine: " + "".join(f"\n  {reason}" for reason in (*missed, *attempt.missed)),
        next_step=f"install Pulumi {'.'.join(map(str, MINIMUM))} or newer (https://www.pulumi.com/docs/install/), or "
        f"set {ways.MIRROR} to a folder that holds {part.archive} and its SHA256SUMS",
    )


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
    for command in on_path("pulumi"):
        yield "PATH", command
    part = engine_part()
    command = part.folder / part.program
    if command.is_file():
        yield "cache", command
