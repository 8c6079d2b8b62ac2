"""Canary secrets: where they must never be, whatever becomes of the run; and what is kept back because of them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from canaries import Canary, found, leaks, watching_arguments
from fakes.scenarios import scenario
from user import User
from waiting import until

KEY = Canary("ANTHROPIC_API_KEY", "sk-ant-\"Zq7KwX3mVb9T/+%&\\'x=", ("Zq7KwX3mVb9T",))
OF_ENV = Canary("TOKEN_ENV", 'e:Hj4Rk8PzYc2W/+ "\\\\&=?%', ("Hj4Rk8PzYc2W",))
OF_COMMAND = Canary("TOKEN_COMMAND", "é/Us6Dm2FvQx9L+= ü", ("Us6Dm2FvQx9L",))
OF_FILE = Canary(
    "TOKEN_FILE",
    "-----BEGIN KEY-----\nLg5Nd1QsXu7BMfTe6V/+\nGy3Ao9ChWj8KZr2Ip=\n-----END KEY-----",
    ("Lg5Nd1QsXu7BMfTe6V", "Gy3Ao9ChWj8KZr2Ip"),
)
TOKENS = (OF_ENV, OF_COMMAND, OF_FILE)
ALL = (KEY, *TOKENS)
NAMES = [each.name for each in ALL]
FORMS = ("raw", "base64", "url", "json")
# What the agent writes itself, on its own target: there a secret may be.
AGENTS_OWN = (
    *("home", "workspace", "tmp", "stream.jsonl", "output.log", "stderr.log", "debug.log", "setup.log"),
    *("save.git", "work.patch", "work.bundle", "artifacts.tar"),  # saved from what it wrote
)
# A command that prints the three tokens in every form.
PRINT_ALL = f"""\
for name in {" ".join(each.name for each in TOKENS)}; do
  printf '%s\\n' "${{!name}}"
  printf %s "${{!name}}" | base64 -w0; echo
  printf %s "${{!name}}" | od -An -v -tx1 | tr -d '\\n' | sed 's/ /%/g'; echo
  printf %s "${{!name}}" | sed 's/[\\\\"]/\\\\&/g; $!s/$/\\\\n/' | tr -d '\\n'; echo
