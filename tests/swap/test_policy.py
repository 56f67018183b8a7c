"""Who goes next, asked with lists and numbers: no loop, no engines. The clock stands at NOW."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from enginerouter.swap.circuit import StartCircuit
from enginerouter.swap.hold import Hold
from enginerouter.swap.model import Lane, Lease, Plan, Rules, Slot, SlotSpec, Swap, Ticket
from enginerouter.swap.phases import Phase
from enginerouter.swap.policy import (
    HOLD,
    Begin,
    Refuse,
    Wait,
    grantable,
    is_clock_running,
    may_leave_at,
    next_step,
    overdue_by,
    patience_s,
    should_end_start,
)
from swap.fakes import GIB, sid

NOW = 1000.0
RULES = Rules(min_residency_s=2.0, max_wait_s=15.0, linger_s=0.25)
LOOP = asyncio.new_event_loop()
LOOP.close()


def slot(name: str, phase: Phase = Phase.COLD, *, ready_at: float = 0.0, active_at: float = 0.0, busy: int = 0,
         **spec: object) -> Slot:  # fmt: skip
    made = Slot(SlotSpec(sid(name), **spec), phase=phase, ready_at=ready_at, active_at=active_at)  # type: ignore[arg-type]
    for _ in range(busy):
        made.leases.add(Lease(made, active_at, lambda _: None))
    return made


def wait_for(
    target: Slot, *, since: float = NOW, waited: float = 0.0, priority: int = 0, explicit: bool = False
) -> Slot:
    """Queue one ticket whose wait clock shows `waited` seconds."""
    target.wait_clock._counted = max(target.wait_clock._counted, waited)
    before = target.wait_clock.read(NOW) - waited
    target.queue.append(Ticket(target, LOOP.create_future(), since, before, priority, explicit))
    return target


def lane(*slots: Slot, swap: Swap | None = None) -> Lane:
    return Lane({s.id: s for s in slots}, swap=swap)


def begun(said: object) -> str:
    assert isinstance(said, Begin), said
    return str(said.plan.target)


def waits_until(said: object) -> float | None:
    assert isinstance(said, Wait), said
    return said.until


# --- one resident in the way


def test_with_nothing_resident_a_swap_begins_at_once():
    assert begun(next_step(lane(wait_for(slot("b"))), RULES, NOW)) == "b"


def test_with_nobody_waiting_nothing_happens():
    assert waits_until(next_step(lane(slot("a", Phase.READY)), RULES, NOW)) is None


def test_an_idle_resident_leaves_after_the_linger():
    idle = slot("a", Phase.READY, active_at=NOW - 0.1)
    assert waits_until(next_step(lane(idle, wait_for(slot("b"))), RULES, NOW)) == pytest.approx(NOW + 0.15)
    idle.active_at = NOW - 0.25
    assert begun(next_step(lane(idle, wait_for(slot("b"))), RULES, NOW)) == "b"


def test_a_busy_resident_stays_until_somebody_is_overdue():
    busy = slot("a", Phase.READY, busy=1)
    assert waits_until(next_step(lane(busy, wait_for(slot("b"), waited=5.0)), RULES, NOW)) == NOW + 10.0
    assert begun(next_step(lane(busy, wait_for(slot("c"), waited=15.0)), RULES, NOW)) == "c"


def test_a_fresh_resident_serves_its_minimum_even_if_somebody_is_overdue():
    fresh = slot("a", Phase.READY, ready_at=NOW - 0.5, active_at=NOW, busy=1)
    assert waits_until(next_step(lane(fresh, wait_for(slot("b"), waited=40.0)), RULES, NOW)) == NOW + 1.5


def test_a_fresh_resident_without_work_need_not_stay():
    fresh = slot("a", Phase.READY, ready_at=NOW - 0.5, active_at=NOW - 0.5)
    assert begun(next_step(lane(fresh, wait_for(slot("b"))), RULES, NOW)) == "b"


def test_an_operators_word_waits_for_nothing():
    fresh = slot("a", Phase.READY, ready_at=NOW, active_at=NOW, busy=3)
    assert begun(next_step(lane(fresh, wait_for(slot("b"), explicit=True)), RULES, NOW)) == "b"


@pytest.mark.parametrize("late", [-5.0, 3.0])
def test_what_an_operator_asked_for_is_held_even_without_work(late: float):
    held = slot("a", Phase.READY, active_at=NOW - 1, ready_at=NOW - 99)
    held.keep_until = NOW + 1.5
    assert may_leave_at(held, RULES, NOW, late_s=late, is_explicit=False) == NOW + 1.5


def test_what_cannot_serve_can_go_at_once():
    dead = slot("a", Phase.CRASHED, active_at=NOW)
    assert begun(next_step(lane(dead, wait_for(slot("b"))), RULES, NOW)) == "b"


# --- patience and its clock


def test_patience_is_the_learned_start_where_that_is_more():
    target = slot("a")
    assert patience_s(target, RULES) == 15.0
    target.learned.start_s = 60.0
    assert patience_s(target, RULES) == 60.0
    target.learned.start_s = 3.0
    assert patience_s(target, RULES) == 15.0


def test_overdue_goes_by_the_longest_waiter():
    target = wait_for(wait_for(slot("a"), waited=20.0), waited=1.0)
    assert overdue_by(target, RULES, NOW) == 5.0


def test_the_clock_runs_while_what_is_in_the_way_is_ready():
    waiting = wait_for(slot("b"))
    assert is_clock_running(waiting, lane(slot("a", Phase.READY), waiting), RULES)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.DRAINING, Phase.FREEING, Phase.SETTLING])
def test_the_clock_stands_still_while_a_swap_is_in_the_way(phase: Phase):
    waiting = wait_for(slot("b"))
    assert not is_clock_running(waiting, lane(slot("a", phase), waiting), RULES)


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.FREEING, Phase.SETTLING])
def test_the_clock_of_what_is_being_swapped_out_stands_still(phase: Phase):
    """Else the next one is overdue the moment it is ready, and long drains thrash."""
    leaving = wait_for(slot("a", phase))
    assert not is_clock_running(leaving, lane(leaving, slot("b")), RULES)


def test_the_clock_of_the_swaps_own_target_stands_still():
    target = wait_for(slot("b"))
    swap = Swap(Plan(target.id, (), "request"), NOW)
    assert not is_clock_running(target, lane(slot("a", Phase.READY), target, swap=swap), RULES)


def test_the_clock_runs_beside_something_broken():
    """Else a stuck slot would let a busy one stay for ever."""
    waiting = wait_for(slot("c"))
    beside = lane(slot("a", Phase.READY, busy=1), slot("b", Phase.STUCK), waiting)
    assert is_clock_running(waiting, beside, RULES)


def test_the_clock_does_not_run_for_nobody():
    assert not is_clock_running(slot("b"), lane(slot("a", Phase.READY), slot("b")), RULES)


# --- several targets


def test_across_targets_the_longest_wait_wins():
    idle = slot("a", Phase.READY)
    b, c = wait_for(slot("b"), since=NOW - 1), wait_for(slot("c"), since=NOW - 2)
    assert begun(next_step(lane(idle, b, c), RULES, NOW)) == "c"


def test_priority_goes_before_the_wait():
    idle = slot("a", Phase.READY)
    b, c = wait_for(slot("b"), since=NOW - 1, priority=5), wait_for(slot("c"), since=NOW - 9)
    assert begun(next_step(lane(idle, b, c), RULES, NOW)) == "b"


def test_being_overdue_goes_before_priority():
    idle = slot("a", Phase.READY)
    b, c = wait_for(slot("b"), priority=5, waited=3), wait_for(slot("c"), waited=16.0)
    assert begun(next_step(lane(idle, b, c), RULES, NOW)) == "c"


def test_of_the_overdue_the_one_that_is_so_longest_goes_first_whatever_its_priority():
    idle = slot("a", Phase.READY)
    b, c = wait_for(slot("b"), waited=16.0, priority=9), wait_for(slot("c"), waited=30.0)
    assert begun(next_step(lane(idle, b, c), RULES, NOW)) == "c"


def test_an_operators_word_goes_before_all():
    idle = slot("a", Phase.READY)
    b, c = wait_for(slot("b"), explicit=True), wait_for(slot("c"), waited=99.0, priority=9)
    assert begun(next_step(lane(idle, b, c), RULES, NOW)) == "b"


def test_nobody_starts_past_an_overdue_waiter_that_must_wait_for_a_fresh_resident():
    """With a budget: b needs both residents gone, c only the idle one. c's start would be one more fresh resident."""
    rules = Rules(budget_bytes=100)
    fresh = slot("x", Phase.READY, need_bytes=50, ready_at=NOW - 1, busy=1)
    idle = slot("y", Phase.READY, need_bytes=50)
    b, c = wait_for(slot("b", need_bytes=100), waited=15.0), wait_for(slot("c", need_bytes=50))
    assert waits_until(next_step(lane(fresh, idle, b, c), rules, NOW)) == NOW + 1.0
    assert begun(next_step(lane(fresh, idle, c), rules, NOW)) == "c"


