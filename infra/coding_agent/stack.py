"""Our door to the engine: a task's stack through the Automation API, in as few calls of its command line as possible.

This is the only module that imports `pulumi.automation` (with `command`, the part of it that runs the program).
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

from pulumi import RunError
from pulumi.automation import CommandResult
from pulumi.automation import errors as failures
from pulumi.runtime.rpc import UNKNOWN

from coding_agent import backend, executors, host_steps, locks, paths, plugin, program, records
from coding_agent.command import Call, Command
from coding_agent.errors import CodingAgentError, ConnectionBroken, EngineFailed, NotFound, TargetDeleted
from coding_agent.executors.declared import Asked
from coding_agent.executors.frozen_steps import FrozenSteps
from coding_agent.inprocess import serving
from coding_agent.orders import Orders
from coding_agent.project import Project, name_task, open_project
from coding_agent.run import outputs_dict, outputs_from
from coding_agent.settings import ExecutorSpec
from coding_agent.toolchain.pulumi import engine, plugins

Say = Callable[[str], None]
Result = TypeVar("Result")
_TAG = re.compile(r"<\{%.*?%\}>")  # the engine's markup for colours
_SALT = re.compile(rb"(?m)^encryptionsalt:.*\n?")
_PENDING = "pending operations from previous deployment"  # the engine's advice about them is not for us
# Only we get plugins; what works on a state alone may need some that no program asks for, in the state's versions.
_LACKED_PLUGIN = re.compile(r"no resource plugin 'pulumi-resource-([\w-]+)' found .* at version v([\w.+-]+)")
_UNREADABLE = "EOF"  # what the engine says of a file that `backend.mend` removes
_IN_USE = "last state: 'in_use'"  # how pulumi-docker says that it waited for a volume in vain
_VOLUME_USED = (
    "remove the container that still uses the volume (`docker ps --all --format '{{.Names}}: {{.Mounts}}'` shows "
    "it), then repeat"
)
_ATTEMPTS = 3  # how often a stack's lock is taken over before it is reported


@dataclass(frozen=True)
class Preview:
    """What `up` would do: how many resources of each kind of change, and the engine's words."""

    changes: Mapping[str, int]
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass
class _Heard:
    """What an update says while it goes on."""

    say: Say
    refusal: Path  # where the provider writes what it refused
    asked: Asked = field(default_factory=Asked)
    errors: list[str] = field(default_factory=list)
    changes: Mapping[str, int] = field(default_factory=dict)
    outputs: Mapping[str, Any] | None = None
    refused: Exception | None = None
    hosts: tuple[ExecutorSpec, ...] = ()  # that the update may log in to
    steps: FrozenSteps = field(default_factory=FrozenSteps)  # on hosts

    def event(self, event: Mapping[str, Any]) -> None:
        """Take an event of the engine's."""
        self.steps.event(event)
        if "summaryEvent" in event:
            self.changes = event["summaryEvent"]["resourceChanges"]
        said = event.get("diagnosticEvent")
        if said is None:
            return
        text = _TAG.sub("", said["message"]).strip()
        if said["severity"] == "error":
            self.errors.append(text)
        elif _PENDING in text:
            self.say("the update before this one was cut short: going on from there")
        elif said.get("ephemeral") or said["severity"] == "warning":
            self.say(text)


def open_stack(
    root: Path, name: str, *, task_file: Path | None = None, create: bool = True, progress: Say | None = None
) -> Stack:
    """Return the stack of a task in the project at `root`; it is made when it is first needed, if `create`.

    `task_file` is the task's where it is not `tasks/<name>.yaml`. Raises `EngineMissing`; `InvalidInput` for a project
    that can't be read.
    """
    os.environ.setdefault("no_grpc_proxy", "127.0.0.1")  # the engine's calls come over loopback
    project = open_project(root)
    before = _content(project.stack_file(name))
    if task_file is not None:
        name_task(project, name, task_file.absolute())
    quiet = progress or (lambda _line: None)
    found = engine.find_or_install(quiet)
    environment = backend.environment(project.root, engine=found, progress=quiet)
    return Stack(project, name, task_file, Command(found), environment, create=create, before=before)


