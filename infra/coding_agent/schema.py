"""A document against its JSON Schema: each violation as a problem that says what would be right."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import referencing
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from coding_agent.document import Document, FieldPath, quoted

FOLDER = Path(__file__).parent / "schemas"
TASK = "task.schema.json"
EXECUTORS = "executors.schema.json"

_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping (key: value)",
    "null": "nothing",
}
_MEANT = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def check(document: Document, name: str) -> None:
    """Report everything in the document that the schema `name` does not allow.

    Raises `InvalidFile` where it isn't a mapping: nothing more can be said about it.
    """
    if not isinstance(document.data, dict):
        document.report((), f"is {_described(document.data)}; write lines of `key: value`")
        document.check()
    for error in _validator(name).iter_errors(document.data):
        _report(document, error)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return an advice: the name that was probably meant, else all there are.

    >>> nearest("comand", ["prompt", "command"]), nearest("x", ["prompt", "command"])
    ('did you mean command?', 'known are command, prompt')
    """
    names = sorted(known)
    if not names:
        return "there is none"
    lowered = {name.lower().replace("-", "_"): name for name in names}
    word = word.lower().replace("-", "_")
    near = [name for name in lowered if word.startswith(name) or (len(word) > 2 and name.startswith(word))]
    near = near or difflib.get_close_matches(word, lowered, n=1)
    return f"did you mean {lowered[near[0]]}?" if near else f"known are {', '.join(names)}"


@functools.cache
def _validator(name: str) -> Any:
    resources = [
        (file, referencing.Resource.from_contents(json.loads((FOLDER / file).read_text(encoding="utf-8"))))
        for file in (TASK, EXECUTORS)
    ]
    registry: Any = referencing.Registry().with_resources(resources)
    extend: Any = jsonschema.validators.extend
    strict = extend(Draft202012Validator, {"pattern": _pattern})
    return strict({"$ref": name}, registry=registry)


def _pattern(_validator: Any, pattern: str, instance: object, _schema: Any) -> Iterator[ValidationError]:
    # Python's `$` also matches before a newline at the end; a name with one would pass.
    if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
        yield ValidationError("does not match")


def _report(document: Document, error: Any) -> None:
    path: FieldPath = tuple(error.absolute_path)
    if error.validator == "anyOf":
        for inner in _branch(error):
            _report(document, inner)
        return
    if "propertyNames" in error.absolute_schema_path:
        # The instance is the key itself.
        if document.sound((*path, str(error.instance))):
            document.report((*path, str(error.instance)), _message(document, path, error), at_key=True)
        return
    if not document.sound(path) and path:
        return  # something more basic is wrong with this very value
    match error.validator:
        case "additionalProperties":
            known = error.schema["properties"]
            for key in error.instance:
                if key not in known:
                    message = f"there is no such key here; {nearest(key, known)}"
                    document.report((*path, key), message, at_key=True)
        case "required":
            for key in error.validator_value:
                if key not in error.instance:
                    document.report((*path, key), f"is missing; {_wanted(error, key)}", place=document.places[path])
        case "oneOf":
            pass  # which of prompt, prompt_file and command: said with more words elsewhere
        case _:
            document.report(path, _message(document, path, error))


def _branch(error: Any) -> list[Any]:
    """Return the errors of the alternative that was meant: the first that the value has the type of."""
    branches: dict[Any, list[Any]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.schema_path[0], []).append(inner)
    for errors in branches.values():
        if not any(each.validator == "type" and not each.path for each in errors):
            return errors
    either = [_TYPES[str(errors[0].validator_value)] for errors in branches.values()]
    wrong = next(iter(branches.values()))[0]
    wrong.validator_value = either
    return [wrong]


