"""A reload seen from the swap: what has changed drains without a deadline, all else counts at once. Virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from enginerouter.errors import EngineFailed, LeaseCut, NoLongerConfigured
from enginerouter.slots import SlotId
from enginerouter.swap.circuit import StartCircuit
from enginerouter.swap.model import Learned, Rules, SlotSpec
from enginerouter.swap.renewal import Renewed
from swap.fakes import GIB, FakeEngine, Script, World, sid, spec
from swap.test_sleep import SleepyEngine
from swap.virtual_time import now, settle_down, virtual


def new_engine(world: World, name: str, kind: type[FakeEngine] = FakeEngine) -> FakeEngine:
    for slot in [s.id for s in world.specs if s.id.engine == name] or [SlotId(name)]:
        world.scripts.setdefault(slot, Script())
    return kind(name, world.machine, world.scripts)


def reload(world: World, specs: Iterable[str | SlotSpec] | None = None, **more: Any) -> dict[str, FakeEngine]:
    """Go by other specs. `changed` and `added` name engines that get new objects; those are given."""
    if specs is not None:
        world.specs = [s if isinstance(s, SlotSpec) else spec(s) for s in specs]
    named = (*more.pop("changed", ()), *more.pop("added", ()))
    engines = {name: new_engine(world, name) for name in named}
    rules = more.pop("rules", world.rules)
    running = more.pop("running", {})
    world.coordinator.renew(Renewed(world.specs, rules, lambda _: None, engines=engines, **more), running)
    return engines


@virtual
async def test_a_changed_slot_drains_without_a_deadline_and_who_waits_gets_the_new_one():
    rules = Rules(on_drain_timeout="cut", drain_timeout_s=1.0, queue_timeout_s=1000.0)
    async with World(["a"], rules) as world:
        long = world.request("a", 200.0)
        await world.in_phase("a", "ready")
        old = world.engine("a")
        new = reload(world, changed=["a"])["a"]
        waiting = world.request("a")
        await asyncio.sleep(150.0)
        assert not waiting.done()
        assert await long == "answered by a"
        assert await waiting == "answered by a"
        assert len(old.stops) == 1
        assert len(new.starts) == 1
        assert world.engine("a") is new


@virtual
async def test_what_drains_for_a_reload_holds_up_nobody_else():
    specs = [spec("a", need_bytes=4 * GIB), spec("b", need_bytes=4 * GIB)]
    async with World(specs, Rules(budget_bytes=10 * GIB)) as world:
        long = world.request("a", 100.0)
        await world.in_phase("a", "ready")
        reload(world, changed=["a"])
        began = now()
        assert await world.request("b") == "answered by b"
        assert now() - began < 20.0
        assert not long.done()


@virtual
async def test_somebody_else_waits_for_a_changed_slot_as_for_any_other():
    """Its own answers are not cut by the reload; a swap to another slot goes by its own rules."""
    async with World(["a", "b"], Rules(on_drain_timeout="cut", drain_timeout_s=5.0)) as world:
        long = world.request("a", 500.0)
        await world.in_phase("a", "ready")
        reload(world, changed=["a"])
        assert await world.request("b") == "answered by b"
        with pytest.raises(LeaseCut):
            await long


@virtual
async def test_a_start_that_has_changed_is_ended_and_made_anew():
    async with World(["a"], scripts={"a": Script(start_s=500.0)}) as world:
        waiting = world.request("a")
        await world.in_phase("a", "starting")
        world.script("a").start_s = 1.0
        new = reload(world, changed=["a"])["a"]
        assert await waiting == "answered by a"
        assert now() < 60.0
        assert len(new.starts) == 1
        assert world.diary.results() == ["ended", "ok"]


@virtual
async def test_who_waits_for_what_is_taken_away_is_told_so_and_answers_go_on():
    async with World(["a", "b"], Rules(max_wait_s=100.0)) as world:
        long = world.request("a", 50.0)
        await world.in_phase("a", "ready")
        waiting = world.request("b")
        await settle_down()
        reload(world, ["a"], removed=["b"])
        with pytest.raises(NoLongerConfigured, match="reloaded without it"):
            await waiting
        reload(world, [], removed=["a"])
        assert await long == "answered by a"
        await world.until(lambda: not world.coordinator.slots)
        assert world.resident() == []
        assert world.engines == {}
        for use in (world.coordinator.try_lease, world.coordinator.enqueue, world.coordinator.add):
            with pytest.raises(NoLongerConfigured):
                use(sid("a"))


@virtual
async def test_what_is_taken_away_and_comes_back_while_it_drains_is_another_one():
    async with World(["a"]) as world:
        long = world.request("a", 50.0)
        await world.in_phase("a", "ready")
        reload(world, [], removed=["a"])
        never = reload(world, ["a"], added=["a"])["a"]
        last = reload(world, changed=["a"])["a"]
        waiting = world.request("a")
        assert await long == await waiting == "answered by a"
        assert never.starts == []
        assert len(last.starts) == 1


@virtual
async def test_words_of_a_running_slot_count_at_once():
    async with World([spec("a", max_in_flight=1), "b"], Rules(linger_s=5.0)) as world:
        first = world.request("a", 30.0)
        await world.in_phase("a", "ready")
        second = world.request("a", 1.0)
        await settle_down()
        reload(world, [spec("a", max_in_flight=2, idle_unload_s=10.0), "b"], rules=replace(world.rules, linger_s=0.0))
        await second
        assert not first.done()
        await first
        await asyncio.sleep(15.0)
        assert world.phase("a") == "cold"
        assert len(world.engine("a").starts) == 1


@virtual
async def test_a_slot_of_an_engine_that_stays_changes_by_itself():
    async with World(["a/p", "a/q"]) as world:
        await world.serve("a/p")
        reload(world, changed_slots=[sid("a/q")])
        await settle_down()
        assert world.phase("a/p") == "ready"
        reload(world, changed_slots=[sid("a/p")])
        await world.in_phase("a/p", "cold")
        assert await world.request("a/p") == "answered by a/p"
        reload(world, ["a/q"])
        await world.until(lambda: sid("a/p") not in world.coordinator.slots)
        assert await world.request("a/q") == "answered by a/q"
        assert len(world.engine("a").starts) == 3


@virtual
async def test_circuits_and_figures_survive_unless_their_engine_has_changed():
    async with World(["a", "b"]) as world:
        for name in "ab":
            await world.serve(name)
            slot = world.coordinator.slots[sid(name)]
            slot.circuit = StartCircuit(3, now() + 1000.0, "broken")
        await world.until(world.is_at_rest)
        reload(world, changed=["a"])
        await world.until(lambda: not any(s.is_outdated for s in world.coordinator.slots.values()))
        a, b = (world.coordinator.slots[sid(name)] for name in "ab")
        assert not a.circuit.failures
        assert a.learned == Learned()
        assert b.circuit.failures == 3
        assert b.learned.start_s is not None


@virtual
async def test_what_sleeps_is_ended_before_it_is_made_anew():
    world = World(["a", "b"])
    sleepy = world.engines["a"] = SleepyEngine("a", world.machine, {sid("a"): world.scripts[sid("a")]})
    async with world:
        await world.serve("a")
        await world.serve("b")
        assert sleepy.asleep
        new = reload(world, changed=["a"])["a"]
        await world.until(lambda: world.engines["a"] is new)
        assert sleepy.ended == [sid("a")]
        assert await world.request("a") == "answered by a"


@virtual
async def test_who_waits_for_what_will_not_go_is_told_so_and_it_is_tried_again():
    async with World(["a"]) as world:
        await world.serve("a")
        world.script("a").stuck = 1
        new = reload(world, changed=["a"])["a"]
        with pytest.raises(EngineFailed, match="would not go"):
            await world.request("a")
        assert await world.request("a") == "answered by a"
        assert len(new.starts) == 1


@virtual
async def test_a_new_engine_that_runs_already_is_taken_over_and_one_with_preload_is_started():
    async with World(["a"]) as world:
        engine = new_engine(world, "c")
        engine.to_adopt = [SlotId("c")]
        found = await engine.adopt()
        reload(world, ["a", "b", "c"], added=["b", "c"], running={"c": found})
        assert world.phase("c") == "ready"
        world.machine.running.clear()
        world.specs[1] = spec("d", is_preloaded=True, holds_memory=False)
        reload(world, added=["d"], removed=["b"])
        await world.in_phase("d", "ready")


@virtual
async def test_a_slot_may_begin_to_hold_memory():
    async with World(["a", spec("b", holds_memory=False)]) as world:
        await world.serve("a")
        await world.serve("b")
        reload(world, ["a", "b"], changed=["b"])
        assert await world.request("b") == "answered by b"
        assert world.resident() == ["b"]
        assert world.coordinator.lane_of(sid("a")) is world.coordinator.lane_of(sid("b"))


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 200), marks=pytest.mark.slow)])
def test_over_random_reloads_everybody_is_answered_and_nothing_runs_twice(seeds: range):
    for seed in seeds:
        try:
            virtual(random_life)(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


async def random_life(seed: int) -> None:
    dice = random.Random(seed)
    rules = Rules(budget_bytes=dice.choice([None, 12 * GIB]), max_wait_s=dice.choice([1.0, 20.0]), queue_timeout_s=1e6)
    names = ["a", "b", "c/p", "c/q", "d"]

    def specs(of: Iterable[str]) -> list[SlotSpec]:
        return [spec(n, need_bytes=5 * GIB, holds_memory=n != "d", max_in_flight=dice.choice([None, 1, 3])) for n in of]

    world = World(specs(names), rules)
    there = {"a", "b", "c", "d"}
    async with world:
        asked: dict[asyncio.Task[str], str] = {}
        for _ in range(60):
            what = dice.random()
            if what < 0.7:
                slot = dice.choice(names)
                if slot.partition("/")[0] in there:
                    asked[world.request(slot, dice.choice([0.0, 1.0, 8.0, 25.0]))] = slot
            else:
                engine = dice.choice(sorted({n.partition("/")[0] for n in names}))
                kept = there ^ {engine} if what < 0.8 else there
                of_kept = specs(n for n in names if n.partition("/")[0] in kept)
                if kept > there:
                    reload(world, of_kept, added=[engine])
                elif kept < there:
                    reload(world, of_kept, removed=[engine])
                elif engine in there and what < 0.9:
                    reload(world, of_kept, changed=[engine])
                else:
                    slots = [s.id for s in of_kept if dice.random() < 0.3]
                    reload(world, of_kept, changed_slots=slots)
                there = kept
            await asyncio.sleep(dice.choice([0.0, 0.0, 0.3, 2.0, 10.0]))
        await asyncio.wait(asked, timeout=5000.0)
        for task in asked:
            error = task.exception()
            assert error is None or isinstance(error, NoLongerConfigured), error
        await asyncio.sleep(100.0)
        assert not any(s.is_outdated for s in world.coordinator.slots.values())
        assert world.engines.keys() == there
        assert {s.engine for s in world.coordinator.slots} == there
        for name in sorted(there):
            slot = next(n for n in names if n.partition("/")[0] == name)
            assert await world.request(slot) == f"answered by {slot}"
