"""The scripted Messages API, driven by the real Claude Code program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fakes.messages_api import MessagesApi, scenario
from fakes.scenarios import ESCAPES, names
from waiting import until

pytestmark = pytest.mark.slow  # what the other tests rely on; it changes with the fake alone
TOOLS = "Bash,Edit,Write,Read,Agent"
TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ended:
    """How a run of the program ended."""

    code: int
    stdout: bytes
    workspace: Path

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def result(self) -> dict[str, Any]:
        return next(event for event in self.events if event["type"] == "result")

    def tool_results(self) -> list[dict[str, Any]]:
        users = [event["message"]["content"] for event in self.events if event["type"] == "user"]
        blocks = [block for content in users if isinstance(content, list) for block in content]
        return [block for block in blocks if block["type"] == "tool_result"]


@dataclass
class Agent:
    """Starts the program in a workspace of its own and leaves no process of it."""

    program: Path
    home: Path
    url: str
    workspace: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, prompt: str | bytes, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        argv = [str(self.program), "-p", "--output-format", "stream-json", "--verbose", *arguments]
        if "--allowedTools" not in arguments:
            argv += ["--allowedTools", TOOLS]
        process = subprocess.Popen(
            argv,
            cwd=self.workspace,
            env=self._environment() | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.started.append(process)
        assert process.stdin is not None
        process.stdin.write(prompt.encode() if isinstance(prompt, str) else prompt)
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, prompt: str | bytes, *arguments: str, timeout: float = 60, **environment: str) -> Ended:
        process = self.start(prompt, *arguments, **environment)
        stdout, _ = process.communicate(timeout=timeout)
        return Ended(process.returncode, stdout, self.workspace)

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait(timeout=10)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        for pid in _pids_in(self.workspace):
            _kill(pid)

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": "not-a-key",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
        }


def _pids_in(folder: Path) -> list[int]:
    texts = [path.read_text().strip() for path in folder.glob("*.pid")]
    return [int(text) for text in texts if text]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()


@pytest.fixture
def agent(
    messages_api: MessagesApi,
    claude_program: Path,
    home: Path,
    tmp_path: Path,
    processes_with: Callable[[str], list[int]],
) -> Iterator[Agent]:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    running = Agent(claude_program, home, messages_api.url, workspace)
    try:
        yield running
    finally:
        running.end()
        # Whatever inherited this test's home is of this test.
        for pid in processes_with(f"HOME={home}"):
            _kill(pid)


@pytest.fixture
def repository(agent: Agent) -> Path:
    _git(agent.workspace, "init", "-q", "-b", "main")
    (agent.workspace / "README.md").write_text("A project\n")
    _git(agent.workspace, "add", "-A")
    _git(agent.workspace, "commit", "-q", "-m", "Begin")
    return agent.workspace


def test_text(agent: Agent, messages_api: MessagesApi) -> None:
    """A prompt without a scenario is answered with text and the run succeeds in one turn."""
    ended = agent.run("Say something")
    assert (ended.code, ended.result["result"], ended.result["num_turns"]) == (0, "Just text.", 1)
    assert messages_api.prompts() == ["Say something"]
    assert messages_api.sessions() == [ended.result["session_id"]]


def test_edit_commits_in_the_repository(agent: Agent, repository: Path) -> None:
    """The edit scenario changes the repository and commits it."""
    ended = agent.run("Please. " + scenario("edit", file="it's.txt", message="Add $(touch x) note"))
    assert (ended.code, ended.result["is_error"]) == (0, False)
    assert _git(repository, "log", "-1", "--format=%s") == "Add $(touch x) note"
    assert _git(repository, "show", "HEAD:it's.txt") == "the second line"
    assert _git(repository, "status", "--short") == ""
    assert [result.get("is_error", False) for result in ended.tool_results()] == [False] * 5


@pytest.mark.slow
def test_five_hundred_turns(agent: Agent, messages_api: MessagesApi) -> None:
    """Five hundred turns come one after the other, none skipped and none twice."""
    ended = agent.run(scenario("loop", turns=500), "--max-turns", "1000", timeout=240)
    assert (ended.code, ended.result["num_turns"]) == (0, 501)
    assert (ended.workspace / "loop.txt").read_text().split() == [str(n) for n in range(1, 501)]
    assert [request.turn for request in messages_api.turns()] == list(range(501))


def test_resumed_session_goes_on_with_a_new_prompt(agent: Agent, messages_api: MessagesApi) -> None:
    """A resumed session is the same session, and its new prompt's scenario begins with its first step."""
    first = agent.run(scenario("loop", turns=50), "--max-turns", "3")
    assert (first.code, first.result["subtype"]) == (1, "error_max_turns")
    second = agent.run(scenario("calls", count=2), "--resume", first.result["session_id"])
    assert (second.code, second.result["result"]) == (0, "All steps done.")
    assert len(messages_api.sessions()) == 1
    assert messages_api.prompts() == [scenario("loop", turns=50)]


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param("--help `touch x` $(touch x) \"q\" 'q' \\ é 🦊\r\nend\n\n  ", id="hostile"),
        pytest.param("word 🦊 \r\n" * 160_000, id="two-megabytes"),
    ],
)
def test_prompt_arrives_byte_for_byte(agent: Agent, messages_api: MessagesApi, prompt: str) -> None:
    """The prompt is recorded exactly as the program was given it."""
    assert agent.run(prompt).code == 0
    assert messages_api.prompts() == [prompt]


