"""Executors by type: to add one, add a module and a line to `MODULES`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from coding_agent.errors import ExecutorUnavailable

if TYPE_CHECKING:
    from coding_agent.executors.base import Executor
    from coding_agent.executors.declared import Declared, Wanted
    from coding_agent.settings import ExecutorSpec
    from coding_agent.task import Task

# Names, not modules: a type's library is only imported when the type is used.
MODULES = {
    "local": "coding_agent.executors.local",
    "container": "coding_agent.executors.container",
    "ssh": "coding_agent.executors.ssh",
    "hetzner": "coding_agent.executors.hetzner",
}
# Those that have something to declare before a run.
TARGETS = {
    "container": "coding_agent.executors.container_target",
    "ssh": "coding_agent.executors.ssh_target",
    "hetzner": "coding_agent.executors.hetzner_target",
}
# Those that one logs in to.
LOGINS = ("ssh", "hetzner")
# Those whose machines are made for a run and cost as long as they are there.
RENTED = ("hetzner",)


def connect(spec: ExecutorSpec, place: Mapping[str, Any] | None = None) -> Executor:
    """Return the live executor of `spec`; `place` is what the target was declared to be, or what it was found to be.

    Raises `ExecutorUnavailable` for another version's type, `ConnectionBroken` where the target can't be reached and
    `OnAnotherMachine` where it is not to be found from here.
    """
    executor: Executor = _module(MODULES, spec).connect(spec, place or {})
    return executor


def declare(wanted: Wanted) -> Declared:
    """Declare the target of a run. Raises what says that something is missing for it."""
    from coding_agent.executors.declared import Declared

    if wanted.spec.type not in TARGETS:
        return Declared()
    declared: Declared = _module(TARGETS, wanted.spec).declare(wanted)
    return declared


def image(spec: ExecutorSpec, task: Task) -> str | None:
    """Return what the target is made of, as far as another one makes another run; None where it is made of nothing."""
    return str(_module(TARGETS, spec).image(spec, task)) if spec.type in TARGETS else None


def reach(spec: ExecutorSpec) -> None:
    """See that what holds the executor's targets answers, and start it where that is ours to do.

    Raises `ConnectionBroken` with what to do.
    """
    if spec.type in TARGETS:
        _module(MODULES, spec).answers(spec)


def try_out(spec: ExecutorSpec) -> str:
    """Log in to a host (a type of `LOGINS`), and return who is where. Raises what keeps that from working."""
    return str(_module(MODULES, spec).try_out(spec))


def sweep(spec: ExecutorSpec, run_id: str, *, everything: bool) -> None:
    """Remove what was made for a run and is in no stack, as an engine that was killed leaves it.

    Unless `everything`, only what uses the rest of it, and so would keep that from being removed.
    """
    if spec.type in TARGETS:
        _module(MODULES, spec).sweep(spec, run_id, everything=everything)


def gives_back(spec: ExecutorSpec) -> bool:
    """Whether the executor's machine goes once its run has ended and the work is here."""
    return spec.type in RENTED and not spec.options.get("keep")


def give_back(spec: ExecutorSpec, run_id: str) -> None:
    """Remove the machine of a run that has ended, so that it costs no more. Raises what keeps it from that."""
    _module(MODULES, spec).give_back(run_id)


def shared(spec: ExecutorSpec) -> bool:
    """Whether the executor is the same place from whichever machine it is used; this one is another on each."""
    engine = str(spec.options.get("docker_host") or "")
    return spec.type in LOGINS or (spec.type == "container" and bool(engine) and not engine.startswith("unix:"))


def environment(specs: Iterable[ExecutorSpec]) -> dict[str, str]:
    """Return what the engine's plugins need in their environment for these executors; it is in no input or state.

    Raises what says that it can't be had.
    """
    found: dict[str, str] = {}
    for spec in specs:
        if spec.type in RENTED:
            found |= _module(MODULES, spec).environment()
    return found


def unenforced(spec: ExecutorSpec, task: Task) -> tuple[str, ...]:
    """Say which limits of the task its executor can't hold, and which it holds otherwise than one might think."""
    from coding_agent.executors import gpus

    said: tuple[str, ...] = _module(MODULES, spec).unenforced(task, spec)
    return (*said, *gpus.unshared(spec, task))


def _module(registry: Mapping[str, str], spec: ExecutorSpec) -> Any:
    if spec.type not in registry:
        raise ExecutorUnavailable(
            f"executor {spec.name}: this version knows no type {spec.type}",
            next_step="use the version of coding-agent that the run was started with",
        )
    return importlib.import_module(registry[spec.type])
