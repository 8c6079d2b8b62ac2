"""Which Claude Code program a run gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coding_agent import claude
from coding_agent.errors import ClaudeMissing, InvalidInput
from coding_agent.paths import cache_dir
from waiting import until

# Stands in for npm: packs a small program that calls itself by the version asked for, and counts what it is asked.
NPM = """#!{python}
import base64, hashlib, io, json, os, sys, tarfile, time
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "asked"), "a") as log:
    log.write(" ".join(sys.argv[1:]) + "|" + os.getcwd() + "\\n")
mode = open(os.path.join(here, "mode")).read()
name, version = sys.argv[2].rsplit("@", 1)
if mode == "missing":
    sys.exit("npm warn noise\\nnpm error code ETARGET\\nnpm error No matching version found for " + sys.argv[2])
if mode == "hang":
    time.sleep(600)
into = sys.argv[sys.argv.index("--pack-destination") + 1]
packed = io.BytesIO()
with tarfile.open(fileobj=packed, mode="w:gz") as tar:
    says = "0.0.1" if mode == "other" else version
    for entry, text in {{"claude": "#!/bin/sh\\necho '" + says + " (Claude Code)'\\n", "LICENSE.md": "x"}}.items():
        member = tarfile.TarInfo("package/" + entry)
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text.encode()))
data = packed.getvalue()
digest = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
with open(os.path.join(into, "claude.tgz"), "wb") as file:
    file.write(data[:-9] if mode == "truncated" else data)
if mode == "noise":
    print("not json")
else:
    print(json.dumps([{{"filename": "claude.tgz", "integrity": digest}}]))
"""


def program(path: Path, says: str, code: int = 0) -> Path:
    """Write a program that prints `says`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def tools(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder on PATH, with the stand-in for npm."""
    folder = home / "tools"
    folder.mkdir()
    npm = folder / "npm"
    npm.write_text(NPM.format(python=sys.executable))
    npm.chmod(0o755)
    (folder / "mode").write_text("good")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def asked(tools: Path) -> list[str]:
    """Return what npm was asked for."""
    return (tools / "asked").read_text().splitlines() if (tools / "asked").exists() else []


def cached() -> list[str]:
    """Return what lies in the cache of programs."""
    folder = cache_dir() / "claude"
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


def test_claude_path_is_taken(home: Path, tools: Path) -> None:
    """The executor's claude_path is used, with ~ for the home folder, before PATH."""
    own = program(home / "own" / "claude", "2.0.1 (Claude Code)")
    program(tools / "claude", "2.1.0 (Claude Code)")
    assert claude.find_or_install("~/own/claude") == own
    assert claude.find_or_install(str(own), "2.0.1") == own
    assert asked(tools) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nowhere/claude", "No such file"),
        ("{home}/plain", "Permission denied"),
        ("relative/claude", "neither an absolute path nor a program on PATH"),
        ("no-such-claude", "neither an absolute path nor a program on PATH"),
        ("{home}/broken", "does not run (exit code 4)"),
        ("{home}/other", "not Claude Code"),
    ],
)
def test_claude_path_that_does_not_work_is_said(home: Path, tools: Path, path: str, reason: str) -> None:
    """A claude_path that isn't there, doesn't run or is something else is an error, not passed over."""
    program(home / "broken", "", 4)
    program(home / "other", "hello")
    program(home / "plain", "hello").chmod(0o644)
    with pytest.raises(ClaudeMissing) as failed:
        claude.find_or_install(path.format(home=home))
    assert reason in failed.value.message
    assert failed.value.next_step is not None
    assert "claude_path" in failed.value.next_step


def test_path_is_looked_at_before_npm(tools: Path) -> None:
    """Without a demanded version the program on PATH is used, and nothing is fetched."""
    own = program(tools / "claude", "2.0.5 (Claude Code)")
    assert claude.find_or_install() == own
    assert claude.find_or_install(version="2.0.5") == own
    assert asked(tools) == []


def test_demanded_version_beats_what_is_there(home: Path, tools: Path) -> None:
    """A task that names a version gets exactly it, whatever claude_path and PATH hold, and is told so."""
    own = program(tools / "claude", "2.0.5 (Claude Code)")
    said: list[str] = []
    got = claude.find_or_install(str(own), "9.9.9", said.append)
    assert got == cache_dir() / "claude" / f"9.9.9-{claude.platform_name()}" / "claude"
    assert claude.version_number(got) == "9.9.9"
    assert said[0] == f"{own} is Claude Code 2.0.5; the task demands 9.9.9"
    assert claude.find_or_install(None, "9.9.9") == got
    assert len(asked(tools)) == 1


