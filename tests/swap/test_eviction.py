from __future__ import annotations

import itertools
import random

import pytest

from enginerouter.slots import SlotId
from enginerouter.swap.eviction import CannotFit, further, plan_eviction
from enginerouter.swap.model import Lease, Rules, Slot, SlotSpec
from enginerouter.swap.phases import Phase
from swap.fakes import GIB, sid


def slot(
    name: str, need: float | None = None, *, used: float = 0.0, busy: bool = False, phase: Phase = Phase.READY,
    pinned: bool = False, auto: bool = False,
) -> Slot:  # fmt: skip
    """`need` in GiB, `used` = when it was last active."""
    spec = SlotSpec(
        sid(name), need_bytes=None if need is None else int(need * GIB), is_pinned=pinned, uses_learned_need=auto
    )
    made = Slot(spec, phase=phase, active_at=used)
    if busy:
        made.leases.add(Lease(made, used, lambda _: None))
    return made


def target(name: str = "t", need: float | None = None, **options: bool) -> Slot:
    return slot(name, need, phase=Phase.COLD, **options)


def budget(gib: float, *together: str) -> Rules:
    return Rules(budget_bytes=int(gib * GIB), together=tuple(frozenset(t.split()) for t in together))


def plan(wanted: Slot, residents: list[Slot], rules: Rules) -> list[str]:
    return [str(s.id) for s in plan_eviction(wanted, residents, rules)]


def test_with_nothing_resident_nothing_goes():
    assert plan(target(), [], Rules()) == []


def test_without_a_budget_everything_goes():
    assert plan(target(need=1), [slot("a", 1, used=2), slot("b", 1, used=1)], Rules()) == ["b", "a"]


def test_within_the_budget_nothing_goes():
    assert plan(target(need=10), [slot("a", 20), slot("b", 30)], budget(60)) == []


def test_the_one_idle_longest_goes_first():
    residents = [slot("a", 20, used=30), slot("b", 20, used=10), slot("c", 20, used=20)]
    assert plan(target(need=20), residents, budget(60)) == ["b"]


def test_no_busy_one_goes_while_another_choice_exists():
    residents = [slot("a", 20, used=1, busy=True), slot("b", 20, used=99)]
    assert plan(target(need=20), residents, budget(40)) == ["b"]


def test_two_idle_ones_go_rather_than_one_busy_one():
    residents = [slot("a", 20, used=1, busy=True), slot("b", 10, used=2), slot("c", 10, used=3)]
    assert plan(target(need=20), residents, budget(40)) == ["b", "c"]


def test_what_turns_out_not_to_be_needed_stays():
    """b (5 GiB, idle longest) does not make room enough; c does, and then b may stay."""
    residents = [slot("b", 5, used=1), slot("c", 30, used=2)]
    assert plan(target(need=30), residents, budget(35)) == ["c"]


def test_a_slot_of_unknown_need_is_always_alone():
    assert plan(target(need=1), [slot("a")], budget(100)) == ["a"]
    assert plan(target(), [slot("a", 1)], budget(100)) == ["a"]


def test_learned_bytes_count_only_for_auto():
    learned, ignored = target(auto=True), target()
    for one in (learned, ignored):
        one.learned.held_bytes = 10 * GIB
    assert plan(learned, [slot("a", 20)], budget(30)) == []
    assert plan(ignored, [slot("a", 20)], budget(30)) == ["a"]


def test_together_needs_no_figures():
    rules = Rules(together=(frozenset({"chat", "embed"}),))
    assert plan(target("embed"), [slot("chat")], rules) == []
    assert plan(target("other"), [slot("chat"), slot("embed")], rules) == ["chat", "embed"]


def test_together_keeps_its_members_and_sends_the_others_away():
    rules = Rules(together=(frozenset({"t", "a"}), frozenset({"a", "b"})))
    assert plan(target(), [slot("a"), slot("b")], rules) == ["b"]


def test_of_two_together_lists_the_one_that_costs_least_is_taken():
    rules = Rules(together=(frozenset({"t", "a"}), frozenset({"t", "b", "c"})))
    assert plan(target(), [slot("a"), slot("b"), slot("c")], rules) == ["a"]
    busy_a = [slot("a", busy=True), slot("b"), slot("c")]
    assert plan(target(), busy_a, rules) == ["b", "c"]


def test_a_pin_stays_and_is_named():
    with pytest.raises(CannotFit) as refused:
        plan_eviction(target(), [slot("a", pinned=True)], Rules())
    assert [str(s.id) for s in refused.value.pinned] == ["a"]


