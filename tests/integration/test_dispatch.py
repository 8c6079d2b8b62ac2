"""`dispatch` and the Task handle, with the real engine, the real Claude Code and the scripted Messages API."""

from __future__ import annotations

import asyncio
import doctest
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import coding_agent
from coding_agent import aio, api, dispatch, dispatch_file, get_task, records
from coding_agent.errors import CredentialMissing, InvalidInput, NotFound
from coding_agent.run import Outputs, State
from coding_agent.scaffold import scaffold
from fakes.messages_api import MessagesApi
from fakes.scenarios import scenario
from waiting import until

LIMIT = 120  # seconds

# The README's example, word for word.
SNIPPET = """
from coding_agent import dispatch

task = dispatch(
    prompt="Fix the build...",
    executor="crib",  # or "builder", "local"
    max_turns=100,
    labels={"rust", "heavy"}
)

# Monitor
while task.running:
    status = task.status()
    print(f"CPU: {status.cpu}%, MEM: {status.mem}MB")
    print(task.recent_activity())  # last 10 tool calls
    time.sleep(30)
"""


@pytest.fixture(autouse=True)
def dispatching(
    engine_folder: Path,
    claude_program: Path,
    home: Path,
    messages_api: MessagesApi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Put the real programs on PATH and the scripted API behind the agent; what is left ends with its home."""
    monkeypatch.setenv("PATH", f"{engine_folder}:{claude_program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", messages_api.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary-of-dispatch")
    monkeypatch.chdir(tmp_path)


def test_the_examples_in_the_documentation_run(messages_api: MessagesApi) -> None:
    """Every example in the docstrings of the public interface runs and shows what it says."""
    found, awaited = doctest.testmod(api), doctest.testmod(aio)
    assert (found.attempted > 10, awaited.attempted) == (True, 4)
    assert (found.failed, awaited.failed) == (0, 0)


def test_the_snippet_runs_as_written(home: Path, messages_api: MessagesApi, capsys: pytest.CaptureFixture[str]) -> None:
    """The example of README.md dispatches to a named executor and watches CPU, memory and activity until the end."""
    file = home / ".config" / "openclaw" / "coding-agent.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("executors:\n  - {name: crib, type: local, labels: [quick]}\n")
    watched: list[float] = []
    names: dict[str, Any] = {}

    def sleep(seconds: float) -> None:
        watched.append(seconds)
        messages_api.wait_for_turns(2)  # the agent has done its tool call and waits at the gate
        if len(watched) > 1:
            messages_api.open_gate()
            names["task"].wait(timeout=LIMIT)

    # Only the clock is another: nobody waits 30 seconds.
    names["time"] = SimpleNamespace(sleep=sleep)
    exec(SNIPPET.replace("Fix the build...", f"Fix the build... {scenario('gate')}"), names)
    shown = capsys.readouterr().out
    assert watched == [30, 30]
    assert re.search(r"CPU: \d+\.\d+%, MEM: [1-9]\d*\.\d+MB", shown)
    assert "['Bash" in shown.splitlines()[-1]
    assert names["task"].outputs.status is State.SUCCEEDED
    assert names["task"].outputs.executor == "crib"


# More than the library has threads for them.
@pytest.mark.parametrize("number", [40, pytest.param(100, marks=pytest.mark.slow)])
def test_hundreds_can_be_awaited_at_once(number: int) -> None:
    """Coroutines that wait hold up neither each other nor the loop; one that is cancelled ends, its task goes on."""

    async def everything() -> None:
        said: list[str] = []
        task = await aio.dispatch(command="echo hello; sleep 600", executor="local", say=said.append)
        waiting = [asyncio.ensure_future(task.wait(say=said.append)) for _ in range(number)]
        until_said = asyncio.get_running_loop().time() + LIMIT
        while said.count("hello") < number:
            assert asyncio.get_running_loop().time() < until_said
            await asyncio.sleep(0.05)
        assert await task.running()
        assert (await task.status()).state is State.RUNNING
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        with pytest.raises(api.WaitTimeout):
            await task.wait(0.1)
        assert await (await aio.get_task(task.id)).running()
        await task.kill()
        assert {outputs.status for outputs in await asyncio.gather(*waiting[1:])} == {State.KILLED}
        assert (await task.logs())[0] == "hello"
        await task.cleanup()

    asyncio.run(everything())


def test_a_file_is_dispatched_once_until_it_changes(tmp_path: Path) -> None:
    """A task file of a project is dispatched under the project's stack; again it is adopted; bad ones are refused."""
    scaffold(tmp_path / "shop")
    file = tmp_path / "shop" / "tasks" / "job.yaml"
    file.write_text("command: echo $CODING_AGENT_TASK_START made\nexecutor: local\n")
    task = dispatch_file(file, priority=3)
    assert task.wait(LIMIT).status is State.SUCCEEDED
    assert task.name == "job"
    assert dispatch_file(str(file)).id == task.id
    assert asyncio.run(_outputs(file)).run_id == task.outputs.run_id
    file.write_text("comand: true\n")
    with pytest.raises(InvalidInput, match="comand"):
        dispatch_file(file)
    task.cleanup()


async def _outputs(file: Path) -> Outputs:
    return await (await aio.dispatch_file(file)).outputs()


def test_labels_choose_the_executor(home: Path) -> None:
    """Without a named executor the first one that carries all labels is used; where none does, the error says so."""
    file = home / ".config" / "openclaw" / "coding-agent.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "executors:\n"
        "  - {name: small, type: local, labels: [quick]}\n"
        "  - {name: crib, type: local, labels: [rust, quick]}\n"
    )
    assert dispatch(command="true", labels={"rust", "quick"}).wait(LIMIT).executor == "crib"
    with pytest.raises(InvalidInput, match="labels: no executor carries all of gpu"):
        dispatch(command="true", labels={"gpu"})
    with pytest.raises(InvalidInput, match=r"crab.*crib"):
        dispatch(command="true", executor="crab")


