"""Our door to the engine: what an update does with a task, once and again, with the real engine and real processes."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from coding_agent import lifecycle, locks, records, stack
from coding_agent.errors import CredentialMissing, InvalidInput, NotFound, StackLocked
from coding_agent.paths import state_dir
from coding_agent.records import Record
from coding_agent.run import State
from projects import Workplace
from waiting import until

ENDLESS = "while :; do sleep 1; done"
# Our door in a process of its own: a project's folder and a stack's name.
UP = """
import sys
from pathlib import Path

from coding_agent.stack import open_stack

outputs = open_stack(Path(sys.argv[1]), sys.argv[2]).up(wait=True, say=lambda _line: None)
assert outputs["status"] == "succeeded", outputs
"""


def _record(run_id: str) -> Record:
    record = records.load(run_id)
    assert record is not None
    return record


def _run_folder(home: Path, run_id: str) -> Path:
    return home / ".coding-agent" / "runs" / run_id


def _same(workplace: Workplace, name: str = "job") -> bool:
    """Whether both doors find nothing to change; what they find otherwise fails the test."""
    ours = workplace.stack(name).preview(say=workplace.said.append)
    assert set(ours.changes) == {"same"}, ours
    assert workplace.changes(name) == {}
    return True


def test_up_runs_a_task_and_says_how_it_went(workplace: Workplace) -> None:
    """An update that waits returns the outputs of the ended run, whole numbers whole, and the engine has the same."""
    workplace.task(command="echo done")

    outputs = workplace.up()

    assert (outputs["status"], outputs["exit_code"], outputs["log_tail"]) == ("succeeded", 0, "done\n")
    assert isinstance(outputs["exit_code"], int)
    assert workplace.outputs()["run_id"] == outputs["run_id"]
    assert workplace.stack().outputs() == outputs
    assert any("done" in line for line in workplace.said)


def test_detached_up_returns_while_the_agent_runs(workplace: Workplace) -> None:
    """Without waiting an update returns once the agent has started, and a refresh brings its end into the outputs."""
    gate = workplace.root / "gate"
    workplace.task(command=f"until [ -e {gate} ]; do sleep 0.05; done; echo through")

    outputs = workplace.up(wait=False)
    assert outputs["status"] == "running"
    gate.touch()
    workplace.ended(outputs["run_id"])
    fresh = workplace.stack().refresh(say=workplace.said.append)

    assert (fresh["status"], fresh["log_tail"]) == ("succeeded", "through\n")
    assert workplace.outputs()["status"] == "succeeded"


@pytest.mark.slow
def test_a_failed_run_is_no_failure_of_the_update_through_our_door(workplace: Workplace) -> None:
    """Our door returns the outputs of a failed run; whether that is an error is its caller's to say."""
    workplace.task(command="exit 3")

    outputs = workplace.up()

    assert (outputs["status"], outputs["exit_code"]) == ("failed", 3)
    assert workplace.up()["run_id"] == outputs["run_id"]
    assert _same(workplace)


def test_a_b_a_runs_three_times(workplace: Workplace) -> None:
    """A task that is changed and changed back runs for each content, and every run before it is removed."""
    ids = []
    for command in ("echo a", "echo b", "echo a"):
        workplace.task(command=command)
        ids.append(workplace.up()["run_id"])

    assert (len(set(ids)), workplace.starts) == (3, 3)
    assert [_record(run_id).removed for run_id in ids] == [True, True, False]


def test_an_unchanged_task_runs_again_only_when_asked(workplace: Workplace) -> None:
    """An update of an unchanged task neither runs it again nor gives it another id, and both previews are empty; a
    rerun runs it once more, each time it is asked for and never by itself afterwards."""
    workplace.task()
    first = workplace.up()["run_id"]
    assert workplace.up()["run_id"] == first
    assert workplace.starts == 1
    assert _same(workplace)
    ids = [first, *(workplace.up(rerun=True)["run_id"] for _ in range(2))]

    assert (len(set(ids)), workplace.starts) == (3, 3)
    assert workplace.stack().refresh(say=workplace.said.append)["run_id"] == ids[-1]
    assert workplace.up()["run_id"] == ids[-1]
    assert workplace.stack().preview(say=workplace.said.append, rerun=True).changes.get("replace") == 2


