"""One step of a task's life in a process of its own: its stack is brought up, or removed.

The engine's library serves one program at a time and keeps much in memory; a worker has many tasks, and may be killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coding_agent import errors, records
from coding_agent.errors import CodingAgentError
from coding_agent.records import Record

Say = Callable[[str], None]
END_LIMIT = 120.0  # seconds that a step gets to end in order when it is interrupted
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Failure:
    """Why a step failed."""

    type: str  # the name of an error class
    message: str
    next_step: str | None

    def __str__(self) -> str:
        return f"{self.message}; {self.next_step}" if self.next_step else self.message


class Step:
    """A step that goes on."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        """Begin it; `order` is what `main` reads."""
        # Not -m: a worker's folder is no place to import from.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "coding_agent.work_queue.step", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._order = json.dumps(order).encode()

    def wait(self, say: Say) -> Record | Failure | None:
        """Return what became of it: the run's record, none where it was a removal, or the failure."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(self._order)
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # how it has ended is seen below
        told: dict[str, Any] = {}
        for line in self._process.stdout:
            told = json.loads(line)
            if "say" in told:
                say(told["say"])
        code = self._process.wait()
        if "record" in told:
            return records.of_plain(told["record"])
        if "error" in told:
            return Failure(**told["error"])
        return None if "done" in told else Failure("StepEnded", f"its process ended with {code}", None)

    def interrupt(self) -> None:
        """Let it end in order, as Ctrl-C does."""
        self._process.send_signal(signal.SIGTERM)
        timer = threading.Timer(END_LIMIT, self._process.kill)
        timer.daemon = True
        timer.start()


def main() -> int:
    """Do the step that stdin asks for; say on stdout, a line of JSON each, what goes on and what became of it."""
    # What a worker that is killed has begun ends as well, and the engine with it: another goes on from there.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may write there

    def tell(**what: Any) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    try:
        record = _do(json.load(sys.stdin), lambda line: tell(say=line))
    except CodingAgentError as error:
        tell(error={"type": _kind(error), "message": _message(error), "next_step": error.next_step})
    except KeyboardInterrupt:
        tell(error={"type": "Interrupted", "message": "it was interrupted", "next_step": None})
    except Exception as error:
        tell(error={"type": "Unexpected", "message": f"{type(error).__name__}: {error}"[:500], "next_step": None})
    else:
        tell(record=records.to_plain(record)) if record else tell(done=True)
    return 0


def _do(order: Mapping[str, Any], say: Say) -> Record | None:
    from coding_agent import dispatched, near_files, stack, task
    from coding_agent.executors import gpus
    from coding_agent.resume import resume
    from coding_agent.settings import Settings

    name, repo, file = order["name"], order["repo"], order["file"]
    os.environ[gpus.GIVEN] = ",".join(map(str, order["gpus"]))  # for the engine's processes, too
    known = records.of_plain(order["record"]) if order["record"] else None
    if order["verb"] == "start" and order["resume"] and known is not None:
        asked = order["resume"]
        return resume(records.latest(known), prompt=asked["prompt"], attempt=asked["attempt"], say=say)
    if order["verb"] == "start":
        if file is None:
            return dispatched.start(order["fields"], name=name, repo=repo, run_id=order["run_id"], say=say)
        loaded = task.load(Path(file), settings=Settings.load())
        opened = stack.open_stack(loaded.root, loaded.name, task_file=loaded.source, progress=say)
        run_id = str(opened.up(wait=False, run_id=order["run_id"], say=say).get("run_id"))
        found = records.load(run_id)
        if found is None:
            raise errors.NotFound(f"the run of task {name} left no record")
        return found
    if order["verb"] == "refresh":
        root = near_files.project_root(Path(file))
        stack.open_stack(root, name, create=False, progress=say).refresh(say=say)
        return None
    if known is not None:
        dispatched.destroy(records.latest(known), discard=order["discard"], say=say)
    elif file is None:
        dispatched.abandon(name, repo)
    else:
        root = near_files.project_root(Path(file))
        with suppress(errors.NotFound):
            stack.open_stack(root, name, create=False, progress=say).destroy(discard=order["discard"], say=say)
    return None


def _kind(error: CodingAgentError) -> str:
    """Return the name of the nearest class that everybody knows."""
    return next(each.__name__ for each in type(error).__mro__ if each.__module__ == errors.__name__)


def _message(error: CodingAgentError) -> str:
    problems = getattr(error, "problems", ())
    return "\n".join(map(str, problems)) if problems else error.message


if __name__ == "__main__":
    sys.exit(main())
