"""How keys reach the engine's plugin: through the socket of an agent, never as an input.

The user's own agent does where it holds what is needed. Else one of ours holds the key files for as long as the process
that needs it lives, and ends with it, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coding_agent import processes
from coding_agent.errors import ExecutorUnavailable, InvalidInput
from coding_agent.executors import LOGINS, ssh_login

if TYPE_CHECKING:
    from coding_agent.settings import ExecutorSpec

SOCKET = "SSH_AUTH_SOCK"
USUAL_KEYS = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk", "id_xmss", "id_dsa")
LIMIT = 15.0  # seconds for an agent, or a program that talks to one, to answer
# Lives as long as what it was given as its input: a pipe, or a process (a pidfd). The agent that started it looks every
# ten seconds whether it lives, so nothing is left where it is killed itself.
_KEEP = (
    "import os, select, signal\n"
    "print(os.environ['SSH_AUTH_SOCK'], flush=True)\n"
    "watch = select.poll()\n"
    "watch.register(0, select.POLLIN)\n"
    "watch.poll()\n"
    "os.kill(int(os.environ['SSH_AGENT_PID']), signal.SIGTERM)\n"
)


@dataclass(frozen=True)
class _Keys:
    """What some executors log in with."""

    named: tuple[str, ...] = ()  # files that somebody has named: they have to be held
    usual: tuple[str, ...] = ()  # files that are there anyway
    agent: str | None = None  # socket of the user's agent


@contextlib.contextmanager
def for_update(specs: Iterable[ExecutorSpec]) -> Iterator[Mapping[str, str]]:
    """Yield what the engine needs in its environment to log in to these executors, while the block lasts.

    Raises `ExecutorUnavailable` with what to do where a key can't be used or there is none.
    """
    known, files = _lacking(specs)
    if not files:
        yield known
        return
    # Only this process has the other end: when it ends, so does the agent.
    read, write = os.pipe()
    process = None
    try:
        process, socket = _start(read)
        _add(socket, files)
        yield {SOCKET: socket}
    finally:
        os.close(write)
        os.close(read)
        if process is not None:
            _wait(process)


def for_shell(specs: Iterable[ExecutorSpec]) -> Mapping[str, str]:
    """Return what a shell has to set so that a bare `pulumi up` logs in to these executors.

    An agent that is started for that ends with the shell. Raises what `for_update` does.
    """
    known, files = _lacking(specs)
    if not files:
        return known
    shell = os.pidfd_open(_shell(os.getppid()))
    try:
        process, socket = _start(shell)
    finally:
        os.close(shell)
    try:
        _add(socket, files)
    except BaseException:
        process.terminate()
        raise
    return {SOCKET: socket}


def public_key(path: str | Path) -> str:
    """Return the public half (`TYPE BASE64`) of a private key's file.

    Raises `InvalidInput` where there is none that can be told: with a passphrase, it has to stand beside the key.
    """
    file = Path(path).expanduser()
    beside = file.with_name(f"{file.name}.pub")
    try:
        said = beside.read_text(encoding="utf-8", errors="replace")
    except OSError:
        done = _run(["ssh-keygen", "-y", "-P", "", "-f", str(file)])
        if done.returncode != 0:
            raise InvalidInput(
                f"the public half of {file} can't be told: {_said(done)}",
                next_step=f"name a private key that exists; for one with a passphrase write {beside}: "
                f"`ssh-keygen -y -f {file} > {beside}`",
            ) from None
        said = done.stdout
    return " ".join(said.split()[:2])


def _lacking(specs: Iterable[ExecutorSpec]) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """Return what tells of the user's own agent, and the files that one of ours has to hold where that does not do.

    Raises `ExecutorUnavailable` where a key can't be used or there is none.
    """
    wanted = [each for each in specs if each.type in LOGINS]
    if not wanted:
        return {}, ()
    keys = _keys(wanted)
    if keys.agent and _holds(keys.agent, keys.named):
        return {SOCKET: keys.agent}, ()
    return {}, _usable(keys, ", ".join(sorted({each.name for each in wanted})))


def _keys(specs: Iterable[ExecutorSpec]) -> _Keys:
    named: dict[str, None] = {}
    usual: dict[str, None] = {}
    agents = []
    for spec in specs:
        if spec.options.get("host"):
            login = ssh_login.of(spec)
            hops = login.hops
            agents.append(login.agent)
            for file in (each for hop in hops for each in hop.key_files):
                chosen = file == str(Path(str(spec.options.get("key_path"))).expanduser())
                into = named if chosen or Path(file).name not in USUAL_KEYS else usual
                into[file] = None
        elif spec.options.get("key_path"):
            named[str(Path(str(spec.options["key_path"])).expanduser())] = None
        else:
            usual |= {str(each): None for each in _usual() if each.is_file()}
            agents.append(ssh_login.agent_socket())
    agent = next((each for each in agents if each), ssh_login.agent_socket())
    return _Keys(tuple(named), tuple(each for each in usual if each not in named), agent)


def _usual() -> Iterator[Path]:
    yield from (Path.home() / ".ssh" / name for name in USUAL_KEYS)


def _holds(agent: str, named: tuple[str, ...]) -> bool:
    """Whether the user's agent holds all keys that were named; without any, whether it holds one at all."""
    done = _run(["ssh-add", "-L"], agent)
    held = {" ".join(line.split()[:2]) for line in done.stdout.splitlines()} if done.returncode == 0 else set()
    if not named:
        return bool(held)
    try:
        return all(public_key(each) in held for each in named)
    except InvalidInput:
        return False


