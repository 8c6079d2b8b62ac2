"""`trust`: by which keys the hosts of an executor are known from now on. Somebody has to say that they are right."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from coding_agent.cli.names import complete_executor
from coding_agent.cli.options import command, json_option
from coding_agent.cli.screen import Screen
from coding_agent.errors import HostKeyChanged, InvalidInput, NotFound

if TYPE_CHECKING:
    from coding_agent.executors.ssh_login import Login


@command(
    "trust",
    examples=[
        "trust crib",
        "trust crib --fingerprint SHA256:2kX...",
        "trust 192.0.2.7:2222",
        "trust crib --yes --json",
    ],
    codes=[(0, "its hosts are known"), 2, (3, "a host can't be reached, or has no key that can be used"), 4],
)
@click.argument("name", metavar="EXECUTOR|HOST", shell_complete=complete_executor)
@click.option(
    "--fingerprint",
    "expected",
    multiple=True,
    metavar="SHA256:...",
    help="A key that is right, as `ssh-keygen -l` shows it on the host; nothing is asked, and no other is recorded.",
)
@click.option("--yes", "-y", is_flag=True, help="Believe a host that was not known before, without asking.")
@json_option
def trust_command(name: str, expected: tuple[str, ...], yes: bool, as_json: bool) -> int:
    """Show the host keys of an executor's host, and of the host it is reached through, and record them.

    Compare the fingerprints with what the host itself says (`ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub`
    there). A host whose key is another than before is believed only after asking, or with --fingerprint.
    """
    from coding_agent.executors import host_keys

    screen = Screen(as_json=as_json)
    hosts = []
    target = _login(name)
    for login in target.hops:
        known, seen = host_keys.known(login), host_keys.scan(login)
        right = [key for key in seen if host_keys.fingerprint(key) in expected] if expected else list(seen)
        recorded = not _enough(known, seen)
        if recorded:
            _show(screen, login, seen)
            _believe(screen, login, known, seen, right, asked=bool(expected) or (yes and not _changed(known, seen)))
            host_keys.record(login, right)
            screen.say(f"recorded in {host_keys.file()}")
        else:
            screen.say(f"{login.address} is known already: {host_keys.described(_both(known, seen))}")
        keys = [{"type": key.split()[0], "fingerprint": host_keys.fingerprint(key)} for key in (right or seen)]
        hosts.append({"host": login.address, "known_as": login.known_as, "recorded": recorded, "keys": keys})
        host_keys.for_plugin(login, ask=False)
    if as_json:
        screen.data({"executor": target.name, "file": str(host_keys.file()), "hosts": hosts})
    return 0


def _login(name: str) -> Login:
    """Return the login of an executor, or of a host that is written out. Raises `NotFound`, `InvalidInput`."""
    from coding_agent.executors import ssh_login
    from coding_agent.settings import Settings

    settings = Settings.load()
    try:
        spec = settings.executor(name)
    except NotFound:
        if any(each in name for each in ".:@"):
            return ssh_login.at(name)
        raise
    if spec.type != "ssh":
        raise InvalidInput(
            f"executor {name} is of type {spec.type}: no host of it is to be known",
            next_step="name an executor of type ssh, or a host",
        )
    return ssh_login.of(spec)


def _both(known: Sequence[str], seen: Sequence[str]) -> list[str]:
    return [key for key in known if key in seen]


def _enough(known: Sequence[str], seen: Sequence[str]) -> bool:
    """Return whether the host is known by a key that the plugin too can check, or has none better."""
    both = _both(known, seen)
    return bool(both) and (any(not key.startswith("ssh-rsa ") for key in both) or len(seen) == len(both))


def _changed(known: Sequence[str], seen: Sequence[str]) -> bool:
    return bool(known) and not _both(known, seen)


def _show(screen: Screen, login: Login, seen: Sequence[str]) -> None:
    from coding_agent.executors import host_keys

    screen.say(f"{login.address} shows")
    screen.table(("", "", ""), [("", host_keys.kind(key), host_keys.fingerprint(key)) for key in seen])


def _believe(
    screen: Screen, login: Login, known: Sequence[str], seen: Sequence[str], right: Sequence[str], *, asked: bool
) -> None:
    """See that somebody says that the keys are right. Raises what says that nobody did."""
    from coding_agent.executors import host_keys

    if not right:
        raise HostKeyChanged(
            f"{login.address} shows none of the keys that --fingerprint names",
            next_step="find out why before anything is sent there: somebody may be in its place",
        )
    if login.host_key:
        raise host_keys.changed(login, known, seen)
    if asked:
        return
    if _changed(known, seen):
        screen.say(f"IT HAS CHANGED: it was known by {host_keys.described(known)}. Somebody may be in its place.")
    if not sys.stdin.isatty():
        raise InvalidInput(
            f"nobody said that these are the keys of {login.address}: nothing was recorded",
            next_step="repeat it with --fingerprint and what the host itself says"
            + ("" if _changed(known, seen) else ", or with --yes"),
        )
    if not click.confirm("Are these its keys?", err=True):
        raise InvalidInput("not confirmed: nothing was recorded")
