"""From a fresh start to a ready engine: ask at the right pace, see that the right one answers, say why it failed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from enginerouter.engines import causes, ports, proctree
from enginerouter.engines.child import Child
from enginerouter.engines.directory import PortUse
from enginerouter.engines.probe import Answer, Prober, ReadyRule, gap_s
from enginerouter.errors import EngineCrashed, PortTaken, StartFailed, StartTimedOut, printable
from enginerouter.slots import SlotId
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

# The root cause of a failure in a worker process is far above the last line.
LINES_SEARCHED = 400
_LINES_QUOTED = 20
_LOOK_AFTER_WARM_UP_S = 0.5


class Place(Protocol):
    """Where a slot is to answer."""

    @property
    def slot(self) -> SlotId: ...
    @property
    def address(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def ready(self) -> ReadyRule: ...


class Starting(Protocol):
    """What is to become ready: a child of ours, or something that others run for us."""

    @property
    def place(self) -> Place: ...
    @property
    def started_at(self) -> float: ...

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done as soon as it cannot become ready any more."""

    async def listens_there(self) -> bool | None:
        """Does it, and nobody else, listen at its place? None where that cannot be told."""

    async def why_it_ended(self) -> StartFailed: ...

    async def last_words(self) -> str:
        """The end of its log, for admins."""


