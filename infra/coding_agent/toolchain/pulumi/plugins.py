"""Find a plugin of the engine's, or get it: from PATH, the engine's own folder, a folder of archives, the download."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

from coding_agent.errors import PluginMissing
from coding_agent.paths import engine_home
from coding_agent.toolchain.installation import Progress, lock, sha256, tail
from coding_agent.toolchain.pulumi import engine
from coding_agent.toolchain.pulumi.ways import MIRROR, checksum

LIMIT = 15 * 60.0  # seconds for a download; some plugins have 100 MB
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def version(name: str) -> str:
    """Return the version that goes with the installed library of the provider, such as 5.1.0 for `docker`."""
    # Not through an import of the library, which takes half a second.
    found = importlib.util.find_spec(f"pulumi_{name}")
    if found is None or found.origin is None:
        raise PluginMissing(f"the library pulumi-{name} is not installed", next_step="install coding-agent again")
    said = json.loads((Path(found.origin).parent / "pulumi-plugin.json").read_text(encoding="utf-8"))
    return str(said["version"])


def find(name: str, wanted: str | None = None) -> str | None:
    """Return where the plugin is: on PATH, or in the folder where the engine keeps them; None where it is not.

    The version `wanted` is by default the one that goes with the installed library.
    """
    on_path = shutil.which(f"pulumi-resource-{name}")
    if on_path:
        return on_path
    folder = _folder() / f"resource-{name}-v{wanted or version(name)}"
    # The engine marks an installation that is not finished.
    whole = (folder / f"pulumi-resource-{name}").is_file() and not folder.with_name(f"{folder.name}.partial").exists()
    return str(folder) if whole else None


def find_or_install(name: str, progress: Progress, wanted: str | None = None) -> str:
    """Return where the plugin is; get it where it is not. Raises `PluginMissing` with the reason of every step."""
    wanted = wanted or version(name)
    found = find(name, wanted)
    if found:
        return found
    with lock(f"plugin-{name}", progress):
        found = find(name, wanted)  # whoever held the lock may have installed it meanwhile
        if found:
            return found
        command = engine.find_or_install(progress).command
        mirror, reason = _mirrored(_archive(name, wanted))
        failures = [f"PATH: no pulumi-resource-{name} there", f"cache: not in {_folder()}"]
        if mirror is None:
            failures.append(f"mirror: {reason}")
        for way, arguments in (("mirror", ["--file", str(mirror)] if mirror else None), ("download", [])):
            if arguments is None:
                continue
            progress(f"installing the engine's plugin {name} {wanted} ({way})")
            failure = _install(command, name, wanted, arguments)
            found = find(name, wanted)
            if failure is None and found:
                return found
            failures.append(f"{way}: {failure or 'it is not there afterwards'}")
    raise PluginMissing(
        f"no plugin {name} {wanted} for the engine: " + "".join(f"\n  {each}" for each in failures),
        next_step=f"`pulumi plugin install resource {name} {wanted}`, or set {MIRROR} to a folder that holds "
        f"{_archive(name, wanted)} and its SHA256SUMS",
    )


def _folder() -> Path:
    return engine_home() / "plugins"


def _archive(name: str, wanted: str) -> str:
    system = os.uname()
    machine = system.machine.lower()
    kind = f"{system.sysname.lower()}-{_ARCHITECTURES.get(machine, machine)}"
    return f"pulumi-resource-{name}-v{wanted}-{kind}.tar.gz"


def _mirrored(name: str) -> tuple[Path | None, str]:
    """Return the archive of that name in the folder that $CODING_AGENT_PULUMI_MIRROR names, or why there is none."""
    folder = os.environ.get(MIRROR)
    if not folder:
        return None, f"{MIRROR} is not set"
    archive = Path(folder).expanduser() / name
    if not archive.is_file():
        return None, f"{archive} does not exist"
    try:
        expected = checksum((archive.parent / "SHA256SUMS").read_text(errors="replace"), archive.name)
        found = sha256(archive)
    except OSError as error:
        return None, f"its checksums can't be read: {error}"
    if found != expected:
        return None, f"{archive.name} has the wrong checksum: {found}, expected {expected or 'one in SHA256SUMS'}"
    return archive, ""


def _install(command: Path, name: str, wanted: str, arguments: list[str]) -> str | None:
    """Let the engine install the plugin; return why it did not."""
    argv = [str(command), "plugin", "install", "resource", name, wanted, "--non-interactive", *arguments]
    added = {"PULUMI_SKIP_UPDATE_CHECK": "true"}
    try:
        done = subprocess.run(
            argv, env={**os.environ, **added}, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not finished within {LIMIT / 60:.0f} minutes"
    return None if done.returncode == 0 else tail((done.stderr or done.stdout).decode(errors="replace"), 2)
