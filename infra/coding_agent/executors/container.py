"""The container executor: a container made for the run by the engine's own provider, or one that exists already.

In a container made for a run the main process is root without any capability and only waits; the agent, another user,
comes in by exec and can't end it. The run's folder is a volume, so that it outlives a container that somebody removes.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

from docker.errors import NotFound

from coding_agent.errors import ClaudeMissing, ConnectionBroken, ExecutorUnavailable, OnAnotherMachine, TargetGone
from coding_agent.executors import container_exec
from coding_agent.executors.base import Executor, Surroundings
from coding_agent.executors.connection import Completed, FilesByCommand
from coding_agent.executors.container_engine import Engine, answering, reach
from coding_agent.executors.container_limits import effective, held, unenforced
from coding_agent.executors.survey import LIMIT as _SURVEY_LIMIT
from coding_agent.executors.survey import survey
from coding_agent.supervisor import mark

if TYPE_CHECKING:
    from coding_agent.settings import ExecutorSpec
    from coding_agent.task import Task
    from coding_agent.toolchain.installation import Progress

__all__ = ["connect", "sweep", "unenforced"]

ROOT = "/coding-agent"  # in a container made for a run: the volume with the run's folder
CLAUDE = "/opt/coding-agent/claude"  # where the mounted program is
RUN, PIDS, STAND_IN = "coding-agent.run", "coding-agent.pids", "coding-agent.stand-in"  # labels
ENTRYPOINT = ("bash", "-c")
_OWN = {"CODING_AGENT_OWN_NAMESPACE": "1"}  # tells the scripts that every process here is the run's
_START_LIMIT = 30.0  # seconds
_POLL = 0.02  # seconds


class ContainerConnection(FilesByCommand):
    """Commands in one container."""

    def __init__(self, engine: Engine, target: Mapping[str, Any], user: str) -> None:
        """`target` is what `container_target` declared: the container made for the run, or the one that exists."""
        self._engine, self._target, self._user = engine, target, user
        self._made = bool(target.get("volume"))
        self._container: str | None = None
        self._stand_in: str | None = None

    @property
    def engine(self) -> Engine:
        """The engine behind it."""
        return self._engine

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | BinaryIO | None = None,
        timeout: float,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command; see `Connection.run`."""
        environment = {**(_OWN if self._made else {}), **(env or {})}
        known = self._container is not None
        try:
            return container_exec.run(
                self._engine, self._ready(), argv, user=self._user, stdin=stdin, timeout=timeout, env=environment
            )
        except ConnectionBroken as error:
            # It may have been stopped or removed: the next call looks anew, and nothing was begun by this one.
            self._container = self._stand_in
            if not (known and isinstance(error, container_exec.NotRunning)):
                raise
        return self.run(argv, stdin=stdin, timeout=timeout, env=env)

    def close(self) -> None:
        """Remove the stand-in, where there was one."""
        if self._stand_in:
            with answering(self._engine.url, "removing the stand-in"), contextlib.suppress(NotFound):
                self._engine.api.remove_container(self._stand_in, force=True)
            self._stand_in = None
        self._container = None
        self._engine.close()

    def wake(self) -> None:
        """Let a container that was made for the run and paused go on."""
        if not self._made:
            return
        with answering(self._engine.url, "waking the container"), contextlib.suppress(NotFound):
            if self._inspect()["State"].get("Paused"):
                self._engine.api.unpause(self._target["id"])

    @property
    def stands_in(self) -> bool:
        """Whether the container itself was removed, and the volume is used through another."""
        return self._stand_in is not None

    def described(self) -> Mapping[str, Any]:
        """Return what the engine says of the container. Raises `TargetGone`."""
        said: Mapping[str, Any] = self._inspect(self._ready())
        return said

    def _ready(self) -> str:
        """Return the container, which runs. Raises `TargetGone` where nothing of it is left."""
        if self._container is None:
            try:
                self._container = self._started(self._inspect())
            except NotFound as error:
                self._container = self._replaced(error)
        return self._container

    def _inspect(self, container: str | None = None) -> Any:
        with answering(self._engine.url, "looking for the container"):
            return self._engine.api.inspect_container(container or self._target["id"])

    def _started(self, said: Mapping[str, Any]) -> str:
        container, state = str(said["Id"]), said["State"]
        name = str(said.get("Name", "")).lstrip("/") or container[:12]
        if state.get("Paused"):
            raise ConnectionBroken(
                f"the container {name} is paused", next_step=f"`{self._engine.runtime} unpause {name}` lets it go on"
            )
        if state.get("Running"):
            return container
        if not self._made:
            raise ConnectionBroken(
                f"the container {name} is not running",
                next_step=f"`{self._engine.runtime} start {name}`: one that exists is never started by a run",
            )
        limit = (said["Config"].get("Labels") or {}).get(PIDS)
        if limit and not self._engine.podman:
            limit_pids(self._engine, container, int(limit))
        with answering(self._engine.url, f"starting the container {name}"):
            self._engine.api.start(container)
        self._wait_until_ready(container, name)
        if limit and self._engine.podman:
            limit_pids(self._engine, container, int(limit))  # which podman can only do with one that runs
        return container

    def _wait_until_ready(self, container: str, name: str) -> None:
        """Wait until the main process has made the volume usable."""
        deadline = time.monotonic() + _START_LIMIT
        test = ["bash", "-c", "[[ -w $1 ]]", "test", str(self._target["root"])]
        while True:
            # An image whose own start-up ends at once is seen here, not in a run that never begins.
            said = self._inspect(container)
            if not said["State"].get("Running"):
                code = said["State"].get("ExitCode")
                raise ConnectionBroken(f"the container {name} ended as soon as it was started (exit code {code})")
            done = container_exec.run(self._engine, container, test, user=self._user, stdin=None, timeout=20.0, env={})
            if done.exit_code == 0:
                return
            if time.monotonic() > deadline:
                raise ConnectionBroken(f"the container {name} did not get ready within {_START_LIMIT:.0f} seconds")
            time.sleep(_POLL)

    def _replaced(self, error: NotFound) -> str:
        """Return a stand-in for the removed container: the run's folder is still there.

        Raises `TargetGone` where it is not, `OnAnotherMachine` where this is not the engine that had it.
        """
        gone = f"the container {str(self._target['id'])[:12]} was removed"
        identity = self._target.get("engine")
        if identity and identity != self._engine.identity:
            raise OnAnotherMachine(f"another container engine ({identity})") from error
        api, volume = self._engine.api, self._target.get("volume")
        if not volume:
            raise TargetGone(gone) from error
        with answering(self._engine.url, gone):
            try:
                api.inspect_volume(volume)
                image = api.inspect_image(self._target["image"])["Id"]
            except NotFound as nothing:
                raise TargetGone(gone) from nothing
            settings = api.create_host_config(
                binds=[f"{volume}:{self._target['root']}"],
                cap_drop=["ALL"],
                security_opt=["no-new-privileges:true"],
                network_mode="none",
                init=True,
            )
            if self._engine.userns:
                settings["UsernsMode"] = self._engine.userns  # else the volume's files are another user's
            self._stand_in = str(
                api.create_container(
                    image,
                    command=[_main(str(self._target["root"]))],
                    entrypoint=list(ENTRYPOINT),
                    user="0:0",
                    host_config=settings,
                    labels={RUN: str(self._target.get("run")), STAND_IN: "1"},
                )["Id"]
            )
            api.start(self._stand_in)
        self._wait_until_ready(self._stand_in, "that stands in for the removed one")
        return self._stand_in


