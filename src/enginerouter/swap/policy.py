"""Who goes next: the fairness of the swap as plain functions. They read a lane and say; they change nothing.

- A request for a ready slot is granted at once, so alternating clients are batched – until somebody else is overdue.
- Overdue = its wait clock shows more than `swap_max_wait_s`, or than the learned start seconds of what it waits for
  where those are more. The clock runs only while the slot in its way is ready to serve: a load of 60 s does not make
  everybody overdue the moment it ends (docs/design.md, "Who goes next").
- Across targets: an operator's word first, then the overdue by their wait, then key priority, then the wait.
- An idle resident leaves after `swap_linger_s`; a busy one when somebody is overdue, and never before it has served
  `swap_min_residency_s`.
"""

from __future__ import annotations

from dataclasses import dataclass

from enginerouter.swap.eviction import CannotFit, plan_eviction
from enginerouter.swap.model import Lane, Plan, Rules, Slot, Ticket
from enginerouter.swap.phases import NOTHING_TO_DRAIN, ON_ITS_WAY_OUT, Phase

# The reason of a plan that frees all memory for a hold.
HOLD = "hold"
# The reason of a plan for a target that a chain had to go past.
WISH = "wish"
# The reason of a plan that frees what a reload has changed or taken away.
RELOAD = "reload"


