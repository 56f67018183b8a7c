"""The engine that is a systemd unit: systemd runs it, we say when.

Started and stopped through `systemctl`, so that a unit with `Restart=always` stays down after our stop. A unit that
dies while it serves is a crash at once, also if systemd brings it back: what is kept is one belief per unit, not two.
How the commands are called is in `systemctl`, what the states mean in `unit_run`, the wait for ready in `starting`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection

from enginerouter.command import Said
from enginerouter.config.engines import EngineSettings, SystemdUnit
from enginerouter.engines import ports, proctree
from enginerouter.engines.base import Ended, Found, OnExit
from enginerouter.engines.child import wait_gone
from enginerouter.engines.directory import SlotDirectory
from enginerouter.engines.launch import KILL_TIMEOUT_S, address_of, is_container_client, ready_rule
from enginerouter.engines.probe import Prober, gap_s
from enginerouter.engines.proctree import ProcessKey, Snapshot
from enginerouter.engines.starting import (
    LINES_SEARCHED,
    admit,
    port_taken,
    wait_ready,
    warm_up,
    with_cause,
)
from enginerouter.engines.systemctl import CALL_TIMEOUT_S, Systemctl, UnitState
from enginerouter.engines.unit_run import (
    STOPPED,
    UnitPlace,
    UnitRun,
    autopsy,
    end_in_words,
    quoted,
    said_or_state,
    unit_pids,
    why_not_startable,
)
from enginerouter.errors import EngineCrashed, FreeFailed, NotBuilt, StartFailed
from enginerouter.slots import SlotId
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

_LONGEST_LOOK_S = 0.5
# When it is looked for before a swap: one that is slow to answer counts as not ready.
_LOOK_PROBE_TIMEOUT_S = 0.5
_CRASH_JOURNAL_TIMEOUT_S = 0.2


class SystemdUnitEngine:
    """See `engines.base.Engine`. `call_timeout_s` bounds each call of `systemctl`."""

    def __init__(
        self,
        settings: SystemdUnit,
        directory: SlotDirectory,
        *,
        warmup_model: str | None = None,
        call_timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self._directory = directory
        self._tasks = TaskGroup()
        self._prober = Prober({}, None)
        self._systemctl = Systemctl(settings.unit, settings.scope, timeout_s=call_timeout_s)
        self._slot = SlotId(settings.name)
        self.configure(settings, warmup_model=warmup_model)
        # The run that we started or took over, until it is seen to be gone.
        self._run: UnitRun | None = None
        # What systemd last said; somebody else may have started the unit.
        self._seen = UnitState()
        self._ended: list[Ended] = []
        self._on_exit: OnExit | None = None
        directory.add(self)

    @property
    def name(self) -> str:
        return self._settings.name

    def address(self, slot: SlotId) -> str:
        return self._place.address

    def configure(
        self, settings: EngineSettings, *, warmup_model: str | None = None, models: Collection[str] = ()
    ) -> None:
        assert isinstance(settings, SystemdUnit), settings.type
        self._settings = settings
        self._warmup_model = warmup_model or settings.name
        self._prober.configure(settings.control_headers, settings.api_key)
        address, host, port = address_of(settings, 0)
        self._place = UnitPlace(self._slot, address, host, port, ready_rule(settings, address))

    def watch(self, on_exit: OnExit) -> None:
        self._on_exit = on_exit

    async def log_tail(self, slot: SlotId, lines: int = 100) -> list[str]:
        """The last lines of the unit in the journal. For admins: as the engine wrote them."""
        return list((await self._systemctl.journal(lines)).printed)

    # --- the steps of a swap --------------------------------------------------------------------------------

    async def check(self, slot: SlotId, leaving: Collection[SlotId]) -> None:
        self._only(slot)
        problem = await self._systemctl.missing_manager()
        if problem is not None:
            raise StartFailed(self.name, f"engine {self.name!r} cannot be started: {problem}")
        self._usable(await self._show())
        use = await self._directory.use_of(self._place.host, self._place.port)
        admit(self._place, use, {*leaving, slot})

    async def start(self, slot: SlotId) -> None:
        """A unit that is up already, or that systemd is just restarting, is waited for: nothing starts twice."""
        self._only(slot)
        self._let_go()
        before = self._usable(await self._show())
        admit(self._place, await self._directory.use_of(self._place.host, self._place.port), {slot})
        if before.is_down:
            # Also forgets how often it was started lately: swaps are no reason for systemd to refuse.
            await self._systemctl.reset_failed()
        run = self._run = self._new_run(before, time.time())
        said = await self._systemctl.start()
        if not said.is_ok:
            raise StartFailed(self.name, f"engine {self.name!r} could not be started: {said.problem()}")
        run.begin()
        starting = UnitStarting(self, run)
        limit_s = self._settings.start_timeout_s
        await wait_ready(starting, self._prober, limit_s, self._tasks)
        if self._settings.warmup:
            await warm_up(starting, self._prober, self._warmup_model, limit_s, self._tasks)
        run.is_ready = True

    async def stop(self, slot: SlotId) -> None:
        run = self._run
        if run is None:
            return
        run.is_stopping = True
        deadline = asyncio.get_running_loop().time() + self._settings.stop_timeout_s
        said = await self._systemctl.stop()
        if not said.is_ok and await self._what_is_left(run) is not None:
            raise FreeFailed(self.name, f"engine {self.name!r} could not be stopped: {said.problem()}")
        if await self._wait_gone(run, deadline) is not None:
            log.warning("engine %r: unit %r is killed: it did not stop in time", self.name, self._settings.unit)
            await self._kill(run)
        self._let_go()

    async def held_bytes(self, slot: SlotId) -> int | None:
        run = self._run
        if run is None:
            return 0
        if self._is_container(run):
            return None  # only the client is in the unit; the memory is in a tree of the container's daemon
        keys = await asyncio.to_thread(run.alive)
        return await asyncio.to_thread(proctree.held_bytes, keys) if keys else None

    async def stopped_state(self, slot: SlotId) -> str | None:
        run = self._run
        if run is None or run.ended.done():
            return f"its unit {self._settings.unit!r} is not running"
        if run.main is None:
            return None
        return await asyncio.to_thread(proctree.stopped_state, run.main, run.listeners)

    async def close(self) -> None:
        self._directory.remove(self)
        self._let_go()
        await self._tasks.close()
        await self._prober.close()

    # --- at start-up ----------------------------------------------------------------------------------------

    async def adopt(self) -> list[SlotId]:
        """The unit, if it is up and ready, whoever started it; one that is not ready in time is stopped."""
        problem = await self._systemctl.missing_manager()
        if problem is not None:
            log.warning("engine %r: %s", self.name, problem)
            return []
        state = await self._show()
        if isinstance(state, Said):
            if state.hung:  # it may be running: nothing is started on top of it
                raise FreeFailed(self.name, f"engine {self.name!r}: {state.problem()}")
            log.warning("engine %r: %s", self.name, state.problem())
            return []
        if state.is_down:
            return []
        run = self._run = self._new_run(state, time.time())
        run.note(state)
        run.begin()
        if await self._is_fit(run) or await self._becomes_ready(run):
            run.is_ready = True
            log.info("engine %r: unit %r is running and ready", self.name, self._settings.unit)
            return [self._slot]
        if not state.can_stop:
            raise FreeFailed(
                self.name,
                f"engine {self.name!r}: unit {self._settings.unit!r} runs, is not ready, and refuses to be stopped "
                "(`RefuseManualStop=`): stop it by other means",
            )
        log.info("engine %r: unit %r runs but is not ready: it is stopped", self.name, self._settings.unit)
        keys = await asyncio.to_thread(run.alive)
        ended = Ended(self._slot, await self.held_bytes(self._slot), frozenset(key.pid for key in keys))
        await self.stop(self._slot)
        self._ended.append(ended)
        return []

    def take_ended(self) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    async def _is_fit(self, run: UnitRun) -> bool:
        """Ready and listening. A busy engine may be slow to say so: it is asked twice."""
        place = self._place
        for _ in range(2):
            answer = await self._prober.probe(place.ready, place.host, place.port, place.ready.probe_timeout_s)
            if answer.is_ready:
                return await self.listens_there(run) is not False and not run.ended.done()
        return False

    async def _becomes_ready(self, run: UnitRun) -> bool:
        """Wait for a unit that was started a moment before the router: both may be, when somebody logs in."""
        up_s = time.monotonic() - run.state.started_at if run.state.started_at else 0.0
        left_s = self._settings.start_timeout_s - up_s
        if left_s <= 0.0:
            return False
        unit = self._settings.unit
        log.info("engine %r: unit %r runs but is not ready: it has another %.0f s", self.name, unit, left_s)
        try:
            await wait_ready(UnitStarting(self, run), self._prober, left_s, self._tasks)
        except StartFailed as error:
            log.warning("%s", error.message)
            return False
        return True

    async def in_memory(self) -> list[Found]:
        """The unit, if somebody else has started it. One that is not ready yet holds memory all the same."""
        if self._run is not None or await self._systemctl.missing_manager() is not None:
            return []
        state = await self._show()
        if isinstance(state, Said):
            if state.hung:
                raise FreeFailed(self.name, f"engine {self.name!r}: {state.problem()}")
            return []
        if state.is_down or self._run is not None:
            return []
        run, place = self._new_run(state, time.time()), self._place
        run.note(state)
        run.begin()
        try:
            answer = await self._prober.probe(place.ready, place.host, place.port, _LOOK_PROBE_TIMEOUT_S)
            run.is_ready = answer.is_ready and await self.listens_there(run) is not False and not run.ended.done()
        except BaseException:
            run.close()
            raise
        if self._run is not None:
            run.close()
            return []
        self._run = run
        return [Found(self._slot, run.is_ready)]

    # --- for the directory ----------------------------------------------------------------------------------

    def processes_of_slots(self, processes: Snapshot) -> dict[SlotId, set[int]]:
        run, seen = self._run, self._seen
        if run is not None:
            return {self._slot: unit_pids(run.control_group, run.main, processes)}
        if seen.is_down:
            return {}
        main = processes.get(seen.main_pid)
        return {self._slot: unit_pids(seen.control_group, main.key if main is not None else None, processes)}

    def slots_at(self, port: int) -> set[SlotId]:
        is_up = self._run is not None or not self._seen.is_down
        return {self._slot} if is_up and port == self._place.port else set()

    # --- for the wait until it is ready ---------------------------------------------------------------------

    async def listens_there(self, run: UnitRun) -> bool | None:
        """Do the unit's processes, and nobody else, listen at its port? None where that cannot be told."""
        if self._is_container(run):
            return None
        # It may answer before its group was heard of, or fork between the look at processes and at sockets.
        for look in range(3):
            if look > 0 or not run.control_group:
                said = await self._show()
                if isinstance(said, Said):
                    return None  # its port was free before; who belongs to it only systemd can tell
                run.note(said)
            among = {key.pid for key in await asyncio.to_thread(run.alive)}
            listening = await asyncio.to_thread(ports.who_listens, self._place.host, self._place.port, among)
            if listening.is_all_ours:
                run.listeners = listening.ours
                return True
        return listening.is_all_ours

    async def why_it_ended(self, run: UnitRun) -> StartFailed:
        cause, detail = await autopsy(self._systemctl, run.state, run.since)
        if cause is None or cause.code == "port_in_use":
            holder = await asyncio.to_thread(ports.holder_of, self._place.host, self._place.port)
            if holder is not None and not holder.pids & {key.pid for key in await asyncio.to_thread(run.alive)}:
                taken = port_taken(self._place, holder)
                taken.admin_detail = detail
                return taken
        seconds = asyncio.get_running_loop().time() - run.started_at
        message = f"engine {self.name!r}: {self._end_of(run)}, {seconds:.1f} s after its start"
        code = cause.code if cause is not None else None
        return StartFailed(self.name, with_cause(message, cause), cause=code, admin_detail=detail)

    async def quote(self, run: UnitRun) -> str:
        return quoted(await self._systemctl.journal(LINES_SEARCHED, run.since))

    # --- parts ----------------------------------------------------------------------------------------------

    def _only(self, slot: SlotId) -> None:
        if slot.model is not None:
            raise NotBuilt(f"engine {self.name!r} is one unit and has no models of its own to load: {str(slot)!r}")

    def _is_container(self, run: UnitRun) -> bool:
        return is_container_client(run.state.program)

    def _end_of(self, run: UnitRun) -> str:
        if run.is_silent:
            return f"unit {self._settings.unit!r}, {run.state}, stopped listening at port {self._place.port}"
        return f"unit {self._settings.unit!r} {end_in_words(run.state)}"

    def _new_run(self, before: UnitState, since: float) -> UnitRun:
        return UnitRun(
            self._place, self._systemctl, before, since, self._tasks, self._ended_by_itself, self.listens_there
        )

    def _let_go(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.close()

    async def _show(self) -> UnitState | Said:
        said = await self._systemctl.show()
        if isinstance(said, UnitState):
            self._seen = said
        return said

    def _usable(self, said: UnitState | Said) -> UnitState:
        """Raise StartFailed for a unit that could not be started, or not be stopped again."""
        if isinstance(said, Said):
            raise StartFailed(self.name, f"engine {self.name!r} cannot be started: {said.problem()}")
        unit, scope = self._settings.unit, self._settings.scope
        begin = f"engine {self.name!r} cannot be started: unit {unit!r}"
        if (problem := why_not_startable(said, unit, scope)) is not None:
            is_missing = said.load == "not-found"
            hint = ": correct `unit` or `scope`, or run `systemctl daemon-reload`" if is_missing else ""
            raise StartFailed(self.name, f"{begin} {problem}{hint}", cause="file_missing" if is_missing else None)
        if not said.can_stop:
            raise StartFailed(self.name, f"{begin} refuses to be stopped by others (`RefuseManualStop=`)")
        return said

    async def _wait_gone(self, run: UnitRun, deadline: float) -> str | None:
        """Until nothing of it is left. What still is when the time is up, in words."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while (left := await self._what_is_left(run)) is not None:
            now = loop.time()
            if now >= deadline:
                return left
            keys = await asyncio.to_thread(run.alive)
            if keys:
                await wait_gone(keys, self._tasks, min(deadline - now, _LONGEST_LOOK_S))
            else:
                await asyncio.sleep(min(deadline - now, gap_s(now - began)))
        return None

    async def _what_is_left(self, run: UnitRun) -> str | None:
        """None if systemd says that it is down, no process is left and, of a container, the port is closed."""
        said = await self._show()
        keys: set[ProcessKey] = await asyncio.to_thread(run.alive)
        if isinstance(said, Said) or not said.is_down:
            pids = ", ".join(str(key.pid) for key in sorted(keys))
            return said_or_state(said) + (f", process {pids} is still there" if pids else "")
        if keys:
            return f"process {', '.join(str(key.pid) for key in sorted(keys))} is still there"
        if self._is_container(run):
            holder = await asyncio.to_thread(ports.holder_of, self._place.host, self._place.port)
            if holder is not None:
                return f"port {self._place.port} is still open: its container may be running on"
        return None

    async def _kill(self, run: UnitRun) -> None:
        said = await self._systemctl.kill()
        if not said.is_ok:
            log.warning("engine %r: %s", self.name, said.problem())
        deadline = asyncio.get_running_loop().time() + KILL_TIMEOUT_S
        left = await self._wait_gone(run, deadline)
        if left is not None:
            raise FreeFailed(
                self.name, f"engine {self.name!r} would not stop: unit {self._settings.unit!r} was killed, but {left}"
            )

    def _ended_by_itself(self, run: UnitRun) -> None:
        self._tasks.spawn(self._tell_crash(run), f"crash of {self.name}")

    async def _tell_crash(self, run: UnitRun) -> None:
        cause, detail, was_stopped = None, "the journal did not answer in time", False
        # Its requests are broken already: they wait for this, the journal may take its time later.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CRASH_JOURNAL_TIMEOUT_S):
                was_stopped = await run.was_stopped()
                cause, detail = await autopsy(self._systemctl, run.state, run.since)
        end = f"unit {self._settings.unit!r} {STOPPED}" if was_stopped else self._end_of(run)
        message = f"engine {self.name!r}: {end} while it served"
        if not was_stopped:
            message = with_cause(message, cause)
        error = EngineCrashed(self.name, message, admin_detail=detail, was_stopped=was_stopped)
        if not run.is_stopping:
            log.warning("%s", error)
            if self._on_exit is not None:
                self._on_exit(self._slot, error)


class UnitStarting:
    """See `starting.Starting`."""

    def __init__(self, engine: SystemdUnitEngine, run: UnitRun) -> None:
        self._engine = engine
        self._run = run
        self.place = run.place
        self.started_at = run.started_at
        self.ended = run.ended

    async def listens_there(self) -> bool | None:
        return await self._engine.listens_there(self._run)

    async def why_it_ended(self) -> StartFailed:
        return await self._engine.why_it_ended(self._run)

    async def last_words(self) -> str:
        return await self._engine.quote(self._run)
