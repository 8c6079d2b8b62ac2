"""The Pulumi provider `coding-agent`: RunId, and Run, whose create, read and delete are an executor's verbs.

The engine saves a RunId before the Run of that id can start. So a create that is called again, after a `pulumi` that
was killed or from another machine on the same backend, finds the same id and adopts what runs under it.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import empty_pb2, json_format, struct_pb2  # type: ignore[import-untyped]
from pulumi.provider.experimental.provider import Provider
from pulumi.provider.experimental.server import ProviderServicer
from pulumi.runtime import proto
from pulumi.runtime.rpc import UNKNOWN

from coding_agent import __version__, changes, state
from coding_agent.errors import CodingAgentError, InvalidInput
from coding_agent.plugin import DISCARD, RERUN, WAIT, WANTED, EngineLog, hand_over, one_line

RUN_ID = "coding-agent:index:RunId"
RUN = "coding-agent:index:Run"
LEFTOVERS = "coding-agent:index:Leftovers"
HOST_KEY = "coding-agent:index:HostKey"

Values = dict[str, Any]
_KINDS = {"add": "ADD", "delete": "DELETE", "update": "UPDATE"}


class _Cancellation(Provider):
    """What the servicer's base asks of us beside the verbs of resources: only to stop waiting."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    async def cancel(self) -> None:
        """Let a create that waits return what is; the agent goes on."""
        self.stop.set()


