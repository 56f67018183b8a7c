"""At start-up: what an earlier router left running, asked of all engines at once.

An engine that hangs costs its own time-out and nobody else's: what the others say counts as soon as they say it.
What is unfit they end, and its memory is waited for before anything is started on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from enginerouter.engines.base import Ended, Engine
from enginerouter.errors import FreeFailed
from enginerouter.slots import SlotId
from enginerouter.swap.held import largest_known, own_bytes
from enginerouter.swap.memory import MemorySource, Processes
from enginerouter.swap.model import Slot
from enginerouter.swap.settling import Owed
from enginerouter.tasks import TaskGroup


async def taken_over(engines: Mapping[str, Engine]) -> AsyncIterator[tuple[str, list[SlotId] | FreeFailed]]:
    """Each engine with its slots that run and are ready, or with why something of it would not go.

    In the order in which they answer; those that answer together, in the order of the configuration.
    """
    tasks = TaskGroup()
    asked = {
        tasks.spawn(engine.adopt(), f"take over {name}", is_awaited=True): name for name, engine in engines.items()
    }
    try:
        while asked:
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in asked if task.done()]:
                name = asked.pop(task)
                try:
                    yield name, task.result()
                except FreeFailed as stuck:
                    yield name, stuck
    finally:
        # The router stops while it starts: nobody may take over what is being ended.
        await tasks.close()


@dataclass(frozen=True, slots=True)
class Before:
    """Memory as it was before anything was ended."""

    available: int | None
    processes: Processes | None

    @classmethod
    async def read(cls, memory: MemorySource) -> Before:
        await memory.refresh()
        return cls(memory.available(), memory.processes())


def owed_by(ended: Sequence[Ended], before: Before, slots: Mapping[SlotId, Slot], *, counts_host_pages: bool) -> Owed:
    """What is to come back of all this. A slot that says nothing of itself gave back so much the last time."""
    known = [
        largest_known(
            own_bytes(one.held_bytes, one.pids, before.processes, counts_host_pages=counts_host_pages),
            slots[one.slot].learned.came_back_bytes if one.slot in slots else None,
        )
        for one in ended
    ]
    held = [size for size in known if size is not None]
    pids = {pid for one in ended for pid in one.pids}
    return Owed(before.available, sum(held) if held else None, pids=pids, is_partial=0 < len(held) < len(known))
