"""The queue's database: away, renewed, shared by machines, and never a reason to run something twice."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from coding_agent.work_queue import database
from fakes.scenarios import scenario
from machines.postgres import Postgres, postgres
from processes import end_processes_of, processes_with_text
from queues import HOLD, all_are, all_ended, entries, local_executors, most_at_once, noted, state, working
from user import User
from waiting import until

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def team(user: User, server: Postgres) -> User:
    """Return a user whose queue is in a Postgres that is not his alone; it is empty."""
    with psycopg.connect(server.url) as connection:
        connection.execute("DROP SCHEMA IF EXISTS coding_agent CASCADE")
    return dataclasses.replace(user, environment={**user.environment, database.URL: server.url})


def test_two_machines_and_one_queue(crib: User, server: Postgres, tmp_path: Path) -> None:
    """A task that one machine dispatched is seen, followed and killed from another that shares the database."""
    with psycopg.connect(server.url) as connection:
        connection.execute("DROP SCHEMA IF EXISTS coding_agent CASCADE")
    here = dataclasses.replace(crib, environment={**crib.environment, database.URL: server.url})
    there = here.elsewhere(tmp_path / "other-home")
    here.job(command="echo begun; sleep 600", executor="crib")
    try:
        with working(here):
            here.cli("dispatch", "job")
            until(lambda: state(there, "job") == "running")
            outputs = there.outputs("job")
            assert (outputs["status"], outputs["executor"]) == ("running", "crib")
            log = tmp_path / "followed"
            follower = there.start("logs", "-f", "job", into=log)
            until(lambda: "begun" in log.read_text())
            there.cli("kill", "job")
            assert follower.wait(timeout=60) == 0
            until(lambda: state(here, "job") == "killed")
        assert here.outputs("job")["status"] == there.outputs("job")["status"] == "killed"
        here.cli("destroy", "job")
        assert entries(there) == {}
    finally:
        end_processes_of(there.home)


def test_a_machine_that_is_gone(crib: User, server: Postgres, tmp_path: Path) -> None:
    """Machines that share the engine's backend as well take over each other's tasks: the worker of one is killed, and
    that of the other ends its run as it should, which ran once."""
    with psycopg.connect(server.url) as connection:
        connection.execute("DROP SCHEMA IF EXISTS coding_agent CASCADE")
    shared = {
        database.URL: server.url,
        "PULUMI_BACKEND_URL": server.url.replace("postgresql:", "postgres:") + "?sslmode=disable",
        "PULUMI_CONFIG_PASSPHRASE": "of both",
    }
    here = dataclasses.replace(crib, environment={**crib.environment, **shared})
    there = here.elsewhere(tmp_path / "other-home")
    work = "echo once; sleep 600"
    try:
        with working(here) as first:
            code = f"from coding_agent import dispatch; dispatch(command={work!r}, name='job', executor='crib')"
            here.run("python3", "-c", code)
            until(lambda: state(here, "job") == "running")
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
        with working(there):
            until(lambda: "attends to it" in there.cli("why", "job").stdout)
            assert there.outputs("job")["status"] == "running"
            there.cli("kill", "job")
            until(lambda: state(there, "job") == "killed")
            assert there.cli("logs", "job").stdout == "once\n"
            there.cli("destroy", "job")
        assert entries(here) == {}
        stacks = there.run("pulumi", "stack", "ls", "--all", "--json").stdout
        assert json.loads(stacks) == []
    finally:
        end_processes_of(there.home)


def test_a_database_that_is_away(team: User, server: Postgres) -> None:
    """While the database is away agents go on, what is asked of the queue fails with a sentence, and afterwards the
    workers go on: each task ends as it did, and ran once."""
    local_executors(team, a=2)
    team.job("ends", command=f"{HOLD.format(team.home)}; echo ends >>$LOG", executor="a")
    team.job("agent", prompt=scenario("gate"), executor="a")
    team.job("waits", command="echo waits >>$LOG", executor="a")
    with working(team):
        team.cli("dispatch", "ends", "agent", "waits")
        team.api.wait_for_turns(1)
        until(lambda: all_are(team, "running", "ends", "agent"))
        server.stop("immediate")
        try:
            said = team.cli("list", "--queue", code=3).stderr
            assert "the queue's database does not answer" in said
            assert server.password not in said
            (team.home / "go").touch()
            team.api.open_gate()
            until(lambda: "ends" in (team.home / "log").read_text() if (team.home / "log").exists() else False)
        finally:
            server.start()
        until(lambda: all_ended(team, 3), limit=120)
    said = (team.home / "worker.log").read_text()
    assert said.count("the agents go on, trying again") == said.count("answers again") == 1
    assert {each["state"] for each in entries(team).values()} == {"succeeded"}
    assert sorted((team.home / "log").read_text().split()) == ["ends", "waits"]
    assert len(team.api.prompts()) == 1


def test_a_newer_schema_is_refused(team: User, server: Postgres) -> None:
    """A worker and a command that are older than the queue's schema say so and do nothing; a worker at work ends."""
    team.job(command="true")
    with psycopg.connect(server.url, autocommit=True) as connection, working(team) as process:
        team.cli("list", "--queue")
        connection.execute("UPDATE coding_agent.version SET number = number + 1")
        connection.execute("NOTIFY coding_agent")
        assert process.wait(timeout=60) == 3
        for argv in (("list", "--queue"), ("worker",), ("dispatch", "job")):
            assert "by a newer version of coding-agent" in team.cli(*argv, code=3).stderr


