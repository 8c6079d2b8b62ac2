"""Who logs in where: an executor's options, and for the rest the user's own ssh configuration, asked once.

`ssh -G` answers for the configuration, so that a Host alias, its port, user, keys, jump and host key alias count as
they do for the user's own `ssh`.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from coding_agent.errors import ExecutorUnavailable
from coding_agent.settings import INLINE

if TYPE_CHECKING:
    from coding_agent.settings import ExecutorSpec

SSH_PORT = 22
_ASK_LIMIT = 30.0  # seconds: `Match exec` in a configuration runs a command, and names may be looked up
_WORD = re.compile(r"(?:ssh://)?(?:(?P<user>[^@\s,]+)@)?(?P<host>\[[^\]\s]+\]|[^:@\s,]+)(?::(?P<port>\d{1,5}))?/?")
# What the plugin that declares the host can't do, with what to do instead.
_UNABLE = {
    "ProxyCommand": "set `proxy_jump` on the executor (or ProxyJump in the ssh configuration) instead",
    "BindAddress": "remove it for this host",
    "BindInterface": "remove it for this host",
}


@dataclass(frozen=True)
class Login:
    """Everything that a connection to one host needs; nothing in it is secret.

    Only `host` and `user` have to be known: a server that was just made has no configuration.
    """

    host: str  # name or address that is connected to
    user: str
    port: int = SSH_PORT
    name: str = ""  # the executor it belongs to, a jump too
    key_files: tuple[str, ...] = ()  # absolute; those that exist, in the order in which they are tried
    only_these_keys: bool = False  # of the agent's keys, too
    agent: str | None = None  # socket of the agent
    host_key_alias: str | None = None  # under which name its key is known
    host_key: str | None = None  # `ssh-ed25519 AAAA...`; nothing else is asked then
    known_hosts: tuple[str, ...] = ()  # the user's own files, absolute
    jump: Login | None = None  # the host that it is reached through

    @property
    def known_as(self) -> str:
        """The name under which known_hosts files have it."""
        if self.host_key_alias:
            return self.host_key_alias
        return self.host if self.port == SSH_PORT else f"[{self.host}]:{self.port}"

    @property
    def address(self) -> str:
        """Where it is, for people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}" if self.port == SSH_PORT else f"{self.user}@{host}:{self.port}"

    @property
    def hops(self) -> tuple[Login, ...]:
        """The hosts on the way, the target last."""
        return (*(self.jump.hops if self.jump else ()), self)


def of(spec: ExecutorSpec) -> Login:
    """Return the login of an executor with the option `host`. Raises `ExecutorUnavailable` with what to do."""
    options = spec.options
    host, port = str(options["host"]), int(options["port"]) if options.get("port") else None
    key_path = options.get("key_path")
    jump = options.get("proxy_jump")
    return _resolve(
        # One in a task file has no name: it goes by its host's.
        spec.name if spec.name != INLINE else f"{host}:{port}" if port else host,
        host,
        user=options.get("user"),
        port=port,
        key_file=str(Path(str(key_path)).expanduser()) if key_path else None,
        jump=str(jump) if jump else None,
        host_key=options.get("host_key"),
    )


def at(word: str) -> Login:
    """Return the login of a host, [USER@]HOST[:PORT], that no executor names. Raises `ExecutorUnavailable`."""
    found = _parsed(word, word)
    port = int(found["port"]) if found["port"] else None
    return _resolve(word, found["host"], user=found["user"], port=port, key_file=None, jump=None)


def agent_socket(said: str | None = None) -> str | None:
    """Return the socket of the agent: what `IdentityAgent` says, else $SSH_AUTH_SOCK; None where there is none."""
    if said and said != "SSH_AUTH_SOCK":
        if said == "none":
            return None
        found = os.environ.get(said.strip("${}")) if said.startswith("$") else str(Path(said).expanduser())
        return found or None
    return os.environ.get("SSH_AUTH_SOCK") or None


