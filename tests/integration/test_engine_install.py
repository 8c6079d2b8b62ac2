"""Getting an engine from a folder of archives and from a download host: whole or not at all, once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coding_agent import backend
from coding_agent.errors import EngineMissing
from coding_agent.toolchain import installation
from coding_agent.toolchain.pulumi import engine
from coding_agent.toolchain.pulumi.ways import archive_name
from fakes.download_host import DownloadHost

SUMS = f"pulumi-{engine.VERSION}-checksums.txt"
FIND = "import sys, json; from coding_agent.toolchain.pulumi import engine; e = engine.find_or_install(lambda s: print(s, file=sys.stderr)); print(json.dumps([str(e.command), e.origin]))"  # noqa: E501


def archive(version: str = f"v{engine.VERSION}", padding: int = 2_000_000) -> bytes:
    """Return an archive laid out as the official one, with a small program in place of the engine."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in {
            "pulumi/pulumi": f"#!/bin/sh\necho {version}\n".encode(),
            "pulumi/pulumi-language-python": b"#!/bin/sh\n",
            "pulumi/padding": os.urandom(padding),
        }.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def sums(content: bytes) -> bytes:
    """Return a checksum file that names the archive among others."""
    return f"{'0' * 64}  pulumi-other.tar.gz\n{hashlib.sha256(content).hexdigest()}  {archive_name()}\n".encode()


