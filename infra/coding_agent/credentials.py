"""Secret names -> values, at the last moment; and finding the values again in what comes back.

Where a value comes from (environment, file, command) stands in the executors file only. Nothing here is called while
a task is read, validated or previewed, except `check`, which runs no command.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from coding_agent import host_login
from coding_agent.errors import CredentialMissing
from coding_agent.redaction import Redactor

if TYPE_CHECKING:
    from coding_agent.settings import ExecutorSpec, SecretSource, Settings
    from coding_agent.task import Task

__all__ = [
    "AGENT_CREDENTIALS",
    "Redactor",
    "agent_credential",
    "agent_environment",
    "candidates",
    "check",
    "resolve",
    "uses_host_login",
]

AGENT_CREDENTIALS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
_PLAIN = ("ANTHROPIC_BASE_URL",)
_COMMAND_TIMEOUT = 60.0  # seconds; a password manager may ask the user to unlock it
_LARGEST = 128 * 1024 - 1024  # bytes: the kernel takes no longer NAME=VALUE in an environment


def resolve(names: Iterable[str], settings: Settings) -> dict[str, str]:
    """Return the value of each name from its source.

    Raises `CredentialMissing` that names every one without a source or a value.
    """
    values: dict[str, str] = {}
    problems: list[str] = []
    for name in dict.fromkeys(names):
        try:
            values[name] = _read(settings.secrets.get(name))
        except _UnavailableError as error:
            problems.append(f"{name} {error}")
    if problems:
        raise _missing(problems, settings)
    return values


def agent_credential(settings: Settings, executor: ExecutorSpec) -> dict[str, str]:
    """Return the one credential that the agent gets: name -> value.

    The host's login where the executor lets it be used; else the first of AGENT_CREDENTIALS that has a source in the
    executors file, or else is set in the environment. Raises `CredentialMissing` when there is none.
    """
    if uses_host_login(executor):
        return host_login.read()
    name = _agent_credential_name(settings)
    if name is None:
        raise _no_credential(settings, executor)
    return resolve([name], settings) if name in settings.secrets else {name: os.environ[name]}


def check(task: Task, settings: Settings, executor: ExecutorSpec) -> None:
    """Say before anything starts which secrets can't be had; runs no command and keeps no value.

    Raises `CredentialMissing` that names every one of them.
    """
    names = list(task.secrets)
    agent = task.prompt is not None
    if agent and uses_host_login(executor):
        host_login.read()  # raises where there is none
        agent = False
    credential = _agent_credential_name(settings) if agent else None
    if credential is not None and credential in settings.secrets:
        names.append(credential)
    problems = []
    for name in dict.fromkeys(names):
        if reason := _obstacle(settings.secrets.get(name)):
            problems.append(f"{name} {reason}")
    if problems:
        raise _missing(problems, settings)
    if agent and credential is None:
        raise _no_credential(settings, executor)


def uses_host_login(executor: ExecutorSpec) -> bool:
    """Return whether the agent is given the host's own login there."""
    return executor.type == "local" and executor.options.get("use_host_login") is True


def candidates(name: str, settings: Settings, executor: ExecutorSpec) -> Iterator[str]:
    """Yield what the value of a secret of a run on that executor can have been, as far as it can be had here now."""
    with contextlib.suppress(CredentialMissing):
        if name in settings.secrets:
            yield resolve([name], settings)[name]
    if name not in AGENT_CREDENTIALS:
        return
    with contextlib.suppress(CredentialMissing):
        if uses_host_login(executor) and (value := host_login.read(even_expired=True).get(name)):
            yield value
    if name not in settings.secrets and (value := os.environ.get(name)):
        yield value


def agent_environment() -> dict[str, str]:
    """Return what the agent needs of this environment to reach its API; none of it is secret."""
    return {name: os.environ[name] for name in _PLAIN if os.environ.get(name)}


class _UnavailableError(Exception):
    """A source has no value; the text completes a sentence that begins with the secret's name."""


