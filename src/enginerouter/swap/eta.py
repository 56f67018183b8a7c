"""How long a waiter will wait, as far as is known: for `Retry-After`, keep-alive text and the status. Pure."""

from __future__ import annotations

from enginerouter.swap.model import Lane, Rules, Slot
from enginerouter.swap.phases import Phase

UNKNOWN_START_S = 10.0


def start_seconds(slot: Slot) -> float:
    return slot.learned.start_s if slot.learned.start_s is not None else UNKNOWN_START_S


def is_known(slot: Slot, lane: Lane) -> bool:
    """Whether `until_ready_s` rests on what was measured."""
    swap = lane.swap
    ahead = lane.slots[swap.plan.target] if swap is not None and swap.plan.target is not None else slot
    if slot.is_outdated:
        return False  # its running answers have all the time they need
    return slot.phase is Phase.READY or all(s.learned.start_s is not None for s in (slot, ahead))


def until_ready_s(slot: Slot, lane: Lane, rules: Rules, now: float) -> float:
    """Seconds until `slot` may be expected to serve: 0 if it does, else what is left of the swap ahead and its own."""
    if slot.phase is Phase.READY and not slot.is_outdated:
        return 0.0
    swap = lane.swap
    if swap is not None and swap.plan.target == slot.id:
        return max(0.0, start_seconds(slot) - (now - slot.phase_since if slot.phase is Phase.STARTING else 0.0))
    ahead = 0.0
    if lane.hold is not None and lane.hold.expires_at is not None:
        ahead = max(0.0, lane.hold.expires_at - now)
    if swap is not None and swap.plan.target is not None:
        ahead += max(0.0, start_seconds(lane.slots[swap.plan.target]) - (now - swap.began_at))
        ahead += rules.min_residency_s
    in_way = [s for s in lane.residents() if s.phase is Phase.READY and s.has_work]
    return ahead + (rules.max_wait_s if in_way else 0.0) + start_seconds(slot)
