"""The program inside our own process, for as long as one command of the engine's: it calls us to run it."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import grpc
from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from pulumi.automation._server import LanguageServer
from pulumi.runtime import proto, reset_options, run_in_stack, set_all_config, settings
from pulumi.runtime._grpc_settings import _GRPC_CHANNEL_OPTIONS
from pulumi.runtime.proto import EventsServicer, events_pb2_grpc, language_pb2_grpc

from coding_agent.plugin import one_line

END_LIMIT = 10.0  # seconds the program gets to end once its engine has
Event = Mapping[str, Any]


@contextmanager
def serving(program: Callable[[], None], heard: Callable[[Event], None]) -> Iterator[list[str]]:
    """Serve the engine in the block: run `program` when it asks, and hear its events. Yield the arguments it needs."""
    pool = ThreadPoolExecutor(max_workers=4)
    language, events = _Language(program), _Events(heard)
    server = grpc.server(pool, options=_GRPC_CHANNEL_OPTIONS)
    language_pb2_grpc.add_LanguageRuntimeServicer_to_server(language, server)
    events_pb2_grpc.add_EventsServicer_to_server(events, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield [f"--client={address}", "--exec-kind", "auto.inline", "--event-log", f"tcp://{address}"]
    finally:
        # The last events may still be on their way.
        events.idle.wait(END_LIMIT)
        server.stop(0)
        # After a failed update the engine is gone before the program has noticed.
        language.idle.wait(END_LIMIT)
        pool.shutdown(wait=False)
    if events.broken is not None:
        raise events.broken


class _Language(LanguageServer):
    """What the engine calls to run the program."""

    def __init__(self, program: Callable[[], None]) -> None:
        super().__init__(program)
        self.idle = threading.Event()
        self.idle.set()

    def Run(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Run the program.

        In place of the library's, which shows tracebacks and leaves its event loop open when the engine is gone first.
        """
        self.idle.clear()
        try:
            return contextvars.copy_context().run(_run, self.program, request)
        finally:
            self.idle.set()


class _Events(EventsServicer):
    """What the engine sends its events to."""

    def __init__(self, heard: Callable[[Event], None]) -> None:
        self._heard = heard
        self.broken: BaseException | None = None
        self.idle = threading.Event()
        self.idle.set()

    def StreamEvents(self, requests: Iterable[Any], context: Any) -> Any:  # noqa: N802
        """Hear events until the engine has no more."""
        self.idle.clear()
        try:
            # Of an engine that was killed the stream breaks off.
            with suppress(grpc.RpcError):
                for request in requests:
                    self._hear(json.loads(request.event))
        finally:
            self.idle.set()
        return empty_pb2.Empty()

    def _hear(self, event: Event) -> None:
        """Pass an event on. Whoever can't take it (his output is closed) hears no more; the engine is heard out."""
        if self.broken is None:
            try:
                self._heard(event)
            except BaseException as error:
                self.broken = error


class _Listener:
    """The engine, for log lines: it may be gone before the program has ended, and nobody misses a line then."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def Log(self, request: Any) -> None:  # noqa: N802 - the engine's name for it
        """Pass a line on, unless it is for debugging: there are many, and each would be waited for."""
        if request.severity != proto.LogSeverity.Value("DEBUG"):
            with suppress(grpc.RpcError):
                self._engine.Log(request)


def _run(program: Callable[[], Any], request: Any) -> Any:
    reset_options(
        project=request.project,
        monitor_address=request.monitor_address,
        engine_address=request.args[0] if request.args else "",
        stack=request.stack,
        parallel=request.parallel,
        preview=request.dryRun,
        organization=request.organization or "organization",
    )
    settings.SETTINGS.engine = _Listener(settings.SETTINGS.engine)
    set_all_config(dict(request.config), list(request.configSecretKeys))
    loop = asyncio.new_event_loop()
    # What fails is returned below; of what was cut off with the engine nothing is to be told.
    loop.set_exception_handler(lambda _loop, _context: None)
    try:
        loop.run_until_complete(run_in_stack(program))
        return proto.RunResponse()
    except Exception as error:
        return proto.RunResponse(error=one_line(error))
    finally:
        _close(loop)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    async def end() -> None:
        pending = asyncio.all_tasks(loop) - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await loop.shutdown_default_executor()

    loop.run_until_complete(end())
    loop.close()
