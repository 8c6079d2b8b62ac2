"""The parts of the Pulumi toolchain: the engine and its plugins, each with its archive, its Go packages, its place."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coding_agent.errors import PluginMissing
from coding_agent.paths import cache_dir, engine_home

VERSION = "3.259.0"  # of the engine that is installed where there is none
REVISION = 1  # of what `build/` makes of the same versions; a plugin built at an older revision is built anew
MODULE = Path(__file__).parent / "build"
PLUGINS = ("command", "docker", "hcloud")  # those that `build/` has a program for
_SDK = "github.com/pulumi/pulumi/sdk/v3"
_NOTE = "coding-agent.json"  # lies beside a program that was built here
# Pulumi names the architectures of its engine and of its plugins differently; those of plugins are Go's names.
_OF_THE_ENGINE = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
OF_PLUGINS = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True)
class Part:
    """The engine, or one of its plugins, at one version."""

    name: str  # pulumi, or the name of the plugin
    version: str  # without a leading v
    archive: str  # the file name of the official archive for this machine
    folder: Path  # where the part is installed, whole
    program: str  # the main program's file name in `folder`
    packages: tuple[str, ...]  # the Go packages that the part is built from; none: it can't be built here
    flags: str = "-s -w"  # for Go's linker

    def __str__(self) -> str:
        return f"{'' if self.name == 'pulumi' else 'plugin '}{self.name} {self.version}"


@dataclass(frozen=True)
class Missed:
    """A way to a part that did not work, and why."""

    way: str
    reason: str

    def __str__(self) -> str:
        return f"{self.way}: {self.reason}"


class WayFailed(Exception):
    """One way to a part did not work; the message is the reason. The next way is tried."""


Way = Callable[[Part, Callable[[str], None]], None]


def engine_part() -> Part:
    """Return the engine as this project installs it: in the cache."""
    system = os.uname()
    kind = f"{system.sysname.lower()}-{_OF_THE_ENGINE.get(system.machine.lower(), system.machine.lower())}"
    return Part(
        "pulumi",
        VERSION,
        archive=f"pulumi-v{VERSION}-{kind}.tar.gz",
        folder=cache_dir() / "pulumi" / f"v{VERSION}-{sys.platform}-{system.machine}",
        program="pulumi",
        packages=("github.com/pulumi/pulumi/pkg/v3/cmd/pulumi", "./pulumi-language-python"),
        flags=f"-s -w -X {_SDK}/go/common/version.Version=v{VERSION}",
    )


def plugin_part(name: str, version: str | None = None) -> Part:
    """Return a plugin as it lies in the folder where the engine keeps plugins.

    The version is by default the one that goes with the installed library. Raises `PluginMissing` where that is not
    installed.
    """
    wanted = version or _of_library(name)
    system = os.uname()
    kind = f"{system.sysname.lower()}-{OF_PLUGINS.get(system.machine.lower(), system.machine.lower())}"
    program = f"pulumi-resource-{name}"
    buildable = name in PLUGINS and (version is None or version == _of_library(name))
    return Part(
        name,
        wanted,
        archive=f"{program}-v{wanted}-{kind}.tar.gz",
        folder=engine_home() / "plugins" / f"resource-{name}-v{wanted}",
        program=program,
        packages=(f"./{program}",) if buildable else (),
    )


def _of_library(name: str) -> str:
    # Not through an import of the library, which takes half a second.
    library = importlib.util.find_spec(f"pulumi_{name}")
    if library is None or library.origin is None:
        raise PluginMissing(f"the library pulumi-{name} is not installed", next_step="install coding-agent again")
    metadata = json.loads((Path(library.origin).parent / "pulumi-plugin.json").read_text(encoding="utf-8"))
    return str(metadata["version"])


def note_build(part: Part, folder: Path) -> None:
    """Note in the folder that the part was built there, and from what."""
    note = {"built": "here", "revision": REVISION, "sources": sources_digest(part)}
    (folder / _NOTE).write_text(json.dumps(note), encoding="utf-8")


def kind_of(origin: str, folder: Path) -> str:
    """Return `built here` of what this project built into the folder, `official` of what came in an archive.

    Of a program on PATH it is `not known`.
    """
    if origin == "PATH":
        return "not known"
    return "built here" if (folder / _NOTE).is_file() else "official"


def is_outdated(folder: Path) -> bool:
    """Return whether what lies in the folder was built here at an older revision; a newer one serves as well."""
    try:
        return int(json.loads((folder / _NOTE).read_bytes())["revision"]) < REVISION
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return True


def built_from(folder: Path) -> str | None:
    """Return the digest of the sources that the program in the folder was built from; None for one not built here."""
    try:
        return str(json.loads((folder / _NOTE).read_bytes())["sources"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sources_digest(part: Part) -> str:
    """Return the SHA-256 of what the part is built from: its own programs, what plugins share, the pinned versions."""
    folders = [MODULE / package for package in (*part.packages, "./internal") if package.startswith("./")]
    files = [MODULE / "go.mod", MODULE / "go.sum", *(path for folder in folders for path in folder.rglob("*"))]
    digest = hashlib.sha256()
    for file in sorted(path for path in files if path.is_file() and not path.name.endswith("_test.go")):
        digest.update(f"{file.relative_to(MODULE)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
