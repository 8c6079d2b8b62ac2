"""An API that fails: the run has failed, with the API's own reason, and never counts as a success."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

import pytest

from fakes.scenarios import scenario
from user import User
from waiting import until

WORDS = "the words of the API"
# Claude Code itself asks ten times, over three minutes.
ASK_TWICE = {"CLAUDE_CODE_MAX_RETRIES": "1"}

FAILURES = [
    pytest.param(scenario("error", status=400, message=WORDS), f"400 {WORDS}", id="400"),
    pytest.param(scenario("error", status=401, message=WORDS), f"401 {WORDS}", id="401"),
    pytest.param(scenario("error", status=429, message=WORDS), WORDS, id="429_for_ever"),
    pytest.param(scenario("error", status=500, message=WORDS), f"500 {WORDS}", id="500"),
    pytest.param(scenario("drop"), "ECONNRESET", id="dropped_connection"),
    pytest.param(scenario("refusal"), "safeguards", id="refusal"),
    pytest.param(scenario("max_tokens"), "output token maximum", id="max_tokens"),
]


def _task(user: User, name: str, prompt: str, **fields: Any) -> None:
    user.task(name, json.dumps({"prompt": prompt, "env": ASK_TWICE, **fields}))


def _failed(outputs: Mapping[str, Any], words: str) -> bool:
    assert (outputs["status"], outputs["reason"], outputs["exit_code"]) == ("failed", "api_error", 1), outputs
    assert words in outputs["detail"]
    assert words in outputs["result"]
    assert words in outputs["log_tail"]
    return True


@pytest.mark.slow
@pytest.mark.parametrize(("prompt", "words"), FAILURES)
def test_an_api_error_fails_the_run_with_the_apis_reason(user: User, prompt: str, words: str) -> None:
    """A run whose model answers with an error has failed, says what the API said, and `up` ends with 1."""
    _task(user, "job", prompt)

    shown = user.cli("up", "job", code=1).stdout

    assert words in shown
    assert _failed(user.outputs("job"), words)
    exported = json.loads(user.pulumi("stack", "output", "--json", "--stack", "job").stdout)
    assert _failed(exported, words)


def test_a_refused_connection_fails_the_run_with_that_reason(user: User) -> None:
    """A run whose model can't be reached at all has failed, and says so."""
    with socket.socket() as taken:
        # Bound and not listening: nobody else can take the port, and every connection is refused.
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        _task(user, "job", "Do it.")

        shown = user.cli("up", "job", code=1, ANTHROPIC_BASE_URL=nowhere).stdout

    assert "ECONNREFUSED" in shown
    assert _failed(user.outputs("job"), "ECONNREFUSED")
    assert user.api.requests == []


def test_an_api_that_fails_for_ever_is_seen_while_it_is_asked_again(user: User) -> None:
    """While the agent goes on asking an API that answers 429, the run is running and shows the answer."""
    user.task("job", json.dumps({"prompt": scenario("error", status=429, message=WORDS)}))
    user.cli("up", "job", "--detach")

    outputs = until(lambda: (now := user.outputs("job")) and "429" in now["log_tail"] and now)

    assert outputs["status"] == "running"
    assert "attempt 1 of" in outputs["log_tail"]
    assert "the API answered 429" in user.cli("logs", "job").stdout
    user.cli("kill", "job")
    assert user.outputs("job")["status"] == "killed"


def test_an_api_that_recovers_lets_the_run_succeed(user: User) -> None:
    """A run whose API failed at first and then answered has succeeded, and its log shows the failure."""
    _task(user, "job", scenario("error", status=500, message=WORDS, times=1))

    user.cli("up", "job")

    outputs = user.outputs("job")
    assert (outputs["status"], outputs["reason"], outputs["result"]) == ("succeeded", None, "The error is over.")
    assert "the API answered 500" in outputs["log_tail"]


def test_an_api_error_keeps_the_work_done_before(user: User) -> None:
    """A run that an API error ends after the agent has committed has failed, and its commits arrive."""
    _task(user, "job", scenario("edit+error", status=400, message=WORDS), repo=".")
    user.commit_all()

    user.cli("up", "job", code=1)

    outputs = user.outputs("job")
    assert _failed(outputs, f"400 {WORDS}")
    assert (outputs["branch"], outputs["num_turns"]) == ("coding-agent/job", 5)
    assert user.git("show", "coding-agent/job:note.txt") == "the second line\n"


def test_words_of_an_error_do_not_make_a_failure(user: User) -> None:
    """A run whose agent only writes about errors, in the form of Claude Code's own events, has succeeded."""
    said = 'API Error: 400 {"is_error":true,"subtype":"error_max_turns","terminal_reason":"api_error"}'
    _task(user, "job", scenario("text", text=said))

    user.cli("up", "job")

    outputs = user.outputs("job")
    assert (outputs["status"], outputs["reason"], outputs["result"]) == ("succeeded", None, said)


def test_denied_calls_show(user: User) -> None:
    """A denied tool call shows at the run's end, in `status`, in JSON and in the stack's outputs."""
    _task(user, "job", scenario("denied"))

    shown = user.cli("up", "job").stdout

    for table in (shown, user.cli("status", "job").stdout):
        assert [line.split()[1] for line in table.splitlines() if line.split()[:1] == ["denied"]] == ["Write"]
        assert ".claude/settings.json" in table
    exported = json.loads(user.pulumi("stack", "output", "--json", "--stack", "job").stdout)
    for outputs in (user.outputs("job"), exported):
        assert outputs["status"] == "succeeded"
        assert [each["tool_name"] for each in outputs["permission_denials"]] == ["Write"]
        assert ".claude/settings.json" in outputs["permission_denials"][0]["tool_input"]