def _usable(keys: _Keys, who: str) -> tuple[str, ...]:
    files = (*keys.named, *keys.usual)
    if not files:
        raise ExecutorUnavailable(
            f"executor {who}: there is no key to log in with, neither in an ssh agent nor in a file",
            next_step="`ssh-add` a key, or name its file in the executor's `key_path`",
        )
    unusable = {file: problem for file in files if (problem := _problem(file))}
    for file in keys.named:
        if file in unusable:
            raise ExecutorUnavailable(
                f"executor {who}: the key {file} can't be used: {unusable[file]}",
                next_step=f"`ssh-add {file}` makes it known to your ssh agent (`eval $(ssh-agent)` starts one)",
            )
    usable = tuple(file for file in files if file not in unusable)
    if not usable:
        raise ExecutorUnavailable(
            f"executor {who}: none of {', '.join(files)} can be used: {next(iter(unusable.values()))}",
            next_step="`ssh-add` makes it known to your ssh agent (`eval $(ssh-agent)` starts one)",
        )
    return usable


def _problem(file: str) -> str | None:
    """Return why a key can't be used by itself, or None where it can."""
    if not Path(file).is_file():
        return "there is no such file"
    done = _run(["ssh-keygen", "-y", "-P", "", "-f", file])
    if done.returncode == 0:
        return None
    said = _said(done)
    return "it has a passphrase" if "passphrase" in said else said


def _start(lives: int) -> tuple[subprocess.Popen[str], str]:
    """Start an agent that ends with what `lives` is the descriptor of; return its keeper and its socket."""
    try:
        process = subprocess.Popen(
            ["ssh-agent", sys.executable, "-I", "-S", "-c", _KEEP],
            stdin=lives,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is not for it
        )
    except FileNotFoundError as error:
        raise _no_client("ssh-agent") from error
    assert process.stdout is not None
    with process.stdout as said:
        socket = said.readline().strip()
    if not socket:
        _wait(process)
        raise ExecutorUnavailable(
            "ssh-agent did not start", next_step="`ssh-agent true` shows why; or start one: `eval $(ssh-agent)`"
        )
    return process, socket


def _add(socket: str, files: Iterable[str]) -> None:
    done = _run(["ssh-add", "-q", "--", *files], socket)
    if done.returncode != 0:
        raise ExecutorUnavailable(f"a key can't be used: {_said(done)}", next_step="`ssh-add` it yourself")


def _wait(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _shell(pid: int) -> int:
    """Return the shell itself, where `pid` is only a copy of it that waits for a command's output."""
    while (found := processes.stat(pid)) and (parent := int(found[processes.PARENT])) > 1:
        if _argv(parent) != _argv(pid):
            break
        pid = parent
    return pid


def _argv(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _run(argv: list[str], agent: str | None = None) -> subprocess.CompletedProcess[str]:
    # Nobody is asked for a passphrase: there may be nobody.
    environment = {**os.environ, "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C", **({SOCKET: agent} if agent else {})}
    environment.pop("DISPLAY", None)
    try:
        return subprocess.run(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT,
            start_new_session=True,  # without a terminal to ask on
            check=False,
        )
    except FileNotFoundError as error:
        raise _no_client(argv[0]) from error
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 1, "", f"{argv[0]} did not answer within {LIMIT:.0f} seconds")


def _no_client(program: str) -> ExecutorUnavailable:
    return ExecutorUnavailable(
        f"there is no {program} on this machine",
        next_step="install OpenSSH's client (Debian: `apt install openssh-client`)",
    )


def _said(done: subprocess.CompletedProcess[str]) -> str:
    from coding_agent.toolchain.installation import tail

    return tail(done.stderr, 2) or f"{done.args[0]} ended with {done.returncode}"


def key_of(spec: ExecutorSpec) -> str:
    """Return the public half (`TYPE BASE64`) of the key that a new host of an executor is to know.

    The one that the executor names, else the first of the user's agent, else of the usual files one that can be used by
    itself. Raises `InvalidInput` or `ExecutorUnavailable` with what to do.
    """
    if spec.options.get("key_path"):
        return public_key(str(spec.options["key_path"]))
    keys = _keys([spec])
    if keys.agent:
        done = _run(["ssh-add", "-L"], keys.agent)
        held = [" ".join(line.split()[:2]) for line in done.stdout.splitlines()] if done.returncode == 0 else []
        if held:
            return held[0]
    usable = _usable(keys, spec.name)
    # The shortest and newest kind first.
    return public_key(sorted(usable, key=lambda file: "ed25519" not in file)[0])
