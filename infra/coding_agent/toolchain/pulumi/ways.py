"""Get parts of the toolchain: out of a folder of archives, by the official download, or built from source.

A part is installed whole or not at all.
"""

from __future__ import annotations

import functools
import os
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

from coding_agent.paths import cache_dir
from coding_agent.toolchain.installation import Progress, replacing, sha256, tail, unpack
from coding_agent.toolchain.pulumi.parts import Missed, Part, Way, WayFailed
from coding_agent.toolchain.pulumi.reach import unreachable

MIRROR = "CODING_AGENT_PULUMI_MIRROR"
DOWNLOAD = "CODING_AGENT_PULUMI_DOWNLOAD"  # another address for the engine's archives, as behind a company's proxy
OFFICIAL = "https://get.pulumi.com/releases/sdk"
# The engine's own installer asks these hosts for a plugin, in this order.
PLUGIN_HOSTS = ("https://api.github.com", "https://get.pulumi.com")
PLUGIN_SERVER = "https://get.pulumi.com/releases/plugins"
PLUGIN_LIMIT = 15 * 60.0  # seconds for the download of a plugin; some have 100 MB
SUMS_LIMIT = 1_000_000  # bytes; the real file has some 20 lines
_STALL = 30.0  # seconds without a byte
_CHUNK = 1 << 18
_SAY_EVERY = 5_000_000  # bytes


@dataclass(frozen=True)
class Attempt:
    """How it went to get a part: the way that brought it, if any, and why the ways before it did not."""

    way: str | None
    missed: tuple[Missed, ...]


def install(
    parts: Sequence[Part], progress: Progress, download: Way, check: Callable[[Part], str | None]
) -> dict[Part, Attempt]:
    """Get every part by the first way that works: mirror, `download`, source. What can only be built is built together.

    `check` says what is wrong with a part that a way has brought.
    """
    missed: dict[Part, list[Missed]] = {part: [] for part in parts}
    ways: dict[Part, str] = {}

    def finish(part: Part, way: str, reason: str | None) -> None:
        reason = reason or check(part)
        if reason:
            missed[part].append(Missed(way, reason))
            progress(f"{part} from {way}: {reason}")
        else:
            ways[part] = way

    for way, get in (("mirror", from_mirror), ("download", download)):
        for part in (part for part in parts if part not in ways):
            try:
                get(part, progress)
            except WayFailed as failure:
                finish(part, way, str(failure))
            else:
                finish(part, way, None)
    lacking = [part for part in parts if part not in ways]
    if lacking:
        from coding_agent.toolchain.pulumi.source import build

        for part, reason in build(lacking, progress).items():
            finish(part, "source", reason)
    return {part: Attempt(ways.get(part), tuple(missed[part])) for part in parts}


def from_mirror(part: Part, progress: Progress) -> None:
    """Unpack the part's archive from the folder that $CODING_AGENT_PULUMI_MIRROR names. Raises WayFailed."""
    folder = os.environ.get(MIRROR)
    if not folder:
        raise WayFailed(f"{MIRROR} is not set")
    archive = Path(folder).expanduser() / part.archive
    if not archive.is_file():
        raise WayFailed(f"{archive} does not exist")
    try:
        sums = (archive.parent / "SHA256SUMS").read_text(errors="replace")
    except OSError as error:
        raise WayFailed(f"its checksums can't be read: {error}") from error
    progress(f"unpacking {archive}")
    _install(archive, sums, part)


def engine_download(part: Part, progress: Progress) -> None:
    """Download the engine's archive and checksums; a download that broke off goes on where it stopped.

    Raises WayFailed.
    """
    base = (os.environ.get(DOWNLOAD) or OFFICIAL).rstrip("/")
    if not base.startswith(("https://", "http://")):
        raise WayFailed(f"{DOWNLOAD} must be an http or https address, not {base!r}")
    if reason := unreachable(base):
        raise WayFailed(f"{base}: {reason}")
    archive = cache_dir() / "downloads" / part.archive
    rest = archive.with_suffix(".part")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with _open(f"{base}/pulumi-{part.version}-checksums.txt") as answer:
            sums = answer.read(SUMS_LIMIT).decode(errors="replace")
        _fetch(f"{base}/{part.archive}", rest, part, progress)
        rest.replace(archive)
    except (OSError, HTTPException) as error:
        raise WayFailed(f"{base}: {getattr(error, 'reason', None) or error or type(error)}") from error
    try:
        _install(archive, sums, part)
    finally:
        archive.unlink(missing_ok=True)  # unpacked, or not what its checksum says: no use either way


