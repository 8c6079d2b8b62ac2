"""The hetzner executor: a server of Hetzner Cloud that is made for the run, and goes when its work is here.

It is reached as any host over ssh. What is more is that the cloud can say whether it is still there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from coding_agent.errors import CodingAgentError, CommandTimeout, ConnectionBroken, TargetGone
from coding_agent.executors import hetzner_api, host_limits
from coding_agent.executors.hetzner_api import RUN, TOKEN, label
from coding_agent.executors.ssh import SshExecutor
from coding_agent.executors.ssh_agent import USUAL_KEYS
from coding_agent.executors.ssh_connection import SshConnection
from coding_agent.executors.ssh_login import Login, agent_socket
from coding_agent.settings import ExecutorSpec, Settings

if TYPE_CHECKING:
    from coding_agent.executors.base import Executor
    from coding_agent.executors.connection import Completed
    from coding_agent.task import Task

# What is known of a server beside its login. `id` is its number, `price` EUR an hour, `made_at` the cloud's clock.
_KNOWN = ("id", "run", "host_key", "server_type", "location", "price", "made_at")


class ServerConnection(SshConnection):
    """Commands on a server that may have been deleted meanwhile."""

    def __init__(self, login: Login, server: str) -> None:
        """`server` is its number at the cloud."""
        super().__init__(login)
        self._server = server

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | BinaryIO | None = None,
        timeout: float,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command; see `Connection.run`. Raises `TargetGone` where the cloud says that the server is gone."""
        try:
            return super().run(argv, stdin=stdin, timeout=timeout, env=env)
        except CommandTimeout:
            raise
        except ConnectionBroken as error:
            # Somebody else's server may have its address by now, with another host key.
            raise self._cause(error) from error

    def _cause(self, error: ConnectionBroken) -> ConnectionBroken:
        try:
            server = hetzner_api.cloud().server(int(self._server))
        except CodingAgentError:
            return error  # nothing is proven
        if server is None:
            return TargetGone(f"the server {self._server} was deleted")
        if server.status != "running":
            return ConnectionBroken(
                f"the server {server.name} is {server.status}: {error.message}",
                next_step=f"`hcloud server poweron {server.name}` lets it go on",
            )
        return error


class HetznerExecutor(SshExecutor):
    """Runs on a server of its own, as a user without rights there."""

    @property
    def place(self) -> Mapping[str, Any]:
        """The server, its host key, and what it costs."""
        return {**super().place, "made_at": self._target.get("made_at") or _made_at(str(self._target["id"]))}


def connect(spec: ExecutorSpec, place: Mapping[str, Any]) -> Executor:
    """Return the executor of the server at `place`, which was declared for a run.

    Raises `TargetGone` where none was declared, as for a run whose server was given back.
    """
    if not place.get("id"):
        raise TargetGone(f"executor {spec.name}: the server was given back")
    connection = ServerConnection(_login(spec, place), str(place["id"]))
    known = {name: place[name] for name in _KNOWN if place.get(name)}
    return HetznerExecutor(as_host(spec), connection, str(place["root"]), known)


def as_host(spec: ExecutorSpec) -> ExecutorSpec:
    """Return the executor as one of a host: a new one has no Claude Code unless it is brought."""
    return replace(spec, options={"install": True, **spec.options})


def answers(_spec: ExecutorSpec) -> None:
    """Raise `CredentialMissing` where there is no token for the cloud."""
    hetzner_api.cloud()


def try_out(_spec: ExecutorSpec) -> str:
    """Ask the cloud something. Raises what keeps that from working, with what to do."""
    hetzner_api.cloud().left({RUN: "none"})
    return "Hetzner Cloud"


def environment() -> Mapping[str, str]:
    """Return what the engine's plugin needs: the token, which is in no input of its. Raises `CredentialMissing`."""
    return {TOKEN: hetzner_api.token(Settings.load())}


def give_back(run_id: str) -> None:
    """Remove everything that was made for a run. Raises what keeps it from that; can be repeated."""
    cloud = hetzner_api.cloud()
    cloud.remove(cloud.left({RUN: label(run_id)}))


def sweep(_spec: ExecutorSpec, run_id: str, *, everything: bool) -> None:  # noqa: ARG001 - nothing uses the rest of it
    """Remove everything that was made for a run."""
    give_back(run_id)


def unenforced(task: Task, _spec: ExecutorSpec) -> tuple[str, ...]:
    """Say which limits of the task are held otherwise than by the kernel.

    A server that is made for a run has systemd, cgroups v2 and a user who lingers; where an image has not, the
    supervisor says it.
    """
    return () if task.limits.disk is None else (host_limits.DISK,)


def _login(spec: ExecutorSpec, place: Mapping[str, Any]) -> Login:
    # The key that the server knows may lie elsewhere by now.
    named = [str(each.options["key_path"]) for each in (spec, _today(spec)) if each.options.get("key_path")]
    files = named or [f"~/.ssh/{name}" for name in USUAL_KEYS]
    paths = [str(Path(each).expanduser()) for each in dict.fromkeys(files)]
    return Login(
        host=str(place["host"]),
        user=str(place["user"]),
        port=int(place.get("port") or 22),
        name=spec.name,
        key_files=tuple(each for each in paths if Path(each).is_file()),
        agent=agent_socket(),
        host_key=str(place["host_key"]),
    )


def _today(spec: ExecutorSpec) -> ExecutorSpec:
    try:
        return Settings.load().executor(spec.name)
    except CodingAgentError:
        return spec


def _made_at(server: str) -> float:
    try:
        found = hetzner_api.cloud().server(int(server))
    except CodingAgentError:
        return 0.0
    return found.created_at if found else 0.0
