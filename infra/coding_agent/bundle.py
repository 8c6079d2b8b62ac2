"""Read a bundle that comes from a hostile target: header and pack, without git and within limits."""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from coding_agent.errors import Untrusted

MB = 1_000_000
REF = b"refs/coding-agent/work"  # the one reference that a run's bundle may hold
_HEADER_LIMIT = MB  # bytes; a prerequisite takes about 100
_LINE_LIMIT = 4096
_CHUNK = 65536
_SIGNATURES = (b"# v2 git bundle", b"# v3 git bundle")
_TIP = re.compile(rb"([0-9a-f]{40}) (.+)")
_PREREQUISITE = re.compile(rb"-([0-9a-f]{40})(?: .*)?")
_COMMIT, _TAG, _OFFSET_DELTA, _NAMED_DELTA = 1, 4, 6, 7


@dataclass(frozen=True)
class Limits:
    """What is taken from a target at most; sizes in bytes, unpacked unless said otherwise."""

    bundle: int = 1_000 * MB  # as the file lies there
    objects: int = 1_000_000  # how many
    object_size: int = 256 * MB
    total: int = 4_000 * MB
    memory: int = 4_000 * MB  # what one git process may allocate for it
    timeout: float = 600.0  # seconds, for each step


@dataclass(frozen=True)
class Header:
    """What a bundle says of itself: none of it is proven."""

    tip: str  # the commit under its one reference
    prerequisites: tuple[str, ...]
    pack_at: int  # where its pack begins, in bytes


def opened(path: Path, limits: Limits) -> IO[bytes]:
    """Open a file that was fetched; unbuffered, so that a child which inherits it goes on where reading ended.

    Raises `Untrusted` for a symbolic link, for what is no file and for one beyond the limit.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Untrusted(f"the bundle can't be read: {error.strerror}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size > limits.bundle:
        os.close(descriptor)
        raise Untrusted(f"the bundle is refused: {found.st_size} bytes, at most {limits.bundle} are taken")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_header(file: IO[bytes], limits: Limits) -> Header:
    """Return the header and leave `file` where the pack begins. Raises `Untrusted` for anything unexpected in it."""
    lines, pack_at = _header_lines(file)
    if not lines or lines[0] not in _SIGNATURES:
        raise Untrusted("the bundle is refused: it is none")
    tips: list[tuple[str, bytes]] = []
    prerequisites: list[str] = []
    for line in lines[1:]:
        if line == b"@object-format=sha1":
            continue
        if found := _PREREQUISITE.fullmatch(line):
            prerequisites.append(found[1].decode())
        elif found := _TIP.fullmatch(line):
            tips.append((found[1].decode(), found[2]))
        else:
            raise Untrusted("the bundle is refused: its header has a line that none of ours has")
    if [ref for _, ref in tips] != [REF]:
        refs = ", ".join(repr(ref.decode("utf-8", "replace")[:100]) for _, ref in tips[:5]) or "none"
        raise Untrusted(f"the bundle is refused: it has to hold {REF.decode()} alone, and holds {refs}")
    _check_pack(file, pack_at, limits)
    return Header(tips[0][0], tuple(prerequisites), pack_at)


def _header_lines(file: IO[bytes]) -> tuple[list[bytes], int]:
    data = b""
    while b"\n\n" not in data and len(data) < _HEADER_LIMIT and (chunk := file.read(_CHUNK)):
        data += chunk
    header, end, _ = data.partition(b"\n\n")
    lines = header.split(b"\n")
    if not end or any(len(line) > _LINE_LIMIT for line in lines):
        raise Untrusted("the bundle is refused: its header has no end")
    return lines, len(header) + len(end)


def _check_pack(file: IO[bytes], pack_at: int, limits: Limits) -> None:
    file.seek(pack_at)
    start = file.read(12)
    if len(start) != 12 or start[:8] != b"PACK\0\0\0\2":
        raise Untrusted("the bundle is refused: it holds no pack")
    count = int.from_bytes(start[8:])
    if count > limits.objects:
        raise Untrusted(f"the bundle is refused: {count} objects, at most {limits.objects} are taken")
    file.seek(pack_at)


def contents(file: IO[bytes], limits: Limits) -> Iterator[bytes]:
    """Yield what each entry of the pack at the file's position says: an object whole, or what a delta adds.

    The pack of a bundle with prerequisites can't be completed without them; a delta's own bytes are what is new in it.
    Raises `Untrusted` for a pack that is damaged or beyond the limits.
    """
    source = _Source(file)
    count = int.from_bytes(source.take(12)[8:])
    left = limits.total
    for _ in range(count):
        kind, size = source.entry()
        left -= size
        if size > limits.object_size or left < 0:
            raise Untrusted("the bundle is refused: what it holds is larger than what is taken")
        data = source.inflate(size)
        yield added(data) if kind in (_OFFSET_DELTA, _NAMED_DELTA) else data


def added(delta: bytes) -> bytes:
    """Return the bytes that a delta adds to what it copies. Raises `Untrusted` for a damaged one."""
    position = 0
    for _ in range(2):  # the sizes of what it starts from and of what it makes
        while position < len(delta) and delta[position] & 0x80:
            position += 1
        position += 1
    pieces = []
    while position < len(delta):
        code = delta[position]
        position += 1
        if code & 0x80:
            position += (code & 0x7F).bit_count()
        elif code:
            pieces.append(delta[position : position + code])
            position += code
        else:
            break
    if position != len(delta):
        raise Untrusted("what came back is damaged: a delta does not end where it should")
    return b"".join(pieces)


class _Source:
    """A pack as a stream, with what was read too far pushed back."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.rest = file, b""

    def take(self, size: int) -> bytes:
        while len(self.rest) < size:
            chunk = self.file.read(_CHUNK)
            if not chunk:
                raise Untrusted("the bundle is refused: its pack ends too early")
            self.rest += chunk
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def entry(self) -> tuple[int, int]:
        """Return an entry's kind and size; the position is then where its compressed bytes begin."""
        byte = self.take(1)[0]
        kind, size, shift = byte >> 4 & 7, byte & 15, 4
        while byte & 0x80:
            byte = self.take(1)[0]
            size |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise Untrusted("the bundle is refused: its pack is damaged")
        if kind == _NAMED_DELTA:
            self.take(20)
        elif kind == _OFFSET_DELTA:
            while self.take(1)[0] & 0x80:
                pass
        elif not _COMMIT <= kind <= _TAG:
            raise Untrusted("the bundle is refused: its pack is damaged")
        return kind, size

    def inflate(self, size: int) -> bytes:
        inflater, pieces, length = zlib.decompressobj(), [], 0
        try:
            while not inflater.eof:
                piece = inflater.decompress(inflater.unconsumed_tail or self.take(1) + self._all(), size + 1 - length)
                pieces.append(piece)
                length += len(piece)
                if length > size:
                    break
        except zlib.error:
            raise Untrusted("the bundle is refused: its pack is damaged") from None
        if length != size:
            raise Untrusted("the bundle is refused: its pack is damaged")
        self.rest = inflater.unused_data
        return b"".join(pieces)

    def _all(self) -> bytes:
        taken, self.rest = self.rest, b""
        return taken