done
"""


@pytest.fixture
def owner(user: User, tmp_path: Path) -> User:
    """Return a user whose executors file has a source of each kind, and whose temporary files lie beside his home."""
    vault, temporary = _vault(user), tmp_path / "temporary"
    temporary.mkdir()
    vault.mkdir()
    (vault / "key").write_text(KEY.value + "\n")
    (vault / "token").write_text(OF_FILE.value + "\n")
    (vault / "printed").write_text(OF_COMMAND.value + "\n")
    _sources(
        user,
        {
            KEY.name: {"command": ["cat", str(vault / "key")]},
            OF_ENV.name: {"env": "WHERE_IT_IS"},
            OF_FILE.name: {"file": "~/vault/token"},
            OF_COMMAND.name: {"command": ["cat", str(vault / "printed")]},
        },
    )
    environment = {**user.environment, "TMPDIR": str(temporary), "WHERE_IT_IS": OF_ENV.value}
    del environment["ANTHROPIC_API_KEY"]
    return replace(user, environment=environment)


def _vault(user: User) -> Path:
    return user.home / "vault"


def _sources(user: User, sources: Mapping[str, Any]) -> None:
    file = user.home / ".config" / "openclaw" / "coding-agent.yaml"
    kept = file.read_text().partition("\nsecrets: ")[0].rstrip("\n")
    file.write_text(f"{kept}\nsecrets: {json.dumps(sources)}\n")


def _task(user: User, name: str = "job", **fields: Any) -> None:
    user.task(name, json.dumps({"secrets": [each.name for each in TOKENS], **fields}))


def _leaks(user: User, *, but: Sequence[Path] = ()) -> dict[str, set[str]]:
    """Return what betrays a canary in the home, the project, the temporary files; the vault has to hold them."""
    return leaks([user.home.parent], ALL, but=[_vault(user), *but])


def _agents_own(run_dir: Path) -> list[Path]:
    return [run_dir / name for name in AGENTS_OWN]


def _shown(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def _everything_shown(user: User, name: str) -> str:
    """Return what all doors show of a run, the state with its secrets in clear included."""
    commands = [
        ("status", name), ("status", name, "--json"), ("list",), ("list", "--json"), ("logs", name),
        ("logs", "--raw", name), ("logs", name, "--json"), ("logs", "-n", "3", name), ("collect", name, "--json"),
    ]  # fmt: skip
    engine = [
        ("stack", "export", "--show-secrets"), ("stack", "output", "--json", "--show-secrets"), ("stack", "output"),
        ("stack", "history", "--json", "--show-secrets"), ("preview", "--diff", "--non-interactive"),
    ]  # fmt: skip
    ours = [_shown(user.cli(*command)) for command in commands]
    return "\n".join([*ours, *(_shown(user.pulumi(*command, "--stack", name)) for command in engine)])


def _named_in(notices: Sequence[str], *words: str) -> list[str]:
    return [notice for notice in notices if all(word in notice for word in words)]


def test_success_leaves_no_secret_anywhere(owner: User) -> None:
    """After a run that prints and commits every secret in every form, none is in anything of ours, nor in argv."""
    _task(
        owner,
        prompt=scenario("secret", name=NAMES, form=list(FORMS)),
        repo=".",
        artifacts=["leak.txt"],
        agent={"debug": True},
    )
    owner.commit_all()

    with watching_arguments(ALL) as watch:
        shown = _shown(owner.cli("up", "job"))

    outputs = owner.outputs("job")
    run_dir, record = owner.run_dir(outputs["run_id"]), owner.record_dir(outputs["run_id"])
    assert outputs["status"] == "succeeded", shown
    assert (watch.seen, watch.looks > 5) == ({}, True)
    assert found((run_dir / "stream.jsonl").read_bytes(), ALL) == set(NAMES)  # it was printed
    assert found(shown + _everything_shown(owner, "job"), ALL) == set()
    assert _leaks(owner, but=_agents_own(run_dir)) == {}

    for name in ("stream.jsonl", "transcript.jsonl"):
        fetched = (record / name).read_text()
        assert all(f"[redacted {each}]" in fetched for each in NAMES), name
    raw = owner.cli("logs", "--raw", "job").stdout
    assert all(f"[redacted {each}]" in raw for each in NAMES)
    for what in ("the patch", "the commits", "artifact leak.txt"):
        assert len(_named_in(outputs["notices"], what, "kept back", *NAMES)) == 1, outputs["notices"]
        assert any(what in line for line in shown.splitlines())
    assert (outputs["branch"], outputs["patch"]) == (None, None)
    assert owner.git("branch", "--list", "coding-agent/*") == ""

    refused = _shown(owner.cli("destroy", "job", "--yes", code=2))
    assert "--discard" in refused
    assert "kept back" in refused
    assert run_dir.is_dir()
    assert found(refused + _shown(owner.cli("destroy", "job", "--yes", "--discard")), ALL) == set()
    assert not run_dir.exists()
    assert _leaks(owner) == {}


@pytest.mark.slow
def test_failure_leaves_no_secret_anywhere(owner: User) -> None:
    """After a command that prints every secret in every form and fails, in a bare `pulumi up`, none is anywhere."""
    _task(owner, command=f"{PRINT_ALL}{PRINT_ALL} >&2\nexit 7\n", setup=[PRINT_ALL], artifacts=["*"])
    owner.pulumi("stack", "init", "job", "--no-select", "--non-interactive")

    with watching_arguments(TOKENS) as watch:
        loud = ("--logtostderr", "-v=9", "--show-full-output", "--suppress-progress=false")
        shown = _shown(owner.pulumi("up", "--yes", "--skip-preview", "--stack", "job", *loud, code=None))

    outputs = owner.outputs("job")
    run_dir, record = owner.run_dir(outputs["run_id"]), owner.record_dir(outputs["run_id"])
    assert (outputs["status"], outputs["exit_code"]) == ("failed", 7), shown[-3000:]
    assert (watch.seen, watch.looks > 5) == ({}, True)
    assert found((run_dir / "output.log").read_bytes(), ALL) == {each.name for each in TOKENS}
    assert found(shown + _everything_shown(owner, "job"), ALL) == set()
    assert found(owner.cli("logs", "--debug", "job", code=None).stdout, ALL) == set()
    assert _leaks(owner, but=_agents_own(run_dir)) == {}
    for name in ("output.log", "setup.log"):
        assert all(f"[redacted {each.name}]" in (record / name).read_text() for each in TOKENS), name
    for each in TOKENS:
        assert f"[redacted {each.name}]" in owner.cli("logs", "job").stdout
        assert f"[redacted {each.name}]" in outputs["log_tail"]

    # Nothing worth keeping holds a secret: it is all here, so nothing stands in the way of removing it.
    assert found(_shown(owner.pulumi("destroy", "--yes", "--stack", "job")), ALL) == set()
    assert not run_dir.exists()
    assert _leaks(owner) == {}


@pytest.mark.slow
def test_what_the_model_repeats_is_redacted(owner: User) -> None:
    """A secret that the agent's model read and uses in a call and in its answer is redacted wherever these show."""
    forms = ["raw", "base64", "url", "json"]
    _task(owner, prompt=scenario("secret", name=NAMES, form=forms, commit=False, repeat=True))

    shown = _shown(owner.cli("up", "job"))

    outputs = owner.outputs("job")
    assert found(shown + _everything_shown(owner, "job"), ALL) == set()
    assert _leaks(owner, but=_agents_own(owner.run_dir(outputs["run_id"]))) == {}
    for each in NAMES:
        assert f"[redacted {each}]" in outputs["result"]
        assert f"[redacted {each}]" in "".join(outputs["activity"])


