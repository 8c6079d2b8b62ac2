"""A connection over ssh to the real sshd: every kind of user, keys, host keys, jumps, and a network that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coding_agent.errors import (
    CodingAgentError,
    CommandTimeout,
    ConnectionBroken,
    ExecutorUnavailable,
    HostKeyChanged,
    HostKeyUnknown,
    LoginRefused,
)
from coding_agent.executors import host_keys, ssh_login
from coding_agent.executors.ssh_connection import KEEPALIVE_MAX, SshConnection
from coding_agent.settings import ExecutorSpec
from machines.relay import Relay, relay
from machines.ssh_host import USERS, SshHost
from processes import processes_with_text
from waiting import until

# Pieces that go into a frozen connection before it is given up: the questions, a few that were on their way when it
# froze, and the beginning and the ending of a call. An hour of questions would be thousands.
UNHEARD = 4 * KEEPALIVE_MAX
ODD = ["a b", "-dash", "'quote\"", "new\nline", "ünï", "$(touch x)", "*", "semi;colon", "back\\slash", "!!", ""]


@contextmanager
def connection(spec: ExecutorSpec, **options: Any) -> Iterator[SshConnection]:
    """Give the connection of an executor."""
    opened = SshConnection(ssh_login.of(spec), **options)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def relayed(host: SshHost, **options: Any) -> Iterator[tuple[SshConnection, Relay]]:
    """Give a connection through a relay."""
    with relay(host.address, host.port) as between:
        spec = host.spec(host="127.0.0.1", port=between.address[1])
        with connection(spec, **options) as opened:
            yield opened, between


@contextmanager
def once_begun(host: SshHost, mark: str, then: Callable[[], object]) -> Iterator[None]:
    """Do `then` as soon as the file `mark` is on the host, beside what the block does."""

    def wait() -> None:
        until(lambda: host.run("bash", "-c", f"[[ ! -e {mark} ]] || echo begun"))
        then()

    beside = threading.Thread(target=wait)
    beside.start()
    try:
        yield
    finally:
        beside.join()


def says(opened: SshConnection, *argv: str, **options: Any) -> str:
    """Return what a command prints."""
    done = opened.run(argv, **{"timeout": 30.0, **options})
    assert done.exit_code == 0, done
    return done.stdout.decode()


def ssh_config(home: Path, text: str) -> None:
    """Write the user's ssh configuration."""
    (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
    (home / ".ssh" / "config").write_text(text)


def trust(*arguments: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `coding-agent trust`."""
    argv = [sys.executable, "-m", "coding_agent", "trust", *arguments]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, check=False, **{"stdin": subprocess.DEVNULL, **options}
    )
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done


def executors_file(home: Path, spec: ExecutorSpec) -> None:
    """Write an executors file with one executor."""
    file = home / ".config" / "openclaw" / "coding-agent.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    values = {name: value for name, value in spec.options.items() if value is not None}
    file.write_text(json.dumps({"executors": [{"name": spec.name, "type": "ssh", **values}]}))


@pytest.mark.parametrize("user", [*USERS, "root"])
def test_every_kind_of_user(user: str, ssh_host: SshHost, home: Path) -> None:
    """Whatever login shell, start files, home and umask are, a command and its input arrive as given."""
    with connection(ssh_host.spec(user)) as opened:
        script = (
            'printf "%s\\0" "$@" "$HOME" "$ONE" "${SSH_CLIENT-unset}"; bash -c "echo again"; cat; echo err >&2; exit 41'
        )
        done = opened.run(["bash", "-c", script, "x", *ODD], stdin=b"in\0put", timeout=30, env={"ONE": "a b\n'!"})
        *said, rest = done.stdout.split(b"\0", len(ODD) + 3)
        assert [each.decode() for each in said] == [*ODD, ssh_host.home(user), "a b\n'!", "unset"]
        assert (done.exit_code, rest, done.stderr) == (41, b"again\nin\0put", b"err\n")
        with pytest.raises(ConnectionBroken, match="can't be started"):
            opened.run(["no-such-program"], timeout=30)
        with pytest.raises(CommandTimeout, match="sleep did not end within 1 second"):
            opened.run(["sleep", "4321"], timeout=1, env={"TEST_MARK": f"kind-{user}-{os.getpid()}"})
        until(lambda: not processes_with_text(f"TEST_MARK=kind-{user}-{os.getpid()}"), limit=10)
        folder = ssh_host.home(user)
        opened.put(f"{folder}/a file", b"content", mode=0o640)
        assert opened.get(f"{folder}/a file", limit=100) == b"content"
        assert says(opened, "stat", "-c", "%a", f"{folder}/a file") == "640\n"


def test_user_who_may_run_nothing(ssh_host: SshHost, home: Path) -> None:
    """A user whose shell runs no commands is said to be one, with what the host answered."""
    ssh_host.run("useradd", "-m", "-s", "/usr/sbin/nologin", "-p", "*", "nobody2")
    ssh_host.run("cp", "-r", "/home/plain/.ssh", "/home/nobody2/")
    ssh_host.run("chown", "-R", "nobody2", "/home/nobody2")
    with connection(ssh_host.spec("nobody2")) as opened:
        with pytest.raises(ConnectionBroken, match="runs no commands for this user: This account is currently not"):
            opened.run(["true"], timeout=30)


def test_many_commands_at_once(ssh_host: SshHost, home: Path) -> None:
    """Commands of many threads share one connection, more of them than sshd takes at once."""
    found: list[str] = []
    with relayed(ssh_host) as (opened, between):
        callers = [
            threading.Thread(target=lambda number=number: found.append(says(opened, "echo", str(number))))
            for number in range(30)
        ]
        for each in callers:
            each.start()
        for each in callers:
            each.join()
        assert sorted(map(int, found)) == list(range(30))
        assert between.accepted == 1


def test_settings_of_the_users_configuration(ssh_host: SshHost, home: Path) -> None:
    """A Host alias brings its address, port, user, key, jump and host key alias; the executor's own options win."""
    known = home / ".ssh" / "known_hosts"
    ssh_config(
        home,
        f"Host build\n  HostName {ssh_host.address}\n  Port 2201\n  User zsh\n  IdentityFile {ssh_host.key}\n"
        f"  HostKeyAlias the-build-host\n  ProxyJump spaced@{ssh_host.address}\n"
        f"Host {ssh_host.address}\n  IdentityFile {ssh_host.key}\n",
    )
    host_key = ssh_host.host_key("ecdsa")
    known.write_text(f"the-build-host {host_key}\n{ssh_host.known_hosts()}")
    subprocess.run(["ssh-keygen", "-H", "-f", str(known)], check=True, capture_output=True, timeout=60)
    assert ssh_host.address not in known.read_text()
    with ssh_host.another_server(2201, "HostKey=/etc/ssh/ssh_host_ecdsa_key"):
        with connection(ExecutorSpec("crib", "ssh", options={"host": "build"})) as opened:
            login = opened.login
            assert (login.user, login.port, login.known_as) == ("zsh", 2201, "the-build-host")
            assert login.jump is not None
            assert login.jump.user == "spaced"
            assert says(opened, "whoami") == "zsh\n"
            # The jump's own sshd made the connection.
            assert "sshd: spaced" in ssh_host.run("ps", "-eo", "args")
        assert host_keys.for_plugin(login) == host_key
        with connection(ExecutorSpec("crib", "ssh", options={"host": "build", "user": "fish"})) as opened:
            assert says(opened, "whoami") == "fish\n"
        known.write_text(f"the-build-host {host_key}\n")
        with connection(ExecutorSpec("crib", "ssh", options={"host": "build"})) as opened:
            with pytest.raises(HostKeyUnknown, match=f"the host spaced@{ssh_host.address} is not known"):
                opened.run(["true"], timeout=30)


def test_settings_that_can_not_be_used(ssh_host: SshHost, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the declared half can't do is refused by name and with what to do, before anything is sent."""
    ssh_config(
        home,
        "Host proxied\n  ProxyCommand nc %h %p\nHost bound\n  BindAddress 127.0.0.1\n"
        "Host far\n  ProxyJump a,b\nHost behind\n  ProxyJump between\nHost between\n  ProxyJump first\n",
    )
    for host, said in (
        ("proxied", "has ProxyCommand, which can't be used here"),
        ("bound", "has BindAddress, which can't be used here"),
        ("far", "more than one jump"),
        ("behind", "more than one jump"),
    ):
        with pytest.raises(ExecutorUnavailable, match=said) as caught:
            ssh_login.of(ExecutorSpec("crib", "ssh", options={"host": host}))
        assert caught.value.next_step
    with pytest.raises(ExecutorUnavailable, match="there is no key /none"):
        ssh_login.of(ssh_host.spec(key_path="/none"))
    ssh_config(home, "Nonsense yes\n")
    with pytest.raises(ExecutorUnavailable, match=r"the ssh configuration can't be used for .*: .*[Nn]onsense"):
        ssh_login.of(ssh_host.spec())
    spec = ssh_host.spec()
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(ExecutorUnavailable, match="there is no `ssh` on this machine"):
        ssh_login.of(spec)


def test_keys(ssh_host: SshHost, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key comes from a file or from the agent; where none is accepted, those that were offered are named."""
    (home / ".ssh").mkdir(mode=0o700)
    no_key = ssh_host.spec(key_path=None)
    with connection(no_key) as opened, pytest.raises(LoginRefused, match="there was no key to offer") as caught:
        opened.run(["true"], timeout=30)
    assert "ssh-add" in str(caught.value.next_step)

    other, locked = home / ".ssh" / "id_ecdsa", home / ".ssh" / "id_ed25519"
    subprocess.run(["ssh-keygen", "-qt", "ecdsa", "-N", "", "-f", other], check=True, timeout=60)
    locked.write_bytes(ssh_host.key.read_bytes())
    locked.chmod(0o600)
    subprocess.run(
        ["ssh-keygen", "-qp", "-P", "", "-N", "a passphrase", "-f", locked], check=True, capture_output=True, timeout=60
    )
    with connection(no_key) as opened, pytest.raises(LoginRefused) as caught:
        opened.run(["true"], timeout=30)
    assert f"it was offered {other}" in caught.value.message
    assert f"a passphrase protects {locked}" in caught.value.message
    assert caught.value.next_step == f"`ssh-add {locked}` gives it to your ssh agent"

    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(home / "agent")], stdout=subprocess.DEVNULL)
    try:
        until((home / "agent").exists)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(home / "agent"))
        # More keys than sshd lets one try: the one that is named comes first.
        for number in range(8):
            file = home / f"key-{number}"
            subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", file], check=True, timeout=60)
            subprocess.run(["ssh-add", "-q", file], check=True, timeout=60)
        subprocess.run(["ssh-add", "-q", ssh_host.key], check=True, timeout=60)
        with connection(ssh_host.spec(key_path=str(locked))) as opened:
            assert says(opened, "whoami") == "plain\n"
    finally:
        agent.terminate()
        agent.wait(10)
    with connection(ssh_host.spec()) as opened:  # an agent that is gone takes nothing away
        assert says(opened, "whoami") == "plain\n"


def test_host_keys(ssh_host: SshHost, home: Path) -> None:
    """An unknown host and a changed one are refused with the fingerprints, and what ssh's own files say counts."""
    spec = ssh_host.spec(host_key=None)
    key = ssh_host.host_key()
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", "-"], input=key, text=True, capture_output=True, check=True, timeout=60
    )
    assert host_keys.fingerprint(key) == shown.stdout.split()[1]
    with connection(spec) as opened, pytest.raises(HostKeyUnknown) as unknown:
        opened.run(["true"], timeout=30)
    assert f"{host_keys.fingerprint(key)} (ed25519)" in unknown.value.message
    assert "`coding-agent trust crib`" in str(unknown.value.next_step)

    ssh_config(home, "")
    file = home / ".ssh" / "known_hosts"
    another = host_keys.one_use().public
    for text in (f"{ssh_host.address} {another}\n", f"{ssh_host.known_hosts('ecdsa')}"):
        file.write_text(text)
        with connection(spec) as opened:
            if "ecdsa" in text:
                assert says(opened, "whoami") == "plain\n"
                continue
            with pytest.raises(HostKeyChanged) as changed:
                opened.run(["true"], timeout=30)
            assert host_keys.fingerprint(another) in changed.value.message
            assert host_keys.fingerprint(key) in changed.value.message
            assert "attacker" in changed.value.message
    # A key that was taken back, a file with nonsense in it, and a key of a type that it does not show.
    file.write_text(f"{ssh_host.known_hosts()}@revoked * {key}\nnonsense\n")
    assert key not in host_keys.known(ssh_login.of(spec))
    with connection(ssh_host.spec(host_key=another)) as opened, pytest.raises(HostKeyChanged, match="is known by"):
        opened.run(["true"], timeout=30)


def test_trust(ssh_host: SshHost, home: Path) -> None:
    """`trust` records a host's keys, and its jump's, once somebody said that they are right; a change is asked anew."""
    ssh_config(home, f"Host *\n  IdentityFile {ssh_host.key}\n")
    spec = ssh_host.spec(host_key=None, key_path=None, port=2202, proxy_jump=f"noisy@{ssh_host.address}")
    executors_file(home, spec)
    file = home / ".local/state/coding-agent/known_hosts"
    told = host_keys.fingerprint(ssh_host.host_key())
    assert "no executor 'crab'" in trust("crab", code=4).stderr
    with ssh_host.another_server(2202):
        asked = trust("crib", code=2)
        assert told in asked.stdout
        assert "--fingerprint" in asked.stderr
        assert not file.exists()
        assert "none of the keys" in trust("crib", "--fingerprint", "SHA256:x", code=3).stderr
        said = json.loads(trust("crib", "--fingerprint", told, "--json").stdout)
        assert [(each["recorded"], [key["fingerprint"] for key in each["keys"]]) for each in said["hosts"]] == [
            (True, [told])
        ] * 2
        assert file.stat().st_mode & 0o777 == 0o600
        with connection(spec) as opened:
            assert says(opened, "whoami") == "plain\n"
        assert "is known already" in trust("crib").stdout
    assert "is known already" in trust(f"{ssh_host.address}", "--yes").stdout
    # Another machine in its place.
    with ssh_host.another_server(2202, "HostKey=/etc/ssh/ssh_host_ecdsa_key"):
        with connection(spec) as opened, pytest.raises(HostKeyChanged, match="shows another key"):
            opened.run(["true"], timeout=30)
        assert "IT HAS CHANGED" in trust("crib", "--yes", code=2).stdout
        trust("crib", "--fingerprint", host_keys.fingerprint(ssh_host.host_key("ecdsa")))
        with connection(spec) as opened:
            assert says(opened, "whoami") == "plain\n"
        assert file.read_text().count(f"[{ssh_host.address}]:2202 ") == 1
    # One that has no key that the plugin can check.
    with ssh_host.another_server(2202, "HostKey=/etc/ssh/ssh_host_rsa_key"):
        rsa = host_keys.fingerprint(ssh_host.host_key("rsa"))
        assert "known by an RSA key only" in trust("crib", "--fingerprint", rsa, code=3).stderr
        with connection(spec) as opened:
            assert says(opened, "whoami") == "plain\n"
        with pytest.raises(HostKeyUnknown, match="RSA key only, which the engine's plugin for hosts can't check"):
            host_keys.for_plugin(ssh_login.of(spec))


def test_hosts_that_do_not_answer(ssh_host: SshHost, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection, a name that is none, a host that says nothing and one that hangs up are said apart."""
    monkeypatch.setattr("coding_agent.executors.ssh_handshake.CONNECT_LIMIT", 3.0)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"port": 9}, "refused the connection"),
        ({"host": "no-such-host.invalid"}, "the name no-such-host.invalid can't be found"),
        ({"port": 9, "proxy_jump": f"plain@{ssh_host.address}"}, "can't be reached from there"),
    ]
    ssh_config(home, f"Host *\n  IdentityFile {ssh_host.key}\n")
    (home / ".ssh" / "known_hosts").write_text(ssh_host.known_hosts())
    for options, said in cases:
        with connection(ssh_host.spec(**options)) as opened, pytest.raises(ConnectionBroken, match=said) as caught:
            opened.run(["true"], timeout=30)
        assert caught.value.next_step
    with relayed(ssh_host) as (opened, between):
        between.freeze()
        with pytest.raises(ConnectionBroken, match="did not answer within 3 seconds"):
            opened.run(["true"], timeout=30)
        between.thaw()
        # As one that has too many callers does.
        between.refusing = True
        threading.Timer(0.5, lambda: setattr(between, "refusing", False)).start()
        assert says(opened, "whoami") == "plain\n"


def test_connection_that_is_cut(ssh_host: SshHost, home: Path) -> None:
    """A call that is cut says so at once and never passes for an end; the next one connects anew."""
    mark = f"/home/plain/begun-{os.getpid()}"
    # No question whether the other side is there, and no time limit, could end the call within the hour.
    with relayed(ssh_host, keepalive=3600) as (opened, between):
        with once_begun(ssh_host, mark, between.cut), pytest.raises(ConnectionBroken, match="broke"):
            opened.run(["bash", "-c", f"touch {mark}; sleep 3600"], timeout=3600)
        assert between.accepted == 1
        assert says(opened, "whoami") == "plain\n"
        between.cut()
        assert says(opened, "whoami") == "plain\n"
        # A command of which half arrived is not begun: the cut comes in the middle of a long argument.
        half, big = f"{mark}-of-half", "x" * 100_000
        between.cut_after(50_000)
        with pytest.raises(ConnectionBroken):
            opened.run(["bash", "-c", f": >{half}", "x", big], timeout=30)
        assert says(opened, "bash", "-c", f"ls {half} 2>/dev/null || echo none") == "none\n"


def test_connection_that_freezes(ssh_host: SshHost, home: Path) -> None:
    """A connection that stands still is noticed by unanswered questions, long before the call's own time limit."""
    mark, before = f"/home/plain/frozen-{os.getpid()}", 0

    def freeze() -> None:
        nonlocal before
        between.freeze()
        before = between.asked

    with relayed(ssh_host, keepalive=0.5) as (opened, between):
        with once_begun(ssh_host, mark, freeze), pytest.raises(ConnectionBroken):
            opened.run(["bash", "-c", f"touch {mark}; sleep 3600"], timeout=3600)
        assert 0 < between.asked - before <= UNHEARD
        between.thaw()
        assert says(opened, "whoami") == "plain\n"
        # The first frozen call was not ended by anybody: a time limit that can't be kept is no time limit kept.
        freeze()
        with pytest.raises(ConnectionBroken) as caught:
            opened.run(["sleep", "300"], timeout=1)
        assert not isinstance(caught.value, CommandTimeout)
        assert between.asked - before <= UNHEARD
        between.thaw()
        between.delay = 0.05
        assert says(opened, "whoami") == "plain\n"


def test_nothing_stays(ssh_host: SshHost, home: Path) -> None:
    """A closed connection leaves no thread here and no session there; it can be closed twice and used again."""
    before = threading.active_count()
    with connection(ssh_host.spec("elsewhere")) as opened:
        assert says(opened, "whoami") == "elsewhere\n"
        opened.close()
        opened.close()
        assert says(opened, "whoami") == "elsewhere\n"
    until(lambda: threading.active_count() <= before)
    until(lambda: "sshd: elsewhere" not in ssh_host.run("ps", "-eo", "args"))
    with pytest.raises(CodingAgentError), connection(ssh_host.spec(port=9)) as opened:
        opened.run(["true"], timeout=5)
    until(lambda: threading.active_count() <= before)