@dataclass(frozen=True, slots=True)
class Begin:
    """Start this swap now."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nobody may wait for `slot`: the `pinned` slots make it impossible."""

    slot: Slot
    pinned: list[Slot]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until` (monotonic seconds; None: before something changes)."""

    until: float | None


def patience_s(slot: Slot, rules: Rules) -> float:
    """How long somebody waits for `slot` before the resident must make way."""
    return max(rules.max_wait_s, slot.learned.start_s or 0.0)


def overdue_by(slot: Slot, rules: Rules, now: float) -> float:
    """Seconds by which the longest waiter of a slot is beyond its patience; negative while it is not."""
    waited = slot.wait_clock.read(now)
    longest = max((waited - t.waited_before for t in slot.queue), default=0.0)
    return longest - patience_s(slot, rules)


def _order(slot: Slot, rules: Rules, now: float) -> tuple[bool, bool, float, int, float]:
    """Sort key of a slot that is waited for: the smallest goes first."""
    late = overdue_by(slot, rules, now)
    return (
        not any(t.is_explicit for t in slot.queue),
        late < 0,
        -late if late >= 0 else 0.0,
        -max(t.priority for t in slot.queue),
        slot.queue[0].arrived_at,
    )


def in_the_way(slot: Slot, lane: Lane, rules: Rules) -> list[Slot]:
    """What would have to leave for `slot`. Raises CannotFit."""
    return plan_eviction(slot, lane.residents(), rules)


def may_leave_at(victim: Slot, rules: Rules, now: float, *, late_s: float, is_explicit: bool) -> float | None:
    """When `victim` may be drained for a target that is overdue by `late_s` (negative: due in that many seconds).

    None: not before something changes. An operator's word does not wait; what cannot serve can go at once.
    """
    if victim.phase is not Phase.READY or is_explicit:
        return now
    idle_at = None if victim.has_work else max(victim.active_at + rules.linger_s, victim.keep_until)
    busy_at = max(now - late_s, victim.ready_at + rules.min_residency_s, victim.keep_until)
    return busy_at if idle_at is None else min(idle_at, busy_at)


def next_step(lane: Lane, rules: Rules, now: float) -> Begin | Refuse | Wait:
    """What a lane without a swap should do now."""
    if lane.hold is not None:
        return _next_of_hold(lane)
    wakes: list[float] = []
    for slot in sorted(lane.waiting(), key=lambda s: _order(s, rules, now)):
        try:
            victims = in_the_way(slot, lane, rules)
        except CannotFit as blocked:
            return Refuse(slot, blocked.pinned)
        if (first := _pinned_before(slot, victims, lane, rules, now)) is not None:
            return Begin(Plan(first.id, (), first.wish))
        at = begin_at(slot, victims, rules, now)
        if at <= now:
            return Begin(Plan(slot.id, tuple(v.id for v in victims), "request"))
        wakes.append(at)
        if overdue_by(slot, rules, now) >= 0:
            # Whoever is overdue is next: a start for somebody else would be one more young resident in its way,
            # and with several residents there might always be one.
            break
    if unload := _next_unload(lane, rules, now, wakes):
        return Begin(unload)
    if not lane.waiting():
        wanted = _next_wanted(lane, rules, now, wakes) or _next_wished(lane, rules, now, wakes)
        if wanted is not None:
            return Begin(wanted)
    return Wait(min(wakes, default=None))


def _pinned_before(slot: Slot, victims: list[Slot], lane: Lane, rules: Rules, now: float) -> Slot | None:
    """A pinned slot that is to come back (after a hold, at boot), and that `slot` might keep out if it started first.

    It cannot where figures say that there is room for both.
    """
    beside = [s for s in lane.residents() if s not in victims] + [slot]
    for pinned in [s for s in lane.slots.values() if s.spec.is_pinned and s is not slot]:
        if not _is_startable_wish(pinned) or pinned.circuit.is_open(now) or _is_blocked(pinned, lane, rules):
            continue
        has_figures = slot.need_bytes is not None and pinned.need_bytes is not None
        if not has_figures or _in_the_way_of(pinned, beside, rules):
            return pinned
    return None


def _next_of_hold(lane: Lane) -> Begin | Wait:
    """Free everything, pinned or not, and start nothing. The end of the hold is the coordinator's timer.

    Also where nothing is known to be there it is looked for once: others load behind the router's back.
    """
    victims = in_the_way_of_hold(lane)
    if victims or (lane.hold is not None and not lane.hold.has_looked):
        return Begin(Plan(None, tuple(v.id for v in victims), HOLD))
    return Wait(None)


def in_the_way_of_hold(lane: Lane) -> list[Slot]:
    """What has to be freed for a hold."""
    return [s for s in lane.residents() if s.phase not in ON_ITS_WAY_OUT] + lane.sleeping()


def begin_at(slot: Slot, victims: list[Slot], rules: Rules, now: float) -> float:
    """When the swap to `slot` may begin, as things are now."""
    late = overdue_by(slot, rules, now)
    explicit = any(t.is_explicit for t in slot.queue)
    times = [may_leave_at(v, rules, now, late_s=late, is_explicit=explicit) for v in victims]
    return max((t for t in times if t is not None), default=now)


def _next_unload(lane: Lane, rules: Rules, now: float, wakes: list[float]) -> Plan | None:
    """A slot to free for nobody: crashed, told to go, or idle for too long. Adds to `wakes` when one will be due.

    One that sleeps is told to go, and idle, as one that is ready is.
    """
    for slot in lane.slots.values():
        if slot.phase is Phase.CRASHED:
            return Plan(None, (slot.id,), "crash")
        if slot.is_outdated and (_is_idle(slot) or (slot.phase is Phase.STUCK and slot.queue)):
            return Plan(None, (slot.id,), RELOAD)
        if slot.is_unload_wanted and (slot.phase is Phase.STUCK or _is_idle(slot)):
            return Plan(None, (slot.id,), "unload")
        if not _is_idle(slot):
            continue
        if slot.idle_unload_s is not None:
            due = max(slot.active_at + slot.idle_unload_s, slot.keep_until)
            if due <= now:
                return Plan(None, (slot.id,), "idle")
            wakes.append(due)
    return None


def _is_idle(slot: Slot) -> bool:
    return (slot.phase is Phase.READY or slot.is_asleep) and not slot.has_work


def _next_wanted(lane: Lane, rules: Rules, now: float, wakes: list[float]) -> Plan | None:
    """A slot that is wished for, and that nobody waits for: begun when it fits beside what is there.

    Not while its start circuit is open; adds to `wakes` when that closes.
    """
    for slot in lane.slots.values():
        if _is_startable_wish(slot):
            if slot.circuit.is_open(now):
                wakes.append(slot.circuit.open_until)
            elif not _is_blocked(slot, lane, rules):
                return Plan(slot.id, (), slot.wish)
    return None


def _next_wished(lane: Lane, rules: Rules, now: float, wakes: list[float]) -> Plan | None:
    """A slot that a chain went past: begun in place of what has been idle beyond the linger, and of nothing else."""
    if lane.wished_until <= now:
        return None
    for slot in sorted(lane.slots.values(), key=lambda s: s.wished_until):
        if slot.wished_until <= now or slot.phase is not Phase.COLD or slot.is_outdated:
            continue
        try:
            victims = in_the_way(slot, lane, rules)
        except CannotFit:
            continue
        free_at = [idle_from(victim, rules, now) for victim in victims]
        if None in free_at:
            continue  # somebody uses it; its release asks again
        at = max([slot.circuit.open_until, *(t for t in free_at if t is not None)])
        if at <= now:
            return Plan(slot.id, tuple(v.id for v in victims), WISH)
        if at < slot.wished_until:
            wakes.append(at)
    return None


def idle_from(victim: Slot, rules: Rules, now: float) -> float | None:
    """From when on a slot may leave for one that is only wished for; None while it has work or is on its way."""
    if victim.phase in NOTHING_TO_DRAIN:
        return now
    if victim.phase is not Phase.READY or victim.has_work:
        return None
    return max(victim.active_at + rules.linger_s, victim.keep_until)


def may_start_for_wish(slot: Slot, victims: list[Slot], lane: Lane, rules: Rules, now: float) -> bool:
    """Whether the start of a slot that is only wished for may go on: nobody came meanwhile."""
    if slot.wished_until <= now or any(s is not slot for s in lane.waiting()):
        return False
    times = [idle_from(victim, rules, now) for victim in victims]
    return all(t is not None and t <= now for t in times)


def disturbs(slot: Slot, lane: Lane, rules: Rules, now: float, within_s: float) -> bool:
    """Whether a start of `slot` now would be at the cost of others: of their wait, or of what served within a time."""
    if slot.phase in (Phase.READY, Phase.STARTING) or (lane.swap is not None and lane.swap.plan.target == slot.id):
        return False
    if lane.swap is not None or any(s is not slot for s in lane.waiting()):
        return True
    try:
        victims = in_the_way(slot, lane, rules)
    except CannotFit:
        return True
    return any(v.phase is Phase.READY and (v.has_work or v.active_at + within_s > now) for v in victims)


def _is_startable_wish(slot: Slot) -> bool:
    return slot.is_wanted and slot.phase is Phase.COLD and not slot.is_outdated


def _is_blocked(slot: Slot, lane: Lane, rules: Rules) -> bool:
    try:
        return bool(in_the_way(slot, lane, rules))
    except CannotFit:
        return True


def overtaken(lane: Lane, target: Slot, rules: Rules) -> list[Slot]:
    """Slots that were to come back (after a crash, or a failed swap), but not beside the target that starts now."""
    return [
        s
        for s in lane.slots.values()
        if s is not target and s.wish in ("restart", "rollback") and target in _in_the_way_of(s, [target], rules)
    ]


def _in_the_way_of(slot: Slot, residents: list[Slot], rules: Rules) -> list[Slot]:
    try:
        return plan_eviction(slot, residents, rules)
    except CannotFit as blocked:
        return blocked.pinned


def should_end_start(lane: Lane, target: Slot, rules: Rules) -> bool:
    """Whether the start in progress has nobody who waits for it, and is in the way of (or told to go by) somebody.

    A hold ends every start, whoever waits for it; so does a reload that has changed what is started.
    """
    if lane.hold is not None or target.is_outdated:
        return True
    if target.queue:
        return False
    return target.is_unload_wanted or any(
        target in _in_the_way_if_possible(s, lane, rules) for s in lane.waiting() if s is not target
    )


def _in_the_way_if_possible(slot: Slot, lane: Lane, rules: Rules) -> list[Slot]:
    try:
        return in_the_way(slot, lane, rules)
    except CannotFit:
        return []


def is_clock_running(slot: Slot, lane: Lane, rules: Rules) -> bool:
    """Whether the wait for `slot` counts now: something is in its way, and all of that is ready to serve (or broken).

    Not while it is the target of the swap, or one of its victims.
    """
    if (
        lane.hold is not None
        or not slot.queue
        or slot.phase in (Phase.READY, Phase.DRAINING)
        or slot.phase in ON_ITS_WAY_OUT
    ):
        return False
    if lane.swap is not None and lane.swap.plan.target == slot.id:
        return False
    try:
        victims = in_the_way(slot, lane, rules)
    except CannotFit:
        return False
    return bool(victims) and all(v.phase is Phase.READY or v.phase in NOTHING_TO_DRAIN for v in victims)


def grantable(slot: Slot, lane: Lane) -> Ticket | None:
    """The next ticket of a slot that can have a lease now. Under a hold nobody is let in any more."""
    if lane.hold is not None:
        return None
    if slot.phase is Phase.READY and slot.queue and slot.has_room:
        return slot.queue[0]
    return None