def _of_user(user: User) -> list[int]:
    """Return every process of the user's: engine, plugins, command line, supervisor, agent, tools."""
    mine, home = [], f"HOME={user.home}".encode()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and home in (entry / "environ").read_bytes().split(b"\0"):
                mine.append(int(entry.name))
        except OSError:
            continue
    return mine


@pytest.mark.slow
def test_kill_9_of_everything_leaves_no_secret_anywhere(owner: User) -> None:
    """A kill -9 of engine, plugin, supervisor and agent at once leaves no secret, and neither does what comes after."""
    _task(owner, prompt=scenario("secret+sleep", name=NAMES, form=list(FORMS), commit=False))
    process = owner.start("up", "job")
    runs = owner.home / ".coding-agent" / "runs"
    # The tool that follows has begun: the secrets have been printed, and shown.
    until(lambda: [*runs.glob("*/workspace/bash.pid")])
    run_dir = next(runs.iterdir())

    for _ in range(20):
        for pid in _of_user(owner):
            os.kill(pid, signal.SIGKILL)
        if not _of_user(owner):
            break
    shown = process.communicate(timeout=60)[0]

    assert found((run_dir / "stream.jsonl").read_bytes(), ALL) == set(NAMES)
    assert _leaks(owner, but=_agents_own(run_dir)) == {}
    shown += _shown(owner.cli("up", "job", code=1))
    outputs = owner.outputs("job")
    assert (outputs["status"], outputs["run_id"]) == ("lost", run_dir.name)
    assert found(shown + _everything_shown(owner, "job"), ALL) == set()
    assert _leaks(owner, but=_agents_own(run_dir)) == {}
    owner.cli("destroy", "job", "--yes", "--discard")
    assert _leaks(owner) == {}


@pytest.mark.slow
def test_kill_9_while_the_work_is_brought_back_leaves_no_secret(owner: User) -> None:
    """A kill -9 of `collect` at any moment leaves no secret in the record: nothing lands there that isn't redacted."""
    bulk = "head -c 12000000 /dev/zero | tr '\\0' x | fold -w 999"
    _task(owner, command=f"{PRINT_ALL}{bulk}\ncp ../output.log copy.txt\n", artifacts=["copy.txt"])
    owner.cli("up", "job", "--detach")
    run_id = owner.outputs("job")["run_id"]
    record = owner.record_dir(run_id)
    _ended(owner.run_dir(run_id))

    killed = []
    for brought in ("output.log", "artifacts"):
        process = owner.start("collect", "job")
        until(lambda: process.poll() is not None or [*record.glob(f"*{brought}*")])  # noqa: B023
        killed.append(process.poll() is None)
        for pid in _of_user(owner):
            os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert _leaks(owner, but=_agents_own(owner.run_dir(run_id))) == {}

    assert killed[0]
    assert "artifact copy.txt" in _shown(owner.cli("collect", "job"))
    assert not [each.name for each in record.iterdir() if each.name.startswith(".")]


