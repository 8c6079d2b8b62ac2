"""The executors file -> executors, defaults, and the names of secret sources. Reading it runs nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from coding_agent import paths
from coding_agent.errors import NotFound

if TYPE_CHECKING:
    from coding_agent.document import Document, FieldPath
    from coding_agent.task import Task

BUILT_IN = "local"
INLINE = "inline"  # the name of an executor that is written out in a task file
_OF_EVERY_TYPE = ("name", "type", "labels", "claude_path")


@dataclass(frozen=True)
class ExecutorSpec:
    """A place where tasks can run, as it was written down."""

    name: str
    type: str  # local, container, ssh, hetzner
    labels: tuple[str, ...] = ()
    claude_path: str | None = None  # on the executor; ~ not expanded
    options: Mapping[str, Any] = field(default_factory=dict)  # what only this type has

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> ExecutorSpec:
        """Return the executor that `dataclasses.asdict` made `plain` of; what says nothing may be missing there."""
        return cls(
            name=plain["name"],
            type=plain["type"],
            labels=tuple(plain.get("labels") or ()),
            claude_path=plain.get("claude_path"),
            options=dict(plain.get("options") or {}),
        )


@dataclass(frozen=True)
class SecretSource:
    """Where the value of a secret comes from."""

    kind: Literal["env", "file", "command"]
    value: str | tuple[str, ...]  # a variable, a path, or an argv


@dataclass(frozen=True)
class Defaults:
    """What holds for tasks that don't say."""

    executor: str | None = None
    agent: Mapping[str, Any] = field(default_factory=dict)  # arguments for task.Agent
    limits: Mapping[str, Any] = field(default_factory=dict)  # arguments for task.Limits
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What the user's own file says."""

    path: Path | None = None  # None: there is no file, everything is built in
    executors: tuple[ExecutorSpec, ...] = (ExecutorSpec(BUILT_IN, "local"),)
    defaults: Defaults = field(default_factory=Defaults)
    secrets: Mapping[str, SecretSource] = field(default_factory=dict)
    allow_inline: frozenset[str] = frozenset()  # what executors in task files may do

    @classmethod
    def load(cls, path: Path | None = None) -> Settings:
        """Read the file (default: the user's; without one, what is built in). Raises `InvalidFile`."""
        file = path or paths.config_file()
        # A file that was asked for by name has to exist.
        if path is None and not os.environ.get("CODING_AGENT_CONFIG") and not file.exists():
            return cls()
        from coding_agent import document

        found = document.load(file)
        settings = read(found)
        found.check()
        return settings

    def executor(self, name: str) -> ExecutorSpec:
        """Return the executor of that name. Raises `NotFound` with the nearest one."""
        for each in self.executors:
            if each.name == name:
                return each
        raise NotFound(f"there is no executor {name!r}", next_step=self._advice(name))

    def choose(self, task: Task) -> ExecutorSpec:
        """Return where a task runs: on what it names, else on the first that carries its labels, else on the default.

        Raises `NotFound`.
        """
        if isinstance(task.executor, ExecutorSpec):
            return task.executor
        if task.executor is not None:
            return self.executor(task.executor)
        if not task.labels:
            return self.executor(self.usual)
        found = self.carrying(task.labels, task.limits.gpus or 0)
        if found is None:
            raise NotFound(
                f"no executor carries all of {', '.join(task.labels)}",
                next_step=f"name one with `executor:`, or give one these labels in {self.path or paths.config_file()}",
            )
        return found

    @property
    def usual(self) -> str:
        """The name of the executor of a task that says nothing about it."""
        return self.defaults.executor or BUILT_IN

    def carrying(self, labels: Iterable[str], gpus: int = 0) -> ExecutorSpec | None:
        """Return the first executor that carries all labels and has so many GPUs."""
        from coding_agent.executors.gpus import refusal

        wanted = set(labels)
        return next((each for each in self.executors if wanted <= set(each.labels) and not refusal(each, gpus)), None)

    def _advice(self, name: str) -> str:
        from coding_agent.schema import nearest

        return nearest(name, [each.name for each in self.executors])


