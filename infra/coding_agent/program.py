"""The Pulumi program: a task's file -> its target -> its run -> the stack's outputs. Both doors run it."""

from __future__ import annotations

import atexit
import operator
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pulumi

from coding_agent import executors
from coding_agent.errors import NotFound
from coding_agent.executors import before
from coding_agent.executors.before import Before
from coding_agent.executors.declared import Asked, Wanted
from coding_agent.plugin import RERUN, end_program_with_engine, one_line
from coding_agent.run import Outputs, State

if TYPE_CHECKING:
    from coding_agent.settings import Settings
    from coding_agent.task import Task

_SAID = 32  # the exit code of a program that has said itself what is wrong: the engine adds nothing
Seen = Callable[[Mapping[str, Any]], None]


class RunId(pulumi.CustomResource):
    """A random id for a run: another one when the task's content changes or a rerun is asked for."""

    run: pulumi.Output[str]  # the id once more: what the state of a stack is asked for are properties

    def __init__(self, name: str, *, digest: str, image: str | None, executor: Mapping[str, Any]) -> None:
        """`image` is what the target is made of; `executor` finds again what a killed engine left of it."""
        inputs = {"run": None, "digest": digest, "image": image, "executor": executor}
        super().__init__("coding-agent:index:RunId", name, inputs)


class Run(pulumi.CustomResource):
    """The run of an agent; its outputs are the fields of `run.Outputs`."""

    # One property: of single ones, those that are null would count as not known yet in a preview.
    outputs: pulumi.Output[Mapping[str, Any]]

    def __init__(self, name: str, inputs: Mapping[str, Any], options: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("coding-agent:index:Run", name, {"outputs": None, **inputs}, options)


def run(
    root: Path,
    stack: str,
    *,
    task_file: Path | None = None,
    seen: Seen | None = None,
    say: Callable[[str], None] = pulumi.log.info,
    asked: Asked | None = None,
) -> Run | None:
    """Declare the task of `stack` in the project at `root`, and export what its run says.

    `say` is told what takes time, `seen` is called with the outputs once they are known. There is no run where it is
    asked that its target be given back. Raises `InvalidInput` for a
    task that can't be run and `NotFound` where the stack has none; nothing is declared then.
    """
    from coding_agent import task
    from coding_agent.settings import Settings

    settings = Settings.load()
    loaded = task.load(task_file or find_task(root, stack), settings=settings)
    asked = asked or Asked(rerun=os.environ.get(RERUN) == "1")
    declared = _declare(loaded, settings, stack, root, say, asked)
    if declared is None:
        return None
    for field in fields(Outputs):
        pulumi.export(field.name, declared.outputs.apply(operator.methodcaller("get", field.name)))
    if seen is not None:
        declared.outputs.apply(seen)
    return declared


def find_task(root: Path, stack: str) -> Path:
    """Return the task's file: the one that the stack's configuration names (`coding-agent:task`), else the stack's."""
    named = pulumi.Config("coding-agent").get("task")
    if named:
        return root / Path(named).expanduser()
    files = usual_files(root, stack)
    for file in files:
        if file.is_file():
            return file
    raise NotFound(
        f"stack {stack} has no task: there is no {files[0]}",
        next_step=f"write it, or name another file: pulumi config set coding-agent:task FILE --stack {stack}",
    )


def usual_files(root: Path, stack: str) -> list[Path]:
    """Return where the task of a stack is, unless another file is named for it; the first that there is counts."""
    return [root / "tasks" / f"{stack}{suffix}" for suffix in (".yaml", ".yml")]


def main() -> None:
    """Run the program for `pulumi up`: errors become lines, a failed run fails the update and keeps its outputs."""
    # Ctrl-C reaches us too; the engine ends the update in order, and there is no traceback to show for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_program_with_engine()
    try:
        declared = run(Path(pulumi.runtime.get_root_directory()), pulumi.get_stack())
    except Exception as error:
        if os.environ.get("CODING_AGENT_TRACEBACK") == "1":
            raise
        pulumi.log.error(_said(error))
        sys.exit(_SAID)
    if declared is not None and not pulumi.runtime.is_dry_run():
        # Beside the exports, not in one: an export that raises loses all outputs.
        declared.outputs.apply(_fail_with_run)


def _declare(
    task: Task, settings: Settings, stack: str, root: Path, say: Callable[[str], None], asked: Asked
) -> Run | None:
    spec, preview = settings.choose(task), pulumi.runtime.is_dry_run()
    image = executors.image(spec, task)
    found = before.read(stack, asked, digest=task.digest, image=image) if spec.type in executors.RENTED else Before()
    run_id = RunId(stack, digest=task.digest, image=image, executor=_filled(asdict(spec)))
    if asked.without_target:
        return None
    project = pulumi.get_project()
    declared = executors.declare(
        Wanted(task, spec, project, stack, run_id.id, run_id.run, run_id, preview, say, asked, found)
    )
    if preview:
        for line in executors.unenforced(spec, task):
            pulumi.log.warn(line)
    inputs = {
        "run_id": run_id.id,
        "digest": task.digest,
        "task": _filled(task.payload()),
        "task_file": str(task.source.absolute()),
        "root": str(root.absolute()),
        "timeout": task.limits.timeout,
        "wait": task.wait,
        "description": task.description,
        "labels": list(task.labels),
        "artifacts": list(task.artifacts),
        "target": dict(declared.target),
    }
    # Under its id, not under the stack: where an update begins with a look at something right under the stack, the
    # engine (3.259) does not show the stack's outputs at the end.
    return Run(stack, inputs, pulumi.ResourceOptions(parent=run_id, depends_on=list(declared.resources)))


def _fail_with_run(outputs: Mapping[str, Any]) -> None:
    status = State(outputs["status"])
    if status.final and status is not State.SUCCEEDED:
        code = f" {int(outputs['exit_code'])}" if outputs.get("reason") == "exit_code" else ""
        about = (f"run {outputs['run_id']} {status}", f"{outputs.get('reason') or ''}{code}", outputs.get("detail"))
        pulumi.log.error(": ".join(str(each) for each in about if each))
        # After everything: the outputs are saved by then, and no exception has to pass through them.
        atexit.register(os._exit, 1)


def _filled(value: Any) -> Any:
    """Return the value without what says nothing, for a preview that people read."""
    if not isinstance(value, Mapping):
        return value
    inner = ((name, _filled(each)) for name, each in value.items())
    return {name: each for name, each in inner if each not in (None, "", [], {}, ())}


def _said(error: Exception) -> str:
    problems = getattr(error, "problems", ())
    return "\n".join(map(str, problems)) if problems else one_line(error)