def test_concurrent_sessions_do_not_mix(agent: Agent, messages_api: MessagesApi) -> None:
    """Sessions at the same time each get the steps of their own prompt."""
    processes = [agent.start(scenario("calls", count=n)) for n in (3, 5, 7)]
    results = [json.loads(process.communicate(timeout=90)[0].splitlines()[-1]) for process in processes]
    assert [result["num_turns"] for result in results] == [4, 6, 8]
    assert len(messages_api.sessions()) == 3


def test_parallel_calls_and_failing_tool(agent: Agent) -> None:
    """Several calls come in one turn, and a tool that fails does not end the run."""
    parallel = agent.run(scenario("parallel", count=3))
    assert sorted(result["content"] for result in parallel.tool_results()) == ["part 1", "part 2", "part 3"]
    failing = agent.run(scenario("failing_tool"))
    assert (failing.code, failing.result["result"]) == (0, "It failed.")
    assert failing.tool_results()[0]["is_error"] is True


def test_subagent(agent: Agent, messages_api: MessagesApi) -> None:
    """A subagent's turns carry a parent and have steps of their own."""
    ended = agent.run(scenario("subagent", count=2))
    assert (ended.code, ended.result["result"]) == (0, "The subagent is done.")
    inner = [e for e in ended.events if e["type"] == "assistant" and e.get("parent_tool_use_id")]
    assert len({event["message"]["id"] for event in inner}) >= 2
    assert len(messages_api.sessions()) == 1


def test_denied_tool(agent: Agent) -> None:
    """A call of a tool that is not allowed is denied, shown as such, and the run still succeeds."""
    ended = agent.run(scenario("denied", tool="Bash", input={"command": "touch x"}), "--allowedTools", "Read")
    assert (ended.code, ended.result["is_error"]) == (0, False)
    assert [denial["tool_name"] for denial in ended.result["permission_denials"]] == ["Bash"]
    assert not (ended.workspace / "x").exists()
    default = agent.run(scenario("denied"))
    assert (default.code, [denial["tool_name"] for denial in default.result["permission_denials"]]) == (0, ["Write"])


@pytest.mark.parametrize("kind", ["plain", "nohup", "setsid", "double_fork", "stubborn", "escape"])
def test_background_children_outlive_the_call(agent: Agent, kind: str) -> None:
    """Each kind of child runs once the call is over, its pid in the file."""
    process = agent.start(scenario("background+idle", kinds=[kind]))
    assert process.stdout is not None
    for line in process.stdout:  # until the tool's result, which does not wait for the child
        if json.loads(line)["type"] == "user":
            break
    pid = int((agent.workspace / f"{kind}.pid").read_text())
    assert _alive(pid)
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert (b"CLAUDE_CODE_SESSION_ID" in environment) is (kind != "escape")


def test_background_task_holds_the_program_open(agent: Agent) -> None:
    """The program is still there after its result while a background task runs."""
    process = agent.start(scenario("background_task"))
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["type"] == "result":
            break
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)


def test_sleep_runs_until_it_is_ended(agent: Agent, messages_api: MessagesApi) -> None:
    """The sleeping tool call says its pid, and the program's end by TERM takes it down."""
    process = agent.start(scenario("sleep", seconds=300))
    pid_file = agent.workspace / "bash.pid"
    messages_api.wait_for_turns(1)
    until(lambda: pid_file.exists() and pid_file.read_text().strip())
    assert _alive(int(pid_file.read_text()))
    process.terminate()
    assert process.wait(timeout=20) == 143


