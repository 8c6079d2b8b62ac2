"""The last way to an engine: a build out of the project's own Go module."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import shared_cache
from coding_agent import backend
from coding_agent.errors import EngineMissing
from coding_agent.toolchain.pulumi import engine, source
from waiting import until

PROGRAM = """
import pulumi

pulumi.export("greeting", pulumi.Config().get("name"))
"""
ENDLESS = """
import time

print("it runs", flush=True)
time.sleep(600)
"""


def _only(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Leave no way but Go: PATH is these folders, the mirror is unset, the download's host refuses."""
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))
    monkeypatch.delenv("CODING_AGENT_PULUMI_MIRROR", raising=False)
    monkeypatch.setenv("CODING_AGENT_PULUMI_DOWNLOAD", "http://127.0.0.1:9")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_go_builds_an_engine_that_runs_a_python_project(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes_with: Callable[[str], list[int]]
) -> None:
    """Without an archive or a download host, Go builds a pinned engine, and a bare `pulumi up` works with it."""
    go = Path(subprocess.run(["which", "go"], capture_output=True, text=True, check=True).stdout.strip())

    monkeypatch.setenv("GOMODCACHE", str(shared_cache.FOLDER / "go-mod"))
    _only(monkeypatch, go.parent, Path("/usr/bin"), Path("/bin"))
    said: list[str] = []

    found = engine.find_or_install(said.append)

    assert (found.version, found.origin) == (engine.VERSION, "source")
    assert any(line.startswith("engine from mirror: CODING_AGENT_PULUMI_MIRROR is not set") for line in said)
    assert any(line.startswith("engine from download: http://127.0.0.1:9") for line in said)
    compiled = [line for line in said if line.startswith("building pulumi: compiled ")]
    assert len(compiled) > 20, said  # more than a line every ten seconds
    again = engine.find_or_install(said.append)
    assert (again.command, again.origin) == (found.command, "cache")

    project = tmp_path / "project"
    project.mkdir()
    (project / "Pulumi.yaml").write_text("name: built\nruntime: python\n")
    (project / "__main__.py").write_text(PROGRAM)
    added = {**os.environ, **backend.environment(project)}
    for argv in (
        ["stack", "init", "one"],
        ["config", "set", "name", "a world"],
        ["up", "--yes", "--skip-preview"],
    ):
        done = subprocess.run(
            [str(found.command), *argv], cwd=project, env=added, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
    shown = subprocess.run(
        [str(found.command), "stack", "output", "greeting"], cwd=project, env=added, capture_output=True, timeout=60
    )
    assert shown.stdout == b"a world\n"
    assert str(found.language_plugin) == str(found.command.parent / "pulumi-language-python")

    (project / "__main__.py").write_text(ENDLESS)
    up = subprocess.Popen(
        [str(found.command), "up", "--yes", "--skip-preview"], cwd=project, env=added, stdout=subprocess.PIPE
    )
    assert up.stdout is not None
    with up, up.stdout:
        assert any(b"it runs" in line for line in up.stdout)
        up.kill()
    # By itself the language host looks for its engine every five minutes.
    until(lambda: not processes_with(str(found.language_plugin)))


def test_pinned_versions_agree() -> None:
    """The Go module builds the version that the project installs, with a checksum for it."""
    module = (source.MODULE / "go.mod").read_text()
    sums = (source.MODULE / "go.sum").read_text()
    for name in ("pkg", "sdk"):
        assert f"github.com/pulumi/pulumi/{name}/v3 v{engine.VERSION}" in module
        assert f"github.com/pulumi/pulumi/{name}/v3 v{engine.VERSION} h1:" in sums


def test_a_go_that_fails_is_named_with_its_reason(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the build breaks off, the error names the step, the exit code and Go's own last words."""
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text("#!/bin/sh\necho 'go: module lookup disabled by GOPROXY=off' >&2\nexit 1\n")
    go.chmod(0o755)
    _only(monkeypatch, go.parent, Path("/usr/bin"), Path("/bin"))

    with pytest.raises(EngineMissing) as failed:
        engine.find_or_install()

    assert "source: `go list` ended with exit code 1: go: module lookup disabled by GOPROXY=off" in str(failed.value)
    assert not engine.installed_folder().exists()
    assert list(engine.installed_folder().parent.glob(".*")) == []


def test_every_way_is_named_with_its_reason(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no way left, one error lists PATH, cache, mirror, download and source, each with why, and a next step."""
    _only(monkeypatch, tmp_path)

    with pytest.raises(EngineMissing) as failed:
        engine.find_or_install()

    text = str(failed.value)
    for way in (
        "PATH: no pulumi there",
        "cache: no pulumi there",
        "mirror: CODING_AGENT_PULUMI_MIRROR is not set",
        "download: http://127.0.0.1:9: ",
        "source: Go is not installed",
    ):
        assert f"\n  {way}" in text
    assert "next: install Pulumi 3.235.0 or newer" in text
