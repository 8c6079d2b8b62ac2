"""What an upgrade of coding-agent means for the stacks there are: nothing, until their tasks change."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coding_agent import __version__
from user import User

NAME = "coding_agent_version"


def _made_by(user: User, version: str | None) -> None:
    """Make the stack and the record say that the run was started by another version, or by one that did not say so."""
    exported = json.loads(user.pulumi("stack", "export", "--stack", "job").stdout)
    for resource in exported["deployment"]["resources"]:
        outputs: dict[str, Any] = resource.get("outputs", {})
        for holder in (outputs, outputs.get("outputs")):
            if isinstance(holder, dict) and NAME in holder:
                _say(holder, version)
    file = user.project / "exported.json"
    file.write_text(json.dumps(exported))
    user.pulumi("stack", "import", "--stack", "job", "--file", str(file))
    file.unlink()
    for record in user.home.glob(".local/state/coding-agent/runs/*/record.json"):
        plain = json.loads(record.read_text())
        _say(plain["outputs"], version)
        record.write_text(json.dumps(plain))


def _say(holder: dict[str, Any], version: str | None) -> None:
    if version is None:
        holder.pop(NAME)
    else:
        holder[NAME] = version


def _exported(user: User) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(user.pulumi("stack", "output", "--json", "--stack", "job").stdout)
    return said


@pytest.mark.parametrize("version", [None, "0.0.9"])
def test_a_run_of_the_version_before_shows_no_change(user: User, version: str | None) -> None:
    """A stack says which version started its run; for one that another version started, or one that did not say so,
    neither door shows a change, `sync` keeps it, and what it says stays as it was."""
    user.job(command="true")
    user.commit_all()
    user.cli("up", "job")
    assert user.outputs("job")[NAME] == _exported(user)[NAME] == __version__
    run = user.outputs("job")["run_id"]

    _made_by(user, version)

    ours = json.loads(user.cli("preview", "job", "--json").stdout)["changes"]
    bare = json.loads(user.pulumi("preview", "--json", "--stack", "job").stdout)
    assert {*ours, *bare["changeSummary"]} == {"same"}
    assert "1 kept" in user.cli("sync", "--dry-run").stdout
    user.pulumi("preview", "--expect-no-changes", "--stack", "job")
    user.cli("up", "job")
    user.pulumi("up", "--yes", "--skip-preview", "--expect-no-changes", "--stack", "job")
    assert user.outputs("job")["run_id"] == run
    assert user.outputs("job")[NAME] == version
    assert _exported(user).get(NAME) == version
