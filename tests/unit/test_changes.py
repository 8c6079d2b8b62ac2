"""What a change of a resource's inputs amounts to, without an engine."""

from __future__ import annotations

from typing import Any

import pytest

from coding_agent.changes import Change, of_run, of_run_id

UNKNOWN = "?"


def _run(status: str = "running", **changed: Any) -> dict[str, Any]:
    inputs = {"run_id": "a", "task": {"command": "true", "env": {}}, "timeout": 60.0, "target": {}}
    return {**inputs, "outputs": {"status": status}, **changed}


def test_another_task_or_attempt_is_another_id() -> None:
    """An id is replaced when the digest or the attempt differs, and for nothing else."""
    old = {"digest": "x", "attempt": 1.0}

    assert of_run_id(old, {"digest": "x", "attempt": 1}) == Change()
    assert of_run_id(old, {"digest": "y", "attempt": 1}) == Change({"digest": "update"}, replace=True)
    assert of_run_id(old, {"digest": "x", "attempt": 2}) == Change({"attempt": "update"}, replace=True)


@pytest.mark.parametrize("run_id", ["b", UNKNOWN, None])
def test_another_id_replaces_the_run_and_names_what_changed(run_id: str | None) -> None:
    """A run whose id differs, or is not known yet, is replaced, and the change names the deepest fields of the task."""
    task = {"command": "false", "env": {"A": "b"}, "agent": {"model": "x"}}

    change = of_run(_run(), _run(run_id=run_id, task=task), unknown=UNKNOWN)

    assert change.replace
    assert change.fields == {
        "run_id": "update",
        "task.agent": "add",
        "task.command": "update",
        "task.env.A": "add",
    }


def test_a_name_that_is_no_word_is_quoted() -> None:
    """A field whose name the engine's paths can't hold as it is stands in quotes."""
    change = of_run(_run(task={"a.b": {'c"': 1}}), _run(run_id="b", task={"a.b": {}}), unknown=UNKNOWN)

    assert change.fields == {"run_id": "update", 'task["a.b"]["c\\""]': "delete"}


def test_another_image_is_another_id() -> None:
    """An id is replaced when the target is made of another image."""
    old = {"digest": "x", "attempt": 1.0, "image": "one"}
    assert of_run_id(old, {**old, "image": "two"}) == Change({"image": "update"}, replace=True)


@pytest.mark.parametrize(("reason", "replaced"), [("target_gone", True), ("supervisor_died", False)])
def test_a_run_that_went_with_its_target_is_run_in_the_next_one(reason: str, replaced: bool) -> None:
    """A run that was lost with its target is replaced once there is another; one lost otherwise is only reported."""
    old = _run(outputs={"status": "lost", "reason": reason}, target={"id": "a"})
    assert of_run(old, {**old, "target": {"id": "b"}}, unknown=UNKNOWN).replace is replaced


@pytest.mark.parametrize(
    ("status", "changed", "expected"),
    [
        ("running", {"timeout": 5.0}, Change({"timeout": "update"})),
        ("running", {"timeout": None}, Change({"timeout": "update"})),
        ("succeeded", {"timeout": 5.0}, Change()),
        ("running", {"target": {"id": "b"}}, Change({"target": "update"}, replace=True)),
        ("lost", {"target": {"id": "b"}}, Change()),
        ("running", {"description": "b", "wait": False, "labels": ["a"], "task_file": "/b"}, Change()),
        ("a status of another version", {"timeout": 5.0}, Change({"timeout": "update"})),
    ],
)
def test_what_an_ended_run_and_one_that_goes_on_make_of_a_change(
    status: str, changed: dict[str, Any], expected: Change
) -> None:
    """Another target replaces a run and another timeout reaches it only while it goes on; descriptions never matter."""
    assert of_run(_run(status), _run(status, **changed), unknown=UNKNOWN) == expected
