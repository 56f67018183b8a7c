"""Swaps from outside: a walk is begun, its end becomes a result, and every move of a slot goes through here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from enginerouter.engines.base import Engine, Found
from enginerouter.errors import EngineCrashed, EngineFailed, EngineUnloaded, RouterError
from enginerouter.slots import SlotId
from enginerouter.swap import circuit, policy, words
from enginerouter.swap.board import Board
from enginerouter.swap.holding import Holding
from enginerouter.swap.leases import Leases
from enginerouter.swap.memory import MemorySource
from enginerouter.swap.model import Lane, Observer, Plan, Slot, Swap, SwapReport
from enginerouter.swap.phases import Event, Phase
from enginerouter.swap.surroundings import Surroundings
from enginerouter.swap.walk import CalledOff, StartEnded, Walk
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

# A slot that dies this soon after it was ready has not proved that it can serve.
PROVED_AFTER_S = 60.0


class Swaps:
    """One writer of phases: `move`. `engines` are read when they are needed, so that a reload may change them."""

    def __init__(
        self,
        board: Board,
        engines: Mapping[str, Engine],
        memory: MemorySource,
        observer: Observer,
        tasks: TaskGroup,
        leases: Leases,
        holding: Holding,
        dispatch: Callable[[Lane], None],
        found: Callable[[Found], None],
    ) -> None:
        self._board = board
        self._engines = engines
        self._memory = memory
        self._observer = observer
        self._tasks = tasks
        self._leases = leases
        self._holding = holding
        self._dispatch = dispatch
        self._found = found

    def begin(self, lane: Lane, plan: Plan) -> None:
        now = self._board.now()
        if plan.target is not None:
            for slot in policy.overtaken(lane, lane.slots[plan.target], self._board.rules):
                slot.wish = ""
        lane.swap = Swap(plan, began_at=now, step_since=now)
        around = Surroundings(
            engines=self._engines,
            rules=self._board.rules,
            memory=self._memory,
            tasks=self._tasks,
            now=self._board.now,
            move=self.move,
            reject=self._leases.reject,
            start_failed=self._start_failed,
            found=self._found,
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
            target = lane.slots[swap.plan.target] if swap.plan.target is not None else None
            is_outdated = target is not None and target.is_outdated
            why = "its configuration has changed" if is_outdated else "nobody waited for it any more"
            result, message = "ended", why
        except RouterError as error:
            result, message = ("refused" if error.code == "engine_busy" else "failed"), error.message
            # Those who came after the failure was told wait for a start of their own.
            self._reject_target(lane, swap, None if walk.has_answered else error)
            _roll_back(lane, swap)
        except asyncio.CancelledError:
            result = "cancelled"
            raise
        except Exception as error:  # a background task's edge: nobody is left waiting
            log.exception("the swap to %s broke", swap.plan.target)
            result, message = "failed", f"internal error: {error}"
            self._reject_target(lane, swap, EngineFailed(str(swap.plan.target), "the swap broke; see the log"))
            _roll_back(lane, swap)
        finally:
            self._over(lane, swap, result, message)

    def _reject_target(self, lane: Lane, swap: Swap, error: RouterError | None) -> None:
        if swap.plan.target is not None:
            slot = lane.slots[swap.plan.target]
            slot.wish = ""
            slot.wished_until = 0.0
            if error is not None:
                self._leases.reject(slot, error)
        elif swap.plan.reason == policy.HOLD and error is not None:
            # Nothing is left half held, and nothing is tried for ever.
            self._holding.end(lane, error.message, error)
        elif swap.plan.reason == policy.RELOAD and error is not None:
            for slot_id in swap.plan.victims:
                self._leases.reject(lane.slots[slot_id], error)

    def _over(self, lane: Lane, swap: Swap, result: str, message: str) -> None:
        now = self._board.now()
        swap.enter("over", now)
        lane.swap = None
        target = lane.slots[swap.plan.target] if swap.plan.target is not None else None
        if result and (target is None or target.spec.is_swapped):
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
            except Exception:  # as in `move`
                log.exception("an observer of swaps broke")
        if not self._board.is_closing:
            self._dispatch(lane)

    def move(self, slot: Slot, event: Event, reason: str) -> None:
        now = self._board.now()
        before = slot.move(event, now)
        after = slot.phase
        if after is Phase.READY and before is not Phase.DRAINING:
            slot.ready_at = slot.active_at = now
            slot.answered = 0
            slot.wish = ""
            slot.wished_until = 0.0
            slot.was_unloaded = False
        if after is Phase.READY and slot.early_crash is not None:
            asyncio.get_running_loop().call_soon(self.crashed, slot.id, slot.early_crash)
        if event in (Event.START, Event.READY, Event.ADOPT):
            slot.early_crash = None
        if event is Event.FREE and before is Phase.DRAINING and slot.answered:
            # A whole life without a crash: what failed before it is history.
            slot.circuit = circuit.CLOSED
        if after in (Phase.COLD, Phase.STUCK):
            slot.is_unload_wanted = False
        self._board.run_clocks(self._board.lane_of(slot))
        is_bad = after is Phase.STUCK or (after is Phase.CRASHED and not slot.was_unloaded)
        level = logging.WARNING if is_bad else logging.INFO
        log.log(level, "%s %s -> %s%s", slot.id, before.value, after.value, f" ({reason})" if reason else "")
        try:
            self._observer.slot_moved(slot.id, before, after, reason)
        except Exception:  # an observer's bug stays its own: the slot has moved, and the walk goes on
            log.exception("an observer of %s broke", slot.id)

    # --- what engines say

    def crashed(self, slot_id: SlotId, error: EngineCrashed) -> None:
        """A ready slot died. Its requests end, the next one starts it again – unless it does this too often."""
        slot, now = self._board.slots.get(slot_id), self._board.now()
        if slot is None:
            return  # its engine was replaced, and this is its last word
        if slot.is_asleep:
            # Nobody misses it before it is asked for again; what its end has left over is freed now.
            slot.is_unload_wanted = True
            self._dispatch(self._board.lane_of(slot))
            return
        if slot.phase is Phase.STARTING or (slot.phase is Phase.COLD and slot_id.engine in self._board.unasked):
            # Between the engine's "ready" (or "taken over") and ours; `move` comes back to it.
            slot.early_crash = error
        if slot.phase not in (Phase.READY, Phase.DRAINING):
            return
        if isinstance(error, EngineUnloaded) and slot.leases:
            return  # what it serves it has
        slot.was_unloaded = isinstance(error, EngineUnloaded)
        is_in_order = slot.was_unloaded or error.was_stopped
        is_leaving = slot.phase is Phase.DRAINING or slot.is_unload_wanted
        has_proved = slot.answered > 0 and now - slot.ready_at >= PROVED_AFTER_S
        for lease in list(slot.leases):
            lease.cut(error)
        self.move(slot, Event.CRASH, error.message)
        if has_proved:
            slot.circuit = circuit.CLOSED
        elif not is_in_order:
            self._start_failed(slot, error.message)
        if slot.spec.restarts and not is_leaving and not is_in_order:
            slot.wish = "restart"
        self._dispatch(self._board.lane_of(slot))

    def _start_failed(self, slot: Slot, reason: str) -> None:
        now = self._board.now()
        slot.circuit = circuit.after_failure(slot.circuit, reason, max_restarts=slot.spec.max_restarts, now=now)
        if slot.circuit.is_open(now):
            log.error(
                "%s failed %d times in a row and is left alone for %.0f s",
                slot.id,
                slot.circuit.failures,
                slot.circuit.open_until - now,
            )


def _roll_back(lane: Lane, swap: Swap) -> None:
    """What was freed for a target that did not start is wanted again, where it is configured so."""
    for slot_id in swap.freed if swap.plan.target is not None else ():
        slot = lane.slots[slot_id]
        if slot.spec.rolls_back and slot_id != swap.plan.target:
            slot.wish = "rollback"
