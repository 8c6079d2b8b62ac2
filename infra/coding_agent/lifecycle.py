"""The verbs over a run: start, observe, follow, kill, clean up. Neither the engine nor its library is needed for them.

The provider, the command line and `dispatch` all use these and nothing else.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coding_agent import __version__, executors, outcome, records
from coding_agent.collect import collect as bring_back
from coding_agent.collect import log_path
from coding_agent.errors import (
    CodingAgentError,
    ConnectionBroken,
    ExecutorUnavailable,
    InvalidInput,
    OnAnotherMachine,
    TargetGone,
)
from coding_agent.executors import gpus
from coding_agent.executors.base import NOTHING_LEFT, UNREADABLE, Executor, Look
from coding_agent.patience import Patience
from coding_agent.records import Record
from coding_agent.run import Outputs, ProcessUsage, State
from coding_agent.settings import ExecutorSpec, Settings

if TYPE_CHECKING:
    from coding_agent.logs import Follower
    from coding_agent.task import Task

Say = Callable[[str], None]
UNREADABLE_LIMIT = 20.0  # seconds without a readable state; its supervisor writes it anew much sooner
NOT_GIVEN_BACK = "not given back:"  # how the notice begins that a machine which costs could not be removed
GIVEN_UP = "given_up"  # the reason of a run whose target did not answer any more when it was discarded
SHORTEST_SPAN = 0.5  # seconds over which a percentage of CPU says something
BEGIN_POLL = 0.05  # seconds between looks while a run begins


def start(
    task: Task,
    run_id: str,
    *,
    project: str,
    stack: str,
    settings: Settings,
    say: Say,
    target: Mapping[str, Any] | None = None,
    stop: threading.Event | None = None,
) -> Record:
    """Start the agent under `run_id`, or adopt what runs or ran under it; return once the agent has begun.

    `target` is what was declared for it. Raises `CodingAgentError` when it could not be started; then nothing is left
    on the target. `stop` ends the waiting for the agent's beginning, not the run.
    """
    from coding_agent import launch

    begun = time.monotonic()
    spec = settings.choose(task)
    known = records.load(run_id)
    with contextlib.closing(executors.connect(spec, target)) as executor:
        look = executor.status(run_id)
        # A start that was cut half-way left a folder and nothing that ran: it is begun anew.
        if look.state is not None and look.reason != NOTHING_LEFT:
            say(f"run {run_id} was started before: adopting it")
            return observe(known or _new(task, run_id, project, stack, spec, executor), say=say)
        if known is not None and known.outputs.started_at and not known.removed:
            return observe(known, say=say)
        if known is not None:
            _release(known)
            if known.removed and known.outputs.started_at:
                aside = records.set_aside(known)
                ended = known.outputs.status.value + (f" ({known.outputs.reason})" if known.outputs.reason else "")
                say(f"run {run_id} is {ended} and went with its target: kept as {aside.run_id}, another is started")
        with launch.prepared(task, run_id, executor, spec, settings, say) as prepared:
            record = _new(task, run_id, project, stack, spec, executor)
            marks = {name: outcome.mark(run_id, value) for name, value in prepared.secrets.items()}
            ready = round(time.monotonic() - begun, 3)
            record = replace(record, secrets=marks, base=prepared.base, target_ready=ready)
            with records.starting(run_id):
                records.save(record)
                try:
                    executor.start(prepared.launch)
                except CodingAgentError:
                    records.forget(run_id)
                    _release(record)
                    raise
        return begin(record, executor, say, stop or threading.Event())


def observe(record: Record, *, say: Say, collect: bool = True) -> Record:
    """Look at the run's target and return the record as it is now; once the run has ended, bring its work back.

    A machine that was made for the run, and costs as long as it is there, is given back then.
    """
    return examine(record, say=say, collect=collect, use=False)[0]


def examine(record: Record, *, say: Say, collect: bool = True, use: bool = True) -> tuple[Record, ProcessUsage | None]:
    """Do what `observe` does and, with `use`, return what the run's processes use, over the same connection.

    CPU is that since the look before, or since the agent began where there was none or it is too short ago to tell.
    None for a run that has ended or can't be reached.
    """
    record, used = records.latest(record), None
    if record.removed or (record.outputs.status.final and not collect):
        return record, None
    if record.outputs.status.final and record.collected:
        return _given_back(record, say), None
    if record.outputs.status is State.PROVISIONING and records.is_starting(record.run_id):
        return record, None
    try:
        with contextlib.closing(reach(record)) as executor:
            record = records.save(_observe(record, executor, say, collect))
            used = _usage(record, executor) if use and not record.outputs.status.final else None
    except ConnectionBroken as error:
        if record.outputs.status.final:
            raise
        reason = "on_another_machine" if isinstance(error, OnAnotherMachine) else "no_connection"
        outputs = replace(record.outputs, status=State.UNRESPONSIVE, reason=reason, detail=error.message)
        return records.save(record.with_outputs(outputs)), None
    return (_given_back(record, say) if collect else record), used


def follow(record: Record, *, say: Say, stop: threading.Event, poll: float = 0.2, attempt: int | None = None) -> Record:
    """Say what the agent does until the run has ended, or until `stop`; return the record as it is then.

    `poll` is in seconds, between looks at the log. With `attempt` nothing is said of what was done before that one.
    """
    from coding_agent import logs
    from coding_agent.logs import Follower, Renderer

    record, shown = records.latest(record), 0

    def tell(line: str) -> None:
        nonlocal shown
        shown += 1
        say(line)

    with contextlib.ExitStack() as stack:
        if record.removed:  # it has ended meanwhile, and what was made for it was given back
            for line in logs.recorded(record):
                say(line)
            return record
        executor = stack.enter_context(contextlib.closing(reach(record)))
        name = executor.log_file(record.kind)
        offset = int(record.earlier[attempt - 2]["log_size"]) if attempt and attempt > 1 else 0
        follower = Follower(record, executor, Renderer(name, outcome.screen(record)), name, offset=offset)
        stage, readable = "", time.monotonic()
        for look in _looks(record, executor, follower, tell, say, stop, poll):
            if look.meta and look.meta.stage != stage:
                stage = look.meta.stage
                if stage in ("workspace", "setup", "saving"):
                    say(f"stage: {stage}")
            if look.meta:
                readable = time.monotonic()
            elif look.reason == UNREADABLE and time.monotonic() - readable < UNREADABLE_LIMIT:
                continue
            if look.state is None or look.state.final or look.state is State.UNRESPONSIVE:
                with contextlib.suppress(ConnectionBroken):
                    for line in follower.new_lines(last=True):
                        tell(line)
                break
    record = observe(record, say=say)
    if record.removed:  # perhaps by another process, while this one followed
        for line in logs.recorded(record)[shown:]:
            say(line)
    return record


def kill(record: Record, *, say: Say) -> Record:
    """End the agent; what it did is saved and brought back. Nothing to do for a run that has ended."""
    if not (record.removed or record.outputs.status.final):
        with contextlib.closing(reach(record)) as executor:
            executor.kill(record.run_id)
    return observe(record, say=say)


def set_timeout(record: Record, seconds: float) -> None:
    """Give a run that goes on another time limit, counted from its beginning."""
    with contextlib.closing(reach(record)) as executor:
        executor.set_timeout(record.run_id, round(seconds))


def cleanup(record: Record, *, discard: bool, say: Say) -> None:
    """End the run, bring its work back unless `discard`, and remove it from the target.

    Raises `InvalidInput` when work would be lost that was kept back or could not be brought back; nothing is removed.
    With `discard` a target that does not answer is given up: what it left there is removed by nobody.
    """
    record = records.latest(record)
    if record.removed:
        return
    with contextlib.ExitStack() as stack:
        try:
            executor = stack.enter_context(contextlib.closing(reach(record)))
            executor.wake()
            look = executor.status(record.run_id)
        except OnAnotherMachine:
            raise
        except (ConnectionBroken, ExecutorUnavailable) as error:
            if not discard:
                raise _unreached(record, error) from error
            _give_up(record, error, say)
            return
        if look.state is not None and not look.state.final:
            say(f"ending run {record.run_id}, which was started in {record.root}")
            executor.kill(record.run_id)
        if not discard and not (record.outputs.status.final and record.collected):
            record = records.save(_observe(record, executor, say, collect=True))
            if look.state is not None and not record.collected:
                raise _uncollected(record, executor)
        executor.cleanup(record.run_id)
    outputs = replace(record.outputs, log_path=str(records.log_file(record)))
    if not outputs.status.final:
        outputs = replace(outputs, status=State.KILLED, reason="killed")
    records.save(replace(record, outputs=outputs, removed=True, removed_at=records.now()))
    _release(record)


def reach(record: Record) -> Executor:
    """Return the live executor of a run.

    Raises what `executors.connect` does; `OnAnotherMachine` says how to go on.
    """
    try:
        return executors.connect(record.spec, record.place)
    except OnAnotherMachine as error:
        raise OnAnotherMachine(
            f"run {record.run_id} is on {error.message}: not reached from here",
            next_step=f"repeat it there, or give the run up with `coding-agent destroy {record.stack} --discard`",
        ) from None


def _unreached(record: Record, error: CodingAgentError) -> CodingAgentError:
    """Return the error with both ways on: to repeat it, and to do without the target."""
    step = error.next_step or "see that it can be reached"
    give_up = f"`coding-agent destroy {record.stack} --discard` gives the run up, with what is there"
    return type(error)(error.message, next_step=f"{step}, then repeat this; {give_up}")


def _uncollected(record: Record, executor: Executor) -> InvalidInput:
    missing = outcome.screen(record).missing
    where = f"{executor.run_dir(record.run_id)} on {executor.name}"
    give_up = f"`coding-agent destroy {record.run_id} --discard` gives it up"
    said = "; ".join(record.outputs.notices)
    return InvalidInput(
        f"run {record.run_id} has work that is on its target alone: {said}",
        next_step=f"make {', '.join(missing)} readable here and repeat this; {give_up}"
        if missing
        else f"look at {where}; {give_up}",
    )


def _give_up(record: Record, error: CodingAgentError, say: Say) -> None:
    """Write down that a run's target does not answer, and that nobody is to ask it again."""
    lost = f"given up: {error.message}; what it left on {record.outputs.executor} is removed by nobody"
    say(f"run {record.run_id} is {lost}")
    outputs = replace(record.outputs, notices=(*record.outputs.notices, lost))
    if not outputs.status.final:
        outputs = replace(outputs, status=State.LOST, reason=GIVEN_UP, detail=error.message)
    records.save(replace(record, outputs=outputs, removed=True, removed_at=records.now()))
    _release(record)


