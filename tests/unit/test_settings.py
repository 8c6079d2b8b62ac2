"""The executors file: what it may say, what holds without it, and which executor a task gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coding_agent import task
from coding_agent.document import InvalidFile
from coding_agent.errors import NotFound
from coding_agent.settings import ExecutorSpec, SecretSource, Settings

# The example of the configuration file's format, character by character.
EXAMPLE = """\
# ~/.config/openclaw/coding-agent.yaml
executors:
  - name: crib
    type: ssh
    host: 192.168.0.152
    user: jimmy
    claude_path: ~/.npm-global/bin/claude
    labels:
      - rust
      - heavy-compute
      
  - name: builder
    type: container
    image: claude-code:latest
    runtime: docker  # or podman
    volumes:
      - /home/jimmy/repos:/work
    labels:
      - isolated
      - reproducible
      
  - name: local
    type: local
    claude_path: /usr/local/bin/claude
    labels:
      - quick-tasks
      - lightweight
"""  # noqa: W293


def load(folder: Path, text: str) -> Settings:
    """Return the settings of a file with this text."""
    file = folder / "coding-agent.yaml"
    file.write_text(text)
    return Settings.load(file)


def a_task(folder: Path, text: str) -> task.Task:
    """Return a task that is read without settings."""
    file = folder / "a-task.yaml"
    file.write_text(f"command: make\n{text}")
    return task.load(file, settings=None)


def test_the_example_loads_as_written(tmp_path: Path) -> None:
    """The documented example loads as written, nothing lost."""
    settings = load(tmp_path, EXAMPLE)
    assert settings.executors == (
        ExecutorSpec(
            "crib",
            "ssh",
            ("rust", "heavy-compute"),
            "~/.npm-global/bin/claude",
            {"host": "192.168.0.152", "user": "jimmy"},
        ),
        ExecutorSpec(
            "builder",
            "container",
            ("isolated", "reproducible"),
            None,
            {"image": "claude-code:latest", "runtime": "docker", "volumes": ["/home/jimmy/repos:/work"]},
        ),
        ExecutorSpec("local", "local", ("quick-tasks", "lightweight"), "/usr/local/bin/claude", {}),
    )


def test_without_a_file_this_machine_is_the_executor(home: Path) -> None:
    """Without a file there is one executor, `local`, and nothing else."""
    settings = Settings.load()
    assert settings == Settings()
    assert settings.path is None
    assert settings.executors == (ExecutorSpec("local", "local"),)


def test_a_file_asked_for_by_name_has_to_exist(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that an argument or $CODING_AGENT_CONFIG names is not silently done without."""
    with pytest.raises(InvalidFile, match="no such file"):
        Settings.load(home / "other.yaml")
    monkeypatch.setenv("CODING_AGENT_CONFIG", str(home / "other.yaml"))
    with pytest.raises(InvalidFile, match="no such file"):
        Settings.load()


