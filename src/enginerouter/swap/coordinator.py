"""The one owner of all slots: hands out leases, keeps the queue, and starts the walks.

A request asks for a lease (`try_lease`, or `place` and await the ticket) and gives it back; it never runs a swap.
This is the way in, the life of the whole, and an operator's word. The parts: `board` (what is shared), `leases`
(leases and tickets), `holding`, `dispatch` (what follows from a change; it asks `policy`), `swaps` (walks and moves),
`renewal` (what a reload changes).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence

from enginerouter.engines.base import Ended, EndsLeftovers, Engine, Found, Sleeper
from enginerouter.errors import FreeFailed, NoLongerConfigured, RouterError, ShuttingDown
from enginerouter.slots import SlotId
from enginerouter.swap import circuit, eta, lookout, outside, policy, words
from enginerouter.swap.board import Board
from enginerouter.swap.dispatch import Dispatcher
from enginerouter.swap.eviction import CannotFit, plan_eviction
from enginerouter.swap.hold import Hold
from enginerouter.swap.holding import Holding
from enginerouter.swap.leases import Leases, refusal
from enginerouter.swap.memory import MemorySource
from enginerouter.swap.model import Lane, Learned, Observer, Rules, Slot, SlotSpec
from enginerouter.swap.phases import Event, Phase
from enginerouter.swap.renewal import Renewals, Renewed, SpecOf
from enginerouter.swap.settling import log_settled, wait_settled
from enginerouter.swap.swaps import Swaps
from enginerouter.swap.takeover import Before, owed_by, taken_over
from enginerouter.swap.walk import CUT_GRACE_S
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

# How long a chain's wish for a target that it went past stands.
WISH_S = 300.0


class Coordinator:
    """See the module. `learned` is what an earlier run measured; the slots go on writing to these objects.

    `engines` is kept and changed: a reload adds, replaces and takes away. `renewed` is called when one that had to
    drain first is another, or gone.
    """

    def __init__(
        self,
        specs: Iterable[SlotSpec],
        engines: MutableMapping[str, Engine],
        rules: Rules,
        memory: MemorySource,
        *,
        observer: Observer,
        learned: Mapping[SlotId, Learned] | None = None,
        now: Callable[[], float] = time.monotonic,
        spec_of: SpecOf = SlotSpec,
        renewed: Callable[[], None] = lambda: None,
    ) -> None:
        self._engines = engines
        self._memory = memory
        self._now = now
        self._spec_of = spec_of
        self._tasks = TaskGroup()
        self._turned_at = now()
        self._board = board = Board(specs, rules, learned or {}, now, unasked=engines)
        self._leases = leases = Leases(board, self._dispatch)
        self._holding = holding = Holding(board, leases, self._dispatch)
        self._swaps = Swaps(board, engines, memory, observer, self._tasks, leases, holding, self._dispatch, self._found)
        swaps = self._swaps
        self._renewals = Renewals(
            board, engines, self._tasks, leases, swaps.move, swaps.crashed, self._dispatch, renewed
        )
        self._dispatcher = Dispatcher(board, leases, holding, swaps.begin, self._renewals.renew)
        # The way of every request: no call in between.
        self.try_lease = leases.try_lease
        self.lease_beside = leases.lease_beside
        self.enqueue = leases.enqueue
        self.place = leases.place
        self.leave = leases.leave
        self.hold = holding.hold
        self.release = holding.release
        self.crashed = swaps.crashed
        self.engine_to_be = self._renewals.engine_to_be

    def _dispatch(self, lane: Lane) -> None:
        self._dispatcher.run(lane)

    # --- the life of the coordinator

    async def start(self, clear: Callable[[], Awaitable[Sequence[Ended]]] | None = None) -> None:
        """Take over what an earlier router left running, begin the preloads, and watch; once, and to its end.

        `clear` ends first what belongs to no engine here. A lane begins as soon as all engines that have slots in it
        have answered, and memory that was held by what was ended is back.
        """
        board = self._board
        for engine in self._engines.values():
            engine.watch(self.crashed)
        # Before the rest: taking over may take long, and this is the sign of life that `/health` goes by.
        slots = board.slots.values()
        looking = lookout.look_after(slots, self._engines, self._memory, lambda: board.rules, self._now, self._turn)
        self._tasks.spawn(looking, "look after leases")
        before = await Before.read(self._memory)
        ended = list(await clear()) if clear is not None else []
        async for name, found in taken_over(self._engines):
            engine = self._engines[name]
            if isinstance(engine, EndsLeftovers):
                ended += engine.take_ended()
            self._take_over(name, found)
            await self._note_asleep(engine)
            board.unasked.discard(name)
            for lane in [la for la in board.lanes if any(s.engine == name for s in la.slots)]:
                if ended and lane is board.pool and board.may_swap(lane):
                    lane.settles_since = self._now()
                    self._tasks.spawn(self._settle(lane, before, ended), "wait for memory")
                    ended = []
                else:
                    self._begin_lane(lane)

    async def _settle(self, lane: Lane, before: Before, ended: Sequence[Ended]) -> None:
        """Wait for the memory of what was ended here at the start, then let the lane begin."""
        memory, names = self._memory, ", ".join(str(one.slot) for one in ended)
        try:
            owed = owed_by(ended, before, self._board.slots, counts_host_pages=memory.counts_host_pages)
            settled = await wait_settled(owed, memory, self._board.rules.settle_timeout_s, self._now)
            log_settled(names, settled, memory)
        finally:
            lane.settles_since = None
        self._begin_lane(lane)

    def _begin_lane(self, lane: Lane) -> None:
        if self._board.may_swap(lane):
            for slot in lane.slots.values():
                if slot.spec.is_preloaded and slot.phase is Phase.COLD and not slot.is_outdated:
                    slot.wish = "preload"
        self._dispatch(lane)

    def _dispatch_all(self) -> None:
        for lane in list(self._board.lanes):
            self._dispatch(lane)

    def _take_over(self, engine: str, found: list[SlotId] | FreeFailed) -> None:
        board = self._board
        if isinstance(found, FreeFailed):
            # Nothing is started on top of it; each slot is freed again before its memory is used.
            for slot in [s for s in board.slots.values() if s.id.engine == engine]:
                self._swaps.move(slot, Event.NOT_GONE, found.message)
            return
        for slot_id in found:
            self._renewals.goes_along(slot_id)
            with contextlib.suppress(NoLongerConfigured):  # a reload came before the answer
                self.add(slot_id)
                self._adopted(board.slots[slot_id], "it was running")

    async def _note_asleep(self, engine: Engine) -> None:
        """What sleeps keeps memory that a hold, an unload, or a start that is short of it will want."""
        for slot_id in engine.asleep() if isinstance(engine, Sleeper) else ():
            kept = await engine.held_bytes(slot_id) or 0
            with contextlib.suppress(NoLongerConfigured):
                self.add(slot_id)
                if self._board.slots[slot_id].phase is Phase.COLD:
                    self._board.slots[slot_id].kept_bytes = kept

    async def look_around(self) -> None:
        """Let what others have loaded be known, where no swap is doing so anyhow."""
        lane = self._board.pool
        if lane.swap is None and self._board.may_swap(lane):
            for found in await outside.look(outside.to_ask(lane, self._engines), None):
                self._found(found)

    def _found(self, found: Found) -> None:
        try:
            self.add(found.slot)
        except NoLongerConfigured:
            return
        slot = self._board.slots[found.slot]
        if slot.phase is not Phase.COLD or self._board.is_closing:
            return
        if found.is_ready:
            self._adopted(slot, "loaded by somebody else")
            slot.active_at -= self._board.rules.linger_s  # nobody here has used it
        else:
            self._swaps.move(slot, Event.NOT_GONE, "started by somebody else, and not ready")
        self._dispatch(self._board.lane_of(slot))

    def _adopted(self, slot: Slot, reason: str) -> None:
        now = self._now()
        self._swaps.move(slot, Event.ADOPT, reason)
        slot.before_start_bytes, slot.drop_bytes, slot.kept_bytes = None, None, None
        others = [s for s in self._board.lane_of(slot).residents() if s is not slot]
        try:
            slot.is_unload_wanted = slot.is_outdated or bool(plan_eviction(slot, others, self._board.rules))
        except CannotFit:
            slot.is_unload_wanted = True
        slot.active_at = now

    def add(self, slot_id: SlotId) -> None:
        """Let a slot be known that the configuration did not name (`engine/model`). Nothing for one that is.

        Raises NoLongerConfigured for what a reload has taken away.
        """
        if slot_id in self._board.slots:
            return
        spec = self._spec_of(slot_id)
        if spec is None or slot_id.engine not in self._engines:
            raise words.removed(slot_id)
        self._board.add(spec)

    def refuse_new(self) -> None:
        """From now on nobody is let in, and all who wait are told so. Leases go on."""
        board = self._board
        board.is_closing = True
        for slot in board.slots.values():
            self._leases.reject(slot, ShuttingDown("the router is shutting down; try again shortly", retry_after_s=5))
        self._holding.end(board.pool, "the router is shutting down")
        self._dispatch_all()  # a drain for those who waited is called off

    async def end_leases(self, within_s: float) -> None:
        """Let the running requests end within a time; what still runs then is cut, with a word to its client."""
        self.refuse_new()
        if not await self._all_released_within(within_s):
            self._leases.cut_all()
            await self._all_released_within(CUT_GRACE_S)

    async def _all_released_within(self, seconds: float) -> bool:
        released = self._leases.all_released
        released.clear()
        if not self._board.has_leases:
            return True
        try:
            await asyncio.wait_for(released.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def close(self, *, keeps_engines: bool = False) -> None:
        """Cut what still runs and free every slot, all at once – or leave ready engines running (`on_exit: keep`)."""
        self.refuse_new()
        self._dispatcher.stop()
        self._leases.cut_all()
        await self._tasks.close()
        slots = self._board.slots.values()
        ending = [s for s in slots if s.phase is not Phase.COLD]
        if keeps_engines:
            ending = [s for s in ending if s.phase not in (Phase.READY, Phase.DRAINING)]
        else:
            asleep = [s for s in slots if isinstance(self._engines[s.id.engine], Sleeper)]
            ending += [s for s in asleep if s.phase is Phase.COLD]
        await self._renewals.close()
        results = await asyncio.gather(*(self._end(s) for s in ending), return_exceptions=True)
        for slot, result in zip(ending, results, strict=True):
            if isinstance(result, BaseException):
                log.error("%s could not be stopped: %s", slot.id, result)
            elif slot.phase is not Phase.COLD:
                log.info("%s stopped", slot.id)

    async def _end(self, slot: Slot) -> None:
        """Nothing is put to sleep now."""
        engine, limit_s = self._engines[slot.id.engine], slot.spec.end_within_s
        try:
            async with asyncio.timeout(limit_s):
                await (engine.end(slot.id) if isinstance(engine, Sleeper) else engine.stop(slot.id))
        except TimeoutError:
            raise FreeFailed(engine.name, f"it is not free after {limit_s:g} s and is left as it is") from None

    # --- an operator's word

    async def swap_to(self, slot_id: SlotId, *, key: str = "") -> None:
        """First in line, drained as configured, then held for `swap_min_residency_s`. `key`: whose word it is."""
        lease = self.try_lease(slot_id)
        if lease is None:
            with self.place(slot_id, is_explicit=True, key=key) as ticket:
                lease = await ticket.granted
        slot = lease.slot
        slot.keep_until = self._now() + self._board.rules.min_residency_s
        slot.is_unload_wanted = False  # the last word counts
        lease.release()

    def unload(self, slot_id: SlotId) -> bool:
        """Free a slot when its last lease ends; False where nothing of it is in memory. Never swaps."""
        slot = self._board.slots[slot_id]
        slot.wished_until = 0.0
        if slot.phase is Phase.COLD and not slot.is_asleep:
            return False
        slot.is_unload_wanted = True
        slot.wish = ""
        self._dispatch(self._board.lane_of(slot))
        return True

    def keep_for(self, slot_id: SlotId, idle_s: float) -> None:
        """A client's word on how long a slot may be idle before it is freed, until it is; infinite for always.

        It neither pins a slot nor frees a pinned one, and says nothing of swaps.
        """
        slot, lane = self._at(slot_id)
        slot.kept_s = idle_s
        self._dispatch(lane)

    def wish(self, slot_id: SlotId, *, within_s: float = WISH_S) -> None:
        """Start a slot for nobody in particular, if within a time that costs nobody anything: no gate closes for it."""
        slot, lane = self._at(slot_id)
        if slot.phase in (Phase.STARTING, Phase.READY) or self._board.is_closing:
            return
        slot.wished_until = self._now() + within_s
        lane.wished_until = max(lane.wished_until, slot.wished_until)
        self._dispatch(lane)

    def reset(self, slot_id: SlotId) -> None:
        """Close the start circuit; try once more to free what would not go."""
        slot, lane = self._at(slot_id)
        slot.circuit = circuit.CLOSED
        if slot.phase is Phase.STUCK:
            slot.is_unload_wanted = True
            self._dispatch(lane)

    # --- a reload

    def renew(self, renewed: Renewed, running: Mapping[str, list[SlotId] | FreeFailed]) -> None:
        """Go by another configuration from now on, in one step. `running`: what new engines have in memory already."""
        self._spec_of = renewed.spec_of
        may_start = {slot_id.engine for slot_id in self._renewals.apply(renewed)}
        for name, found in running.items():
            if name in may_start and not any(s.fate for s in self._board.slots.values() if s.id.engine == name):
                self._take_over(name, found)
        self._dispatch_all()

    # --- reading

    @property
    def slots(self) -> Mapping[SlotId, Slot]:
        """For reading only."""
        return self._board.slots

    @property
    def queued(self) -> int:
        return self._board.queued

    @property
    def is_closing(self) -> bool:
        return self._board.is_closing

    @property
    def current_hold(self) -> Hold | None:
        """For reading only."""
        return self._board.pool.hold

    def lane_of(self, slot_id: SlotId) -> Lane:
        """For reading only."""
        return self._at(slot_id)[1]

    def _at(self, slot_id: SlotId) -> tuple[Slot, Lane]:
        slot = self._board.slots[slot_id]
        return slot, self._board.lane_of(slot)

    def seconds_since_turn(self) -> float:
        """Since the background loop last turned: what `/health` and the watchdog judge by."""
        return self._now() - self._turned_at

    def _turn(self) -> None:
        self._turned_at = self._now()

    def eta_s(self, slot_id: SlotId) -> float:
        return eta.until_ready_s(*self._at(slot_id), self._board.rules, self._now())

    def would_evict(self, slot_id: SlotId) -> list[SlotId]:
        """What a swap to this slot would free now. Raises Pinned. Changes nothing."""
        slot, lane = self._at(slot_id)
        try:
            return [other.id for other in policy.in_the_way(slot, lane, self._board.rules)]
        except CannotFit as blocked:
            raise words.pinned(slot, blocked.pinned) from blocked

    def refusal_of(self, slot_id: SlotId) -> RouterError | None:
        """Why a request could not even wait for this slot now. Changes nothing."""
        return refusal(*self._at(slot_id), self._now())

    def known_eta_s(self, slot_id: SlotId) -> float | None:
        """Seconds until a slot may be expected to serve; None where nothing was measured yet."""
        return self.eta_s(slot_id) if eta.is_known(*self._at(slot_id)) else None

    def disturbs(self, slot_id: SlotId, *, within_s: float) -> bool:
        """Whether a start now would make others wait, or evict what has served within so many seconds."""
        return policy.disturbs(*self._at(slot_id), self._board.rules, self._now(), within_s)

    def serves(self, slot_id: SlotId) -> bool:
        """Whether a slot is there for requests."""
        slot = self._board.slots.get(slot_id)
        return slot is not None and slot.phase is Phase.READY and not slot.is_outdated

    def progress(self, slot_id: SlotId) -> str:
        """What a waiter for the slot is waiting for, in a few words: `swap starting llama 12s`."""
        if slot_id not in self._board.slots:
            return f"{slot_id} is no longer configured"
        return words.progress(*self._at(slot_id), self._now())

    def __repr__(self) -> str:
        slots = ", ".join(
            f"{s.id}: {s.phase.value}"
            + (f" {len(s.leases)} in flight" if s.leases else "")
            + (f" {len(s.queue)} queued" if s.queue else "")
            for s in self._board.slots.values()
        )
        return f"<Coordinator {slots}>"
