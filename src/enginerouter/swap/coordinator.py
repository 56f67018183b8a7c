"""The one owner of all slots: hands out leases, keeps the queue, and starts the walks.

A request asks for a lease (`try_lease`, or `enqueue` and await the ticket) and gives it back; it never runs a swap.
Everything here but `start`, `close`, `swap_to`, `unload` and the background loop is a plain function: in one event
loop a plain call *is* the serialisation, and no cancellation can stop it halfway. Each of them ends in `_dispatch`,
which grants what can be granted, asks `policy` for the next step, and sets one timer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from enginerouter.engines.base import Engine, Sleeper
from enginerouter.errors import (
    EngineCrashed,
    EngineFailed,
    EngineUnavailable,
    FreeFailed,
    LeaseCut,
    QueueFull,
    QueueTimedOut,
    RouterError,
    ShuttingDown,
)
from enginerouter.slots import SlotId
from enginerouter.swap import circuit, eta, lookout, policy, words
from enginerouter.swap.eviction import CannotFit, plan_eviction
from enginerouter.swap.hold import Hold, HoldDrain, HoldMode
from enginerouter.swap.memory import MemorySource
from enginerouter.swap.model import (
    Lane,
    Learned,
    Lease,
    Observer,
    Plan,
    Rules,
    Slot,
    SlotSpec,
    Swap,
    SwapReport,
    Ticket,
)
from enginerouter.swap.phases import NOTHING_TO_DRAIN, ON_ITS_WAY_OUT, Event, Phase
from enginerouter.swap.takeover import taken_over
from enginerouter.swap.walk import CUT_GRACE_S, CalledOff, StartEnded, Surroundings, Walk
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

# A slot that dies this soon after it was ready has not proved that it can serve.
PROVED_AFTER_S = 60.0
# How long a chain's wish for a target that it went past stands.
WISH_S = 300.0
_IN_USE = frozenset({Phase.STARTING, Phase.READY, Phase.DRAINING})


class Coordinator:
    """See the module. `learned` is what an earlier run measured; the slots go on writing to these objects."""

    def __init__(
        self,
        specs: Iterable[SlotSpec],
        engines: Mapping[str, Engine],
        rules: Rules,
        memory: MemorySource,
        *,
        observer: Observer,
        learned: Mapping[SlotId, Learned] | None = None,
        now: Callable[[], float] = time.monotonic,
        spec_of: Callable[[SlotId], SlotSpec] = SlotSpec,
    ) -> None:
        self._learned = learned or {}
        self._spec_of = spec_of
        self._slots = {s.id: Slot(s, learned=self._learned.get(s.id) or Learned()) for s in specs}
        self._lanes = _lanes(self._slots.values())
        # Where memory is held: the lane of all that has any.
        self._pool = next((lane for lane in self._lanes if any(_has_memory(s) for s in lane.slots.values())), Lane({}))
        self._lane_of = {slot_id: lane for lane in self._lanes for slot_id in lane.slots}
        self._engines = engines
        self._rules = rules
        self._memory = memory
        self._observer = observer
        self._now = now
        self._tasks = TaskGroup()
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._timer_at: dict[int, float] = {}
        self._queued = 0
        # Engines that have not said yet what of theirs is left running: in their lanes no swap begins.
        self._unasked = set(engines)
        self._is_closing = False
        self._released_all = asyncio.Event()
        self._turned_at = now()

    # --- the life of the coordinator

    async def start(self) -> None:
        """Take over what an earlier router left running, begin the preloads, and watch; once, and to its end.

        A lane begins as soon as all engines that have slots in it have answered.
        """
        for engine in self._engines.values():
            engine.watch(self.crashed)
        # Before the rest: taking over may take long, and this is the sign of life that `/health` goes by.
        slots = self._slots.values()
        looking = lookout.look_after(slots, self._engines, self._memory, self._rules, self._now, self._turn)
        self._tasks.spawn(looking, "look after leases")
        async for name, adopted in taken_over(self._engines):
            if isinstance(adopted, FreeFailed):
                # Nothing is started on top of it; each slot is freed again before its memory is used.
                for slot in [s for s in self._slots.values() if s.id.engine == name]:
                    self._move(slot, Event.NOT_GONE, adopted.message)
            else:
                for slot_id in adopted:
                    self.add(slot_id)
                    self._adopted(self._slots[slot_id])
            self._unasked.discard(name)
            for lane in [la for la in self._lanes if any(s.engine == name for s in la.slots)]:
                self._begin_lane(lane)

    def _begin_lane(self, lane: Lane) -> None:
        if self._may_swap(lane):
            for slot in lane.slots.values():
                slot.wish = "preload" if slot.spec.is_preloaded and slot.phase is Phase.COLD else ""
        self._dispatch(lane)

    def _may_swap(self, lane: Lane) -> bool:
        return not self._unasked or all(s.engine not in self._unasked for s in lane.slots)

    def _adopted(self, slot: Slot) -> None:
        now = self._now()
        self._move(slot, Event.ADOPT, "left running by an earlier router")
        lane = self._lane_of[slot.id]
        others = [s for s in lane.residents() if s is not slot]
        try:
            slot.is_unload_wanted = bool(plan_eviction(slot, others, self._rules))
        except CannotFit:
            slot.is_unload_wanted = True
        slot.active_at = now

    def add(self, slot_id: SlotId) -> None:
        """Let a slot be known that the configuration did not name (`engine/model`). Nothing for one that is."""
        if slot_id in self._slots:
            return
        slot = Slot(self._spec_of(slot_id), learned=self._learned.get(slot_id) or Learned())
        self._slots[slot_id] = slot
        shared = next((lane for lane in self._lanes if lane.is_shared), None) if slot.spec.holds_memory else None
        if shared is None:
            shared = Lane({}, is_shared=slot.spec.holds_memory)
            self._lanes.append(shared)
        shared.slots[slot_id] = slot
        self._lane_of[slot_id] = shared

    def refuse_new(self) -> None:
        """From now on nobody is let in, and all who wait are told so. Leases go on."""
        self._is_closing = True
        for slot in self._slots.values():
            self._reject(slot, ShuttingDown("the router is shutting down; try again shortly", retry_after_s=5))
        self._end_hold(self._pool, "the router is shutting down")
        for lane in self._lanes:
            self._dispatch(lane)  # a drain for those who waited is called off

    async def end_leases(self, within_s: float) -> None:
        """Let the running requests end within a time; what still runs then is cut, with a word to its client."""
        self.refuse_new()
        if not await self._all_released_within(within_s):
            self._cut_all()
            await self._all_released_within(CUT_GRACE_S)

    async def _all_released_within(self, seconds: float) -> bool:
        self._released_all.clear()
        if not any(s.leases for s in self._slots.values()):
            return True
        try:
            await asyncio.wait_for(self._released_all.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _cut_all(self) -> None:
        for slot in self._slots.values():
            for lease in list(slot.leases):
                lease.cut(LeaseCut("the answer was ended: the router is shutting down"))

    async def close(self, *, keeps_engines: bool = False) -> None:
        """Cut what still runs and free every slot, all at once – or leave ready engines running (`on_exit: keep`)."""
        self.refuse_new()
        for timer in self._timers.values():
            timer.cancel()
        self._cut_all()
        await self._tasks.close()
        ending = [s for s in self._slots.values() if s.phase is not Phase.COLD]
        if keeps_engines:
            ending = [s for s in ending if s.phase not in (Phase.READY, Phase.DRAINING)]
        else:
            asleep = [s for s in self._slots.values() if isinstance(self._engines[s.id.engine], Sleeper)]
            ending += [s for s in asleep if s.phase is Phase.COLD]
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

    # --- leases

    def try_lease(self, slot_id: SlotId) -> Lease | None:
        """A lease at once, if the slot is ready and nobody is before us; else None, and the caller enqueues."""
        slot = self._slots[slot_id]
        if slot.phase is not Phase.READY or slot.queue or not slot.has_room or self._is_closing:
            return None
        if self._lane_of[slot_id].hold is not None:
            return None
        return self._lease(slot)

    def lease_beside(self, slot_id: SlotId) -> Lease | None:
        """A lease for what needs no place of its own (looking at a stored response, cancelling it); never waits."""
        slot = self._slots[slot_id]
        return self._lease(slot) if slot.phase in (Phase.READY, Phase.DRAINING) else None

    def enqueue(self, slot_id: SlotId, *, priority: int = 0, is_explicit: bool = False) -> Ticket:
        """A place in the queue. The caller awaits `granted` and, whatever happens, calls `leave` or uses the lease.

        Raises QueueFull, StartCircuitOpen, Held or ShuttingDown; other reasons come through `granted`.
        """
        slot, now = self._slots[slot_id], self._now()
        lane = self._lane_of[slot_id]
        if self._is_closing:
            raise ShuttingDown("the router is shutting down; try again shortly", retry_after_s=5)
        if (hold := lane.hold) is not None and hold.mode == "refuse" and not hold.is_over(now):
            raise hold.refusal(now)
        if is_explicit:
            slot.circuit = circuit.CLOSED
        elif _may_not_start(slot, now):
            raise words.circuit_open(slot, now)
        elif self._queued >= self._rules.max_queued:
            raise QueueFull(
                f"{self._queued} requests are waiting already (max_queued_requests); try again later",
                retry_after_s=eta.until_ready_s(slot, lane, self._rules, now),
            )
        ticket = Ticket(
            slot,
            asyncio.get_running_loop().create_future(),
            arrived_at=now,
            waited_before=slot.wait_clock.read(now),
            priority=priority,
            is_explicit=is_explicit,
        )
        if is_explicit:
            slot.queue.appendleft(ticket)
        else:
            slot.queue.append(ticket)
        self._queued += 1
        self._dispatch(lane)
        if lane.swap is not None and lane.hold is None and slot.phase is Phase.COLD:
            self._refuse_if_pinned(slot, lane)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The waiter is gone: its place in the queue, or the lease it never picked up, is given back."""
        future = ticket.granted
        if ticket in ticket.slot.queue:
            ticket.slot.queue.remove(ticket)
            self._queued -= 1
            future.cancel()
            self._dispatch(self._lane_of[ticket.slot.id])
        elif future.done() and not future.cancelled() and future.exception() is None:
            future.result().release()

    def _lease(self, slot: Slot) -> Lease:
        now = self._now()
        lease = Lease(slot, now, self._released)
        slot.leases.add(lease)
        slot.active_at = now
        return lease

    def _released(self, lease: Lease) -> None:
        slot, now = lease.slot, self._now()
        slot.leases.discard(lease)
        slot.active_at = now
        if lease.has_answered:
            slot.answered += 1
        lane = self._lane_of[slot.id]
        if self._is_closing and not any(s.leases for s in self._slots.values()):
            self._released_all.set()
        # The hot path: nobody waits, nothing moves, no timer is due that is not set.
        if (
            self._queued
            or lane.swap is not None
            or slot.is_unload_wanted
            or slot.spec.idle_unload_s is not None
            or lane.wished_until > now
        ):
            self._dispatch(lane)

    # --- what engines and operators say

    def crashed(self, slot_id: SlotId, error: EngineCrashed) -> None:
        """A ready slot died. Its requests end, the next one starts it again – unless it does this too often."""
        slot, now = self._slots[slot_id], self._now()
        if slot.phase is Phase.STARTING or (slot.phase is Phase.COLD and slot_id.engine in self._unasked):
            # Between the engine's "ready" (or "taken over") and ours; `_move` comes back to it.
            slot.early_crash = error
        if slot.phase not in (Phase.READY, Phase.DRAINING):
            return
        is_leaving = slot.phase is Phase.DRAINING or slot.is_unload_wanted
        has_proved = slot.answered > 0 and now - slot.ready_at >= PROVED_AFTER_S
        for lease in list(slot.leases):
            lease.cut(error)
        self._move(slot, Event.CRASH, error.message)
        if has_proved:
            slot.circuit = circuit.CLOSED
        elif not error.was_stopped:
            self._start_failed(slot, error.message)
        if slot.spec.restarts and not is_leaving and not error.was_stopped:
            slot.wish = "restart"
        self._dispatch(self._lane_of[slot_id])

    async def swap_to(self, slot_id: SlotId) -> None:
        """An operator's word: first in line, drained as configured, then held for `swap_min_residency_s`."""
        slot = self._slots[slot_id]
        lease = self.try_lease(slot_id)
        if lease is None:
            ticket = self.enqueue(slot_id, is_explicit=True)
            try:
                lease = await ticket.granted
            except BaseException:
                self.leave(ticket)
                raise
        slot.keep_until = self._now() + self._rules.min_residency_s
        slot.is_unload_wanted = False  # the last word counts
        lease.release()

    def unload(self, slot_id: SlotId) -> bool:
        """Free a slot when its last lease ends; False where nothing of it is in memory. Never swaps."""
        slot = self._slots[slot_id]
        slot.wished_until = 0.0
        if slot.phase is Phase.COLD:
            return False
        slot.is_unload_wanted = True
        slot.wish = ""
        self._dispatch(self._lane_of[slot_id])
        return True

    def wish(self, slot_id: SlotId, *, within_s: float = WISH_S) -> None:
        """Start a slot for nobody in particular, if within a time that costs nobody anything: no gate closes for it."""
        slot, lane = self._slots[slot_id], self._lane_of[slot_id]
        if slot.phase in (Phase.STARTING, Phase.READY) or self._is_closing:
            return
        slot.wished_until = self._now() + within_s
        lane.wished_until = max(lane.wished_until, slot.wished_until)
        self._dispatch(lane)

    def hold(
        self, owner: str, *, mode: HoldMode = "refuse", expires_s: float | None = None, drain: HoldDrain | None = None
    ) -> Hold:
        """Free all memory and keep it free for `owner`, who may say so again with other words. Pins do not count.

        `Hold.decided` tells when it is free, or that it will not be; `expires_s` counts from then.
        Raises HeldByOther or ShuttingDown.
        """
        lane, now = self._pool, self._now()
        if self._is_closing:
            raise ShuttingDown("the router is shutting down; try again shortly", retry_after_s=5)
        if lane.hold is not None and lane.hold.is_over(now):
            self._end_hold(lane, "it has expired")
        if lane.hold is not None and lane.hold.owner != owner:
            raise lane.hold.taken(owner)
        if lane.hold is None:
            lane.hold = Hold(owner, mode, began_at=now)
            for slot in lane.slots.values():
                if slot.spec.is_pinned and not slot.is_unload_wanted and slot.phase in _IN_USE:
                    slot.wish = "preload"  # again, when the hold is over
        hold = lane.hold
        hold.mode, hold.drain, hold.lasts_s = mode, drain, expires_s
        if hold.is_free:
            hold.count_from(now)
        log.info("memory is held for %r (%s)%s", owner, mode, "" if expires_s is None else f" for {expires_s:g} s")
        if mode == "refuse":
            for slot in lane.slots.values():
                self._reject(slot, hold.refusal(now))
        self._dispatch(lane)
        return hold

    def release(self, owner: str | None = None) -> bool:
        """End the hold (of `owner`, or whoever has it); False if there is none. Raises HeldByOther."""
        lane = self._pool
        if lane.hold is None:
            return False
        if owner is not None and lane.hold.owner != owner:
            raise lane.hold.taken(owner)
        self._end_hold(lane, "it was released")
        self._dispatch(lane)
        return True

    def _end_hold(self, lane: Lane, why: str, error: RouterError | None = None) -> None:
        hold, lane.hold = lane.hold, None
        if hold is None:
            return
        log.log(logging.WARNING if error is not None else logging.INFO, "the hold of %r has ended: %s", hold.owner, why)
        hold.decide(error or EngineUnavailable(f"the hold ended before the memory was free: {why}"))
        for slot in lane.slots.values():
            if slot.phase in (Phase.READY, Phase.DRAINING):
                slot.wish = ""  # it never left

    def reset(self, slot_id: SlotId) -> None:
        """Close the start circuit."""
        self._slots[slot_id].circuit = circuit.CLOSED

    # --- reading

    @property
    def slots(self) -> Mapping[SlotId, Slot]:
        """For reading only."""
        return self._slots

    @property
    def queued(self) -> int:
        return self._queued

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    @property
    def current_hold(self) -> Hold | None:
        """For reading only."""
        return self._pool.hold

    def lane_of(self, slot_id: SlotId) -> Lane:
        """For reading only."""
        return self._lane_of[slot_id]

    def seconds_since_turn(self) -> float:
        """Since the background loop last turned: what `/health` and the watchdog judge by."""
        return self._now() - self._turned_at

    def _turn(self) -> None:
        self._turned_at = self._now()

    def eta_s(self, slot_id: SlotId) -> float:
        return eta.until_ready_s(self._slots[slot_id], self._lane_of[slot_id], self._rules, self._now())

    def would_evict(self, slot_id: SlotId) -> list[SlotId]:
        """What a swap to this slot would free now. Raises Pinned. Changes nothing."""
        slot, lane = self._slots[slot_id], self._lane_of[slot_id]
        try:
            return [other.id for other in policy.in_the_way(slot, lane, self._rules)]
        except CannotFit as blocked:
            raise words.pinned(slot, blocked.pinned) from blocked

    def known_eta_s(self, slot_id: SlotId) -> float | None:
        """Seconds until a slot may be expected to serve; None where nothing was measured yet."""
        return self.eta_s(slot_id) if eta.is_known(self._slots[slot_id], self._lane_of[slot_id]) else None

    def disturbs(self, slot_id: SlotId, *, within_s: float) -> bool:
        """Whether a start now would make others wait, or evict what has served within so many seconds."""
        return policy.disturbs(self._slots[slot_id], self._lane_of[slot_id], self._rules, self._now(), within_s)

    def progress(self, slot_id: SlotId) -> str:
        """What a waiter for the slot is waiting for, in a few words: `swap starting llama 12s`."""
        return words.progress(self._slots[slot_id], self._lane_of[slot_id], self._now())

    def __repr__(self) -> str:
        slots = ", ".join(
            f"{s.id}: {s.phase.value}"
            + (f" {len(s.leases)} in flight" if s.leases else "")
            + (f" {len(s.queue)} queued" if s.queue else "")
            for s in self._slots.values()
        )
        return f"<Coordinator {slots}>"

    # --- the dispatch

    def _dispatch(self, lane: Lane) -> None:
        """Grant what can be granted, begin what should begin, wake up when there may be more to do."""
        now = self._now()
        if lane.hold is not None and lane.hold.is_over(now):
            self._end_hold(lane, "it has expired")
        for slot in lane.slots.values():
            if slot.queue and _may_not_start(slot, now):
                self._reject(slot, words.circuit_open(slot, now))
            while ticket := policy.grantable(slot, lane):
                slot.queue.popleft()
                self._queued -= 1
                if not ticket.granted.done():
                    ticket.granted.set_result(self._lease(slot))
        self._expire(lane, now)  # after the grants: a swap that took long has not made its own waiters too late
        until: float | None = None
        if lane.swap is not None:
            lane.changed.set()
        elif self._may_swap(lane) and not self._is_closing:
            until = self._next(lane, now)
        if lane.hold is not None and lane.swap is None and self._may_swap(lane) and not lane.residents():
            lane.hold.freed(now)
        self._run_clocks(lane, now)
        self._set_timer(lane, until)

    def _run_clocks(self, lane: Lane, now: float) -> None:
        for slot in lane.slots.values():
            slot.wait_clock.run(policy.is_clock_running(slot, lane, self._rules), now)

    def _next(self, lane: Lane, now: float) -> float | None:
        while True:
            said = policy.next_step(lane, self._rules, now)
            if isinstance(said, policy.Wait):
                return said.until
            if isinstance(said, policy.Begin):
                self._begin(lane, said.plan, now)
                return None
            self._reject(said.slot, words.pinned(said.slot, said.pinned))

    def _refuse_if_pinned(self, slot: Slot, lane: Lane) -> None:
        try:
            policy.in_the_way(slot, lane, self._rules)
        except CannotFit as blocked:
            self._reject(slot, words.pinned(slot, blocked.pinned))

    def _expire(self, lane: Lane, now: float) -> None:
        limit = self._rules.queue_timeout_s
        for slot in lane.slots.values():
            if _is_under_way(slot, lane):
                continue
            for ticket in [t for t in slot.queue if now - t.arrived_at >= limit]:
                slot.queue.remove(ticket)
                self._queued -= 1
                what = "has had no room (max_in_flight)" if slot.phase is Phase.READY else "its swap has not begun"
                error = QueueTimedOut(
                    f"waited {limit:g} s for {slot.id} (queue_timeout_s): {what}; try again later",
                    retry_after_s=eta.until_ready_s(slot, lane, self._rules, now),
                )
                _fail(ticket, error)

    def _set_timer(self, lane: Lane, until: float | None) -> None:
        limit = self._rules.queue_timeout_s
        waiting = [s for s in lane.slots.values() if s.queue and not _is_under_way(s, lane)]
        deadlines = [min(t.arrived_at for t in s.queue) + limit for s in waiting]
        if until is not None:
            deadlines.append(until)
        if lane.hold is not None and lane.hold.expires_at is not None:
            deadlines.append(lane.hold.expires_at)
        at = min(deadlines, default=None)
        key = id(lane)
        if (old := self._timers.get(key)) is not None:
            if self._timer_at[key] == at:
                return
            old.cancel()
            del self._timers[key], self._timer_at[key]
        if at is not None and not self._is_closing:
            # A hair late rather than early: a timer that fires before its moment would only be set again.
            delay = max(0.0, at - self._now()) + 0.0005
            self._timers[key] = asyncio.get_running_loop().call_later(delay, self._timer_fired, lane)
            self._timer_at[key] = at

    def _timer_fired(self, lane: Lane) -> None:
        self._timers.pop(id(lane), None)
        self._timer_at.pop(id(lane), None)
        self._dispatch(lane)

    # --- swaps

    def _begin(self, lane: Lane, plan: Plan, now: float) -> None:
        if plan.target is not None:
            for slot in policy.overtaken(lane, lane.slots[plan.target], self._rules):
                slot.wish = ""
        lane.swap = Swap(plan, began_at=now, step_since=now)
        around = Surroundings(
            engines=self._engines,
            rules=self._rules,
            memory=self._memory,
            tasks=self._tasks,
            now=self._now,
            move=self._move,
            reject=self._reject,
            start_failed=self._start_failed,
        )
        walk = Walk(lane, lane.swap, around)
        self._tasks.spawn(self._walk(lane, lane.swap, walk), f"swap to {plan.target or 'nothing'}")

    async def _walk(self, lane: Lane, swap: Swap, walk: Walk) -> None:
        """Run one walk to its end, whatever that is; the only place where its errors become results."""
        result, message = "ok", ""
        try:
            await walk.run()
        except CalledOff as off:
            result = off.result or ("called_off" if swap.freed else "")
        except StartEnded:
            result, message = "ended", "nobody waited for it any more"
        except RouterError as error:
            result, message = ("refused" if error.code == "engine_busy" else "failed"), error.message
            # Those who came after the failure was told wait for a start of their own.
            self._reject_target(lane, swap, None if walk.has_answered else error)
            self._roll_back(lane, swap)
        except asyncio.CancelledError:
            result = "cancelled"
            raise
        except Exception as error:  # a background task's edge: nobody is left waiting
            log.exception("the swap to %s broke", swap.plan.target)
            result, message = "failed", f"internal error: {error}"
            self._reject_target(lane, swap, EngineFailed(str(swap.plan.target), "the swap broke; see the log"))
            self._roll_back(lane, swap)
        finally:
            self._swap_over(lane, swap, result, message)

    def _reject_target(self, lane: Lane, swap: Swap, error: RouterError | None) -> None:
        if swap.plan.target is not None:
            slot = lane.slots[swap.plan.target]
            slot.wish = ""
            slot.wished_until = 0.0
            if error is not None:
                self._reject(slot, error)
        elif swap.plan.reason == policy.HOLD and error is not None:
            # Nothing is left half held, and nothing is tried for ever.
            self._end_hold(lane, error.message, error)

    def _roll_back(self, lane: Lane, swap: Swap) -> None:
        """What was freed for a target that did not start is wanted again, where it is configured so."""
        for slot_id in swap.freed if swap.plan.target is not None else ():
            slot = lane.slots[slot_id]
            if slot.spec.rolls_back and slot_id != swap.plan.target:
                slot.wish = "rollback"

    def _swap_over(self, lane: Lane, swap: Swap, result: str, message: str) -> None:
        now = self._now()
        swap.enter("over", now)
        lane.swap = None
        if result:
            report = SwapReport(
                swap.plan,
                result,
                total_s=now - swap.began_at,
                seconds=swap.seconds,
                settled=swap.settled,
                freed=tuple(swap.freed),
                in_flight_at_start=swap.in_flight_at_start,
                error=message,
            )
            words.log_report(report)
            try:
                self._observer.swap_ended(report)
            except Exception:  # as in `_move`
                log.exception("an observer of swaps broke")
        if not self._is_closing:
            self._dispatch(lane)

    def _move(self, slot: Slot, event: Event, reason: str) -> None:
        now = self._now()
        before = slot.move(event, now)
        after = slot.phase
        if after is Phase.READY and before is not Phase.DRAINING:
            slot.ready_at = slot.active_at = now
            slot.answered = 0
            slot.wish = ""
            slot.wished_until = 0.0
        if after is Phase.READY and slot.early_crash is not None:
            asyncio.get_running_loop().call_soon(self.crashed, slot.id, slot.early_crash)
        if event in (Event.START, Event.READY, Event.ADOPT):
            slot.early_crash = None
        if event is Event.FREE and before is Phase.DRAINING and slot.answered:
            # A whole life without a crash: what failed before it is history.
            slot.circuit = circuit.CLOSED
        if after in (Phase.COLD, Phase.STUCK):
            slot.is_unload_wanted = False
        self._run_clocks(self._lane_of[slot.id], now)
        level = logging.WARNING if after in (Phase.CRASHED, Phase.STUCK) else logging.INFO
        log.log(level, "%s %s -> %s%s", slot.id, before.value, after.value, f" ({reason})" if reason else "")
        try:
            self._observer.slot_moved(slot.id, before, after, reason)
        except Exception:  # an observer's bug stays its own: the slot has moved, and the walk goes on
            log.exception("an observer of %s broke", slot.id)

    def _start_failed(self, slot: Slot, reason: str) -> None:
        slot.circuit = circuit.after_failure(slot.circuit, reason, max_restarts=slot.spec.max_restarts, now=self._now())
        if slot.circuit.is_open(self._now()):
            pause = slot.circuit.open_until - self._now()
            log.error(
                "%s failed %d times in a row and is left alone for %.0f s",
                slot.id,
                slot.circuit.failures,
                pause,
            )

    def _reject(self, slot: Slot, error: RouterError) -> None:
        tickets = list(slot.queue)
        slot.queue.clear()
        self._queued -= len(tickets)
        for ticket in tickets:
            _fail(ticket, error)