def plugin_download(engine: Callable[[], Path]) -> Way:
    """Return the way that lets `engine` install a plugin as it would by itself."""

    @functools.cache  # the same for all plugins, and seconds where a host does not answer
    def unreachable_hosts() -> dict[str, str]:
        return {host: reason for host in PLUGIN_HOSTS if (reason := unreachable(host))}

    def download(part: Part, progress: Progress) -> None:
        closed = unreachable_hosts()
        if len(closed) == len(PLUGIN_HOSTS):
            raise WayFailed("; ".join(f"{host}: {reason}" for host, reason in closed.items()))
        progress(f"downloading {part}")
        argv = [str(engine()), "plugin", "install", "resource", part.name, part.version, "--non-interactive"]
        # A host that does not answer would be asked five times.
        argv += ["--server", PLUGIN_SERVER] if PLUGIN_HOSTS[0] in closed else []
        added = {"PULUMI_SKIP_UPDATE_CHECK": "true"}
        try:
            done = subprocess.run(
                argv,
                env={**os.environ, **added},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PLUGIN_LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise WayFailed(f"not finished within {PLUGIN_LIMIT / 60:.0f} minutes") from None
        if done.returncode != 0:
            raise WayFailed(tail((done.stderr or done.stdout).decode(errors="replace"), 2))

    return download


def _install(archive: Path, sums: str, part: Part) -> None:
    expected = checksum(sums, archive.name)
    if expected is None:
        raise WayFailed(f"its checksums do not name {archive.name}")
    try:
        actual = sha256(archive)
        if actual != expected:
            raise WayFailed(f"{archive.name} has the wrong checksum: {actual}, expected {expected}")
        with replacing(part.folder) as fresh:
            unpack(archive, fresh)
            _flatten(fresh, archive, part)
    except (OSError, tarfile.TarError) as error:
        raise WayFailed(f"{archive.name} can't be unpacked: {error}") from error


def _flatten(fresh: Path, archive: Path, part: Part) -> None:
    """Move an unpacked part out of the folder in which the engine's archives hold it; a plugin's archive has none."""
    inner = fresh / part.name if (fresh / part.name).is_dir() else fresh
    if not (inner / part.program).is_file():
        raise WayFailed(f"{archive.name} holds no {(inner / part.program).relative_to(fresh)}")
    if inner is not fresh:
        for file in [*inner.iterdir()]:
            file.rename(fresh / f".{file.name}")
        inner.rmdir()
        for file in [*fresh.iterdir()]:
            file.rename(fresh / file.name.removeprefix("."))


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


def _fetch(url: str, rest: Path, part: Part, progress: Progress) -> None:
    from urllib.error import HTTPError

    have = rest.stat().st_size if rest.exists() else 0
    try:
        answer = _open(url, offset=have)
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        rest.unlink()  # more than there is: another file's rest
        have, answer = 0, _open(url)
    with answer:
        if answer.status != 206:
            have = 0  # the server starts again, and so does the file
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        with rest.open("ab" if have else "wb") as file:
            size = _copy(answer, file, have, total, part, progress)
    if total is not None and size < total:
        raise OSError(f"broke off after {size} of {total} bytes (the next try goes on from there)")


def _copy(answer: HTTPResponse, file: BinaryIO, size: int, total: int | None, part: Part, progress: Progress) -> int:
    reported = -_SAY_EVERY
    while chunk := answer.read1(_CHUNK):
        file.write(chunk)
        size += len(chunk)
        if size - reported >= _SAY_EVERY or size == total:
            of = f" of {total / 1e6:.0f}" if total else ""
            progress(f"downloading {part}: {size / 1e6:.0f}{of} MB")
            reported = size
    return size
