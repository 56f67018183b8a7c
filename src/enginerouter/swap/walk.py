"""One swap from beginning to end: check → drain → free → settle → start.

What frees and settles is in `freeing`, what starts in `starting`; only the three await an engine for a swap. The order
is that of docs/design.md, "Phases of a slot". Every decision is asked of a plain function; every change of a slot goes
through the coordinator's `move`. Between "may this begin?" and closing the gates, and between "has everybody left?" and
the first stop signal, there is no `await`: nothing can slip in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from enginerouter.engines.base import SharedServer
from enginerouter.errors import EngineBusy, LeaseCut
from enginerouter.swap import drain, outside, policy
from enginerouter.swap.eviction import CannotFit
from enginerouter.swap.freeing import Freeing
from enginerouter.swap.model import DrainPolicy, Lane, Lease, Slot, Swap
from enginerouter.swap.phases import NOTHING_TO_DRAIN, Event, Phase
from enginerouter.swap.starting import Starting
from enginerouter.swap.surroundings import Surroundings

log = logging.getLogger(__name__)

# A request that was cut closes its connections within milliseconds; one that does not is no reason to hold a swap up.
CUT_GRACE_S = 5.0


class CalledOff(Exception):
    """Nothing was freed and nobody needs the swap now. `result` goes into the report; "" makes none."""

    def __init__(self, result: str = "") -> None:
        super().__init__(result)
        self.result = result


class Walk:
    """The walk of one swap in one lane."""

    def __init__(self, lane: Lane, swap: Swap, around: Surroundings) -> None:
        self._lane = lane
        self._swap = swap
        self._a = around
        plan = swap.plan
        self._target = lane.slots[plan.target] if plan.target is not None else None
        self._freeing = Freeing(lane, swap, around, self._call_off_if_unwanted)
        self._starting = Starting(lane, swap, around, self._freeing, self._close_gates)

    @property
    def has_answered(self) -> bool:
        """Whether the target's waiters have been told how it ended."""
        return self._starting.has_answered

    async def run(self) -> None:
        """Raises CalledOff, StartEnded or RouterError; whatever happens, every slot is left in a true phase."""
        try:
            await self._steps()
        except Exception:
            # However it ended: gates are open, and what was freed is waited for.
            self._reopen(list(self._lane.slots.values()), "the swap did not take place")
            await self._freeing.settle(None)
            raise

    async def _steps(self) -> None:
        await self._look_and_check()
        victims = self._confirm()
        if broken := [v for v in victims if v.phase in NOTHING_TO_DRAIN]:
            # What will not go is found out before anybody is drained for it.
            await self._clear(broken)
            victims = self._confirm() if self._target is not None or self._is_for_hold else []
        if victims:
            await self._clear(victims)
        if self._target is not None:
            # For a hold that came meanwhile, all of it has to come back.
            need = await self._starting.need(self._target) if self._lane.hold is None else None
            await self._freeing.settle(need)
            await self._starting.start(self._target)
        else:
            await self._freeing.settle(None)

    async def _look_and_check(self) -> None:
        """Can the target start at all? Meanwhile what others loaded is looked for. Raises what the check raises."""
        target = self._target
        if target is None and not self._is_for_hold:
            return
        servers = outside.to_ask(self._lane, self._a.engines)
        looking = self._a.tasks.spawn(outside.look(servers, self._swap.plan.target), "look for what others loaded")
        if target is not None:
            try:
                await self._a.engine(target).check(target.id, self._swap.plan.victims)
            except BaseException:
                looking.cancel()
                raise
        for found in await looking:
            self._a.found(found)
        if self._is_for_hold and self._lane.hold is not None:
            self._lane.hold.has_looked = True

    def _is_taken_back(self, slot: Slot) -> bool:
        """Whether the target would not go, but can be started as it is: its server was there all along."""
        return slot is self._target and slot.phase is Phase.STUCK and isinstance(self._a.engine(slot), SharedServer)

    async def _clear(self, victims: Sequence[Slot]) -> None:
        self._close_gates(victims)
        await self._drain(victims)
        await self._freeing.free(victims)

    @property
    def _is_for_hold(self) -> bool:
        return self._swap.plan.reason == policy.HOLD

    # --- may it begin

    def _confirm(self) -> list[Slot]:
        """The victims as things are now: the check took time, and the request that asked for this may have left."""
        target, now, rules = self._target, self._a.now(), self._a.rules
        if self._is_for_hold:
            victims = policy.in_the_way_of_hold(self._lane)
            if self._lane.hold is None or (not victims and not self._swap.freed):
                raise CalledOff
            return victims
        if target is not None and (self._lane.hold is not None or target.is_outdated):
            raise CalledOff
        if target is None:
            victims = [self._lane.slots[v] for v in self._swap.plan.victims]
            if any(v.has_work and (v.phase is Phase.READY or v.is_asleep) for v in victims):
                raise CalledOff
            return victims
        is_wished = self._swap.plan.reason == policy.WISH
        if not target.queue and not target.is_wanted and not is_wished:
            raise CalledOff
        try:
            victims = [v for v in policy.in_the_way(target, self._lane, rules) if not self._is_taken_back(v)]
        except CannotFit:
            raise CalledOff from None
        if target.queue and policy.begin_at(target, victims, rules, now) > now:
            raise CalledOff
        if not target.queue and is_wished and not policy.may_start_for_wish(target, victims, self._lane, rules, now):
            raise CalledOff
        if not target.queue and victims and not is_wished:
            raise CalledOff
        return victims

    def _close_gates(self, victims: Sequence[Slot]) -> None:
        self._swap.in_flight_at_start += sum(len(v.leases) for v in victims)
        for victim in victims:
            if victim.phase is Phase.READY:
                self._a.move(victim, Event.DRAIN, self._swap.plan.why)

    # --- drain

    async def _drain(self, victims: Sequence[Slot]) -> None:
        """Wait until no victim has a lease, as `on_drain_timeout` says. Raises CalledOff or EngineBusy."""
        self._swap.enter("draining", self._a.now())
        began_at, rules = self._a.now(), self._a.rules
        cut_until: float | None = None
        while leases := [lease for v in victims for lease in v.leases]:
            self._call_off_if_unwanted(victims)
            now = self._a.now()
            look = drain.look(leases, began_at, now, policy=self._drain_policy(), timeout_s=rules.drain_timeout_s)
            if look.is_refused:
                self._refuse(victims)
            for lease in look.cut:
                self._cut(lease)
            if look.cut or (cut_until is None and all(lease.cut_error for lease in leases)):
                cut_until = now + CUT_GRACE_S
            if cut_until is not None and look.next_look is None and now >= cut_until:
                log.warning("%d cut requests have not ended; the swap goes on", len(leases))
                return
            await self._changed(look.next_look if look.next_look is not None else cut_until)
        self._call_off_if_unwanted(victims)

    def _drain_policy(self) -> DrainPolicy:
        hold = self._lane.hold
        if self._is_for_hold and hold is not None and hold.drain is not None:
            return hold.drain
        return self._a.rules.on_drain_timeout

    def _cut(self, lease: Lease) -> None:
        slot, seconds = lease.slot.id, self._a.rules.drain_timeout_s
        why = f"for {self._target.id}" if self._target is not None else f"({self._swap.plan.reason})"
        lease.cut(LeaseCut(f"the answer was ended: {slot} had to leave memory {why} after {seconds:g} s of drain"))

    def _call_off_if_unwanted(self, victims: Sequence[Slot]) -> None:
        reason = self._swap.plan.reason
        if self._target is not None and not self._target.queue and reason == "request":
            self._reopen(victims, "nobody waits any more")
            raise CalledOff("called_off")
        is_for_nobody = self._target is not None and not self._target.queue
        if is_for_nobody and reason == policy.WISH and any(v.queue for v in victims):
            self._reopen(victims, "wanted again")
            raise CalledOff("called_off")
        if self._is_for_hold and self._lane.hold is None:
            self._reopen(victims, "the hold has ended")
            raise CalledOff("called_off")
        if self._target is None and reason == "idle" and any(v.queue for v in victims):
            self._reopen(victims, "wanted again")
            raise CalledOff("called_off")

    def _refuse(self, victims: Sequence[Slot]) -> None:
        busy = ", ".join(str(v.id) for v in victims if v.leases)
        self._reopen(victims, "busy")
        seconds = self._a.rules.drain_timeout_s
        raise EngineBusy(
            f"{busy} is still answering after {seconds:g} s and is not cut (on_drain_timeout: refuse); try later",
            retry_after_s=seconds,
        )

    def _reopen(self, victims: Sequence[Slot], reason: str) -> None:
        for victim in victims:
            if victim.phase is Phase.DRAINING:
                self._a.move(victim, Event.CALL_OFF, reason)

    async def _changed(self, until: float | None) -> None:
        """Wait until something in the lane changes, or until a moment."""
        self._lane.changed.clear()
        delay = None if until is None else max(0.0, until - self._a.now())
        # Not wait_for: before Python 3.12 it loses a cancellation that arrives together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._lane.changed.wait()