def test_destroy_leaves_nothing_and_up_runs_again(workplace: Workplace, home: Path) -> None:
    """Destroying ends the run, removes it, the stack and its file; the next update is another run."""
    workplace.task(command=ENDLESS)
    first = workplace.up(wait=False)["run_id"]

    workplace.stack().destroy(discard=False, say=workplace.said.append)

    assert not _run_folder(home, first).exists()
    assert _record(first).outputs.status is State.KILLED
    assert list((workplace.root / "stacks").iterdir()) == []
    with pytest.raises(NotFound):
        workplace.stack(create=False).destroy(discard=False, say=workplace.said.append)
    assert workplace.up(wait=False)["run_id"] != first


@pytest.mark.slow
def test_destroy_keeps_what_somebody_configured(workplace: Workplace) -> None:
    """A stack's file that names a task of another name outlives the stack."""
    other = workplace.task("other")
    workplace.up("other")
    stack = workplace.stack("named", task_file=other)
    stack.up(wait=True, say=workplace.said.append)
    file = workplace.root / "stacks" / "Pulumi.named.yaml"
    assert "coding-agent:task: tasks/other.yaml" in file.read_text()
    assert workplace.changes("named") == {}

    stack.destroy(discard=False, say=workplace.said.append)

    assert "coding-agent:task: tasks/other.yaml" in file.read_text()


REPLACING: list[dict[str, Any]] = [
    {"command": "echo other"},
    {"env": {"A": "b"}},
    {"setup": ["true"]},
    {"files": [{"path": "a.txt", "content": "a"}]},
    {"limits": {"memory": "2GiB"}},
    {"executor": {"type": "local", "name": "elsewhere"}},
]


def test_a_change_of_what_is_run_replaces_the_run(workplace: Workplace) -> None:
    """A change of command, environment, setup, files, limits or executor is to end the run and start another, as a
    preview shows by its name; an update does it."""
    workplace.task(command=ENDLESS)
    first = workplace.up(wait=False)["run_id"]

    for change in REPLACING:
        workplace.task(**{"command": ENDLESS, **change})
        preview = workplace.stack().preview(say=workplace.said.append)
        assert preview.changes["replace"] == 2, change
        assert next(iter(change)) in preview.text
    every = {name: value for change in REPLACING for name, value in change.items()}
    workplace.task(**{**every, "command": ENDLESS})
    second = workplace.up(wait=False)["run_id"]

    assert second != first
    old = _record(first).outputs
    assert old.status is State.KILLED
    assert old.finished_at is not None
    assert old.finished_at <= (_record(second).outputs.started_at or "")


IGNORED: dict[str, Any] = {"description": "other", "labels": ["one", "two"], "artifacts": ["*.txt"], "wait": False}


def test_a_change_of_what_is_said_about_a_run_does_nothing(workplace: Workplace) -> None:
    """A change of description, labels, artifacts or wait leaves a run as it is, and both previews are empty."""
    workplace.task(executor="local")
    first = workplace.up()

    workplace.task(**{"executor": "local", **IGNORED})

    assert _same(workplace)
    assert workplace.up()["run_id"] == first["run_id"]
    assert workplace.starts == 1


