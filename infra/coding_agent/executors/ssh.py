"""The ssh executor: a host that one can log in to. The host stays; only the run's folder comes and goes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coding_agent.errors import (
    ClaudeMissing,
    CodingAgentError,
    ConnectionBroken,
    ExecutorUnavailable,
)
from coding_agent.executors import host_keys, ssh_login, ssh_target
from coding_agent.executors.base import Executor, Surroundings
from coding_agent.executors.host_limits import unenforced
from coding_agent.executors.ssh_connection import SshConnection
from coding_agent.executors.survey import survey
from coding_agent.settings import ExecutorSpec, Settings
from coding_agent.supervisor import mark
from coding_agent.text import neutralise

if TYPE_CHECKING:
    from coding_agent.executors.ssh_login import Login
    from coding_agent.task import Task
    from coding_agent.toolchain.installation import Progress

__all__ = ["answers", "connect", "login", "sweep", "try_out", "unenforced"]

_LIMIT = 60.0  # seconds for a command that only looks
# What belongs to one login and not to the next, or to a run.
_OF_THE_LOGIN = re.compile(r"SSH_\w*|SSH2_\w*|XDG_SESSION_\w*|MAIL|OLDPWD|PWD|SHLVL|_")
# How one gets there, which may change while a run goes on.
_WAY = ("host", "port", "key_path", "proxy_jump", "host_key")


class SshExecutor(Executor):
    """Runs on a host, as the user who logs in there."""

    connection: SshConnection

    def __init__(self, spec: ExecutorSpec, connection: SshConnection, root: str, target: Mapping[str, Any]) -> None:
        """`root` is the folder of runs there, absolute; `target` what is known of the host beside its login."""
        super().__init__(spec.name, connection, root=root, scripts=f"{root}/supervisor-{mark()}", deliver=True)
        self._spec, self._target = spec, target

    @property
    def place(self) -> Mapping[str, Any]:
        """The host, the user and the folder there."""
        login = self.connection.login
        return {**self._target, "host": login.host, "port": login.port, "user": login.user, "root": self.root}

    def prepare(self, task: Task, say: Progress) -> Surroundings:
        """Ask the host what it has. Raises `ExecutorUnavailable` or `ClaudeMissing` with all that is missing."""
        agent = task.prompt is not None
        program = (self._spec.claude_path or "claude") if agent else ""
        wanted = (task.agent.version or "") if agent else ""
        found = survey(self, program, git=task.repo is not None, version=wanted)
        if found.missing:
            raise ExecutorUnavailable(
                f"executor {self.name}: the host lacks {', '.join(found.missing)}", next_step="install it there"
            )
        installs = bool(self._spec.options.get("install")) and not self._spec.claude_path
        fits = bool(found.program) and (not wanted or found.version == wanted)
        if agent and installs and not fits:
            from coding_agent.executors import ssh_install

            found = replace(found, program=ssh_install.install(self, wanted or None, say))
        elif agent and not fits:
            raise _no_claude(self.name, program, found.program, wanted)
        environment = {name: each for name, each in found.environment.items() if not _OF_THE_LOGIN.fullmatch(name)}
        return Surroundings(environment, found.home, found.program, task.limits, scope=True)

    def bring_scripts(self, timeout: float) -> None:
        """Put the supervisor in its place: what was staged for the run, else it is brought anew."""
        run_id = str(self._target.get("run") or "")
        if run_id:
            staged = f"{self.root}/.incoming/{run_id}/supervisor-{mark()}"
            script = '[[ -f $1/start.sh ]] && chmod 755 -- "$1" && mv -T -- "$1" "$2" 2>/dev/null; [[ -f $2/start.sh ]]'
            argv = ["bash", "-c", script, "place", staged, self.scripts]
            if self.connection.run(argv, timeout=_LIMIT).exit_code == 0:
                return
        super().bring_scripts(timeout)


def connect(spec: ExecutorSpec, place: Mapping[str, Any]) -> Executor:
    """Return the executor of a host; `place` is what was declared of it, or where a run was started before.

    Raises `ExecutorUnavailable` for a login that can't be told. Whether the host answers is seen when it is used, or
    here where it has to be asked for its folder of runs: `ConnectionBroken`, `HostKeyUnknown` and the like.
    """
    connection = SshConnection(login(spec, place))
    root = str(place.get("root") or "")
    if not root:
        try:
            root = _root(connection, spec)
        except BaseException:
            connection.close()
            raise
    known = {name: place[name] for name in ("id", "run") if place.get(name)}
    return SshExecutor(spec, connection, root, known)


def answers(spec: ExecutorSpec) -> None:
    """Nothing holds a host but itself: whoever connects says whether it answers."""


def try_out(spec: ExecutorSpec) -> str:
    """Log in, and return who is where. Raises what keeps that from working, with what to do."""
    with contextlib.closing(SshConnection(login(spec, {}))) as connection:
        connection.run(["true"], timeout=_LIMIT)
        for hop in connection.login.hops:  # which the engine's plugin has to know as well
            host_keys.for_plugin(hop, ask=False)
        return connection.login.address


def sweep(spec: ExecutorSpec, run_id: str, *, everything: bool) -> None:
    """Remove what is left of a run on the host (`everything`); nothing of it uses the rest."""
    if not everything:
        return
    with contextlib.closing(SshConnection(login(spec, {}))) as connection:
        script = ssh_target.host_script(spec, None, run_id)
        done = connection.run(["sh", "-s", "delete"], stdin=script.encode(), timeout=_LIMIT)
        if done.exit_code != 0:
            said = neutralise(done.stderr.decode("utf-8", "replace").strip()[-300:])
            raise ConnectionBroken(f"what is left of run {run_id} on {spec.name} can't be removed: {said}")
        root = ssh_target.said_root(done.stdout.decode("utf-8", "replace"))
        if root is not None:  # it was started there
            SshExecutor(spec, connection, root, {}).cleanup(run_id)


def login(spec: ExecutorSpec, place: Mapping[str, Any]) -> Login:
    """Return who logs in where. The way there is today's; the user is the one who began.

    Raises `ExecutorUnavailable` for a login that can't be told.
    """
    found = ssh_login.of(_today(spec))
    if place.get("user"):
        found = replace(found, user=str(place["user"]))
    if place.get("host") and found.host == spec.options["host"]:
        # On a machine whose ssh configuration does not know the host's name: where it was found then.
        found = replace(found, host=str(place["host"]), port=int(place["port"]))
    return found


def _today(spec: ExecutorSpec) -> ExecutorSpec:
    """Return the executor with the key, the port and the jump that the executors file gives it now.

    A run that goes on is still reached after its key was changed. Another host of that name is another executor.
    """
    try:
        now = Settings.load().executor(spec.name)
    except CodingAgentError:
        return spec
    if now.type != spec.type or now.options.get("host") != spec.options.get("host"):
        return spec
    kept = {name: each for name, each in spec.options.items() if name not in _WAY}
    return replace(spec, options={**kept, **{name: now.options[name] for name in _WAY if name in now.options}})


def _root(connection: SshConnection, spec: ExecutorSpec) -> str:
    wanted = ssh_target.root_of(spec)
    script = (
        'root=$1; [[ $root != "~/"* ]] || root=${HOME%/}/${root#"~/"}; umask 077; '
        'mkdir -p -- "$root" && [[ -w $root ]] && cd -P -- "$root" && pwd'
    )
    done = connection.run(["bash", "-c", script, "root", wanted], timeout=_LIMIT)
    if done.exit_code != 0:
        raise ExecutorUnavailable(
            f"executor {spec.name}: {wanted} can't be written on the host", next_step="name a folder with root_dir"
        )
    return done.stdout.decode("utf-8", "replace").removesuffix("\n")


def _no_claude(name: str, program: str, found: str | None, wanted: str) -> ClaudeMissing:
    if found:
        return ClaudeMissing(
            f"{found} of executor {name} is another version of Claude Code; the task demands {wanted}",
            next_step="change the task, or set `install: true` without claude_path: then that version is brought",
        )
    return ClaudeMissing(
        f"there is no Claude Code on the host of executor {name} ({program})",
        next_step="install it there, name it in the executor's claude_path, or set `install: true`",
    )