def test_another_process_finds_the_task() -> None:
    """A task goes on when the process that dispatched it has ended; `get_task` and the command line know it; waiting
    for it with a limit raises what is a TimeoutError, and leaves it alone."""
    code = "from coding_agent import dispatch; print(dispatch(command='echo begun; exec sleep 600').id)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=True)
    task = begun(get_task(done.stdout.strip()))
    status = task.status()
    assert status.state is State.RUNNING
    assert status.processes >= 1
    assert status.mem > 0
    assert status.uptime > 0
    with pytest.raises(TimeoutError) as caught:
        task.wait(timeout=0.3)
    assert isinstance(caught.value, api.WaitTimeout)
    assert task.running
    argv = [sys.executable, "-m", "coding_agent", "kill", task.id]
    subprocess.run(argv, capture_output=True, timeout=LIMIT, check=True)
    assert not task.running
    assert task.logs() == ["begun"]


def test_looking_while_it_starts() -> None:
    """Whoever looks at a task all the time while it is started sees it come nearer, and never takes it for lost."""
    task = dispatch(command="true", setup=["true"])
    seen: list[State] = []

    def ended() -> bool:
        seen.append(task.outputs.status)
        return seen[-1].final

    until(ended)
    order = [State.QUEUED, State.PROVISIONING, State.STARTING, State.RUNNING, State.SUCCEEDED]
    assert list(dict.fromkeys(seen)) == [each for each in order if each in seen]


def test_cleanup_leaves_the_results(home: Path) -> None:
    """A run that failed raises nothing: its outputs say so. After `cleanup` neither stack nor task file nor run folder
    is left, and the log can still be read."""
    task = dispatch(command="echo kept; exit 3", name="once")
    outputs = task.wait(LIMIT)
    assert (outputs.status, outputs.exit_code) == (State.FAILED, 3)
    file = home / ".local/state/coding-agent/dispatch/tasks/once.yaml"
    assert file.exists()
    task.cleanup()
    assert not file.exists()
    assert not list((home / ".coding-agent" / "runs").glob("*"))
    assert task.logs() == ["kept"]
    assert get_task(task.id).outputs.status is State.FAILED
    task.cleanup()


def test_a_name_makes_it_repeatable() -> None:
    """The same task under the same name is adopted; another one is refused while it runs."""
    first = dispatch(command="sleep 600", name="nightly")
    assert dispatch(command="sleep 600", name="nightly").id == first.id
    with pytest.raises(InvalidInput, match="has not ended"):
        dispatch(command="echo other", name="nightly")
    begun(first).kill()
    other = dispatch(command="sleep 500", name="nightly")
    assert other.id != first.id
    first.cleanup()
    assert other.running


