"""A task file -> a Task: every field, defaults, what makes a new run, and files that dispatch writes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from coding_agent import schema, task
from coding_agent.document import InvalidFile
from coding_agent.errors import InvalidInput
from coding_agent.settings import Defaults, ExecutorSpec, Settings
from coding_agent.task import Agent, File, Limits, Repo

FULL = """\
name: fix-build
description: A line
prompt: Fix it
executor: crib
labels: [rust]
repo: .
uncommitted: include
branch: fix
workdir: ./crates//core/
files:
  - {path: ./a/b.txt, content: "ü\\n"}
  - {path: c.sh, source: ../scripts/c.sh, mode: "0755"}
setup:
  - cargo fetch
  - make deps
env: {RUST_LOG: debug, EMPTY: ""}
secrets: [GH_TOKEN]
agent:
  model: opus
  version: 2.1.330
  max_turns: 7
  max_budget_usd: 2
  permission_mode: acceptEdits
  allowed_tools: [Read, "Bash(git *)", mcp__db__query]
  append_system_prompt: Be brief.
  mcp_config: {mcpServers: {db: {command: db}}}
  debug: true
limits:
  {cpus: 2, memory: 2GiB, disk: 10 GB, pids: 512, gpus: 2, timeout: 1h30m, setup: 5m, first_event: 90s, idle: 10m,
   linger: 2s, grace: 1.5s}
