"""What follows from a change: leases are granted, swaps begin, and one timer per lane wakes us when more is due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from enginerouter.swap import policy, words
from enginerouter.swap.board import Board
from enginerouter.swap.holding import Holding
from enginerouter.swap.leases import Leases
from enginerouter.swap.model import Lane, Plan


class Dispatcher:
    """`begin` starts a walk by a plan, `renew` the making anew of what is outdated; neither waits for it."""

    def __init__(
        self,
        board: Board,
        leases: Leases,
        holding: Holding,
        begin: Callable[[Lane, Plan], None],
        renew: Callable[[Lane], None],
    ) -> None:
        self._board = board
        self._leases = leases
        self._holding = holding
        self._begin = begin
        self._renew = renew
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._timer_at: dict[int, float] = {}

    def run(self, lane: Lane) -> None:
        """Grant what can be granted, begin what should begin, wake up when there may be more to do."""
        board, now = self._board, self._board.now()
        self._holding.end_if_over(lane, now)
        self._leases.grant(lane, now)
        self._leases.expire(lane, now)  # after the grants: a swap that took long has not made its own waiters too late
        until: float | None = None
        if lane.swap is not None:
            lane.changed.set()
        elif board.may_swap(lane) and not board.is_closing:
            self._renew(lane)
            until = self._next(lane, now)
        if lane.hold is not None and lane.hold.has_looked and lane.swap is None and not policy.in_the_way_of_hold(lane):
            lane.hold.freed(now)
        board.run_clocks(lane)
        self._set_timer(lane, until)

    def _next(self, lane: Lane, now: float) -> float | None:
        while True:
            said = policy.next_step(lane, self._board.rules, now)
            if isinstance(said, policy.Wait):
                return said.until
            if isinstance(said, policy.Begin):
                self._begin(lane, said.plan)
                return None
            self._leases.reject(said.slot, words.pinned(said.slot, said.pinned))

    def _set_timer(self, lane: Lane, until: float | None) -> None:
        deadlines = self._leases.deadlines(lane)
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
        if at is not None and not self._board.is_closing:
            # A hair late rather than early: a timer that fires before its moment would only be set again.
            delay = max(0.0, at - self._board.now()) + 0.0005
            self._timers[key] = asyncio.get_running_loop().call_later(delay, self._timer_fired, lane)
            self._timer_at[key] = at

    def _timer_fired(self, lane: Lane) -> None:
        self._timers.pop(id(lane), None)
        self._timer_at.pop(id(lane), None)
        self.run(lane)

    def stop(self) -> None:
        """No timer fires any more."""
        for timer in self._timers.values():
            timer.cancel()
