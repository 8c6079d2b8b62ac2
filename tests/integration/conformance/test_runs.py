"""What an Executor has to do with runs, whatever its Connection is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from coding_agent.run import State
from coding_agent.supervisor import SCRIPTS
from places import Place
from processes import processes_with_text
from waiting import until

# How a process tries to get away from its run; it writes its pid into a file that is called as it is here.
ESCAPES = {
    "plain": "sleep 987 & echo $! >plain",
    "nohup": "nohup sleep 987 >/dev/null 2>&1 & echo $! >nohup",
    "setsid": "setsid bash -c 'echo $$ >setsid; exec sleep 987' &",
    "double-fork": "( ( sleep 987 & echo $! >double-fork ) & )",
    "without-environment": "( env -i setsid bash -c 'echo $$ >without-environment; exec sleep 987' & )",
    "stubborn": "bash -c 'trap : TERM HUP INT; echo $$ >stubborn; while :; do sleep 987; done' &",
}


def test_start_twice_is_once(place: Place) -> None:
    """However often and from wherever a run is started at once, its command runs once."""
    launch = place.launch('echo started >>"$HOME/starts.$CODING_AGENT_RUN_ID"; sleep 1')
    place.executor.status(place.id())  # what has to be brought along is there
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: place.executor.start(launch), range(4))) == [place.id()] * 4
    assert place.ended().state is State.SUCCEEDED
    place.executor.start(launch)
    assert place.bash('cat "$1"', f"{place.folder}/starts.{place.id()}") == "started"


def test_status_of_a_run_that_never_was(place: Place) -> None:
    """A run that was never started is no run, not one that was lost."""
    assert place.look().state is None


def test_status_while_it_runs(place: Place) -> None:
    """A run that goes on says so, with what its processes use."""
    place.start("echo here >here; sleep 60")
    place.says("here")
    look = place.executor.status(place.id(), usage=True)
    assert look.state is State.RUNNING
    assert look.processes >= 2
    assert look.resident > 1_000_000


def test_status_of_an_ended_run(place: Place) -> None:
    """A run that has ended says how."""
    place.start("true", "a")
    place.start("exit 9", "b")
    for which, state, code in (("a", State.SUCCEEDED, 0), ("b", State.FAILED, 9)):
        look = place.ended(which)
        assert look.state is state
        assert look.meta is not None
        assert look.meta.exit_code == code


def test_resumed_once_in_what_it_has_left(place: Place) -> None:
    """A run that has ended goes on in its workspace, once for each attempt, whoever else tries; its output goes on."""
    again = replace(place.launch("echo two >>made; cat made; sleep 1"), params=_attempt(place, 2))
    place.start("echo one >made; cat made")
    place.ended()
    before = place.bash('cat "$1"/work.patch 2>/dev/null || :', place.executor.run_dir(place.id()))
    with ThreadPoolExecutor(3) as pool:
        stands = sorted(pool.map(lambda _: place.executor.resume(again, attempt=2), range(3)))
    assert stands == ["adopted", "adopted", "started"]
    look = place.ended()
    assert look.meta is not None
    assert (look.state, look.meta.attempt) == (State.SUCCEEDED, 2)
    assert place.executor.resume(again, attempt=2) == "ended"
    assert place.executor.fetch_logs(place.id()) == ["one", "one", "two"]
    patch = place.bash('cat "$1"/work.patch 2>/dev/null || :', place.executor.run_dir(place.id()))
    assert ("+two" in patch and "+one" in patch) == bool(before)
    # What goes on or is not there has nothing to go on with.
    place.start("sleep 60", "b")
    other = replace(place.launch("true", "b"), params=_attempt(place, 2))
    assert place.executor.resume(other, attempt=2) == "adopted"
    nothing = replace(place.launch("true", "c"), params=_attempt(place, 2))
    assert place.executor.resume(nothing, attempt=2) == "gone"
    assert place.look("c").state is None


def _attempt(place: Place, number: int) -> dict[str, str]:
    return {**place.launch("true").params, "attempt": str(number)}


def test_killed(place: Place) -> None:
    """A run that is killed ends as killed; killing it again changes nothing."""
    place.start("echo here >here; sleep 60")
    place.says("here")
    place.executor.kill(place.id())
    look = place.look()
    assert (look.state, look.reason) == (State.KILLED, "killed")
    place.executor.kill(place.id())
    assert place.look().meta == look.meta


def test_kill_ends_the_whole_tree(place: Place) -> None:
    """What a run has started ends with it, however it tried to get away."""
    place.start("\n".join([*ESCAPES.values(), "sleep 60"]))
    pids = [place.says(each) for each in ESCAPES]
    assert _living(place, pids) == pids
    place.executor.kill(place.id())
    until(lambda: _living(place, pids) == [])


def _living(place: Place, pids: list[str]) -> list[str]:
    """Return those of the processes that go on."""
    script = 'for pid; do grep -sq "^State:.[^ZX]" "/proc/$pid/status" && echo "$pid"; done; :'
    return place.bash(script, *pids).split()


def test_what_a_run_leaves_behind_ends_with_it(place: Place) -> None:
    """A run that ends by itself leaves no process either."""
    place.start(ESCAPES["without-environment"] + "\nuntil [[ -s without-environment ]]; do sleep 0.02; done")
    assert place.ended().state is State.SUCCEEDED
    pid = place.says("without-environment")
    until(lambda: _living(place, [pid]) == [])


def test_cleanup_twice(place: Place) -> None:
    """Cleaning up ends a run and removes its folder; there is nothing to do the second time, and that is no error."""
    place.start("echo here >here; sleep 60")
    place.says("here")
    place.executor.cleanup(place.id(), grace=1)
    assert place.look().state is None
    assert processes_with_text(place.id()) == []
    place.executor.cleanup(place.id(), grace=1)
    assert place.bash("[[ -e $1 ]] && echo there || echo gone", place.executor.run_dir(place.id())) == "gone"


def test_secrets_are_in_the_environment_of_the_agent_alone(place: Place) -> None:
    """A secret reaches the run's command and is in no file of the run, no argument and no other process."""
    value = f"canary-{place.token}"
    place.start("[[ $TOKEN == canary-* ]] && echo yes >seen; sleep 60", secret={"TOKEN": value})
    assert place.says("seen") == "yes"
    with_it = processes_with_text(value)
    of_run = processes_with_text(f"CODING_AGENT_RUN_ID={place.id()}")
    assert with_it
    assert set(with_it) <= set(of_run)
    found = place.bash('grep -rlsaF -- "$1" "$2" || :', value, place.executor.root)
    assert found == ""


