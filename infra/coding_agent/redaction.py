"""Find and take out secret values, also in the forms in which they usually travel.

Found: the value as it is; URL-quoted, JSON-escaped, HTML-escaped or with backslashes before special characters (any of
its characters, either case of hex digits, mixed, and nested, as JSON inside JSON is); with the white space in it
wrapped, escaped or joined; base64 in both alphabets at all three alignments, so also inside something longer, and
wrapped. Taken out, but not found: single lines of a value that has several, as in a log that is shown line by line.
Neither: encryption, compression, hex dumps, a value cut in two. By length, in bytes:

- under 4 a value is not looked for at all (`Redactor.ignored` names it): nearly every text holds it by chance;
- under 6 it is not looked for in base64, where it is as short as an ordinary word;
- under 12 a line of a longer value is not taken out, nor is one that is a PEM frame.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import TypeAlias

SHORTEST = 4
SHORTEST_BASE64 = 6
SHORTEST_LINE = 12
_Bytes: TypeAlias = bytes  # inside the class `bytes` is a method
_PARTS = re.compile(r"\s+|\\+|\S")
# Everything that repeats has a bound: without one, a text made of backslashes would take hours.
_WRAPPED = rb"(?:\s|\\{1,64}+[nrt]){0,8}"


@dataclass(frozen=True)
class _Wanted:
    name: str
    patterns: tuple[re.Pattern[bytes], ...]


class Redactor:
    """Finds the values of secrets; `values` is name -> value."""

    def __init__(self, values: Mapping[str, str]) -> None:
        """Prepare the search; `ignored` holds the names of values too short to look for."""
        raw = {name: value.encode("utf-8", "surrogatepass") for name, value in values.items()}
        self.ignored = tuple(name for name, value in raw.items() if len(value) < SHORTEST)
        self._wanted = [_Wanted(name, tuple(_patterns(value))) for name, value in raw.items() if len(value) >= SHORTEST]
        self._lines = [_Wanted(name, tuple(_line_patterns(value))) for name, value in values.items()]

    def text(self, text: str) -> str:
        """Return `text` with each value replaced by `[redacted NAME]`.

        >>> Redactor({"TOKEN": "s3cr3t/x"}).text("use s3cr3t/x, s3cr3t%2Fx or czNjcjN0L3g=")
        'use [redacted TOKEN], [redacted TOKEN] or [redacted TOKEN]'
        """
        # Half surrogates come out of JSON and are no UTF-8 of their own.
        return self.bytes(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def bytes(self, data: _Bytes) -> _Bytes:
        """Return `data` with each value replaced by `[redacted NAME]`; where values overlap, by one with all names."""
        kept: list[_Bytes] = []
        end = 0
        for start, stop, names in self._merged(data):
            kept += (data[end:start], f"[redacted {', '.join(names)}]".encode())
            end = stop
        return b"".join([*kept, data[end:]]) if kept else data

    def find(self, data: _Bytes | mmap) -> set[str]:
        """Return the names of the secrets that `data` holds in any form; what is in a file need not be read for it."""
        return {one.name for one in self._wanted if any(pattern.search(data) for pattern in one.patterns)}

    def _merged(self, data: _Bytes) -> list[tuple[int, int, list[str]]]:
        found = [
            (*match.span(), one.name)
            for one in (*self._wanted, *self._lines)
            for pattern in one.patterns
            for match in pattern.finditer(data)
        ]
        merged: list[tuple[int, int, list[str]]] = []
        # All searches see the original: were they to follow one another, the rest of a value that another one
        # overlaps would stay behind.
        for start, stop, name in sorted(found):
            if merged and start < merged[-1][1]:
                before = merged.pop()
                start, stop = before[0], max(stop, before[1])
                merged.append((start, stop, list(dict.fromkeys([*before[2], name]))))
            else:
                merged.append((start, stop, [name]))
        return merged


def _patterns(raw: bytes) -> Iterator[re.Pattern[bytes]]:
    value = raw.decode("utf-8", "surrogatepass")
    yield re.compile(b"".join(_any_form(part) for part in _PARTS.findall(value)))
    if len(raw) >= SHORTEST_BASE64:
        yield re.compile(b"|".join(_base64_form(raw, alignment) for alignment in range(3)))


def _line_patterns(value: str) -> Iterator[re.Pattern[bytes]]:
    """Yield a pattern for the lines of a value of several. Not for `find`: an ordinary line may be in any file."""
    lines = [line.strip() for line in value.splitlines()]
    telling = [line for line in lines if len(line) >= SHORTEST_LINE and not line.startswith("-----")]
    if telling and len(lines) > 1:
        # Plain and as JSON has them, so all literal: there may be many, and logs are long.
        forms = {
            form
            for line in telling
            for form in (line, json.dumps(line)[1:-1], json.dumps(line, ensure_ascii=False)[1:-1])
        }
        yield re.compile(
            b"|".join(re.escape(form.encode("utf-8", "surrogatepass")) for form in sorted(forms, key=len, reverse=True))
        )


def _any_form(part: str) -> bytes:
    """Return a pattern for one character, or one run of white space or of backslashes, in every form."""
    if part.isspace():
        escapes = rb"|\\{1,64}[nrt]" if part.strip(" ") else b""
        forms = b"|".join(_quoted(character) for character in dict.fromkeys(part + " "))
        return rb"(?:\s|\+|" + forms + escapes + rb"){1,200}"
    if part[0] == "\\":
        # Each level of escaping doubles them: how many there are says nothing.
        return rb"(?:\\{1,64}+|(?:" + _quoted("\\") + rb"){1,64})"
    raw = re.escape(part.encode("utf-8", "surrogatepass"))
    if part.isalnum():
        return b"(?:" + raw + b"|" + _quoted(part) + b")"
    entity = html.escape(part)
    entities = b"|" + re.escape(entity.encode()) if entity != part else b""
    return rb"(?:\\{0,64}+" + raw + b"|" + _quoted(part) + entities + b")"


def _quoted(character: str) -> bytes:
    """Return a pattern for the character in URL quoting and as JSON's \\u escape, nested or not."""
    quoted = b"".join(
        b"%(?:25){0,5}" + _hexadecimal(f"{byte:02x}") for byte in character.encode("utf-8", "surrogatepass")
    )
    units = character.encode("utf-16-be", "surrogatepass")
    escaped = b"".join(rb"\\{1,64}+u" + _hexadecimal(units[i : i + 2].hex()) for i in range(0, len(units), 2))
    return quoted + b"|" + escaped


def _hexadecimal(digits: str) -> bytes:
    return "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in digits).encode()


def _base64_form(raw: bytes, alignment: int) -> bytes:
    """Return a pattern for `raw` in base64 where `alignment` bytes stand before it in what is encoded."""
    coded = base64.b64encode(b"\0" * alignment + raw)
    # The characters at its ends also hold bits of what stands beside it, so they vary.
    first = (0, 2, 3)[alignment]
    rest = (alignment + len(raw)) % 3
    fixed = coded[first : len(coded) - (0, 3, 2)[rest]]
    # What is longer than a line of 60 or more characters gets wrapped, perhaps with the line's end escaped.
    between = _WRAPPED if len(fixed) > 16 else b""
    after = rb"[\w+/\-]?(?:=|%3[dD]){0,2}" if rest else b""
    return between.join(_base64_character(code) for code in fixed) + after


def _base64_character(code: int) -> bytes:
    match bytes([code]):
        case b"+":
            return rb"(?:\+|-|%2[bB]|\\{1,64}+u002[bB])"
        case b"/":
            return rb"(?:\\{0,64}+/|_|%2[fF]|\\{1,64}+u002[fF])"
        case other:
            return re.escape(other)