artifacts: [target/*.log, "./**/report.xml"]
wait: false
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project with a folder for tasks and a script."""
    root = tmp_path / "shop"
    (root / "tasks").mkdir(parents=True)
    (root / "scripts").mkdir()
    (root / "scripts" / "c.sh").write_bytes(b"#!/bin/sh\n")
    (root / "Pulumi.yaml").write_text("name: shop\nruntime: python\n")
    return root


CRIB = Settings(executors=(ExecutorSpec("crib", "ssh", ("rust",), options={"gpus": 2}), ExecutorSpec("local", "local")))


def load(project: Path, text: str, settings: Settings | None = CRIB, name: str = "fix") -> task.Task:
    """Return the task of a file with this text."""
    file = project / "tasks" / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    return task.load(file, settings=settings)


def problems(project: Path, text: str, settings: Settings | None = CRIB) -> list[str]:
    """Return what is wrong with a task, without the file's name."""
    with pytest.raises(InvalidFile) as caught:
        load(project, text, settings)
    return [f"{each.line}:{each.column}: {each.field}: {each.message}" for each in caught.value.problems]


def test_every_field(project: Path) -> None:
    """Every field of a task file arrives, units resolved and paths in their plain form."""
    assert load(project, FULL) == task.Task(
        name="fix-build",
        description="A line",
        prompt="Fix it",
        command=None,
        executor="crib",
        labels=("rust",),
        repo=Repo(path=True, uncommitted="include"),
        branch="coding-agent/fix",
        workdir="crates/core",
        files=(File("a/b.txt", "ü\n".encode()), File("c.sh", b"#!/bin/sh\n", 0o755)),
        setup=("cargo fetch", "make deps"),
        env={"RUST_LOG": "debug", "EMPTY": ""},
        secrets=("GH_TOKEN",),
        agent=Agent(
            model="opus",
            version="2.1.330",
            max_turns=7,
            max_budget_usd=2.0,
            permission_mode="acceptEdits",
            allowed_tools=("Read", "Bash(git *)", "mcp__db__query"),
            append_system_prompt="Be brief.",
            mcp_config='{"mcpServers": {"db": {"command": "db"}}}',
            debug=True,
        ),
        limits=Limits(2.0, 2 * 2**30, 10 * 10**9, 512, 2, 5400.0, 300.0, 90.0, 600.0, 2.0, 1.5),
        artifacts=("target/*.log", "**/report.xml"),
        wait=False,
        source=project / "tasks" / "fix.yaml",
        root=project,
    )


def test_defaults_let_an_ordinary_task_work(project: Path) -> None:
    """One line is a task: named after its file, 100 turns, two hours, the standard tools, an empty folder."""
    loaded = load(project, "prompt: Fix it\n")
    assert loaded.name == "fix"
    assert loaded.branch == "coding-agent/fix"
    assert loaded.agent == Agent(max_turns=100)
    assert loaded.limits == Limits(timeout=7200.0)
    assert loaded.repo is None
    assert loaded.executor is None
    assert loaded.wait
    assert {"Bash", "Edit", "Write", "Read", "Glob", "Grep", "WebFetch", "TodoWrite"} <= set(task.STANDARD_TOOLS)


@pytest.mark.parametrize(
    ("text", "branch"),
    [
        ("repo: .\n", "coding-agent/fix"),
        ("repo: .\nbranch: a/b\n", "coding-agent/a/b"),
        ("repo: .\nbranch: coding-agent/x\n", "coding-agent/x"),
    ],
)
def test_branches_are_below_coding_agent(project: Path, text: str, branch: str) -> None:
    """A branch is always below coding-agent/, whether that was written or not."""
    assert load(project, f"prompt: a\n{text}").branch == branch


def test_another_repository(project: Path) -> None:
    """A repository is named by its address and, if wanted, a ref; every usual form of address is taken."""
    addresses = ["https://example.com/a.git", "ssh://git@example.com:22/a", "git@example.com:a/b.git", "/srv/a"]
    for address in [*addresses, "file:///srv/a", "git://example.com/a", "http://127.0.0.1:8080/a"]:
        assert load(project, f"prompt: a\nrepo: {{url: '{address}', ref: v1}}\n").repo == Repo(url=address, ref="v1")


@pytest.mark.parametrize("workdir", ["/srv/shop", "~/shop", "~"])
def test_a_folder_of_the_executor(project: Path, workdir: str) -> None:
    """A workdir from `/` or `~` on is the executor's own folder, as it was written."""
    assert load(project, f"prompt: a\nworkdir: '{workdir}'\n").workdir == workdir


def test_permissions_are_bypassed_only_in_a_workspace_of_the_run(project: Path) -> None:
    """bypassPermissions from the defaults too is refused where the agent works in a folder of the user's."""
    bypassing = Settings(defaults=Defaults(agent={"permission_mode": "bypassPermissions"}))
    assert load(project, "prompt: a\n", bypassing).agent.permission_mode == "bypassPermissions"
    (problem,) = problems(project, "prompt: a\nworkdir: /srv\n", bypassing)
    assert problem.startswith("2:10: workdir: bypassPermissions is only for")


def test_defaults_of_the_executors_file(project: Path) -> None:
    """Defaults hold where a task says nothing; what it says wins, and a secret wins over a default variable."""
    defaults = Defaults(
        agent={"model": "opus", "max_turns": 5},
        limits={"timeout": 60.0, "memory": 10**9},
        env={"A": "default", "B": "default", "C": "default"},
    )
    text = "prompt: a\nagent: {max_turns: 9}\nlimits: {timeout: 5m}\nenv: {A: own}\nsecrets: [C]\n"
    loaded = load(project, text, Settings(defaults=defaults))
    assert (loaded.agent.model, loaded.agent.max_turns) == ("opus", 9)
    assert (loaded.limits.timeout, loaded.limits.memory) == (300.0, 10**9)
    assert loaded.env == {"A": "own", "B": "default"}
    assert load(project, "command: a\n", Settings(defaults=defaults)).agent == Agent()


def test_the_prompt_of_a_file_is_taken_byte_for_byte(project: Path) -> None:
    """A prompt file's text is the prompt exactly: byte order mark, CRLF, trailing spaces and all."""
    prompt = "\ufeff--x \"q\" 'q' `t` $(touch x)\r\nü 🎉 \r\n\n\n"
    (project / "prompt.md").write_bytes(prompt.encode())
    assert load(project, "prompt_file: ../prompt.md\n").prompt == prompt


def test_an_mcp_file_is_read_into_the_task(project: Path) -> None:
    """MCP servers can stand in a JSON file of the project; how it is laid out does not matter."""
    (project / "tasks" / "mcp.json").write_text('{\n  "mcpServers": {"b": {}, "a": {}}\n}\n')
    in_file = load(project, "prompt: a\nagent: {mcp_config: mcp.json}\n")
    written = load(project, "prompt: a\nagent: {mcp_config: {mcpServers: {a: {}, b: {}}}}\n")
    assert in_file.agent.mcp_config == '{"mcpServers": {"a": {}, "b": {}}}'
    assert in_file.digest == written.digest


def test_the_project_of_a_task(tmp_path: Path) -> None:
    """A task's project is where the nearest Pulumi.yaml is, else its repository, else its own folder."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    file = inner / "t.yaml"
    file.write_text("command: a\n")
    assert task.load(file, settings=None).root == inner
    (tmp_path / ".git").touch()  # a work tree's is a file
    assert task.load(file, settings=None).root == tmp_path
    (tmp_path / "a" / "Pulumi.yaml").touch()
    assert task.load(file, settings=None).root == tmp_path / "a"


def test_a_link_to_a_task_file_keeps_its_own_name_and_project(project: Path, tmp_path: Path) -> None:
    """A task file that is a link is named after the link and belongs to the link's project."""
    (tmp_path / "shared.yaml").write_text("command: a\n")
    (project / "tasks" / "own.yaml").symlink_to(tmp_path / "shared.yaml")
    loaded = task.load(project / "tasks" / "own.yaml", settings=None)
    assert (loaded.name, loaded.root, loaded.source) == ("own", project, project / "tasks" / "own.yaml")


def test_executors_are_looked_up_only_with_settings(project: Path) -> None:
    """Without settings any executor's name is taken; with them an unknown one is refused."""
    assert load(project, "command: a\nexecutor: nobody\n", None).executor == "nobody"
    assert problems(project, "command: a\nexecutor: crab\n") == [
        '2:11: executor: there is no executor "crab"; did you mean crib?'
    ]


@pytest.mark.parametrize(
    ("permission", "text"),
    [
        ("host_login", "{type: local, use_host_login: true}"),
        ("mounts", "{type: container, image: a, volumes: ['/home:/h']}"),
        ("mounts", "{type: container, image: a, volumes: ['a/../../b:/h']}"),
        ("mounts", "{type: container, image: a, volumes: ['$HOME/b:/h']}"),
        ("docker_socket", "{type: container, image: a, volumes: ['/run/docker.sock:/h']}"),
        ("docker_socket", "{type: container, image: a, volumes: ['/run/user/0/podman/podman.sock:/h']}"),
        ("docker_socket", "{type: container, image: a, volumes: ['/:/h']}"),
        ("docker_socket", "{type: container, image: a, volumes: ['/var/../run:/h']}"),
        ("host_network", "{type: container, image: a, network: host}"),
        ("host_network", "{type: container, image: a, network: 'container:db'}"),
        ("ssh_host", "{type: ssh, host: a.example}"),
        ("cloud_server", "{type: hetzner}"),
    ],
)
def test_an_inline_executor_gets_only_what_the_user_allows(project: Path, permission: str, text: str) -> None:
    """What an executor in a task file may not do is refused, unless the user's own file allows it."""
    text = f"prompt: a\nexecutor: {text}\n"
    (problem,) = problems(project, text)
    assert f"allow_inline: [{permission}]" in problem
    everything = {"host_login", "mounts", "docker_socket", "host_network", "ssh_host", "cloud_server"}
    assert problems(project, text, Settings(allow_inline=frozenset(everything - {permission})))
    assert load(project, text, Settings(allow_inline=frozenset(everything)))


CHANGES = {
    "prompt": "prompt: Fix it\n -> prompt: Fix that\n",
    "model": "prompt: a\n -> prompt: a\nagent: {model: opus}\n",
    "version": "prompt: a\n -> prompt: a\nagent: {version: 2.1.330}\n",
    "turns": "prompt: a\n -> prompt: a\nagent: {max_turns: 99}\n",
    "mcp": "prompt: a\n -> prompt: a\nagent: {mcp_config: {mcpServers: {}}}\n",
    "command": "command: a\n -> command: b\n",
    "kind": "command: a\n -> prompt: a\n",
    "setup": "command: a\nsetup: b\n -> command: a\nsetup: c\n",
    "setup-order": "command: a\nsetup: [b, c]\n -> command: a\nsetup: [c, b]\n",
    "file": "command: a\nfiles: [{path: b, content: c}]\n -> command: a\nfiles: [{path: b, content: d}]\n",
    "file-path": "command: a\nfiles: [{path: b, content: c}]\n -> command: a\nfiles: [{path: c, content: c}]\n",
    "file-mode": "command: a\nfiles: [{path: b, content: c}]\n"
    " -> command: a\nfiles: [{path: b, content: c, mode: '755'}]\n",
    "env": "command: a\nenv: {A: b}\n -> command: a\nenv: {A: c}\n",
    "secrets": "command: a\nsecrets: [A]\n -> command: a\nsecrets: [B]\n",
    "repo": "command: a\n -> command: a\nrepo: .\n",
    "address": "command: a\nrepo: {url: /a}\n -> command: a\nrepo: {url: /b}\n",
    "ref": "command: a\nrepo: {url: /a}\n -> command: a\nrepo: {url: /a, ref: b}\n",
    "uncommitted": "command: a\nrepo: .\n -> command: a\nrepo: .\nuncommitted: ignore\n",
    "branch": "command: a\nrepo: .\n -> command: a\nrepo: .\nbranch: b\n",
    "workdir": "command: a\n -> command: a\nworkdir: b\n",
    "executor": "command: a\n -> command: a\nexecutor: local\n",
    "inline": "command: a\nexecutor: {type: container, image: a}\n"
    " -> command: a\nexecutor: {type: container, image: b}\n",
    "memory": "command: a\n -> command: a\nlimits: {memory: 1GB}\n",
    "idle": "command: a\n -> command: a\nlimits: {idle: 1m}\n",
}
NO_CHANGES = {
    "description": "command: a\n -> command: a\ndescription: b\n",
    "labels": "command: a\n -> command: a\nlabels: [rust]\n",
    "artifacts": "command: a\n -> command: a\nartifacts: ['*.log']\n",
    "wait": "command: a\n -> command: a\nwait: false\n",
    "timeout": "command: a\n -> command: a\nlimits: {timeout: 5s}\n",
    "layout": "prompt: a\n -> # a comment\n'prompt':   \"a\"\n",
    "units": "command: a\nlimits: {memory: 1GB, idle: 60s}\n -> command: a\nlimits: {memory: 1000MB, idle: 1m}\n",
    "spelt-default": "prompt: a\n -> prompt: a\nagent: {max_turns: 100, debug: false}\nlimits: {setup: 15m}\nenv: {}\n",
    "number": "prompt: a\nlimits: {cpus: 2}\n -> prompt: a\nlimits: {cpus: 2.0}\n",
    "secrets-order": "command: a\nsecrets: [A, B]\n -> command: a\nsecrets: [B, A]\n",
    "source": "prompt: a\n -> prompt_file: ../p.txt\n",
}


def digests(project: Path, change: str) -> tuple[str, str]:
    """Return the digests before and after a change."""
    (project / "p.txt").write_text("a")
    before, after = change.split(" -> ")
    return load(project, before).digest, load(project, after).digest


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_makes_a_new_run(project: Path, change: str) -> None:
    """A change of what the agent does, with what and where, changes the digest."""
    before, after = digests(project, change)
    assert before != after


@pytest.mark.parametrize("change", NO_CHANGES.values(), ids=NO_CHANGES)
def test_what_makes_no_new_run(project: Path, change: str) -> None:
    """A change for people, of the waiting, of the timeout, or of how the file is written keeps the digest."""
    before, after = digests(project, change)
    assert before == after


def test_the_payload_can_be_stored(project: Path) -> None:
    """The payload is plain JSON, holds digests of what may be long or private, and survives the engine's numbers."""
    payload = load(project, FULL).payload()
    text = json.dumps(payload)
    assert json.loads(text) == payload
    assert "Fix it" not in text
    assert payload["prompt"]["bytes"] == 6
    assert payload["files"]["c.sh"]["mode"] == "0755"
    assert "timeout" not in payload["limits"]
    assert load(project, "command: a\n").payload() == {
        "command": "a",
        "limits": {"setup": 900.0, "first_event": 120.0, "idle": 1800.0, "linger": 10.0, "grace": 5.0},
    }


def prompts() -> Iterator[str]:
    """Yield prompts that are hard to write down."""
    yield from [
        "--help", "- a\n- b", "#!x", " \n lead", "trail \n\n\n", "a\tb\n\tc", "\r\n", "a\rb", "no", "0o17", "1e3", "~",
        "null", "12", "[a", "{", "'", '"', "`$(touch x)`", "%x", "@x", "!x", "&a *a", "a: b", "a #b", "? x", "|", ">",
        "---\nx", "...\nx", "🎉\u200d", "\u2028\u2029\x85", "\ufeffx", "\x07\x1b[31m\x7f", "\\", "<<", "=", "x" * 3000,
        "line one\nline two\n", "  indented\nnot\n", "\n\nx", "é" * 100 + ": " * 50, "\ufffe\uffff", "x\n---\ny\n",
    ]  # fmt: skip
    chance = random.Random(7)
    letters = "ab \t\n\r:#-'\"\\|>%@`![]{}&*?,=\x00\x07\x85\u2028\ufeff\xa0é🎉\U0010ffff"
    for _ in range(200):
        text = "".join(chance.choices(letters.replace("\x00", ""), k=chance.randint(1, 60)))
        if text.strip():
            yield text


def test_what_dispatch_writes_reads_back_exactly(project: Path) -> None:
    """Any prompt survives the way into a task file and back, character by character."""
    for prompt in prompts():
        if prompt.strip():
            assert load(project, task.dump({"prompt": prompt})).prompt == prompt


@pytest.mark.parametrize("size", [100_000, 2_000_000])
def test_large_prompts_are_written_and_read(project: Path, size: int) -> None:
    """A prompt of 2 MB is written and read back exactly."""
    prompt = ("Fix «it»: 'now'\r\n\t$(x) " * (size // 20))[:size]
    assert load(project, task.dump({"prompt": prompt})).prompt == prompt


def test_dump_writes_every_kind_of_field(project: Path) -> None:
    """Lists, mappings, numbers, tuples, sets and paths are written so that they load; text stays readable."""
    fields: Mapping[str, Any] = {
        "name": "a",
        "prompt": "one\ntwo\n",
        "labels": {"rust"},
        "files": ({"path": Path("a"), "content": "x\n"},),
        "env": {"N": "1"},
        "agent": {"max_turns": 3, "max_budget_usd": 1.5, "debug": True},
    }
    text = task.dump(fields)
    assert "prompt: |\n  one\n  two\n" in text
    loaded = load(project, text)
    assert (loaded.labels, loaded.files, loaded.env) == (("rust",), (File("a", b"x\n"),), {"N": "1"})
    assert loaded.agent == Agent(max_turns=3, max_budget_usd=1.5, debug=True)


@pytest.mark.parametrize("value", ["\ud800", b"x", object()])
def test_dump_refuses_what_no_file_can_hold(value: object) -> None:
    """Half a surrogate pair, bytes and objects are refused with the field's name."""
    with pytest.raises(InvalidInput, match=r"env\.A"):
        task.dump({"env": {"A": value}})


def test_validate_goes_through_all_files(project: Path) -> None:
    """All problems of all files are returned, in the order of the files; executors files are recognised."""
    names = ["good", "bad", "executors", "worse"]
    texts = ["command: a\n", "comand: a\n", "executors: [{name: a, type: shh}]\n", "command: [a]\n"]
    files = [project / "tasks" / f"{name}.yaml" for name in names]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    found = task.validate(files, CRIB)
    assert [(Path(each.file).stem, each.field) for each in found] == [
        ("bad", "comand"),
        ("bad", "prompt"),
        ("executors", "executors[0].type"),
        ("worse", "command"),
    ]


def test_a_file_is_shown_as_it_can_be_opened(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem names its file relative to the current folder, where it lies inside of it."""
    file = project / "tasks" / "a.yaml"
    file.write_text("{}\n")
    monkeypatch.chdir(project)
    assert task.validate([file], None)[0].file == "tasks/a.yaml"
    monkeypatch.chdir(project / "scripts")
    assert task.validate([file], None)[0].file == str(file)


def fields_of(definition: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a schema knows inside of one of its parts."""
    if "$ref" in definition:
        return fields_of(definitions[definition["$ref"].rpartition("/")[2]], definitions)
    inner = [*definition.get("anyOf", []), *(each["then"] for each in definition.get("allOf", []))]
    found = dict(definition.get("properties", {}))
    for each in inner:
        found |= fields_of(each, definitions)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [schema.TASK, schema.EXECUTORS])
def test_any_values_give_a_result_or_problems(name: str, project: Path) -> None:
    """Whatever the values of the known fields are, reading gives a result or `InvalidFile`, and nothing else."""
    chance = random.Random(11)
    definitions = json.loads((schema.FOLDER / schema.TASK).read_text())["$defs"]
    odd: list[Any] = [
        None,
        True,
        0,
        -1,
        2.5,
        "",
        " ",
        "a",
        "..",
        "/",
        "~",
        ".",
        "1h",
        "2GiB",
        "local",
        "container",
        "a\0b",
        [],
        {},
    ]
    odd += [["a"], ["a", "a"], [1, None], {"a": "b"}, {"url": "x"}, [{}], [{"path": "a"}], "\u202e", "é" * 300]

    def value(definition: Mapping[str, Any], depth: int) -> Any:
        known = fields_of(definition, definitions)
        if depth > 3 or not known or chance.random() < 0.3:
            items = definition.get("items")
            listed = items is not None and chance.random() < 0.6
            return [value(items, depth + 1) for _ in range(2)] if listed and items else chance.choice(odd)
        return {key: value(known[key], depth + 1) for key in chance.sample(list(known), min(len(known), 6))}

    content = json.loads((schema.FOLDER / name).read_text())
    file = project / "tasks" / "any.yaml"
    for _ in range(1500):
        file.write_text(json.dumps({key: value(each, 1) for key, each in content["properties"].items()}))
        with contextlib.suppress(InvalidFile):
            Settings.load(file) if name == schema.EXECUTORS else task.load(file, settings=CRIB)


def properties(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every property that a schema describes, and the items of its lists."""
    if isinstance(value, dict):
        for name, each in value.get("properties", {}).items() if isinstance(value.get("properties"), dict) else ():
            if set(each) != {"const"}:  # the condition of an `if`
                yield f"{path}.{name}", each
        for name, each in value.items():
            yield from properties(each, f"{path}.{name}" if name not in ("properties", "$defs") else path)
    elif isinstance(value, list):
        for each in value:
            yield from properties(each, path)


@pytest.mark.parametrize("name", [schema.TASK, schema.EXECUTORS])
def test_editors_can_complete_every_field(name: str) -> None:
    """Both schemas are valid, and describe every field for people."""
    content = json.loads((schema.FOLDER / name).read_text())
    Draft202012Validator.check_schema(content)
    found = dict(properties(content))
    assert len(found) > 10
    definitions = json.loads((schema.FOLDER / schema.TASK).read_text())["$defs"]
    for field, each in found.items():
        described = each.get("description") or definitions[each["$ref"].rpartition("/")[2]].get("description")
        assert described, field
        assert described.endswith((".", "?")), field


def test_the_task_schema_stands_alone() -> None:
    """An editor needs the one file beside the tasks: nothing in it refers to another."""
    text = (schema.FOLDER / schema.TASK).read_text()
    assert '"$ref": "#/' in text
    assert ".json#" not in text


def test_the_schema_knows_what_the_code_knows() -> None:
    """Each setting of the agent and each limit has one name, in the schema and in the code."""
    definitions = json.loads((schema.FOLDER / schema.TASK).read_text())["$defs"]
    assert set(definitions["agent"]["properties"]) == {each.name for each in dataclasses.fields(Agent)}
    assert set(definitions["limits"]["properties"]) == {each.name for each in dataclasses.fields(Limits)}
