"""An agent that writes into its own run's folder can end its supervisor, but neither escape `kill` nor harm others."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from coding_agent.run import State
from costs import bytes_read
from processes import arguments_of, processes_with_text
from runs import INIT, STAY, Target, alive, say
from waiting import until

HERE = "echo $$ > pid\n"
# Bytes that ending a run and removing it read. A look through all processes reads some 100 KB; of a stream or of
# parameters without an end only the beginning is read, some hundred bytes at a time.
READ, READ_OF_ENDLESS = 50_000_000, 1_000_000_000


def _assert_killed_and_removed(target: Target, most: int = READ) -> None:
    agent, before = target.pid("pid"), bytes_read()
    target.executor.kill(target.id(), wait=1)
    assert not alive(agent)
    look = target.look()
    assert look.state is not None
    assert look.state.final
    target.executor.cleanup(target.id(), grace=1)
    assert bytes_read() - before < most
    assert not target.folder().exists()


# What a run's folder can be made of while its supervisor lives.
ATTACKS = {
    "endless_stream": "truncate -s 4T ../stream.jsonl",
    "stream_is_a_pipe": "rm ../stream.jsonl; mkfifo ../stream.jsonl",
    "lock_is_another_file": "rm ../.lock; touch ../.lock",
    "locks_are_gone": "rm ../.lock ../.lock.agent",
    "locks_are_pipes": "rm ../.lock ../.lock.agent; mkfifo ../.lock ../.lock.agent",
    "locks_are_folders": "rm ../.lock ../.lock.agent; mkdir ../.lock ../.lock.agent",
    "state_is_a_pipe": "rm ../.meta.json; mkfifo ../.meta.json",
    "state_is_a_folder": "rm ../.meta.json; mkdir -p ../.meta.json/x",
    "parameters_are_a_pipe": "rm ../params; mkfifo ../params",
    "parameters_are_endless": "truncate -s 4T ../params",
    "poke_is_a_file": "rm ../.poke; touch ../.poke",
    "all_is_gone": "rm -rf ../.[a-z]* ../*.* ../params ../environment ../argv",
    "unwritable": "chmod 500 ..",
}


@pytest.mark.parametrize("supervisor", ["lives", "is_stopped", "is_dead"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_whatever_the_folder_is_made_of_the_run_can_be_ended(target: Target, attack: str, supervisor: str) -> None:
    """Whatever the agent makes of its folder, and of its supervisor, a few looks end the run and remove it."""
    target.start(f"{say(INIT)}{ATTACKS[attack]}\n{HERE}{STAY}", heartbeat=1)
    supervised = target.meta()["supervisor"] if attack not in ("state_is_a_pipe", "state_is_a_folder") else 0
    agent = target.pid("pid")
    if supervisor != "lives":
        supervised = supervised or _supervisor(target)
        os.kill(supervised, signal.SIGSTOP if supervisor == "is_stopped" else signal.SIGKILL)
    assert target.look().state in (State.RUNNING, State.STARTING, State.UNRESPONSIVE, State.LOST)
    assert alive(agent)

    _assert_killed_and_removed(target, READ_OF_ENDLESS if "endless" in attack else READ)


def _supervisor(target: Target) -> int:
    """Return the supervisor's pid, from its arguments."""
    for pid in processes_with_text(str(target.folder())):
        if any(word.endswith("supervise.sh") for word in arguments_of(pid)):
            return pid
    raise AssertionError("no supervisor")


def test_a_run_whose_lock_was_replaced_is_not_lost(target: Target) -> None:
    """While its supervisor lives a run is not lost, whatever lies where its lock was."""
    target.start(f"{say(INIT)}rm ../.lock ../.lock.agent; touch ../.lock ../.lock.agent\n{HERE}{STAY}")
    target.pid("pid")

    assert target.look().state is State.RUNNING


def test_parameters_of_the_agents_own_run_nothing(target: Target, tmp_path: Path) -> None:
    """Programs that an agent hides in its run's parameters are not run when its dead supervisor is stood in for."""
    marker = tmp_path / "evil"
    evil = f"a[$(touch {marker})]"
    names = ("timeout", "created", "grace", "max_turns", "memory", "heartbeat", "tick")
    forge = "; ".join(f"printf '{name}=%s\\0' '{evil}' >> ../params" for name in names)
    meta = f'{{"run_id":"{target.id()}","created_at":{evil},"started_at":{evil},"pid":{evil},"final":false}}'
    target.start(f"{say(INIT)}{forge}\nkill -9 $PPID\nprintf %s '{meta}' > ../.meta.json\n{HERE}{STAY}")

    _assert_killed_and_removed(target)
    assert not marker.exists()


def test_words_for_the_supervisor_make_no_reason(target: Target) -> None:
    """What an agent says to its supervisor in its controller's place ends its run at most, with a reason of ours."""
    word = "stop \\033]0;evil\\007 because I say so"
    target.start(f"{say(INIT)}printf 'timeout 99999999999\\nfoo\\n{word}\\n' 1<>../.poke\n{HERE}{STAY}")

    look = target.ended()

    assert (look.state, look.reason) == (State.FAILED, "unknown")


def test_a_supervisor_that_has_said_nothing_for_long_is_replaced_at_once(target: Target) -> None:
    """A supervisor that is stuck is not waited for: its heartbeat tells."""
    target.start(f"{say(INIT)}{HERE}{STAY}", heartbeat=3600)
    target.pid("pid")
    until(lambda: target.meta()["first_event_at"])  # after it, the heartbeat alone would have it written again
    meta = target.folder() / ".meta.json"
    meta.write_text(re.sub(r'"heartbeat":\d+', '"heartbeat":1700000000', meta.read_text()))
    supervisor = _supervisor(target)

    target.executor.kill(target.id(), wait=30)

    look = target.look()
    assert (look.state, look.meta and look.meta.notices) == (State.KILLED, ())
    assert target.meta()["supervisor"] != supervisor


def test_nothing_is_written_into_what_is_put_in_the_folders_place(target: Target, tmp_path: Path) -> None:
    """A supervisor whose folder was moved, with a link to another one in its place, writes nothing there."""
    other = tmp_path / "private"
    other.mkdir()
    # Two heartbeats pass before the agent says so.
    swap = f"cd ../..; mv $CODING_AGENT_RUN_ID moved; ln -s {other} $CODING_AGENT_RUN_ID\n"
    target.start(f"{say(INIT)}{swap}sleep 2.5; touch {other}/said\n{STAY}", heartbeat=1)

    until((other / "said").exists)

    assert [each.name for each in other.iterdir()] == ["said"]
    target.executor.kill(target.id(), wait=1)
    assert [each.name for each in other.iterdir()] == ["said"]
    target.executor.cleanup(target.id(), grace=1)
    assert (other / "said").exists()