def _given_back(record: Record, say: Say) -> Record:
    """Give back what costs, once all that the run made is here. Where that fails it is said: the next look tries it."""
    final = record.outputs.status.final and record.collected
    if record.removed or not final or not executors.gives_back(record.spec):
        return record
    notices = tuple(each for each in record.outputs.notices if not each.startswith(NOT_GIVEN_BACK))
    try:
        executors.give_back(record.spec, record.run_id)
    except CodingAgentError as error:
        said = f"{NOT_GIVEN_BACK} {error.message}; its server costs until it is"
        say(said)
        return records.save(record.with_outputs(replace(record.outputs, notices=(*notices, said))))
    outputs = replace(record.outputs, notices=notices, log_path=str(records.log_file(record)))
    say(f"the server of run {record.run_id} is given back: its work is here")
    record = records.save(replace(record, outputs=outputs, removed=True, removed_at=records.now()))
    _release(record)
    return record


def _release(record: Record) -> None:
    """Let go of the commit that was made of uncommitted work: nothing can land on it any more."""
    if record.lands and record.base:
        from coding_agent import repository

        repository.release(Path(record.root), record.base)


def _new(task: Task, run_id: str, project: str, stack: str, spec: ExecutorSpec, executor: Executor) -> Record:
    return Record(
        run_id=run_id,
        task=task.name,
        project=project,
        stack=stack,
        root=str(task.root),
        executor=asdict(spec),
        outputs=Outputs(
            status=State.PROVISIONING,
            executor=spec.name,
            run_id=run_id,
            notices=executors.unenforced(spec, task),
            coding_agent_version=__version__,
        ),
        kind="agent" if task.prompt is not None else "command",
        description=task.description,
        labels=task.labels,
        secrets=dict.fromkeys(task.secrets, ""),
        artifacts=task.artifacts,
        file=str(task.source.absolute()),
        digest=task.digest,
        image=executors.image(spec, task) or "",
        gpus=gpus.chosen(task),
        branch=task.branch,
        lands=task.repo is not None and task.repo.path,
        place=dict(executor.place),
        created_at=records.now(),
    )


