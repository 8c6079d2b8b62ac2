"""One error class a cause, each with its exit code and, where there is one, the next step.

Exit codes of the command line: 0 succeeded, 1 the run failed, 2 bad input, 3 engine or provisioning,
4 not found, 130 interrupted (the agent goes on).
"""

from __future__ import annotations

from typing import ClassVar


class CodingAgentError(Exception):
    """Base of every error a user can meet.

    `message` says what is wrong; `next_step` says what the user can do about it.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message}\n  next: {self.next_step}" if self.next_step else self.message


class InvalidInput(CodingAgentError):
    """A task file, an executors file, an argument or a repository that can't be used as it is."""

    exit_code = 2


class CredentialMissing(InvalidInput):
    """No credential for the agent, or a named secret that has no source or no value here."""


class NotFound(CodingAgentError):
    """No task, run, stack or executor of that name."""

    exit_code = 4


class RunFailed(CodingAgentError):
    """The run ended without success."""

    exit_code = 1


class EngineMissing(CodingAgentError):
    """No usable Pulumi engine, and none of the ways to get one worked."""


class EngineFailed(CodingAgentError):
    """The Pulumi engine reported an error."""


class StackLocked(EngineFailed):
    """Another update holds the stack's lock."""


class ClaudeMissing(CodingAgentError):
    """No Claude Code program on the executor, and it could not be installed."""


class ExecutorUnavailable(CodingAgentError):
    """The executor's target can't be used, or can't be had (what is missing is named)."""


class ConnectionBroken(CodingAgentError):
    """The connection to the target failed or timed out; the run there may go on."""


class OnAnotherMachine(ConnectionBroken):
    """The run is on the local executor of another machine, or of another user: it can't be reached from here."""


class TargetGone(ConnectionBroken):
    """The target that was made for a run is not there any more, and nothing of it: proven, not guessed."""


class TargetDeleted(TargetGone):
    """The target was deleted before the run began there: nothing is lost with it, and another can be made."""


class LoginRefused(ConnectionBroken):
    """The host answers, and accepts none of the keys that there are for it."""


class HostKeyUnknown(ConnectionBroken):
    """The host is known by no key, or by none that can be checked: nothing was sent to it."""


class HostKeyChanged(ConnectionBroken):
    """The host shows another key than the one it is known by: nothing was sent to it."""


class PluginMissing(CodingAgentError):
    """No plugin of the engine's for what a stack declares, and none of the ways to get one worked."""


class CommandTimeout(ConnectionBroken):
    """A command on the target exceeded its time limit and was ended."""


class StartFailed(CodingAgentError):
    """The supervisor could not be started on the target."""


class Untrusted(CodingAgentError):
    """Something that came back from a target was refused."""


class DatabaseUnavailable(CodingAgentError):
    """The queue's Postgres can't be reached or started, or was made by a newer version of coding-agent."""
