"""A user's machine of its own for the benchmarks: home, project, engine and scripted model."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from fakes.messages_api import MessagesApi  # noqa: E402

LIMIT = 600.0  # seconds for one command
CLEARED = ("ANTHROPIC_", "PULUMI_", "CODING_AGENT_", "CLAUDE_")


@dataclass(frozen=True)
class World:
    """Where a benchmark runs."""

    home: Path
    project: Path
    environment: dict[str, str]
    engine: Path
    claude: Path
    api: MessagesApi

    def run(self, *argv: str, ok: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; raises when it ends with another exit code than those in `ok`."""
        done = subprocess.run(
            argv, cwd=self.project, env=self.environment, text=True, capture_output=True, timeout=LIMIT, check=False
        )
        if done.returncode not in ok:
            raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def cli(self, *argv: str, ok: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return self.run("coding-agent", *argv, ok=ok)

    def plugin(self, name: str) -> None:
        """Give the engine here a plugin, and with it all that the caller's own engine has."""
        from coding_agent.paths import engine_home
        from coding_agent.toolchain.pulumi import plugins

        plugins.find_or_install((name,), print)
        folder = self.home / "pulumi" / "plugins"
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            folder.symlink_to(engine_home() / "plugins")

    def task(self, name: str, text: str) -> None:
        """Write a task file."""
        (self.project / "tasks" / f"{name}.yaml").write_text(text, encoding="utf-8")


@contextmanager
def world() -> Iterator[World]:
    """Make such a machine and remove it."""
    from coding_agent import claude
    from coding_agent.toolchain.pulumi import engine

    # Found (or installed) with the caller's own settings first, so that no benchmark pays for a download.
    program = claude.find_or_install(None, None, print)
    pulumi = engine.find_or_install(print).command
    with tempfile.TemporaryDirectory(prefix="coding-agent-bench-") as folder, MessagesApi() as api:
        home = Path(folder)
        environment = {n: v for n, v in os.environ.items() if not n.startswith((*CLEARED, "XDG_"))}
        environment |= {
            "HOME": str(home),
            "PULUMI_HOME": str(home / "pulumi"),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "ANTHROPIC_BASE_URL": api.url,
            "ANTHROPIC_API_KEY": "scripted-model",
            "PATH": os.pathsep.join([str(pulumi.parent), str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        project = home / "project"
        made = World(home, project, environment, pulumi, program, api)
        project.mkdir()
        config = home / ".config" / "openclaw"
        config.mkdir(parents=True)
        (config / "coding-agent.yaml").write_text(
            f"executors:\n  - name: local\n    type: local\n    claude_path: {program}\n", encoding="utf-8"
        )
        made.cli("init")
        yield made
