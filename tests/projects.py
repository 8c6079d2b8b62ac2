"""Projects for tests of both doors: files in a temporary folder, the real engine, tasks that are shell commands."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coding_agent import lifecycle, records, stack
from coding_agent.records import Record
from waiting import until

REPOSITORY = Path(__file__).parents[1]
LIMIT = 120.0  # seconds for one command of the engine's


@dataclass
class Workplace:
    """A project of a test's own, with what was said by our door."""

    root: Path
    said: list[str] = field(default_factory=list)

    def task(self, name: str = "job", *, command: str = "true", **fields: Any) -> Path:
        """Write a task's file; each of its runs leaves a line in `starts` before `command` goes on."""
        text = f'echo "$CODING_AGENT_TASK_START" >> {self.root}/starts\n{command}\n'
        path = self.root / "tasks" / f"{name}.yaml"
        # What is JSON is YAML.
        path.write_text(json.dumps({"command": text, **fields}))
        return path

    @property
    def starts(self) -> int:
        """How many runs have begun."""
        file = self.root / "starts"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def stack(self, name: str = "job", **options: Any) -> stack.Stack:
        """Open a task's stack through our door."""
        return stack.open_stack(self.root, name, **options)

    def up(self, name: str = "job", *, wait: bool = True, rerun: bool = False) -> dict[str, Any]:
        """Update a task's stack through our door."""
        return self.stack(name).up(wait=wait, rerun=rerun, say=self.said.append)

    def ended(self, run_id: str) -> Record:
        """Wait until a run has ended, and return its record."""
        record = records.load(run_id)
        assert record is not None
        until(lambda: lifecycle.observe(record, say=self.said.append, collect=False).outputs.status.final)
        return record

    def pulumi(
        self, *arguments: str, stack: str = "job", succeeds: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the engine's own command in the project, as a user would."""
        done = subprocess.run(
            ["pulumi", "--non-interactive", *arguments, "--stack", stack],
            cwd=self.root,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        shown = done.stdout + done.stderr
        assert "Traceback" not in shown, shown
        assert (done.returncode == 0) == succeeds, shown
        return done

    def bare_up(self, stack: str = "job", *, succeeds: bool = True) -> str:
        """Run a bare `pulumi up`; return what it showed."""
        done = self.pulumi("up", "--yes", "--skip-preview", stack=stack, succeeds=succeeds)
        return done.stdout + done.stderr

    def new_stack(self, name: str = "job") -> None:
        """Make a stack as a user of the bare engine does."""
        self.pulumi("stack", "init", "--no-select", stack=name)

    def outputs(self, stack: str = "job") -> dict[str, Any]:
        """Return a stack's outputs as the engine gives them."""
        outputs: dict[str, Any] = json.loads(self.pulumi("stack", "output", "--json", stack=stack).stdout)
        return outputs

    def changes(self, stack: str = "job") -> dict[str, int]:
        """Return what a bare preview would change: no entry where nothing would."""
        said = json.loads(self.pulumi("preview", "--json", stack=stack).stdout)
        found = {kind: count for kind, count in said["changeSummary"].items() if kind != "same"}
        if found:
            print(json.dumps(said["steps"], indent=1))  # for a test that fails
        return found

    @contextmanager
    def engine(self, *arguments: str, stack: str = "job") -> Iterator[subprocess.Popen[str]]:
        """Start the engine's own command and go on; it is ended with the block."""
        process = subprocess.Popen(
            ["pulumi", "--non-interactive", *arguments, "--stack", stack],
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()


def make(root: Path) -> Workplace:
    """Make a project like the one of this repository, under a name of its own."""
    for folder in ("infra/plugin", "tasks", "stacks"):
        (root / folder).mkdir(parents=True)
    settings = (REPOSITORY / "Pulumi.yaml").read_text().replace("name: coding-agent\n", f"name: {root.name}\n", 1)
    (root / "Pulumi.yaml").write_text(settings)
    for name in ("infra/__main__.py", "infra/plugin/pulumi-resource-coding-agent"):
        (root / name).write_bytes((REPOSITORY / name).read_bytes())
        (root / name).chmod(0o755)
    return Workplace(root)