def test_two_of_the_same_are_two() -> None:
    """Without a name the same prompt dispatched twice is two runs, also at the same time."""
    with ThreadPoolExecutor(2) as pool:
        tasks = list(pool.map(lambda _: dispatch(command="true"), range(2)))
    assert len({task.id for task in tasks}) == 2
    assert [task.wait(LIMIT).status for task in tasks] == [State.SUCCEEDED] * 2


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"prompt": "a", "command": "b"},
        {"prompt": "a", "labels": "rust"},
        {"prompt": "a\0b"},
        {"prompt": "a", "name": "../up"},
        {"prompt": "a", "max_turns": 0},
        {"prompt": "a", "files": {"../x": ""}},
    ],
)
def test_what_can_not_be_a_task(arguments: dict[str, Any], home: Path) -> None:
    """Bad arguments are refused before anything is made."""
    with pytest.raises(InvalidInput):
        dispatch(**arguments)
    assert not list((home / ".local/state/coding-agent/dispatch").glob("tasks/*.yaml"))


def test_a_repository_gets_the_commits_as_a_branch(tmp_path: Path, messages_api: MessagesApi) -> None:
    """With `repo` the agent works on a copy of the repository, its commits arrive as a branch; quotes, newlines, shell
    words and emoji in a prompt reach the model as they were given."""
    odd = "--first\n\"double\" 'single' $(touch x) `touch y`\r\n\ttab 🦀 {brace} # hash: - item\n\n"
    prompt = f"{odd}{scenario('edit')}{odd}"
    repository = tmp_path / "shop"
    git("init", "-q", "-b", "main", str(repository), cwd=tmp_path)
    (repository / "deep").mkdir()
    (repository / "deep" / "file").write_text("text")
    git("add", "-A", cwd=repository)
    git("commit", "-q", "-m", "Begin", cwd=repository)
    task = dispatch(prompt, repo="deep", cwd=repository, branch="try")
    assert git("status", "--porcelain", cwd=repository) == ""
    assert task.wait(LIMIT).branch == "coding-agent/try"
    assert messages_api.prompts() == [prompt]
    assert git("log", "--format=%s", "coding-agent/try", cwd=repository) == "Add a note\nBegin\n"
    task.cleanup()
    assert sorted(each.name for each in repository.iterdir()) == [".git", "deep"]
    with pytest.raises(InvalidInput, match="no git repository"):
        dispatch(command="true", repo=tmp_path)


def test_a_name_used_for_something_else_loses_no_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """A dispatch under the name of a run whose work was kept back does not start, and that work stays where it is."""
    file = home / ".config" / "openclaw" / "coding-agent.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("secrets:\n  TOKEN: {env: TOKEN}\n")
    monkeypatch.setenv("TOKEN", "canary-of-the-name")
    repository = tmp_path / "shop"
    git("init", "-q", "-b", "main", str(repository), cwd=tmp_path)
    git("commit", "-q", "--allow-empty", "-m", "Begin", cwd=repository)
    leak = "echo $TOKEN > leak.txt; git add leak.txt; git commit -q -m Leak"
    task = dispatch(command=leak, name="same", repo=repository, secrets=["TOKEN"])
    assert any("kept back" in notice for notice in task.wait(LIMIT).notices)

    other = dispatch(command="true", name="same").wait(LIMIT)

    assert (other.status, other.reason) == (State.FAILED, "start_failed")
    assert "on its target alone" in str(other.detail)
    assert (home / ".coding-agent" / "runs" / task.id / "work.bundle").exists()


def begun(task: api.Task) -> api.Task:
    """Return the task once its command runs."""
    until(lambda: task.outputs.status is State.RUNNING)
    return task


def git(*arguments: str, cwd: Path) -> str:
    """Run git and return what it printed."""
    argv = ["git", *arguments]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=60, check=True).stdout


def test_a_start_that_fails_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a new task can't be started it says why, and neither its file nor a run is left."""
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(CredentialMissing, match="ANTHROPIC_API_KEY"):
        dispatch("Say hello.")
    file = home / ".config" / "openclaw" / "coding-agent.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("executors:\n  - {name: local, type: local, claude_path: /no/such/claude}\n")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary-of-dispatch")
    outputs = dispatch("Say hello.").wait(LIMIT)
    assert (outputs.status, outputs.reason) == (State.FAILED, "start_failed")
    assert "/no/such/claude" in str(outputs.detail)
    assert records.everything() == []
    assert not list((home / ".local/state/coding-agent/dispatch/tasks").iterdir())


def test_an_unknown_id() -> None:
    """`get_task` of what nobody dispatched raises NotFound."""
    for unknown in ("0123456789abcdef", "../../etc", ""):
        with pytest.raises(NotFound):
            get_task(unknown)


def test_the_package_exports_the_interface() -> None:
    """`dispatch`, `get_task` and `Task` are what the package exports."""
    assert coding_agent.dispatch is dispatch
    assert coding_agent.Task is api.Task
