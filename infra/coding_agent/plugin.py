"""The provider as a process: it serves the engine that started it, speaks through it, and ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coding_agent import errors, processes
from coding_agent.errors import CodingAgentError

if TYPE_CHECKING:
    from pulumi.runtime.proto import ResourceProviderServicer

# What an update tells the provider through its environment, so that no stack has to be configured for it.
RERUN = "CODING_AGENT_RERUN"  # "1": the attempt of the stack counts one up
WANTED = "CODING_AGENT_WANTED_RUN"  # the id that the run is to have: one that runs under it already is that run
WAIT = "CODING_AGENT_WAIT"  # "false": create returns once the agent has started, whatever the task says
DISCARD = "CODING_AGENT_DISCARD"  # "1": delete does not bring the work back
FAILURE = "CODING_AGENT_FAILURE"  # the file into which a refusal is written, as it is: the engine only passes text on
LOG_LIMIT = 5.0  # seconds the engine may take to accept a line


class EngineLog:
    """Lines for the user's `pulumi up`, shown under the resource that they belong to."""

    def __init__(self, address: str) -> None:
        """`address` is the engine's, host:port."""
        self._address = address
        self._connecting = threading.Lock()
        self._send: Callable[[str, str], None] | None = None

    def say(self, urn: str, line: str) -> None:
        """Show a line; an engine that does not listen is no reason to fail."""
        import grpc

        with contextlib.suppress(grpc.RpcError):
            self._sender()(urn, line)

    def _sender(self) -> Callable[[str, str], None]:
        with self._connecting:
            if self._send is None:
                self._send = _sender(self._address)
            return self._send


def serve(make: Callable[[EngineLog], ResourceProviderServicer]) -> int:
    """Serve what `make` makes until the engine is gone; return the exit code."""
    # Plugins are in a process group of their own: this is not the user's Ctrl-C (that arrives as Cancel), it is the
    # engine saying that it needs us no more. The kernel ends us, not a handler: one of Python's runs in the main thread
    # alone, which sleeps on where gRPC's threads got the signal, and the engine waits 5 s before it kills.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    addresses = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if not addresses:
        print("this program is started by the Pulumi engine, with its address", file=sys.stderr)
        return 2
    os.environ.setdefault("no_grpc_proxy", "127.0.0.1")  # the engine is at loopback, whatever proxy the user has
    _end_with_engine(addresses[-1])
    asyncio.run(_serve(make(EngineLog(addresses[-1]))))
    return 0


def one_line(error: BaseException) -> str:
    """Return what a user is told of an error: what is wrong and the next step, never a traceback."""
    if isinstance(error, CodingAgentError):
        return str(error)
    first = (str(error).splitlines() or [""])[0][:300]
    return f"unexpected {type(error).__name__}: {first}"


def hand_over(error: CodingAgentError) -> None:
    """Tell our door what was refused, where the update came through it."""
    into = os.environ.get(FAILURE)
    if into:
        kind = next(each.__name__ for each in type(error).__mro__ if each.__module__ == errors.__name__)
        text = json.dumps({"kind": kind, "message": error.message, "next_step": error.next_step})
        Path(into).write_text(text, encoding="utf-8")


def handed_over(file: Path) -> CodingAgentError | None:
    """Return what `hand_over` wrote into `file`, and remove that; None where it wrote nothing."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    finally:
        file.unlink(missing_ok=True)
    kind: type[CodingAgentError] = getattr(errors, said["kind"])
    return kind(said["message"], next_step=said["next_step"])


async def _serve(servicer: ResourceProviderServicer) -> None:
    import grpc.aio
    from pulumi.runtime._grpc_settings import _GRPC_CHANNEL_OPTIONS
    from pulumi.runtime.proto import provider_pb2_grpc

    server = grpc.aio.server(options=_GRPC_CHANNEL_OPTIONS)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


def _sender(address: str) -> Callable[[str, str], None]:
    import grpc
    from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc

    stub = engine_pb2_grpc.EngineStub(grpc.insecure_channel(address))

    def send(urn: str, line: str) -> None:
        # An ephemeral line passes by and is not listed again under Diagnostics.
        request = engine_pb2.LogRequest(severity=engine_pb2.INFO, message=line, urn=urn, ephemeral=True)
        stub.Log(request, timeout=LOG_LIMIT)

    return send


def _end_with_engine(address: str) -> None:
    """End this process when the engine has ended: killed, it can't say so, and an orphan would go on for ever.

    Its other plugins, which were given the same address, would too, or for minutes: they are ended as well. Two signs,
    as one has a gap: the parent's pidfd (not if the engine was gone before it was opened), and the pipe that our port
    goes through, which only the engine reads.
    """

    def end() -> None:
        _end_other_plugins(address)
        os._exit(0)

    _when_gone([os.getppid()], end, pipe=sys.stdout.fileno())


def end_program_with_engine() -> None:
    """End this program when the language host that started it, or its engine, has ended: killed, they can't say so.

    The program would wait for ever for answers, and the language host looks for its engine every five minutes.
    """
    host = os.getppid()
    found = processes.stat(host)

    def end() -> None:
        if os.getppid() == host:  # it is the engine that has ended
            with contextlib.suppress(OSError):
                os.kill(host, signal.SIGTERM)
        os._exit(1)

    _when_gone([host, *([int(found[processes.PARENT])] if found else [])], end)


def _when_gone(pids: Sequence[int], then: Callable[[], None], *, pipe: int | None = None) -> None:
    """Call `then`, in a thread of its own, once one of the processes has ended or nobody reads the pipe any more."""
    watch = select.poll()
    if pipe is not None:
        watch.register(pipe, 0)  # 0: only POLLERR, which a pipe without a reader has
    for pid in pids:
        with contextlib.suppress(OSError):
            watch.register(os.pidfd_open(pid), select.POLLIN)

    def wait() -> None:
        watch.poll()
        then()

    threading.Thread(target=wait, daemon=True, name="engine watch").start()


def _end_other_plugins(address: str) -> None:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            argv = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            if address in argv and int(entry.name) != os.getpid() and Path(argv[0]).name.startswith("pulumi-"):
                os.kill(int(entry.name), signal.SIGTERM)
