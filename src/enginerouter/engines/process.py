"""The engine that is a process: launched, watched, ended and – after a hard end of the router – adopted.

This class holds the order of steps. Its processes, by slot, are in `children`, what becomes of those that an earlier
router left running in `left_running`. How a launch looks is in `launch`, the wait for ready in `starting`, the end in
`ending`, who belongs to a tree in `proctree`, who holds a port in `directory`; sleep in place of the end in `sleeping`,
what llama.cpp keeps over it in `keepslots`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection
from pathlib import Path

from enginerouter.config.engines import EngineSettings, GenericProcess
from enginerouter.engines import keepslots, ports, proctree, sleeping
from enginerouter.engines.base import Ended, OnExit
from enginerouter.engines.child import Child
from enginerouter.engines.children import Children
from enginerouter.engines.directory import SlotDirectory
from enginerouter.engines.ending import end_wholly
from enginerouter.engines.launch import (
    CHOSEN_HOST,
    SAVE_AT_END_TIMEOUT_S,
    Launch,
    plan_launch,
    problems_of,
    stop_timeout_s,
)
from enginerouter.engines.left_running import LeftRunning
from enginerouter.engines.probe import Prober
from enginerouter.engines.starting import ChildStarting, admit, port_taken, wait_ready, warm_up
from enginerouter.errors import NotBuilt, StartFailed
from enginerouter.slots import SlotId
from enginerouter.state import StateFile
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)


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
        self._children = Children(state, self._tasks)
        self._left_running = LeftRunning(
            self._children, state, self._prober, self._tasks, self._plan_if_configured, self.end
        )
        directory.add(self._children)

    @property
    def name(self) -> str:
        return self._settings.name

    def address(self, slot: SlotId) -> str:
        """Port 0 where a free one will be chosen, and none has been yet."""
        if (child := self._children.get(slot)) is not None:
            return child.launch.address  # as it was launched, whatever is configured by now
        return self._plan(slot, self._children.port_of(slot)).address

    def configure(
        self, settings: EngineSettings, *, warmup_model: str | None = None, models: Collection[str] = ()
    ) -> None:
        assert isinstance(settings, GenericProcess), settings.type
        self._settings = settings
        self._warmup_model = warmup_model or settings.name
        self._prober.configure(settings.control_headers, settings.api_key)

    def watch(self, on_exit: OnExit) -> None:
        self._children.on_exit = on_exit

    def pid(self, slot: SlotId) -> int | None:
        child = self._children.get(slot)
        return child.leader.pid if child is not None else None

    async def log_tail(self, slot: SlotId, lines: int = 100) -> list[str]:
        """The last lines of the slot's log, also of earlier launches. For admins: as the engine wrote them."""
        return await self._children.log_of(self._plan(slot, 0)).tail(lines)

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
        child = self._children.launch(launch)
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
        timeout_s = stop_timeout_s(child.launch, self._settings.stop_timeout_s)
        await end_wholly(child, self._settings.stop_signal, timeout_s, self._tasks)
        self._children.forget(child)

    # --- asleep instead of gone, and kept over the end ------------------------------------------------------

    def asleep(self) -> list[SlotId]:
        return self._children.asleep()

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
        self._children.note_asleep(child, True)
        log.info("engine %r sleeps, process %d", str(slot), child.leader.pid)
        return True

    async def _wake(self, slot: SlotId) -> bool:
        """True if it slept and is ready now. If it fails, what is left is for the caller to end."""
        child = self._children.get(slot)
        if child is None or not child.is_asleep:
            return False
        self._children.note_asleep(child, False)
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
        self._directory.remove(self._children)
        await self._tasks.close()
        await self._prober.close()
        self._children.close()

    # --- after the router was killed hard -------------------------------------------------------------------

    async def adopt(self) -> list[SlotId]:
        return await self._left_running.take_over(self._settings)

    def take_ended(self) -> list[Ended]:
        ended, self._left_running.ended = self._left_running.ended, []
        return ended

    # --- parts ----------------------------------------------------------------------------------------------

    def _has(self, slot: SlotId) -> bool:
        return slot.model in self._settings.profiles if self._settings.profiles else slot.model is None

    def _plan(self, slot: SlotId, chosen_port: int) -> Launch:
        if not self._has(slot):
            raise NotBuilt(f"engine {self.name!r} has nothing to launch as {str(slot)!r}")
        return plan_launch(self._settings, slot, self._base_dir, chosen_port)

    def _plan_if_configured(self, slot: SlotId, chosen_port: int) -> Launch | None:
        return self._plan(slot, chosen_port) if self._has(slot) else None

    async def _clear_port(self, launch: Launch) -> None:
        """Just before a launch the port must be free; a leftover of our own is ended first."""
        use = await self._directory.use_of(launch.host, launch.port)
        admit(launch, use, ())
        if use is None:
            return
        for marker in use.leftovers:
            left = await self._left_running.end_marked(marker, self._settings)
            if left:
                raise port_taken(launch, use.holder)
        admit(launch, await self._directory.use_of(launch.host, launch.port), ())