class Servicer(ProviderServicer):
    """Answer the engine. Nothing raised here may show as a traceback: every verb goes through `_answer`."""

    def __init__(self, log: EngineLog) -> None:
        """`log` shows lines in the user's `pulumi up`."""
        self._cancellation = _Cancellation()
        super().__init__(sys.argv[1:], __version__, self._cancellation, "")
        self._log = log
        self._attempts: dict[str, int] = {}

    async def GetSchema(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return the names of the resources; programs other than ours have no use for them."""
        resources: Values = {RUN_ID: {}, RUN: {}, LEFTOVERS: {}, HOST_KEY: {}}
        schema = {"name": "coding-agent", "version": __version__, "resources": resources}
        return proto.GetSchemaResponse(schema=json.dumps(schema))

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return the inputs; RunId's attempt is carried over, or counted up when a rerun or another id is asked for."""

        def check() -> Any:
            news = _values(request.news)
            if _type(request.urn) == RUN_ID:
                olds = _values(request.olds)
                wanted = os.environ.get(WANTED) or olds.get("wanted")
                news |= {"wanted": wanted} if wanted else {}
                news["attempt"] = self._attempt(request.urn, olds)
            return proto.CheckResponse(inputs=_struct(news))

        return await self._answer(context, check)

    async def Diff(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say what a change of the inputs amounts to."""

        def diff() -> Any:
            olds, news = _values(request.olds), _values(request.news)
            if _type(request.urn) == RUN_ID:
                return _diff(changes.of_run_id(olds, news), first_delete=False)
            if _type(request.urn) in (LEFTOVERS, HOST_KEY):
                return _diff(changes.of_companion(olds, news), first_delete=False)
            # The old agent must have ended before the new one starts.
            return _diff(changes.of_run(olds, news, unknown=UNKNOWN), first_delete=True)

        return await self._answer(context, diff)

    async def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Make an id, or start the agent under one (or adopt it)."""

        def create() -> Any:
            inputs = _values(request.properties)
            if _type(request.urn) in _COMPANIONS:
                chosen = inputs.get("wanted") if _type(request.urn) == RUN_ID else None
                new = "" if request.preview else str(chosen or secrets.token_hex(8))
                made = _COMPANIONS[_type(request.urn)](new)
                return proto.CreateResponse(id=new, properties=_struct({**inputs, **made}))
            if request.preview:
                # Nothing is run and no secret is looked up: what the run will say is not known.
                return proto.CreateResponse(id="", properties=_struct(state.unknown(inputs, UNKNOWN)))
            run_id = str(inputs["run_id"])
            properties = self._start(request.urn, run_id, inputs)
            return proto.CreateResponse(id=run_id, properties=_struct(properties), refresh_before_update=True)

        return await self._answer(context, create)

    async def Read(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Look at the run."""

        def read() -> Any:
            olds = _values(request.properties)
            if _type(request.urn) in (LEFTOVERS, HOST_KEY):
                return proto.ReadResponse(id=request.id, properties=request.properties, inputs=request.inputs)
            if _type(request.urn) == RUN_ID:
                # A refresh that runs the program asks with the program's inputs, which say nothing of the attempt.
                inputs = {**olds, **_values(request.inputs)}
                return proto.ReadResponse(id=request.id, properties=request.properties, inputs=_struct(inputs))
            record = state.observe(request.id, olds, self._say(request.urn))
            # The inputs are the engine's to keep: what a look finds are outputs.
            return proto.ReadResponse(
                id=request.id,
                properties=_struct(state.properties(olds, record)),
                inputs=request.inputs,
                refresh_before_update=True,
            )

        return await self._answer(context, read)

    async def Update(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Give a run that goes on another time limit: the one change that needs no new run."""

        def update() -> Any:
            olds, news = _values(request.olds), _values(request.news)
            properties = {**olds, **news}
            if not request.preview:
                properties = state.change_timeout(request.id, olds, news, self._say(request.urn))
            return proto.UpdateResponse(properties=_struct(properties), refresh_before_update=True)

        return await self._answer(context, update)

    async def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        """End the run, bring its work back, and remove it from its target."""

        def delete() -> Any:
            discard = os.environ.get(DISCARD) == "1"
            say = self._say(request.urn)
            if _type(request.urn) == LEFTOVERS:
                state.sweep(_values(request.properties), everything=False)
            elif _type(request.urn) == RUN_ID:
                # Where the engine was killed while it started the run, it knows of the id and not of the run.
                state.remove_unfinished(request.id, _values(request.properties), discard=discard, say=say)
            elif _type(request.urn) != HOST_KEY:
                state.remove(request.id, _values(request.properties), discard=discard, say=say)
            return empty_pb2.Empty()

        return await self._answer(context, delete)

    def _attempt(self, urn: str, olds: Values) -> int:
        """Return the attempt of this update. Before a replacement the engine asks again, then without the olds."""
        if urn not in self._attempts:
            last = int(olds.get("attempt") or 0)
            another = os.environ.get(WANTED) not in (None, "", olds.get("wanted"))
            again = last > 0 and (another or os.environ.get(RERUN) == "1")
            self._attempts[urn] = max(last, 1) + (1 if again else 0)
        return self._attempts[urn]

    def _start(self, urn: str, run_id: str, inputs: Values) -> Values:
        from coding_agent import lifecycle, task
        from coding_agent.settings import Settings

        settings = Settings.load()
        loaded = task.load(Path(inputs["task_file"]), settings=settings)
        if loaded.digest != inputs["digest"]:
            raise InvalidInput(f"{inputs['task_file']} was changed meanwhile", next_step="run it again")
        say, stop = self._say(urn), self._cancellation.stop
        stack, project = _parts(urn)[:2]
        target = dict(inputs.get("target") or {})
        record = lifecycle.start(
            loaded, run_id, project=project, stack=stack, settings=settings, say=say, target=target, stop=stop
        )
        if loaded.wait and os.environ.get(WAIT) != "false":
            record = lifecycle.follow(record, say=say, stop=stop)
        return state.properties(inputs, record)

    def _say(self, urn: str) -> Callable[[str], None]:
        return lambda line: self._log.say(urn, line)

    async def _answer(self, context: Any, verb: Callable[[], Any]) -> Any:
        try:
            return await asyncio.to_thread(verb)
        except CodingAgentError as error:
            hand_over(error)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, one_line(error))
        except Exception as error:
            if os.environ.get("CODING_AGENT_TRACEBACK") == "1":
                import traceback

                traceback.print_exc()
            await context.abort(grpc.StatusCode.INTERNAL, one_line(error))


def _host_key(new: str) -> Values:
    if not new:
        return {"private": UNKNOWN, "public": UNKNOWN}
    from coding_agent.executors import host_keys

    pair = host_keys.one_use()
    return {"private": pair.private, "public": pair.public}


# What goes with a run, and has no life of its own: what is made of its new id, which is empty in a preview.
_COMPANIONS: Mapping[str, Callable[[str], Values]] = {
    RUN_ID: lambda new: {"run": new or UNKNOWN},
    LEFTOVERS: lambda _new: {},
    HOST_KEY: _host_key,
}


def _diff(change: changes.Change, *, first_delete: bool) -> Any:
    suffix = "_REPLACE" if change.replace else ""
    detailed = {
        path: proto.PropertyDiff(kind=getattr(proto.PropertyDiff, _KINDS[kind] + suffix), inputDiff=True)
        for path, kind in change.fields.items()
    }
    tops = sorted({path.partition(".")[0] for path in change.fields})
    return proto.DiffResponse(
        changes=proto.DiffResponse.DIFF_SOME if change.fields else proto.DiffResponse.DIFF_NONE,
        replaces=list(detailed) if change.replace else [],
        diffs=tops,
        deleteBeforeReplace=change.replace and first_delete,
        detailedDiff=detailed,
        hasDetailedDiff=True,
    )


def _values(struct: Any) -> Values:
    values: Values = json_format.MessageToDict(struct)
    return values


def _struct(values: Mapping[str, Any]) -> Any:
    return json_format.ParseDict(values, struct_pb2.Struct())


def _parts(urn: str) -> list[str]:
    """Return stack, project, type and name: urn:pulumi:STACK::PROJECT::TYPE::NAME."""
    return urn.removeprefix("urn:pulumi:").split("::", 3)


def _type(urn: str) -> str:
    # The type is preceded by those of its parents: parent$type.
    return _parts(urn)[2].rpartition("$")[2]
