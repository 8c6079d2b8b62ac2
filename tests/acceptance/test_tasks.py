"""What a task file says is what the agent finds: its folder, its files, its environment, its settings, its tools."""

from __future__ import annotations

import json
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.messages_api import MessagesApi
from fakes.scenarios import scenario
from user import User
from waiting import until

# A server of the Model Context Protocol on stdin and stdout; its one tool writes down what it is given.
MCP_SERVER = """\
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    match asked["method"]:
        case "initialize":
            answer = {"protocolVersion": asked["params"]["protocolVersion"], "capabilities": {"tools": {}}}
            answer["serverInfo"] = {"name": "notes", "version": "1"}
        case "tools/list":
            schema = {"type": "object", "properties": {"text": {"type": "string"}}}
            answer = {"tools": [{"name": "add", "description": "Add a note", "inputSchema": schema}]}
        case "tools/call":
            with open(sys.argv[1], "a") as file:
                file.write(asked["params"]["arguments"]["text"] + " " + os.environ.get("NOTES_KEY", "") + "\\n")
            answer = {"content": [{"type": "text", "text": "noted"}]}
        case _:
            answer = {}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": answer}), flush=True)
"""


def _run(user: User, *, code: int = 0, **fields: Any) -> dict[str, Any]:
    """Run a task to its end and return its outputs."""
    user.task("job", json.dumps(fields))
    user.cli("up", "job", code=code)
    return user.outputs("job")


def _workspace(user: User, outputs: dict[str, Any]) -> Path:
    return user.run_dir(outputs["run_id"]) / "workspace"


def _bash(command: str) -> str:
    return scenario("bash", command=command)


@pytest.fixture
def listening(user: User) -> Iterator[tuple[User, MessagesApi]]:
    """Return the user with a model that keeps what it is sent, and calls a tool of an MCP server."""
    note = [
        {"blocks": [{"tool": "mcp__notes__add", "input": {"text": "remember"}}]},
        {"blocks": [{"text": "Noted."}]},
    ]
    with MessagesApi(keep_bodies=True, script={"note": note}) as api:
        environment = {**user.environment, "ANTHROPIC_BASE_URL": api.url}
        yield User(user.home, user.project, api, environment), api


def test_files_setup_and_environment_come_before_the_agent(user: User) -> None:
    """Files lie in the workspace with their modes, setup commands ran there in order, and all see the environment."""
    (user.project / "tasks" / "given.bin").write_bytes(bytes(range(256)))
    files = [
        {"path": "in/a file.txt", "content": "written out\n"},
        {"path": "run.sh", "content": "#!/bin/sh\necho $GREETING from a file\n", "mode": "0755"},
        {"path": "given.bin", "source": "given.bin"},
    ]
    setup = ["./run.sh > made.txt", 'echo "$GREETING, then $(cat made.txt)" >> made.txt']

    outputs = _run(
        user,
        prompt=_bash('cat made.txt; cat "in/a file.txt"; echo $GREETING > seen.txt'),
        files=files,
        setup=setup,
        env={"GREETING": "Grüße $(touch x) 'q'"},
    )

    workspace = _workspace(user, outputs)
    greeting = "Grüße $(touch x) 'q'"
    assert (workspace / "made.txt").read_text() == f"{greeting} from a file\n{greeting}, then {greeting} from a file\n"
    assert (workspace / "seen.txt").read_text() == f"{greeting}\n"
    assert (workspace / "given.bin").read_bytes() == bytes(range(256))
    assert stat.S_IMODE((workspace / "run.sh").stat().st_mode) == 0o755
    assert not list(workspace.rglob("x"))
    # What was there before the agent is not its work.
    patch = Path(outputs["patch"]).read_text()
    assert "seen.txt" in patch
    assert "made.txt" not in patch


def test_a_folder_in_the_checkout_is_where_the_agent_begins(user: User) -> None:
    """With `workdir` the agent begins there, its changes and its transcript come back."""
    (user.project / "crates" / "core").mkdir(parents=True)
    (user.project / "crates" / "core" / "lib.rs").write_text("// nothing\n")
    user.task("job", "command: x\n")
    user.commit_all()

    outputs = _run(
        user, prompt=_bash("pwd > here.txt; ls"), repo=".", uncommitted="ignore", workdir="crates/core", env={"A": "b"}
    )

    assert (_workspace(user, outputs) / "crates" / "core" / "here.txt").read_text().endswith("/workspace/crates/core\n")
    assert "crates/core/here.txt" in Path(outputs["patch"]).read_text()
    assert "here.txt" in (user.record_dir(outputs["run_id"]) / "transcript.jsonl").read_text()


