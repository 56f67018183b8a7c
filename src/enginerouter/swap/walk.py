"""One swap from beginning to end: check → drain → free → settle → start. What frees and settles is in `freeing`.

Only the two await an engine for a swap. The order is that of docs/design.md, "Phases of a slot". Every decision is
asked of a plain function; every change of a slot goes through the coordinator's `move`. Between "may this begin?" and
closing the gates, and between "has everybody left?" and the first stop signal, there is no `await`: nothing can slip
in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from enginerouter.engines.base import SharedServer
from enginerouter.errors import EngineBusy, EngineFailed, FreeFailed, LeaseCut, RouterError, StartFailed
from enginerouter.swap import drain, outside, policy
from enginerouter.swap.eviction import CannotFit, further
from enginerouter.swap.freeing import Freeing
from enginerouter.swap.held import gib
from enginerouter.swap.model import DrainPolicy, Lane, Lease, Slot, Swap
from enginerouter.swap.phases import NOTHING_TO_DRAIN, Event, Phase
from enginerouter.swap.settle import READ_EVERY_S
from enginerouter.swap.surroundings import Surroundings

log = logging.getLogger(__name__)

# A request that was cut closes its connections within milliseconds; one that does not is no reason to hold a swap up.
CUT_GRACE_S = 5.0


class CalledOff(Exception):
    """Nothing was freed and nobody needs the swap now. `result` goes into the report; "" makes none."""

    def __init__(self, result: str = "") -> None:
        super().__init__(result)
        self.result = result


class StartEnded(Exception):
    """The start had nobody who waited for it and made way."""


class Walk:
    """The walk of one swap in one lane. `has_answered`: the target's waiters have been told how it ended."""

    def __init__(self, lane: Lane, swap: Swap, around: Surroundings) -> None:
        self._lane = lane
        self._swap = swap
        self._a = around
        plan = swap.plan
        self._target = lane.slots[plan.target] if plan.target is not None else None
        self._freeing = Freeing(lane, swap, around, self._call_off_if_unwanted)
        self.has_answered = False

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
            await self._freeing.settle(await self._need(self._target) if self._lane.hold is None else None)
            await self._start(self._target)
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
        self._enter("draining")
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

    # --- start

    async def _start(self, target: Slot) -> None:
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

    async def _need(self, target: Slot) -> int | None:
        """What its start is expected to take. One that sleeps has some of it already."""
        need = target.expected_bytes
        if need is None or target.phase is Phase.STUCK:  # it has what it needs
            return None
        return max(0, need - (await self._freeing.kept(target) or 0))

    async def _make_room(self, target: Slot) -> None:
        need = await self._need(target)
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
                self._enter("settling")
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
        self._enter("starting")
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
                await self._changed(None)
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

    # --- small things

    def _enter(self, step: str) -> None:
        self._swap.enter(step, self._a.now())

    async def _changed(self, until: float | None) -> None:
        """Wait until something in the lane changes, or until a moment."""
        self._lane.changed.clear()
        delay = None if until is None else max(0.0, until - self._a.now())
        # Not wait_for: before Python 3.12 it loses a cancellation that arrives together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._lane.changed.wait()
