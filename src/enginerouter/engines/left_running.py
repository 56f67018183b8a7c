"""At start-up: what earlier routers left running is taken over where it is fit to go on, and ended where it is not.

The decisions are in `adoption`. For what no configured engine owns there is `end_launches_of_removed_engines`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from enginerouter.config.engines import GenericProcess
from enginerouter.engines import adoption, proctree, sleeping
from enginerouter.engines.adoption import LaunchRecord
from enginerouter.engines.base import Ended
from enginerouter.engines.child import Child, Tree
from enginerouter.engines.children import Children
from enginerouter.engines.ending import end_tree, end_wholly, ended_of, signal_number, would_not_go
from enginerouter.engines.enginelog import EngineLog, Mark
from enginerouter.engines.launch import Launch, stop_timeout_s
from enginerouter.engines.probe import Prober
from enginerouter.engines.proctree import ProcessKey, Snapshot
from enginerouter.engines.starting import listens_there
from enginerouter.errors import FreeFailed
from enginerouter.slots import SlotId
from enginerouter.state import StateFile
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

_LEFTOVER_GRACE_S = 10.0


class LeftRunning:
    """What is left of one engine. `planned` is the launch of a slot at a port, None if it is not configured.

    `end` ends a slot for good. What has been ended is `ended`, until somebody takes it.
    """

    def __init__(
        self,
        children: Children,
        state: StateFile,
        prober: Prober,
        tasks: TaskGroup,
        planned: Callable[[SlotId, int], Launch | None],
        end: Callable[[SlotId], Awaitable[None]],
    ) -> None:
        self.ended: list[Ended] = []
        self._children = children
        self._state = state
        self._prober = prober
        self._tasks = tasks
        self._planned = planned
        self._end = end

    async def take_over(self, settings: GenericProcess) -> list[SlotId]:
        """As `Engine.adopt`."""
        processes = await asyncio.to_thread(proctree.snapshot)
        boot = await asyncio.to_thread(proctree.boot_id)
        adopted: list[SlotId] = []
        failures: list[FreeFailed] = []
        for slot_text, raw in self._state.get(adoption.SECTION).items():
            if adoption.engine_of(slot_text) != settings.name:
                continue
            record, slot = adoption.parse_record(raw), adoption.slot_of(slot_text)
            launch = await self._launched_before(slot, record) if record is not None else None
            lives = record is not None and adoption.is_same_process(record, boot, processes)
            # Its client may have died with the router, by one signal for a whole service; the container is not in that.
            may_run_on = record is not None and record.boot_id == boot and launch is not None and launch.is_container
            if record is None or launch is None or not (lives or may_run_on):
                self._state.put_entry(adoption.SECTION, slot_text, None)  # the left-overs may be of it
                continue
            child = self._children.take_over(launch, record)
            planned = self._planned(slot, record.port)
            is_as_configured = planned is not None and planned.digest == record.digest
            if lives and is_as_configured and await self._was_asleep(child, raw, settings.sleep_path):
                self._children.note_asleep(child, True)
                log.info("engine %r: adopted process %d, which sleeps", settings.name, record.pid)
                continue
            if lives and is_as_configured and await self._is_fit(child):
                child.is_ready = True
                adopted.append(slot)
                log.info("engine %r: adopted process %d, ready on port %d", settings.name, record.pid, record.port)
                continue
            what = f"process {record.pid}" if lives else "the container"
            log.info("engine %r: %s of an earlier router is ended", settings.name, what)
            ended = await ended_of(slot, child.tree, is_container=launch.is_container)
            try:
                await self._end(slot)
            except FreeFailed as error:
                failures.append(error)
            else:
                self.ended.append(ended)
        failures += await self._end_leftovers(processes, settings)
        for failure in failures[1:]:
            log.error("%s", failure)
        if failures:
            raise failures[0]
        return adopted

    async def _launched_before(self, slot: SlotId, record: LaunchRecord) -> Launch | None:
        """As it is configured, where that is the same launch still; else as its record has it, if it says that much."""
        planned = self._planned(slot, record.port)
        if record.ending is None or (planned is not None and planned.digest == record.digest):
            return planned
        env = await asyncio.to_thread(proctree.environment, record.leader)
        if not env and planned is not None:
            env = dict(planned.env)
        return adoption.launch_on_record(slot, record, record.ending, env)

    async def _was_asleep(self, child: Child, record: Mapping[str, Any], sleep_path: str | None) -> bool:
        """By its own word, for `/health` is 200 in sleep; where it has none, by the record."""
        if sleep_path is None:
            return False
        said = await sleeping.is_asleep(self._prober, child.launch.address, sleep_path)
        return said if said is not None else record.get(adoption.ASLEEP) is True

    async def _is_fit(self, child: Child) -> bool:
        """Ready and listening. A busy engine may be slow to say so: it is asked twice."""
        launch = child.launch
        for _ in range(2):
            answer = await self._prober.probe(launch.ready, launch.host, launch.port, launch.ready.probe_timeout_s)
            if answer.is_ready:
                return await listens_there(child) is not False and not child.has_exited
        return False

    async def _end_leftovers(self, processes: Snapshot, settings: GenericProcess) -> list[FreeFailed]:
        """Launches of ours that no record names: the router died between launch and record."""
        tracked = self._children.markers()
        failures = []
        for marker, slot_text in adoption.leftover_markers(processes, self._state.router_id).items():
            if adoption.engine_of(slot_text) != settings.name or marker in tracked:
                continue
            ended = await ended_of(adoption.slot_of(slot_text), Tree(marker), is_container=False)
            if not ended.pids:
                continue  # by its record, since the look at processes
            if left := await self.end_marked(marker, settings):
                failures.append(would_not_go(ended.slot, left))
            else:
                self.ended.append(ended)
        return failures

    async def end_marked(self, marker: str, settings: GenericProcess) -> set[ProcessKey]:
        """End a launch of which only the marker is known. What comes back would not go."""
        log.info("engine %r: ending what an earlier launch left running", settings.name)
        number = signal_number(settings.stop_signal)
        return await end_tree(Tree(marker), number, settings.stop_timeout_s, self._tasks)


async def end_launches_of_removed_engines(state: StateFile, engines: Collection[str]) -> list[Ended]:
    """At start-up: end what earlier routers launched for engines that are no longer configured.

    What would not go is logged: no engine of ours is concerned.
    """
    processes = await asyncio.to_thread(proctree.snapshot)
    boot = await asyncio.to_thread(proctree.boot_id)
    markers = adoption.leftover_markers(processes, state.router_id)
    leftovers = {m: slot_text for m, slot_text in markers.items() if adoption.engine_of(slot_text) not in engines}
    ended: list[Ended] = []
    tasks = TaskGroup()
    try:
        for slot_text, raw in state.get(adoption.SECTION).items():
            if adoption.engine_of(slot_text) in engines:
                continue
            record = adoption.parse_record(raw)
            lives = record is not None and adoption.is_same_process(record, boot, processes)
            if record is not None and (lives or (record.is_container and record.boot_id == boot)):
                leftovers.pop(record.marker, None)
                if (gone := await _end_removed(slot_text, record, tasks)) is None:
                    continue
                ended.append(gone)
            state.put_entry(adoption.SECTION, slot_text, None)
        for marker, slot_text in leftovers.items():
            if (gone := await _end_removed(slot_text, marker, tasks)) is not None:
                ended.append(gone)
    finally:
        await tasks.close()
    return ended


async def _end_removed(slot_text: str, launched: LaunchRecord | str, tasks: TaskGroup) -> Ended | None:
    """End a launch, by its record or by its marker alone; None if something of it would not go, which is logged."""
    log.info("ending %r, launched by an earlier router for an engine that is gone", slot_text)
    slot = adoption.slot_of(slot_text)
    record = launched if isinstance(launched, LaunchRecord) else None
    tree = Tree(str(launched)) if record is None else Tree(record.marker, {record.leader})
    ended = await ended_of(slot, tree, is_container=record is not None and record.is_container)
    try:
        if record is not None and record.ending is not None:
            env = await asyncio.to_thread(proctree.environment, record.leader)
            launch = adoption.launch_on_record(slot, record, record.ending, env)
            child = Child(
                launch, record.leader, record.marker, EngineLog(launch.log_path), Mark(record.log_offset), tasks
            )
            try:
                await end_wholly(child, "TERM", stop_timeout_s(launch, _LEFTOVER_GRACE_S), tasks)
            finally:
                child.close()
        elif left := await end_tree(tree, signal_number("TERM"), _LEFTOVER_GRACE_S, tasks):
            raise would_not_go(slot, left)
    except FreeFailed as error:
        log.error("%s", error)
        return None
    return ended
