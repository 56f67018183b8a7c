"""Memory given back: slots are measured, stopped, seen to be gone, and what they held is waited for.

The part of a walk that costs others something: which slots, and when, `walk` says. The rules are in `held` (what a
slot holds) and `settle` (when it is back).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from enginerouter.engines.base import HasProcesses, LoadsOnRequest, Sleeper
from enginerouter.errors import FreeFailed
from enginerouter.swap.held import (
    Measured,
    grown_since_start,
    learn_came_back,
    note_held,
    note_kept,
    own_bytes,
)
from enginerouter.swap.model import Lane, Slot, Swap
from enginerouter.swap.phases import NOTHING_TO_DRAIN, Event, Phase
from enginerouter.swap.settle import Verdict
from enginerouter.swap.settling import Owed, log_settled, wait_settled
from enginerouter.swap.surroundings import Surroundings

log = logging.getLogger(__name__)


class Freeing:
    """What one swap frees. `may_call_off` is asked before the first stop signal for drained slots, and may raise."""

    def __init__(
        self, lane: Lane, swap: Swap, around: Surroundings, may_call_off: Callable[[Sequence[Slot]], None]
    ) -> None:
        self._lane = lane
        self._swap = swap
        self._a = around
        self._may_call_off = may_call_off
        # Availability just before the first stop signal whose memory has not been waited for yet.
        self._before: int | None = None
        # The processes of what was freed: as long as the cards list one, not all is gone.
        self._ended_pids: set[int] = set()

    async def free(self, slots: Sequence[Slot], *, for_good: bool = False) -> None:
        """Stop the slots, all at once, and see that they are gone. Raises FreeFailed; CalledOff while it still may.

        `for_good`: nothing is put to sleep, which would keep some memory. So also for a hold, and for nobody.
        """
        self._swap.enter("freeing", self._a.now())
        measured = await self._measured(slots)
        if any(s.phase is Phase.DRAINING for s in slots):
            self._may_call_off(slots)
        before = self._a.memory.available()
        if not any(s.phase is Phase.SETTLING for s in self._lane.slots.values()):
            self._before = before
        ends = {s.id for s in slots if for_good or s.is_asleep or self._swap.plan.target is None}
        for slot, known in zip(slots, measured, strict=True):
            note_held(slot, known)
            self._a.move(slot, Event.FREE, self._swap.plan.why)
        stops = (self._stop(s, for_good=s.id in ends) for s in slots)
        results = await asyncio.gather(*stops, return_exceptions=True)
        failures: list[FreeFailed] = []
        for slot, result in zip(slots, results, strict=True):
            if isinstance(result, BaseException):
                failures.append(_free_failed(slot, result))
                self._a.move(slot, Event.NOT_GONE, failures[-1].message)
            else:
                self._swap.freed.append(slot.id)
                slot.kept_bytes = result
                note_kept(slot, result or 0)
                self._a.move(slot, Event.GONE, "")
        if failures:
            await self.settle(None)
            raise failures[0]

    async def _stop(self, slot: Slot, *, for_good: bool) -> int | None:
        """Gives what it keeps all the same; None where nothing is left.

        What will not be started as it is now is not put to sleep.
        """
        engine = self._a.engine(slot)
        if (for_good or slot.is_outdated) and isinstance(engine, Sleeper):
            await engine.end(slot.id)
        else:
            await engine.stop(slot.id)
        return await self.kept(slot)

    async def kept(self, slot: Slot) -> int | None:
        """What a freed slot holds on to because it only sleeps; None where it does not."""
        engine = self._a.engine(slot)
        if not isinstance(engine, Sleeper) or slot.id not in engine.asleep():
            return None
        return await engine.held_bytes(slot.id) or 0

    async def _measured(self, slots: Sequence[Slot]) -> list[Measured]:
        """What is known of each slot's memory now. Available memory and the cards' list are fresh afterwards."""
        memory = self._a.memory
        host = await asyncio.gather(*(self._a.engine(s).held_bytes(s.id) for s in slots), return_exceptions=True)
        claimed = await asyncio.gather(*(self._claimed(s) for s in slots))
        await memory.refresh()
        pids = await asyncio.gather(*(self._pids(s) for s in slots))
        self._ended_pids.update(*pids)
        available, counts_host = memory.available(), memory.counts_host_pages
        return [
            Measured(
                own_bytes(
                    bytes_now if isinstance(bytes_now, int) else None,
                    its_pids,
                    memory.processes(),
                    counts_host_pages=counts_host,
                ),
                available,
                its_claim,
                grown_since_start(slot, self._lane.slots.values(), available) if self._may_grow(slot) else None,
            )
            for slot, bytes_now, its_pids, its_claim in zip(slots, host, pids, claimed, strict=True)
        ]

    def _may_grow(self, slot: Slot) -> bool:
        """Whether it may have taken memory after it was ready."""
        engine = self._a.engine(slot)
        return slot.was_unloaded or (isinstance(engine, LoadsOnRequest) and engine.loads_on_request)

    async def _claimed(self, slot: Slot) -> int | None:
        """What its server says it holds of this pool."""
        engine = self._a.engine(slot)
        if not isinstance(engine, LoadsOnRequest) or slot.phase in NOTHING_TO_DRAIN:
            return None
        claim = await engine.claimed(slot.id)
        if claim is None:
            return None
        return claim.all_bytes if self._a.memory.counts_host_pages else claim.device_bytes

    async def _pids(self, slot: Slot) -> Collection[int]:
        engine = self._a.engine(slot)
        if self._a.memory.processes() is None or not isinstance(engine, HasProcesses):
            return ()
        return await engine.pids(slot.id)

    # --- settle

    async def settle(self, need: int | None) -> None:
        """Wait until the memory of all that was freed is really back, then let it be cold."""
        freed = [s for s in self._lane.slots.values() if s.phase is Phase.SETTLING]
        if not freed:
            return
        self._swap.enter("settling", self._a.now())
        missing = [s.missing_bytes for s in freed if s.missing_bytes is not None]
        is_partial = 0 < len(missing) < len(freed)
        is_bound = any(s.missing_is_bound for s in freed)
        owed = Owed(
            self._before,
            sum(missing) if missing else None,
            need=need,
            pids=self._ended_pids,
            is_partial=is_partial,
            is_bound=is_bound,
        )
        settled = await wait_settled(owed, self._a.memory, self._a.rules.settle_timeout_s, self._a.now)
        self._swap.settled = settled
        if settled.verdict is Verdict.ENOUGH:
            self._lane.owed_until = self._a.now() - settled.seconds + self._a.rules.settle_timeout_s
        names = ", ".join(str(s.id) for s in freed)
        log_settled(names, settled, self._a.memory)
        for slot in freed:
            learn_came_back(slot, settled, is_alone=len(freed) == 1)
            self._a.move(slot, Event.SETTLED, settled.verdict.value)


def _free_failed(slot: Slot, error: BaseException) -> FreeFailed:
    if isinstance(error, FreeFailed):
        return error
    log.error("stopping %s broke", slot.id, exc_info=error)
    return FreeFailed(slot.id.engine, f"{slot.id} could not be stopped: {error!r}")
