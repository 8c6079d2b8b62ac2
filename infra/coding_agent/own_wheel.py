"""Which wheel this installation came from: the line of a requirements file that pins it, for an installation elsewhere.

A wheel can't hold its own hash. Where the installer did not write it down, the wheel is fetched from the index, and its
hash counts only when every file in it is the one that is installed here.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import time
import zipfile
import zlib
from collections.abc import Mapping
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

DISTRIBUTION = "openclaw-coding-agent"
INDEX = "https://pypi.org/simple"
LIMIT = 20.0  # seconds for all that is fetched
_STALL = 5.0  # seconds without a byte
_LARGEST = 50_000_000  # bytes
_CHUNK = 1 << 16
_INDEX_VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
_PAGE = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"


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
    """Return the wheel of this version that the index has, without saying more of its address than its host."""
    index = next((os.environ[name] for name in _INDEX_VARIABLES if os.environ.get(name)), INDEX)
    name, deadline = f"{DISTRIBUTION.replace('-', '_')}-{version}-py3-none-any.whl", time.monotonic() + LIMIT
    page = f"{index.rstrip('/')}/{DISTRIBUTION}/"
    host = urlsplit(page).hostname
    try:
        links = _links(page, _fetch(page, deadline))
        if name not in links:
            raise NotPinned(f"{host} has no {name}")
        return _fetch(links[name], deadline)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "code", None) or type(error).__name__
        raise NotPinned(f"{name} could not be fetched from {host}: {reason}") from None


def _links(page: str, content: bytes) -> dict[str, str]:
    """Return the files that an index's page names (PEP 503, PEP 691): name -> address."""
    try:
        addresses = [str(each["url"]) for each in json.loads(content)["files"]]
    except (ValueError, KeyError, TypeError):
        addresses = re.findall(r'href="([^"]+)"', content.decode("utf-8", "replace"))
    whole = [urldefrag(urljoin(page, each)).url for each in addresses]
    return {unquote(urlsplit(each).path).rpartition("/")[2]: each for each in whole}


def _fetch(url: str, deadline: float) -> bytes:
    from urllib.request import Request, urlopen

    if urlsplit(url).scheme not in ("https", "http"):
        raise ValueError(url)
    with urlopen(Request(url, headers={"Accept": _PAGE}), timeout=_STALL) as answer:  # noqa: S310 - checked above
        return _read(answer, deadline)


def _read(answer: BinaryIO, deadline: float) -> bytes:
    content = bytearray()
    while chunk := answer.read(_CHUNK):
        content += chunk
        if len(content) > _LARGEST:
            raise OSError("too large")
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(content)


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