def begin(record: Record, executor: Executor, say: Say, stop: threading.Event) -> Record:
    """Wait until the agent of a run that was started has begun, or until `stop`; return the record as it is then."""
    stage = ""
    for _ in _rounds(stop, BEGIN_POLL):
        try:
            look = executor.status(record.run_id)
        except ConnectionBroken:
            break  # it was started: what follows says that it is not to be reached
        if look.state is not State.STARTING:
            break
        if look.meta and look.meta.stage != stage:
            stage = look.meta.stage
            if stage in ("workspace", "setup"):
                say(f"stage: {stage}")
    return observe(record, say=say)


def _observe(record: Record, executor: Executor, say: Say, collect: bool) -> Record:
    look = executor.status(record.run_id)
    if look.state is State.LOST and (look.meta is None or not look.meta.final):
        # Both locks are free: what it left can be saved, and its end be written, in its supervisor's place.
        executor.kill(record.run_id, reason=look.reason or "lost")
        look = replace(executor.status(record.run_id), refused=look.refused)
    if look.state is None:
        record = records.latest(record)
        if record.removed:
            return record  # by somebody else, while we looked
        if record.outputs.status.final:
            return replace(record, collected=True)
        gone = replace(record.outputs, status=State.LOST, reason=look.reason or "not_on_target")
        return replace(record.with_outputs(gone), collected=True)
    screen = outcome.screen(record)
    log, whole = _log_tail(record, executor, look)
    record = record.with_outputs(outcome.measure(record, look, log, whole, screen, log_path(record, executor, look)))
    if look.meta and look.meta.base and not record.base:
        record = replace(record, base=look.meta.base)
    if collect and record.outputs.status.final and not record.collected:
        record = bring_back(record, executor, look, screen, say)
    return record