class ContainerExecutor(Executor):
    """Runs in a container."""

    connection: ContainerConnection

    def __init__(
        self, spec: ExecutorSpec, connection: ContainerConnection, target: Mapping[str, Any], root: str
    ) -> None:
        """`root` is the folder of runs in the container."""
        super().__init__(spec.name, connection, root=root, scripts=f"{root}/supervisor-{mark()}", deliver=True)
        self._spec, self._target = spec, target

    @property
    def place(self) -> Mapping[str, Any]:
        """The container, and the engine that has it."""
        return {**self._target, "root": self.root, "engine": self.connection.engine.identity}

    @property
    def target_gone(self) -> bool:
        """Whether another container stands in for the one that was made."""
        return self.connection.stands_in

    def wake(self) -> None:
        """Let a paused container go on."""
        self.connection.wake()

    def prepare(self, task: Task, say: Progress) -> Surroundings:
        """Ask the container what it has. Raises `ExecutorUnavailable` or `ClaudeMissing` with all that is missing."""
        agent = task.prompt is not None
        program = str(self._target.get("claude") or self._spec.claude_path or "claude") if agent else ""
        wanted = task.agent.version or "" if agent else ""
        found = survey(self, program, git=task.repo is not None, version=wanted)
        if found.missing:
            raise ExecutorUnavailable(
                f"executor {self.name} lacks {', '.join(found.missing)}",
                next_step="use an image that has it, or make one: `coding-agent image build`",
            )
        if agent and not found.program:
            raise ClaudeMissing(
                f"there is no Claude Code in the container of executor {self.name} ({program})",
                next_step="install it there, or name it in the executor's claude_path",
            )
        if wanted and found.version != wanted:
            raise ClaudeMissing(
                f"{found.program} of executor {self.name} is Claude Code {found.version or '?'}; "
                f"the task demands {wanted}",
                next_step="leave claude_path out, so that the version demanded is used, or change the task",
            )
        limits, kept = effective(task.limits, self._spec.options), frozenset[str]()
        if self._target.get("volume"):
            kept = held(self.connection.described(), self._pids_limit() if self.connection.engine.podman else None)
        if "cpus" not in kept:
            limits = replace(limits, cpus=None)
        return Surroundings(found.environment, found.home, found.program, limits, kept)

    def _pids_limit(self) -> str:
        """Return how many processes the kernel allows the container: podman says what it was made with."""
        files = ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max")
        script = 'for f; do read -r max <"$f" && echo "$max" && exit; done 2>/dev/null'
        done = self.connection.run(["bash", "-c", script, "pids", *files], timeout=_SURVEY_LIMIT)
        return done.stdout.decode("utf-8", "replace").strip()