def test_pins_that_make_it_impossible_are_named():
    said = next_step(lane(slot("a", Phase.READY, is_pinned=True), wait_for(slot("b"))), RULES, NOW)
    assert isinstance(said, Refuse)
    assert (str(said.slot.id), [str(p.id) for p in said.pinned]) == ("b", ["a"])


# --- nobody waits


def test_an_idle_slot_is_unloaded_when_its_time_is_over():
    idle = slot("a", Phase.READY, active_at=NOW - 9, idle_unload_s=10.0)
    assert waits_until(next_step(lane(idle), RULES, NOW)) == NOW + 1
    said = next_step(lane(idle), RULES, NOW + 1)
    assert said == Begin(Plan(None, (idle.id,), "idle"))


def test_a_pinned_slot_is_not_unloaded_for_idleness():
    idle = slot("a", Phase.READY, active_at=0.0, idle_unload_s=10.0, is_pinned=True)
    assert waits_until(next_step(lane(idle), RULES, NOW)) is None


def test_an_explicit_unload_waits_for_the_last_lease_and_overrides_a_pin():
    wanted = slot("a", Phase.READY, busy=1, is_pinned=True)
    wanted.is_unload_wanted = True
    assert waits_until(next_step(lane(wanted), RULES, NOW)) is None
    wanted.leases.clear()
    assert next_step(lane(wanted), RULES, NOW) == Begin(Plan(None, (wanted.id,), "unload"))