def _ended(run_dir: Path) -> dict[str, Any]:
    """Wait, looking at the target alone, until the run has ended; return its last state."""

    def look() -> dict[str, Any] | None:
        meta: dict[str, Any] = json.loads((run_dir / ".meta.json").read_text())
        return meta if meta["final"] else None

    return until(look)


@pytest.mark.slow
def test_errors_of_sources_show_no_secret(owner: User) -> None:
    """Sources that fail with a secret in hand are named, the value is not, through both doors; nothing starts."""
    vault = _vault(owner)
    (vault / "binary").write_bytes(b"\xff" + OF_FILE.value.encode())
    (vault / "nul").write_bytes(OF_FILE.value.encode() + b"\0")
    (vault / "long").write_text(OF_FILE.value * 5000)
    say = f"cat {shlex.quote(str(vault / 'token'))}"
    sources = {
        "SAYS_AND_FAILS": {"command": ["bash", "-c", f"{say}; exit 1"]},
        "COMPLAINS_AND_FAILS": {"command": ["bash", "-c", f"{say} >&2; exit 1"]},
        "COMPLAINS": {"command": ["bash", "-c", f"{say} >&2"]},
        "NO_PROGRAM": {"command": ["no-such-program-here"]},
        "UNSET": {"env": "NOT_SET_ANYWHERE"},
        "NO_FILE": {"file": str(vault / "none")},
        "BINARY": {"file": str(vault / "binary")},
        "NUL": {"file": str(vault / "nul")},
        "LONG": {"file": str(vault / "long")},
    }
    _sources(owner, {KEY.name: {"command": ["cat", str(vault / "key")]}, **sources})
    owner.task("job", json.dumps({"command": "touch ran", "secrets": list(sources)}))
    owner.pulumi("stack", "init", "job", "--no-select", "--non-interactive")

    ours = owner.cli("up", "job", code=2, CODING_AGENT_TRACEBACK="1")
    loud = ("--logtostderr", "-v=9")
    bare = owner.pulumi("up", "--yes", "--skip-preview", "--stack", "job", *loud, code=None, CODING_AGENT_TRACEBACK="1")
    as_json = owner.cli("up", "job", "--json", code=2)

    assert bare.returncode != 0
    for done in (ours, bare, as_json):
        assert found(_shown(done), ALL) == set()
        assert all(name in _shown(done) for name in sources)
    assert _leaks(owner) == {}
    assert not (owner.home / ".coding-agent").exists()
    assert owner.cli("list", "--json").stdout.strip() == "[]"


def test_an_error_of_the_agents_credential_shows_no_secret(owner: User) -> None:
    """Where the command for the agent's credential prints it and fails, that is said without it; nothing starts."""
    say = f"cat {shlex.quote(str(_vault(owner) / 'key'))}"
    _sources(owner, {KEY.name: {"command": ["bash", "-c", f"{say}; {say} >&2; exit 1"]}})
    owner.task("job", json.dumps({"prompt": scenario("text")}))

    shown = _shown(owner.cli("up", "job", code=2))

    assert "ANTHROPIC_API_KEY" in shown
    assert "exit code 1" in shown
    assert found(shown, ALL) == set()
    assert _leaks(owner) == {}
    assert owner.api.requests == []


def test_reading_a_task_asks_no_source(owner: User) -> None:
    """`validate`, `preview` through both doors, `list` and `executors` run no secret source."""
    asked = owner.home / "asked"
    _sources(owner, {OF_COMMAND.name: {"command": ["touch", str(asked)]}})
    owner.task("job", json.dumps({"command": "true", "secrets": [OF_COMMAND.name]}))
    owner.pulumi("stack", "init", "job", "--no-select", "--non-interactive")

    for words in (("validate",), ("preview", "job"), ("list",), ("executors",)):
        owner.cli(*words)
    owner.pulumi("preview", "--stack", "job", "--non-interactive")

    assert not asked.exists()


