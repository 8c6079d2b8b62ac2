"""A YAML file that somebody wrote by hand -> plain data with the place of each value, and what is wrong with it.

A safe subset of YAML 1.2: one document, keys that are text, no tags, no merge keys. Anchors and aliases work, within
limits: a file may come from anyone, and reading it must neither run anything nor take long.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coding_agent.errors import InvalidInput
from coding_agent.text import neutralise

LARGEST_FILE = 16_000_000  # bytes
_SHOWN = 60  # characters of a value that a message quotes

Step = str | int
FieldPath = tuple[Step, ...]
Place = tuple[int, int]  # line and column, both from 1


@dataclass(frozen=True)
class Problem:
    """Something wrong in a file: where, in which field, what it is and what would be right."""

    file: str
    line: int
    column: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.field}: {self.message}"


class InvalidFile(InvalidInput):
    """A file that can't be used; `problems` holds everything that is wrong with it, in the file's order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "\n".join(map(str, self.problems)),
            next_step="correct the file; `coding-agent validate` checks it without running anything",
        )


class Document:
    """A file's data, the place of each of its values and keys, and the problems found so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = shown_path(path)
        self.data: Any = None
        self.places: dict[FieldPath, Place] = {(): (1, 1)}
        self.key_places: dict[FieldPath, Place] = {}
        self.written: dict[FieldPath, str] = {}  # plain scalars as they stand in the file
        self._found: dict[tuple[Place, str, str], tuple[FieldPath, Problem]] = {}

    def report(self, path: FieldPath, message: str, *, at_key: bool = False, place: Place | None = None) -> None:
        """Note a problem with the value at `path`; a value that isn't there is looked for in what should hold it."""
        if place is None:
            place = self._place(path, at_key)
        field = field_name(path)
        problem = Problem(self.file, *place, field, message)
        self._found.setdefault((place, field, message), (path, problem))

    def usable(self, path: FieldPath) -> bool:
        """Return whether no problem was found with the value at `path`, with what holds it, or with a part of it."""
        return not any(each[: len(path)] == path or path[: len(each)] == each for each, _ in self._found.values())

    def sound(self, path: FieldPath) -> bool:
        """Return whether no problem was found with exactly the value at `path`."""
        return all(each != path for each, _ in self._found.values())

    @property
    def problems(self) -> list[Problem]:
        """Return what was found, in the file's order."""
        found = [problem for _, problem in self._found.values()]
        return sorted(found, key=lambda each: (each.line, each.column, each.field, each.message))

    def check(self) -> None:
        """Raise `InvalidFile` with everything that was found, if anything was."""
        if self._found:
            raise InvalidFile(self.problems)

    def _place(self, path: FieldPath, at_key: bool) -> Place:
        if at_key and path in self.key_places:
            return self.key_places[path]
        while path not in self.places and path:
            path = path[:-1]
        return self.places[path]


def load(path: Path, text: str | None = None) -> Document:
    """Read the file (or take `text` for its content) into a document.

    Problems that leave the rest readable (a tag, a key twice) are in the document. Raises `InvalidFile` for those that
    don't: no such file, not UTF-8, broken YAML, nothing in it.
    """
    from coding_agent.yaml_subset import parse

    document = Document(path)
    if text is None:
        text = _read(document)
    if len(text) > LARGEST_FILE:
        _stop(document, f"the file is larger than {LARGEST_FILE // 1_000_000} MB")
    parse(document, text)
    return document


def field_name(path: FieldPath) -> str:
    """Return a path as people write it.

    >>> field_name(("files", 1, "path")), field_name(("env", "A B")), field_name(())
    ('files[1].path', 'env["A B"]', 'file')
    """
    name = ""
    for step in path:
        if isinstance(step, int):
            name += f"[{step}]"
        elif re.fullmatch(r"[\w-]{1,60}", step):
            name += f".{step}" if name else step
        else:
            name += f"[{quoted(step)}]" if name else quoted(step)
    return name or "file"


def quoted(value: object) -> str:
    """Return a value as a message quotes it: on one line, harmless for a terminal, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = neutralise(text) if len(text) <= _SHOWN else neutralise(text[: _SHOWN - 1]) + "…"
    return text.replace("\x7f", "\\x7f")


def shown_path(path: Path) -> str:
    """Return a path as short as it can be opened by: relative inside the current folder, else as it is."""
    try:
        here = Path.cwd()
    except OSError:  # it was removed
        return str(path)
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - a link is shown under its own name
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(path)


def decode(raw: bytes) -> tuple[str, str]:
    """Return the text of UTF-8 bytes and "", or the text up to the first bad byte and what is wrong there."""
    try:
        return raw.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return "", "the file is UTF-16; save it as UTF-8"
        good = raw[: error.start].decode("utf-8")
        return good, f"the byte 0x{raw[error.start]:02x} here is not UTF-8; save the file as UTF-8"


def place_of(text: str) -> Place:
    """Return the place that comes right after `text`."""
    return text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1


def _read(document: Document) -> str:
    try:
        with document.path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        _stop(document, "there is no such file; name one that exists")
    except IsADirectoryError:
        _stop(document, "this is a folder; name a file in it")
    except OSError as error:
        _stop(document, f"the file can't be read: {error.strerror}")
    if len(raw) > LARGEST_FILE:
        _stop(document, f"the file is larger than {LARGEST_FILE // 1_000_000} MB; put a long prompt into a prompt_file")
    text, complaint = decode(raw)
    if complaint:
        _stop(document, complaint, place_of(text))
    return text


def _stop(document: Document, message: str, place: Place = (1, 1)) -> Any:
    document.report((), message, place=place)
    raise InvalidFile(document.problems)