def known(root: Path, progress: Say) -> frozenset[tuple[str, str]]:
    """Return project and name of all stacks in the backend that the project at `root` has. Raises `EngineFailed`."""
    project, found = open_project(root), engine.find_or_install(progress)
    environment = backend.environment(project.root, engine=found, progress=progress)
    listing = partial(Command(found).run, ["stack", "ls", "--all", "--json"], str(project.work), environment)
    try:
        said = listing()
    except failures.CommandError as error:
        if not (_UNREADABLE in str(error) and backend.mend(project.root)):
            raise EngineFailed(_complaint(error)) from error
        said = listing()
    names = (str(each["name"]).split("/") for each in json.loads(said.stdout or "[]"))
    # ORGANIZATION/PROJECT/STACK, or the last alone for one of this project.
    return frozenset((each[-2] if len(each) > 1 else project.name, each[-1]) for each in names)


class Stack:
    """A task's stack. Each method is one update, and holds the stack's lock only as long as that."""

    def __init__(
        self,
        project: Project,
        name: str,
        task_file: Path | None,
        command: Command,
        environment: Mapping[str, str],
        *,
        create: bool,
        before: bytes,
    ) -> None:
        """`open_stack` makes it."""
        self.project, self.name, self._task_file, self._create = project, name, task_file, create
        self._command, self._environment, self._before = command, dict(environment), before

    @property
    def calls(self) -> list[Call]:
        """The calls of the engine's command line so far, and how long each took."""
        return self._command.calls

    def up(
        self, *, wait: bool, say: Say, rerun: bool = False, refresh: bool = False, run_id: str = ""
    ) -> dict[str, Any]:
        """Start the task's run, adopt it or leave it as it is, and return the stack's outputs.

        With `run_id` it is the run of that id, another one where the stack has another: repeating it changes nothing.
        With `refresh` it first looks what is left of the run's target, and what is gone is made anew. With `wait` it
        returns once the run has ended. A run that failed is no failure of this. Raises what keeps the
        run from starting, `StackLocked` and `EngineFailed`.
        """
        arguments = ("up", "--yes", "--skip-preview", *(["--refresh"] if refresh else []))
        variables = {
            plugin.WAIT: "true" if wait else "false",
            plugin.RERUN: "1" if rerun else "",
            plugin.WANTED: run_id,
        }
        begun, orders = records.now(), Orders()
        while True:
            heard = self._listen(say, Asked(rerun, run_id, passed_over=orders.refused, tried=orders.tried))
            try:
                self._existing(heard, partial(self._update, heard, variables, *arguments))
            except TargetDeleted as error:
                if refresh:
                    raise
                say(f"{error.message}: making another")
                refresh, arguments = True, (*arguments, "--refresh")
            except CodingAgentError as error:
                if not orders.again(error, say):
                    self._give_back(orders, error, begun, say)
                    raise
            else:
                return self._seen(heard)
            # That it is to be another run is in the state already.
            rerun, variables = False, {**variables, plugin.RERUN: ""}

    def preview(self, *, say: Say, rerun: bool = False) -> Preview:
        """Return what `up` would do. Runs nothing of the task; a stack that is made for it is removed again."""
        heard = self._listen(say, Asked(rerun=rerun))
        variables = {plugin.RERUN: "1" if rerun else ""}
        made = self._exists() is False
        if made:
            self._make(heard)
        try:
            found = self._guarded(heard, lambda: self._update(heard, variables, "preview", "--diff"))
        finally:
            if made:
                self._unmake()
        return Preview(heard.changes, found.stdout.strip())

    def refresh(self, *, say: Say) -> dict[str, Any]:
        """Look at the run, and let the stack and its outputs say what is true now. Raises `NotFound`."""
        heard = self._listen(say)
        self._reach_targets()
        # Not with --target, which the engine (3.259) answers by forgetting what the run depends on.
        arguments = ("refresh", "--yes", "--skip-preview", "--run-program=true")
        self._guarded(heard, lambda: self._update(heard, {}, *arguments))
        return self._seen(heard)

    def destroy(self, *, discard: bool, say: Say) -> None:
        """End the run, bring its work back unless `discard`, and remove everything and the stack. Raises `NotFound`."""
        heard = self._listen(say)
        self._reach_targets()
        before = _content(self.project.stack_file(self.name))
        variables = {plugin.DISCARD: "1" if discard else ""}
        arguments = ("destroy", "--yes", "--skip-preview", "--remove")
        try:
            self._guarded(heard, lambda: self._update(heard, variables, *arguments))
        except ConnectionBroken:
            # The run was given up. What the plugin would do on a host that does not answer has to be, too.
            if not (discard and host_steps.forget(self._run)):
                raise
            again = self._listen(say)
            self._guarded(again, lambda: self._update(again, variables, *arguments))
        self._tidy(before)

    def outputs(self) -> dict[str, Any]:
        """Return the stack's outputs as they were last saved. Raises `NotFound`."""
        heard = self._listen(lambda _line: None)
        said = self._guarded(heard, lambda: self._run("stack", "output", "--json", "--show-secrets"))
        return _plain(json.loads(said.stdout or "{}"))

    def made_of(self) -> tuple[str, str] | None:
        """Return the digest of the task that the stack runs and what its target is made of; None where it has no run.

        Raises `NotFound`.
        """
        heard = self._listen(lambda _line: None)
        said = self._guarded(heard, lambda: self._run("stack", "export"))
        resources = json.loads(said.stdout)["deployment"].get("resources") or ()
        kinds = {str(each["type"]): each.get("inputs") or {} for each in resources}
        if "coding-agent:index:Run" not in kinds:
            return None
        found = kinds.get("coding-agent:index:RunId", {})
        return str(found.get("digest") or ""), str(found.get("image") or "")

    def _reach_targets(self) -> None:
        """See that what holds the stack's targets answers: without the program nobody else says so, or starts it."""
        for record in records.of_stack(self.project.root, self.name):
            if not record.removed:
                executors.reach(record.spec)

    def _give_back(self, orders: Orders, error: CodingAgentError, begun: float, say: Say) -> None:
        """Remove what was ordered for a run that could not be started: it would cost, and nobody use it."""
        started = any(each.created_at >= begun for each in records.of_stack(self.project.root, self.name))
        if started or not orders.made:
            return
        if orders.kept:
            say(f"what was made for it is kept; `coding-agent destroy {self.name}` removes it")
            return
        say(f"it could not be started: {error.message.splitlines()[0]}; giving back what was ordered")
        heard = self._listen(say, Asked(without_target=True))
        try:
            self._guarded(heard, lambda: self._update(heard, {}, "up", "--yes", "--skip-preview"))
        except CodingAgentError as left:
            say(f"not given back: {left.message}; `coding-agent destroy {self.name}` removes it")

    def _listen(self, say: Say, asked: Asked | None = None) -> _Heard:
        return _Heard(say, self.project.work / f".refusal.{secrets.token_hex(4)}", asked or Asked())

    def _existing(self, heard: _Heard, operate: Callable[[], Result]) -> Result:
        """Operate on the stack, made first where there is none."""
        if self._create and self._exists() is False:
            self._make(heard)
        try:
            return self._guarded(heard, operate)
        except NotFound:
            if not self._create:
                raise
        self._make(heard)
        return self._guarded(heard, operate)

    def _make(self, heard: _Heard) -> None:
        try:
            self._guarded(heard, lambda: self._run("stack", "init", "--no-select"))
        except EngineFailed as error:
            # Somebody else made it meanwhile: that is what was wanted.
            if not isinstance(error.__cause__, failures.StackAlreadyExistsError):
                raise

    def _exists(self) -> bool | None:
        """Return whether the stack exists; None where only the engine can tell."""
        url = self._environment.get("PULUMI_BACKEND_URL") or os.environ.get("PULUMI_BACKEND_URL") or ""
        if not url.startswith("file:///"):
            return None
        stacks = Path(unquote(urlparse(url).path)) / ".pulumi" / "stacks" / self.project.name
        return any((stacks / f"{self.name}.json{suffix}").exists() for suffix in ("", ".gz"))

    def _guarded(self, heard: _Heard, operate: Callable[[], Result]) -> Result:
        """Operate, and turn what the engine complains of into an error of ours.

        A lock of a dead owner is taken over, and plugins that the engine lacks are got.
        """
        got: set[tuple[str, str]] = set()
        locked = 0
        while locked < _ATTEMPTS:
            try:
                return operate()
            except failures.ConcurrentUpdateError as error:
                locks.give_way(str(error), self.name, heard.say)
                locked += 1
                heard.errors.clear()
            except failures.CommandError as error:
                if _UNREADABLE in "\n".join((str(error), *heard.errors)) and backend.mend(self.project.root):
                    heard.errors.clear()
                    continue
                lacked = set(_LACKED_PLUGIN.findall("\n".join(heard.errors))) - got
                if not lacked:
                    raise self._failure(heard, error) from error
                for name, version in lacked:
                    plugins.find_or_install((name,), heard.say, version)
                got |= lacked
                heard.errors.clear()
        raise EngineFailed(f"stack {self.name} is locked again and again", next_step="see what else works on it")

    def _failure(self, heard: _Heard, error: failures.CommandError) -> BaseException:
        refused = heard.refused or plugin.handed_over(heard.refusal)
        refused = refused or host_steps.failure(heard.errors, heard.steps, heard.hosts)
        if refused is not None:
            return refused
        if isinstance(error, failures.StackNotFoundError):
            return NotFound(f"there is no stack {self.name} in project {self.project.name}")
        said = str(error)
        if "update canceled" in said or ("canceled" in said and not heard.errors):
            return KeyboardInterrupt()
        # The plugin says what the engine repeats with the resource's name, and the engine that it has failed.
        errors = [each for each in heard.errors if not each.startswith("sdk-v2/") and each != "update failed"]
        text = "\n".join(dict.fromkeys(errors or heard.errors)) or _complaint(error)
        return EngineFailed(text, next_step=_VOLUME_USED if _IN_USE in text else None)

    def _unmake(self) -> None:
        """Remove the stack that was made for a preview, unless somebody has begun to use it."""
        with suppress(failures.CommandError, EngineFailed):
            self._run("stack", "rm", "--yes")
            self._tidy(self._before)

    def _tidy(self, before: bytes) -> None:
        """Leave of the removed stack's file what somebody configured there, and no salt without a stack."""
        file, kept = self.project.stack_file(self.name), before
        if b"secure:" not in kept:  # what is encrypted needs the salt
            kept = _SALT.sub(b"", kept)
        if b"config:" not in kept:
            file.unlink(missing_ok=True)
        elif _content(file) != kept:
            file.write_bytes(kept)

    def _update(self, heard: _Heard, variables: Mapping[str, str], *arguments: str) -> CommandResult:
        ours = {plugin.FAILURE: str(heard.refusal), locks.CONTROLLER: locks.controller(), plugin.WANTED: ""}
        # Without it the engine knows no --event-log.
        variables = {"PULUMI_DEBUG_COMMANDS": "true", **ours, **variables}
        if os.environ.get("CODING_AGENT_CONFIG"):
            variables["CODING_AGENT_CONFIG"] = str(paths.config_file().absolute())  # the engine runs in another folder
        heard.hosts = host_steps.hosts(self.project.root, self.name, self._task_file)
        # A preview does nothing on a host.
        logging_in = host_steps.logging_in(heard.hosts, heard.say, keys="preview" not in arguments)
        heard.steps = FrozenSteps()
        with logging_in as keys, heard.steps, serving(lambda: self._program(heard), heard.event) as served:
            return self._run(*arguments, "--color", "never", *served, variables={**variables, **keys})

    def _program(self, heard: _Heard) -> None:
        def seen(outputs: Mapping[str, Any]) -> None:
            heard.outputs = outputs

        try:
            program.run(
                self.project.root, self.name, task_file=self._task_file, seen=seen, say=heard.say, asked=heard.asked
            )
        except Exception as error:
            # Kept as it is; what passes through the engine is text alone.
            heard.refused = error
            raise RunError(plugin.one_line(error)) from None

    def _seen(self, heard: _Heard) -> dict[str, Any]:
        return self.outputs() if heard.outputs is None else _plain(heard.outputs)

    def _run(self, *arguments: str, variables: Mapping[str, str] | None = None) -> CommandResult:
        environment = {**self._environment, **(variables or {})}
        return self._command.run([*arguments, "--stack", self.name], str(self.project.work), environment)


def _complaint(error: failures.CommandError) -> str:
    """Return what a call of the engine's command line said against it."""
    said = str(error)
    return said.partition("stderr:")[2].strip() or said


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def _plain(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return outputs with whole numbers whole (the engine's are all floating point), and without what is not known.

    A run that could not be started has left such outputs.
    """
    outputs = {name: value for name, value in outputs.items() if value != UNKNOWN}
    return outputs_dict(outputs_from(outputs)) if outputs.get("status") else dict(outputs)
