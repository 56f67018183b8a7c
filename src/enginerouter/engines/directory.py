"""Which slot a process belongs to, over all engines: a port may be held by a slot that is about to leave."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from enginerouter.engines import ports, proctree
from enginerouter.engines.launch import parse_marker
from enginerouter.engines.proctree import Snapshot
from enginerouter.slots import SlotId


class KnowsItsProcesses(Protocol):
    """An engine whose slots are processes of this machine."""

    def processes_of_slots(self, processes: Snapshot) -> dict[SlotId, set[int]]:
        """The pids of each slot that runs. Called in a thread."""

    def slots_at(self, port: int) -> set[SlotId]:
        """The running slots that were launched to listen at this port."""


@dataclass(frozen=True, slots=True)
class PortUse:
    """Who holds a port: slots of ours, markers of launches nobody tracks any more, strangers."""

    holder: ports.Holder
    slots: frozenset[SlotId]
    leftovers: frozenset[str]
    strangers: frozenset[int]

    @property
    def is_unknown(self) -> bool:
        return not (self.slots or self.leftovers or self.strangers)


class SlotDirectory:
    """One per router; engines add themselves."""

    def __init__(self, router_id: str) -> None:
        self._router_id = router_id
        self._engines: list[KnowsItsProcesses] = []

    def add(self, engine: KnowsItsProcesses) -> None:
        self._engines.append(engine)

    def remove(self, engine: KnowsItsProcesses) -> None:
        if engine in self._engines:
            self._engines.remove(engine)

    async def use_of(self, host: str, port: int) -> PortUse | None:
        """None if the port is free."""
        return await asyncio.to_thread(self._use_of, host, port, tuple(self._engines))

    def _use_of(self, host: str, port: int, engines: Collection[KnowsItsProcesses]) -> PortUse | None:
        holder = ports.holder_of(host, port)
        if holder is None:
            return None
        if not holder.pids:
            # Nobody can be named (a container's proxy): it is the slot that was launched for this port, if any.
            slots = frozenset(slot for engine in engines for slot in engine.slots_at(port))
            return PortUse(holder, slots, frozenset(), frozenset())
        processes = proctree.snapshot()
        owners = {
            pid: slot
            for engine in engines
            for slot, pids in engine.processes_of_slots(processes).items()
            for pid in pids
        }
        leftovers: dict[int, str] = {}
        for pid in holder.pids - owners.keys():
            info = processes.get(pid)
            marker = parse_marker(info.marker) if info is not None else None
            if marker is not None and marker.router_id == self._router_id:
                leftovers[pid] = str(marker)
        return PortUse(
            holder,
            slots=frozenset(owners[pid] for pid in holder.pids if pid in owners),
            leftovers=frozenset(leftovers.values()),
            strangers=frozenset(holder.pids - owners.keys() - leftovers.keys()),
        )
