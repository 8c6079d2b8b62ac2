"""A task's fields -> the text of its file, which reads back exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coding_agent.errors import InvalidInput

_READABLE = 20_000  # characters; longer texts are written as one quoted line
# JSON's quoted text is YAML's too, but for these: line ends and what is not printable to YAML.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def dump(fields: Mapping[str, Any]) -> str:
    """Return YAML that reads back as exactly `fields`: texts, numbers, booleans, lists and mappings.

    Raises `InvalidInput` for what no file can hold.
    """
    plain = _plain(fields, ())
    text = _pretty(plain)
    # PyYAML writes YAML 1.1, where some texts need no quotes that do in 1.2; so look.
    return text if text is not None and _reads_back(text, plain) else _exact(plain)


def _pretty(plain: Mapping[str, Any]) -> str | None:
    import yaml

    def represent(dumper: Any, text: str) -> Any:
        style = "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    class Dumper(yaml.SafeDumper):
        """Many lines as a block; everything once, without aliases."""

        def ignore_aliases(self, data: Any) -> bool:
            """Write equal values out."""
            return True

    Dumper.add_representer(str, represent)
    if len(json.dumps(plain)) > _READABLE:
        return None
    text = yaml.dump(dict(plain), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10**9)
    return str(text)


def _exact(plain: Mapping[str, Any]) -> str:
    def escaped(found: re.Match[str]) -> str:
        return f"\\u{ord(found[0]):04x}"

    lines = (f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}\n"
             for name, value in plain.items())  # fmt: skip
    return _UNSAFE.sub(escaped, "".join(lines))


def _reads_back(text: str, plain: Mapping[str, Any]) -> bool:
    from coding_agent import document

    try:
        found = document.load(Path("task.yaml"), text)
    except InvalidInput:
        return False
    return not found.problems and json.dumps(found.data) == json.dumps(plain)


def _plain(value: Any, path: tuple[str, ...]) -> Any:
    match value:
        case str():
            _check(value, path)
            return value
        case None | bool() | int() | float():
            return value
        case Path():
            return str(value)
        case Mapping():
            return {str(_plain(str(name), path)): _plain(each, (*path, str(name))) for name, each in value.items()}
        case list() | tuple():
            return [_plain(each, path) for each in value]
        case set() | frozenset():
            return sorted(_plain(each, path) for each in value)
    raise InvalidInput(
        f"{'.'.join(path)} is a {type(value).__name__}, which a task file can't hold",
        next_step="give text, a number, a list or a mapping",
    )


def _check(text: str, path: tuple[str, ...]) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{'.'.join(path)} holds half of a surrogate pair at character {error.start}, which no UTF-8 file can hold",
            next_step="decode the text with errors='replace'",
        ) from error
