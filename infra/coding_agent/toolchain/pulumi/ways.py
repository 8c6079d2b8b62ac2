"""The three ways to get a Pulumi engine: a folder of archives, the official download, a build from source.

Each way puts the whole engine into `target` or raises StepFailed with its reason.
"""

from __future__ import annotations

import os
import tarfile
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

from coding_agent.paths import cache_dir
from coding_agent.toolchain.installation import Progress, replacing, sha256, unpack
from coding_agent.toolchain.pulumi.engine import VERSION

MIRROR = "CODING_AGENT_PULUMI_MIRROR"
DOWNLOAD = "CODING_AGENT_PULUMI_DOWNLOAD"  # another address for the official archives, as behind a company's proxy
OFFICIAL = "https://get.pulumi.com/releases/sdk"
SUMS_LIMIT = 1_000_000  # bytes; the real file has some 20 lines
_STALL = 30.0  # seconds without a byte
_CHUNK = 1 << 18
_SAY_EVERY = 5_000_000  # bytes
_ARCHITECTURES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}


class StepFailed(Exception):
    """One way to an engine did not work; the next one is tried."""

    def __init__(self, way: str, reason: str) -> None:
        super().__init__(f"{way}: {reason}")
        self.way = way
        self.reason = reason


def archive_name() -> str:
    """Return the name that Pulumi gives the archive for this machine."""
    system = os.uname()
    architecture = _ARCHITECTURES.get(system.machine.lower(), system.machine.lower())
    return f"pulumi-v{VERSION}-{system.sysname.lower()}-{architecture}.tar.gz"


def from_mirror(target: Path, progress: Progress) -> str:
    """Unpack the archive from the folder that $CODING_AGENT_PULUMI_MIRROR names."""
    folder = os.environ.get(MIRROR)
    if not folder:
        raise StepFailed("mirror", f"{MIRROR} is not set")
    archive = Path(folder).expanduser() / archive_name()
    if not archive.is_file():
        raise StepFailed("mirror", f"{archive} does not exist")
    try:
        sums = (archive.parent / "SHA256SUMS").read_text(errors="replace")
    except OSError as error:
        raise StepFailed("mirror", f"its checksums can't be read: {error}") from error
    progress(f"unpacking {archive}")
    _install(archive, sums, target, "mirror")
    return "mirror"


def from_download(target: Path, progress: Progress) -> str:
    """Download the official archive and its checksums; a download that broke off goes on where it stopped."""
    base = (os.environ.get(DOWNLOAD) or OFFICIAL).rstrip("/")
    if not base.startswith(("https://", "http://")):
        raise StepFailed("download", f"{DOWNLOAD} must be an http or https address, not {base!r}")
    archive = cache_dir() / "downloads" / archive_name()
    part = archive.with_suffix(".part")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with _open(f"{base}/pulumi-{VERSION}-checksums.txt") as answer:
            sums = answer.read(SUMS_LIMIT).decode(errors="replace")
        _fetch(f"{base}/{archive_name()}", part, progress)
        part.replace(archive)
    except (OSError, HTTPException) as error:
        raise StepFailed("download", f"{base}: {getattr(error, 'reason', None) or error or type(error)}") from error
    try:
        _install(archive, sums, target, "download")
    finally:
        archive.unlink(missing_ok=True)  # unpacked, or not what its checksum says: no use either way
    return "download"


def from_source(target: Path, progress: Progress) -> str:
    """Build the engine with Go out of the project's own module, whose versions and checksums are pinned."""
    from coding_agent.toolchain.pulumi.source import build

    build(target, progress)
    return "source"


def _install(archive: Path, sums: str, target: Path, way: str) -> None:
    expected = checksum(sums, archive.name)
    if expected is None:
        raise StepFailed(way, f"its checksums do not name {archive.name}")
    try:
        found = sha256(archive)
        if found != expected:
            raise StepFailed(way, f"{archive.name} has the wrong checksum: {found}, expected {expected}")
        with replacing(target) as fresh:
            unpack(archive, fresh)
            inner = fresh / "pulumi"  # the archives hold one folder of that name
            if not (inner / "pulumi").is_file():
                raise StepFailed(way, f"{archive.name} holds no pulumi/pulumi")
            for file in [*inner.iterdir()]:
                file.rename(fresh / f".{file.name}")
            inner.rmdir()
            for file in [*fresh.iterdir()]:
                file.rename(fresh / file.name.removeprefix("."))
    except (OSError, tarfile.TarError) as error:
        raise StepFailed(way, f"{archive.name} can't be unpacked: {error}") from error


def checksum(sums: str, name: str) -> str | None:
    """Return the SHA-256 that a list of checksums gives for a file, in lower case; None where it gives none."""
    for line in sums.splitlines():
        digest, _, file = line.strip().partition(" ")
        if file.strip().lstrip("*") == name:
            return digest.lower()
    return None


def _open(url: str, *, offset: int = 0) -> HTTPResponse:
    from urllib.request import Request, urlopen

    request = Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})  # noqa: S310 - checked above
    answer = urlopen(request, timeout=_STALL)  # noqa: S310
    assert isinstance(answer, HTTPResponse)
    return answer


def _fetch(url: str, part: Path, progress: Progress) -> None:
    from urllib.error import HTTPError

    have = part.stat().st_size if part.exists() else 0
    try:
        answer = _open(url, offset=have)
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        part.unlink()  # more than there is: another file's rest
        have, answer = 0, _open(url)
    with answer:
        if answer.status != 206:
            have = 0  # the server starts again, so do we
        rest = answer.headers.get("Content-Length")
        total = have + int(rest) if rest and rest.isdigit() else None
        with part.open("ab" if have else "wb") as file:
            size = _copy(answer, file, have, total, progress)
    if total is not None and size < total:
        raise OSError(f"broke off after {size} of {total} bytes (the next try goes on from there)")


def _copy(answer: HTTPResponse, file: BinaryIO, size: int, total: int | None, progress: Progress) -> int:
    said = -_SAY_EVERY
    while chunk := answer.read1(_CHUNK):
        file.write(chunk)
        size += len(chunk)
        if size - said >= _SAY_EVERY or size == total:
            of = f" of {total / 1e6:.0f}" if total else ""
            progress(f"downloading pulumi {VERSION}: {size / 1e6:.0f}{of} MB")
            said = size
    return size
