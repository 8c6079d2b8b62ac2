"""The parser of `document`: YAML text -> the data of a document, from the events of libyaml.

Not from PyYAML's own construction: that knows no places, takes the last of two equal keys, follows YAML 1.1 (where
`no` is false and `1:30` is 90), and expands aliases without a limit.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from coding_agent.document import Document, FieldPath, InvalidFile, Place, place_of, quoted

MOST_VALUES = 100_000  # in a file, aliases expanded
DEEPEST = 32  # values inside values

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NULL = {"", "~", "null", "Null", "NULL"}
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LONGEST_NUMBER = 20  # characters

# What libyaml says -> what helps.
_SAID = {
    "mapping values are not allowed in this context": "a `: ` where no key can stand; indent keys of a mapping alike, "
    "and put text that holds `: ` in quotes",
    "did not find expected key": "no key where one should stand; indent keys of one mapping alike, and put text that "
    "holds quotes into the other kind of quotes",
    "did not find expected '-' indicator": "the list ends without a key before it; indent its lines alike, each with "
    "`- ` in front",
    "could not find expected ':'": "a key without `: ` after it; write `key: value`",
    "did not find expected ',' or ']'": "a `[` that is not closed; end the list with `]`",
    "did not find expected ',' or '}'": "a `{` that is not closed; end the mapping with `}`",
    "did not find expected node content": "a value is missing, or a `[` or `{` above is not closed; complete it",
    "found unexpected end of stream": "a quote that is not closed; end the text with the quote it begins with",
    "found unknown escape character": "no such escape; write a backslash as `\\\\`, or use single quotes",
    "did not find expected <document start>": "the text goes on where the file should end; indent keys alike, and "
    "write no `...`",
    "found a tab character where an indentation space is expected": "a tab in the indentation; use spaces",
    "found character that cannot start any token": "no text can begin with this character; put it in quotes",
}


@dataclass
class _Node:
    """A value as it stands in the file, aliases not expanded."""

    kind: str  # scalar, list, mapping
    place: Place
    tag: str | None
    text: str = ""
    plain: bool = False
    parts: list[_Node] = field(default_factory=list)  # of a mapping: key, value, key, value, ...
    open: bool = True


def parse(document: Document, text: str) -> None:
    """Fill `document` with what `text` says; raise `InvalidFile` where it can't be read to its end."""
    text = text.removeprefix("\ufeff")
    found = _UNPRINTABLE.search(text)
    if found:
        name = "a NUL" if found[0] == "\0" else f"the control character U+{ord(found[0]):04X}"
        _stop(document, f"{name} in the file; remove it", place_of(text[: found.start()]))
    try:
        root = _Parser(document).root(text)
    except yaml.YAMLError as error:
        _stop(document, *_translated(error, text))
    if root is None or (root.kind == "scalar" and root.plain and not root.text):
        _stop(document, "the file is empty; write `key: value` lines into it, or delete it", (1, 1))
    _Construction(document).build(root, ())