def test_two_runs_side_by_side(two_places: tuple[Place, Place]) -> None:
    """Of two runs at once each ends alone, and the other goes on."""
    one, other = two_places
    one.start("echo here >here; sleep 60", "a")
    other.start("echo here >here; sleep 60", "b")
    one.says("here", "a")
    other.says("here", "b")
    one.executor.kill(one.id("a"))
    assert one.look("a").state is State.KILLED
    assert other.look("b").state is State.RUNNING
    other.executor.kill(other.id("b"))
    assert other.look("b").state is State.KILLED
    assert one.look("a").state is State.KILLED


def test_last_lines_of_the_log(place: Place) -> None:
    """The last lines that a run has said are fetched, as they are."""
    place.start('for i in {1..30}; do echo "line $i"; done')
    place.ended()
    assert place.executor.fetch_logs(place.id(), 3) == ["line 28", "line 29", "line 30"]


def test_nothing_is_left(place: Place) -> None:
    """After the last run was cleaned up, nothing of the runs is left: no folder, no script, no process."""
    place.start("true", "a")
    place.start("true", "b")
    for which in ("a", "b"):
        place.ended(which)
        place.executor.cleanup(place.id(which))
    assert place.bash('ls -A "$1" 2>/dev/null || :', place.executor.root) == ""
    assert processes_with_text(place.id()) == []


def test_jumps_of_the_clock_end_nothing(place: Place) -> None:
    """A run is neither idle nor out of time because its machine's clock was set, either way, or the machine slept."""
    scripts = f"{place.folder}/scripts"
    place.bash('mkdir -p "$1"', scripts)
    for file in SCRIPTS.glob("*.sh"):
        place.executor.connection.put(f"{scripts}/{file.name}", file)
    script = (
        f"clock() {{\n  local step=0\n  [[ -s {scripts}/step ]] && read -r step <{scripts}/step\n"
        "  NOW_EXACT=$EPOCHREALTIME\n  NOW=$((${NOW_EXACT%.*} + step))\n  NOW_EXACT=$NOW.${NOW_EXACT#*.}\n}\n"
    )
    common = (SCRIPTS / "common.sh").read_text() + script
    place.executor.connection.put(f"{scripts}/common.sh", common.encode())
    place.executor.scripts = scripts
    place.start("echo here >here; until [[ -e go ]]; do sleep 0.05; done")
    place.says("here")
    meta = place.look().meta
    assert meta is not None

    for step in (3600, -3600):
        place.executor.connection.put(f"{scripts}/step", f"{step}\n".encode())
        _await_jump(place, meta.heartbeat, step)
    place.executor.connection.put(f"{place.executor.run_dir(place.id())}/workspace/go", b"")
    assert place.ended().state is State.SUCCEEDED


def _await_jump(place: Place, since: float, step: int) -> None:
    """Wait until a run's sign of life is of a time that the clock was set to."""
    until(lambda: (meta := place.look().meta) is not None and (meta.heartbeat - since) / step > 0.8)
