"""The engine that is a process: launched, watched, ended and – after a hard end of the router – adopted.

This class holds the children, by slot, and the order of steps. How a launch looks is in `launch`, the wait for ready
in `starting`, the end in `ending`, who belongs to a tree in `proctree`, who holds a port in `directory`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Collection
from pathlib import Path

from enginerouter.config.engines import GenericProcess
from enginerouter.engines import adoption, ports, proctree
from enginerouter.engines.adoption import LaunchRecord
from enginerouter.engines.base import OnExit
from enginerouter.engines.child import Child, Tree, spawn
from enginerouter.engines.directory import SlotDirectory
from enginerouter.engines.ending import end_child, end_tree, signal_number
from enginerouter.engines.enginelog import EngineLog, Mark
from enginerouter.engines.launch import (
    CHOSEN_HOST,
    Launch,
    child_environment,
    new_marker,
    plan_launch,
    problems_of,
)
from enginerouter.engines.probe import Prober
from enginerouter.engines.proctree import ProcessKey, Snapshot
from enginerouter.engines.starting import ChildStarting, admit, crashed, listens_there, port_taken, wait_ready, warm_up
from enginerouter.errors import FreeFailed, NotBuilt, StartFailed, printable
from enginerouter.slots import SlotId
from enginerouter.state import StateFile
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

_LOOK_AFTER_EVERY_S = 2.0
_LOOKS_PER_TREE_SCAN = 5
_CONTAINER_PORT_TIMEOUT_S = 5.0


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
        self._on_exit: OnExit | None = None
        directory.add(self)

    @property
    def name(self) -> str:
        return self._settings.name

    def address(self, slot: SlotId) -> str:
        """Port 0 where a free one will be chosen, and none has been yet."""
        return self._plan(slot, self._ports.get(slot, 0)).address

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
            admit(launch, await self._directory.use_of(launch.host, launch.port), {*leaving, slot})

    async def start(self, slot: SlotId) -> None:
        await self.stop(slot)  # of a failed launch something may be left that nobody stopped
        port = ports.free_port(CHOSEN_HOST) if self._settings.base_url is None else 0
        launch = self._plan(slot, port)
        if self._settings.base_url is not None:
            await self._clear_port(launch)
        child = self._spawn(launch)
        self._tasks.spawn(self._state.flush(), f"record {slot}")
        limit_s = self._settings.start_timeout_s
        await wait_ready(ChildStarting(child), self._prober, limit_s, self._tasks)
        if self._settings.warmup:
            await warm_up(ChildStarting(child), self._prober, self._warmup_model, limit_s, self._tasks)
        child.is_ready = True

    async def stop(self, slot: SlotId) -> None:
        child = self._children.get(slot)
        if child is None:
            return
        child.is_stopping = True
        left = await end_child(child, self._settings.stop_signal, self._settings.stop_timeout_s, self._tasks)
        if left:
            raise self._would_not_go(slot, left)
        await self._see_container_gone(child.launch)
        child.close()
        if self._children.get(slot) is child:
            del self._children[slot]
            self._state.put_entry(adoption.SECTION, str(slot), None)

    async def held_bytes(self, slot: SlotId) -> int | None:
        child = self._children.get(slot)
        if child is None:
            return 0
        if child.launch.is_container:
            return None  # only the client is here; the memory is in a tree of the container's daemon
        return await asyncio.to_thread(proctree.held_bytes, await child.tree.alive())

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
        stuck: set[ProcessKey] = set()
        for slot_text, raw in self._state.get(adoption.SECTION).items():
            if adoption.engine_of(slot_text) != self.name:
                continue
            record = adoption.parse_record(raw)
            if record is None or not adoption.is_same_process(record, boot, processes):
                self._state.put_entry(adoption.SECTION, slot_text, None)
                continue
            slot = SlotId(self.name, slot_text.partition("/")[2] or None)
            child = self._take_over(slot, record)
            if child.launch.digest == record.digest and await self._is_fit(child):
                child.is_ready = True
                adopted.append(slot)
                log.info("engine %r: adopted process %d, ready on port %d", self.name, record.pid, record.port)
                continue
            log.info("engine %r: process %d of an earlier router is ended", self.name, record.pid)
            stuck |= await self._end_taken_over(slot)
        stuck |= await self._end_leftovers(processes)
        if stuck:
            raise self._would_not_go(SlotId(self.name), stuck)
        return adopted

    def _take_over(self, slot: SlotId, record: LaunchRecord) -> Child:
        launch = self._plan(slot, record.port)
        child = Child(launch, record.leader, record.marker, self._log(launch), Mark(record.log_offset), self._tasks)
        self._keep(child)
        return child

    async def _is_fit(self, child: Child) -> bool:
        """Ready and listening. A busy engine may be slow to say so: it is asked twice."""
        launch = child.launch
        for _ in range(2):
            answer = await self._prober.probe(launch.ready, launch.host, launch.port, launch.ready.probe_timeout_s)
            if answer.is_ready:
                return await listens_there(child) is not False and not child.has_exited
        return False

    async def _end_taken_over(self, slot: SlotId) -> set[ProcessKey]:
        try:
            await self.stop(slot)
        except FreeFailed as error:
            log.error("%s", error)
            return await self._children[slot].tree.alive()
        return set()

    async def _end_leftovers(self, processes: Snapshot) -> set[ProcessKey]:
        """Launches of ours that no record names: the router died between launch and record."""
        tracked = {child.tree.marker for child in self._children.values()}
        stuck: set[ProcessKey] = set()
        for marker, slot_text in adoption.leftover_markers(processes, self._state.router_id).items():
            if adoption.engine_of(slot_text) == self.name and marker not in tracked:
                stuck |= await self._end_marked(marker)
        return stuck

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

    def _plan(self, slot: SlotId, chosen_port: int) -> Launch:
        if slot.model is not None:
            raise NotBuilt(f"engine {self.name!r} has no models of its own to launch: {str(slot)!r}")
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
        record = LaunchRecord(
            pid=child.leader.pid,
            started=child.leader.started,
            boot_id=proctree.boot_id(),
            digest=launch.digest,
            port=launch.port,
            log_offset=child.mark.offset,
            marker=marker,
        )
        self._state.put_entry(adoption.SECTION, str(launch.slot), record.as_json())
        return child

    def _keep(self, child: Child) -> None:
        slot = child.launch.slot
        self._children[slot] = child
        self._ports[slot] = child.launch.port
        self._tasks.spawn(self._look_after(child), f"look after {slot}")

    async def _look_after(self, child: Child) -> None:
        """Until it exits: keep its log small and its members known. Then say so, if nobody stopped it."""
        looks = 0
        while not child.has_exited:
            await asyncio.wait([child.exited], timeout=_LOOK_AFTER_EVERY_S)
            if child.has_exited:
                break  # what it said last is about to be quoted
            await child.log.rotate_if_large()
            looks += 1
            if looks % _LOOKS_PER_TREE_SCAN == 1:
                await child.tree.alive()
        if not child.is_ready or child.is_stopping:
            return
        error = await crashed(child)
        if not child.is_stopping:
            log.warning("%s", error)
            if self._on_exit is not None:
                self._on_exit(child.launch.slot, error)

    async def _see_container_gone(self, launch: Launch) -> None:
        """The tree is gone. A port still open is somebody else's by now – but a container may live on."""
        if not launch.is_container:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONTAINER_PORT_TIMEOUT_S):
                while await asyncio.to_thread(ports.holder_of, launch.host, launch.port):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                return
        raise FreeFailed(
            self.name,
            f"engine {self.name!r}: its command has ended, but port {launch.port} is still open; "
            "the container may be running on: correct `stop_cmd`, and stop the container by hand",
        )

    def _would_not_go(self, slot: SlotId, left: Collection[ProcessKey]) -> FreeFailed:
        pids = ", ".join(str(key.pid) for key in sorted(left))
        return FreeFailed(
            self.name,
            f"engine {str(slot)!r} would not stop: process {pids} is still there after being killed; "
            "it may be stuck in a driver – look at the kernel log",
        )
