"""The target started: what it needs is made free, its start is watched, and a failure is told and cleared up.

The part of a walk that brings something into memory; when, `walk` says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from enginerouter.errors import EngineFailed, FreeFailed, RouterError, StartFailed
from enginerouter.swap import policy
from enginerouter.swap.eviction import further
from enginerouter.swap.freeing import Freeing
from enginerouter.swap.held import gib
from enginerouter.swap.model import Lane, Slot, Swap
from enginerouter.swap.phases import Event, Phase
from enginerouter.swap.settle import READ_EVERY_S
from enginerouter.swap.surroundings import Surroundings

log = logging.getLogger(__name__)


class StartEnded(Exception):
    """The start had nobody who waited for it and made way."""


class Starting:
    """The start of one swap's target. `has_answered`: its waiters have been told that it failed.

    `close_gates` closes those of slots that have to go although the plan did not name them.
    """

    def __init__(
        self,
        lane: Lane,
        swap: Swap,
        around: Surroundings,
        freeing: Freeing,
        close_gates: Callable[[Sequence[Slot]], None],
    ) -> None:
        self._lane = lane
        self._swap = swap
        self._a = around
        self._freeing = freeing
        self._close_gates = close_gates
        self.has_answered = False

    async def start(self, target: Slot) -> None:
        """Start the target; once more if it failed for lack of memory. Raises StartFailed or StartEnded."""
        await self._make_room(target)
        try:
            await self._start_once(target)
        except StartFailed as error:
            if error.cause != "out_of_memory":
                await self._give_up(target, error)
                raise
            log.warning("%s ran out of memory while starting; everything idle is freed for one more try", target.id)
            try:
                await self._freeing.free([target])
                await self._free_further(target, short_bytes=1 << 62)
                await self._freeing.settle(target.expected_bytes)
                await self._start_once(target)
            except EngineFailed as again:
                await self._give_up(target, again)
                raise
        except RouterError as error:
            await self._give_up(target, error)
            raise

    async def need(self, target: Slot) -> int | None:
        """What its start is expected to take. One that sleeps has some of it already."""
        need = target.expected_bytes
        if need is None or target.phase is Phase.STUCK:  # it has what it needs
            return None
        return max(0, need - (await self._freeing.kept(target) or 0))

    async def _make_room(self, target: Slot) -> None:
        need = await self.need(target)
        if need is None:
            return
        available = await self._owed_back(need)
        if available is None or available >= need:
            return
        await self._free_further(target, short_bytes=need - available)
        await self._a.memory.refresh()
        available = self._a.memory.available()
        if available is not None and available < need:
            log.warning(
                "%s is expected to need %s, but only %s is available; starting it all the same",
                target.id, gib(need), gib(available),
            )  # fmt: skip

    async def _owed_back(self, need: int) -> int | None:
        """Available memory. What an earlier settle left missing, because its own target had enough, is waited for."""
        while True:
            await self._a.memory.refresh()
            available, now = self._a.memory.available(), self._a.now()
            if available is None or available >= need or now >= self._lane.owed_until:
                return available
            if self._swap.step != "settling":
                self._swap.enter("settling", self._a.now())
            await asyncio.sleep(READ_EVERY_S)

    async def _free_further(self, target: Slot, *, short_bytes: int) -> None:
        more = further([*self._lane.residents(), *self._lane.sleeping()], target, short_bytes)
        if more:
            self._close_gates(more)
            await self._freeing.free(more, for_good=True)
            await self._freeing.settle(target.expected_bytes)

    async def _start_once(self, target: Slot) -> None:
        if self._lane.hold is not None or target.is_outdated:
            raise StartEnded
        self._swap.enter("starting", self._a.now())
        await self._a.memory.refresh()
        before = self._a.memory.available()
        # Of what is there already the fall of memory says nothing.
        target.before_start_bytes = before if target.phase is Phase.COLD else None
        target.drop_bytes, target.before_end_bytes, target.kept_bytes = None, None, None
        self._a.move(target, Event.START, self._swap.plan.reason)
        began_at = self._a.now()
        start = self._a.tasks.spawn(self._attempt(target), f"start {target.id}")
        start.add_done_callback(lambda _: self._lane.changed.set())
        try:
            while not start.done():
                if policy.should_end_start(self._lane, target, self._a.rules):
                    raise StartEnded
                self._lane.changed.clear()
                await self._lane.changed.wait()
        except BaseException as error:
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            if isinstance(error, StartEnded):
                await self._freeing.free([target])
                await self._freeing.settle(None)
            raise
        if start.cancelled():
            raise EngineFailed(target.id.engine, f"the start of {target.id} was cancelled")
        if (failure := start.result()) is not None:
            raise failure
        target.learned.start_s = self._a.now() - began_at
        self._a.move(target, Event.READY, "")
        # After the move: whoever waits for it need not wait for the reading.
        await self._a.memory.refresh()
        if target.phase in (Phase.READY, Phase.DRAINING):
            after = self._a.memory.available()
            target.before_end_bytes = after
            known = target.before_start_bytes
            target.drop_bytes = None if known is None or after is None else max(0, known - after)

    async def _attempt(self, target: Slot) -> RouterError | None:
        """One start. A failure is its result: an ordinary thing, and no traceback in the log."""
        try:
            await self._a.engine(target).start(target.id)
        except RouterError as error:
            return error
        except Exception as error:  # a bug of the engine's; the slot is still ended and accounted for
            log.exception("starting %s broke", target.id)
            return EngineFailed(target.id.engine, f"{target.id} could not be started: {error!r}")
        return None

    async def _give_up(self, target: Slot, error: RouterError) -> None:
        """The start failed for good: answer its waiters first, then clear up and wait for the memory."""
        self._a.start_failed(target, error.message)
        self._a.reject(target, error)
        self.has_answered = True
        try:
            if target.phase in (Phase.STARTING, Phase.STUCK):
                await self._freeing.free([target])
        except FreeFailed as stuck:
            log.error("%s failed to start and would not go: %s", target.id, stuck.message)
        else:
            await self._freeing.settle(None)
