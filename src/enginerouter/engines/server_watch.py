"""A server that we did not launch cannot be watched like a child: while it serves it is asked now and then.

Only a refused connection counts, and only twice in a row: a busy server may be slow to answer, a dead one is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from enginerouter.engines.base import OnExit
from enginerouter.errors import EngineCrashed
from enginerouter.slots import SlotId
from enginerouter.tasks import TaskGroup

ASK_EVERY_S = 2.0
ASK_AGAIN_AFTER_S = 0.25


class ServerWatch:
    """`is_refused` asks once and gives the sentence of a refusal, or None. One slot is watched at a time."""

    def __init__(self, engine: str, is_refused: Callable[[], Awaitable[str | None]], tasks: TaskGroup) -> None:
        self._engine = engine
        self._is_refused = is_refused
        self._tasks = tasks
        self._watching: asyncio.Task[None] | None = None
        self.on_exit: OnExit | None = None

    def begin(self, slot: SlotId) -> None:
        self.end()
        self._watching = self._tasks.spawn(self._watch(slot), f"watch {slot}")

    def end(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()

    async def _watch(self, slot: SlotId) -> None:
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            if await self._is_refused() is None:
                continue
            await asyncio.sleep(ASK_AGAIN_AFTER_S)
            if (refusal := await self._is_refused()) is not None:
                break
        self._watching = None
        if self.on_exit is not None:
            message = f"engine {self._engine!r} is gone while it served: {refusal}"
            self.on_exit(slot, EngineCrashed(self._engine, message))
