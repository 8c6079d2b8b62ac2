"""The steps that the engine's plugin does on hosts, around an update: their keys, their failures, their end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coding_agent import executors, records
from coding_agent.errors import CodingAgentError, ConnectionBroken, EngineFailed, ExecutorUnavailable

if TYPE_CHECKING:
    from pulumi.automation import CommandResult

    from coding_agent.executors.frozen_steps import FrozenSteps
    from coding_agent.settings import ExecutorSpec

STEP = "command:remote:Command"
MARK = "coding-agent: "  # how a line begins that a host's script says to people
_NO_SFTP = "ssh: subsystem request failed"  # the plugin's words
# What the plugin puts before a command's own words: the command, which is always the same, and its exit code. Another
# reason, such as a host that does not answer any more, stays.
_AROUND = re.compile(r'(?s)(?:^.*?Process exited with status \d+:\s*)?running "exec (ba)?sh -s( \w+)?":\s*')


def hosts(root: Path, stack: str, task_file: Path | None) -> tuple[ExecutorSpec, ...]:
    """Return the executors that an update of the stack may have to log in to: its task's, and those of its runs."""
    found = {record.executor["name"]: record.spec for record in records.of_stack(root, stack)}
    if (spec := _of_task(root, stack, task_file)) is not None:
        found[spec.name] = spec
    return tuple(each for each in found.values() if each.type in executors.LOGINS)


@contextmanager
def logging_in(
    found: Sequence[ExecutorSpec], say: Callable[[str], None], *, keys: bool = True
) -> Iterator[Mapping[str, str]]:
    """Yield what the engine needs in its environment so that its plugins can log in to these executors.

    Without `keys` nothing is done on a host. What is not to be had is said: perhaps the update needs none of it.
    """
    with ExitStack() as stack:
        variables: dict[str, str] = {}
        try:
            variables |= executors.environment(found)
        except CodingAgentError as error:
            say(str(error))
        if found and keys:
            from coding_agent.executors import ssh_agent

            try:
                variables |= stack.enter_context(ssh_agent.for_update(found))
            except CodingAgentError as error:
                say(str(error))
        yield variables


def failure(errors: Sequence[str], steps: FrozenSteps, found: Sequence[ExecutorSpec]) -> CodingAgentError | None:
    """Return what an update failed of, where it was a step on a host; None where it was something else."""
    if steps.ended is not None:
        return ConnectionBroken(
            f"the step {steps.ended} on the host did not end in time: the connection is frozen, or what runs there is",
            next_step="see that the host answers, and run this again: what is done stays done",
        )
    if not steps.failed:
        return None
    names = ", ".join(each.name for each in found)
    text = "\n".join(errors)
    told = list(dict.fromkeys(line.partition(MARK)[2] for line in text.splitlines() if MARK in line))
    if told:
        made = any(each.type in executors.RENTED for each in found)
        next_step = "mend the executor; with `keep: true` the server stays" if made else "install it there"
        said = "\n".join(told)
        return ExecutorUnavailable(f"executor {names}: {said}", next_step=f"{next_step}, and run this again")
    if _NO_SFTP in text:
        return ExecutorUnavailable(
            f"executor {names}: the host's ssh server has no SFTP, with which the engine's plugin copies files",
            next_step="`Subsystem sftp internal-sftp` in its /etc/ssh/sshd_config allows it",
        )
    # The plugin says little of why it could not log in. Whoever tries the same knows.
    for spec in found:
        try:
            executors.try_out(spec)
        except CodingAgentError as error:
            return error
    rest = [_AROUND.sub("", each).strip() for each in errors if "update failed" not in each]
    return EngineFailed(f"a step on the host of executor {names} failed: {'; '.join(dict.fromkeys(rest))[:1000]}")


def forget(run: Callable[..., CommandResult]) -> bool:
    """Take the plugin's steps out of a stack's state, without doing them; return whether there were any.

    `run` runs a command of the engine's on the stack.
    """
    state = json.loads(run("stack", "export").stdout)
    resources: Sequence[Mapping[str, Any]] = state["deployment"].get("resources") or ()
    steps = [str(each["urn"]) for each in resources if str(each["type"]).startswith("command:remote:")]
    # Last ones first: the engine takes nothing out that something else still needs.
    for urn in reversed(steps):
        run("state", "delete", urn, "--yes", "--force")
    return bool(steps)


def _of_task(root: Path, stack: str, task_file: Path | None) -> ExecutorSpec | None:
    from coding_agent import program, task
    from coding_agent.settings import Settings

    file = task_file or next((each for each in program.usual_files(root, stack) if each.is_file()), None)
    # What is wrong with it is said by the program.
    with suppress(CodingAgentError, OSError):
        settings = Settings.load()
        if file is not None and (_logs_in(settings) or any(kind in file.read_text() for kind in executors.LOGINS)):
            return settings.choose(task.load(file, settings=settings))
    return None


def _logs_in(settings: Any) -> bool:
    return any(each.type in executors.LOGINS for each in settings.executors)