def test_what_fits_beside_a_pin_is_let_in():
    residents = [slot("pin", 20, pinned=True, used=1), slot("a", 20, used=2)]
    assert plan(target(need=20), residents, budget(40)) == ["a"]
    with pytest.raises(CannotFit):
        plan(target(need=30), residents, budget(40))


def test_a_pin_gives_way_to_an_explicit_unload():
    leaving = slot("a", pinned=True)
    leaving.is_unload_wanted = True
    assert plan(target(), [leaving], Rules()) == ["a"]


def test_two_slots_of_one_engine_never_stay_together():
    """Neither a budget nor `together` lets an engine hold two of its models at once: changing it is a reload."""
    other = Slot(SlotSpec(SlotId("e", "other"), need_bytes=GIB), phase=Phase.READY)
    small = slot("small", 1)
    wanted = Slot(SlotSpec(SlotId("e", "wanted"), need_bytes=GIB))
    assert plan(wanted, [other, small], budget(100)) == ["e/other"]
    assert plan(wanted, [other, small], budget(100, "e small")) == ["e/other"]


def test_what_is_broken_goes_first_and_always():
    residents = [slot("a", 10, used=5), slot("dead", 1, phase=Phase.CRASHED), slot("stuck", 1, phase=Phase.STUCK)]
    assert plan(target(need=10), residents, budget(100)) == ["dead", "stuck"]
    assert plan(target(), residents, Rules()) == ["dead", "stuck", "a"]


def test_a_broken_target_is_freed_before_its_own_start():
    broken = slot("t", 10, phase=Phase.STUCK)
    assert plan(broken, [broken, slot("a", 10)], budget(100)) == ["t"]


@pytest.mark.parametrize("phase", [Phase.FREEING, Phase.SETTLING])
def test_what_is_on_its_way_out_is_neither_chosen_nor_counted(phase: Phase):
    assert plan(target(need=60), [slot("a", 60, phase=phase), slot("b", 40)], budget(100)) == []


def test_when_memory_is_short_idle_ones_go_further_as_far_as_needed():
    residents = [slot("a", 10, used=3), slot("b", 10, used=1), slot("c", 10, used=2, busy=True), slot("d", 1, used=0)]
    chosen = further(residents, target(), 11 * GIB)
    assert [str(s.id) for s in chosen] == ["d", "b"]


def test_pinned_busy_and_wanted_ones_do_not_go_further():
    pinned, busy, loading = slot("a", 9, pinned=True), slot("b", 9, busy=True), slot("c", 9, phase=Phase.STARTING)
    assert further([pinned, busy, loading], target(), 1 << 62) == []


@pytest.mark.parametrize("seed", range(300))
def test_every_plan_is_enough_and_no_member_of_it_is_idle_help(seed: int):
    """Random residents: what stays fits, no member could have stayed, and no pin is in the plan."""
    dice = random.Random(seed)
    residents = [
        slot(f"r{n}", dice.choice([None, 5, 10, 20, 40]), used=dice.random(), busy=dice.random() < 0.4,
             pinned=dice.random() < 0.15)
        for n in range(dice.randint(0, 7))
    ]  # fmt: skip
    wanted, rules = target(need=dice.choice([None, 5, 20, 60])), budget(60)
    try:
        victims = plan_eviction(wanted, residents, rules)
    except CannotFit as refused:
        pins = sum(s.need_bytes or 0 for s in residents if s.spec.is_pinned)
        unknown = any(s.need_bytes is None for s in refused.pinned)
        assert wanted.need_bytes is None or unknown or pins + wanted.need_bytes > 60 * GIB
        return
    staying = [s for s in residents if s not in victims]
    assert not any(s.spec.is_pinned for s in victims)
    assert _fits(wanted, staying)
    for victim in victims:
        assert not _fits(wanted, [*staying, victim]), f"{victim.id} could have stayed"
    if any(v.is_busy for v in victims):
        idle = [s for s in residents if not s.is_busy and not s.spec.is_pinned]
        assert not _fits(wanted, [s for s in residents if s not in idle]), "a busy one goes, and idle ones were enough"


def _fits(wanted: Slot, others: list[Slot]) -> bool:
    needs = [wanted.need_bytes, *(s.need_bytes for s in others)]
    return not others or (None not in needs and sum(n or 0 for n in needs) <= 60 * GIB)


def test_the_plan_does_not_depend_on_the_order_of_residents():
    residents = [slot("a", 20, used=3), slot("b", 20, used=1), slot("c", 20, used=2, busy=True)]
    plans = {tuple(plan(target(need=35), list(way), budget(60))) for way in itertools.permutations(residents)}
    assert plans == {("b", "a")}
