"""The container engine an executor uses: which one it is, that it answers, and its errors in words of ours."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, NotFound

from coding_agent.errors import ConnectionBroken, ExecutorUnavailable

API_LIMIT = 60.0  # seconds without an answer
# Seconds after which a podman service that was started here ends by itself: more than the engine's provider ever has
# to wait between two questions, which is while npm fetches the agent's program.
PODMAN_IDLE = 20 * 60
PODMAN_LIMIT = 15.0  # seconds it may take to answer
_POLL = 0.05  # seconds
_DOCKER = "unix:///var/run/docker.sock"
_LIBPOD = "/v4.0.0/libpod"  # podman's own interface, for what Docker's can't say or do with it
_UPDATES_SINCE = (4, 3)  # the podman that can change the limits of a container that runs
# What podman reads of the environment. Its service outlives whoever started it and needs none of his secrets.
_PODMAN_READS = re.compile(
    r"(PATH|HOME|USER|LOGNAME|TMPDIR|LANG|LC_\w+|TZ|XDG_\w+|DBUS_SESSION_BUS_ADDRESS|DOCKER_CONFIG|REGISTRY_AUTH_FILE|"
    r"_?CONTAINERS?_\w+|STORAGE_\w+|BUILDAH_\w+|SSL_CERT_\w+|(https?|ftp|all|no)_proxy)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Engine:
    """A container engine that answers."""

    url: str
    runtime: str  # docker or podman
    api: Any  # docker.APIClient

    @property
    def here(self) -> bool:
        """Whether it shares this machine's files, so that they can be mounted."""
        return self.url.startswith("unix://")

    @cached_property
    def info(self) -> Mapping[str, Any]:
        """What the engine says of itself."""
        with answering(self.url, "asking the engine what it is"):
            said: Mapping[str, Any] = self.api.info()
        return said

    @property
    def identity(self) -> str:
        """What tells this engine from another machine's."""
        # Podman makes its id up anew each time it is asked.
        return f"podman of {self.info.get('Name')}, {self.url}" if self.podman else str(self.info.get("ID"))

    @cached_property
    def podman(self) -> bool:
        """Whether it is podman, whatever it is called in the executors file."""
        return any("Podman" in str(each.get("Name")) for each in self._version.get("Components") or ())

    @property
    def rootless(self) -> bool:
        """Whether it runs as an ordinary user."""
        # Docker says it among its security options, podman in a field of its own.
        return bool(self.info.get("Rootless")) or any(
            "rootless" in str(option) for option in self.info.get("SecurityOptions") or ()
        )

    @property
    def userns(self) -> str | None:
        """Which user namespace makes a user inside the same one outside, where that is not so by itself."""
        return "keep-id" if self.podman and self.rootless else None

    @cached_property
    def limits(self) -> frozenset[str]:
        """Which of memory, cpus and pids it can have the kernel hold for a container."""
        if self.podman:
            # What it says for Docker's sake is what the machine has; an ordinary user may have less of it.
            has, version = self._controllers, re.findall(r"\d+", str(self._version.get("Version")))
            updates = tuple(map(int, version[:2])) >= _UPDATES_SINCE
            found = {"memory": "memory" in has, "cpus": "cpu" in has, "pids": "pids" in has and updates}
        else:
            said = {"memory": "MemoryLimit", "cpus": "CpuCfsQuota", "pids": "PidsLimit"}
            found = {name: bool(self.info.get(field, True)) for name, field in said.items()}
        return frozenset(name for name, can in found.items() if can)

    def limit_pids(self, container: str, limit: int) -> None:
        """Limit the processes of a container, which the provider can't. Raises where the engine can't either."""
        api = self.api
        with answering(self.url, "limiting processes"):
            if self.podman:
                url = f"{api.base_url}{_LIBPOD}/containers/{container}/update"
                api._raise_for_status(api._post_json(url, data={"pids": {"limit": limit}}))
            else:
                url = api._url("/containers/{0}/update", container)
                api._raise_for_status(api._post_json(url, data={"PidsLimit": limit}))

    @cached_property
    def _version(self) -> Mapping[str, Any]:
        with answering(self.url, "asking the engine what it is"):
            said: Mapping[str, Any] = self.api.version()
        return said

    @cached_property
    def _controllers(self) -> frozenset[str]:
        with answering(self.url, "asking podman what it can limit"), contextlib.suppress(NotFound):
            said = self.api._result(self.api._get(f"{self.api.base_url}{_LIBPOD}/info"), json=True)
            return frozenset((said.get("host") or {}).get("cgroupControllers") or ())
        return frozenset()

    @property
    def limits_disk(self) -> bool:
        """Whether it can limit what a container writes into its own files."""
        driver, facts = self.info.get("Driver"), dict(self.info.get("DriverStatus") or ())
        quotas = facts.get("Backing Filesystem") == "xfs" and Path("/proc/mounts").is_file() and _has_project_quotas()
        return driver in ("btrfs", "zfs", "windowsfilter") or (driver == "overlay2" and self.here and quotas)

    def close(self) -> None:
        """Close what is open."""
        self.api.close()