OTHERS = {
    "AWS_SECRET_ACCESS_KEY": "another 1",
    "GITHUB_TOKEN": "another 2",
    "ANTHROPIC_AUTH_TOKEN": "another 3",
    "CLAUDE_CODE_OAUTH_TOKEN": "another 4",
    "PULUMI_CONFIG_PASSPHRASE": "another 5",
    "OPENAI_API_KEY": "another 6",
    "SSH_AUTH_SOCK": "/another/7",
    "UNRELATED": "another 8",
}


def test_the_agent_has_its_secrets_and_nothing_else(owner: User) -> None:
    """The agent's environment has its credential and the task's secrets, nothing of Pulumi's and no other credential.

    A command has the task's secrets alone.
    """
    _task(owner, "agent", prompt=scenario("environment", file="env.txt"), env={"PLAIN": "as written"})
    _task(owner, "command", command="env -0 > env.txt")
    owner.pulumi("stack", "init", "agent", "--no-select", "--non-interactive", code=0, **OTHERS)

    owner.pulumi("up", "--yes", "--skip-preview", "--stack", "agent", code=0, **OTHERS)
    owner.cli("up", "command", code=0, **OTHERS)

    of_agent, of_command = (
        (owner.run_dir(owner.outputs(name)["run_id"]) / "workspace" / "env.txt").read_text()
        for name in ("agent", "command")
    )
    assert found(of_agent, ALL) == set(NAMES)
    assert "PLAIN=as written\n" in of_agent
    assert found(of_command, ALL) == {each.name for each in TOKENS}
    for shown in (of_agent, of_command):
        assert "another" not in shown
        assert all(name not in shown for name in ("PULUMI_", "WHERE_IT_IS", "XDG_STATE_HOME", "CODING_AGENT_TEST"))
    assert not any(line.startswith(("ANTHROPIC", "CLAUDE")) for line in of_command.split("\0"))


@pytest.mark.slow
def test_a_key_that_was_changed_meanwhile_keeps_the_work_back(owner: User) -> None:
    """Where a secret is not the one any more that the run was given, its text is withheld and its work stays.

    `destroy` refuses; once the secret can be had again, everything arrives.
    """
    _task(owner, prompt=scenario("edit+gate"), repo=".")
    owner.commit_all()
    owner.cli("up", "job", "--detach")
    run_id = owner.outputs("job")["run_id"]
    key = _vault(owner) / "key"
    key.write_text("another-key")
    owner.api.open_gate()
    _ended(owner.run_dir(run_id))

    shown = _shown(owner.cli("up", "job"))
    outputs = owner.outputs("job")
    assert outputs["status"] == "succeeded"
    assert (outputs["branch"], outputs["patch"]) == (None, None)
    said = f"{KEY.name} can't be read here"
    assert len(_named_in(outputs["notices"], said)) == 1
    assert said in shown
    for text in (outputs["log_tail"], outputs["result"], *outputs["activity"], owner.cli("logs", "job").stdout):
        assert all(said in line for line in text.splitlines()), text
    assert [each.name for each in owner.record_dir(run_id).iterdir()] == ["record.json"]
    refused = _shown(owner.cli("destroy", "job", "--yes", code=2))
    assert said in refused
    assert "--discard" in refused
    assert (owner.run_dir(run_id) / "work.bundle").is_file()

    key.write_text(KEY.value)
    owner.cli("collect", "job")
    outputs = owner.outputs("job")
    assert outputs["branch"] == "coding-agent/job"
    assert outputs["result"] == "Through."
    owner.cli("destroy", "job", "--yes")
    assert owner.git("show", "coding-agent/job:note.txt") == "the second line\n"


@pytest.mark.slow
def test_discard_gives_up_what_a_changed_key_keeps_back(owner: User) -> None:
    """`destroy --discard` removes a run whose work can't be checked for its secret, and lands nothing."""
    _task(owner, command="echo done > done.txt", repo=".")
    owner.commit_all()
    owner.cli("up", "job", "--detach")
    (_vault(owner) / "token").unlink()

    owner.cli("destroy", "job", "--yes", code=2)
    owner.cli("destroy", "job", "--yes", "--discard")

    outputs = owner.outputs("job")
    assert (outputs["branch"], outputs["patch"]) == (None, None)
    assert not (owner.home / ".coding-agent").exists()


