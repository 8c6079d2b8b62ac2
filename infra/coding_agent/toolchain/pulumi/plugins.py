"""Find the engine's plugins, or get them: from PATH, the engine's own folder, a mirror, a download, or their source."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from coding_agent.errors import PluginMissing
from coding_agent.toolchain.installation import Progress, lock, on_path
from coding_agent.toolchain.pulumi import engine
from coding_agent.toolchain.pulumi.parts import PLUGINS, Part, is_outdated, kind_of, plugin_part

__all__ = ["PLUGINS", "Plugin", "find", "find_or_install", "version"]


@dataclass(frozen=True)
class Plugin:
    """A plugin that the engine would use."""

    place: Path  # the program on PATH, or the folder where the engine keeps the plugin
    version: str  # the one asked for; what a program on PATH is, it alone knows
    origin: str  # PATH, or cache: the engine's own folder

    @property
    def kind(self) -> str:
        """Whether it is official or built here, as far as that is known."""
        return kind_of(self.origin, self.place)


def version(name: str) -> str:
    """Return the version that goes with the installed library of the provider, such as 5.1.0 for `docker`."""
    return plugin_part(name).version


def find(name: str, wanted: str | None = None) -> Plugin | None:
    """Return the plugin, on PATH or in the folder where the engine keeps them; None where there is none.

    The version `wanted` is by default the one that goes with the installed library. A plugin that an older release of
    this project built does not count.
    """
    return _find(plugin_part(name, wanted))


def find_or_install(names: Sequence[str], progress: Progress, wanted: str | None = None) -> dict[str, Plugin]:
    """Return the plugins by name; get those that are not there.

    Raises `PluginMissing` with the reason of every way for every one that can't be had.
    """
    parts = [plugin_part(name, wanted) for name in names]
    lacking = [part for part in parts if _find(part) is None]
    if lacking:
        with ExitStack() as held:
            for part in sorted(lacking, key=lambda part: part.name):  # one order: no two processes wait for one another
                held.enter_context(lock(f"plugin-{part.name}", progress))
            # The process that held a lock may have installed the plugin meanwhile.
            lacking = [part for part in lacking if _find(part) is None]
            for part in lacking:
                _clear(part)
            _install(lacking, progress)
    plugins = {part.name: _find(part) for part in parts}
    return {name: plugin for name, plugin in plugins.items() if plugin}


def _install(parts: Sequence[Part], progress: Progress) -> None:
    from coding_agent.toolchain.pulumi import ways

    def check(part: Part) -> str | None:
        return None if _find(part) else "it is not there afterwards"

    download = ways.plugin_download(lambda: engine.find_or_install(progress).command)
    attempts = ways.install(parts, progress, download, check)
    failed = {part: attempt for part, attempt in attempts.items() if attempt.way is None}
    if not failed:
        return
    texts = []
    for part, attempt in failed.items():
        places = (f"PATH: no {part.program} there", f"cache: not in {part.folder.parent}")
        reasons = "".join(f"\n  {reason}" for reason in (*places, *attempt.missed))
        texts.append(f"no plugin {part.name} {part.version} for the engine: {reasons}")
    first = next(iter(failed))
    raise PluginMissing(
        "\n".join(texts),
        next_step=f"`pulumi plugin install resource {first.name} {first.version}`, or set {ways.MIRROR} to a folder "
        f"that holds {' and '.join(part.archive for part in failed)} and its SHA256SUMS",
    )


def _clear(part: Part) -> None:
    """Remove what an installation by the engine left that was broken off."""
    if _unfinished(part).exists():
        shutil.rmtree(part.folder, ignore_errors=True)
        _unfinished(part).unlink(missing_ok=True)


def _unfinished(part: Part) -> Path:
    return part.folder.with_name(f"{part.folder.name}.partial")  # the engine's mark


def _find(part: Part) -> Plugin | None:
    for command in on_path(part.program):
        return Plugin(command, part.version, "PATH")
    whole = (part.folder / part.program).is_file() and not _unfinished(part).exists()
    return Plugin(part.folder, part.version, "cache") if whole and not is_outdated(part.folder) else None
