"""Containers on this machine, as Docker's own command line shows them: an outside look, nothing of the project."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import shared_cache
from testbed.needs import MMDEBSTRAP, fetched, requires

LIMIT = 120.0  # seconds for one command
BASE = "coding-agent-test/base:1"  # Debian with bash, git and perl; no Claude Code
_PACKAGES = "git,procps,perl"


@dataclass(frozen=True)
class Docker:
    """One container engine, through its command line."""

    environment: Mapping[str, str] = field(default_factory=dict)  # DOCKER_HOST, where it is not the usual one
    program: str = "docker"

    def __call__(self, *arguments: str, succeeds: bool = True, stdin: bytes | None = None) -> str:
        """Run a command; return what it printed."""
        done = subprocess.run(
            [self.program, *arguments],
            env={**os.environ, **self.environment},
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
        shown = (done.stdout + done.stderr).decode("utf-8", "replace")
        assert (done.returncode == 0) == succeeds, f"{self.program} {shlex.join(arguments)}: {shown}"
        return done.stdout.decode("utf-8", "replace").strip() if succeeds else shown

    def inspect(self, name: str) -> dict[str, Any]:
        """Return what the engine says of a container, an image, a volume or a network."""
        said: dict[str, Any] = json.loads(self("inspect", name))[0]
        return said

    def holdings(self) -> dict[str, list[str]]:
        """Return everything a run could leave behind."""
        return {
            "containers": self("ps", "-aq", "--no-trunc").split(),
            "volumes": self("volume", "ls", "-q").split(),
            "networks": self("network", "ls", "-q", "--no-trunc").split(),
            "images": sorted(set(self("images", "-aq", "--no-trunc").split())),
        }

    def of_project(self, folder: Path, kind: str = "containers") -> list[str]:
        """Return the ids of the containers made for a project's runs, or the names of their volumes or networks."""
        project = yaml.safe_load((folder / "Pulumi.yaml").read_text())["name"]
        label = f"label=coding-agent.project={project}"
        match kind:
            case "containers":
                return self("ps", "-aq", "--no-trunc", "--filter", label).split()
            case "volumes":
                return self("volume", "ls", "-q", "--filter", label).split()
        return self("network", "ls", "-q", "--filter", label).split()

    def left(self, folder: Path) -> list[str]:
        """Return everything that is there for a project's runs."""
        return [each for kind in ("containers", "volumes", "networks") for each in self.of_project(folder, kind)]

    def remove_all_of(self, folder: Path) -> None:
        """Remove everything that is there for a project's runs."""
        for kind, command in (("containers", "rm -f -v"), ("volumes", "volume rm"), ("networks", "network rm")):
            if left := self.of_project(folder, kind):
                self(*command.split(), *left)

    def build(self, *lines: str, base: str = BASE, tag: str | None = None) -> str:
        """Build an image of a Dockerfile's lines; return its name."""
        name = tag or f"coding-agent-test/{secrets.token_hex(6)}"
        text = "\n".join([f"FROM {base}", *lines]).encode()
        self("build", "-q", "--network", "none", "-t", name, "-", stdin=text)
        return name

    @contextlib.contextmanager
    def built(self, *lines: str) -> Iterator[str]:
        """Build an image of a test's own; it is removed with the block."""
        image = self.build(*lines)
        try:
            yield image
        finally:
            self.remove([image])

    @contextlib.contextmanager
    def running(self, *options: str, image: str = BASE) -> Iterator[str]:
        """Run a container of a test's own, that waits; it is removed with the block."""
        name = f"test-{secrets.token_hex(6)}"
        self("run", "-d", "--init", "--network", "host", "--name", name, *options, image, "sleep", "infinity")
        try:
            yield name
        finally:
            self("rm", "-f", "-v", name)

    def remove(self, names: Sequence[str]) -> None:
        """Remove images."""
        for name in names:
            with contextlib.suppress(AssertionError):
                self("rmi", "-f", name)


def base_image(docker: Docker) -> str:
    """Return the image that tests run in."""
    return debian_image(docker, BASE, _PACKAGES)


def debian_image(docker: Docker, name: str, packages: str, *commands: str, suite: str = "bookworm") -> str:
    """Return an image of Debian with these packages; made once a machine, imported where an engine has it not yet.

    `commands` are run in its files, as `mmdebstrap --customize-hook` does.
    """
    shared_cache.FOLDER.mkdir(parents=True, exist_ok=True)
    kind = name.partition("/")[2].partition(":")[0]
    with (shared_cache.FOLDER / f".{kind}-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if docker("images", "-q", name):
            return name
        archive = _root_files(f"{suite}-{name.partition('/')[2].replace(':', '-')}", packages, commands, suite)
        docker("import", "--change", "CMD bash", str(archive), name)
    return name


def _root_files(name: str, packages: str, commands: Sequence[str], suite: str) -> Path:
    archive = shared_cache.FOLDER / f"debian-{name}.tar"
    if archive.is_file():
        return archive
    for outdated in shared_cache.FOLDER.glob(f"debian-{name.rpartition('-')[0]}-*.tar"):
        outdated.unlink()
    part = archive.with_suffix(".part.tar")
    requires(MMDEBSTRAP)
    # Without documentation; dpkg leaves out what is asked here.
    left_out = [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "man", "locale")]
    fetched(
        [
            *("mmdebstrap", "--variant=minbase", f"--include={packages}"),
            *("--aptopt=Acquire::Languages none", "--aptopt=APT::Install-Recommends false"),
            *(*left_out, *(f"--customize-hook={each}" for each in commands), suite, str(part)),
        ],
        limit=900,
    )
    part.replace(archive)
    return archive