class ChildStarting:
    """See `Starting`."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.place = child.launch
        self.started_at = child.started_at
        self.ended = child.exited

    async def listens_there(self) -> bool | None:
        return await listens_there(self._child)

    async def why_it_ended(self) -> StartFailed:
        return await died_starting(self._child)

    async def last_words(self) -> str:
        return await _quote(self._child)


async def wait_ready(starting: Starting, prober: Prober, timeout_s: float, tasks: TaskGroup) -> None:
    """Return when it is ready. Raises StartFailed the moment it ends, PortTaken, or StartTimedOut."""
    loop = asyncio.get_running_loop()
    place, ended = starting.place, starting.ended
    deadline = starting.started_at + timeout_s
    was_seen = False
    answer = Answer(False, False, "nothing")
    while not ended.done():
        left_s = deadline - loop.time()
        if left_s <= 0:
            raise await timed_out(starting, timeout_s, answer)
        found = await _probe_while_alive(starting, prober, left_s, tasks)
        if found is None:
            break
        was_cut_short = left_s < place.ready.probe_timeout_s and not found.answered
        if not (was_cut_short and answer.answered):
            answer = found  # one that the deadline cut short says less than the one before
        if answer.answered and (answer.is_ready or not was_seen):
            was_seen = True
            if await starting.listens_there() is False and not ended.done():
                raise port_taken(place, await asyncio.to_thread(_holder, place))
        if answer.is_ready and not ended.done():
            return
        now = loop.time()
        pause_s = min(gap_s(now - starting.started_at), max(0.0, deadline - now))
        await asyncio.wait([ended], timeout=pause_s)
    raise await starting.why_it_ended()


async def _probe_while_alive(starting: Starting, prober: Prober, left_s: float, tasks: TaskGroup) -> Answer | None:
    """One probe; None if it ended first."""
    place, ended = starting.place, starting.ended
    timeout_s = min(place.ready.probe_timeout_s, left_s)
    probe = tasks.spawn(prober.probe(place.ready, place.host, place.port, timeout_s), f"probe {place.slot}")
    either: list[asyncio.Future[Any]] = [probe, ended]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not probe.done():
            probe.cancel()
    return probe.result() if probe.done() and not ended.done() else None


async def warm_up(starting: Starting, prober: Prober, model: str, limit_s: float, tasks: TaskGroup) -> None:
    """One tiny request. An engine that refuses it (an embedder, say) is ready all the same; one that dies, not."""
    place, ended = starting.place, starting.ended
    asking = tasks.spawn(prober.warm_up(place.address, model, limit_s), f"warm up {place.slot}")
    try:
        either: set[asyncio.Future[Any]] = {asking, ended}
        await asyncio.wait(either, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done() or asking.result().status == 0:
            # The connection of one that dies breaks a moment before its end is seen.
            await asyncio.wait([ended], timeout=_LOOK_AFTER_WARM_UP_S)
        if ended.done():
            raise await starting.why_it_ended()
        said = asking.result().outcome if asking.done() else "no answer in time"
        log.info("engine %r: warm-up: %s", place.slot.engine, said)
    finally:
        asking.cancel()


async def listens_there(child: Child) -> bool | None:
    """Does the child's tree, and nobody else, listen at its port? None where that cannot be told.

    Of a container only its client is in the tree; there the port was free before, and the child lives.
    """
    launch = child.launch
    if launch.is_container:
        return None
    belongs: bool | None = None
    # Usually the leader listens. A worker may have been forked between the look at processes and at sockets.
    for pids in (_leader, _tree, _tree):
        among = await pids(child)
        listening = await asyncio.to_thread(ports.who_listens, launch.host, launch.port, among)
        belongs = listening.is_all_ours
        if belongs:
            child.listeners = listening.ours
            return True
    return belongs


async def _leader(child: Child) -> Collection[int]:
    return {child.leader.pid}


async def _tree(child: Child) -> Collection[int]:
    return {key.pid for key in await child.tree.alive()}


# --- what to say --------------------------------------------------------------------------------------------


def admit(place: Place, use: PortUse | None, allowed: Collection[SlotId]) -> None:
    """Raise PortTaken unless the port is free, or held only by what will be gone or may be ended."""
    if use is None:
        return
    staying = [slot for slot in use.slots if slot not in allowed]
    if staying:
        raise port_taken(place, None, f"engine {str(staying[0])!r}, which stays")
    if use.strangers or use.is_unknown:
        raise port_taken(place, use.holder)


def port_taken(place: Place, holder: ports.Holder | None, instead: str = "") -> PortTaken:
    engine = place.slot.engine
    who = instead or str(holder or "an unknown process")
    return PortTaken(
        engine,
        f"port {place.port} of engine {engine!r} is held by {who}: end it, or give the engine another port",
        cause="port_in_use",
    )


async def died_starting(child: Child) -> StartFailed:
    """What to raise for a child that ended before it was ready."""
    launch = child.launch
    engine = launch.slot.engine
    status, cause, detail = await _autopsy(child)
    if status != 0 and (cause is None or cause.code == "port_in_use") and not launch.is_container:
        holder = await asyncio.to_thread(_holder, launch)
        if holder is not None and not holder.pids & {key.pid for key in await child.tree.alive()}:
            taken = port_taken(launch, holder)
            taken.admin_detail = detail
            return taken
    seconds = asyncio.get_running_loop().time() - child.started_at
    message = f"{_who(launch.slot)} {causes.exit_in_words(status)}, {seconds:.1f} s after its start"
    if status == 0:
        message += "; a program that goes to the background cannot be supervised: run it in the foreground"
    message = with_cause(message, cause, is_profile=launch.slot.model is not None)
    return StartFailed(engine, message, cause=cause.code if cause else None, admin_detail=detail)


async def timed_out(starting: Starting, timeout_s: float, answer: Answer) -> StartTimedOut:
    place = starting.place
    return StartTimedOut(
        place.slot.engine,
        f"{_who(place.slot)} was not ready within {timeout_s:g} s "
        f"(asked {place.ready.url or place.address}, saw: {answer.saw}); "
        "give it a longer `start_timeout_s`, or correct `ready_path` or `ready_check`",
        admin_detail=await starting.last_words(),
    )


async def crashed(child: Child) -> EngineCrashed:
    engine = child.launch.slot.engine
    status, cause, detail = await _autopsy(child)
    doing = "slept" if child.is_asleep else "served"
    message = f"{_who(child.launch.slot)} {causes.exit_in_words(status)} while it {doing}"
    message = with_cause(message, cause, is_profile=child.launch.slot.model is not None)
    return EngineCrashed(engine, message, admin_detail=detail)


async def fell_silent(child: Child) -> EngineCrashed:
    """What to say of a child that lives while what it served with is gone, or has closed the port."""
    launch = child.launch
    _, cause, detail = await _autopsy(child)
    message = f"{_who(launch.slot)} does not listen at port {launch.port} any more"
    if alive := [pid for pid in sorted(child.listeners) if proctree.is_running(pid)]:
        message += f", although its process {', '.join(map(str, alive))} lives"
    else:
        message += "; of it only what started it is left"
    message = with_cause(message, cause, is_profile=launch.slot.model is not None)
    return EngineCrashed(launch.slot.engine, message, admin_detail=detail)


async def _autopsy(child: Child) -> tuple[int | None, causes.Cause | None, str]:
    """Exit status, recognised cause, and the log's end for admins."""
    status = child.exit_status()
    lines = await child.log.tail(LINES_SEARCHED, child.mark)
    cause = await asyncio.to_thread(causes.recognise, lines, status)
    if cause is None and child.was_killed_for_memory():
        cause = causes.OUT_OF_MEMORY
    return status, cause, _quoted(child, lines)


async def _quote(child: Child) -> str:
    return _quoted(child, await child.log.tail(_LINES_QUOTED, child.mark))


def _quoted(child: Child, lines: list[str]) -> str:
    if not lines:
        return f"it printed nothing to {child.log.path}"
    return quote_lines(str(child.log.path), lines)


def quote_lines(source: str, lines: Sequence[str]) -> str:
    quoted = "\n".join(printable(line, 500) for line in lines[-_LINES_QUOTED:])
    return f"last lines of {source}:\n{quoted}"


def with_cause(message: str, cause: causes.Cause | None, *, is_profile: bool = False) -> str:
    if cause is None:
        return f"{message}; its log may say why"
    return f"{message}: {(is_profile and cause.of_profile) or cause.meaning}"


def _who(slot: SlotId) -> str:
    return f"engine {slot.engine!r}" if slot.model is None else f"profile {slot.model!r} of engine {slot.engine!r}"


def _holder(place: Place) -> ports.Holder | None:
    return ports.holder_of(place.host, place.port)