def test_a_folder_of_the_executors_own_stays_the_executors(user: User) -> None:
    """With an absolute `workdir` the agent works there, nothing is packed or saved, and `destroy` leaves the folder."""
    own = user.home / "own"
    own.mkdir()
    (own / "there.txt").write_text("before\n")

    outputs = _run(user, prompt=_bash("cat there.txt; echo after >> there.txt"), workdir="~/own")
    user.cli("destroy", "job", "--yes")

    assert (own / "there.txt").read_text() == "before\nafter\n"
    assert sorted(path.name for path in own.iterdir()) == ["there.txt"]
    assert (outputs["patch"], outputs["branch"]) == (None, None)
    assert "there.txt" in (user.record_dir(outputs["run_id"]) / "transcript.jsonl").read_text()


def test_a_workdir_that_is_not_there_is_said(user: User) -> None:
    """An absolute `workdir` that does not exist fails the run with that reason, and no model is asked."""
    outputs = _run(user, code=1, prompt=_bash("true"), workdir="/nonexistent/folder")

    assert (outputs["status"], outputs["reason"]) == ("failed", "workdir_missing")
    assert "/nonexistent/folder" in outputs["detail"]
    assert user.api.requests == []


def test_a_repository_by_its_address(user: User) -> None:
    """`repo` with an address and a reference checks that out; the agent's commits come back as a bundle."""
    origin = user.home / "origin"
    origin.mkdir()
    user.run("git", "init", "-q", "-b", "main", str(origin))
    for branch, text in (("main", "main\n"), ("dev", "dev\n")):
        (origin / "which.txt").write_text(text)
        user.run("git", "-C", str(origin), "checkout", "-q", "-B", branch)
        user.run("git", "-C", str(origin), "add", "-A")
        user.run("git", "-C", str(origin), "commit", "-q", "-m", branch)
    dev = user.run("git", "-C", str(origin), "rev-parse", "dev").stdout.strip()

    outputs = _run(user, prompt=scenario("edit"), repo={"url": f"file://{origin}", "ref": "dev"})

    workspace = _workspace(user, outputs)
    assert (workspace / "which.txt").read_text() == "dev\n"
    assert user.run("git", "-C", str(workspace), "remote", "get-url", "origin").stdout.strip() == f"file://{origin}"
    bundle = user.record_dir(outputs["run_id"]) / "work.bundle"
    assert str(bundle) in user.cli("collect", "job").stdout
    user.run("git", "-C", str(origin), "fetch", "-q", str(bundle), "refs/coding-agent/work:refs/heads/work")
    assert user.run("git", "-C", str(origin), "log", "--format=%s", f"{dev}..work").stdout == "Add a note\n"
    assert outputs["branch"] is None


def test_a_repository_that_cannot_be_had_is_said(user: User) -> None:
    """An address at which there is no repository fails the run with git's reason, and no model is asked."""
    outputs = _run(user, code=1, prompt=_bash("true"), repo={"url": f"file://{user.home}/nowhere"})

    assert (outputs["status"], outputs["reason"]) == ("failed", "workspace_failed")
    assert "nowhere" in outputs["detail"]
    assert user.api.requests == []


def _with_uncommitted_work(user: User, **fields: Any) -> str:
    """Commit a project with a task, and change, add and stage something after that; return the commit."""
    (user.project / "known.txt").write_text("committed\n")
    user.task("job", json.dumps(fields))
    head = user.commit_all()
    (user.project / "known.txt").write_text("changed\n")
    (user.project / "new file.txt").write_text("untracked\n")
    (user.project / "staged.txt").write_text("staged\n")
    user.git("add", "staged.txt")
    return head


def test_uncommitted_changes_are_refused_by_name(user: User) -> None:
    """`repo: .` with uncommitted changes is refused with every file's name, and nothing starts."""
    _with_uncommitted_work(user, prompt=scenario("edit"), repo=".")

    said = user.cli("up", "job", code=2).stderr

    assert all(name in said for name in ("known.txt", "new file.txt", "staged.txt", "uncommitted: include"))
    assert user.api.requests == []