def read(document: Document) -> Settings:
    """Return what an executors file says; what is wrong with it is reported in the document."""
    from coding_agent import schema

    schema.check(document, schema.EXECUTORS)
    data = document.data
    executors = _executors(document, data)
    return Settings(
        path=document.path,
        executors=executors,
        defaults=_defaults(document, data, {each.name for each in executors}),
        secrets=_secrets(document, data),
        allow_inline=frozenset(data.get("allow_inline", ())) if document.usable(("allow_inline",)) else frozenset(),
    )


def spec(values: Mapping[str, Any], *, name: str = INLINE) -> ExecutorSpec:
    """Return an executor of a mapping that the schema allows."""
    return ExecutorSpec(
        name=values.get("name", name),
        type=values["type"],
        labels=tuple(values.get("labels", ())),
        claude_path=values.get("claude_path"),
        options={key: value for key, value in values.items() if key not in _OF_EVERY_TYPE},
    )


def _executors(document: Document, data: Mapping[str, Any]) -> tuple[ExecutorSpec, ...]:
    from coding_agent.agent_settings import read_environment
    from coding_agent.container_options import contradictions

    listed = data.get("executors", []) if document.sound(("executors",)) else []
    found: dict[str, ExecutorSpec] = {}
    for number, values in enumerate(listed):
        path: FieldPath = ("executors", number)
        if isinstance(values, dict) and isinstance(name := values.get("name"), str):
            if name in found:
                line = document.places[("executors", [*found].index(name), "name")][0]
                document.report((*path, "name"), f"the name {name} is taken, on line {line}; choose another")
                continue
            if name == BUILT_IN and values.get("type") not in ("local", None):
                document.report((*path, "name"), "local is the name of this machine; choose another, or `type: local`")
            found[name] = ExecutorSpec(name, "local")  # known by name, whatever else is wrong with it
            if document.usable(path):
                found[name] = spec(values)
        if isinstance(values, dict) and document.sound((*path, "type")):
            sound = {name: each for name, each in values.items() if document.usable((*path, name))}
            for place, message in contradictions(sound):
                document.report((*path, *place), message)
        if isinstance(values, dict) and isinstance(environment := values.get("env"), dict):
            read_environment(document, (*path, "env"), environment)
    found.setdefault(BUILT_IN, ExecutorSpec(BUILT_IN, "local"))
    return tuple(found.values())


def _defaults(document: Document, data: Mapping[str, Any], names: set[str]) -> Defaults:
    from coding_agent.agent_settings import read_agent, read_environment, read_limits
    from coding_agent.document import quoted
    from coding_agent.schema import nearest

    if not document.sound(("defaults",)):
        return Defaults()
    values = data.get("defaults", {})

    def part(name: str) -> Any:
        return values.get(name) or {} if document.sound(("defaults", name)) else {}

    executor = part("executor") or None
    if isinstance(executor, str) and executor not in names:
        document.report(
            ("defaults", "executor"), f"there is no executor {quoted(executor)}; {nearest(executor, names)}"
        )
    env = part("env")
    return Defaults(
        executor=executor,
        agent=read_agent(document, ("defaults", "agent"), part("agent"), None),
        limits=read_limits(document, ("defaults", "limits"), part("limits")),
        env=read_environment(document, ("defaults", "env"), env),
    )


def _secrets(document: Document, data: Mapping[str, Any]) -> dict[str, SecretSource]:
    found: dict[str, SecretSource] = {}
    for name, source in (data.get("secrets", {}) if document.sound(("secrets",)) else {}).items():
        path = ("secrets", name)
        if not document.usable(path):
            continue
        ((kind, value),) = source.items()
        if kind == "command" and not value[0]:
            document.report((*path, kind, 0), "is empty; write the program that prints the secret")
        found[name] = SecretSource(kind, tuple(value) if isinstance(value, list) else value)
    return found