@pytest.mark.slow
def test_a_secrets_other_value_does_nothing(workplace: Workplace, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Another value of a secret is no reason to run a task again."""
    config = home / ".config" / "openclaw" / "coding-agent.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("secrets:\n  TOKEN:\n    env: OUTER\n")
    workplace.task(secrets=["TOKEN"])
    monkeypatch.setenv("OUTER", "the first value")
    first = workplace.up()

    monkeypatch.setenv("OUTER", "the second value")

    assert _same(workplace)
    assert workplace.up()["run_id"] == first["run_id"]


@pytest.mark.slow
def test_a_repository_that_moved_on_does_nothing(workplace: Workplace) -> None:
    """A new commit in the repository that `repo: .` names is no reason to run a task again."""
    workplace.task(repo=".", uncommitted="ignore")

    def commit() -> None:
        for argv in (["add", "-A"], ["commit", "-q", "--allow-empty", "-m", "Something"]):
            subprocess.run(["git", *argv], cwd=workplace.root, check=True)

    subprocess.run(["git", "init", "-q"], cwd=workplace.root, check=True)
    commit()
    first = workplace.up()
    assert first["status"] == "succeeded"

    commit()

    assert _same(workplace)
    assert workplace.up()["run_id"] == first["run_id"]
    # Another branch for its commits is one.
    workplace.task(repo=".", uncommitted="ignore", branch="other")
    assert workplace.stack().preview(say=workplace.said.append).changes["replace"] == 2


def test_the_timeout_of_a_running_run_changes_in_place(workplace: Workplace) -> None:
    """Another time limit reaches a run that goes on, without another run; an ended one it leaves as it is."""
    workplace.task(command=ENDLESS, limits={"timeout": "1h"})
    first = workplace.up(wait=False)["run_id"]

    workplace.task(command=ENDLESS, limits={"timeout": "1s"})
    assert workplace.stack().preview(say=workplace.said.append).changes == {"same": 2, "update": 1}
    second = workplace.up(wait=False)["run_id"]
    workplace.ended(first)

    assert (second, workplace.starts) == (first, 1)
    assert workplace.up()["status"] == "timed_out"
    workplace.task(command=ENDLESS, limits={"timeout": "2h"})
    assert _same(workplace)


def test_what_a_killed_engine_left_half_written_is_mended(workplace: Workplace) -> None:
    """An engine that was killed while it noted a state's attributes keeps nobody from the stack afterwards."""
    workplace.task()
    first = workplace.up()
    (attributes,) = (state_dir() / "backend").rglob("stacks/**/job.json.attrs")
    attributes.write_bytes(b"")

    assert workplace.up()["run_id"] == first["run_id"]

    attributes.write_bytes(b"")
    assert len(stack.known(workplace.root, workplace.said.append)) == 1
    assert workplace.stack().outputs()["run_id"] == first["run_id"]


def test_a_run_that_is_lost_is_reported_and_not_repeated(workplace: Workplace, home: Path) -> None:
    """A run that is gone from its target is reported as lost; only a rerun runs the task again."""
    workplace.task(command=ENDLESS)
    first = workplace.up(wait=False)["run_id"]
    lifecycle_end(first)
    shutil.rmtree(_run_folder(home, first))

    outputs = workplace.up()

    assert (outputs["run_id"], outputs["status"], workplace.starts) == (first, "lost", 1)
    assert _same(workplace)
    assert workplace.up(rerun=True, wait=False)["run_id"] != first


def lifecycle_end(run_id: str) -> None:
    """End a run's processes as a machine's end would: nothing is looked at, nothing is written in the record."""
    record = _record(run_id)
    lifecycle.kill(record, say=lambda _line: None)
    records.save(record)


@pytest.mark.slow
def test_an_ended_run_stands_though_its_target_is_gone(workplace: Workplace, home: Path) -> None:
    """A run that ended and was collected keeps its results when its folder is removed from the target."""
    workplace.task(command="echo done")
    first = workplace.up()
    shutil.rmtree(_run_folder(home, first["run_id"]))

    assert workplace.up() == first
    assert _same(workplace)


def test_preview_runs_nothing_and_leaves_nothing(workplace: Workplace, home: Path) -> None:
    """A preview runs nothing of the task, looks up no secret, and leaves no stack and no file behind."""
    witness = workplace.root / "witness"
    config = home / ".config" / "openclaw" / "coding-agent.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"secrets": {"TOKEN": {"command": ["touch", str(witness)]}}}))
    workplace.task(secrets=["TOKEN"], setup=[f"touch {witness}"])

    found = workplace.stack().preview(say=workplace.said.append)

    assert found.changes == {"create": 3}
    assert "coding-agent:index:Run" in str(found)
    assert (witness.exists(), workplace.starts) == (False, 0)
    assert list((workplace.root / "stacks").iterdir()) == []
    with pytest.raises(NotFound):
        workplace.stack(create=False).outputs()


def test_a_project_without_a_file_of_the_engines(home: Path, workplace: Workplace, tmp_path: Path) -> None:
    """A task file outside of any project runs too, and leaves no file beside it."""
    folder = tmp_path / "alone"
    folder.mkdir()
    task = folder / "job.yaml"
    task.write_text("command: echo alone\n")
    alone = Workplace(folder)

    outputs = alone.stack(task_file=task).up(wait=True, say=alone.said.append)

    assert outputs["log_tail"] == "alone\n"
    assert [path.name for path in folder.iterdir()] == ["job.yaml"]


def test_an_update_makes_no_call_that_it_does_not_need(workplace: Workplace) -> None:
    """A first update is two calls of the engine's command line, a later one is one, and each is timed."""
    workplace.task()
    first, second = workplace.stack(), workplace.stack()

    first.up(wait=False, say=workplace.said.append)
    second.up(wait=False, say=workplace.said.append)

    assert [call.arguments[0] for call in first.calls] == ["stack", "up"]
    assert [call.arguments[0] for call in second.calls] == ["up"]
    assert all(call.seconds > 0 for call in first.calls)


def test_a_refusal_arrives_as_what_it_is(workplace: Workplace) -> None:
    """What keeps a run from starting arrives as the error that it is, with its next step, and nothing has started."""
    workplace.task(secrets=["TOKEN"])

    with pytest.raises(CredentialMissing) as caught:
        workplace.up()

    assert "TOKEN" in caught.value.message
    assert caught.value.next_step
    assert (workplace.starts, records.everything()) == (0, [])


def test_an_invalid_task_arrives_as_what_it_is(workplace: Workplace) -> None:
    """A task file that can't be read fails our door's update with its own complaint, and leaves the run as it is."""
    path = workplace.task()
    first = workplace.up()
    path.write_text("comand: true\n")

    with pytest.raises(InvalidInput, match="comand"):
        workplace.up()

    workplace.task()
    assert workplace.up()["run_id"] == first["run_id"]


def test_an_unreadable_project_is_bad_input(workplace: Workplace) -> None:
    """A Pulumi.yaml that is no YAML is bad input, said with its name."""
    (workplace.root / "Pulumi.yaml").write_text("a: [")

    with pytest.raises(InvalidInput, match=r"Pulumi\.yaml"):
        workplace.stack()


def _lock(workplace: Workplace, pid: int, since: datetime, host: str) -> Path:
    """Put a lock into the backend as the engine does."""
    backend = Path(os.environ["PULUMI_BACKEND_URL"].removeprefix("file://"))
    folder = backend / ".pulumi" / "locks" / "organization" / workplace.root.name / "job"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "8c5b4d16-7d0f-4e29-9c59-3a39a7c1de9a.json"
    said = {"pid": pid, "username": "somebody", "hostname": host, "timestamp": since.isoformat().replace("+00:00", "Z")}
    path.write_text(json.dumps(said))
    return path


def _gone() -> int:
    """Return the pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_whose_locks_are_taken_over(workplace: Workplace) -> None:
    """A lock whose process is gone, or is younger than the lock, is taken over, and that is said; one whose process
    lives, or is on another machine, stays and is reported: who, where, since when; one of a living engine, whose
    `coding-agent` was killed, is waited for: that engine is about to end."""
    workplace.task()
    workplace.up()
    here, now = platform.node(), datetime.now(UTC)
    for pid in (_gone(), os.getpid()):
        lock = _lock(workplace, pid, now - timedelta(days=1), here)
        assert workplace.up()["status"] == "succeeded"
        assert not lock.exists()
        assert any(f"process {pid}" in line and "took over" in line for line in workplace.said)

    for pid, host in ((os.getpid(), here), (_gone(), f"not-{here}")):
        lock = _lock(workplace, pid, now, host)
        with pytest.raises(StackLocked) as caught:
            workplace.up()
        assert lock.exists()
        assert f"somebody@{host}, process {pid}, since" in caught.value.message

    gate = workplace.root / "gate"
    orphan = subprocess.Popen(
        ["bash", "-c", 'until [ -e "$1" ]; do sleep 0.02; done; rm "$2"', "orphan", str(gate), str(lock)],
        env={**os.environ, locks.CONTROLLER: f"{_gone()}:1"},
    )
    _lock(workplace, orphan.pid, datetime.now(UTC), here)

    def say(line: str) -> None:
        workplace.said.append(line)
        if f"waiting for process {orphan.pid}" in line:
            gate.touch()

    assert workplace.stack().up(wait=True, say=say)["status"] == "succeeded"
    assert orphan.wait(60) == 0


def test_a_killed_coding_agents_run_is_adopted(workplace: Workplace) -> None:
    """After kill -9 of `coding-agent` amid a create the next update adopts the run."""
    gate = workplace.root / "gate"
    workplace.task(command=f"until [ -e {gate} ]; do sleep 0.05; done")
    with subprocess.Popen([sys.executable, "-c", UP, str(workplace.root), "job"]) as process:
        until(lambda: workplace.starts)
        process.kill()
    (record,) = records.everything()

    gate.touch()
    outputs = workplace.up()

    assert (outputs["run_id"], outputs["status"], workplace.starts) == (record.run_id, "succeeded", 1)
    assert "the update before this one was cut short: going on from there" in workplace.said


def test_several_stacks_at_once(workplace: Workplace) -> None:
    """Updates of several stacks of one project at the same time do not disturb each other."""
    names = [f"job{number}" for number in range(4)]
    for name in names:
        workplace.task(name)

    processes = [
        subprocess.Popen([sys.executable, "-c", UP, str(workplace.root), name], stderr=subprocess.PIPE, text=True)
        for name in names
    ]
    complaints = [process.communicate(timeout=120)[1] for process in processes]

    assert complaints == [""] * len(names)
    assert until(lambda: workplace.starts) == len(names)
