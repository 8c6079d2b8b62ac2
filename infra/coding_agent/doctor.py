"""Look at all that the project needs here: what was found, what is missing, what that prevents, what to do."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from coding_agent import claude, doctor_containers, doctor_engine, doctor_hosts
from coding_agent.errors import CodingAgentError
from coding_agent.finding import Finding, State
from coding_agent.paths import config_file
from coding_agent.toolchain.installation import Progress, quiet

__all__ = ["Finding", "State", "examine"]

if TYPE_CHECKING:
    from coding_agent.settings import SecretSource, Settings

ASK_LIMIT = 20.0  # seconds for bash to say its version
_BASH_MINIMUM = (4, 4)
_TOOLS = {
    "bash": "no agent can run here: Claude Code and the supervisor need it",
    "git": "no task with a `repo` can run here, and no work comes back as a branch",
    "flock": "no agent can be started here: it keeps two starts of one run apart",
    "setsid": "no agent can be started here: it detaches the agent from the terminal",
    "tar": "files and artifacts can't be brought to a run or back",
}
_CREDENTIAL = "agent credential"
_PACKAGE = {"flock": "util-linux", "setsid": "util-linux"}


def examine(*, fix: bool = False, progress: Progress = quiet) -> list[Finding]:
    """Examine every part, in the order in which a run needs them. With `fix`, install what can be installed.

    A part that can't even be examined is a finding too: nothing is raised.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "system": _system,
        "tools": _tools,
        "Pulumi engine": lambda: doctor_engine.engine_parts(fix, progress),
        "provider plugin": doctor_engine.provider_plugin,
        "backend": doctor_engine.backend_reached,
        "passphrase": doctor_engine.passphrase,
        "executors file": _executors,
        "containers": lambda: doctor_containers.executors(fix, progress),
        "hosts": lambda: doctor_hosts.hosts(fix, progress),
        "Claude Code": lambda: _claude(fix, progress),
        "npm": _npm,
    }
    findings: list[Finding] = []
    for name, check in checks.items():
        try:
            findings.extend(check())
        except CodingAgentError as error:
            findings.append(Finding(name, State.MISSING, error.message, None, error.next_step))
        except Exception as error:  # noqa: BLE001,RUF100 - one broken part must not hide the others
            findings.append(Finding(name, State.MISSING, f"can't be examined: {error!r}"))
    return findings


def _system() -> Iterator[Finding]:
    name = f"{platform.system()} {platform.release()} on {platform.machine()}, Python {platform.python_version()}"
    if platform.system() != "Linux":
        yield Finding(
            "system",
            State.WARNING,
            name,
            "agents can't run on this machine, only on Linux; dispatching them to other machines works",
            "use an executor on a Linux machine, or work inside a Linux VM or container",
        )
    elif not Path("/proc/self/environ").exists():
        prevents = "no agent can run here: processes are found through /proc"
        yield Finding("system", State.MISSING, f"{name}, without /proc", prevents, "mount /proc")
    else:
        yield Finding("system", State.OK, name)


def _tools() -> Iterator[Finding]:
    for name, prevents in _TOOLS.items():
        found = shutil.which(name)
        if not found:
            package = _PACKAGE.get(name, name)
            step = f"install {package}, for instance `apt-get install {package}`"
            yield Finding(name, State.MISSING, "not on PATH", prevents, step)
        elif name == "bash":
            yield _bash(found, prevents)
        else:
            yield Finding(name, State.OK, found)


def _bash(found: str, prevents: str) -> Finding:
    asked = [found, "-c", 'printf "%s %s" "${BASH_VERSINFO[0]}" "${BASH_VERSINFO[1]}"']
    said = subprocess.run(asked, capture_output=True, text=True, timeout=ASK_LIMIT, check=False).stdout
    version = tuple(int(part) for part in said.split() if part.isdigit())
    text = f"{found}, {'.'.join(map(str, version))}"
    if version < _BASH_MINIMUM:
        return Finding("bash", State.MISSING, f"{text}: too old", prevents, "install bash 4.4 or newer")
    return Finding("bash", State.OK, text)


