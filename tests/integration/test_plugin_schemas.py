"""The engine's plugins that are built here, held against what the official ones say of the resources used."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from coding_agent.toolchain.pulumi import plugins

# What the official plugins say, without prose, and of the resources that the project uses.
OFFICIAL = Path(__file__).parents[1] / "data" / "plugin-schemas"
LIMIT = 60.0  # seconds
NAMES = ("command", "hcloud", "docker")
# Where ours may say something else, and why.
DIFFERENT = {
    # The official plugin replaces the key as well: its kind of provider says so only when it is asked for a difference.
    "hcloud:index/sshKey:SshKey inputs publicKey replace",
    # The Terraform provider that ours is built from is newer, and replaces a container for another health check.
    "docker:index/container:Container inputs healthcheck replace",
}

Schema = Mapping[str, Any]


@pytest.fixture(scope="module", params=NAMES)
def said(
    request: pytest.FixtureRequest, engine_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Schema, Schema]:
    """Return what the official plugin of a name says, and what the one says that tests use."""
    name = str(request.param)
    folder: Path = request.getfixturevalue(f"{name}_plugin")
    program = folder / f"resource-{name}-v{plugins.version(name)}" / f"pulumi-resource-{name}"
    done = subprocess.run(
        [str(engine_folder / "pulumi"), "package", "get-schema", str(program)],
        env={
            **{"PATH": os.environ["PATH"], "HOME": str(tmp_path_factory.mktemp("home"))},
            **{"PULUMI_HOME": str(tmp_path_factory.mktemp("pulumi")), "PULUMI_SKIP_UPDATE_CHECK": "true"},
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((OFFICIAL / f"{name}.json").read_text(encoding="utf-8")), json.loads(done.stdout)


def test_the_version_is_the_librarys(said: tuple[Schema, Schema]) -> None:
    """A plugin says the version that the installed Python library asks for."""
    official, ours = said
    assert (ours["name"], ours["version"]) == (official["name"], plugins.version(ours["name"]))
    assert official["version"] == ours["version"], "tests/data/plugin-schemas is of another version"


def test_every_property_is_there(said: tuple[Schema, Schema]) -> None:
    """Each resource that is used has the inputs and outputs of the official plugin: names, types, and whether one is
    required, secret or a reason to replace the resource."""
    official, ours = said
    told = dict(_facts(ours))
    wrong = [
        f"{fact}: {wanted!r}, not {told.get(fact)!r}"
        for fact, wanted in _facts(official)
        if told.get(fact) != wanted and fact not in DIFFERENT
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_more_is_required(said: tuple[Schema, Schema]) -> None:
    """A program that was enough for the official plugin is enough for ours."""
    official, ours = said
    enough = {fact for fact, required in _facts(official) if required and fact.endswith(" required")}
    more = [
        fact
        for fact, required in _facts(ours)
        if required and " inputs " in fact and fact.endswith(" required") and fact not in enough
    ]
    assert not [fact for fact in more if fact.split(" ")[0] in official["resources"]]


def _facts(schema: Schema) -> Iterator[tuple[str, Any]]:
    """Yield what a schema says, one statement each: what it is about, and what is said."""
    for token, resource in schema["resources"].items():
        for kind, properties, required in (
            ("inputs", resource.get("inputProperties", {}), resource.get("requiredInputs", ())),
            ("outputs", resource.get("properties", {}), resource.get("required", ())),
        ):
            yield from _object(schema, f"{token} {kind}", properties, required)
    yield from _object(schema, "provider inputs", schema.get("provider", {}).get("inputProperties", {}), ())


def _object(schema: Schema, about: str, properties: Schema, required: Any) -> Iterator[tuple[str, Any]]:
    for name, each in properties.items():
        yield f"{about} {name} required", name in (required or ())
        yield f"{about} {name} secret", bool(each.get("secret"))
        yield f"{about} {name} replace", bool(each.get("replaceOnChanges") or each.get("willReplaceOnChanges"))
        yield from _type(schema, f"{about} {name}", each)


def _type(schema: Schema, about: str, said: Schema) -> Iterator[tuple[str, Any]]:
    if "items" in said:
        yield from _type(schema, f"{about} []", said["items"])
    elif "additionalProperties" in said:
        yield from _type(schema, f"{about} {{}}", said["additionalProperties"])
    elif (ref := said.get("$ref", "")).startswith("#/types/"):
        found = schema["types"][ref.removeprefix("#/types/")]
        if "enum" in found:
            yield f"{about} values", sorted(each["value"] for each in found["enum"])
        else:
            yield from _object(schema, about, found.get("properties", {}), found.get("required", ()))
    else:
        yield f"{about} type", ref or said.get("type")
