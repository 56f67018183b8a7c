from __future__ import annotations

import pytest

from enginerouter.errors import retry_after
from enginerouter.swap.eta import UNKNOWN_START_S, until_ready_s
from enginerouter.swap.model import Lane, Learned, Lease, Plan, Rules, Slot, SlotSpec, Swap
from enginerouter.swap.phases import Phase
from swap.fakes import sid

RULES = Rules(max_wait_s=15.0, min_residency_s=2.0)


def slot(name: str, phase: Phase = Phase.COLD, start_s: float | None = 20.0, since: float = 0.0) -> Slot:
    return Slot(SlotSpec(sid(name)), phase=phase, phase_since=since, learned=Learned(start_s=start_s))


def eta(wanted: Slot, *others: Slot, target: Slot | None = None, began_at: float = 0.0, now: float = 0.0) -> float:
    swap = Swap(Plan(target.id, (), "request"), began_at) if target is not None else None
    return until_ready_s(wanted, Lane({s.id: s for s in (wanted, *others)}, swap=swap), RULES, now)


def test_a_ready_slot_serves_at_once():
    assert eta(slot("a", Phase.READY)) == 0.0


def test_a_cold_slot_takes_its_learned_start():
    assert eta(slot("a")) == 20.0
    assert eta(slot("a", start_s=None)) == UNKNOWN_START_S


def test_a_start_in_progress_has_only_its_rest_to_go():
    starting = slot("a", Phase.STARTING, since=100.0)
    assert eta(starting, target=starting, now=105.0) == 15.0
    assert eta(starting, target=starting, now=155.0) == 0.0


def test_a_busy_resident_may_stay_for_the_longest_wait():
    busy = slot("b", Phase.READY)
    busy.leases.add(Lease(busy, 0.0, lambda _: None))
    assert eta(slot("a"), busy) == 15.0 + 20.0
    assert eta(slot("a"), slot("b", Phase.READY)) == 20.0


def test_a_swap_ahead_is_counted_with_the_time_it_serves():
    ahead = slot("b", Phase.STARTING, start_s=30.0)
    assert eta(slot("a"), ahead, target=ahead, began_at=100.0, now=110.0) == 20.0 + 2.0 + 20.0


@pytest.mark.parametrize(("seconds", "said"), [(0.0, 1), (0.2, 1), (1.0, 1), (1.01, 2), (59.5, 60), (4000.0, 60)])
def test_retry_after_is_whole_seconds_from_1_to_60(seconds: float, said: int):
    assert retry_after(seconds) == said
