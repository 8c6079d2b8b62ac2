"""The same for asyncio: what `coding_agent` has, as coroutines.

>>> import asyncio
>>> from coding_agent.aio import dispatch
>>> async def both():
...     tasks = [await dispatch(command=f"echo {word}") for word in ("one", "two")]
...     ended = await asyncio.gather(*[task.wait(timeout=120) for task in tasks])
...     for task in tasks:
...         await task.cleanup()
...     return [outputs.log_tail.strip() for outputs in ended]
>>> asyncio.run(both())
['one', 'two']

Each call works in a thread of its own, so that hundreds can wait at once. Where one is cancelled, what it waits for
goes on: the agent does not end with whoever follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from coding_agent import api
from coding_agent.run import Outputs

Say = Callable[[str], None]
_Found = TypeVar("_Found")


class Task:
    """A task that was dispatched, as `coding_agent.Task` is one; what looks at it is a coroutine."""

    def __init__(self, task: api.Task) -> None:
        """Make it of the other; `dispatch`, `dispatch_file` and `get_task` do."""
        self.task = task

    def __repr__(self) -> str:
        return repr(self.task)

    @property
    def id(self) -> str:
        """The task's id, for `get_task`."""
        return self.task.id

    @property
    def name(self) -> str:
        """The task's name; its stack has the same."""
        return self.task.name

    async def running(self) -> bool:
        """Return whether it has not ended yet."""
        return await _threaded(lambda: self.task.running)

    async def outputs(self) -> Outputs:
        """Return what the run exports, as it is now."""
        return await _threaded(lambda: self.task.outputs)

    async def result(self) -> str | None:
        """Return what the agent said at its end; None before, and for a command."""
        return await _threaded(lambda: self.task.result)

    async def status(self) -> api.TaskStatus:
        """Look at the run."""
        return await _threaded(self.task.status)

    async def recent_activity(self) -> list[str]:
        """Return the last 10 tool calls, oldest first."""
        return await _threaded(self.task.recent_activity)

    async def logs(self, n: int | None = 10, *, raw: bool = False) -> list[str]:
        """Return the last `n` lines of what the agent did (None: all); `raw`: its own stream of events."""
        return await _threaded(lambda: self.task.logs(n, raw=raw))

    async def wait(self, timeout: float | None = None, *, say: Say | None = None) -> Outputs:
        """Wait until the task has ended, at most `timeout` seconds, and return its outputs.

        `say` receives what the agent does, line by line, in the event loop's thread. Raises WaitTimeout.
        """
        tell, stop = _here(say), threading.Event()
        try:
            return await _threaded(lambda: self.task.wait(timeout, say=tell, stop=stop))
        finally:
            stop.set()  # cancelled: the thread ends soon, the agent goes on

    async def kill(self) -> None:
        """End the task: in the queue, while it is started, or its agent and everything that started; results stay."""
        await _threaded(self.task.kill)

    async def resume(self, prompt: str | None = None, *, say: Say | None = None) -> None:
        """Let an agent that has ended go on, as the next attempt of the same run."""
        await _threaded(partial(self.task.resume, prompt, say=_here(say)))

    async def cleanup(self, *, discard: bool = False) -> None:
        """End the run, bring its work back (unless `discard`), remove it from its executor, and its stack."""
        await _threaded(lambda: self.task.cleanup(discard=discard))


async def dispatch(prompt: str | None = None, *, say: Say | None = None, **fields: Any) -> Task:
    """Put a task into the queue, and return; arguments and errors are those of `coding_agent.dispatch`."""
    tell = _here(say)
    return Task(await _threaded(lambda: api.dispatch(prompt, say=tell, **fields)))


async def dispatch_file(path: str | Path, *, say: Say | None = None, **schedule: Any) -> Task:
    """Put the task of a file into the queue, and return; arguments are those of `coding_agent.dispatch_file`."""
    tell = _here(say)
    return Task(await _threaded(lambda: api.dispatch_file(path, say=tell, **schedule)))


async def get_task(task_id: str) -> Task:
    """Return the task with this id, whichever process dispatched it. Raises NotFound."""
    return Task(await _threaded(lambda: api.get_task(task_id)))


def _here(say: Say | None) -> Say | None:
    """Return what has `say` called in the thread of the event loop."""
    if say is None:
        return None
    loop, inner = asyncio.get_running_loop(), say

    def tell(line: str) -> None:
        loop.call_soon_threadsafe(inner, line)

    return tell


async def _threaded(call: Callable[[], _Found]) -> _Found:
    """Return what `call` does in a thread of its own: asyncio's are too few for many that wait."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Found] = loop.create_future()

    def settle(found: _Found | None, error: BaseException | None) -> None:
        if future.done():  # cancelled
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(found)  # type: ignore[arg-type]

    def work() -> None:
        found, error = None, None
        try:
            found = call()
        except BaseException as caught:  # to whoever awaits it
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, found, error)

    threading.Thread(target=work, name="coding-agent", daemon=True).start()
    return await future