def _executors() -> Iterator[Finding]:
    from coding_agent.settings import Settings

    path = config_file()
    try:
        settings = Settings.load()
    except CodingAgentError as error:
        prevents = "nothing can be started"
        yield Finding("executors file", State.MISSING, error.message, prevents, error.next_step or f"correct {path}")
        yield Finding(_CREDENTIAL, State.WARNING, "not looked for: its sources stand in the executors file")
        return
    names = ", ".join(f"{executor.name} ({executor.type})" for executor in settings.executors)
    yield Finding("executors file", State.OK, f"{path if path.exists() else 'none, built-in'}: {names}")
    yield _credential(settings)


def _credential(settings: Settings) -> Finding:
    from coding_agent import host_login
    from coding_agent.credentials import AGENT_CREDENTIALS, uses_host_login
    from coding_agent.errors import CredentialMissing

    prevents = "tasks for an agent can't start; tasks with a `command` can"
    for name in AGENT_CREDENTIALS:
        source = settings.secrets.get(name)
        if source:
            found = f"{name} from {source.kind} {_shown(source.value)}"
            problem = _problem(source)
            if problem:
                step = f"correct its source under `secrets` in {config_file()}"
                return Finding(_CREDENTIAL, State.MISSING, f"{found}, which {problem}", prevents, step)
            return Finding(_CREDENTIAL, State.OK, found)
        if os.environ.get(name):
            return Finding(_CREDENTIAL, State.OK, f"{name} in the environment")
    hosts = [each.name for each in settings.executors if uses_host_login(each)]
    if hosts:
        try:
            name = next(iter(host_login.read()))
        except CredentialMissing as error:
            return Finding(_CREDENTIAL, State.MISSING, error.message, prevents, error.next_step)
        return Finding(_CREDENTIAL, State.OK, f"this machine's own Claude login ({name}), on {', '.join(hosts)} only")
    return Finding(
        _CREDENTIAL,
        State.MISSING,
        f"none of {', '.join(AGENT_CREDENTIALS)} is set or has a source",
        prevents,
        f"set one, name its source under `secrets` in {config_file()}, or let the local executor `use_host_login`",
    )


def _shown(value: str | tuple[str, ...]) -> str:
    # Of a command only its program: an argument may be as private as what the command prints.
    return value if isinstance(value, str) else value[0]


def _problem(source: SecretSource) -> str | None:
    """Return why the source can't give a value, as far as that shows without asking it for one."""
    first = _shown(source.value)
    if source.kind == "env":
        return None if os.environ.get(first) else "is not set"
    if source.kind == "file":
        return None if os.access(Path(first).expanduser(), os.R_OK) else "can't be read"
    return None if shutil.which(Path(first).expanduser()) else "is not on PATH"


def _claude_path() -> str | None:
    """Return the program that the first local executor names; None where none does."""
    from coding_agent.settings import Settings

    try:
        executors = Settings.load().executors
    except CodingAgentError:
        return None  # said elsewhere
    return next((each.claude_path for each in executors if each.type == "local" and each.claude_path), None)


def _claude(fix: bool, progress: Progress) -> Iterator[Finding]:
    path = _claude_path()
    found = claude.find(path, progress=progress) or (claude.find_or_install(path, progress=progress) if fix else None)
    if found:
        yield Finding("Claude Code", State.OK, f"{found}, {claude.version_number(found)}")
        return
    can = shutil.which("npm") is not None
    yield Finding(
        "Claude Code",
        State.WARNING if can else State.MISSING,
        f"neither on PATH nor in the cache; {claude.PINNED_VERSION} comes from npm"
        + ("" if can else ", which is missing"),
        "the first run waits for its download" if can else "tasks for an agent can't start on this machine",
        "`coding-agent doctor --fix` installs it" if can else "install npm, or name a program in claude_path",
    )


def _npm() -> Iterator[Finding]:
    npm = shutil.which("npm")
    if npm:
        yield Finding("npm", State.OK, npm)
        return
    prevents = "Claude Code can't be installed, so a task that demands a version of it can't start"
    yield Finding("npm", State.WARNING, "not on PATH", prevents, "only if you need it: install npm")