COMMIT = "git add -A; git commit -q"
WAYS = {
    "message": f'echo a > a.txt; {COMMIT} -m "it is $S"',
    "author": f'echo a > a.txt; {COMMIT} -m x --author "$(printf %s "$S" | tr -d "<>\n") <a@b.c>"',
    "file_name": f'echo a > "x$(printf %s "$S" | base64 -w0 | tr / _).txt"; {COMMIT} -m x',
    "base64": f'printf %s "$S" | base64 -w0 > a.txt; {COMMIT} -m x',
    "url": f"""printf %s "$S" | od -An -v -tx1 | tr -d '\\n' | sed 's/ /%/g' > a.txt; {COMMIT} -m x""",
    "json": f"""S=${{S//\\\\/\\\\\\\\}}; printf '{{"v": "%s"}}' "${{S//\\"/\\\\\\"}}" > a.txt; {COMMIT} -m x""",
    "binary": f"""{{ printf '\\0\\1'; printf %s "$S"; }} > a.bin; {COMMIT} -m x""",
    "taken_back": f'echo "$S" > a.txt; {COMMIT} -m x; echo a > a.txt; {COMMIT} -m y',
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_commits_that_hold_a_secret_are_kept_back(owner: User, way: str) -> None:
    """Commits that hold a secret, wherever and in whatever form, are kept back on the target, and that is said."""
    _task(owner, command=f"S=$TOKEN_ENV\n{WAYS[way]}\n", repo=".")
    owner.commit_all()

    shown = _shown(owner.cli("up", "job"))

    outputs = owner.outputs("job")
    run_dir = owner.run_dir(outputs["run_id"])
    assert outputs["branch"] is None
    assert len(_named_in(outputs["notices"], "the commits hold TOKEN_ENV", "kept back")) == 1, (shown, outputs)
    in_patch = way not in ("message", "author", "taken_back")
    assert bool(_named_in(outputs["notices"], "the patch holds TOKEN_ENV")) is in_patch
    assert bool(outputs["patch"]) is not in_patch
    assert (run_dir / "work.bundle").is_file()
    assert found(shown, ALL) == set()
    assert _leaks(owner, but=_agents_own(run_dir)) == {}


@pytest.mark.slow
def test_names_of_the_agents_own_making_are_redacted(owner: User) -> None:
    """A secret in the name of an artifact or of a nested repository shows in no notice and lands in no record."""
    script = """\
name=$(printf %s "$TOKEN_ENV" | base64 -w0 | tr / _)
echo harmless > "out-$name.txt"
mkdir "$name" && git -C "$name" init -q && git -C "$name" commit -q --allow-empty -m x
"""
    _task(owner, command=script, repo=".", artifacts=["out-*"])
    owner.commit_all()

    shown = _shown(owner.cli("up", "job"))

    outputs = owner.outputs("job")
    assert _named_in(outputs["notices"], "nested repositories whose contents are not in the patch: 1")
    assert _named_in(outputs["notices"], "artifact out-[redacted TOKEN_ENV]", "kept back"), outputs["notices"]
    assert found(shown + _everything_shown(owner, "job"), ALL) == set()
    run_dir = owner.run_dir(outputs["run_id"])
    # On the target git complains of the nested repository by its name.
    assert _leaks(owner, but=[*_agents_own(run_dir), run_dir / "supervisor.log"]) == {}


def test_work_without_a_secret_arrives(owner: User) -> None:
    """A run that was given every secret and wrote none of them down brings its commits, patch and artifacts back."""
    _task(owner, prompt=scenario("edit"), repo=".", artifacts=["note.txt"])
    owner.commit_all()

    owner.cli("up", "job")

    outputs = owner.outputs("job")
    assert (outputs["branch"], outputs["notices"]) == ("coding-agent/job", [])
    assert Path(outputs["patch"]).is_file()
    assert (owner.record_dir(outputs["run_id"]) / "artifacts" / "note.txt").read_text() == "the second line\n"
    owner.cli("destroy", "job", "--yes")
    assert _leaks(owner) == {}
