"""The provider under a bare `pulumi up`: it waits, streams, reads first, adopts, and ends with its engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coding_agent import lifecycle, records
from coding_agent.run import State
from projects import Workplace
from runs import alive
from waiting import until

ProcessesWith = Callable[[str], list[int]]
PLUGIN = "coding_agent.provider"


def _gate(workplace: Workplace) -> tuple[Path, str]:
    """Return a file, and a command that waits for it."""
    gate = workplace.root / "gate"
    return gate, f"until [ -e {gate} ]; do sleep 0.05; done; echo through"


def _only_run(workplace: Workplace) -> str:
    """Return the id of the one run that this machine has a record of, once it runs."""
    until(lambda: workplace.starts)
    (record,) = records.everything()
    return record.run_id


def _plugins(workplace: Workplace, processes_with: ProcessesWith) -> list[int]:
    """Return the provider's processes that work for this project."""
    here = set(processes_with(str(workplace.root)))
    return [pid for pid in processes_with("pulumi-resource-coding-agent") if pid in here]


def test_bare_up_waits_and_shows_what_happens(workplace: Workplace) -> None:
    """A bare update shows the run's lines as they come, ends with the run, and exports what it says."""
    gate, command = _gate(workplace)
    workplace.task(command=f"echo first line; {command}")
    workplace.new_stack()

    with workplace.engine("up", "--yes", "--skip-preview") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "first line" in line:
                break
        # The line has come while the run goes on.
        assert workplace.starts == 1
        gate.touch()
        assert "through" in process.stdout.read()
        assert process.wait(60) == 0

    outputs = workplace.outputs()
    assert (outputs["status"], outputs["exit_code"], outputs["log_tail"]) == ("succeeded", 0, "first line\nthrough\n")
    assert workplace.changes() == {}


def test_bare_preview_fetches_no_plugin_that_the_stack_does_not_need(workplace: Workplace) -> None:
    """The engine asks nobody for the plugins of other executors, whose libraries are installed all the same."""
    workplace.task()
    workplace.new_stack()
    said = workplace.pulumi("preview", "--logtostderr", "-v=6").stderr
    assert "GetPluginPath(" in said  # it does say where it looks
    assert "download" not in said


def test_a_run_that_fails_meanwhile_fails_the_next_bare_update(workplace: Workplace) -> None:
    """A run still going fails no update; the first bare update after its failure does."""
    gate, command = _gate(workplace)
    workplace.task(command=f"{command}; exit 4", wait=False)
    workplace.new_stack()
    workplace.bare_up()

    gate.touch()
    workplace.ended(workplace.outputs()["run_id"])

    workplace.bare_up(succeeds=False)
    assert workplace.outputs()["exit_code"] == 4


@pytest.mark.slow
def test_a_changed_task_is_replaced_by_a_bare_update(workplace: Workplace) -> None:
    """A bare update of a changed task ends the run before it starts the other."""
    workplace.task(command="while :; do sleep 1; done", wait=False)
    workplace.new_stack()
    workplace.bare_up()
    first = workplace.outputs()["run_id"]

    workplace.task(command="echo other")
    shown = workplace.bare_up()

    old = records.load(first)
    assert old is not None
    assert (old.outputs.status, old.removed) == (State.KILLED, True)
    assert shown.index(":Run job deleted original") < shown.index(":Run job created replacement")
    assert workplace.outputs()["log_tail"] == "other\n"


def test_a_killed_engines_run_is_adopted(workplace: Workplace, processes_with: ProcessesWith) -> None:
    """After kill -9 of the engine amid a create no plugin stays, and the next update adopts the run."""
    gate, command = _gate(workplace)
    workplace.task(command=command)
    workplace.new_stack()
    with workplace.engine("up", "--yes", "--skip-preview") as process:
        run_id = _only_run(workplace)
        process.kill()
        process.wait(60)
    until(lambda: _plugins(workplace, processes_with) == [])

    gate.touch()
    outputs = workplace.up()

    assert (outputs["run_id"], outputs["status"], workplace.starts) == (run_id, "succeeded", 1)
    assert any("took over the lock" in line for line in workplace.said)
    assert workplace.changes() == {}


