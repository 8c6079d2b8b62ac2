"""Which wheel this installation came from: the line of a requirements file that pins it, for an installation elsewhere.

A wheel can't hold its own hash. Where the installer did not write it down, the wheel is fetched from the index, and its
hash counts only when every file in it is the one that is installed here.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from coding_agent.toolchain import pip

DISTRIBUTION = "openclaw-coding-agent"
LIMIT = 60.0  # seconds for the wheel's download


class NotPinned(Exception):
    """Why the wheel's hash is not known."""


def requirement() -> str:
    """Return the line that lets pip install the same wheel and no other. Raises `NotPinned`."""
    try:
        here = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise NotPinned("it is not installed, but run from its source") from None
    origin = json.loads(here.read_text("direct_url.json") or "{}")
    if "dir_info" in origin or "vcs_info" in origin:
        raise NotPinned("it was installed from source, not from a wheel")
    url = str(origin.get("url") or "")
    if url and not urlsplit(url).path.endswith(".whl"):
        raise NotPinned("it was installed from an archive of its source, not from a wheel")
    digest = _noted(origin) or _checked(_file(url) if url.startswith("file:") else _of_index(here.version), here)
    return f"{unpinned()} --hash=sha256:{digest}"


def unpinned() -> str:
    """Return the line without the hash, which pip refuses wherever it asks for hashes."""
    from coding_agent import __version__

    return f"{DISTRIBUTION}=={__version__}"


def _noted(origin: Mapping[str, Any]) -> str | None:
    """Return the hash that the installer wrote down (PEP 610), in the one or the other of the two ways it may."""
    archive = origin.get("archive_info") or {}
    digest = (archive.get("hashes") or {}).get("sha256") or str(archive.get("hash") or "").removeprefix("sha256=")
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else None


def _file(url: str) -> bytes:
    try:
        return Path(unquote(urlsplit(url).path)).read_bytes()
    except OSError as error:
        raise NotPinned(f"the wheel it was installed from is gone ({error.strerror})") from None


def _of_index(version: str) -> bytes:
    """Return the wheel of this version that the user's package index has."""
    with tempfile.TemporaryDirectory(prefix="wheel-of-coding-agent-") as empty:
        try:
            return pip.download(f"{DISTRIBUTION}=={version}", Path(empty), limit=LIMIT).read_bytes()
        except OSError as error:
            raise NotPinned(f"pip could not fetch {DISTRIBUTION} {version}: {error}") from None


def _checked(wheel: bytes, here: metadata.Distribution) -> str:
    """Return the wheel's hash, if what it holds is what is installed here."""
    installed = {str(each): each.hash.value for each in here.files or () if each.hash and each.hash.mode == "sha256"}
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            held = {name: _digest(archive.read(name)) for name in archive.namelist() if not name.endswith("/")}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise NotPinned("what is there under its name is no wheel") from None
    differing = [name for name, digest in held.items() if not _own(name) and installed.get(name) != digest]
    if differing or not held:
        raise NotPinned(f"the wheel there is another one: {len(differing)} of {len(held)} files differ")
    return hashlib.sha256(wheel).hexdigest()


def _own(name: str) -> bool:
    """Whether a file is written by whoever installs, rather than copied: the list of what is installed."""
    return name.endswith(".dist-info/RECORD")


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
