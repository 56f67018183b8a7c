"""The engine that is a process: launched, watched, ended and – after a hard end of the router – adopted.

This class holds the children, by slot, and the order of steps. How a launch looks is in `launch`, the wait for ready
in `starting`, the end in `ending`, who belongs to a tree in `proctree`, who holds a port in `directory`; sleep in
place of the end in `sleeping`, what llama.cpp keeps over it in `keepslots`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from enginerouter.config.engines import EngineSettings, GenericProcess
from enginerouter.engines import adoption, keepslots, ports, proctree, sleeping
from enginerouter.engines.adoption import LaunchRecord
from enginerouter.engines.base import Ended, OnExit
from enginerouter.engines.child import Child, Tree, spawn
from enginerouter.engines.directory import SlotDirectory
from enginerouter.engines.ending import end_tree, end_wholly, ended_of, signal_number, would_not_go
from enginerouter.engines.enginelog import EngineLog, Mark
from enginerouter.engines.launch import (
    CHOSEN_HOST,
    SAVE_AT_END_TIMEOUT_S,
    Launch,
    child_environment,
    new_marker,
    plan_launch,
    problems_of,
    stop_timeout_s,
)
from enginerouter.engines.listening import LOOK_EVERY_S, has_fallen_silent
from enginerouter.engines.probe import Prober
from enginerouter.engines.proctree import ProcessKey, Snapshot
from enginerouter.engines.starting import (
    ChildStarting,
    admit,
    crashed,
    fell_silent,
    listens_there,
    port_taken,
    wait_ready,
    warm_up,
)
from enginerouter.errors import FreeFailed, NotBuilt, StartFailed, printable
from enginerouter.slots import SlotId
from enginerouter.state import StateFile
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

_LOOKS_PER_TREE_SCAN = 5


class GenericProcessEngine:
    """See `engines.base.Engine`. Made inside a running event loop or before it; `close` ends what it owns here.

    Closing leaves running children alone: stop them first, or let the next router adopt them.
    """

    def __init__(
        self,
        settings: GenericProcess,
        base_dir: Path,
        state: StateFile,
        directory: SlotDirectory,
        *,
        warmup_model: str | None = None,
    ) -> None:
        self._settings = settings
        self._warmup_model = warmup_model or settings.name
        self._base_dir = base_dir
        self._state = state
        self._directory = directory
        self._tasks = TaskGroup()
        self._prober = Prober(settings.control_headers, settings.api_key)
        self._children: dict[SlotId, Child] = {}
        self._ports: dict[SlotId, int] = {}
        self._logs: dict[Path, EngineLog] = {}
        self._ended: list[Ended] = []
        self._on_exit: OnExit | None = None
        directory.add(self)

    @property
    def name(self) -> str:
        return self._settings.name

    def address(self, slot: SlotId) -> str:
        """Port 0 where a free one will be chosen, and none has been yet."""
        if (child := self._children.get(slot)) is not None:
            return child.launch.address  # as it was launched, whatever is configured by now
        return self._plan(slot, self._ports.get(slot, 0)).address

    def configure(
        self, settings: EngineSettings, *, warmup_model: str | None = None, models: Collection[str] = ()
    ) -> None:
        assert isinstance(settings, GenericProcess), settings.type
        self._settings = settings
        self._warmup_model = warmup_model or settings.name
        self._prober.configure(settings.control_headers, settings.api_key)

    def watch(self, on_exit: OnExit) -> None:
        self._on_exit = on_exit

    def pid(self, slot: SlotId) -> int | None:
        child = self._children.get(slot)
        return child.leader.pid if child is not None else None

    async def log_tail(self, slot: SlotId, lines: int = 100) -> list[str]:
        """The last lines of the slot's log, also of earlier launches. For admins: as the engine wrote them."""
        return await self._log(self._plan(slot, 0)).tail(lines)

    # --- the steps of a swap --------------------------------------------------------------------------------

    async def check(self, slot: SlotId, leaving: Collection[SlotId]) -> None:
        launch = self._plan(slot, 0)
        problem = await asyncio.to_thread(problems_of, launch, os.environ)
        if problem is not None:
            raise StartFailed(self.name, f"engine {self.name!r} cannot be started: {problem}", cause="file_missing")
        if self._settings.base_url is not None:
            use = await self._directory.use_of(launch.host, launch.port)
            admit(launch, use, {*leaving, slot, *self.asleep()})

    async def start(self, slot: SlotId) -> None:
        if await self._wake(slot):
            return
        await self.end(slot)  # of a failed launch something may be left that nobody stopped
        if self._settings.base_url is not None:
            for other in self.asleep():
                await self.end(other)  # it keeps the port that all of this engine listen at
        port = ports.free_port(CHOSEN_HOST) if self._settings.base_url is None else 0
        launch = self._plan(slot, port)
        if self._settings.base_url is not None:
            await self._clear_port(launch)
        if self._settings.keep_slots and (problem := await asyncio.to_thread(keepslots.make_folder, launch)):
            log.warning("engine %r: its folder for slots cannot be made: %s", self.name, problem)
        child = self._spawn(launch)
        self._tasks.spawn(self._state.flush(), f"record {slot}")
        limit_s = self._settings.start_timeout_s
        await wait_ready(ChildStarting(child), self._prober, limit_s, self._tasks)
        if self._settings.warmup:
            model = slot.model or self._warmup_model
            await warm_up(ChildStarting(child), self._prober, model, limit_s, self._tasks)
        await self._restore_slots(child)
        child.is_ready = True

    async def stop(self, slot: SlotId) -> None:
        child = self._children.get(slot)
        if child is None or child.is_asleep:
            return
        child.is_stopping = True
        if child.is_ready and not child.has_exited:
            if await self._send_to_sleep(child):
                return
            await self._save_slots(child, self._settings.stop_timeout_s)
        await self._end(child)

    async def end(self, slot: SlotId) -> None:
        """`stop` without sleep, also of what sleeps; what is to be kept is kept as far as that is quick."""
        if (child := self._children.get(slot)) is None:
            return
        if child.is_ready and not child.has_exited:
            child.is_stopping = True
            await self._save_slots(child, min(self._settings.stop_timeout_s, SAVE_AT_END_TIMEOUT_S))
        await self._end(child)

    async def _end(self, child: Child) -> None:
        child.is_stopping, child.is_asleep = True, False
        slot, timeout_s = child.launch.slot, stop_timeout_s(child.launch, self._settings.stop_timeout_s)
        await end_wholly(child, self._settings.stop_signal, timeout_s, self._tasks)
        child.close()
        if self._children.get(slot) is child:
            del self._children[slot]
            self._state.put_entry(adoption.SECTION, str(slot), None)

    # --- asleep instead of gone, and kept over the end ------------------------------------------------------

    def asleep(self) -> list[SlotId]:
        return [slot for slot, child in self._children.items() if child.is_asleep]

    async def _send_to_sleep(self, child: Child) -> bool:
        """True if it sleeps now. If it will not, it is stopped as if it could not."""
        sleep_path, slot = self._settings.sleep_path, child.launch.slot
        if sleep_path is None:
            return False
        address, timeout_s = child.launch.address, self._settings.stop_timeout_s
        problem = await sleeping.send_to_sleep(self._prober, address, sleep_path, timeout_s)
        if problem or child.has_exited:
            log.warning("engine %r does not sleep and is stopped: %s", str(slot), problem or "it exited")
            return False
        child.is_ready = child.is_stopping = False
        self._note_asleep(child, True)
        log.info("engine %r sleeps, process %d", str(slot), child.leader.pid)
        return True

    async def _wake(self, slot: SlotId) -> bool:
        """True if it slept and is ready now. If it fails, what is left is for the caller to end."""
        child = self._children.get(slot)
        if child is None or not child.is_asleep:
            return False
        self._note_asleep(child, False)
        sleep_path, wake_path = self._settings.sleep_path, self._settings.wake_path
        timeout_s = self._settings.start_timeout_s
        problem = "its process has exited" if child.has_exited else "it cannot be woken"
        if sleep_path is not None and wake_path is not None and not child.has_exited:
            child.started_at = asyncio.get_running_loop().time()
            problem = await sleeping.wake(self._prober, child.launch.address, sleep_path, wake_path, timeout_s)
        if not problem:
            try:
                await wait_ready(ChildStarting(child), self._prober, timeout_s, self._tasks)
            except StartFailed as error:
                problem = error.message
        if problem:
            log.warning("engine %r does not wake and is restarted: %s", str(slot), problem)
            return False
        child.is_ready = True
        return True

    def _note_asleep(self, child: Child, is_asleep: bool) -> None:
        """Also on record: after a hard end of the router, an engine that cannot be asked is known by it."""
        child.is_asleep = is_asleep
        slot_text = str(child.launch.slot)
        if isinstance(record := self._state.get(adoption.SECTION).get(slot_text), dict):
            self._state.put_entry(adoption.SECTION, slot_text, {**record, adoption.ASLEEP: is_asleep})

    async def _slot_files(self, slot: SlotId) -> keepslots.SlotFiles | None:
        if not self._settings.keep_slots:
            return None
        return await asyncio.to_thread(keepslots.slot_files, self._plan(slot, 0))

    async def _save_slots(self, child: Child, within_s: float) -> None:
        if files := await self._slot_files(child.launch.slot):
            await keepslots.save(self._prober, child.launch.address, files, within_s)

    async def _restore_slots(self, child: Child) -> None:
        if files := await self._slot_files(child.launch.slot):
            await keepslots.restore(self._prober, child.launch.address, files, self._settings.stop_timeout_s)

    async def held_bytes(self, slot: SlotId) -> int | None:
        child = self._children.get(slot)
        if child is None:
            return 0
        if child.launch.is_container:
            return None  # only the client is here; the memory is in a tree of the container's daemon
        return await asyncio.to_thread(proctree.held_bytes, await child.tree.alive())

    async def pids(self, slot: SlotId) -> Collection[int]:
        child = self._children.get(slot)
        return {key.pid for key in await child.tree.alive()} if child is not None else ()

    async def stopped_state(self, slot: SlotId) -> str | None:
        child = self._children.get(slot)
        if child is None:
            return "its process is gone"
        return await asyncio.to_thread(proctree.stopped_state, child.leader, child.listeners)

    async def close(self) -> None:
        self._directory.remove(self)
        await self._tasks.close()
        await self._prober.close()
        for child in self._children.values():
            child.close()
        self._children.clear()

    # --- after the router was killed hard -------------------------------------------------------------------

    async def adopt(self) -> list[SlotId]:
        processes = await asyncio.to_thread(proctree.snapshot)
        boot = await asyncio.to_thread(proctree.boot_id)
        adopted: list[SlotId] = []
        failures: list[FreeFailed] = []
        for slot_text, raw in self._state.get(adoption.SECTION).items():
            if adoption.engine_of(slot_text) != self.name:
                continue
            record, slot = adoption.parse_record(raw), adoption.slot_of(slot_text)
            launch = await self._launched_before(slot, record) if record is not None else None
            lives = record is not None and adoption.is_same_process(record, boot, processes)
            # Its client may have died with the router, by one signal for a whole service; the container is not in that.
            may_run_on = record is not None and record.boot_id == boot and launch is not None and launch.is_container
            if record is None or launch is None or not (lives or may_run_on):
                self._state.put_entry(adoption.SECTION, slot_text, None)  # the left-overs may be of it
                continue
            child = self._take_over(launch, record)
            is_as_configured = self._has(slot) and self._plan(slot, record.port).digest == record.digest
            if lives and is_as_configured and await self._was_asleep(child, raw):
                self._note_asleep(child, True)
                log.info("engine %r: adopted process %d, which sleeps", self.name, record.pid)
                continue
            if lives and is_as_configured and await self._is_fit(child):
                child.is_ready = True
                adopted.append(slot)
                log.info("engine %r: adopted process %d, ready on port %d", self.name, record.pid, record.port)
                continue
            what = f"process {record.pid}" if lives else "the container"
            log.info("engine %r: %s of an earlier router is ended", self.name, what)
            ended = await ended_of(slot, child.tree, is_container=launch.is_container)
            try:
                await self.end(slot)
            except FreeFailed as error:
                failures.append(error)
            else:
                self._ended.append(ended)
        failures += await self._end_leftovers(processes)
        for failure in failures[1:]:
            log.error("%s", failure)
        if failures:
            raise failures[0]
        return adopted

    def take_ended(self) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    async def _launched_before(self, slot: SlotId, record: LaunchRecord) -> Launch | None:
        """As it is configured, where that is the same launch still; else as its record has it, if it says that much."""
        planned = self._plan(slot, record.port) if self._has(slot) else None
        if record.ending is None or (planned is not None and planned.digest == record.digest):
            return planned
        env = await asyncio.to_thread(proctree.environment, record.leader)
        if not env and planned is not None:
            env = dict(planned.env)
        return adoption.launch_on_record(slot, record, record.ending, env)

    def _take_over(self, launch: Launch, record: LaunchRecord) -> Child:
        child = Child(launch, record.leader, record.marker, self._log(launch), Mark(record.log_offset), self._tasks)
        self._keep(child)
        return child

    async def _was_asleep(self, child: Child, record: Mapping[str, Any]) -> bool:
        """By its own word, for `/health` is 200 in sleep; where it has none, by the record."""
        if self._settings.sleep_path is None:
            return False
        said = await sleeping.is_asleep(self._prober, child.launch.address, self._settings.sleep_path)
        return said if said is not None else record.get(adoption.ASLEEP) is True

    async def _is_fit(self, child: Child) -> bool:
        """Ready and listening. A busy engine may be slow to say so: it is asked twice."""
        launch = child.launch
        for _ in range(2):
            answer = await self._prober.probe(launch.ready, launch.host, launch.port, launch.ready.probe_timeout_s)
            if answer.is_ready:
                return await listens_there(child) is not False and not child.has_exited
        return False

    async def _end_leftovers(self, processes: Snapshot) -> list[FreeFailed]:
        """Launches of ours that no record names: the router died between launch and record."""
        tracked = {child.tree.marker for child in self._children.values()}
        failures = []
        for marker, slot_text in adoption.leftover_markers(processes, self._state.router_id).items():
            if adoption.engine_of(slot_text) != self.name or marker in tracked:
                continue
            ended = await ended_of(adoption.slot_of(slot_text), Tree(marker), is_container=False)
            if not ended.pids:
                continue  # by its record, since the look at processes
            if left := await self._end_marked(marker):
                failures.append(would_not_go(ended.slot, left))
            else:
                self._ended.append(ended)
        return failures

    async def _end_marked(self, marker: str) -> set[ProcessKey]:
        log.info("engine %r: ending what an earlier launch left running", self.name)
        number = signal_number(self._settings.stop_signal)
        return await end_tree(Tree(marker), number, self._settings.stop_timeout_s, self._tasks)

    # --- for the directory ----------------------------------------------------------------------------------

    def processes_of_slots(self, processes: Snapshot) -> dict[SlotId, set[int]]:
        return {
            slot: {key.pid for key in proctree.members(processes, child.tree.marker, frozenset(child.tree.known))}
            for slot, child in list(self._children.items())
        }

    def slots_at(self, port: int) -> set[SlotId]:
        return {slot for slot, child in list(self._children.items()) if child.launch.port == port}

    # --- parts ----------------------------------------------------------------------------------------------

    def _has(self, slot: SlotId) -> bool:
        return slot.model in self._settings.profiles if self._settings.profiles else slot.model is None

    def _plan(self, slot: SlotId, chosen_port: int) -> Launch:
        if not self._has(slot):
            raise NotBuilt(f"engine {self.name!r} has nothing to launch as {str(slot)!r}")
        return plan_launch(self._settings, slot, self._base_dir, chosen_port)

    def _log(self, launch: Launch) -> EngineLog:
        return self._logs.setdefault(launch.log_path, EngineLog(launch.log_path))

    async def _clear_port(self, launch: Launch) -> None:
        """Just before a launch the port must be free; a leftover of our own is ended first."""
        use = await self._directory.use_of(launch.host, launch.port)
        admit(launch, use, ())
        if use is None:
            return
        for marker in use.leftovers:
            left = await self._end_marked(marker)
            if left:
                raise port_taken(launch, use.holder)
        admit(launch, await self._directory.use_of(launch.host, launch.port), ())

    def _spawn(self, launch: Launch) -> Child:
        marker = str(new_marker(self._state.router_id, launch.slot))
        env = child_environment(os.environ, launch, marker)
        engine_log = self._log(launch)
        try:
            child = spawn(launch, env, marker, engine_log, self._tasks)
        except (OSError, ValueError) as error:
            raise StartFailed(
                self.name,
                f"engine {self.name!r} could not be launched: {printable(str(error))}; "
                "correct `start_cmd`, `cwd` or `log_file`",
                cause="file_missing" if isinstance(error, FileNotFoundError) else None,
            ) from error
        self._keep(child)
        record = adoption.record_of(launch, child.leader, proctree.boot_id(), child.mark.offset, marker)
        self._state.put_entry(adoption.SECTION, str(launch.slot), record.as_json())
        return child

    def _keep(self, child: Child) -> None:
        slot = child.launch.slot
        self._children[slot] = child
        self._ports[slot] = child.launch.port
        self._tasks.spawn(self._look_after(child), f"look after {slot}")

    async def _look_after(self, child: Child) -> None:
        """Until it exits, or serves no more: keep its log small and its members known. Then say so, if nobody
        stopped it."""
        looks = silent = 0
        while not child.has_exited:
            await asyncio.wait([child.exited], timeout=LOOK_EVERY_S)
            if child.has_exited:
                break  # what it said last is about to be quoted
            silent = silent + 1 if await self._is_silent(child) else 0
            if silent == 2:  # a worker that is being replaced has had the time between
                break
            await child.log.rotate_if_large()
            looks += 1
            if looks % _LOOKS_PER_TREE_SCAN == 1:
                await child.tree.alive()
        if child.is_stopping or not (child.is_ready or child.is_asleep):
            return
        error = await (crashed(child) if child.has_exited else fell_silent(child))
        if not child.is_stopping:
            log.warning("%s", error)
            if self._on_exit is not None:
                self._on_exit(child.launch.slot, error)

    async def _is_silent(self, child: Child) -> bool:
        """Does it live on with nobody left who listens? Not of those whose listeners cannot be told."""
        if not child.is_ready or child.is_stopping or not child.listeners:
            return False
        return await has_fallen_silent(child.launch, child.listeners, lambda: listens_there(child))
