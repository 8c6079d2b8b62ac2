"""Look for secrets in a patch that git wrote: also in its binary parts, and in lines that begin with a mark."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from coding_agent.bundle import Limits, added, opened
from coding_agent.errors import Untrusted

_BINARY = re.compile(rb"^GIT binary patch\n", re.MULTILINE)
_PART = re.compile(rb"(literal|delta) ([0-9]{1,12})\n((?:[A-Za-z][!-~]+\n)*)\n?")
_DEFAULT = Limits()


class _Scanner(Protocol):
    def find(self, data: bytes, /) -> set[str]: ...


def scan_patch(patch: Path | bytes, redactor: _Scanner, *, limits: Limits = _DEFAULT) -> set[str]:
    """Return the names of the secrets that a patch holds, before or after the change.

    Raises `Untrusted` for a symbolic link, for a file beyond the limits and for a binary part that can't be read.
    """
    data = patch if isinstance(patch, bytes) else _read(patch, limits)
    found = redactor.find(data)
    # A value of several lines has a mark at the start of each.
    for marks in (b"+ ", b"- "):
        found |= redactor.find(b"".join(line[1:] for line in data.splitlines(keepends=True) if line[:1] in marks))
    for content in _binary_parts(data, limits):
        found |= redactor.find(content)
    return found


def _read(path: Path, limits: Limits) -> bytes:
    with opened(path, limits) as file:
        return file.read()


def _binary_parts(data: bytes, limits: Limits) -> Iterator[bytes]:
    left = limits.total
    for header in _BINARY.finditer(data):
        position = header.end()
        part = _PART.match(data, position)
        if part is None:
            raise Untrusted("the patch is refused: a binary part of it is damaged")
        while part is not None:
            size = int(part[2])
            left -= size
            if size > limits.object_size or left < 0:
                raise Untrusted("the patch is refused: what it holds is larger than what is taken")
            content = _inflated(part[3], size)
            yield added(content) if part[1] == b"delta" else content
            part = _PART.match(data, part.end())


def _inflated(lines: bytes, size: int) -> bytes:
    """Return what the lines say: a character for the length, then base 85 of a compressed text."""
    inflater = zlib.decompressobj()
    try:
        packed = b"".join(base64.b85decode(line[1:])[: _length(line[0])] for line in lines.splitlines())
        content = inflater.decompress(packed, size + 1)
    except (ValueError, zlib.error):
        raise Untrusted("the patch is refused: a binary part of it is damaged") from None
    if len(content) != size:
        raise Untrusted("the patch is refused: a binary part of it is damaged")
    return content


def _length(code: int) -> int:
    return code - ord("A") + 1 if code < ord("a") else code - ord("a") + 27
