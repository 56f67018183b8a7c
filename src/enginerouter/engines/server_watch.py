"""A server that we did not launch cannot be watched like a child: while it serves it is asked now and then.

Only a refused connection counts, and only twice in a row: a busy server may be slow to answer, a dead one is not.
A server may also unload a model by itself, or at somebody's word: then nothing has failed, but the slot is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from enginerouter.engines.base import OnExit
from enginerouter.errors import EngineCrashed, EngineUnloaded
from enginerouter.slots import SlotId
from enginerouter.tasks import TaskGroup

ASK_EVERY_S = 2.0
ASK_AGAIN_AFTER_S = 0.25


class ServerWatch:
    """`is_refused` asks once and gives the sentence of a refusal, or None. One slot is watched at a time.

    `unloaded` tells in the same way whether the server runs on without the slot's model.
    """

    def __init__(
        self,
        engine: str,
        is_refused: Callable[[], Awaitable[str | None]],
        tasks: TaskGroup,
        unloaded: Callable[[SlotId], Awaitable[str | None]],
    ) -> None:
        self._engine = engine
        self._is_refused = is_refused
        self._unloaded = unloaded
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
            if (refusal := await self._twice(self._is_refused)) is not None:
                break
            if (unloaded := await self._twice(lambda: self._unloaded(slot))) is not None and self.on_exit is not None:
                # While it is in use this is not believed, and asked again.
                self.on_exit(slot, EngineUnloaded(self._engine, f"engine {self._engine!r}: {unloaded}"))
        self._watching = None
        if self.on_exit is not None:
            message = f"engine {self._engine!r} is gone while it served: {refusal}"
            self.on_exit(slot, EngineCrashed(self._engine, message))

    async def _twice(self, ask: Callable[[], Awaitable[str | None]]) -> str | None:
        if await ask() is None:
            return None
        await asyncio.sleep(ASK_AGAIN_AFTER_S)
        return await ask()