def _has_memory(slot: Slot) -> bool:
    return slot.spec.holds_memory


def _may_not_start(slot: Slot, now: float) -> bool:
    """Whether the start circuit stands between the slot and whoever wants it; a resident slot is used all the same."""
    is_down = slot.phase is Phase.COLD or slot.phase in NOTHING_TO_DRAIN or slot.phase in ON_ITS_WAY_OUT
    return is_down and slot.circuit.is_open(now)


def _is_under_way(slot: Slot, lane: Lane) -> bool:
    """Whether the swap that its waiters wait for has begun: they are not timed out any more."""
    return lane.swap is not None and lane.swap.plan.target == slot.id and lane.swap.step != "checking"


def _fail(ticket: Ticket, error: RouterError) -> None:
    if not ticket.granted.done():
        ticket.granted.set_exception(error)
        # The waiter may have gone in this very turn; then nobody reads the exception, and that is fine.
        ticket.granted.exception()


def _lanes(slots: Iterable[Slot]) -> list[Lane]:
    """All memory holders share one lane; the slots of every other engine have their own."""
    shared: dict[SlotId, Slot] = {}
    apart: dict[str, dict[SlotId, Slot]] = {}
    for slot in slots:
        lane = shared if slot.spec.holds_memory else apart.setdefault(slot.id.engine, {})
        lane[slot.id] = slot
    lanes = [Lane(shared, is_shared=True)] if shared else []
    return lanes + [Lane(lane) for lane in apart.values()]
