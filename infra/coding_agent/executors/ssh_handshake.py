"""How a connection over ssh comes about: jump, host key, login. What can go wrong with that is said here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from coding_agent.errors import ConnectionBroken, LoginRefused
from coding_agent.executors import host_keys
from coding_agent.executors.ssh_login import Login
from coding_agent.text import neutralise

CONNECT_LIMIT = 30.0  # seconds for one host: to reach it, to know it and to log in
_DROPPED = (0.3, 1.0, 2.0)  # seconds before trying again where the server hung up at once: it had too many callers
_HUNG_UP = (asyncssh.ConnectionLost, ConnectionResetError)
_RSA_PROOFS = ("rsa-sha2-512", "rsa-sha2-256")
_KINDS = (host_keys.TYPES[:1], host_keys.TYPES[1:-1], host_keys.TYPES[-1:])  # ed25519, ecdsa, RSA
# AES first: every machine's processor has it, and it takes half the time here.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr")

# What asyncssh logs is said by our errors already.
logging.getLogger("asyncssh").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Link:
    """An open connection, and those that it goes through."""

    connection: asyncssh.SSHClientConnection
    below: tuple[asyncssh.SSHClientConnection, ...] = ()

    def abort(self) -> None:
        """Drop all of it at once."""
        for each in (self.connection, *reversed(self.below)):
            each.abort()


@dataclass
class _Keys:
    """What there is to log in with."""

    pairs: list[asyncssh.SSHKeyPair | asyncssh.SSHKey] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    locked: list[str] = field(default_factory=list)  # files that a passphrase protects
    names: dict[int, str] = field(default_factory=dict)
    agent: asyncssh.SSHAgentClient | None = None

    def add(self, key: asyncssh.SSHKeyPair | asyncssh.SSHKey, name: str) -> None:
        self.pairs.append(key)
        self.names[id(key)] = name


class _Client(asyncssh.SSHClient):
    """Offers the keys one by one and remembers a host key that nobody knows."""

    def __init__(self, keys: _Keys) -> None:
        self._keys = keys
        self._left = list(keys.pairs)
        self.shown: str | None = None

    def public_key_auth_requested(self) -> asyncssh.SSHKeyPair | asyncssh.SSHKey | None:
        if not self._left:
            return None
        key = self._left.pop(0)
        self._keys.tried.append(self._keys.names[id(key)])
        return key

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.shown = _plain(key)
        return False


async def connect(login: Login, *, keepalive: tuple[float, int]) -> Link:
    """Log in. `keepalive` is how often (seconds) the other side is asked, and how many answers may be missing.

    Raises `ConnectionBroken`, `LoginRefused`, `HostKeyUnknown` or `HostKeyChanged`, each with what to do.
    """
    below = await connect(login.jump, keepalive=keepalive) if login.jump else None
    try:
        keys = await _keys(login)
        try:
            connection = await _patiently(login, keys, below, keepalive)
        finally:
            if keys.agent:
                keys.agent.close()
    except BaseException:
        if below:
            below.abort()
        raise
    return Link(connection, (*below.below, below.connection) if below else ())


async def shown(login: Login, *, timeout: float) -> tuple[str, ...]:
    """Return the keys that a host shows, one of each type. Nobody logs in there. Raises `ConnectionBroken`."""
    below = await connect(login.jump, keepalive=(timeout, 1)) if login.jump else None
    found: list[str] = []
    try:
        async with _explained(login, timeout):
            # Whatever it has, first: what it lacks afterwards, it lacks because it has none of that type.
            found.append(_plain(await _ask_for_key(login, host_keys.TYPES, below, _DROPPED)))
            for kinds in _KINDS:
                if not found[0].startswith(kinds):
                    # Some servers say that they have none, others hang up.
                    with contextlib.suppress(asyncssh.KeyExchangeFailed, *_HUNG_UP):
                        found.append(_plain(await _ask_for_key(login, kinds, below, _DROPPED[:1])))
    finally:
        if below:
            below.abort()
    return tuple(found)


async def _ask_for_key(
    login: Login, kinds: Sequence[str], below: Link | None, pauses: Sequence[float]
) -> asyncssh.SSHKey:
    for pause in (*pauses, None):
        try:
            key = await asyncssh.get_server_host_key(
                login.host,
                login.port,
                tunnel=below.connection if below else None,
                server_host_key_algs=_proofs(kinds),
                config=None,
            )
        except _HUNG_UP:
            if pause is None:
                raise
            await asyncio.sleep(pause)
        else:
            assert key is not None  # which only happens where Kerberos vouches for the host
            return key
    raise AssertionError("a host that neither answered nor failed")


def _proofs(kinds: Sequence[str]) -> list[str]:
    """Return the algorithms by which a host shows that a key of one of these types is its own."""
    # ssh-rsa alone would mean SHA-1.
    return [proof for kind in kinds for proof in (_RSA_PROOFS if kind == "ssh-rsa" else (kind,))]


async def _patiently(
    login: Login, keys: _Keys, below: Link | None, keepalive: tuple[float, int]
) -> asyncssh.SSHClientConnection:
    known = await asyncio.to_thread(host_keys.known, login)
    if not known:
        raise host_keys.unknown(login, await shown(login, timeout=CONNECT_LIMIT))
    client = _Client(keys)
    async with _explained(login, CONNECT_LIMIT, known, client, keys):
        for pause in (*_DROPPED, None):
            try:
                return await _log_in(login, known, client, below, keepalive)
            except _HUNG_UP:
                if pause is None or keys.tried:
                    raise
                await asyncio.sleep(pause)
    raise AssertionError("a login that neither worked nor failed")


async def _log_in(
    login: Login, known: Sequence[str], client: _Client, below: Link | None, keepalive: tuple[float, int]
) -> asyncssh.SSHClientConnection:
    connection, _ = await asyncssh.create_connection(
        lambda: client,
        login.host,
        login.port,
        tunnel=below.connection if below else None,
        config=None,  # `ssh -G` has been asked
        username=login.user,
        known_hosts=([asyncssh.import_public_key(each) for each in known], [], []),
        server_host_key_algs=_proofs(list(dict.fromkeys(key.split()[0] for key in known))),
        encryption_algs=list(_CIPHERS),
        compression_algs=["none"],
        client_keys=None,  # the client offers them
        public_key_auth=True,
        password_auth=False,
        kbdint_auth=False,
        host_based_auth=False,
        gss_auth=False,
        gss_kex=False,
        keepalive_interval=keepalive[0],
        keepalive_count_max=keepalive[1],
        login_timeout=CONNECT_LIMIT,
    )
    return connection


@contextlib.asynccontextmanager
async def _explained(
    login: Login,
    limit: float,
    known: Sequence[str] = (),
    client: _Client | None = None,
    keys: _Keys | None = None,
) -> AsyncIterator[None]:
    """Turn what goes wrong inside into an error that says what it is and what to do."""
    where = f"{login.address}" + (f" (through {login.jump.address})" if login.jump else "")
    try:
        async with asyncio.timeout(limit):
            yield
    except TimeoutError as error:
        raise ConnectionBroken(
            f"{where} did not answer within {limit:.0f} seconds", next_step="see that it is on and can be reached"
        ) from error
    except asyncssh.PermissionDenied as error:
        raise _refused(login, where, keys or _Keys()) from error
    except (*_HUNG_UP, asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
        if client and client.shown:
            raise host_keys.changed(login, known, (client.shown,)) from error
        if known and not (keys and keys.tried):
            # One that has no key of the types that it is known by says so, or hangs up.
            seen: tuple[str, ...] = ()
            with contextlib.suppress(ConnectionBroken):
                seen = await shown(login, timeout=limit)
            if seen and not set(seen) & set(known):
                raise host_keys.changed(login, known, seen) from error
        raise _unreachable(where, error) from error
    except asyncssh.ChannelOpenError as error:
        raise ConnectionBroken(
            f"{where} can't be reached from there: {_said(error)}",
            next_step="see that the host is on, and that the one before it allows forwarding (AllowTcpForwarding)",
        ) from error
    except ConnectionRefusedError as error:
        raise ConnectionBroken(
            f"{where} refused the connection", next_step="see that its ssh server runs, and on which port"
        ) from error
    except socket.gaierror as error:
        raise ConnectionBroken(
            f"the name {login.host} can't be found: {error.strerror}",
            next_step="see that `host` is right and that this machine is on the network",
        ) from error
    except (asyncssh.Error, OSError) as error:
        raise _unreachable(where, error) from error


def _unreachable(where: str, error: Exception) -> ConnectionBroken:
    return ConnectionBroken(
        f"{where} can't be reached: {_said(error)}", next_step="see that it is on, and that its ssh server runs"
    )


def _refused(login: Login, where: str, keys: _Keys) -> LoginRefused:
    tried = ", ".join(dict.fromkeys(keys.tried))
    told = f"it was offered {tried}" if tried else "there was no key to offer"
    if keys.locked:
        told += f"; a passphrase protects {', '.join(keys.locked)}"
        step = f"`ssh-add {keys.locked[0]}` gives it to your ssh agent"
    elif tried:
        step = f"see that one of them stands in ~{login.user}/.ssh/authorized_keys there (`ssh-copy-id`)"
    else:
        step = "give a key to your ssh agent (`ssh-add`), or name its file in the executor's key_path"
    return LoginRefused(f"{where} lets nobody in: {told}", next_step=step)


async def _keys(login: Login) -> _Keys:
    """Find the keys: of those in the agent first the ones that are named, then the others, then files."""
    keys = _Keys()
    named = {blob for file in login.key_files if (blob := _public_blob(file))}
    held: list[asyncssh.SSHKeyPair] = []
    if login.agent:
        with contextlib.suppress(OSError, ValueError, asyncssh.Error, TimeoutError):
            async with asyncio.timeout(CONNECT_LIMIT):
                keys.agent = await asyncssh.connect_agent(login.agent)
                held = list(await keys.agent.get_keys())
    for pair in sorted(held, key=lambda each: each.public_data not in named):
        if pair.public_data in named or not login.only_these_keys:
            keys.add(pair, f"{pair.get_comment() or pair.get_algorithm()} (agent)")
    in_agent = {pair.public_data for pair in held}
    for file in login.key_files:
        if _public_blob(file) in in_agent:
            continue
        try:
            keys.add(asyncssh.read_private_key(file), file)
        except (OSError, ValueError):
            # Not readable, or of a kind that only an agent can use, as on a hardware token; or locked.
            if _is_locked(file):
                keys.locked.append(file)
    return keys


def _is_locked(file: str) -> bool:
    try:
        asyncssh.read_private_key(file, passphrase="no passphrase of anybody's")  # noqa: S106 - it tells by its error
    except asyncssh.KeyEncryptionError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _public_blob(file: str) -> bytes | None:
    """Return a private key's public half, which a passphrase does not protect; None where it can't be told."""
    for path in (Path(f"{file}.pub"), Path(file)):
        with contextlib.suppress(OSError, ValueError):
            return asyncssh.read_public_key(path).public_data
    return None


def _plain(key: asyncssh.SSHKey) -> str:
    return " ".join(key.export_public_key().decode("ascii").split()[:2])


def _said(error: Exception) -> str:
    return neutralise(str(getattr(error, "reason", "") or getattr(error, "strerror", "") or error))[:300]
