"""From a fresh child to a ready engine: ask at the right pace, see that the right one answers, say why it failed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from enginerouter.engines import causes, ports
from enginerouter.engines.child import Child
from enginerouter.engines.launch import Launch
from enginerouter.engines.probe import Answer, Prober, gap_s
from enginerouter.errors import EngineCrashed, PortTaken, StartFailed, StartTimedOut, printable
from enginerouter.tasks import TaskGroup

# The root cause of a failure in a worker process is far above the last line.
_LINES_SEARCHED = 400
_LINES_QUOTED = 20


async def wait_ready(child: Child, prober: Prober, timeout_s: float, tasks: TaskGroup) -> None:
    """Return when the child is ready. Raises StartFailed the moment it exits, PortTaken, or StartTimedOut."""
    loop = asyncio.get_running_loop()
    deadline = child.started_at + timeout_s
    was_seen = False
    answer = Answer(False, False, "nothing")
    while not child.has_exited:
        left_s = deadline - loop.time()
        if left_s <= 0:
            raise await timed_out(child, timeout_s, answer)
        found = await _probe_while_alive(child, prober, left_s, tasks)
        if found is None:
            break
        was_cut_short = left_s < child.launch.ready.probe_timeout_s and not found.answered
        if not (was_cut_short and answer.answered):
            answer = found  # one that the deadline cut short says less than the one before
        if answer.answered and (answer.is_ready or not was_seen):
            was_seen = True
            if await listens_there(child) is False and not child.has_exited:
                raise port_taken(child.launch, await asyncio.to_thread(_holder, child.launch))
        if answer.is_ready and not child.has_exited:
            return
        now = loop.time()
        pause_s = min(gap_s(now - child.started_at), max(0.0, deadline - now))
        await asyncio.wait([child.exited], timeout=pause_s)
    raise await died_starting(child)


async def _probe_while_alive(child: Child, prober: Prober, left_s: float, tasks: TaskGroup) -> Answer | None:
    """One probe; None if the child ended first."""
    launch = child.launch
    timeout_s = min(launch.ready.probe_timeout_s, left_s)
    probe = tasks.spawn(prober.probe(launch.ready, launch.host, launch.port, timeout_s), f"probe {launch.slot}")
    either: list[asyncio.Future[Any]] = [probe, child.exited]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not probe.done():
            probe.cancel()
    return probe.result() if probe.done() and not child.has_exited else None


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


def port_taken(launch: Launch, holder: ports.Holder | None, instead: str = "") -> PortTaken:
    engine = launch.slot.engine
    who = instead or str(holder or "an unknown process")
    return PortTaken(
        engine,
        f"port {launch.port} of engine {engine!r} is held by {who}: end it, or give the engine another port",
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
    message = f"engine {engine!r} {causes.exit_in_words(status)} {seconds:.1f} s after its start"
    if status == 0:
        message += "; a program that goes to the background cannot be supervised: run it in the foreground"
    return StartFailed(engine, _with_cause(message, cause), cause=cause.code if cause else None, admin_detail=detail)


async def timed_out(child: Child, timeout_s: float, answer: Answer) -> StartTimedOut:
    launch = child.launch
    return StartTimedOut(
        launch.slot.engine,
        f"engine {launch.slot.engine!r} was not ready within {timeout_s:g} s "
        f"(asked {launch.ready.url or launch.address}, saw: {answer.saw}); "
        "give it a longer `start_timeout_s`, or correct `ready_path` or `ready_check`",
        admin_detail=await _quote(child),
    )


async def crashed(child: Child) -> EngineCrashed:
    engine = child.launch.slot.engine
    status, cause, detail = await _autopsy(child)
    message = f"engine {engine!r} {causes.exit_in_words(status)} while it served"
    return EngineCrashed(engine, _with_cause(message, cause), admin_detail=detail)


async def _autopsy(child: Child) -> tuple[int | None, causes.Cause | None, str]:
    """Exit status, recognised cause, and the log's end for admins."""
    status = child.exit_status()
    lines = await child.log.tail(_LINES_SEARCHED, child.mark)
    cause = await asyncio.to_thread(causes.recognise, lines, status)
    if cause is None and child.was_killed_for_memory():
        cause = causes.by_code("out_of_memory")
    return status, cause, _quoted(child, lines)


async def _quote(child: Child) -> str:
    return _quoted(child, await child.log.tail(_LINES_QUOTED, child.mark))


def _quoted(child: Child, lines: list[str]) -> str:
    if not lines:
        return f"it printed nothing to {child.log.path}"
    quoted = "\n".join(printable(line, 500) for line in lines[-_LINES_QUOTED:])
    return f"last lines of {child.log.path}:\n{quoted}"


def _with_cause(message: str, cause: causes.Cause | None) -> str:
    return f"{message}: {cause.meaning}" if cause else f"{message}; its log may say why"


def _holder(launch: Launch) -> ports.Holder | None:
    return ports.holder_of(launch.host, launch.port)