def connect(spec: ExecutorSpec, place: Mapping[str, Any]) -> Executor:
    """Return the executor of the container at `place`, which was declared for a run or exists already.

    Raises `ConnectionBroken` where the engine does not answer. The container itself is looked for when it is used.
    """
    engine = reach(spec.options)
    if not place:
        raise ExecutorUnavailable(f"executor {spec.name}: no container was declared for this run")
    user = str(place.get("user") or "")
    connection = ContainerConnection(engine, place, user)
    root = str(place.get("root") or "") or _root_of_existing(connection, spec)
    return ContainerExecutor(spec, connection, place, root)


def answers(spec: ExecutorSpec) -> None:
    """Raise `ConnectionBroken` where the container engine does not answer."""
    reach(spec.options).close()


def sweep(spec: ExecutorSpec, run_id: str, *, everything: bool) -> None:
    """Remove containers that carry the run's label, and (`everything`) networks and volumes: no stack knows them."""
    engine = reach(spec.options)
    api, mine = engine.api, {"label": f"{RUN}={run_id}"}
    with contextlib.closing(engine), answering(engine.url, f"removing what is left of run {run_id}"):
        for each in api.containers(all=True, filters=mine):
            with contextlib.suppress(NotFound):
                api.remove_container(each["Id"], force=True, v=True)
        for each in api.networks(filters=mine) if everything else ():
            with contextlib.suppress(NotFound):
                api.remove_network(each["Id"])
        for each in (api.volumes(filters=mine)["Volumes"] or ()) if everything else ():
            with contextlib.suppress(NotFound):
                api.remove_volume(each["Name"])


def limit_pids(engine: Engine, container: str, limit: int) -> None:
    """Limit the processes of a container. Where the engine can't, the supervisor's watch does."""
    with contextlib.suppress(ConnectionBroken, NotFound):
        engine.limit_pids(container, limit)


def user_of(spec: ExecutorSpec) -> str:
    """Return whom the agent is in a container made for it: the named user, the caller, or one without rights."""
    if named := spec.options.get("user"):
        return str(named)
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() else "10001:10001"


def main(spec: ExecutorSpec) -> str:
    """Return what the main process of a container made for a run does."""
    return _main(root_of(spec))


def root_of(spec: ExecutorSpec) -> str:
    """Return the folder of runs in a container made for one."""
    named = str(spec.options.get("root_dir") or "")
    return named if named.startswith("/") else ROOT


def _main(root: str) -> str:
    # Let others use the volume, then wait without using anything.
    return f"chmod 1777 {shlex.quote(root)}; exec 3<> <(:); read -r -u 3"


def _root_of_existing(connection: ContainerConnection, spec: ExecutorSpec) -> str:
    script = (
        'root=$1; [[ $root != "~"* ]] || root=$HOME${root#"~"}; umask 077; '
        '{ [[ $HOME != / ]] && mkdir -p -- "$root" 2>/dev/null && [[ -w $root ]]; } || '
        '{ root=/tmp/.coding-agent-$EUID; mkdir -p -- "$root" && [[ -O $root ]]; } || exit 1; cd -P -- "$root" && pwd'
    )
    wanted = str(spec.options.get("root_dir") or "~/.coding-agent")
    done = connection.run(["bash", "-c", script, "root", wanted], timeout=_SURVEY_LIMIT)
    if done.exit_code != 0:
        raise ExecutorUnavailable(
            f"executor {spec.name}: neither {wanted} nor /tmp can be written in the container",
            next_step="name a folder that can with root_dir, or another user",
        )
    return done.stdout.decode("utf-8", "replace").strip()
