"""Who may use a slot now, and who waits for it: leases and tickets. Plain functions, each ended by a dispatch.

In one event loop a plain call *is* the serialisation, and no cancellation can stop it halfway.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from enginerouter.errors import LeaseCut, QueueFull, QueueTimedOut, RouterError, ShuttingDown
from enginerouter.slots import SlotId
from enginerouter.swap import circuit, eta, policy, words
from enginerouter.swap.board import Board
from enginerouter.swap.eviction import CannotFit
from enginerouter.swap.model import Lane, Lease, Slot, Ticket
from enginerouter.swap.phases import NOTHING_TO_DRAIN, ON_ITS_WAY_OUT, Phase


class Leases:
    """`dispatch` is called after every change of a lane. `all_released`: set once the last lease ends at shutdown."""

    def __init__(self, board: Board, dispatch: Callable[[Lane], None]) -> None:
        self._board = board
        self._dispatch = dispatch
        self.all_released = asyncio.Event()

    # --- leases

    def try_lease(self, slot_id: SlotId) -> Lease | None:
        """A lease at once, if the slot is ready and nobody is before us; else None, and the caller enqueues."""
        board = self._board
        slot = board.slots[slot_id]
        if slot.phase is not Phase.READY or slot.queue or not slot.has_room or board.is_closing:
            return None
        if board.lane_of(slot).hold is not None:
            return None
        return self._lease(slot)

    def lease_beside(self, slot_id: SlotId) -> Lease | None:
        """A lease for what needs no place of its own (looking at a stored response, cancelling it); never waits."""
        slot = self._board.slots[slot_id]
        return self._lease(slot) if slot.phase in (Phase.READY, Phase.DRAINING) else None

    def _lease(self, slot: Slot) -> Lease:
        now = self._board.now()
        lease = Lease(slot, now, self._released)
        slot.leases.add(lease)
        slot.active_at = now
        return lease

    def _released(self, lease: Lease) -> None:
        board, slot = self._board, lease.slot
        now = board.now()
        slot.leases.discard(lease)
        slot.active_at = now
        if lease.has_answered:
            slot.answered += 1
        lane = board.lane_of(slot)
        if board.is_closing and not board.has_leases:
            self.all_released.set()
        # The hot path: nobody waits, nothing moves, no timer is due that is not set.
        if (
            board.queued
            or lane.swap is not None
            or slot.is_unload_wanted
            or slot.idle_unload_s is not None
            or lane.wished_until > now
        ):
            self._dispatch(lane)

    def cut_all(self) -> None:
        for slot in self._board.slots.values():
            for lease in list(slot.leases):
                lease.cut(LeaseCut("the answer was ended: the router is shutting down"))

    # --- tickets

    def enqueue(self, slot_id: SlotId, *, priority: int = 0, is_explicit: bool = False, key: str = "") -> Ticket:
        """A place in the queue. The caller awaits `granted` and, whatever happens, calls `leave` or uses the lease.

        Raises QueueFull, StartCircuitOpen, Held, ShuttingDown or NoLongerConfigured; other reasons come through
        `granted`.
        """
        board = self._board
        slot, now = board.slots[slot_id], board.now()
        if slot.fate == "removed":
            raise words.removed(slot_id)
        lane = board.lane_of(slot)
        if board.is_closing:
            raise ShuttingDown("the router is shutting down; try again shortly", retry_after_s=5)
        if (refused := refusal(slot, lane, now, is_explicit=is_explicit)) is not None:
            raise refused
        if is_explicit:
            slot.circuit = circuit.CLOSED
        elif board.queued >= board.rules.max_queued:
            raise QueueFull(
                f"{board.queued} requests are waiting already (max_queued_requests); try again later",
                retry_after_s=eta.until_ready_s(slot, lane, board.rules, now),
            )
        ticket = Ticket(
            slot,
            asyncio.get_running_loop().create_future(),
            arrived_at=now,
            waited_before=slot.wait_clock.read(now),
            priority=priority,
            is_explicit=is_explicit,
            key=key,
        )
        if is_explicit:
            slot.queue.appendleft(ticket)
        else:
            slot.queue.append(ticket)
        board.queued += 1
        self._dispatch(lane)
        if lane.swap is not None and lane.hold is None and slot.phase is Phase.COLD:
            self._refuse_if_pinned(slot, lane)
        return ticket

    @contextlib.contextmanager
    def place(
        self, slot_id: SlotId, *, priority: int = 0, is_explicit: bool = False, key: str = ""
    ) -> Iterator[Ticket]:
        """`enqueue`, and `leave` if the wait inside ends without the lease: `lease = await ticket.granted`."""
        ticket = self.enqueue(slot_id, priority=priority, is_explicit=is_explicit, key=key)
        try:
            yield ticket
        except BaseException:
            self.leave(ticket)
            raise

    def leave(self, ticket: Ticket) -> None:
        """The waiter is gone: its place in the queue, or the lease it never picked up, is given back."""
        future = ticket.granted
        if ticket in ticket.slot.queue:
            ticket.slot.queue.remove(ticket)
            self._board.queued -= 1
            future.cancel()
            self._dispatch(self._board.lane_of(ticket.slot))
        elif future.done() and not future.cancelled() and future.exception() is None:
            future.result().release()

    def reject(self, slot: Slot, error: RouterError) -> None:
        """Answer all who wait for a slot."""
        tickets = list(slot.queue)
        slot.queue.clear()
        self._board.queued -= len(tickets)
        for ticket in tickets:
            _fail(ticket, error)

    def _refuse_if_pinned(self, slot: Slot, lane: Lane) -> None:
        try:
            policy.in_the_way(slot, lane, self._board.rules)
        except CannotFit as blocked:
            self.reject(slot, words.pinned(slot, blocked.pinned))

    # --- for the dispatch

    def grant(self, lane: Lane, now: float) -> None:
        """Give a lease to all who can have one now; refuse those whose slot may not be started."""
        for slot in lane.slots.values():
            if slot.queue and may_not_start(slot, now):
                self.reject(slot, words.circuit_open(slot, now))
            while ticket := policy.grantable(slot, lane):
                slot.queue.popleft()
                self._board.queued -= 1
                if not ticket.granted.done():
                    ticket.granted.set_result(self._lease(slot))

    def expire(self, lane: Lane, now: float) -> None:
        """Answer those who have waited too long for their swap to begin."""
        limit = self._board.rules.queue_timeout_s
        for slot in lane.slots.values():
            if is_under_way(slot, lane):
                continue
            for ticket in [t for t in slot.queue if now - t.arrived_at >= limit]:
                slot.queue.remove(ticket)
                self._board.queued -= 1
                error = QueueTimedOut(
                    f"waited {limit:g} s for {slot.id} (queue_timeout_s): {_why_still(slot)}; try again later",
                    retry_after_s=eta.until_ready_s(slot, lane, self._board.rules, now),
                )
                _fail(ticket, error)

    def deadlines(self, lane: Lane) -> list[float]:
        """When those who wait in a lane will have waited too long: the first of each slot."""
        limit = self._board.rules.queue_timeout_s
        waiting = [s for s in lane.slots.values() if s.queue and not is_under_way(s, lane)]
        return [min(t.arrived_at for t in s.queue) + limit for s in waiting]


def refusal(slot: Slot, lane: Lane, now: float, *, is_explicit: bool = False) -> RouterError | None:
    """Why nobody may wait for a slot now: a hold, or (but for an operator's word) its start circuit."""
    if (hold := lane.hold) is not None and hold.mode == "refuse" and not hold.is_over(now):
        return hold.refusal(now)
    return words.circuit_open(slot, now) if not is_explicit and may_not_start(slot, now) else None


def may_not_start(slot: Slot, now: float) -> bool:
    """Whether the start circuit stands between the slot and whoever wants it; a resident slot is used all the same."""
    is_down = slot.phase is Phase.COLD or slot.phase in NOTHING_TO_DRAIN or slot.phase in ON_ITS_WAY_OUT
    return is_down and slot.circuit.is_open(now)


def is_under_way(slot: Slot, lane: Lane) -> bool:
    """Whether the swap that its waiters wait for has begun: they are not timed out any more."""
    return lane.swap is not None and lane.swap.plan.target == slot.id and lane.swap.step != "checking"


def _why_still(slot: Slot) -> str:
    if slot.is_outdated:
        return "its configuration has changed, and answers of before are not at their end"
    return "has had no room (max_in_flight)" if slot.phase is Phase.READY else "its swap has not begun"


def _fail(ticket: Ticket, error: RouterError) -> None:
    if not ticket.granted.done():
        ticket.granted.set_exception(error)
        # The waiter may have gone in this very turn; then nobody reads the exception, and that is fine.
        ticket.granted.exception()