def test_wait_for_file_and_gate(agent: Agent, messages_api: MessagesApi) -> None:
    """A test decides when a tool call ends, and when an answer comes."""
    process = agent.start(scenario("wait_for_file+gate", file="go"))
    messages_api.wait_for_turns(1)
    (agent.workspace / "go").touch()
    messages_api.wait_for(lambda request: request.turn == 2)
    assert process.poll() is None
    messages_api.open_gate()
    stdout, _ = process.communicate(timeout=30)
    assert Ended(process.returncode, stdout, agent.workspace).result["result"] == "Through."


def test_memory_child_dies_alone(agent: Agent) -> None:
    """A child that is killed while it holds memory leaves the agent going on to success."""
    process = agent.start(scenario("memory", mb=200, hold=60))
    child = _wait_for_child_with(process.pid, 190_000_000)
    _kill(child)
    stdout, _ = process.communicate(timeout=30)
    ended = Ended(process.returncode, stdout, agent.workspace)
    assert (ended.code, ended.result["result"]) == (0, "I go on without that memory.")
    assert "137" in ended.tool_results()[0]["content"]


def _wait_for_child_with(ancestor: int, memory: int) -> int:
    import psutil

    claude = psutil.Process(ancestor).exe()

    def child_with() -> int | None:
        for child in psutil.Process(ancestor).children(recursive=True):
            try:
                # Before it becomes what it shall run, a child of claude's is as big as claude.
                if child.exe() != claude and child.memory_info().rss > memory:
                    return int(child.pid)
            except psutil.NoSuchProcess:
                continue
        return None

    return until(child_with)


def test_disk_flood_and_big_text(agent: Agent) -> None:
    """A file of the asked size is written, a tool prints much, and one text is a very long line."""
    assert agent.run(scenario("disk", mb=3)).code == 0
    assert (agent.workspace / "fill.bin").stat().st_size == 3_000_000
    assert agent.run(scenario("flood", mb=2)).code == 0
    big = agent.run(scenario("big_text", mb=2))
    assert len(big.result["result"]) >= 1_999_999
    assert max(map(len, big.stdout.splitlines())) > 2_000_000


def test_environment_and_secret(agent: Agent, repository: Path) -> None:
    """The environment is printed, and a secret of it is committed in the form asked for."""
    ended = agent.run(scenario("environment"), CANARY="canary-1")
    assert "CANARY=canary-1" in ended.tool_results()[0]["content"]
    forms = {"raw": 'a"b/c canary', "base64": "YSJiL2MgY2FuYXJ5", "json": '{"v": "a\\"b/c canary"}'}
    for form, expected in forms.items():
        agent.run(scenario("secret", name="CANARY", form=form), CANARY='a"b/c canary')
        assert _git(repository, "show", "HEAD:leak.txt") == expected
    agent.run(scenario("secret", name="CANARY", form="url"), CANARY="a/b")
    assert _git(repository, "show", "HEAD:leak.txt").lower() == "%61%2f%62"


def test_escapes_reach_the_stream(agent: Agent) -> None:
    """Terminal escapes and CI commands come through in the result, as a hostile agent would send them."""
    ended = agent.run(scenario("escapes"))
    assert ended.result["result"].strip() == ESCAPES.strip()
    assert "::set-output" in ended.tool_results()[0]["content"]


def test_hostile_workspace_is_armed(agent: Agent, repository: Path, tmp_path: Path) -> None:
    """What is planted is not run by the agent itself, and is run by a careless git in the workspace."""
    marker = tmp_path / "marker"
    ended = agent.run(scenario("hostile_workspace", marker=str(marker)))
    assert (ended.code, ended.tool_results()[0].get("is_error", False)) == (0, False)
    assert not marker.exists()
    subprocess.run(["git", "status"], cwd=repository, capture_output=True, timeout=30, check=False)
    assert marker.exists()


@pytest.mark.parametrize(
    ("name", "turns"), [(scenario("hang"), 1), (scenario("hang", where="midstream"), 1), (scenario("idle", after=2), 3)]
)
def test_hangs(agent: Agent, messages_api: MessagesApi, name: str, turns: int) -> None:
    """The answer never comes, before its first byte, half-way, or after some tool calls."""
    process = agent.start(name)
    messages_api.wait_for_turns(turns)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)


def test_slow_text(agent: Agent) -> None:
    """Words come one by one."""
    ended = agent.run(scenario("slow_text", words=5, interval=0.1))
    assert ended.result["result"].split() == [f"word{n}" for n in range(5)]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 529])
