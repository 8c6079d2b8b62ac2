"""Run tasks/demo.yaml end to end on this machine: the commands a user would type, one after the other.

Without a credential for the model a scripted one on loopback takes its place; engine and agent are the real ones.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CREDENTIALS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
LIMIT = 1200.0  # seconds for one command; the first one may have to fetch the engine and the agent


@contextmanager
def model() -> Iterator[dict[str, str]]:
    """Yield what the environment needs for a model: nothing where there is a credential."""
    if any(os.environ.get(name) for name in CREDENTIALS):
        print("model: the real one, with the credential in your environment")
        yield {}
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from fakes.messages_api import MessagesApi

    print(
        f"model: SCRIPTED. None of {', '.join(CREDENTIALS)} is set, so a script on loopback answers instead of a model."
    )
    print("       Pulumi, the provider, the supervisor and Claude Code are the real programs.")
    with MessagesApi(default="demo", script=ROOT / "demo" / "model.json") as api:
        yield {"ANTHROPIC_BASE_URL": api.url, "ANTHROPIC_API_KEY": "scripted-model"}


def step(*argv: str, environment: dict[str, str]) -> None:
    """Show a command and run it; end the demo with its exit code if it fails."""
    print(f"\n$ {shlex.join(argv)}", flush=True)
    done = subprocess.run(argv, cwd=ROOT, env={**os.environ, **environment}, timeout=LIMIT, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def branch() -> str:
    """Return where the agent's commit is: where there is a branch of that name already, the new one gets a number."""
    argv = ["coding-agent", "status", "demo", "--json"]
    said = subprocess.run(argv, cwd=ROOT, timeout=LIMIT, check=True, stdout=subprocess.PIPE).stdout
    return str(json.loads(said)["branch"])


def main() -> None:
    """Run the demo."""
    with model() as environment:
        step("coding-agent", "validate", "tasks/demo.yaml", environment=environment)
        step("coding-agent", "up", "demo", environment=environment)
        step("coding-agent", "status", "demo", "--json", environment=environment)
        step("git", "--no-pager", "log", "--oneline", "--stat", "-1", branch(), environment=environment)
        step("coding-agent", "destroy", "demo", "--yes", environment=environment)
    print(f"\nThe stack is gone; the branch {branch()} and the run's record stay.")


if __name__ == "__main__":
    main()
