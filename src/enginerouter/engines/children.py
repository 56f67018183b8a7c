"""The processes of one engine, by slot: launched or taken over, on record in the state file, looked after.

They are watched from the moment they are here: who dies, or serves no more, is told of. What is done with them and in
which order, `process` says; which of an earlier router's are kept, `left_running`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from enginerouter.engines import adoption, proctree
from enginerouter.engines.adoption import LaunchRecord
from enginerouter.engines.base import OnExit
from enginerouter.engines.child import Child, spawn
from enginerouter.engines.enginelog import EngineLog, Mark
from enginerouter.engines.launch import Launch, child_environment, new_marker
from enginerouter.engines.listening import LOOK_EVERY_S, has_fallen_silent
from enginerouter.engines.proctree import Snapshot
from enginerouter.engines.starting import crashed, fell_silent, listens_there
from enginerouter.errors import StartFailed, printable
from enginerouter.slots import SlotId
from enginerouter.state import StateFile
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

_LOOKS_PER_TREE_SCAN = 5


class Children:
    """See the module. Iterates over the slots that have a process. `on_exit` as in `Engine.watch`."""

    def __init__(self, state: StateFile, tasks: TaskGroup) -> None:
        self.on_exit: OnExit | None = None
        self._state = state
        self._tasks = tasks
        self._by_slot: dict[SlotId, Child] = {}
        self._ports: dict[SlotId, int] = {}
        self._logs: dict[Path, EngineLog] = {}

    def __iter__(self) -> Iterator[SlotId]:
        return iter(list(self._by_slot))

    def get(self, slot: SlotId) -> Child | None:
        return self._by_slot.get(slot)

    def port_of(self, slot: SlotId) -> int:
        """Where the slot listens, or listened last; 0 if it never did."""
        return self._ports.get(slot, 0)

    def log_of(self, launch: Launch) -> EngineLog:
        return self._logs.setdefault(launch.log_path, EngineLog(launch.log_path))

    def asleep(self) -> list[SlotId]:
        return [slot for slot, child in self._by_slot.items() if child.is_asleep]

    def markers(self) -> set[str]:
        return {child.tree.marker for child in self._by_slot.values()}

    # --- who is here

    def launch(self, launch: Launch) -> Child:
        """Raises StartFailed."""
        marker = str(new_marker(self._state.router_id, launch.slot))
        env = child_environment(os.environ, launch, marker)
        engine_log, engine = self.log_of(launch), launch.slot.engine
        try:
            child = spawn(launch, env, marker, engine_log, self._tasks)
        except (OSError, ValueError) as error:
            raise StartFailed(
                engine,
                f"engine {engine!r} could not be launched: {printable(str(error))}; "
                "correct `start_cmd`, `cwd` or `log_file`",
                cause="file_missing" if isinstance(error, FileNotFoundError) else None,
            ) from error
        self._keep(child)
        record = adoption.record_of(launch, child.leader, proctree.boot_id(), child.mark.offset, marker)
        self._state.put_entry(adoption.SECTION, str(launch.slot), record.as_json())
        return child

    def take_over(self, launch: Launch, record: LaunchRecord) -> Child:
        engine_log, mark = self.log_of(launch), Mark(record.log_offset)
        child = Child(launch, record.leader, record.marker, engine_log, mark, self._tasks)
        self._keep(child)
        return child

    def forget(self, child: Child) -> None:
        """It is gone."""
        child.close()
        slot = child.launch.slot
        if self._by_slot.get(slot) is child:
            del self._by_slot[slot]
            self._state.put_entry(adoption.SECTION, str(slot), None)

    def note_asleep(self, child: Child, is_asleep: bool) -> None:
        """Also on record: after a hard end of the router, an engine that cannot be asked is known by it."""
        child.is_asleep = is_asleep
        slot_text = str(child.launch.slot)
        if isinstance(record := self._state.get(adoption.SECTION).get(slot_text), dict):
            self._state.put_entry(adoption.SECTION, slot_text, {**record, adoption.ASLEEP: is_asleep})

    def close(self) -> None:
        """Let go of all; those that run go on."""
        for child in self._by_slot.values():
            child.close()
        self._by_slot.clear()

    # --- for the directory

    def processes_of_slots(self, processes: Snapshot) -> dict[SlotId, set[int]]:
        return {
            slot: {key.pid for key in proctree.members(processes, child.tree.marker, frozenset(child.tree.known))}
            for slot, child in list(self._by_slot.items())
        }

    def slots_at(self, port: int) -> set[SlotId]:
        return {slot for slot, child in list(self._by_slot.items()) if child.launch.port == port}

    # --- looking after them

    def _keep(self, child: Child) -> None:
        slot = child.launch.slot
        self._by_slot[slot] = child
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
            if self.on_exit is not None:
                self.on_exit(child.launch.slot, error)

    async def _is_silent(self, child: Child) -> bool:
        """Does it live on with nobody left who listens? Not of those whose listeners cannot be told."""
        if not child.is_ready or child.is_stopping or not child.listeners:
            return False
        return await has_fallen_silent(child.launch, child.listeners, lambda: listens_there(child))
