"""Holds begun, renewed and ended: all memory kept free for another program (`hold` is what one is)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from enginerouter.errors import EngineUnavailable, RouterError, ShuttingDown
from enginerouter.swap.board import Board
from enginerouter.swap.hold import Hold, HoldDrain, HoldMode
from enginerouter.swap.leases import Leases
from enginerouter.swap.model import Lane
from enginerouter.swap.phases import Phase

log = logging.getLogger(__name__)

_IN_USE = frozenset({Phase.STARTING, Phase.READY, Phase.DRAINING})


class Holding:
    """The hold of the lane that holds memory, if there is one."""

    def __init__(self, board: Board, leases: Leases, dispatch: Callable[[Lane], None]) -> None:
        self._board = board
        self._leases = leases
        self._dispatch = dispatch

    def hold(
        self, owner: str, *, mode: HoldMode = "refuse", expires_s: float | None = None, drain: HoldDrain | None = None
    ) -> Hold:
        """Free all memory and keep it free for `owner`, who may say so again with other words. Pins do not count.

        `Hold.decided` tells when it is free, or that it will not be; `expires_s` counts from then.
        Raises HeldByOther or ShuttingDown.
        """
        lane, now = self._board.pool, self._board.now()
        if self._board.is_closing:
            raise ShuttingDown("the router is shutting down; try again shortly", retry_after_s=5)
        self.end_if_over(lane, now)
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
                self._leases.reject(slot, hold.refusal(now))
        self._dispatch(lane)
        return hold

    def release(self, owner: str | None = None) -> bool:
        """End the hold (of `owner`, or whoever has it); False if there is none. Raises HeldByOther."""
        lane = self._board.pool
        if lane.hold is None:
            return False
        if owner is not None and lane.hold.owner != owner:
            raise lane.hold.taken(owner)
        self.end(lane, "it was released")
        self._dispatch(lane)
        return True

    def end_if_over(self, lane: Lane, now: float) -> None:
        if lane.hold is not None and lane.hold.is_over(now):
            self.end(lane, "it has expired")

    def end(self, lane: Lane, why: str, error: RouterError | None = None) -> None:
        """The memory is free for engines again. Nothing where there is no hold."""
        hold, lane.hold = lane.hold, None
        if hold is None:
            return
        log.log(logging.WARNING if error is not None else logging.INFO, "the hold of %r has ended: %s", hold.owner, why)
        hold.decide(error or EngineUnavailable(f"the hold ended before the memory was free: {why}"))
        for slot in lane.slots.values():
            if slot.phase in (Phase.READY, Phase.DRAINING):
                slot.wish = ""  # it never left