def reach(options: Mapping[str, Any]) -> Engine:
    """Return the engine of an executor with these options; podman's service is started where none answers.

    Raises `ConnectionBroken` with what to do where no engine answers.
    """
    runtime = str(options.get("runtime") or "docker")
    if named := options.get("docker_host"):
        return _connected(str(named), runtime)
    return _podman() if runtime == "podman" else _connected(_docker_url(), runtime)


@contextlib.contextmanager
def answering(url: str, doing: str) -> Iterator[None]:
    """Turn what can go wrong with a request into `ConnectionBroken`; what the engine has not stays `NotFound`."""
    try:
        yield
    except NotFound:
        raise
    except APIError as error:
        raise ConnectionBroken(f"{doing}: {error.explanation or error}") from error
    except (requests.RequestException, DockerException, OSError) as error:
        raise _unreachable(url, error) from error


def _connected(url: str, runtime: str) -> Engine:
    if url.startswith("ssh://"):
        raise ExecutorUnavailable(
            f"docker_host {url}: an engine is not reached over SSH", next_step="use unix:// or tcp:// in docker_host"
        )
    tls: Any = False
    if url.startswith("tcp://") and os.environ.get("DOCKER_TLS_VERIFY"):
        folder = Path(os.environ.get("DOCKER_CERT_PATH") or "~/.docker").expanduser()
        tls = docker.tls.TLSConfig(
            client_cert=(str(folder / "cert.pem"), str(folder / "key.pem")),
            ca_cert=str(folder / "ca.pem"),
            verify=True,
        )
    with answering(url, "connecting"):
        return Engine(url, runtime, docker.APIClient(base_url=url, version="auto", timeout=API_LIMIT, tls=tls))


def _docker_url() -> str:
    """Return where Docker's own command line would look: DOCKER_HOST, its current context, the usual socket."""
    if url := os.environ.get("DOCKER_HOST"):
        return url
    with contextlib.suppress(DockerException, OSError, ValueError, KeyError, AttributeError):
        from docker.context import ContextAPI

        context = ContextAPI.get_current_context()
        if context is not None and context.Host:
            return str(context.Host).replace("http+unix://", "unix://")
    return _DOCKER


def _podman() -> Engine:
    """Return podman behind the socket that the system keeps, else behind one of ours."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    system = Path("/run") if os.getuid() == 0 else runtime
    with contextlib.suppress(ConnectionBroken):
        if (system / "podman" / "podman.sock").is_socket():
            return _connected(f"unix://{system}/podman/podman.sock", "podman")
    folder = (runtime if runtime.is_dir() else Path(f"/tmp/coding-agent-{os.getuid()}")) / "coding-agent"
    socket = folder / "podman.sock"
    with contextlib.suppress(ConnectionBroken):
        if socket.is_socket():
            return _connected(f"unix://{socket}", "podman")
    _serve(socket)
    return _connected(f"unix://{socket}", "podman")


def _serve(socket: Path) -> None:
    """Start podman's service on the socket; it ends by itself when nobody has asked for a while."""
    from coding_agent.toolchain.installation import lock

    program = shutil.which("podman")
    if program is None:
        raise ConnectionBroken("podman is not on PATH", next_step="install podman, or use `runtime: docker`")
    socket.parent.parent.mkdir(mode=0o700, exist_ok=True)
    socket.parent.mkdir(mode=0o700, exist_ok=True)
    if socket.parent.stat().st_uid != os.getuid():
        raise ConnectionBroken(f"{socket.parent} belongs to somebody else", next_step="set XDG_RUNTIME_DIR")
    with lock("podman", lambda _line: None):
        with contextlib.suppress(ConnectionBroken):
            if socket.is_socket():
                _connected(f"unix://{socket}", "podman").close()
                return  # by whoever held the lock
        socket.unlink(missing_ok=True)
        argv = [program, "system", "service", f"--time={PODMAN_IDLE}", f"unix://{socket}"]
        said = socket.with_suffix(".log")
        with said.open("wb") as log:
            service = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if _PODMAN_READS.fullmatch(name)},
            )
        deadline = time.monotonic() + PODMAN_LIMIT
        while not socket.is_socket():
            if service.poll() is not None or time.monotonic() > deadline:
                service.kill()
                words = said.read_text(errors="replace").strip()[-300:]
                raise ConnectionBroken(f"podman's service does not start: {words or 'it says nothing'}")
            time.sleep(_POLL)


def _unreachable(url: str, error: BaseException) -> ConnectionBroken:
    text = str(error)
    podman = "podman" in url
    name = "podman" if podman else "the container engine"
    if "Permission denied" in text:
        step = f"let your user use it: `sudo usermod -aG docker {os.environ.get('USER', 'YOU')}` and log in again, "
        return ConnectionBroken(f"{name} at {url} refuses this user", next_step=f"{step}or use `runtime: podman`")
    why = "no such socket" if "No such file" in text else "nobody listens" if "refused" in text.lower() else text[:200]
    start = "systemctl --user start podman.socket" if podman else "sudo systemctl start docker"
    return ConnectionBroken(
        f"{name} at {url} does not answer: {why}",
        next_step=f"start it (`{start}`), or name another in the executor's docker_host",
    )


def _has_project_quotas() -> bool:
    return any(
        "pquota" in line or "prjquota" in line
        for line in Path("/proc/mounts").read_text(errors="replace").splitlines()
        if line.split()[2:3] == ["xfs"]
    )
