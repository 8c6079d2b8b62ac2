"""What surrounds a command: closed outputs, relative paths, somebody else at work, a project of another making."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from user import User
from waiting import until

ENDLESS = "command: echo begun; exec tail -f /dev/null\n"


def _sh(user: User, script: str, *, code: int | None = 0, **environment: str) -> str:
    """Run a line of shell in the project; `$C` is the command. Return what it printed, on both streams."""
    done = user.run("bash", "-c", script, code=code, C=f"{sys.executable} -m coding_agent", **environment)
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def _locks(user: User) -> list[Path]:
    return list((user.home / ".local/state/coding-agent/backend").rglob("locks/**/*.json"))


def test_a_reader_that_goes_away_ends_up_and_not_the_run(user: User) -> None:
    """`coding-agent up NAME | head -1` ends soon, leaves no lock, and the run goes on."""
    user.task("job", f"setup: ['sleep 3']\n{ENDLESS}")

    _sh(user, 'set -o pipefail; timeout 100 $C up job -d | head -1; [ "${PIPESTATUS[0]}" = 141 ]')

    assert _locks(user) == []
    assert until(lambda: user.outputs("job")["status"] == "running")


@pytest.mark.parametrize(("output", "word"), [(">/dev/full", "No space left"), (">&-", "it is closed")])
def test_an_output_that_cannot_be_written_is_said(user: User, output: str, word: str) -> None:
    """Where stdout is full or closed a command says so in a line and ends with 3."""
    assert word in _sh(user, f"$C version {output}", code=3)


def test_a_terminal_without_unicode_shows_what_it_can(user: User) -> None:
    """On a terminal that knows ASCII alone `up` and its spinner work."""
    user.task("job", "command: echo grüße\n")

    shown = _sh(user, 'script -qec "env PYTHONIOENCODING=ascii LC_ALL=C $C up job" /dev/null')

    assert "gr\\xfc" in shown
    assert "succeeded" in shown


def test_relative_paths_mean_the_shells_folder(user: User) -> None:
    """Executors file, backend and passphrase file that the environment names by a relative path work for all parts."""
    config = user.home / ".config" / "openclaw" / "coding-agent.yaml"
    config.rename(user.project / "mine.yaml")
    (user.project / "mine.yaml").write_text("executors: [{name: other, type: local}]\ndefaults: {executor: other}\n")
    (user.project / "state").mkdir()
    (user.project / "pass.txt").write_text("a passphrase\n")
    user.task("job", "command: echo done\n")
    own: dict[str, Any] = {"CODING_AGENT_CONFIG": "mine.yaml", "PULUMI_BACKEND_URL": "file://./state"}
    own["PULUMI_CONFIG_PASSPHRASE_FILE"] = "pass.txt"

    user.cli("up", "job", **own)

    assert user.outputs("job")["executor"] == "other"
    assert list((user.project / "state" / ".pulumi" / "stacks").rglob("job.json"))
    assert (
        json.loads(user.run("pulumi", "stack", "output", "--json", "--stack", "job", **own).stdout)["executor"]
        == "other"
    )


@pytest.mark.slow
def test_what_came_back_outlives_its_secret(user: User) -> None:
    """`destroy` in a shell that lacks the secret keeps what was brought back while it was there."""
    config = user.home / ".config" / "openclaw" / "coding-agent.yaml"
    config.write_text(f"{config.read_text()}secrets:\n  TOKEN: {{env: TOKEN}}\n")
    user.task("job", "command: echo important\nsecrets: [TOKEN]\n")
    user.cli("up", "job", TOKEN="canary-of-the-shell")

    user.cli("destroy", "job", "--yes")

    assert user.outputs("job")["log_tail"] == "important\n"


@pytest.mark.slow
def test_work_that_lacks_its_secret_is_kept_with_the_way_out(user: User) -> None:
    """`destroy` of a run whose secret can't be read removes nothing and says which one to make readable."""
    config = user.home / ".config" / "openclaw" / "coding-agent.yaml"
    config.write_text(f"{config.read_text()}secrets:\n  TOKEN: {{env: TOKEN}}\n")
    user.task("job", "command: sleep 1; echo important\nsecrets: [TOKEN]\n")
    user.cli("up", "job", "--detach", TOKEN="canary-of-the-shell")
    until(lambda: user.outputs("job")["status"] == "succeeded")

    said = user.cli("destroy", "job", "--yes", code=2).stderr

    assert "make TOKEN readable here" in said
    assert user.run_dir(user.outputs("job")["run_id"]).is_dir()
    user.cli("destroy", "job", "--yes", TOKEN="canary-of-the-shell")


