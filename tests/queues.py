"""The queue and its workers, as tests look at them: through the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from user import User
from waiting import until

FINAL = {"succeeded", "failed", "killed", "timed_out", "lost"}
HOLD = "until test -e {}/go; do sleep 0.1; done"


def local_executors(user: User, **sizes: int) -> None:
    """Give the user executors on this machine, each with so many slots."""
    log = str(user.home / "log")
    made = [
        {"name": name, "type": "local", "max_tasks": size, "env": {"EXECUTOR": name, "LOG": log}, "labels": ["any"]}
        for name, size in sizes.items()
    ]
    user.executors(*[{**each, "claude_path": _claude(user)} for each in made])


def _claude(user: User) -> str:
    return str(next(iter(_before(user)), ""))


def _before(user: User) -> list[str]:
    """Return the agent's program that the user's executors file names, as JSON or as YAML."""
    text = user.executors_file.read_text()
    if text.startswith("{"):
        return [each["claude_path"] for each in json.loads(text)["executors"]]
    return [line.partition("claude_path: ")[2] for line in text.splitlines() if "claude_path" in line]


def noted(work: str) -> str:
    """Return a command that notes when it began and ended, on the machine's clock, and where."""
    return f'echo "$EXECUTOR begin $(date +%s%N)" >>"$LOG"; {work}; echo "$EXECUTOR end $(date +%s%N)" >>"$LOG"'


def entries(user: User) -> dict[str, dict[str, Any]]:
    """Return the queue: by name, what it says of each task."""
    said = json.loads(user.cli("list", "--queue", "--all", "--json").stdout)
    return {each["name"]: each for each in said}


def state(user: User, name: str) -> str:
    return str(entries(user)[name]["state"])


def all_are(user: User, wanted: str, *names: str) -> bool:
    """Return whether all of these tasks have a state; in one question, however many they are."""
    found = entries(user)
    return all(found[name]["state"] == wanted for name in names)


@contextmanager
def working(
    user: User, *argv: str, name: str = "worker", environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a worker, once it serves; end it as a service manager does."""
    log = user.home / f"{name}.log"
    process = user.start("worker", *argv, into=log, **(environment or {}))
    try:
        until(lambda: "serves" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def all_ended(user: User, number: int) -> bool:
    return len(found := entries(user)) == number and all(each["state"] in FINAL for each in found.values())


def most_at_once(log: Path) -> dict[str, int]:
    """Return how many commands ran at once at most, for each executor, by what they wrote themselves."""
    events = sorted((line.split() for line in log.read_text().splitlines()), key=lambda each: int(each[2]))
    running: dict[str, int] = {}
    most: dict[str, int] = {}
    for executor, kind, _when in events:
        running[executor] = running.get(executor, 0) + (1 if kind == "begin" else -1)
        most[executor] = max(most.get(executor, 0), running[executor])
    return most