def _message(document: Document, path: FieldPath, error: Any) -> str:
    value, limit = error.instance, error.validator_value
    if path[:1] == ("secrets",) and (message := _without_value(path, error)):
        return message
    match error.validator:
        case "type":
            return _wrong_type(document, path, error)
        case "enum":
            return _no_choice(value, limit)
        case "const":
            if path == ("repo",):
                return (
                    f"{quoted(value)} can't be; write `.` for this repository, or `repo: {{url: ADDRESS}}` for another"
                )
            return f"is {quoted(value)}; only {quoted(limit)} is possible"
        case "pattern":
            return f"{quoted(value)} {error.schema.get('patternErrorMessage', f'does not match {limit}')}"
        case "minLength":
            return "is empty; write some text, or leave the key out"
        case "minItems":
            return "is an empty list; write at least one, or leave the key out"
        case "uniqueItems":
            twice = next(each for number, each in enumerate(value) if each in value[:number])
            return f"has {quoted(twice)} twice; write each once"
        case "minimum" | "maximum" | "exclusiveMinimum":
            bound = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "more than"}[error.validator]
            return f"is {quoted(value)}; it must be {bound} {limit}"
        case "minProperties" | "maxProperties":
            return f"needs exactly one of {', '.join(error.schema['properties'])}, such as {{env: NAME}}"
    return str(error.message)


def _without_value(path: FieldPath, error: Any) -> str | None:
    """Return a message that quotes nothing: what stands where a secret's name belongs may be its value."""
    pattern = error.schema.get("patternErrorMessage")
    match error.validator:
        case "pattern" | "type" if pattern and isinstance(path[-1], int):
            return "is no secret's name; write its name alone (letters, digits and `_`), and never its value"
        case "pattern":
            return str(pattern)
        case "uniqueItems":
            return "has a name twice; write each once"
        case "type" if path[-1] == "command":
            return "is no list; write the program and its arguments, such as [pass, show, NAME]; no shell is involved"
        case "type" if len(path) == 2:
            return "is no source; write where the value comes from, such as {env: NAME}, and never the value itself"
        case "type":
            return f"is not {_TYPES[error.validator_value]}; write the names of secrets or their sources, never a value"
    return None


def _wrong_type(document: Document, path: FieldPath, error: Any) -> str:
    wanted, value = error.validator_value, error.instance
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    names = " or ".join(_TYPES.get(each, each) for each in wanted)
    written = document.written.get(path, "")
    pattern = error.schema.get("patternErrorMessage")
    if value is None and written == "~":
        return 'has no value: that is what ~ alone means in YAML; write it in quotes: "~"'
    if value is None:
        return f"has no value; write {names}, or leave the key out"
    match value:
        case bool() | int() | float() if wanted == ["string"] and pattern:
            return f"{written} {pattern}"
        case bool() | int() | float() if "string" in wanted:
            return f'{written} is not text here; write it in quotes: "{written}"'
        case str() if wanted == ["boolean"] and value.lower() in _MEANT:
            return f"is the text {quoted(value)}; write {_MEANT[value.lower()]}"
        case str() if "array" in wanted:
            return f"is text; write a list: [{quoted(value)[1:-1]}]" if len(value) < 40 else "is text; write a list"
        case str() if wanted[0] in ("integer", "number") and re.fullmatch(r"[0-9.]+", value):
            return f"is text; write {value} without quotes"
        case dict() if wanted == ["array"]:
            return f"is a mapping; write {names}, each line with `- ` in front"
    return f"is {_described(value)}; write {names}"


def _described(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {quoted(value)}"
        case list():
            return "a list"
    return "a mapping"


def _no_choice(value: object, choices: list[str]) -> str:
    if isinstance(value, str) and (near := difflib.get_close_matches(value, choices, n=1)):
        return f"{quoted(value)} can't be; did you mean {near[0]}? Possible are {', '.join(choices)}"
    what = "has no value" if value is None else f"{quoted(value)} can't be"
    return f"{what}; possible are {', '.join(choices)}"


def _wanted(error: Any, key: str) -> str:
    schema = error.schema.get("properties", {}).get(key, {})
    if key == "type":
        return "write local, container, ssh or hetzner"
    described = str(schema.get("description", "")).partition(". ")[0].rstrip(".")
    return f"write `{key}:` ({described[:1].lower()}{described[1:]})" if described else f"write `{key}:`"