@pytest.mark.slow
def test_a_project_of_another_making_gets_no_salt_into_git(user: User) -> None:
    """In a project without a folder for its stacks' files the engine's own file neither hinders a run nor travels."""
    (user.project / "Pulumi.yaml").write_text("name: shop\nruntime: python\nmain: infra\n")
    user.task("refusing", "command: ls > ls.txt\nrepo: .\n")
    user.task("including", "command: ls > ls.txt; git add ls.txt; git commit -q -m ls\nrepo: .\nuncommitted: include\n")
    user.commit_all()

    user.cli("up", "refusing")
    user.cli("up", "including")

    outputs = user.outputs("including")
    assert "Pulumi.yaml" in user.git("show", "coding-agent/including:ls.txt")
    assert "Pulumi.including.yaml" not in user.git("ls-tree", "-r", "--name-only", str(outputs["branch"]))
    for name in ("refusing", "including"):
        user.cli("destroy", name, "--yes")
    assert user.git("status", "--porcelain") == ""


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["destroy", "preview"])
def test_no_salt_is_left_without_a_stack(user: User, verb: str) -> None:
    """Of a task that is not its stack's usual one nothing is left but the name of its file."""
    file = user.project / "other.yaml"
    file.write_text("name: job\ncommand: echo done\n")
    if verb == "destroy":
        user.cli("up", "other.yaml")

    user.cli(*(["destroy", "job", "--yes"] if verb == "destroy" else ["preview", "other.yaml"]))

    left = user.project / "stacks" / "Pulumi.job.yaml"
    assert not left.exists() or "salt" not in left.read_text()
    assert left.exists() == (verb == "destroy")


def _elsewhere(user: User, name: str) -> dict[str, Any]:
    """Return the environment of somebody else, with a home of his own, on the same backend."""
    home = user.home.parent / name
    config = home / ".config" / "openclaw"
    config.mkdir(parents=True)
    (config / "coding-agent.yaml").write_text("executors: []\n")
    state = user.home / ".local/state/coding-agent"
    return {
        "HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "XDG_CONFIG_HOME": str(home / ".config"),
        "PULUMI_BACKEND_URL": f"file://{state}/backend", "PULUMI_CONFIG_PASSPHRASE_FILE": f"{state}/passphrase",
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_of_somebody_else_is_neither_lost_nor_ended(user: User) -> None:
    """A run on the local executor of another home is said to be there; nobody elsewhere ends it or calls it lost."""
    user.task("job", ENDLESS)
    user.cli("up", "job", "--detach")
    run_id = user.outputs("job")["run_id"]
    other = _elsewhere(user, "other")

    for _ in range(2):
        said: dict[str, Any] = json.loads(user.cli("status", "job", "--json", **other).stdout)
        assert (said["status"], said["reason"], said["run_id"]) == ("unresponsive", "on_another_machine", run_id)
    assert "not reached from here" in user.cli("destroy", "job", "--yes", code=3, **other).stderr
    assert "not reached from here" in user.cli("kill", "job", code=3, **other).stderr

    assert user.outputs("job")["status"] == "running"
    user.cli("destroy", "job", "--yes")
    assert user.outputs("job")["status"] == "killed"


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["destroy", "another task"])
def test_who_follows_a_run_sees_its_true_end(user: User, ending: str) -> None:
    """An `up` that follows a run which another shell ends says how it ended, and what is known of it stays true."""
    user.task(
        "job", f"repo: .\nuncommitted: ignore\ncommand: echo x > made.txt; git add .; git commit -qm x; {ENDLESS[9:]}"
    )
    user.commit_all()
    following = user.start("up", "job")
    with following:
        run_id = until(lambda: next((each["run_id"] for each in json.loads(user.cli("list", "--json").stdout)), None))
        until(lambda: (user.run_dir(run_id) / "workspace" / "made.txt").exists())
        until(lambda: user.outputs(run_id)["status"] == "running")
        if ending == "destroy":
            user.cli("destroy", "job", "--yes")
        else:
            user.task("job", "command: echo another\n")
            shown = user.cli("up", "job", "--detach").stdout
            assert f"ending run {run_id}" in shown
        said, _ = following.communicate(timeout=120)

    outputs = user.outputs(run_id)
    assert (outputs["status"], outputs["branch"]) == ("killed", "coding-agent/job")
    assert "killed" in said
    assert "lost" not in said