def _agent_credential_name(settings: Settings) -> str | None:
    # A declared source wins over an undeclared variable, also of a name further up: the user chose it.
    declared = [name for name in AGENT_CREDENTIALS if name in settings.secrets]
    present = [name for name in AGENT_CREDENTIALS if os.environ.get(name)]
    return next(iter([*declared, *present]), None)


def _read(source: SecretSource | None) -> str:
    reason = _obstacle(source)
    if source is None or reason is not None:
        raise _UnavailableError(reason or "")
    match source.kind:
        case "env":
            value = os.environ[_single(source)]
        case "file":
            value = _decoded(_file(source).read_bytes(), f"in {_file(source)}")
        case "command":
            argv = _argv(source)
            value = _decoded(_output(argv), f"from {argv[0]}")
    where = f"({source.kind} source)"
    if not value:
        raise _UnavailableError(f"is empty {where}")
    if "\0" in value:
        raise _UnavailableError(f"holds a NUL character, which no environment can carry {where}")
    if len(value.encode()) > _LARGEST:
        raise _UnavailableError(f"is longer than {_LARGEST} bytes, which no environment can carry {where}")
    return value


def _obstacle(source: SecretSource | None) -> str | None:
    """Return why the source can have no value, as far as can be seen without running anything."""
    if source is None:
        return "has no source"
    match source.kind:
        case "env":
            name = _single(source)
            return None if os.environ.get(name) else f"comes from ${name}, which is not set here"
        case "file":
            path = _file(source)
            if not path.is_file():
                return f"comes from {path}, which is not a file"
            return None if os.access(path, os.R_OK) else f"comes from {path}, which can't be read"
        case "command":
            program = _argv(source)[0]
            return None if shutil.which(program) else f"comes from the command {program}, which is not on PATH"
    raise ValueError(f"a secret source of kind {source.kind!r}")


def _decoded(raw: bytes, where: str) -> str:
    try:
        # What editors and commands end a file with is not part of a secret.
        return raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        # Not chained: the exception would carry the value.
        raise _UnavailableError(f"{where} is not UTF-8") from None


def _output(argv: tuple[str, ...]) -> bytes:
    # What it says on stderr is not shown: it could carry a value, and the engine passes a plugin's stderr on. A
    # password manager that has to ask something asks the terminal.
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            stdout, _ = process.communicate(timeout=_COMMAND_TIMEOUT)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise _UnavailableError(f"did not come within {_COMMAND_TIMEOUT:g} s from {argv[0]}") from None
    if process.returncode != 0:
        raise _UnavailableError(
            f"did not come: {argv[0]} ended with exit code {process.returncode} (run it yourself to see why)"
        )
    return stdout


def _single(source: SecretSource) -> str:
    return source.value if isinstance(source.value, str) else source.value[0]


def _argv(source: SecretSource) -> tuple[str, ...]:
    argv = (source.value,) if isinstance(source.value, str) else tuple(source.value)
    return (os.path.expanduser(argv[0]), *argv[1:])  # noqa: PTH111 - a bare name must stay one


def _file(source: SecretSource) -> Path:
    return Path(_single(source)).expanduser()


def _missing(problems: list[str], settings: Settings) -> CredentialMissing:
    listed = "; ".join(problems)
    return CredentialMissing(
        f"secret {listed}" if len(problems) == 1 else f"{len(problems)} secrets can't be had: {listed}",
        next_step=f"give each a source under `secrets:` in {_settings_file(settings)}, "
        "for example `NAME: {env: NAME}`, and make sure that it has a value here",
    )


def _no_credential(settings: Settings, executor: ExecutorSpec) -> CredentialMissing:
    login = (
        f", or let the agent use this machine's own Claude login (`use_host_login: true` on executor {executor.name})"
        if executor.type == "local"
        else ""
    )
    return CredentialMissing(
        f"no credential for the agent: none of {', '.join(AGENT_CREDENTIALS)} has a source or is set here",
        next_step=f"set {AGENT_CREDENTIALS[0]}, or give one of them a source under `secrets:` in "
        f"{_settings_file(settings)}{login}",
    )


def _settings_file(settings: Settings) -> Path:
    from coding_agent import paths

    return settings.path or paths.config_file()