def test_a_crashed_slot_is_cleared_away_though_nobody_waits():
    assert next_step(lane(slot("a", Phase.CRASHED)), RULES, NOW) == Begin(Plan(None, (sid("a"),), "crash"))


def test_a_preload_begins_only_where_it_evicts_nobody_and_nobody_waits():
    wanted = slot("p")
    wanted.wish = "preload"
    assert begun(next_step(lane(wanted), RULES, NOW)) == "p"
    assert waits_until(next_step(lane(wanted, slot("a", Phase.READY)), RULES, NOW)) is None
    assert begun(next_step(lane(wanted, wait_for(slot("b"))), RULES, NOW)) == "b"


def test_a_start_nobody_waits_for_ends_only_when_it_is_in_the_way():
    starting, other = slot("a", Phase.STARTING), slot("b")
    assert not should_end_start(lane(starting, other), starting, RULES)
    wait_for(other)
    assert should_end_start(lane(starting, other), starting, RULES)
    wait_for(starting)
    assert not should_end_start(lane(starting, other), starting, RULES)


def test_a_start_that_fits_beside_the_other_goes_on():
    rules = Rules(together=(frozenset({"a", "b"}),))
    starting = slot("a", Phase.STARTING)
    assert not should_end_start(lane(starting, wait_for(slot("b"))), starting, rules)


# --- grants


def test_a_ready_slot_grants_in_order_up_to_its_limit():
    ready = wait_for(wait_for(slot("a", Phase.READY, busy=1, max_in_flight=2)))
    assert grantable(ready, lane(ready)) is ready.queue[0]
    ready.leases.add(Lease(ready, NOW, lambda _: None))
    assert grantable(ready, lane(ready)) is None


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.READY])
def test_nothing_but_a_ready_slot_grants(phase: Phase):
    waiting = wait_for(slot("a", phase))
    assert grantable(waiting, lane(waiting)) is None


# --- holds


def held(*slots: Slot) -> Lane:
    found = lane(*slots)
    found.hold = Hold("comfy", "queue", began_at=NOW)
    return found


def test_under_a_hold_everything_goes_pinned_and_busy_or_not():
    slots = [slot("a", Phase.READY, busy=1), slot("b", Phase.READY, is_pinned=True), slot("c", Phase.CRASHED)]
    step = next_step(held(*slots, slot("d"), slot("e", Phase.SETTLING)), RULES, NOW)
    assert isinstance(step, Begin)
    assert step.plan == Plan(None, tuple(s.id for s in slots), HOLD)


def test_under_a_hold_nothing_starts_and_nobody_is_let_in():
    cold, ready = wait_for(slot("a")), wait_for(slot("b", Phase.READY))
    waiting = held(cold, slot("c", is_preloaded=True))
    assert next_step(waiting, RULES, NOW) == Begin(Plan(None, (), "hold")), "what others loaded is looked for once"
    assert waiting.hold is not None
    waiting.hold.has_looked = True
    assert next_step(waiting, RULES, NOW) == Wait(None)
    assert grantable(ready, held(ready)) is None
    assert not is_clock_running(cold, held(cold, ready), RULES)


def test_what_sleeps_is_in_the_way_of_a_hold():
    asleep = slot("a")
    asleep.kept_bytes = 0
    assert next_step(held(asleep), RULES, NOW) == Begin(Plan(None, (sid("a"),), "hold"))


def test_a_pinned_slot_that_is_to_come_back_goes_before_who_could_not_wait_beside_it():
    """After a hold with `mode: queue`; before it, the other request would have been refused."""
    pinned, waiting = slot("a", is_pinned=True), wait_for(slot("b"))
    pinned.wish = "preload"
    assert next_step(lane(waiting, pinned), RULES, NOW) == Begin(Plan(sid("a"), (), "preload"))
    pinned.phase = Phase.READY
    assert next_step(lane(waiting, pinned), RULES, NOW) == Refuse(waiting, [pinned])


def test_a_pinned_slot_goes_first_only_where_it_may_start_and_matters():
    waiting = wait_for(slot("b", need_bytes=GIB))
    fits = slot("a", is_pinned=True, need_bytes=GIB)
    fits.wish = "preload"
    assert begun(next_step(lane(waiting, fits), replace(RULES, budget_bytes=4 * GIB), NOW)) == "b"
    failing = slot("a", is_pinned=True)
    failing.wish, failing.circuit = "preload", StartCircuit(failures=3, open_until=NOW + 9)
    assert begun(next_step(lane(wait_for(slot("b")), failing), RULES, NOW)) == "b"


def test_a_hold_ends_a_start_whoever_waits_for_it():
    starting = wait_for(slot("a", Phase.STARTING))
    assert should_end_start(held(starting), starting, RULES)
