"""One run of a systemd unit, from its start (or our taking over) to its end, and what its states mean for us.

`judge` is the rule, over what `systemctl show` says. `UnitRun` looks again and again – at once when the main process
ends – and sets `ended` the moment this run is over, even if systemd is already at the next one (`Restart=always`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from enginerouter.command import Said
from enginerouter.engines import causes, cgroup, proctree
from enginerouter.engines.child import ExitWatch
from enginerouter.engines.listening import LOOK_EVERY_S, has_fallen_silent
from enginerouter.engines.probe import ReadyRule, gap_s
from enginerouter.engines.proctree import ProcessKey, Snapshot
from enginerouter.engines.starting import LINES_SEARCHED, quote_lines
from enginerouter.engines.systemctl import Journal, Systemctl, UnitState
from enginerouter.slots import SlotId
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

_SHORTEST_LOOK_S = 0.05
# systemd notices a dead main process within milliseconds. If it does not say so by then, it is dead all the same.
_REAP_GRACE_S = 1.0

# Statuses that systemd itself gives to a program that it could not run (systemd.exec(5)).
_EXEC_FAILURES = {
    200: "could not enter its `WorkingDirectory=`",
    203: "has a program that cannot be executed: correct `ExecStart=`",
    216: "has a `Group=` that does not exist",
    217: "has a `User=` that does not exist",
    226: "could not get the file system view that it asks for",
}
_RESULTS = {
    "start-limit-hit": "was started too often in a short time (see `StartLimitBurst=`)",
    "oom-kill": "was killed by the kernel for lack of memory",
    "watchdog": "was ended by systemd's watchdog",
    "protocol": "did not tell systemd what its `Type=` promises",
    "resources": "could not be started by systemd for lack of resources",
}

STOPPED = "was stopped by somebody else"


@dataclass(frozen=True, slots=True)
class UnitPlace:
    """Where the unit's engine answers; see `starting.Place`."""

    slot: SlotId
    address: str
    host: str
    port: int
    ready: ReadyRule


class Judgement(Enum):
    PENDING = "pending"
    UP = "up"
    ENDED = "ended"


def allowed_restarts(before: UnitState) -> int:
    """How far systemd's count of restarts may go in a run that begins in this state.

    A start from rest begins at 0. A unit that died before and waits for its restart is waited for: one more is due.
    """
    if before.is_down:
        return 0
    return before.restarts + (1 if before.is_being_restarted else 0)


def judge(state: UnitState, allowed: int, seen: UnitState | None) -> Judgement:
    """`seen`: the last state of this run in which it was up, None before that.

    A unit that systemd restarts has died: this run has ended, whatever the next one will do.
    """
    if seen is not None and seen.invocation and state.invocation not in ("", seen.invocation):
        return Judgement.ENDED
    if state.restarts > allowed or state.is_down:
        return Judgement.ENDED
    if state.is_being_restarted:
        # systemd counts a restart when it queues it, a moment before the unit leaves this state.
        is_awaited = seen is None and (state.restarts < allowed or state.has_job)
        return Judgement.PENDING if is_awaited else Judgement.ENDED
    if state.active == "deactivating" and (seen is not None or not state.has_job):
        return Judgement.ENDED
    if state.active in ("inactive", "failed", "deactivating"):
        return Judgement.PENDING if seen is None else Judgement.ENDED
    return Judgement.UP


def end_in_words(state: UnitState) -> str:
    """Why a unit is no longer up, to follow its name."""
    if not state.is_condition_met:
        return "was not started: one of its conditions (`Condition…=`) is not met"
    if state.result in _RESULTS:
        return _RESULTS[state.result]
    if state.exit in _EXEC_FAILURES:
        return f"{_EXEC_FAILURES[state.exit]} (status {state.exit})"
    if state.was_stopped:
        return STOPPED
    if state.is_forgotten:
        return "ended in good order, by itself or because somebody stopped it"
    return causes.exit_in_words(state.exit)


def why_not_startable(state: UnitState, unit: str, scope: str) -> str | None:
    """What keeps systemd from starting a unit when asked, to follow its name; None if nothing does."""
    if state.load == "not-found":
        return f"does not exist in the {scope} scope"
    if state.load != "loaded":
        return f"is {state.load} (see `systemctl status {unit}`)"
    return None if state.can_start else "refuses to be started by others (`RefuseManualStart=`)"


async def autopsy(systemctl: Systemctl, state: UnitState, since: float) -> tuple[causes.Cause | None, str]:
    """Of a run that began at `since` (wall clock): recognised cause, and the end of the journal for admins."""
    journal = await systemctl.journal(LINES_SEARCHED, since)
    cause = await asyncio.to_thread(causes.recognise, journal.printed, state.exit)
    if cause is None and state.result == "oom-kill":
        cause = causes.OUT_OF_MEMORY
    return cause, quoted(journal)


def quoted(journal: Journal) -> str:
    return quote_lines(journal.source, journal.lines) if journal.lines else f"nothing of it in {journal.source}"


def unit_pids(control_group: str, main: ProcessKey | None, processes: Snapshot) -> set[int]:
    """The living processes of a unit: those of its control group, and the main one with what descends from it."""
    found = cgroup.members(control_group, processes)
    if main is not None:
        found |= {key.pid for key in proctree.members(processes, "", {main})}
    return {pid for pid in found if processes[pid].is_alive}


