"""Engine, plugins and agent in the tests' own cache; `python -m testbed.toolchain FAILURES` gets all that are missing.

The runner starts that beside linters and unit tests. What could not be had is written into FAILURES, so that no test
tries it once more: a build takes minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import shared_cache

PLUGINS = ("docker", "command", "hcloud")
FAILURES = "TESTBED_TOOLCHAIN_FAILURES"  # names the file with what could not be had, and why


class Unavailable(Exception):
    """Engine, plugin or agent could not be had; the reasons of every step."""


def engine() -> Path:
    """Return the folder of the engine."""
    from coding_agent.toolchain.pulumi import engine

    _known("engine")
    with _cache():
        return engine.find_or_install(print).command.parent


def plugins(names: Sequence[str], engine_folder: Path) -> Path:
    """Return the folder of the engine's plugins, with those that are named."""
    from coding_agent.toolchain.pulumi import plugins

    for name in names:
        _known(name)
    path = os.pathsep.join([str(engine_folder), os.environ["PATH"]])
    with _cache(PULUMI_HOME=str(shared_cache.FOLDER / "pulumi-home"), PATH=path):
        plugins.find_or_install(names, print)
    return shared_cache.FOLDER / "pulumi-home" / "plugins"


def claude() -> Path:
    """Return the Claude Code program: $CODING_AGENT_TEST_CLAUDE, else the one the project itself would use."""
    from coding_agent import claude

    named = os.environ.get("CODING_AGENT_TEST_CLAUDE")
    if named:
        return Path(named)
    _known("claude")
    with _cache():
        return claude.find_or_install(None, claude.PINNED_VERSION, print)


@contextlib.contextmanager
def _cache(**more: str) -> Iterator[None]:
    added = {"XDG_CACHE_HOME": str(shared_cache.FOLDER), **more}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _known(part: str) -> None:
    file = os.environ.get(FAILURES)
    if file and Path(file).is_file() and part in (failures := json.loads(Path(file).read_text())):
        raise Unavailable(failures[part])


def _remove_outdated() -> None:
    """Remove what was built here from other sources than those of this checkout."""
    from coding_agent.toolchain.pulumi import parts

    with _cache(PULUMI_HOME=str(shared_cache.FOLDER / "pulumi-home")):
        for part in (parts.engine_part(), *map(parts.plugin_part, PLUGINS)):
            if parts.built_from(part.folder) not in (None, parts.sources_digest(part)):
                print(f"{part}: built from other sources, goes")
                shutil.rmtree(part.folder)


def main(file: Path) -> int:
    """Get everything; return 1 where something could not be had."""
    from coding_agent.errors import CodingAgentError

    failures: dict[str, str] = {}
    _remove_outdated()
    # The plugins share most packages with the engine: Go's caches stay until all are built.
    go_cache = shared_cache.FOLDER / "go"
    os.environ.setdefault("CODING_AGENT_GO_CACHE", str(go_cache))
    try:
        folder = engine()
    except CodingAgentError as error:
        failures |= dict.fromkeys(("engine", *PLUGINS), str(error))
    else:
        try:
            plugins(PLUGINS, folder)
        except CodingAgentError as error:
            failures |= dict.fromkeys(PLUGINS, str(error))
    try:
        claude()
    except CodingAgentError as error:
        failures["claude"] = str(error)
    file.write_text(json.dumps(failures))
    for part, reason in failures.items():
        print(f"no {part}: {reason}")
    if not failures:
        shutil.rmtree(go_cache, ignore_errors=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