def test_where_no_database_is(user: User) -> None:
    """A database that is not there is said, with how to go on; a password of its address is not."""
    user.job(command="true")
    nowhere = {database.URL: "postgresql://me:secret-word@127.0.0.1:1/none"}
    for argv in (("dispatch", "job"), ("list", "--queue"), ("worker",), ("why", "job")):
        done = user.cli(*argv, code=3, **nowhere)
        assert "the queue's database does not answer" in done.stderr
        assert database.URL in done.stderr
        assert "secret-word" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("tasks", "sizes"),
    [
        pytest.param(11, {"a": 1, "b": 2}, id="few"),
        pytest.param(80, {"a": 1, "b": 2, "c": 3, "d": 4}, id="many", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(3600)
def test_nothing_is_lost_or_done_twice(team: User, server: Postgres, tasks: int, sizes: dict[str, int]) -> None:
    """Tasks over several executors, three workers of which one is killed every few seconds and replaced, the database
    restarted once: each ends once as succeeded, each command and each agent ran once, no executor had more at once than
    its slots, and nothing is left."""
    local_executors(team, **sizes)
    ended, chooser = threading.Event(), random.Random(7)
    workers = [team.start("worker", into=team.home / f"worker{number}.log") for number in range(3)]

    def trouble() -> None:
        for turn in range(10_000):
            if ended.wait(4 if tasks < 50 else 6):
                return
            number = chooser.randrange(3)
            os.kill(workers[number].pid, signal.SIGKILL)
            workers[number].wait()
            workers[number] = team.start("worker", into=team.home / f"worker{number}-{turn}.log")
            if turn == 1:
                server.stop("fast")
                server.start()

    thread = threading.Thread(target=trouble)
    thread.start()
    try:
        lines = "\n".join(
            f"dispatch(prompt={scenario('text', text=f't{n}')!r}, labels={{'any'}}, name='t{n}')"
            if n % 10 == 0
            else f"dispatch(command={noted(f'echo t{n} >>$LOG.ran; sleep 0.3')!r}, labels={{'any'}}, name='t{n}')"
            for n in range(tasks)
        )
        team.run("python3", "-c", f"from coding_agent import dispatch\n{lines}")
        until(lambda: all_ended(team, tasks), limit=2400)
    finally:
        ended.set()
        thread.join()
        found = entries(team)
        _remove_all(team)
        for worker in workers:
            worker.terminate()
            worker.wait(timeout=60)
    assert {each["state"] for each in found.values()} == {"succeeded"}
    ran = (team.home / "log.ran").read_text().split()
    assert sorted(ran) == sorted(f"t{n}" for n in range(tasks) if n % 10)
    assert len(team.api.prompts()) == len(range(0, tasks, 10))
    assert all(most <= sizes[name] for name, most in most_at_once(team.home / "log").items())
    assert not list((team.home / ".coding-agent" / "runs").glob("*"))
    assert not [each for each in found.values() if processes_with_text(f"CODING_AGENT_RUN_ID={each['run_id']}")]


def _remove_all(user: User) -> None:
    code = (
        "from coding_agent.work_queue import database; from coding_agent.work_queue.queue import Queue\n"
        "with database.opened() as found:\n"
        "    queue = Queue(found)\n"
        "    for each in queue.entries(ended=True): queue.end(each.id, destroy=True)"
    )
    user.run("python3", "-c", code)
    until(lambda: not entries(user), limit=2000)