def test_destroy_after_a_killed_engine_leaves_nothing(workplace: Workplace, home: Path) -> None:
    """A run whose create was cut short is ended by destroying the stack, though the stack does not know it."""
    _, command = _gate(workplace)
    workplace.task(command=command)
    workplace.new_stack()
    with workplace.engine("up", "--yes", "--skip-preview") as process:
        run_id = _only_run(workplace)
        process.kill()
        process.wait(60)

    workplace.stack().destroy(discard=False, say=workplace.said.append)

    assert not (home / ".coding-agent" / "runs" / run_id).exists()


def test_ctrl_c_stops_the_waiting_and_not_the_agent(workplace: Workplace) -> None:
    """Ctrl-C during a bare update ends it without a traceback, the run goes on, and the next update adopts it."""
    gate, command = _gate(workplace)
    workplace.task(command=command)
    workplace.new_stack()
    with workplace.engine("up", "--yes", "--skip-preview") as process:
        run_id = _only_run(workplace)
        # To the whole group, as a terminal does.
        os.killpg(process.pid, signal.SIGINT)
        shown, _ = process.communicate(timeout=60)

    assert process.returncode != 0
    assert "Traceback" not in shown, shown
    assert "KeyboardInterrupt" not in shown, shown
    gate.touch()
    workplace.bare_up()
    outputs = workplace.outputs()
    assert (outputs["run_id"], outputs["status"], workplace.starts) == (run_id, "succeeded", 1)


def test_the_plugin_ends_with_its_engine_even_before_it_serves(tmp_path: Path) -> None:
    """A plugin whose engine is gone before it could look for it ends by itself."""
    # The engine: starts the plugin with a pipe, as the real one does, and is gone at once.
    script = (
        "import subprocess, sys, os\n"
        f"plugin = subprocess.Popen([sys.executable, '-m', '{PLUGIN}', '127.0.0.1:9'], stdout=subprocess.PIPE)\n"
        "print(plugin.pid, flush=True)\n"
        "os._exit(0)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)

    until(lambda: not alive(int(done.stdout)))


def test_the_plugin_started_by_hand_says_what_it_is() -> None:
    """The plugin started without an engine's address says who starts it, and exits."""
    done = subprocess.run([sys.executable, "-m", PLUGIN], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert done.stderr == "this program is started by the Pulumi engine, with its address\n"


@pytest.mark.slow
def test_a_refusal_is_said_in_the_bare_update(workplace: Workplace) -> None:
    """What keeps a run from starting is shown with its next step, and leaves a stack that can be updated again."""
    workplace.task(secrets=["TOKEN"])
    workplace.new_stack()

    shown = workplace.bare_up(succeeds=False)

    assert "TOKEN" in shown
    assert "next: " in shown
    workplace.task()
    workplace.bare_up()
    assert workplace.starts == 1


@pytest.mark.slow
def test_an_invalid_task_is_said_in_the_bare_update_and_changes_nothing(workplace: Workplace) -> None:
    """A task file that became invalid fails a bare update with file and line, and the run stays as it is."""
    path = workplace.task()
    workplace.new_stack()
    workplace.bare_up()
    before = workplace.outputs()
    path.write_text("command: true\ncomand: false\nwait: 3\n")

    shown = workplace.bare_up(succeeds=False)

    assert f"{path}:2:" in shown
    assert f"{path}:3:" in shown
    assert "unhandled" not in shown
    assert workplace.outputs() == before


def test_a_stack_without_a_task_says_so(workplace: Workplace) -> None:
    """A stack whose task file does not exist says which file it looked for."""
    workplace.new_stack("nothing")

    shown = workplace.bare_up("nothing", succeeds=False)

    assert f"stack nothing has no task: there is no {workplace.root}/tasks/nothing.yaml" in shown


def test_the_run_of_another_machine_is_not_called_lost(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the record is missing it is rebuilt from the state, so the run is found again on its target."""
    gate, command = _gate(workplace)
    workplace.task(command=command, wait=False)
    first = workplace.up(wait=False)
    record = records.load(first["run_id"])
    assert record is not None
    records.forget(record.run_id)

    gate.touch()
    until(lambda: workplace.up(wait=False)["status"] == "succeeded")

    rebuilt = records.load(record.run_id)
    assert rebuilt is not None
    assert (rebuilt.task, rebuilt.root, rebuilt.executor) == (record.task, record.root, record.executor)
    assert workplace.starts == 1
    lifecycle.cleanup(rebuilt, discard=True, say=workplace.said.append)