@pytest.fixture
def bare(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home on a machine with neither pulumi, go nor a mirror."""
    tools = home / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.delenv("CODING_AGENT_PULUMI_MIRROR", raising=False)
    return home


@pytest.fixture
def host(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DownloadHost]:
    """Run a host with a good archive and its checksums, and name it as the download's address."""
    content = archive()
    with DownloadHost({archive_name(): content, SUMS: sums(content)}) as running:
        monkeypatch.setenv("CODING_AGENT_PULUMI_DOWNLOAD", running.url)
        yield running


def leftovers() -> list[str]:
    """Return what an installation may not leave in the cache: temporary folders and archives."""
    cache = engine.installed_folder().parents[1]
    return [str(p) for p in cache.rglob("*") if p.name.startswith(".") or p.suffix in (".gz", ".part")]


def test_an_engine_that_is_found_reaches_its_backend(
    home: Path, engine_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine on PATH is found, runs, and opens the default backend."""
    monkeypatch.setenv("PATH", f"{engine_folder}:{os.environ['PATH']}")
    found = engine.find_or_install()
    added = {**os.environ, **backend.environment(engine=found)}
    done = subprocess.run(["pulumi", "whoami", "-v"], env=added, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"Backend URL: file://{home}/.local/state/coding-agent/backend" in done.stdout


def test_mirror_is_unpacked_once(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive in the mirror whose checksum fits becomes the engine; the second call finds it in the cache."""
    content = archive()
    mirror = tmp_path / "a mirror"
    mirror.mkdir()
    (mirror / archive_name()).write_bytes(content)
    (mirror / "SHA256SUMS").write_bytes(sums(content))
    monkeypatch.setenv("CODING_AGENT_PULUMI_MIRROR", str(mirror))

    first = engine.find_or_install()
    for file in mirror.iterdir():
        file.unlink()
    second = engine.find_or_install()

    assert (first.origin, second.origin) == ("mirror", "cache")
    assert first.command == second.command
    assert first.language_plugin == first.command.with_name("pulumi-language-python")
    assert leftovers() == []


@pytest.mark.parametrize(
    ("archive_there", "sums_there", "reason"),
    [
        (False, True, f"{archive_name()} does not exist"),
        (True, False, "its checksums can't be read"),
        (True, True, f"{archive_name()} has the wrong checksum: "),
    ],
)
def test_mirror_that_cannot_be_used_is_said(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive_there: bool, sums_there: bool, reason: str
) -> None:
    """A mirror without the archive, without checksums or with a wrong one is named with its reason, and not used."""
    if archive_there:
        (tmp_path / archive_name()).write_bytes(archive())
    if sums_there:
        (tmp_path / "SHA256SUMS").write_bytes(sums(b"something else"))
    monkeypatch.setenv("CODING_AGENT_PULUMI_MIRROR", str(tmp_path))
    monkeypatch.setenv("CODING_AGENT_PULUMI_DOWNLOAD", "http://127.0.0.1:9")

    with pytest.raises(EngineMissing) as failed:
        engine.find_or_install()

    line = next(line for line in str(failed.value).splitlines() if line.startswith("  mirror: "))
    assert reason in line
    assert not engine.installed_folder().exists()
    assert leftovers() == []


def test_download_with_a_good_checksum(host: DownloadHost) -> None:
    """The official archive is downloaded with its progress in MB, checked and installed; nothing else is fetched."""
    said: list[str] = []
    found = engine.find_or_install(said.append)
    assert found.origin == "download"
    assert any(line.startswith(f"downloading pulumi {engine.VERSION}: ") and line.endswith(" MB") for line in said)
    assert engine.find_or_install().origin == "cache"
    assert [name for name, _ in host.requests] == [SUMS, archive_name()]
    assert leftovers() == []


def test_download_with_a_bad_checksum(host: DownloadHost) -> None:
    """An archive that isn't what its checksum says is refused by name and not kept."""
    host.files[archive_name()] = archive()
    with pytest.raises(EngineMissing, match=r"download: pulumi-v.* has the wrong checksum"):
        engine.find_or_install()
    assert not engine.installed_folder().exists()
    assert leftovers() == []


def test_download_that_its_checksums_do_not_name(host: DownloadHost) -> None:
    """Checksums that leave out the archive are no proof of it: it is refused."""
    host.files[SUMS] = b""
    with pytest.raises(EngineMissing, match=r"download: its checksums do not name pulumi-v"):
        engine.find_or_install()


def test_download_host_that_is_down(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that refuses the connection is a named step with its reason."""
    monkeypatch.setenv("CODING_AGENT_PULUMI_DOWNLOAD", "http://127.0.0.1:9/releases")
    with pytest.raises(EngineMissing, match=r"download: http://127.0.0.1:9/releases: .*refused"):
        engine.find_or_install()


def test_download_of_a_version_that_is_not_there(host: DownloadHost) -> None:
    """A host without the archive is a named step with the host's answer."""
    del host.files[archive_name()]
    with pytest.raises(EngineMissing, match=r"download: .*Not Found"):
        engine.find_or_install()


def test_download_that_breaks_off_goes_on_where_it_stopped(host: DownloadHost) -> None:
    """A truncated download is said; the next call fetches only the rest, and the whole is checked."""
    size = len(host.files[archive_name()])
    host.stop_after[archive_name()] = 700_000
    with pytest.raises(EngineMissing, match=rf"broke off after 700000 of {size} bytes"):
        engine.find_or_install()
    assert not engine.installed_folder().exists()

    host.stop_after.clear()
    assert engine.find_or_install().origin == "download"
    assert host.requests[-1] == (archive_name(), "bytes=700000-")
    assert host.sent[archive_name()] == size
    assert leftovers() == []


def test_rest_of_another_archive_is_thrown_away(host: DownloadHost) -> None:
    """What an earlier download left of another file fails the checksum once and is never used again."""
    part = engine.installed_folder().parents[1] / "downloads" / archive_name().replace(".gz", ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(os.urandom(1000))
    with pytest.raises(EngineMissing, match="wrong checksum"):
        engine.find_or_install()
    assert engine.find_or_install().origin == "download"


def test_six_installers_at_once_fetch_once(host: DownloadHost) -> None:
    """Of six processes that need an engine at the same time one fetches it, and all get the same."""
    running = [
        subprocess.Popen([sys.executable, "-c", FIND], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(6)
    ]
    answers = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0] * 6, answers
    found = [json.loads(out) for out, _ in answers]
    assert len({command for command, _ in found}) == 1
    assert sorted(origin for _, origin in found) == ["cache"] * 5 + ["download"]
    assert [name for name, _ in host.requests] == [SUMS, archive_name()]


def test_killed_installer_is_taken_over(host: DownloadHost) -> None:
    """After kill -9 in the middle of a download another call goes on with it at once: no lock stays behind."""
    host.stop_after[archive_name()] = 500_000
    host.hold = threading.Event()
    first = subprocess.Popen([sys.executable, "-c", FIND], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert host.reached.wait(timeout=30)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=10)
    host.hold.set()
    host.hold = None
    host.stop_after.clear()
    stale = engine.installed_folder().with_name(f".{engine.installed_folder().name}.killed")
    stale.mkdir(parents=True)

    assert engine.find_or_install().origin == "download"
    assert leftovers() == []


def test_engine_that_does_not_run_is_replaced(host: DownloadHost) -> None:
    """A broken program in the cache is said and replaced by a working one."""
    broken = engine.installed_folder() / "pulumi"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    _, missed = engine.find()
    assert str(missed[0]) == f"cache: {broken} does not run (exit code 1): it says nothing"
    assert engine.find_or_install().origin == "download"
    assert engine.find()[0] is not None


def test_waiting_for_another_installer_has_a_limit(home: Path) -> None:
    """Who waits for another installer is told so, and gives up with an error that names the file it holds."""
    hold = "import sys; from coding_agent.toolchain.installation import lock; c = lock('x', print); c.__enter__(); print('held', flush=True); sys.stdin.read()"  # noqa: E501
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        said: list[str] = []
        with pytest.raises(installation.Installing, match=r"x\.lock"):
            with installation.lock("x", said.append, limit=0.2):
                raise AssertionError
        assert said == ["waiting for another process that installs x (0 s)"]
        assert holder.stdin is not None
        holder.stdin.close()
        holder.wait(timeout=10)
    with installation.lock("x", said.append, limit=0.2):
        pass