def test_api_errors(agent: Agent, status: int) -> None:
    """An error of the API ends the run as failed, in the API's words."""
    prompt = scenario("error", status=status, message="your credit is low", retry_after=0)
    ended = agent.run(prompt, CLAUDE_CODE_MAX_RETRIES="1")
    assert (ended.code, ended.result["is_error"]) == (1, True)
    words = "issue with the selected model" if status == 404 else "your credit is low"
    assert words in ended.result["result"]
    assert ended.result["terminal_reason"] == "api_error"


def test_errors_and_drops_that_pass(agent: Agent, messages_api: MessagesApi) -> None:
    """After the number of failures asked for the answer comes."""
    ended = agent.run(scenario("calls+error", count=2, status=529, times=2))
    assert (ended.code, ended.result["result"]) == (0, "The error is over.")
    assert len(messages_api.turns()) == 5
    for where in ("before", "midstream"):
        assert agent.run(scenario("drop", where=where, times=1)).code == 0


def test_connection_drops_for_ever(agent: Agent) -> None:
    """A connection that always drops fails the run."""
    ended = agent.run(scenario("drop"), CLAUDE_CODE_MAX_RETRIES="1")
    assert (ended.code, ended.result["is_error"]) == (1, True)


@pytest.mark.parametrize("name", ["refusal", "max_tokens"])
def test_stop_reasons(agent: Agent, name: str) -> None:
    """A refusal, and an answer cut off, fail the run though it says success."""
    ended = agent.run(scenario(name), timeout=120)
    assert (ended.code, ended.result["subtype"], ended.result["is_error"]) == (1, "success", True)


def test_usage_of_each_answer_costs(agent: Agent) -> None:
    """The output tokens asked for make the budget run out."""
    ended = agent.run(scenario("loop", turns=50, output_tokens=100_000), "--max-budget-usd", "1")
    assert (ended.code, ended.result["subtype"]) == (1, "error_max_budget_usd")


def test_script_of_ones_own(claude_program: Path, home: Path, tmp_path: Path) -> None:
    """The server runs as a program with a script from a file, logs its requests, and ends with its stdin."""
    call = {"tool": "Write", "input": {"file_path": "$CWD/own.txt", "content": "own"}}
    script = {"own": [{"blocks": [{"text": "I begin."}, call]}, {"blocks": [{"text": "Mine is done."}]}]}
    (tmp_path / "script.json").write_text(json.dumps(script))
    argv = [sys.executable, "-m", "fakes.messages_api", "--scenario", "own", "--until-eof"]
    server = subprocess.Popen(
        [*argv, "--script", str(tmp_path / "script.json"), "--log", str(tmp_path / "log.jsonl")],
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        assert server.stdout is not None
        (tmp_path / "workspace").mkdir()
        agent = Agent(claude_program, home, server.stdout.readline().strip(), tmp_path / "workspace")
        ended = agent.run("Do it")
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(timeout=10) == 0
    assert ended.result["result"] == "Mine is done."
    assert (tmp_path / "workspace" / "own.txt").read_text() == "own"
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_unknown_scenario_is_said(agent: Agent) -> None:
    """A misspelt scenario is named in the answer."""
    assert "no such scenario" in agent.run(scenario("edti")).result["result"]


def test_nothing_else_is_asked(agent: Agent, messages_api: MessagesApi) -> None:
    """The program asks for nothing but messages."""
    agent.run(scenario("calls", count=2))
    assert {(request.method, request.path) for request in messages_api.requests} == {("POST", "/v1/messages")}


def test_bodies_can_be_searched(claude_program: Path, home: Path, tmp_path: Path) -> None:
    """With bodies kept, a test can ask whether a text was ever sent to the model."""
    with MessagesApi(keep_bodies=True) as api:
        Agent(claude_program, home, api.url, tmp_path).run(scenario("calls", count=1))
        assert api.saw(b"step 1")
        assert not api.saw(b"step 2")


def test_listing_of_processes(agent: Agent, processes_with: Callable[[str], list[int]]) -> None:
    """A process is found by a text of its environment, and no longer once it ended."""
    process = agent.start(scenario("hang"), MARKER="a-marker-of-this-test")
    until(lambda: process.pid in processes_with("a-marker-of-this-test"))
    agent.end()
    until(lambda: not processes_with("a-marker-of-this-test"))


def test_every_scenario_is_described() -> None:
    """The table of scenarios names each of them."""
    import fakes.scenarios

    table = fakes.scenarios.__doc__ or ""
    assert [name for name in names() if f"| {name}" not in table and f", {name} |" not in table] == []
