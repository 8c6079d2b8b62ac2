"""Runs on a target without the engine: the real supervisor, and an agent whose every line a test decides."""

from __future__ import annotations

import json
import os
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coding_agent import executors
from coding_agent.executors.base import Executor, Launch, Look
from coding_agent.settings import ExecutorSpec
from waiting import until

INIT = '{"type":"system","subtype":"init","session_id":"session-1","tools":["Bash"],"model":"m"}'
STAY = "exec tail -f /dev/null\n"
# The supervisor rounds its limits to seconds; these are the shortest.
SHORT = {"first_event": 5, "idle": 60, "linger": 1, "grace": 1, "timeout": 60, "tick": 0.02}


def message(turn: str, *content: Mapping[str, Any], model: str = "m", parent: str | None = None) -> str:
    """Return a line of the agent's, its fields in Claude Code's own order."""
    said = {"id": turn, "type": "message", "role": "assistant", "model": model, "content": list(content)}
    event = {"type": "assistant", "message": said, "parent_tool_use_id": parent, "session_id": "session-1"}
    return json.dumps(event, separators=(",", ":"))


def text(words: str) -> dict[str, Any]:
    """Return a block of text."""
    return {"type": "text", "text": words}


def call(**arguments: Any) -> dict[str, Any]:
    """Return a block that calls a tool."""
    return {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": arguments}


def result(*, is_error: bool = False, subtype: str = "success", said: str = "Done.", **more: Any) -> str:
    """Return the last line, which does not begin with its type; `more` stands before what says how it went."""
    head = {"duration_api_ms": 96, "stop_reason": "end_turn", "session_id": "session-1", "total_cost_usd": 0.1, **more}
    tail = {"is_error": is_error, "num_turns": 1, "subtype": subtype, "result": said, "type": "result", "uuid": "u"}
    return json.dumps({**head, **tail}, separators=(",", ":"))


def say(*lines: str) -> str:
    """Return the shell command that writes `lines`."""
    return "".join(f"printf '%s\\n' {shlex.quote(line)}\n" for line in lines)


def start_time(pid: int) -> str:
    """Return when a process began; empty when there is none but a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def alive(pid: int) -> bool:
    """Return whether a process goes on."""
    return bool(start_time(pid))


@dataclass(frozen=True)
class Target:
    """A folder of runs on this machine, and the executor of it.

    A test's runs have ids of its own, as all runs have: by its id everything of a run on this machine is found.
    """

    executor: Executor
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def id(self, which: str = "") -> str:
        """Return the id of the test's run, or of another of its runs."""
        return which + self.token

    def launch(self, script: str, which: str = "", **options: Any) -> Launch:
        """Return what starts `script` as the agent (or, with kind="command", as a command).

        `secrets`, `environment` and `files` are the launch's, everything else is a parameter of the supervisor's.
        """
        values, files = options.pop("secrets", {}), options.pop("files", {})
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **options.pop("environment", {})}
        params = {"name": "job", "kind": "agent", "branch": "coding-agent/job", **SHORT, **options}
        return Launch(
            run_id=self.id(which),
            params={name: str(value) for name, value in params.items()},
            argv=("bash", f"{self.executor.run_dir(self.id(which))}/agent.sh"),
            environment=environment,
            secrets=values,
            files={"agent.sh": (script.encode(), 0o600), "prompt.txt": (b"Do it.", 0o600), **files},
        )

    def start(self, script: str, which: str = "", **options: Any) -> Path:
        """Start a run and return its folder."""
        self.executor.start(self.launch(script, which, **options))
        return self.folder(which)

    def run(self, script: str, which: str = "", **options: Any) -> Look:
        """Start a run and return how it ended."""
        self.start(script, which, **options)
        return self.ended(which)

    def folder(self, which: str = "") -> Path:
        """Return the folder of a run."""
        return Path(self.executor.run_dir(self.id(which)))

    def meta(self, which: str = "") -> dict[str, Any]:
        """Return the run's metadata as it stands there."""
        read: dict[str, Any] = json.loads((self.folder(which) / ".meta.json").read_bytes())
        return read

    def look(self, which: str = "") -> Look:
        """Look at a run."""
        return self.executor.status(self.id(which))

    def ended(self, which: str = "") -> Look:
        """Return the look that finds the run ended."""
        return until(lambda: self._final(which))

    def _final(self, which: str) -> Look | None:
        look = self.look(which)
        return look if look.state is not None and look.state.final else None

    def says(self, name: str, which: str = "") -> str:
        """Return what is in a file of the workspace, once there is something."""
        file = self.folder(which) / "workspace" / name
        return until(lambda: file.exists() and file.read_text())

    def pid(self, name: str, which: str = "") -> int:
        """Return the pid that a process of the run wrote into a file of the workspace."""
        return int(self.says(name, which))

    def clean_up(self) -> None:
        """Remove every run."""
        for folder in Path(self.executor.root).glob("runs/*"):
            self.executor.cleanup(folder.name, grace=1)


def target_in(root: Path) -> Target:
    """Return the target whose runs lie below `root`."""
    return Target(executors.connect(ExecutorSpec("local", "local", options={"root_dir": str(root)})))
