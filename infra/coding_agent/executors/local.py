"""The local executor: this machine. Nothing is provisioned; the connection is a subprocess."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import shutil
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from coding_agent.errors import CommandTimeout, ConnectionBroken, OnAnotherMachine
from coding_agent.executors.base import Executor, Surroundings
from coding_agent.executors.connection import Completed
from coding_agent.supervisor import SCRIPTS

if TYPE_CHECKING:
    from coding_agent.settings import ExecutorSpec
    from coding_agent.task import Task
    from coding_agent.toolchain.installation import Progress

# What an agent gets of this machine's environment. Everything else (a passphrase, a cloud token, another's API key)
# stays out; the executors file's `env`, a task's `env` and `secrets` add what is wanted.
PASSED_ON = (
    *("HOME", "PATH", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"),
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"),
)


def plain_environment() -> dict[str, str]:
    """Return the part of this process's environment that may reach a run."""
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    kept.setdefault("PATH", os.defpath)
    kept.setdefault("HOME", str(Path.home()))
    return kept


class LocalConnection:
    """Commands and files of this machine, as this user."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | BinaryIO | None = None,
        timeout: float,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command; see `Connection.run`."""
        data = stdin if isinstance(stdin, bytes) else None
        source = subprocess.PIPE if data is not None else subprocess.DEVNULL if stdin is None else stdin
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=source,  # type: ignore[arg-type]
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**plain_environment(), **(env or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise ConnectionBroken(f"{argv[0]} can't be started: {error.strerror}") from error
        try:
            out, err = process.communicate(data, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            _end_group(process)
            raise CommandTimeout(f"{argv[0]} did not end within {timeout:g} seconds") from error
        except BaseException:
            _end_group(process)
            raise
        return Completed(process.returncode, out, err)

    def put(self, path: str, source: bytes | Path, *, mode: int = 0o600, timeout: float = 60.0) -> None:
        """Write a file by rename; see `Connection.put`."""
        target = Path(path)
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            part.touch(mode=0o600, exist_ok=False)
            if isinstance(source, Path):
                shutil.copyfile(source, part)
            else:
                part.write_bytes(source)
            part.chmod(mode)
            part.replace(target)
        except OSError as error:
            raise ConnectionBroken(f"{path} can't be written: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)

    def get(self, path: str, *, offset: int = 0, limit: int, timeout: float = 60.0) -> bytes | None:
        """Read a part of a regular file; see `Connection.get`. No part of the path may be a symlink."""
        folder, name = os.path.split(path)
        if os.path.realpath(folder) != folder:
            return None
        try:
            directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        except OSError:
            return None
        finally:
            os.close(directory)
        try:
            return os.pread(file, limit, offset) if stat.S_ISREG(os.fstat(file).st_mode) else None
        finally:
            os.close(file)

    def close(self) -> None:
        """Nothing is held."""


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # A grandchild in a session of its own could keep the pipes open: don't wait for their end.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


class LocalExecutor(Executor):
    """Runs on this machine, as this user."""

    shares_files = True

    def __init__(self, spec: ExecutorSpec, root: str) -> None:
        """`root` is the folder of runs."""
        super().__init__(spec.name, LocalConnection(), root=root, scripts=str(SCRIPTS))
        self._spec = spec

    @property
    def place(self) -> Mapping[str, Any]:
        """This machine, and the folder here."""
        return {"host": platform.node(), "home": self.root}

    def prepare(self, task: Task, say: Progress) -> Surroundings:
        """Find the agent's program, or install it. Raises `ClaudeMissing`."""
        environment, program = plain_environment(), None
        if task.prompt is not None:
            from coding_agent import claude

            program = str(claude.find_or_install(self._spec.claude_path, task.agent.version, say))
        return Surroundings(environment, environment["HOME"], program, task.limits)


def unenforced(task: Task, spec: ExecutorSpec) -> tuple[str, ...]:
    """Say which limits of the task can't be held here."""
    if task.limits.cpus is not None:
        return (f"limits.cpus is not enforced by executor {spec.name}: a local run has no cgroup of its own",)
    return ()


def connect(spec: ExecutorSpec, place: Mapping[str, Any]) -> Executor:
    """Return the executor of this machine; it needs no connecting.

    Raises `OnAnotherMachine` where `place` is that of another machine or user.
    """
    root = os.path.realpath(Path(str(spec.options.get("root_dir") or "~/.coding-agent")).expanduser())
    executor = LocalExecutor(spec, root)
    if place and dict(place) != executor.place:
        raise OnAnotherMachine(f"the local executor of {place.get('host')}, in {place.get('home')}")
    return executor