def test_the_file_is_found_where_the_user_keeps_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is the one in the configuration folder, else the one that $CODING_AGENT_CONFIG names."""
    usual = home / ".config" / "openclaw" / "coding-agent.yaml"
    usual.parent.mkdir(parents=True)
    usual.write_text("executors: [{name: a, type: local}]\n")
    assert Settings.load().executor("a").type == "local"
    (home / "b.yaml").write_text("executors: [{name: b, type: local}]\n")
    monkeypatch.setenv("CODING_AGENT_CONFIG", "~/b.yaml")
    assert [each.name for each in Settings.load().executors] == ["b", "local"]


def test_local_is_always_there(tmp_path: Path) -> None:
    """A file without an executor `local` still has this machine, as the last one."""
    settings = load(tmp_path, "executors: [{name: crib, type: ssh, host: h}]\n")
    assert [each.name for each in settings.executors] == ["crib", "local"]


def test_every_part_of_the_file(tmp_path: Path) -> None:
    """Defaults arrive with units resolved, sources as kind and value, options under the executor's own names."""
    settings = load(
        tmp_path,
        "executors:\n"
        "  - {name: here, type: local, root_dir: ~/runs, use_host_login: true, env: {A: b}}\n"
        "  - {name: vm, type: hetzner, server_types: [a, b], locations: fsn1, keep: true}\n"
        "defaults:\n"
        "  executor: here\n"
        "  agent: {model: opus, max_turns: 7, allowed_tools: [Read], mcp_config: {mcpServers: {}}}\n"
        "  limits: {timeout: 1h30m, memory: 2GiB, cpus: 2}\n"
        "  env: {LANG: C}\n"
        "secrets:\n"
        "  A: {env: B}\n"
        "  C: {file: ~/c}\n"
        "  D: {command: [pass, show, d]}\n"
        "allow_inline: [mounts]\n",
    )
    assert settings.executor("here").options == {"root_dir": "~/runs", "use_host_login": True, "env": {"A": "b"}}
    assert settings.executor("vm").options == {"server_types": ["a", "b"], "locations": "fsn1", "keep": True}
    assert settings.defaults.executor == "here"
    assert settings.defaults.agent == {
        "model": "opus",
        "max_turns": 7,
        "allowed_tools": ("Read",),
        "mcp_config": '{"mcpServers": {}}',
    }
    assert settings.defaults.limits == {"timeout": 5400.0, "memory": 2 * 2**30, "cpus": 2.0}
    assert settings.defaults.env == {"LANG": "C"}
    assert settings.secrets == {
        "A": SecretSource("env", "B"),
        "C": SecretSource("file", "~/c"),
        "D": SecretSource("command", ("pass", "show", "d")),
    }
    assert settings.allow_inline == {"mounts"}


def test_the_executor_of_a_task(tmp_path: Path) -> None:
    """A named executor is used whatever the labels; else the first with all labels; without labels the default."""
    settings = load(
        tmp_path,
        "executors:\n"
        "  - {name: a, type: local, labels: [x]}\n"
        "  - {name: b, type: local, labels: [x, y]}\n"
        "  - {name: c, type: local, labels: [x, y]}\n"
        "defaults: {executor: c}\n",
    )
    assert settings.choose(a_task(tmp_path, "executor: a\nlabels: [y]\n")).name == "a"
    assert settings.choose(a_task(tmp_path, "labels: [y, x]\n")).name == "b"
    assert settings.choose(a_task(tmp_path, "")).name == "c"
    assert settings.choose(a_task(tmp_path, "executor: {type: local, env: {A: b}}\n")) == ExecutorSpec(
        "inline", "local", options={"env": {"A": "b"}}
    )
    assert Settings().choose(a_task(tmp_path, "")).name == "local"


def test_an_executor_that_is_not_there_is_named(tmp_path: Path) -> None:
    """An unknown executor, or labels that none carries, are an error that names the nearest or the way out."""
    settings = load(tmp_path, "executors: [{name: builder, type: local, labels: [x]}]\ndefaults: {executor: builder}\n")
    with pytest.raises(NotFound) as caught:
        settings.executor("bulider")
    assert caught.value.next_step == "did you mean builder?"
    with pytest.raises(NotFound) as caught:
        settings.choose(a_task(tmp_path, "labels: [x, gpu]\n"))
    assert "gpu" in caught.value.message
    assert "coding-agent.yaml" in (caught.value.next_step or "")


def test_a_secret_in_the_wrong_place_is_not_shown(tmp_path: Path) -> None:
    """A value that stands where its source belongs is refused without being printed."""
    for text in ("A: sk-canary", "A: {env: sk-canary}", "A: {file: sk-canary}", "A: {command: sk-canary}", "sk-canary"):
        with pytest.raises(InvalidFile) as caught:
            load(tmp_path, f"secrets:\n  {text}\n")
        assert "sk-canary" not in str(caught.value)


def test_reading_runs_nothing_and_looks_up_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret's command is not run, its file and variable need not exist."""
    marker = tmp_path / "ran"
    monkeypatch.delenv("NOT_THERE", raising=False)
    load(tmp_path, f"secrets:\n  A: {{command: [touch, {marker}]}}\n  B: {{file: /nowhere}}\n  C: {{env: NOT_THERE}}\n")
    assert not marker.exists()


def test_importing_it_is_cheap() -> None:
    """Importing the module loads neither a YAML parser nor a validator: `status` and `list` need neither."""
    code = "import sys, coding_agent.settings; print([n for n in ('yaml', 'jsonschema', 'pulumi') if n in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.strip() == "[]"
