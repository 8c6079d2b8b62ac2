"""What a task becomes on its target: the files of the run's folder, the agent's argv and environment."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coding_agent import credentials, records
from coding_agent.executors import gpus
from coding_agent.executors.base import Executor, Launch, Surroundings
from coding_agent.task import STANDARD_TOOLS

if TYPE_CHECKING:
    from coding_agent.records import Record
    from coding_agent.repository import Packed
    from coding_agent.settings import ExecutorSpec, Settings
    from coding_agent.task import Task

# Tests leave Claude Code's own limit out, to see that ours holds without it.
NO_TURN_FLAG = "CODING_AGENT_TEST_NO_MAX_TURNS_FLAG"


@dataclass(frozen=True)
class Prepared:
    """A launch, and what the controller has to remember of it."""

    launch: Launch
    secrets: Mapping[str, str]
    base: str


@contextmanager
def prepared(
    task: Task, run_id: str, executor: Executor, spec: ExecutorSpec, settings: Settings, say: Callable[[str], None]
) -> Iterator[Prepared]:
    """Resolve secrets, find the agent's program and pack the repository; all of it is gone when the block ends.

    Raises `CredentialMissing`, `InvalidInput` and what `Executor.prepare` does, before anything has started.
    """
    values = credentials.resolve(task.secrets, settings)
    if task.prompt is not None:
        values = {**credentials.agent_credential(settings, spec), **values}
    found = executor.prepare(task, say)
    with records.scratch(run_id) as folder:
        files = _files(task)
        packed = None
        if task.repo is not None and task.repo.path:
            from coding_agent import repository

            say("packing the repository")
            # Without a folder of its own for them the stack's file lies in the checkout, and holds an encryption salt.
            ours = f"Pulumi.{task.name}.yaml"
            packed = repository.pack(task.root, uncommitted=task.repo.uncommitted, into=folder, ours=ours)
            files["repo.bundle"] = (packed.bundle, 0o600)
            if packed.shallow:
                files["shallow"] = (packed.shallow, 0o600)
        run_dir = executor.run_dir(run_id)
        argv = _agent_argv(task, found.program, run_dir) if found.program else ("bash", f"{run_dir}/command.sh")
        launch = Launch(
            run_id=run_id,
            params=_params(task, packed, found),
            argv=argv,
            environment=_environment(task, spec, found, run_dir, gpus.chosen(task)),
            secrets=values,
            files=files,
        )
        yield Prepared(launch, values, packed.head if packed else "")


@contextmanager
def resumed(
    task: Task, record: Record, executor: Executor, settings: Settings, say: Callable[[str], None], *, prompt: str
) -> Iterator[Prepared]:
    """Prepare what lets an agent's run go on with its session: what is there of the repository and the files stays.

    Raises `CredentialMissing`, `InvalidInput` and what `Executor.prepare` does.
    """
    values = {**credentials.agent_credential(settings, record.spec), **credentials.resolve(task.secrets, settings)}
    found = executor.prepare(task, say)
    assert found.program is not None
    run_dir = executor.run_dir(record.run_id)
    params = {**_params(task, None, found), "attempt": str(len(record.earlier) + 1)}
    argv = (*_agent_argv(task, found.program, run_dir), f"--resume={record.outputs.session_id}")
    own = {name: file for name, file in _files(task).items() if not name.startswith(("setup/", "files/"))}
    yield Prepared(
        Launch(
            run_id=record.run_id,
            params=params,
            argv=argv,
            environment=_environment(task, record.spec, found, run_dir, record.gpus),
            secrets=values,
            files={**own, "prompt.txt": (prompt.encode(), 0o600)},
        ),
        values,
        record.base,
    )


def _params(task: Task, packed: Packed | None, found: Surroundings) -> dict[str, str]:
    limits = found.limits
    watched = {name: str(getattr(limits, name) or 0) for name in ("memory", "disk", "pids") if name not in found.held}
    params = {
        "name": task.name,
        "kind": "agent" if task.prompt is not None else "command",
        "workdir": _own_folder(task.workdir or "", found.home),
        "branch": task.branch,
        "max_turns": str(task.agent.max_turns if task.prompt is not None else 0),
        "held": "yes" if found.held else "",
        **watched,
    }
    if found.scope:
        params |= {"scope": "yes", "cpus": f"{limits.cpus or 0:.3f}"}
    for name in ("timeout", "setup", "first_event", "idle", "linger", "grace"):
        params[name] = str(max(1, round(getattr(limits, name) or 0)))
    if packed is not None:
        name, email = packed.identity or ("", "")
        params |= {"repo": "bundle", "repo_ref": packed.ref, "identity_name": name, "identity_email": email}
    elif task.repo is not None:
        params |= {"repo": task.repo.url or "", "repo_ref": task.repo.ref or "HEAD"}
    return params


def _own_folder(workdir: str, home: str) -> str:
    """Return a folder of the executor's with its `~` expanded; others are relative to the workspace."""
    return home + workdir[1:] if workdir == "~" or workdir.startswith("~/") else workdir