@pytest.mark.parametrize("uncommitted", ["include", "ignore"])
def test_uncommitted_changes_travel_or_not(user: User, uncommitted: str) -> None:
    """`uncommitted: include` gives the agent what is not committed, `ignore` gives it HEAD; the user's own stays."""
    prompt = scenario("edit+bash", command="cat known.txt *.txt > all.txt; ls > ls.txt")
    head = _with_uncommitted_work(user, prompt=prompt, repo=".", uncommitted=uncommitted)
    before = user.git("status", "--porcelain")

    user.cli("up", "job")

    outputs = user.outputs("job")
    listed = (_workspace(user, outputs) / "ls.txt").read_text().splitlines()
    assert ({"new file.txt", "staged.txt"} <= set(listed)) == (uncommitted == "include")
    included = uncommitted == "include"
    assert (_workspace(user, outputs) / "known.txt").read_text() == ("changed\n" if included else "committed\n")
    assert outputs["branch"] == "coding-agent/job"
    subjects = user.git("log", "--format=%s", f"{head}..coding-agent/job").splitlines()
    assert subjects == ["Add a note", *(["Uncommitted changes at the start of the run"] if included else [])]
    assert user.git("status", "--porcelain") == before
    assert user.git("rev-parse", "HEAD").strip() == head
    assert user.git("for-each-ref", "refs/coding-agent") == ""


def test_a_shallow_clone_works(user: User) -> None:
    """In a clone of depth 1, as CI makes it, the agent has the history that is there, and its commits come back."""
    origin = user.home / "origin"
    user.task("job", json.dumps({"prompt": scenario("edit+bash", command="git log --oneline > log.txt"), "repo": "."}))
    user.commit_all("First")
    (user.project / "second.txt").write_text("second\n")
    user.commit_all("Second")
    user.run("git", "clone", "-q", "--bare", ".", str(origin))
    shutil.rmtree(user.project)
    user.project.mkdir()
    user.run("git", "clone", "-q", "--depth", "1", f"file://{origin}", ".")

    user.cli("up", "job")

    outputs = user.outputs("job")
    log = (_workspace(user, outputs) / "log.txt").read_text().splitlines()
    assert [line.partition(" ")[2] for line in log] == ["Add a note", "Second"]
    assert outputs["branch"] == "coding-agent/job"
    assert user.git("log", "--format=%s", "HEAD..coding-agent/job") == "Add a note\n"


def test_what_a_bundle_cannot_carry_is_refused_by_name(user: User) -> None:
    """A repository with a submodule is refused with the submodule's name and what to do, and nothing starts."""
    other = user.home / "other"
    user.run("git", "init", "-q", str(other))
    user.run("git", "-C", str(other), "commit", "-q", "--allow-empty", "-m", "Other")
    user.task("job", json.dumps({"prompt": scenario("edit"), "repo": "."}))
    user.commit_all()
    user.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "libs/other")
    user.commit_all("Add a submodule")

    said = user.cli("up", "job", code=2).stderr

    assert "libs/other" in said
    assert "submodule" in said
    assert user.api.requests == []


def test_only_allowed_tools_are_allowed(user: User) -> None:
    """With `allowed_tools` the agent may use these and no other, and what it was denied shows."""
    outputs = _run(user, prompt=_bash("touch done.txt"), agent={"allowed_tools": ["Read", "Bash(git status:*)"]})

    assert [each["tool_name"] for each in outputs["permission_denials"]] == ["Bash"]
    assert not (_workspace(user, outputs) / "done.txt").exists()


def test_bypassing_permissions_works_in_a_place_made_for_the_run(user: User) -> None:
    """`bypassPermissions` lets the agent do, also as root, what no allow list would."""
    outputs = _run(user, prompt=scenario("denied"), agent={"permission_mode": "bypassPermissions"})

    assert outputs["permission_denials"] == []
    assert (_workspace(user, outputs) / ".claude" / "settings.json").read_text() == "{}"


