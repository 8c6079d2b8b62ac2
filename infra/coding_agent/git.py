"""Run git on the controller: argv lists, a time limit on each call, no hook, monitor or variable that redirects."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from coding_agent.errors import CodingAgentError
from coding_agent.text import neutralise, one_line

TIMEOUT = 600.0  # seconds; what reads or writes a whole repository

# Whoever starts us from a hook has GIT_DIR, GIT_INDEX_FILE and more set, which would send us to another repository.
# What stays is where the user's configuration lies and who he is.
_KEPT = frozenset(
    {
        "GIT_EXEC_PATH",
        "GIT_CONFIG_GLOBAL",
        "GIT_CONFIG_SYSTEM",
        "GIT_CONFIG_NOSYSTEM",
        "GIT_CONFIG_COUNT",
        "GIT_CEILING_DIRECTORIES",
        "GIT_DISCOVERY_ACROSS_FILESYSTEM",
        "GIT_AUTHOR_NAME",
        "GIT_AUTHOR_EMAIL",
        "GIT_COMMITTER_NAME",
        "GIT_COMMITTER_EMAIL",
    }
)
_KEPT_BEGINNINGS = ("GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_")
_ALWAYS = {
    "LC_ALL": "C",  # messages are read
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",  # `status` would rewrite the user's index
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_DEFAULT_HASH": "sha1",
}
_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.splitIndex=false",  # a copied index would write its shared part into the user's git dir
    "gc.auto=0",
    "maintenance.auto=false",
    "color.ui=false",
    "user.useConfigOnly=false",
    "i18n.commitEncoding=UTF-8",
    "i18n.logOutputEncoding=UTF-8",
)


class GitFailed(CodingAgentError):
    """Git could not do what it was asked, or took too long."""


@dataclass(frozen=True)
class Answer:
    """What a git command said; `err` is for people: one line, nothing in it that a terminal obeys."""

    code: int
    out: bytes
    err: str

    @property
    def line(self) -> str:
        """Return the output as one text without its last newline; bytes that are no UTF-8 survive as surrogates."""
        return os.fsdecode(self.out.removesuffix(b"\n"))


@dataclass(frozen=True)
class Git:
    """git in one folder, with one environment."""

    folder: Path
    environment: Mapping[str, str]
    memory: int | None = None  # bytes that a process may allocate: a bound for what reads another's objects

    @classmethod
    def of_user(cls, folder: Path) -> Git:
        """Return git in a folder of the user's, with his configuration but without his hooks and monitors."""
        return cls(folder, _environment())

    @classmethod
    def of_ours(cls, git_dir: Path, *, memory: int | None = None) -> Git:
        """Return git in a git dir of our own that knows no configuration but its own; `memory` in bytes a process."""
        nothing = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        # Before git 2.32 only these keep the user's configuration out.
        nowhere = {"HOME": str(git_dir), "XDG_CONFIG_HOME": str(git_dir)}
        environment = {n: v for n, v in _environment().items() if not n.startswith("GIT_CONFIG_")}
        own = {"GIT_DIR": str(git_dir), "GIT_NO_REPLACE_OBJECTS": "1"}
        return cls(git_dir, {**environment, **nothing, **nowhere, **own}, memory)

    def ask(
        self,
        *arguments: str,
        stdin: bytes | IO[bytes] = b"",
        stdout: IO[bytes] | None = None,
        timeout: float = TIMEOUT,
        env: Mapping[str, str] | None = None,
    ) -> Answer:
        """Run a git command to its end and return its answer, whatever its exit code; `timeout` in seconds.

        Raises `GitFailed` when there is no git here, or when the command took too long.
        """
        given = subprocess.PIPE if isinstance(stdin, bytes) else stdin
        process = self._start(arguments, given, stdout or subprocess.PIPE, subprocess.PIPE, env)
        with _ended(process):
            try:
                out, err = process.communicate(stdin if isinstance(stdin, bytes) else None, timeout=timeout)
            except subprocess.TimeoutExpired:
                _too_long(arguments, timeout)
        return Answer(process.returncode, out or b"", one_line(neutralise(err.decode("utf-8", "replace")), 500))

    def must(
        self,
        *arguments: str,
        stdin: bytes | IO[bytes] = b"",
        stdout: IO[bytes] | None = None,
        timeout: float = TIMEOUT,
        env: Mapping[str, str] | None = None,
    ) -> Answer:
        """Do what `ask` does; raise `GitFailed` also for an exit code other than 0."""
        answer = self.ask(*arguments, stdin=stdin, stdout=stdout, timeout=timeout, env=env)
        if answer.code != 0:
            raise GitFailed(f"git {arguments[0]} failed in {self.folder}: {answer.err or f'exit code {answer.code}'}")
        return answer

    @contextmanager
    def stream(self, *arguments: str, stdin: IO[bytes], timeout: float = TIMEOUT) -> Iterator[IO[bytes]]:
        """Yield the command's output while it runs; `timeout` in seconds, for all of it.

        Leaving the block ends the command; its exit code is not looked at, so the reader has to know a complete output.
        """
        process = self._start(arguments, stdin, subprocess.PIPE, subprocess.DEVNULL, None)
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            _kill(process)

        timer = threading.Timer(timeout, expire)
        timer.daemon = True
        timer.start()
        try:
            with _ended(process):
                assert process.stdout is not None
                yield process.stdout
        finally:
            timer.cancel()
            if expired.is_set():
                _too_long(arguments, timeout)

    def _start(
        self,
        arguments: tuple[str, ...],
        stdin: int | IO[bytes],
        stdout: int | IO[bytes],
        stderr: int,
        env: Mapping[str, str] | None,
    ) -> subprocess.Popen[bytes]:
        settings = [word for setting in _SETTINGS for word in ("-c", setting)]
        try:
            process = subprocess.Popen(
                [*self._bound(), "git", *settings, *arguments],
                cwd=self.folder,
                env={**self.environment, **(env or {})},
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,  # so that a command's own children end with it
            )
        except NotADirectoryError:
            raise GitFailed(f"{self.folder} is not a folder") from None
        except FileNotFoundError:
            if not self.folder.is_dir():
                raise GitFailed(f"{self.folder} does not exist") from None
            raise GitFailed("git is not installed here", next_step="install git (2.25 or newer)") from None
        return process

    def _bound(self) -> list[str]:
        """Return what starts git under its memory limit, from its first instruction on; nothing without prlimit."""
        if self.memory is None or shutil.which("prlimit") is None:
            return []
        # The limit on data leaves the repository's packs alone, which are mapped and not allocated.
        return ["prlimit", f"--data={self.memory}", "--"]


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name in _KEPT or name.startswith(_KEPT_BEGINNINGS)
    }
    kept.pop("LANGUAGE", None)
    return {**kept, **_ALWAYS}


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """See to it that neither the process nor a child of it is left, however the block ends."""
    try:
        yield
    finally:
        if process.poll() is None:
            _kill(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _too_long(arguments: tuple[str, ...], timeout: float) -> NoReturn:
    raise GitFailed(f"git {arguments[0]} took longer than {timeout:g} s and was ended")
