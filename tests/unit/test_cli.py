"""The command line without a run: help, completion, exit codes, errors, what is imported when."""

from __future__ import annotations

import doctest
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from coding_agent import cli, times
from coding_agent.cli import failure, names, screen
from coding_agent.cli.root import COMMANDS, coding_agent

ALL = [name for section in COMMANDS.values() for name in section]
PROGRAM = [sys.executable, "-m", "coding_agent"]


def run(*arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own."""
    environment = {**os.environ, **variables}
    return subprocess.run(
        [*PROGRAM, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_help_imports_nothing_slow(home: Path) -> None:
    """`--help` loads neither the engine's library nor a renderer nor a validator."""
    code = (
        "import sys; from coding_agent.cli import main; main(['--help']);"
        "print([n for n in ('pulumi', 'rich', 'jsonschema', 'yaml', 'grpc') if n in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"


def test_help_names_every_command_and_exit_code(home: Path) -> None:
    """The list of commands and what each exit code means stand in `--help`."""
    shown = run("--help").stdout
    for name in ALL:
        assert re.search(rf"^  {name}  ", shown, re.MULTILINE), name
    for code in ("0", "1", "2", "3", "4", "130"):
        assert re.search(rf"^  {code}  +\w", shown, re.MULTILINE), code


@pytest.mark.parametrize("name", ALL)
def test_each_command_has_examples_and_exit_codes(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's help has an example that starts with the command, and says what its exit codes mean."""
    assert cli.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"Examples:\n  coding-agent (--config \S+ )?{name}\b", shown)
    assert re.search(r"Exit codes:\n  0  +\w", shown)


def test_every_command_prints_json_but_completion(home: Path) -> None:
    """Whatever prints results takes --json; only a script for a shell does not."""
    context = coding_agent.make_context("coding-agent", ["list"])
    found = [coding_agent.get_command(context, name) for name in ALL]
    commands = [
        command
        for each in found
        for command in (each.commands.values() if isinstance(each, click.Group) else [each])
        if command is not None
    ]
    without = [each.name for each in commands if "as_json" not in [option.name for option in each.params]]
    assert without == ["completion"]


def test_a_lookup_imports_no_engine_library(home: Path) -> None:
    """`list` and a `status` that finds nothing import neither pulumi nor jsonschema nor rich."""
    code = (
        "import sys; from coding_agent.cli import main; main(['list']); main(['status', 'nothing']);"
        "print([n for n in ('pulumi', 'rich', 'jsonschema', 'grpc') if n in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"


def test_unknown_command_names_the_nearest(home: Path) -> None:
    """An unknown command is bad input, exit code 2, and the nearest one is named."""
    shown = run("staus")
    assert shown.returncode == 2
    assert "did you mean status?" in shown.stderr
    assert shown.stdout == ""


@pytest.mark.parametrize("arguments", [["up"], ["logs", "-n", "x", "a"], ["--nothing"], ["-C", "/none", "list"]])
def test_bad_options_are_bad_input(arguments: list[str], home: Path) -> None:
    """A command line that can't be used ends with 2, says why in one line and where help is."""
    shown = run(*arguments)
    assert shown.returncode == 2
    assert re.fullmatch(r"error: .+\nnext: coding-agent.* --help shows what it takes\n", shown.stderr)


@pytest.mark.parametrize("command", ["status", "logs", "kill", "collect", "destroy"])
def test_unknown_run_is_not_found(command: str, home: Path, tmp_path: Path) -> None:
    """A run nobody knows ends with 4, with the message as JSON too where --json asks for it."""
    shown = run(command, "nothing", "--json", cwd=tmp_path)
    assert shown.returncode == 4
    said = json.loads(shown.stdout)
    assert said["exit_code"] == 4
    assert said["error"]["type"] == "NotFound"
    assert "nothing" in said["error"]["message"]
    assert shown.stderr.startswith("error: no run of a task 'nothing'")


def test_unknown_task_names_the_nearest(home: Path, tmp_path: Path) -> None:
    """`up` of a task that does not exist ends with 4 and names the nearest one of the project."""
    (tmp_path / "Pulumi.yaml").write_text("name: x\nruntime: python\n")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "fix-build.yaml").write_text("command: 'true'\n")
    (tmp_path / "deep").mkdir()
    shown = run("-C", str(tmp_path / "deep"), "up", "fix-biuld")
    assert shown.returncode == 4
    assert "next: did you mean fix-build?" in shown.stderr


def test_unexpected_error_is_one_line_and_a_private_report(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error nobody foresaw shows one line, never a traceback; the whole of it is in a file of mode 600."""
    with pytest.raises(KeyError) as info:
        dict[str, str]()["surprise"]
    caught = info.value
    assert failure.unexpected(caught, as_json=False) == 3
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert shown.startswith("error: unexpected KeyError: 'surprise'\nnext: ")
    (report,) = (home / ".local/state/coding-agent/reports").iterdir()
    assert str(report) in shown
    assert report.stat().st_mode & 0o777 == 0o600
    assert "Traceback" in report.read_text()
    monkeypatch.setenv("CODING_AGENT_TRACEBACK", "1")
    failure.unexpected(caught, as_json=False)
    assert "Traceback" in capsys.readouterr().err


def test_reports_are_kept_to_a_number(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the last reports stay."""
    for _ in range(failure.KEPT_REPORTS + 5):
        failure.unexpected(ValueError("again"), as_json=False)
    assert len(list((home / ".local/state/coding-agent/reports").iterdir())) == failure.KEPT_REPORTS


def test_no_traceback_when_a_folder_is_in_the_way(home: Path) -> None:
    """Even a state folder that is a file gives one line and an exit code, no traceback."""
    state = home / ".local" / "state" / "coding-agent"
    state.write_text("in the way")
    shown = run("list")
    assert "Traceback" not in shown.stderr + shown.stdout
    assert shown.returncode == 0 or shown.stderr.startswith("error: ")


def test_closed_output_is_quiet(home: Path) -> None:
    """`coding-agent completion bash | true` complains about nothing."""
    process = subprocess.Popen([*PROGRAM, "completion", "bash"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.close()
    _, stderr = process.communicate(timeout=60)
    assert stderr == b""
    assert process.returncode == 141


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_without_a_traceback(number: signal.Signals, code: int, home: Path) -> None:
    """SIGINT ends a command with 130 and SIGTERM with 143, both without a traceback."""
    fifo = home / "executors.yaml"
    os.mkfifo(fifo)
    process = subprocess.Popen([*PROGRAM, "--config", str(fifo), "executors"], stderr=subprocess.PIPE, text=True)
    with fifo.open("w"):  # opened once the command reads the file, which then waits for text
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, home: Path) -> None:
    """`completion SHELL` prints a script for that shell that calls this program."""
    shown = run("completion", shell)
    assert shown.returncode == 0
    assert "_CODING_AGENT_COMPLETE" in shown.stdout
    if shell == "bash":
        checked = subprocess.run(["bash", "-n"], input=shown.stdout, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr


def complete(words: str, cwd: Path) -> list[str]:
    """Return what bash is told to complete the words to."""
    variables = {
        "_CODING_AGENT_COMPLETE": "bash_complete",
        "COMP_WORDS": f"coding-agent {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    return [line.partition(",")[2] for line in run(cwd=cwd, **variables).stdout.splitlines()]


def test_completing_commands_and_tasks(home: Path, tmp_path: Path) -> None:
    """Commands and the project's tasks are completed."""
    (tmp_path / "Pulumi.yaml").write_text("name: x\nruntime: python\n")
    (tmp_path / "tasks").mkdir()
    for name in ("fix-build", "fix-docs", "other"):
        (tmp_path / "tasks" / f"{name}.yaml").write_text("command: 'true'\n")
    assert complete("st", tmp_path) == ["status"]
    assert complete("up fix", tmp_path) == ["fix-build", "fix-docs"]


def test_table_without_a_terminal_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal a table is aligned text without escapes, and what it shows can't move a cursor."""
    screen.Screen().table(("A", "BEE"), [("1", "x\x1b[31mred\x1b[0m"), ("long", "two\nlines")])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    lines = shown.splitlines()
    assert lines[0] == "A     BEE"
    assert lines[1].startswith("1     x")
    assert lines[2] == "long  two lines"


def test_people_and_programs_are_kept_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json stdout is one JSON document, and what people read goes to stderr."""
    both = screen.Screen(as_json=True)
    both.say("working\x1b]0;title\x07")
    both.data({"text": "\x1b[31m \u202e"})
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"text": "\x1b[31m \u202e"}
    assert shown.out.isascii()
    assert "\x1b" not in shown.out + shown.err


def test_project_root_is_the_nearest(tmp_path: Path) -> None:
    """The project is the nearest folder upwards that has a Pulumi.yaml."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "Pulumi.yaml").touch()
    assert names.project_root(inner) == tmp_path
    (inner / "Pulumi.yaml").touch()
    assert names.project_root(inner) == inner


def test_the_examples_of_times_run() -> None:
    """The examples in the docstrings of the helpers for times show what they say."""
    assert doctest.testmod(times).attempted >= 2
    assert doctest.testmod(times).failed == 0