class UnitRun:
    """`on_end` is called once, from the loop, when a run that was ready ends and nobody stopped it.

    `listens_there` tells whether the unit's own processes have its port, None where that cannot be told.
    """

    def __init__(
        self,
        place: UnitPlace,
        systemctl: Systemctl,
        before: UnitState,
        since: float,
        tasks: TaskGroup,
        on_end: Callable[[UnitRun], None],
        listens_there: Callable[[UnitRun], Awaitable[bool | None]],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.place = place
        self.state = before
        self.since = since
        self.started_at = loop.time()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.is_ready = False
        self.is_stopping = False
        # Nobody listens at its port any more, though systemd calls it active.
        self.is_silent = False
        # Who listens at its port, as far as that was seen when it became ready.
        self.listeners: frozenset[int] = frozenset()
        # Kept when it ends: systemd forgets the group of a unit that is down, but something may still be in it.
        self.control_group = before.control_group
        self.main: ProcessKey | None = None
        self._allowed = allowed_restarts(before)
        self._seen: UnitState | None = None
        self._systemctl = systemctl
        self._tasks = tasks
        self._on_end = on_end
        self._listens_there = listens_there
        self._watch: ExitWatch | None = None
        self._main_gone_at: float | None = None
        self._has_complained = False
        self._looking: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Look after it from now on."""
        self._looking = self._tasks.spawn(self._look_after(), f"look after unit {self._systemctl.unit}")

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._drop_watch()

    def note(self, state: UnitState) -> None:
        """Take in what `show` says."""
        self.state = state
        self.control_group = state.control_group or self.control_group
        judgement = judge(state, self._allowed, self._seen)
        if judgement is Judgement.ENDED:
            self._end()
        elif judgement is Judgement.UP:
            self._seen = state
            self._watch_main(state.main_pid)

    def alive(self) -> set[ProcessKey]:
        """Its processes now. Blocks."""
        processes = proctree.snapshot()
        return {processes[pid].key for pid in unit_pids(self.control_group, self.main, processes)}

    async def was_stopped(self) -> bool:
        """Whether it ended because somebody stopped or restarted the unit, in good order."""
        state, seen = self.state, self._seen
        is_next = seen is not None and state.active == "active" and state.invocation != seen.invocation
        if state.was_stopped or (is_next and seen is not None and state.restarts <= seen.restarts):
            return True  # systemd counts its own restarts only
        return state.is_forgotten and await self._systemctl.was_told_to_stop(self.since)

    async def _look_after(self) -> None:
        silent = 0
        while not self.ended.done():
            said = await self._systemctl.show()
            if isinstance(said, UnitState):
                self._has_complained = False
                self.note(said)
            elif not self._has_complained:
                self._has_complained = True
                log.warning("engine %r: %s", self.place.slot.engine, said.problem())
            if self._is_long_gone():
                self._end()
            silent = silent + 1 if await self._has_fallen_silent() else 0
            if silent == 2:  # a worker that is being replaced has had the time between
                self.is_silent = True
                self._end()
            if not self.ended.done():
                await self._pause()

    async def _has_fallen_silent(self) -> bool:
        """Does systemd call it active with nobody left who listens? Of a main process whose listeners cannot be told
        (a container's client) the end is waited for."""
        if not self.is_ready or self.is_stopping or self.ended.done() or self._main_gone_at is not None:
            return False
        if self.main is not None and not self.listeners:
            return False
        return await has_fallen_silent(self.place, self.listeners, lambda: self._listens_there(self))

    async def _pause(self) -> None:
        """Until the next look; the end of the main process cuts it short."""
        if self._main_gone_at is not None:
            await asyncio.sleep(0.02)
            return
        elapsed_s = asyncio.get_running_loop().time() - self.started_at
        pause_s = LOOK_EVERY_S if self.is_ready else max(_SHORTEST_LOOK_S, 2 * gap_s(elapsed_s))
        if self._watch is None:
            await asyncio.sleep(pause_s)
            return
        await asyncio.wait([self._watch.gone], timeout=pause_s)
        if self._watch is not None and self._watch.gone.done():
            self._main_gone_at = asyncio.get_running_loop().time()

    def _is_long_gone(self) -> bool:
        since = self._main_gone_at
        return since is not None and asyncio.get_running_loop().time() - since > _REAP_GRACE_S

    def _watch_main(self, pid: int) -> None:
        if pid == (self.main.pid if self.main is not None else 0):
            return
        self._drop_watch()
        self._main_gone_at = None
        info = proctree.read_process(pid, with_marker=False) if pid else None
        self.main = info.key if info is not None else None
        if self.main is not None:
            self._watch = ExitWatch(self.main, self._tasks)

    def _drop_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def _end(self) -> None:
        self._drop_watch()
        if not self.ended.done():
            self.ended.set_result(None)
            if self.is_ready and not self.is_stopping:
                self._on_end(self)


def said_or_state(said: Said | UnitState) -> str:
    """For a message: the state, or why it cannot be had."""
    return said.problem() if isinstance(said, Said) else f"systemd says {said}"
