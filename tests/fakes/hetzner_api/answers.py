"""Whether the fake cloud answers as Hetzner describes its API (https://docs.hetzner.cloud, as OpenAPI)."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

DESCRIPTION = Path(__file__).parents[2] / "data" / "hetzner-cloud-openapi.json"
_BASE = "urn:hetzner"


def wrong(method: str, path: str, status: int, body: Any) -> str | None:
    """Return what of an answer is not as described; None where all is."""
    api = _described()
    template = next((each for each in api["paths"] if re.fullmatch(_pattern(each), path)), None)
    if template is None:
        return None if status == 404 else f"there is no {path}"
    responses = api["paths"][template].get(method.lower(), {}).get("responses", {})
    code = next((each for each in (str(status), f"{status // 100}xx") if each in responses), None)
    if code is None:
        return f"{method} {template} does not answer {status}"
    content = responses[code].get("content", {})
    if not content:
        return None if body is None else f"{method} {template}: {status} has no body"
    error = next(iter(_validator(template, method.lower(), code).iter_errors(body)), None)
    return None if error is None else f"{method} {template} {status}: {error.json_path}: {error.message[:300]}"


@functools.cache
def _described() -> Any:
    api = _with_null(json.loads(DESCRIPTION.read_text(encoding="utf-8")))
    # Fixed names before those with a number: /servers/actions is not /servers/{id}.
    api["paths"] = dict(sorted(api["paths"].items(), key=lambda each: each[0].count("{")))
    return api


@functools.cache
def _validator(template: str, method: str, code: str) -> Any:
    registry: Any = Registry().with_resource(_BASE, DRAFT202012.create_resource(_described()))
    steps = ("paths", template, method, "responses", code, "content", "application/json", "schema")
    pointer = "/".join(each.replace("~", "~0").replace("/", "~1") for each in steps)
    return Draft202012Validator(
        {"$ref": f"{_BASE}#/{pointer.replace('{', '%7B').replace('}', '%7D')}"}, registry=registry
    )


def _with_null(described: Any) -> Any:
    """Return a description whose `nullable`, which JSON Schema does not know, is said in its words."""
    if isinstance(described, list):
        return [_with_null(each) for each in described]
    if not isinstance(described, dict):
        return described
    found = {name: _with_null(each) for name, each in described.items()}
    if found.get("nullable") is True:
        del found["nullable"]
        return {"anyOf": [found, {"type": "null"}]}
    return found


def _pattern(template: str) -> str:
    return re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