def _files(task: Task) -> dict[str, tuple[bytes | Path, int]]:
    files: dict[str, tuple[bytes | Path, int]] = {}
    described = {"name": task.name, "description": task.description, "labels": list(task.labels)}
    files["task.json"] = (json.dumps({**described, **task.payload()}).encode(), 0o600)
    for number, command in enumerate(task.setup):
        files[f"setup/{number:02}.sh"] = (command.encode(), 0o600)
    for file in task.files:
        files[f"files/{file.path}"] = (file.content, file.mode)
    if task.prompt is None:
        files["command.sh"] = ((task.command or "").encode(), 0o600)
        return files
    files["prompt.txt"] = (task.prompt.encode(), 0o600)
    allowed = list(task.agent.allowed_tools or (*STANDARD_TOOLS, *_mcp_tools(task)))
    files["settings.json"] = (json.dumps({"permissions": {"allow": allowed}}).encode(), 0o600)
    if task.agent.append_system_prompt:
        files["system.txt"] = (task.agent.append_system_prompt.encode(), 0o600)
    if task.agent.mcp_config:
        files["mcp.json"] = (task.agent.mcp_config.encode(), 0o600)
    return files


def _mcp_tools(task: Task) -> list[str]:
    """Return the rules that allow the tools of the servers that the task brings itself."""
    servers = json.loads(task.agent.mcp_config or "{}").get("mcpServers") or {}
    return [f"mcp__{server}" for server in servers]


def _agent_argv(task: Task, program: str, run_dir: str) -> tuple[str, ...]:
    agent = task.agent
    argv = [program, "-p", "--output-format", "stream-json", "--verbose", "--settings", f"{run_dir}/settings.json"]
    if not os.environ.get(NO_TURN_FLAG):
        argv += ["--max-turns", str(agent.max_turns)]
    if agent.model:
        argv.append(f"--model={agent.model}")
    if agent.max_budget_usd:
        argv += ["--max-budget-usd", f"{agent.max_budget_usd:g}"]
    if agent.permission_mode:
        argv += ["--permission-mode", agent.permission_mode]
    if agent.append_system_prompt:
        argv += ["--append-system-prompt-file", f"{run_dir}/system.txt"]
    if agent.mcp_config:
        argv += ["--mcp-config", f"{run_dir}/mcp.json", "--strict-mcp-config"]
    if agent.debug:
        argv += ["--debug-file", f"{run_dir}/debug.log"]
    return tuple(argv)


def _told_limits(found: Surroundings) -> dict[str, str]:
    """Return what the agent is told of its limits: bytes, cores, processes, seconds."""
    limits = found.limits
    told = {
        "MEMORY": limits.memory,
        "CPUS": limits.cpus and f"{limits.cpus:g}",
        "PIDS": limits.pids,
        "GPUS": limits.gpus,
        "DISK": limits.disk,
        "TIMEOUT": limits.timeout and round(limits.timeout),
    }
    return {f"CODING_AGENT_LIMIT_{name}": str(value) for name, value in told.items() if value}


def _environment(
    task: Task, spec: ExecutorSpec, found: Surroundings, run_dir: str, indices: tuple[int, ...]
) -> dict[str, str]:
    # Temporary files go when the run goes; tools that ignore TMPDIR are the exception.
    own = {"TMPDIR": f"{run_dir}/tmp", **_told_limits(found)}
    environment = {**found.environment, **own, **spec.options.get("env", {}), **task.env}
    environment |= gpus.environment(spec, indices)  # last: what is another run's is not this one's to choose
    if task.prompt is None:
        return environment
    environment |= credentials.agent_environment()
    environment |= {
        "CLAUDE_CONFIG_DIR": f"{run_dir}/home",
        "CLAUDE_CODE_TMPDIR": f"{run_dir}/tmp",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    if task.agent.permission_mode == "bypassPermissions":
        # As root Claude Code refuses it elsewhere; validation admits it only in a folder made for the run.
        environment["IS_SANDBOX"] = "1"
    return environment
