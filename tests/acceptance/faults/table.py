"""The table of faults: what is broken, at which moment of a run, on which executor, and what has to come of it.

A row says what an outsider does. Whatever it is, these hold for each: a repeated `up` comes to a final state and no
traceback, the model was asked by one agent at most (by as many as `agents` says where a loss is replaced), what the
agent had committed is in the user's repository unless `kept` is false, and after `destroy` nothing is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MOMENTS = {
    "target": "while what the run needs is being made",
    "start": "while the agent is being started",
    "run": "while the agent works",
    "collect": "while its work is being brought back",
    "destroy": "while everything is being removed",
}
FAULTS = {
    "kill engine": "kill -9 of every `pulumi`",
    "kill cli": "kill -9 of `coding-agent`",
    "kill plugin": "kill -9 of the provider's process",
    "kill docker plugin": "kill -9 of the engine's plugin for containers",
    "kill command plugin": "kill -9 of the engine's plugin for hosts",
    "kill supervisor": "kill -9 of the supervisor",
    "kill agent": "kill -9 of Claude Code",
    "restart dockerd": "dockerd is stopped in order, and started again",
    "kill dockerd": "kill -9 of dockerd, which is started again",
    "stop dockerd": "dockerd is stopped, and started again when everything has given up",
    "remove container": "docker rm -f",
    "pause container": "docker pause, and unpause when everything has given up",
    "restart container": "docker restart",
    "cut connection": "everything between here and the host breaks off, and can be built up anew at once",
    "freeze connection": "nothing passes between here and the host, until everything has given up",
    "kill sshd": "kill -9 of sshd and what it has begun for each connection; it is started again",
    "restart host": "the host goes down and comes up",
    "remove host": "the host is gone for good",
    "delete server": "the server is deleted in the cloud",
    "restart server": "the server boots anew",
    "api down": "nobody can connect to the cloud's API, until everything has given up",
    "api fails": "the cloud's API refuses with 503, and with 429 before that",
    "api slow": "the cloud's API takes long for each answer",
    "disk full there": "the disk with the run's folder is full",
    "disk full here": "the disk with the records is full, and has room again later",
    "truncate meta": "the run's state is cut off in the middle",
    "truncate record": "the record of the run is cut off in the middle",
    "truncate state": "the stack's state is cut off in the middle; the engine keeps a copy beside it",
    "stack lock": "a lock of a process that is no more lies on the stack",
}
SUCCEEDED, LOST, FAILED = ("succeeded",), ("lost",), ("failed",)
ANY = ("succeeded", "failed", "killed", "lost")


@dataclass(frozen=True)
class Row:
    """One fault at one moment on one executor."""

    executor: str
    moment: str
    fault: str
    status: tuple[str, ...] = SUCCEEDED  # what the run may come to
    agents: int = 1  # how often the task may have been begun by an agent
    kept: bool = True  # what was committed before is in the user's repository

    @property
    def id(self) -> str:
        """How the row is called."""
        return f"{self.executor}-{self.moment}-{self.fault.replace(' ', '_')}"


def _rows() -> Iterator[Row]:
    for executor in ("local", "container"):
        for moment in ("target", "start", "run", "collect"):
            yield Row(executor, moment, "kill engine")
        for moment in ("target", "start"):
            yield Row(executor, moment, "kill cli")
        yield Row(executor, "start", "kill plugin")
        yield Row(executor, "destroy", "kill engine", ANY)
        yield Row(executor, "destroy", "kill cli", ANY)
        yield Row(executor, "run", "kill supervisor", LOST)
        yield Row(executor, "run", "kill agent", FAILED)
        yield Row(executor, "run", "disk full there", ("succeeded", "failed"), kept=False)
        yield Row(executor, "run", "truncate meta")
    # What happens on this machine alone is the same for every executor.
    for moment in ("run", "collect"):
        yield Row("local", moment, "kill cli")
    yield Row("local", "run", "kill plugin")
    for moment in ("run", "destroy"):
        yield Row("local", moment, "stack lock")
    yield Row("local", "collect", "disk full here")
    yield Row("local", "run", "truncate record", ANY)
    yield Row("local", "run", "truncate state")
    yield Row("container", "target", "kill docker plugin")
    yield Row("container", "destroy", "kill docker plugin", ANY)
    yield Row("container", "destroy", "remove container", ANY)
    yield Row("container", "destroy", "restart dockerd", ANY)
    for fault in ("restart dockerd", "kill dockerd", "stop dockerd", "restart container"):
        yield Row("container", "run", fault, LOST)
    for fault in ("remove container",):
        yield Row("container", "run", fault, LOST)
        yield Row("container", "collect", fault, ("succeeded", "lost"))
    yield Row("container", "run", "pause container")
    yield Row("container", "collect", "restart dockerd", ("succeeded", "lost"))
    yield from _rows_of_hosts()
    yield from _rows_of_servers()


def _rows_of_hosts() -> Iterator[Row]:
    for moment in ("target", "start", "run", "collect"):
        yield Row("ssh", moment, "cut connection")
    yield Row("ssh", "destroy", "cut connection", ANY)
    # While an agent works: `test_ssh_faults.py`.
    yield Row("ssh", "start", "freeze connection")
    yield Row("ssh", "destroy", "freeze connection", ANY)
    yield Row("ssh", "run", "kill sshd")
    yield Row("ssh", "run", "restart host", LOST)
    yield Row("ssh", "collect", "restart host", ("succeeded", "lost"))
    yield Row("ssh", "destroy", "remove host", ANY)
    yield Row("ssh", "run", "disk full there", ("succeeded", "failed"), kept=False)
    yield Row("ssh", "run", "kill supervisor", LOST)
    yield Row("ssh", "run", "kill agent", FAILED)
    yield Row("ssh", "run", "truncate meta")
    yield Row("ssh", "target", "kill command plugin")
    yield Row("ssh", "destroy", "kill command plugin", ANY)
    yield Row("ssh", "target", "kill engine")
    yield Row("ssh", "target", "kill cli")
    yield Row("ssh", "start", "kill plugin")
    yield Row("ssh", "destroy", "kill engine", ANY)


def _rows_of_servers() -> Iterator[Row]:
    yield Row("hetzner", "target", "delete server", agents=1)
    yield Row("hetzner", "run", "delete server", LOST, kept=False)
    yield Row("hetzner", "collect", "delete server", ("succeeded", "lost"), kept=False)
    yield Row("hetzner", "destroy", "delete server", ANY)
    yield Row("hetzner", "run", "restart server", LOST)
    for moment in ("target", "run", "collect"):
        yield Row("hetzner", moment, "api down")
    yield Row("hetzner", "destroy", "api down", ANY)
    yield Row("hetzner", "target", "api fails")
    yield Row("hetzner", "destroy", "api fails", ANY)
    yield Row("hetzner", "target", "api slow")
    yield Row("hetzner", "collect", "kill engine")
    yield Row("hetzner", "destroy", "kill engine", ANY)


TABLE = tuple(_rows())
