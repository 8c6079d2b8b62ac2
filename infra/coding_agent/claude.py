"""Find the Claude Code program, or install it from npm at an exact version."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

from coding_agent.errors import ClaudeMissing, InvalidInput
from coding_agent.paths import cache_dir
from coding_agent.toolchain.installation import Progress, lock, on_path, quiet, replacing, tail, unpack, version_of

PINNED_VERSION = "2.1.330"
NPM_LIMIT = 15 * 60.0  # seconds; 175 MB
_SAY_EVERY = 1.0
_REPEAT_EVERY = 10.0  # the same once more, as while npm checks what it fetched
_WAIT = 0.2
_PACKAGE = "@anthropic-ai/claude-code-"
_ARCHITECTURES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
_LINKS = "https://docs.claude.com/en/docs/claude-code/setup"
# What the pinned version's archives must hash to, whichever registry npm is told to use.
_PINNED_INTEGRITY = {
    "linux-x64": "sha512-9Gn+V7DtJ8M1nztP9CeDVl9g3RtrepI7rOFTyPRRnZe8D6zebIHKmC7OvBauucuAP0X0k85SDN/LPVZyjsGezQ==",
    "linux-x64-musl": "sha512-OnduSSPY1b59FA8jTbq20Y1XkDUV0S1OVyvYBNslEbpX79P81JF7Ih4lgYvDKiFnnSv75z4Kv6qLE5DQqogYXA==",
    "linux-arm64": "sha512-V4yanAY5EA5UpwwRPtjSfqDbNqAlUJeVn3NYZw2AgmRHjdpSsLtHAzbxRXfkAnbjwTXzE0uedjQxUY02ARPcsA==",
    "linux-arm64-musl": (
        "sha512-NemfeTqZ30tQDhAeumZgDYoX4ewhAHkN3dbcsyvlgb+yvpKUlcYu5Bor8K+Du5azGe3uy9sftlJxbGhTsCR7zA=="
    ),
}


def find_or_install(claude_path: str | None = None, version: str | None = None, progress: Progress = quiet) -> Path:
    """Return a Claude Code program for this machine.

    `claude_path` must exist and run, and is taken. `version` (the task's own) demands exactly that one: a program at
    `claude_path` or on PATH of another version is passed over, and the one demanded is installed.
    Raises ClaudeMissing, or InvalidInput for a version that is not an exact one.
    """
    if version is not None:
        must_be_exact(version)
    found = find(claude_path, version, progress)
    if found:
        return found
    wanted = version or PINNED_VERSION
    with lock(f"claude-{wanted}", progress):
        installed = _installed(wanted)  # whoever held the lock may have installed it meanwhile
        return installed or _install(wanted, progress)


def must_be_exact(version: str) -> None:
    """Raise InvalidInput for a version that is not an exact one."""
    if not re.fullmatch(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", version):
        raise InvalidInput(
            f"{version!r} is not a version of Claude Code", next_step=f"name an exact one, such as {PINNED_VERSION}"
        )


def for_platform(name: str, version: str | None = None, progress: Progress = quiet) -> Path:
    """Return the Claude Code program of that version (default: the pinned one) for a platform such as linux-x64-musl.

    It is found in the cache or installed there. Raises `ClaudeMissing`.
    """
    wanted = version or PINNED_VERSION
    with lock(f"claude-{wanted}", progress):
        return _installed(wanted, name) or _install(wanted, progress, name)


def find(claude_path: str | None = None, version: str | None = None, progress: Progress = quiet) -> Path | None:
    """Look where `find_or_install` looks, fetch nothing; None where there is no program that fits."""
    if claude_path:
        command = _named(claude_path)
        has = _checked(command)
        if version in (None, has):
            return command
        progress(f"{command} is Claude Code {has}; the task demands {version}")
    else:
        for command in on_path("claude"):
            try:
                has = version_number(command)
            except OSError as error:
                progress(str(error))
                continue
            if version in (None, has):
                return command
    return _installed(version or PINNED_VERSION)


def version_number(command: Path) -> str:
    """Return the version of the program, such as 2.1.330. Raises OSError when it does not run."""
    said = version_of(command, ["--version"], {"DISABLE_AUTOUPDATER": "1"})
    number = re.match(r"\d+\.\d+\.\d+\S*", said)
    if not number:
        raise OSError(f"{command} calls its version {said[:80]!r}: not Claude Code")
    return number[0]


def platform_name() -> str:
    """Return this machine's name among Claude Code's npm packages. Raises ClaudeMissing where there is none."""
    system, machine = platform.system().lower(), platform.machine().lower()
    architecture = _ARCHITECTURES.get(machine)
    if system != "linux" or not architecture:
        raise ClaudeMissing(
            f"Claude Code is installed by itself on Linux (x86-64, arm64) only, this is {system} on {machine}",
            next_step=f"install it yourself ({_LINKS}) and name it in the executor's claude_path",
        )
    musl = not platform.libc_ver()[0] and any(Path("/lib").glob("ld-musl-*"))
    return f"{system}-{architecture}{'-musl' if musl else ''}"


def _named(claude_path: str) -> Path:
    command = Path(claude_path).expanduser()
    if command.is_absolute():
        return command
    found = shutil.which(claude_path) if "/" not in claude_path else None
    if not found:
        raise ClaudeMissing(
            f"claude_path is {claude_path!r}, which is neither an absolute path nor a program on PATH",
            next_step="name the program with its whole path in the executors file, or leave claude_path out",
        )
    return Path(found)


def _checked(command: Path) -> str:
    try:
        return version_number(command)
    except OSError as error:
        raise ClaudeMissing(
            f"no usable Claude Code at claude_path: {error}",
            next_step="correct claude_path in the executors file, or leave it out",
        ) from error


def _folder(version: str, platform: str) -> Path:
    return cache_dir() / "claude" / f"{version}-{platform}"


def _installed(version: str, platform: str | None = None) -> Path | None:
    command = _folder(version, platform or platform_name()) / "claude"
    try:
        if not command.is_file():
            return None
        # Another platform's program can't be asked; it was checked when it came.
        return command if _foreign(platform) or version_number(command) == version else None
    except OSError:
        return None  # it is there and does not run: it will be replaced


def _foreign(platform: str | None) -> bool:
    try:
        return platform not in (None, platform_name())
    except ClaudeMissing:
        return True


def _install(version: str, progress: Progress, platform: str | None = None) -> Path:
    platform = platform or platform_name()
    npm = shutil.which("npm")
    if not npm:
        raise ClaudeMissing(
            f"Claude Code is neither on PATH nor in the cache, and there is no npm to install {version} with",
            next_step=f"install npm or Claude Code itself ({_LINKS}), or name a program in the executor's claude_path",
        )
    target = _folder(version, platform)
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".npm-{version}.*"):
        shutil.rmtree(left, ignore_errors=True)  # of an installer that was killed; the lock says that none is at work
    try:
        with (
            tempfile.TemporaryDirectory(prefix=f".npm-{version}.", dir=target.parent) as work,
            replacing(target) as fresh,
        ):
            archive = _pack(npm, f"{_PACKAGE}{platform}@{version}", Path(work), progress)
            progress(f"unpacking Claude Code {version}")
            unpack(archive, fresh, only=["package/claude", "package/LICENSE.md"])
            for file in (fresh / "package").iterdir():
                file.rename(fresh / file.name)
            (fresh / "package").rmdir()
            (fresh / "claude").chmod(0o755)
            if not _foreign(platform):
                _must_be(fresh / "claude", version)
    except (OSError, tarfile.TarError) as error:
        raise ClaudeMissing(
            f"Claude Code {version} could not be installed: {error}",
            next_step=f"make room in {target.parent} if it is full, then run this again",
        ) from error
    progress(f"installed Claude Code {version} in {target}")
    return target / "claude"


def _must_be(command: Path, version: str) -> None:
    has = version_number(command)
    if has != version:
        raise OSError(f"what npm fetched calls itself {has}")


def _pack(npm: str, package: str, work: Path, progress: Progress) -> Path:
    version = package.rpartition("@")[2]
    argv = [npm, "pack", package, "--json", "--ignore-scripts", "--cache", str(work / "cache")]
    with (work / "out").open("w+b") as out, (work / "err").open("w+b") as err:
        # In a folder of its own: an .npmrc in somebody's checkout must not choose the registry.
        process = subprocess.Popen(
            [*argv, "--pack-destination", str(work)], cwd=work, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        try:
            _watch(process, work, version, progress)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        out.seek(0)
        err.seek(0)
        said, complaint = out.read(), err.read().decode(errors="replace")
    if process.returncode != 0:
        reason = tail("\n".join(line for line in complaint.splitlines() if line.startswith("npm error")) or complaint)
        raise ClaudeMissing(
            f"npm could not fetch {package} (exit code {process.returncode}): {reason}",
            next_step="check the network, npm's registry setting and that this version exists, then run this again",
        )
    return _verified(said, work, package)


def _watch(process: subprocess.Popen[bytes], work: Path, version: str, progress: Progress) -> None:
    started = time.monotonic()
    said, shown = 0.0, ""
    while True:
        try:
            process.wait(timeout=_WAIT)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if now - started > NPM_LIMIT:
                raise ClaudeMissing(
                    f"npm did not fetch Claude Code {version} within {NPM_LIMIT / 60:.0f} minutes",
                    next_step="check the network and npm's registry setting, then run this again",
                ) from None
            line = f"fetching Claude Code {version} from npm: {_largest(work) / 1e6:.0f} MB"
            if now - said >= (_SAY_EVERY if line != shown else _REPEAT_EVERY):
                progress(line)
                said, shown = now, line
        else:
            return


def _largest(folder: Path) -> int:
    # npm writes the archive to its cache first and copies it then: the largest file is how far it has come.
    sizes = [0]
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append((Path(path) / name).stat().st_size)
            except OSError:
                continue
    return max(sizes)


def _verified(said: bytes, work: Path, package: str) -> Path:
    import base64
    import hashlib

    name, _, version = package.removeprefix(_PACKAGE).rpartition("@")
    try:
        (entry,) = json.loads(said)
        archive, integrity = work / Path(entry["filename"]).name, str(entry["integrity"])
        with archive.open("rb") as file:
            digest = "sha512-" + base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ClaudeMissing(f"npm's answer for Claude Code {version} can't be used: {error!r}") from error
    pinned = _PINNED_INTEGRITY.get(name) if version == PINNED_VERSION else None
    if digest != integrity or pinned not in (None, digest):
        raise ClaudeMissing(
            f"Claude Code {version} from npm has the wrong checksum: {digest}, expected {pinned or integrity}",
            next_step="check npm's registry setting: what it serves is not the published program",
        )
    return archive
