"""What must go so that a target can be resident: a pure function over the residents.

Without a budget one slot holds memory at a time, but for engines that may stay `together`. With a budget, slots whose
need is known stay together while the sum fits; a slot of unknown need is always alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from enginerouter.swap.model import Rules, Slot
from enginerouter.swap.phases import NOTHING_TO_DRAIN, ON_ITS_WAY_OUT, Phase


class CannotFit(Exception):
    """Pinned residents make the target impossible. `pinned` are in the way."""

    def __init__(self, pinned: Sequence[Slot]) -> None:
        super().__init__(", ".join(str(s.id) for s in pinned))
        self.pinned = list(pinned)


def plan_eviction(target: Slot, residents: Iterable[Slot], rules: Rules) -> list[Slot]:
    """The residents that must be freed for `target`, in the order in which they are least missed.

    Broken residents (crashed, stuck) go first and always: they serve nobody and hold what cannot be told.
    Then idle longest first, never pinned, never busy while another choice exists; at the end every member that turns
    out not to be needed is taken out of the plan again. Raises CannotFit.
    """
    broken = [s for s in residents if s.phase in NOTHING_TO_DRAIN]
    sound = [
        s for s in residents if s is not target and s.phase not in NOTHING_TO_DRAIN and s.phase not in ON_ITS_WAY_OUT
    ]
    best: list[Slot] | None = None
    in_the_way: list[Slot] = []
    # The slots of one engine never stay together: changing the model is what makes them slots.
    others = [s for s in sound if s.id.engine != target.id.engine]
    for company in _companies(target, others, rules):
        pinned = [s for s in sound if stays(s) and s not in company and not _may_replace(target, s)]
        if pinned:
            in_the_way = in_the_way or pinned
            continue
        victims = sorted((s for s in sound if s not in company), key=regret)
        if best is None or _cost(victims) < _cost(best):
            best = victims
    if best is None:
        raise CannotFit(in_the_way)
    return broken + best


def _may_replace(target: Slot, slot: Slot) -> bool:
    """Whether a pin stays with the engine although this model of it leaves."""
    return slot.spec.pins_engine and slot.id.engine == target.id.engine


def stays(slot: Slot) -> bool:
    """Whether a pin keeps it. An explicit unload overrides a pin."""
    return slot.spec.is_pinned and not slot.is_unload_wanted


def regret(slot: Slot) -> tuple[bool, bool, float]:
    """How much a resident would be missed: a busy one more than an idle one, then the one used last."""
    return (slot.is_busy, slot.has_work, slot.active_at)


def _cost(victims: list[Slot]) -> tuple[int, int]:
    return (sum(s.is_busy for s in victims), len(victims))


def _companies(target: Slot, residents: list[Slot], rules: Rules) -> Iterable[list[Slot]]:
    """The sets of residents that might stay beside the target: one by budget, one by each `together` list."""
    for names in rules.together:
        if target.id.engine in names:
            yield [s for s in residents if s.id.engine in names]
    yield _within_budget(target, residents, rules.budget_bytes)


def _within_budget(target: Slot, residents: list[Slot], budget: int | None) -> list[Slot]:
    if budget is None or target.need_bytes is None:
        return []
    room = budget - target.need_bytes
    staying = sorted((s for s in residents if s.need_bytes is not None), key=regret)
    held = sum(s.need_bytes or 0 for s in staying)
    evicted: list[Slot] = []
    for slot in list(staying):
        if held <= room:
            break
        if not stays(slot):
            staying.remove(slot)
            evicted.append(slot)
            held -= slot.need_bytes or 0
    for slot in reversed(evicted):
        if held + (slot.need_bytes or 0) <= room:
            staying.append(slot)
            held += slot.need_bytes or 0
    return staying if held <= room else [s for s in staying if not stays(s)]


def further(candidates: Iterable[Slot], target: Slot, short_bytes: int) -> list[Slot]:
    """Idle, unpinned residents to free as well when available memory is `short_bytes` less than the target needs.

    What sleeps goes for good. Idle longest first, only as many as their expected bytes call for; one of unknown size
    counts as nothing.
    """
    chosen: list[Slot] = []
    for slot in sorted((s for s in candidates if _may_go(s, target)), key=lambda s: (not s.is_asleep, *regret(s))):
        if short_bytes <= 0:
            break
        chosen.append(slot)
        short_bytes -= (slot.kept_bytes if slot.is_asleep else slot.expected_bytes) or 0
    return chosen


def _may_go(slot: Slot, target: Slot) -> bool:
    if slot is target or slot.has_work:
        return False
    return slot.is_asleep or (slot.phase is Phase.READY and not slot.spec.is_pinned)
