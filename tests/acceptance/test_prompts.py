"""What the model receives is what the user wrote, byte for byte, by whichever way it came."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

import pytest

from user import User

MEGABYTE = 1_000_000
LARGEST = 10 * MEGABYTE  # bytes

NASTY = (
    "-- \"double\" 'single' $(touch x) `touch x` ${HOME} $'\\n' \\ %s !! * ? [a] {b,c} ~ <c> & ; |\r\n"
    "a line that ends as on Windows\r\n\ta tab, a lone \r carriage return, a \x01 control, \x1b[31m, \x7f\n"
    "\u00e9 e\u0301 \u2028 \u202e rtl \ufeff \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0010fffd\n"
    "--help\n# no comment\n- no list\nkey: no mapping\n---\n...\n@nothing !nothing /nothing\nEOF\n\n  the end \n\n"
)
LONG = "".join(f"line {number:06}: $(touch x) \u00e9\r\n" for number in range(75_000))


def _as_prompt(user: User, text: str) -> None:
    # JSON's quoted text is YAML's too, once everything that is no ASCII is written as YAML writes it.
    quoted = re.sub("[\x7f-\U0010ffff]", lambda found: f"\\U{ord(found[0]):08x}", json.dumps(text, ensure_ascii=False))
    user.task("job", f"prompt: {quoted}\n")
    user.cli("up", "job")


def _as_prompt_file(user: User, text: str) -> None:
    (user.project / "tasks" / "prompt.txt").write_bytes(text.encode())
    user.task("job", "prompt_file: prompt.txt\n")
    user.cli("up", "job")


def _by_dispatch(user: User, text: str) -> None:
    file = user.project / "given.txt"
    file.write_bytes(text.encode())
    script = (
        "import pathlib, sys; from coding_agent import dispatch\n"
        "task = dispatch(prompt=pathlib.Path(sys.argv[1]).read_bytes().decode())\n"
        "assert task.wait(timeout=120).status == 'succeeded', task.outputs\n"
        "task.cleanup()"
    )
    user.run(sys.executable, "-c", script, str(file))


def _by_the_engine(user: User, text: str) -> None:
    (user.project / "tasks" / "prompt.txt").write_bytes(text.encode())
    user.task("job", "prompt_file: prompt.txt\n")
    user.pulumi("stack", "init", "job", "--non-interactive")
    user.pulumi("up", "--yes", "--skip-preview", "--non-interactive", "--stack", "job")


WAYS = [
    pytest.param(_as_prompt, id="prompt"),
    pytest.param(_as_prompt_file, id="prompt_file"),
    pytest.param(_by_dispatch, id="dispatch"),
    pytest.param(_by_the_engine, id="pulumi_up"),
]
# Chosen by a name: a failed test would show a parameter of 2 MB.
TEXTS = {"quotes_newlines_dollar_backticks_dashes_emoji_crlf": NASTY, "2_mb": LONG}


@pytest.mark.slow
@pytest.mark.parametrize("give", WAYS)
@pytest.mark.parametrize("kind", TEXTS)
def test_the_model_receives_a_prompt_byte_for_byte(user: User, kind: str, give: Callable[[User, str], None]) -> None:
    """Whatever a prompt holds, the model receives exactly that, and nothing in it is run by anybody on the way."""
    give(user, TEXTS[kind])

    _received(user, TEXTS[kind])
    assert [*user.project.rglob("x"), *user.home.rglob("x")] == []


def _received(user: User, text: str) -> None:
    received = user.api.prompts()
    assert len(received) == 1
    same = received[0].encode() == text.encode()
    assert same, f"{received[0][:400]!r} of {len(received[0])} characters, not {text[:400]!r} of {len(text)}"


def test_a_prompt_over_10_mb_is_refused_by_validate(user: User) -> None:
    """A prompt of over 10 MB is refused with its place and size, in the task's file and in a file of its own."""
    inline = user.task("inline", f"prompt: {'x' * (LARGEST + 1)}\n")
    (user.project / "tasks" / "prompt.txt").write_bytes(b"x" * (LARGEST + 1))
    beside = user.task("beside", "prompt_file: prompt.txt\n")

    said = user.cli("validate", str(inline), str(beside), code=2)

    lines = [line for line in (said.stdout + said.stderr).splitlines() if str(LARGEST) in line]
    assert [line.partition(": ")[0] for line in lines] == ["tasks/inline.yaml:1:9", "tasks/beside.yaml:1:14"]
    assert all(str(LARGEST + 1) in line for line in lines)


def test_a_prompt_over_10_mb_starts_nothing(user: User) -> None:
    """Neither `up` nor `dispatch` starts anything for a prompt of over 10 MB, and both say why."""
    (user.project / "tasks" / "prompt.txt").write_bytes(b"x" * (LARGEST + 1))
    user.task("job", "prompt_file: prompt.txt\n")
    script = (
        "from coding_agent import dispatch, errors\n"
        "try:\n"
        f"    dispatch(prompt='x' * {LARGEST + 1})\n"
        "except errors.InvalidInput as error:\n"
        "    print(error)"
    )

    refused = user.cli("up", "job", code=2)
    dispatched = user.run(sys.executable, "-c", script)

    assert f"{LARGEST}" in refused.stderr
    assert f"{LARGEST}" in dispatched.stdout
    assert json.loads(user.cli("list", "--json").stdout) == []
    assert user.api.requests == []


def test_a_prompt_too_long_for_the_model_fails_the_run(user: User) -> None:
    """A prompt that may be given but is too long for the model fails the run with that reason."""
    (user.project / "tasks" / "prompt.txt").write_bytes(b"x" * 3 * MEGABYTE)
    user.task("job", "prompt_file: prompt.txt\n")

    user.cli("up", "job", code=1)

    outputs = user.outputs("job")
    assert (outputs["status"], outputs["detail"]) == ("failed", "Prompt is too long")
    assert user.api.requests == []


@pytest.mark.parametrize("prompt", ["/help me with the tests", "/clear the cache, please"])
def test_a_prompt_that_no_model_receives_is_no_success(user: User, prompt: str) -> None:
    """A prompt that Claude Code takes as a command of its own, and never asks the model about, fails the run."""
    user.task("job", json.dumps({"prompt": prompt}))

    user.cli("up", "job", code=1)

    outputs = user.outputs("job")
    assert (outputs["status"], outputs["reason"]) == ("failed", "model_not_asked")
    assert "begins with /" in outputs["detail"]
    assert user.api.requests == []


def test_a_prompt_that_only_looks_like_a_command_is_received(user: User) -> None:
    """A prompt that begins with a path, which is no command of Claude Code's, reaches the model as it is."""
    text = "/tmp is full: say so."
    _as_prompt(user, text)

    _received(user, text)