class _Parser:
    """Turns events into nodes, one by one, so that a file made to be huge is left early."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.anchors: dict[str, _Node] = {}
        self.stack: list[_Node] = []
        self.count = 0

    def root(self, text: str) -> _Node | None:
        root: _Node | None = None
        documents = 0
        event: Any
        for event in yaml.parse(text, Loader=_LOADER):
            place = (event.start_mark.line + 1, event.start_mark.column + 1)
            match event:
                case yaml.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        _stop(self.document, "a second document begins here; put it into a file of its own", place)
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    self.stack.pop().open = False
                case yaml.AliasEvent():
                    self._add(self._named(str(event.anchor), place), place)
                case yaml.ScalarEvent() | yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                    node = self._node(event, place)
                    root = root or node
                    self._add(node, place)
                    if node.open:
                        self.stack.append(node)
        return root

    def _node(self, event: Any, place: Place) -> _Node:
        if isinstance(event, yaml.ScalarEvent):
            plain = event.implicit[0] and not event.style
            node = _Node("scalar", place, event.tag, event.value, plain=plain, open=False)
        else:
            kind = "list" if isinstance(event, yaml.SequenceStartEvent) else "mapping"
            node = _Node(kind, place, event.tag)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _named(self, anchor: str, place: Place) -> _Node:
        node = self.anchors.get(anchor)
        if node is None:
            _stop(self.document, f"*{anchor} names no anchor; put &{anchor} before a value above, or use quotes", place)
        if node.open:
            _stop(self.document, f"*{anchor} stands inside &{anchor} itself; write the value out", place)
        return node

    def _add(self, node: _Node, place: Place) -> None:
        self.count += 1
        if self.count > MOST_VALUES:
            _stop(self.document, f"more than {MOST_VALUES} values in one file; make it smaller", place)
        if len(self.stack) >= DEEPEST:
            _stop(self.document, f"values nested more than {DEEPEST} deep; make it flatter", place)
        if self.stack:
            self.stack[-1].parts.append(node)


class _Construction:
    """Turns nodes into data, aliases expanded, with the place of each value."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = 0

    def build(self, node: _Node, path: FieldPath) -> None:
        """Put the node's data into the document."""
        self.document.data = self._value(node, path)

    def _value(self, node: _Node, path: FieldPath) -> Any:
        self.count += 1
        if self.count > MOST_VALUES or len(path) > DEEPEST:
            limit = f"{MOST_VALUES} values" if self.count > MOST_VALUES else f"{DEEPEST} levels"
            _stop(self.document, f"the aliases make more than {limit} of it; write fewer", node.place, path[:1])
        self.document.places[path] = node.place
        if node.tag is not None:
            self.document.report(path, _tagged(node.tag))
        match node.kind:
            case "mapping":
                return self._mapping(node, path)
            case "list":
                return [self._value(part, (*path, number)) for number, part in enumerate(node.parts)]
        if "\0" in node.text:
            self.document.report(path, "a NUL character, which no program can be given; remove it")
        if not node.plain:
            return node.text
        self.document.written[path] = node.text
        return self._scalar(node, path)

    def _mapping(self, node: _Node, path: FieldPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in zip(node.parts[::2], node.parts[1::2], strict=True):
            name = self._key(key, path)
            if name is None:
                continue
            inner = (*path, name)
            if name in values:
                line = self.document.key_places[inner][0]
                message = f"the key stands here a second time, first on line {line}; keep one of them"
                self.document.report(inner, message, place=key.place)
                continue
            self.document.key_places[inner] = key.place
            values[name] = self._value(value, inner)
        return values

    def _key(self, node: _Node, path: FieldPath) -> str | None:
        if node.kind != "scalar":
            what = "a list" if node.kind == "list" else "a mapping"
            self.document.report(path, f"{what} as a key; a key is text", place=node.place)
            return None
        if node.tag is not None:
            self.document.report((*path, node.text), _tagged(node.tag), place=node.place)
        elif node.plain and node.text == "<<":
            message = "merge keys are not used here; write the keys out"
            self.document.report((*path, node.text), message, place=node.place)
            return None
        elif node.plain and not isinstance(self._scalar(node, None), str):
            message = f'a key is text; put it in quotes: "{node.text}"'
            self.document.report((*path, node.text), message, place=node.place)
        elif "\0" in node.text:
            self.document.report(path, "a NUL character in a key; remove it", place=node.place)
            return None
        return node.text

    def _scalar(self, node: _Node, path: FieldPath | None) -> Any:
        """Return what a plain scalar means in YAML 1.2; infinity and not-a-number are texts here."""
        text = node.text
        if text in _NULL:
            return None
        if text in _BOOLEAN:
            return _BOOLEAN[text]
        if not _NUMBER.fullmatch(text) and not _INTEGER.fullmatch(text):
            return text
        integer = _INTEGER.fullmatch(text)
        if len(text) <= _LONGEST_NUMBER and integer:
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        value = math.inf if integer else float(text)
        if not math.isfinite(value) and path is not None:
            self.document.report(path, f"the number {quoted(text)[1:-1]} is too large; if it is text, put it in quotes")
        return value


def _tagged(tag: str) -> str:
    short = quoted(tag.replace("tag:yaml.org,2002:", "!!"))[1:-1]
    return f"has the tag {short}; tags are not used here, remove it"


def _translated(error: yaml.YAMLError, text: str) -> tuple[str, Place]:
    """Return what is wrong and where."""
    problem = str(getattr(error, "problem", None) or "it can't be read as YAML")
    mark = getattr(error, "problem_mark", None)
    context = getattr(error, "context_mark", None)
    if mark is None:
        return f"{problem}; put the text around it in quotes", (1, 1)
    place = (mark.line + 1, mark.column + 1)
    lines = text.split("\n")
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        tab = line.index("\t") + 1
        return _SAID["found a tab character where an indentation space is expected"], (place[0], tab)
    # What is never closed is noticed at the end; where it begins is what has to be looked at.
    if context is not None and ("not closed" in _SAID.get(problem, "")):
        place = (context.line + 1, context.column + 1)
    message = _SAID.get(problem, problem)
    if problem == "found character that cannot start any token":
        message = f"no text can begin with {quoted(line[mark.column : mark.column + 1])[1:-1]}; put it in quotes"
    return message, place


def _stop(document: Document, message: str, place: Place, path: FieldPath = ()) -> NoReturn:
    document.report(path, message, place=place)
    raise InvalidFile(document.problems)