@pytest.mark.parametrize("version", ["latest", "^2.1.0", "2.1", "", "2.1.330 --registry=x", "../2.1.330"])
def test_versions_that_are_not_exact_are_refused(tools: Path, version: str) -> None:
    """A range, a tag or something else in place of an exact version is bad input: runs are reproducible."""
    with pytest.raises(InvalidInput, match="is not a version of Claude Code"):
        claude.find_or_install(version=version)
    assert asked(tools) == []


def test_npm_is_asked_from_a_folder_of_its_own(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """npm runs where no .npmrc of a checkout can tell it another registry, and nothing of it stays behind."""
    monkeypatch.chdir(tmp_path)
    claude.find_or_install(version="9.9.9")
    (line,) = asked(tools)
    arguments, _, folder = line.partition("|")
    assert arguments.startswith(f"pack @anthropic-ai/claude-code-{claude.platform_name()}@9.9.9 --json ")
    assert Path(folder).parent == cache_dir() / "claude"
    assert cached() == [f"9.9.9-{claude.platform_name()}"]


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("missing", "npm error No matching version found for @anthropic-ai/claude-code-"),
        ("truncated", "has the wrong checksum"),
        ("noise", "npm's answer for Claude Code 9.9.9 can't be used"),
        ("other", "calls itself 0.0.1"),
    ],
)
def test_npm_that_fails_is_said(tools: Path, mode: str, reason: str) -> None:
    """What npm can't fetch, or what arrives damaged or as something else, is said and not kept."""
    (tools / "mode").write_text(mode)
    with pytest.raises(ClaudeMissing) as failed:
        claude.find_or_install(version="9.9.9")
    assert reason in failed.value.message
    assert "noise\n" not in failed.value.message
    assert cached() == []


def test_pinned_version_must_be_the_known_archive(tools: Path) -> None:
    """The pinned version is refused when its archive isn't the one whose checksum the project holds."""
    with pytest.raises(ClaudeMissing, match="wrong checksum") as failed:
        claude.find_or_install()
    assert "registry" in str(failed.value)
    assert cached() == []


def test_no_npm_is_said(tools: Path) -> None:
    """Without a program and without npm the error says what to install or to name."""
    (tools / "npm").unlink()
    with pytest.raises(ClaudeMissing, match="there is no npm") as failed:
        claude.find_or_install()
    assert failed.value.next_step is not None
    assert "claude_path" in failed.value.next_step


def test_installers_at_once_fetch_once(tools: Path) -> None:
    """Of five processes that need the same version at once one fetches it, and all get the same."""
    find = "from coding_agent import claude; print(claude.find_or_install(version='9.9.9'))"
    running = [subprocess.Popen([sys.executable, "-c", find], stdout=subprocess.PIPE) for _ in range(5)]
    assert len({process.communicate(timeout=60)[0] for process in running}) == 1
    assert [process.returncode for process in running] == [0] * 5
    assert len(asked(tools)) == 1


def test_killed_installer_leaves_nothing_in_the_way(tools: Path) -> None:
    """After kill -9 during npm the next call installs at once, and removes what was left."""
    (tools / "mode").write_text("hang")
    find = "from coding_agent import claude; claude.find_or_install(version='9.9.9')"
    first = subprocess.Popen([sys.executable, "-c", find], start_new_session=True)
    until(lambda: asked(tools))
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(timeout=10)
    (tools / "mode").write_text("good")
    claude.find_or_install(version="9.9.9")
    assert cached() == [f"9.9.9-{claude.platform_name()}"]


def test_known_program_is_not_started_again(tools: Path) -> None:
    """An installed program's version is remembered until the file changes."""
    own = program(tools / "claude", "2.0.5 (Claude Code)")
    claude.find_or_install()
    assert claude.find_or_install() == own
    assert str(own) in json.loads((cache_dir() / "versions.json").read_text())
    program(own, "2.0.60 (Claude Code)")
    assert claude.version_number(own) == "2.0.60"
