"""At start-up: what an earlier router left running, asked of all engines at once.

An engine that hangs costs its own time-out and nobody else's: what the others say counts as soon as they say it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from enginerouter.engines.base import Engine
from enginerouter.errors import FreeFailed
from enginerouter.slots import SlotId
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