def _resolve(
    name: str,
    host: str,
    *,
    user: str | None,
    port: int | None,
    key_file: str | None,
    jump: str | None,
    host_key: str | None = None,
    jumps: int = 0,
) -> Login:
    said = _ask(name, host.strip("[]"), user, port)
    for option, instead in _UNABLE.items():
        # An executor's own jump takes the place of a ProxyCommand.
        if said.get(option.lower(), ["none"]) != ["none"] and not (option == "ProxyCommand" and jump):
            raise ExecutorUnavailable(
                f"executor {name}: the ssh configuration of {host} has {option}, which can't be used here",
                next_step=instead,
            )
    target, at = said["hostname"][0], int(said["port"][0])
    if key_file and not Path(key_file).is_file():
        raise ExecutorUnavailable(
            f"executor {name}: there is no key {key_file}", next_step="name the private key's file in `key_path`"
        )
    who = said["user"][0]
    files = [key_file] if key_file else [_expanded(each, target, who) for each in said.get("identityfile", [])]
    through = jump or said.get("proxyjump", ["none"])[0]
    alias = said.get("hostkeyalias", [""])[0]
    return Login(
        host=target,
        user=who,
        port=at,
        name=name,
        key_files=tuple(each for each in files if Path(each).is_file()),
        only_these_keys=bool(key_file) or said.get("identitiesonly") == ["yes"],
        agent=agent_socket(said.get("identityagent", [None])[0]),
        host_key_alias=alias or None,
        host_key=" ".join(host_key.split()[:2]) if host_key else None,
        known_hosts=_known_hosts_files(said),
        jump=_jump(name, through, key_file, jumps) if through != "none" else None,
    )


def _jump(name: str, said: str, key_file: str | None, jumps: int) -> Login:
    if jumps or "," in said:
        raise ExecutorUnavailable(
            f"executor {name}: its host is reached through more than one jump ({said}), which can't be used here",
            next_step="reach it through one host at most, or run `coding-agent` on the first of them",
        )
    found = _parsed(name, said)
    port = int(found["port"]) if found["port"] else None
    jump = _resolve(name, found["host"], user=found["user"], port=port, key_file=None, jump=None, jumps=1)
    # The plugin offers both of them every key that the agent holds.
    return replace(jump, key_files=tuple(dict.fromkeys((*jump.key_files, *([key_file] if key_file else [])))))


def _parsed(name: str, word: str) -> re.Match[str]:
    found = _WORD.fullmatch(word)
    if not found or word.startswith("-") or found["host"].startswith("-"):
        raise ExecutorUnavailable(
            f"executor {name}: {word!r} is no host to log in to", next_step="write it as [USER@]HOST[:PORT]"
        )
    return found


def _ask(name: str, host: str, user: str | None, port: int | None) -> Mapping[str, list[str]]:
    """Return what `ssh -G` says of a host: the values of each option, which is in small letters."""
    argv = ["ssh", *_configuration(), "-G"]
    argv += ["-l", user] if user else []
    argv += ["-p", str(port)] if port else []
    try:
        done = subprocess.run(
            [*argv, "--", host],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_LIMIT,
            check=False,
        )
    except FileNotFoundError as error:
        raise ExecutorUnavailable(
            f"executor {name}: there is no `ssh` on this machine",
            next_step="install OpenSSH's client (Debian: `apt install openssh-client`)",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ExecutorUnavailable(
            f"executor {name}: `ssh -G {host}` did not end within {_ASK_LIMIT:.0f} seconds",
            next_step="see what in the ssh configuration (Match exec) takes so long",
        ) from error
    if done.returncode != 0:
        from coding_agent.text import neutralise

        complaint = neutralise(done.stderr.decode("utf-8", "replace").strip()[-400:])
        raise ExecutorUnavailable(
            f"executor {name}: the ssh configuration can't be used for {host}: {complaint or 'nothing said'}",
            next_step=f"`ssh -G {host}` has to work",
        )
    said: dict[str, list[str]] = {}
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        option, _, value = line.partition(" ")
        said.setdefault(option.lower(), []).append(value)
    return said


def _configuration() -> list[str]:
    # OpenSSH takes the home of the list of users, whatever $HOME says; everything else here goes by $HOME.
    if str(Path.home()) == _listed_home():
        return []
    file = Path.home() / ".ssh" / "config"
    return ["-F", str(file) if file.is_file() else "none"]


def _known_hosts_files(said: Mapping[str, list[str]]) -> tuple[str, ...]:
    files: list[str] = []
    for option in ("userknownhostsfile", "globalknownhostsfile"):
        for value in said.get(option, []):
            # The usual files stand in a home whose path may hold spaces.
            usual = [f"{_listed_home()}/.ssh/known_hosts", f"{_listed_home()}/.ssh/known_hosts2"]
            if value == " ".join(usual):
                files += [str(Path.home() / ".ssh" / Path(each).name) for each in usual]
            else:
                files += [str(Path(each).expanduser()) for each in value.split() if each not in ("none", "/dev/null")]
    return tuple(files)


def _expanded(file: str, host: str, user: str) -> str:
    values = {"%%": "%", "%d": str(Path.home()), "%h": host, "%r": user, "%u": pwd.getpwuid(os.getuid()).pw_name}
    replaced = re.sub(r"%[%dhru]", lambda found: values[found[0]], file)
    return str(Path(replaced).expanduser())


def _listed_home() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return str(Path.home())