@pytest.mark.parametrize("form", ["mapping", "file"])
def test_the_agents_settings_reach_it(listening: tuple[User, MessagesApi], form: str) -> None:
    """Model and appended system prompt are what the API is asked with, and the debug log is there to see. The tools of
    an MCP server that the task brings are allowed and work; a secret reaches it by its name alone."""
    user, api = listening
    words = "Answer as a pirate: 'Arr', $(touch x), --no-flag"
    config = user.home / ".config" / "openclaw" / "coding-agent.yaml"
    (user.home / "key").write_text("canary-of-the-notes")
    config.write_text(f"{config.read_text()}secrets:\n  NOTES_KEY: {{file: {user.home / 'key'}}}\n")
    notes = user.home / "notes.txt"
    server = {"command": sys.executable, "args": ["server.py", str(notes)], "env": {"NOTES_KEY": "${NOTES_KEY}"}}
    servers: Any = {"mcpServers": {"notes": server}}
    (user.project / "tasks" / "mcp.json").write_text(json.dumps(servers))

    outputs = _run(
        user,
        prompt=scenario("note"),
        files=[{"path": "server.py", "content": MCP_SERVER}],
        secrets=["NOTES_KEY"],
        agent={
            "mcp_config": servers if form == "mapping" else "mcp.json",
            "model": "claude-haiku-4-5",
            "append_system_prompt": words,
            "debug": True,
        },
    )

    assert (outputs["status"], outputs["result"]) == ("succeeded", "Noted.")
    assert outputs["permission_denials"] == []
    assert notes.read_text() == "remember canary-of-the-notes\n"
    assert "canary-of-the-notes" not in (user.run_dir(outputs["run_id"]) / "mcp.json").read_text()
    bodies = [json.loads(turn.body or b"{}") for turn in api.turns()]
    assert {body["model"] for body in bodies} == {"claude-haiku-4-5"}
    assert all(words in json.dumps(body["system"], ensure_ascii=False) for body in bodies)
    assert user.cli("logs", "job", "--debug").stdout
    assert (user.record_dir(outputs["run_id"]) / "debug.log").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("meanwhile", ["as it was", "renewed", "expired"])
def test_the_hosts_own_login(listening: tuple[User, MessagesApi], meanwhile: str) -> None:
    """Where the user says so the agent asks with this machine's login, which shows nowhere; its work comes back.

    Also when Claude Code has renewed the login meanwhile, which is said, or when it has expired.
    """
    user, api = listening
    _log_in(user, "canary-of-the-login")
    config = user.home / ".config" / "openclaw" / "coding-agent.yaml"
    config.write_text(f"{config.read_text()}    use_host_login: true\n")
    prompt = scenario("edit+bash+gate", command="cat ~/.claude/.credentials.json")
    user.task("job", json.dumps({"prompt": prompt, "repo": "."}))
    user.commit_all()

    user.cli("up", "job", "--detach")
    api.wait_for_turns(8)
    if meanwhile != "as it was":
        _log_in(user, "canary-of-the-login" if meanwhile == "expired" else "canary-renewed", hours=-1)
    api.open_gate()
    outputs = until(lambda: (now := user.outputs("job")) and now["status"] == "succeeded" and now)

    assert {turn.headers["authorization"] for turn in api.turns()} == {"Bearer canary-of-the-login"}
    assert outputs["branch"] == "coding-agent/job"
    assert outputs["notices"] == ([RENEWED] if meanwhile == "renewed" else [])
    kept = b"".join(file.read_bytes() for file in user.record_dir(outputs["run_id"]).rglob("*") if file.is_file())
    assert (b"canary-of-the-login" in kept) == (meanwhile == "renewed")


RENEWED = "this machine's Claude login was renewed since the start: what came back was searched for the new one only"


def _log_in(user: User, token: str, *, hours: float = 1) -> None:
    folder = user.home / ".claude"
    folder.mkdir(exist_ok=True)
    account = {"accessToken": token, "refreshToken": "none", "expiresAt": (time.time() + hours * 3600) * 1000}
    (folder / ".credentials.json").write_text(json.dumps({"claudeAiOauth": account}))


def test_artifacts_that_were_not_made(user: User) -> None:
    """Artifacts that a task names and that the agent did not make are no failure: what there is comes back."""
    user.job(command="echo kept >kept.txt", artifacts=["kept.txt", "never.txt", "no/such.txt", "*.none"])
    user.cli("up", "job")
    outputs = user.outputs("job")
    assert outputs["notices"] == []
    folder = user.record_dir(outputs["run_id"]) / "artifacts"
    assert [each.name for each in folder.iterdir()] == ["kept.txt"]
