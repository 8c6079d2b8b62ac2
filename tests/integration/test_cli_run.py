"""The command line from a task's file to a removed stack: the real engine, real processes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from coding_agent.scaffold import scaffold
from fakes.messages_api import MessagesApi
from fakes.scenarios import scenario

PROGRAM = [sys.executable, "-m", "coding_agent"]
LIMIT = 120  # seconds for one command; a start takes about 2


@pytest.fixture
def project(engine_folder: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a new repository with a project in it, the real engine on PATH; what it started ends with its home."""
    monkeypatch.setenv("PATH", f"{engine_folder}:{os.environ['PATH']}")
    root = tmp_path / "shop"
    root.mkdir()
    for argv in (["init", "-q", "-b", "main"], ["commit", "-q", "--allow-empty", "-m", "Begin"]):
        subprocess.run(["git", *argv], cwd=root, check=True, timeout=60)
    scaffold(root)
    return root


def run(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    environment = {**os.environ, **variables}
    return subprocess.run(
        [*PROGRAM, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )


def in_shell(script: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell's."""
    argv = ["bash", "-c", script]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=LIMIT, check=True)


def task(project: Path, name: str, text: str) -> None:
    """Write a task's file."""
    (project / "tasks" / f"{name}.yaml").write_text(text)


def data(shown: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """Return the one JSON document that stdout is."""
    document = json.loads(shown.stdout)
    assert isinstance(document, dict), shown.stderr
    return document


def test_a_task_from_up_to_destroy(project: Path, tmp_path: Path) -> None:
    """`up` runs a task to its end and says how it went; status, list and logs know it; destroy leaves only results.

    After `eval "$(coding-agent env)"` a bare `pulumi` sees the stack. A name means the task of the project one stands
    in; another project's is only reached by its run id.
    """
    task(project, "hello", "command: |\n  echo one\n  echo two\n")
    shown = run("up", "hello", cwd=project)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "two" in shown.stdout
    assert "succeeded" in shown.stdout
    assert "coding-agent destroy hello" in shown.stdout
    assert "\x1b" not in shown.stdout + shown.stderr
    status = data(run("status", "hello", "--json", cwd=project))
    assert status["status"] == "succeeded"
    assert status["exit_code"] == 0
    assert status["usage"] is None
    assert run("logs", "hello", "-n", "1", cwd=project).stdout == "two\n"
    lines = run("logs", "hello", "--json", cwd=project).stdout.splitlines()
    assert [json.loads(line)["line"] for line in lines] == ["one", "two"]
    listed = json.loads(run("list", "--project", "--json", cwd=project).stdout)
    assert [(each["stack"], each["run_id"]) for each in listed] == [("hello", status["run_id"])]
    assert run("preview", "hello", cwd=project).returncode == 0
    script = f'eval "$({sys.executable} -m coding_agent env --shell bash)" && pulumi stack ls --json'
    bare = subprocess.run(
        ["bash", "-c", script], cwd=project, capture_output=True, text=True, timeout=LIMIT, check=True
    )
    assert [each["name"] for each in json.loads(bare.stdout)] == ["hello"]
    _names_stay_in_their_project(tmp_path / "other", str(status["run_id"]))
    gone = run("destroy", "hello", cwd=project)
    assert gone.returncode == 0, gone.stderr
    assert run("logs", "hello", cwd=project).stdout == "one\ntwo\n"
    assert data(run("status", "hello", "--json", cwd=project))["status"] == "succeeded"


def _names_stay_in_their_project(other: Path, run_id: str) -> None:
    other.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=other, check=True, timeout=60)
    assert run("init", cwd=other).returncode == 0
    shown = run("destroy", "hello", cwd=other)
    assert shown.returncode == 4
    assert run_id in shown.stderr
    assert data(run("status", run_id, "--json", cwd=other))["status"] == "succeeded"


def test_a_failed_run_is_exit_code_1(project: Path) -> None:
    """`up` of a task that fails ends with 1, its outputs readable; to show them is no failure.

    `coding-agent logs NAME | head -1` shows one line and no complaint.
    """
    task(project, "bad", "command: seq 200000; exit 7\n")
    shown = run("up", "bad", "--json", cwd=project)
    assert shown.returncode == 1, shown.stderr
    assert data(shown)["status"] == "failed"
    assert data(shown)["exit_code"] == 7
    assert run("status", "bad", cwd=project).returncode == 0
    script = f"{sys.executable} -m coding_agent logs bad | head -1"
    first = subprocess.run(
        ["bash", "-c", script], cwd=project, capture_output=True, text=True, timeout=LIMIT, check=True
    )
    assert (first.stdout, first.stderr) == ("1\n", "")


def test_detach_follow_kill(project: Path) -> None:
    """`up --detach` returns while the run goes on; `logs -f` shows lines as they come; `kill` ends it, results stay."""
    # exec: a shell that outlived its child by a moment would say in the log that the child was terminated.
    task(project, "long", "command: |\n  echo begun\n  exec sleep 600\n")
    shown = run("up", "long", "--detach", "--json", cwd=project)
    assert shown.returncode == 0, shown.stderr
    assert data(shown)["status"] == "running"
    follower = subprocess.Popen(
        [*PROGRAM, "logs", "-f", "long"], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert follower.stdout
    assert follower.stdout.readline() == "begun\n"
    running = data(run("status", "long", "--json", cwd=project))
    usage = running["usage"]
    assert isinstance(usage, dict)
    assert usage["processes"] >= 1
    ended = run("kill", "long", "--json", cwd=project)
    assert ended.returncode == 0, ended.stderr
    assert data(ended)["status"] == "killed"
    follower.communicate(timeout=LIMIT)
    assert follower.returncode == 0
    assert run("logs", "long", cwd=project).stdout == "begun\n"
    assert data(run("status", "long", "--json", cwd=project))["status"] == "killed"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_agent(number: signal.Signals, code: int, project: Path) -> None:
    """SIGINT (130) or SIGTERM (143) during `up` ends the following and says so; the run goes on."""
    task(project, "long", "command: |\n  echo begun\n  sleep 600\n")
    process = subprocess.Popen(
        [*PROGRAM, "up", "long"], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    _read_until(process, "begun")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == code
    assert "goes on" in stdout + stderr
    assert "Traceback" not in stdout + stderr
    if number is signal.SIGINT:
        assert "coding-agent logs -f long" in stdout
    assert data(run("status", "long", "--json", cwd=project))["status"] == "running"


def _read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout
    guard = threading.Timer(LIMIT, process.kill)
    guard.start()
    try:
        for line in process.stdout:
            if line.strip() == text:
                return
    finally:
        guard.cancel()
    raise AssertionError(f"no line {text!r}: {process.communicate()[1]}")


def test_ctrl_c_while_starting(project: Path) -> None:
    """Ctrl-C before the agent has started ends `up` and the engine with 130; the next `up` goes on from there."""
    task(project, "slow", "setup: [touch ../../begun, sleep 600]\ncommand: echo done\n")
    process = subprocess.Popen(
        [*PROGRAM, "up", "slow"],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _read_until(process, "stage: setup")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    stdout, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, stdout + stderr
    assert "Traceback" not in stdout + stderr
    again = run("up", "slow", "--detach", "--json", cwd=project)
    assert again.returncode == 0, again.stderr
    listed = json.loads(run("list", "--json", cwd=project).stdout)
    assert [each["run_id"] for each in listed] == [data(again)["run_id"]]


def test_on_a_terminal(project: Path) -> None:
    """On a terminal tables are coloured, and `destroy` of a run that goes on asks; no means that nothing is done."""
    task(project, "long", "command: sleep 600\n")
    assert run("up", "long", "-d", cwd=project).returncode == 0
    assert "\x1b[" in on_terminal("status", "long", cwd=project)[1]
    code, shown = on_terminal("destroy", "long", cwd=project, answer="n\n")
    assert "still running" in shown
    assert code == 2
    assert data(run("status", "long", "--json", cwd=project))["status"] == "running"
    code, shown = on_terminal("destroy", "long", cwd=project, answer="y\n")
    assert code == 0, shown
    assert "long is removed" in shown


def on_terminal(*arguments: str, cwd: Path, answer: str = "") -> tuple[int, str]:
    """Run a command on a terminal of its own; return its exit code and everything the terminal showed."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [*PROGRAM, *arguments], cwd=cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's other end is closed: the command has ended
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    return process.wait(LIMIT), shown.decode()


@pytest.mark.slow
def test_up_again_adopts_and_rerun_repeats(project: Path) -> None:
    """`up` of an unchanged task shows the run that is there; with --rerun there is a new one."""
    task(project, "once", "command: echo done\n")
    first = data(run("up", "once", "--json", cwd=project))["run_id"]
    assert data(run("up", "once", "--json", cwd=project))["run_id"] == first
    assert "nothing changed" in run("up", "once", cwd=project).stdout
    assert data(run("up", "once", "--rerun", "--json", cwd=project))["run_id"] != first


def test_validate_shows_every_problem(project: Path) -> None:
    """`validate` shows all problems of all files with their places, and ends with 2."""
    task(project, "one", "comand: 'true'\n")
    task(project, "two", "command: 'true'\nlimits:\n  timeout: 5\n")
    shown = run("validate", cwd=project)
    assert shown.returncode == 2
    assert "tasks/one.yaml:1:1: comand: " in shown.stdout
    assert "tasks/two.yaml:3:12: limits.timeout: " in shown.stdout
    found = data(run("validate", "two", "--json", cwd=project))
    assert found["valid"] is False
    assert isinstance(found["problems"], list)
    assert found["problems"][0]["line"] == 3
    assert run("up", "one", cwd=project).returncode == 2
    absent = run("validate", "tasks/none.yaml", "one", cwd=project)
    assert absent.returncode == 2
    assert "tasks/none.yaml:1:1: " in absent.stdout


def test_init_keeps_what_is_there(project: Path) -> None:
    """`init` a second time makes nothing and changes nothing."""
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    assert data(run("init", "--json", cwd=project))["made"] == []
    assert before == {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    assert run("validate", cwd=project).returncode == 0


def test_executors_of_the_file(project: Path, tmp_path: Path) -> None:
    """`executors` lists what the file of --config names, and the built-in one, each with what tells it from others."""
    file = tmp_path / "executors.yaml"
    file.write_text("executors:\n  - {name: crib, type: hetzner, labels: [rust], server_types: [cx23, cpx22]}\n")
    shown = run("--config", str(file), "executors", cwd=project)
    assert shown.returncode == 0, shown.stderr
    assert "crib" in shown.stdout
    assert "server_types cx23, cpx22" in shown.stdout
    named = json.loads(run("--config", str(file), "executors", "--json", cwd=project).stdout)
    assert {each["name"] for each in named} == {"crib", "local"}


def test_an_agent_from_up_to_its_branch(
    project: Path,
    messages_api: MessagesApi,
    claude_program: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes_with: Callable[[str], list[int]],
) -> None:
    """An agent's commits arrive as a branch, its turns are shown as they come, and nothing of it runs afterwards."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", messages_api.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary-of-the-command-line")
    monkeypatch.setenv("PATH", f"{claude_program.parent}:{os.environ['PATH']}")
    subprocess.run(["git", "add", "-A"], cwd=project, check=True, timeout=60)
    subprocess.run(["git", "commit", "-q", "-m", "A project"], cwd=project, check=True, timeout=60)
    task(project, "note", json.dumps({"prompt": scenario("edit"), "repo": ".", "uncommitted": "ignore"}))
    shown = run("up", "note", cwd=project)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "turn 1: Bash" in shown.stdout
    status = data(run("status", "note", "--json", cwd=project))
    assert status["branch"] == "coding-agent/note"
    log = subprocess.run(
        ["git", "log", "-1", "--format=%s", "coding-agent/note"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert log.stdout == "Add a note\n"
    assert processes_with(str(status["run_id"])) == []