def _usage(record: Record, executor: Executor) -> ProcessUsage | None:
    look = executor.status(record.run_id, usage=True)
    if look.state not in (State.STARTING, State.RUNNING, State.UNRESPONSIVE):
        return None
    ticks, uptime = (records.load(record.run_id) or record).cpu_seen
    if look.uptime - uptime < SHORTEST_SPAN or look.ticks < ticks or not uptime:
        begun = look.meta.started_at if look.meta and look.meta.started_at else look.now
        ticks, uptime = 0, look.uptime - max(look.now - begun, 0.0)
    elapsed = max(look.uptime - uptime, 0.01)
    cpu = (look.ticks - ticks) / look.ticks_per_second / elapsed * 100
    records.save(replace(records.load(record.run_id) or record, cpu_seen=(look.ticks, look.uptime)))
    return ProcessUsage(cpu=round(cpu, 1), mem=round(look.resident / 1e6, 1), processes=look.processes)


def _looks(
    record: Record, executor: Executor, follower: Follower, tell: Say, say: Say, stop: threading.Event, poll: float
) -> Iterator[Look]:
    """Tell what is new in the log, and yield a look at the run in every third round; `say` is told what hinders that.

    A connection that breaks is tried again, as long as `Patience` lasts; then nothing more is yielded.
    """
    patience = Patience(say)
    for number in _rounds(stop, poll):
        try:
            for line in follower.new_lines():
                tell(line)
            look = executor.status(record.run_id) if number % 3 == 0 or follower.renderer.result_seen else None
        except OnAnotherMachine:
            raise
        except TargetGone:
            return
        except ConnectionBroken as error:
            if not patience.lasts(error):
                return
            continue
        if look is not None:
            patience.rewarded()
            yield look


def _log_tail(record: Record, executor: Executor, look: Look) -> tuple[bytes, bool]:
    start = max(0, look.log_size - outcome.TAIL)
    return executor.read(record.run_id, executor.log_file(record.kind), offset=start, limit=outcome.TAIL), start == 0


def _rounds(stop: threading.Event, poll: float) -> Iterator[int]:
    number = 0
    while not stop.is_set():
        yield number
        number += 1
        stop.wait(poll)
