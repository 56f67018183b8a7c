"""Idle unload, preload, pins, and what operators say."""

from __future__ import annotations

import asyncio
import random

import pytest

from enginerouter.errors import StartFailed
from enginerouter.swap.model import Rules
from swap.fakes import Script, World, sid, spec
from swap.virtual_time import now, settle_down, virtual


@virtual
async def test_an_idle_slot_is_freed_after_its_time():
    async with World([spec("a", idle_unload_s=60.0)]) as world:
        await world.ask("a")
        idle_since = now()
        await world.in_phase("a", "draining")
        assert now() - idle_since == pytest.approx(60.0, abs=0.01)
        await world.in_phase("a", "cold")
        assert world.resident() == []


@virtual
async def test_use_puts_the_unload_off():
    async with World([spec("a", idle_unload_s=60.0)]) as world:
        for _ in range(5):
            await world.ask("a", 10.0)
            await asyncio.sleep(59.0)
        assert world.diary.starts() == ["a"]


@virtual
async def test_a_long_request_is_not_idle():
    async with World([spec("a", idle_unload_s=60.0)]) as world:
        await world.ask("a", 600.0)
        assert world.phase("a") == "ready"


@virtual
async def test_a_request_arriving_at_the_instant_of_idle_unload_is_never_lost():
    """A thousand times, within 2 ms around it and in different turns of the loop. (llama.cpp lost 32 of 32.)"""
    dice = random.Random(7)
    script = Script(start_s=0.2, stop_s=0.05, held_bytes_s=0.001, own_bytes=True)
    async with World([spec("a", idle_unload_s=1.0)], scripts={"a": script}) as world:
        await world.ask("a", 0.0)
        for _ in range(1000):
            await asyncio.sleep(max(0.0, 1.0 + dice.choice([0.0, 0.0005, dice.uniform(-0.001, 0.003)])))
            await settle_down(dice.randint(0, 8))
            async with asyncio.timeout(1.0):
                assert await world.ask("a", 0.0) == "answered by a"
        starts = len(world.diary.starts())
        assert 1 < starts < 1000, "the instant itself was never met"


@virtual
async def test_a_request_before_the_first_stop_signal_of_an_idle_unload_keeps_the_slot():
    async with World([spec("a", idle_unload_s=5.0)], scripts={"a": Script(held_bytes_s=0.5)}) as world:
        await world.ask("a")
        await world.in_phase("a", "draining")
        began = now()
        assert await world.ask("a", 0.0) == "answered by a"
        assert now() - began < 0.6
        assert world.diary.starts() == ["a"]


@virtual
async def test_a_preload_starts_at_boot():
    async with World([spec("a", is_preloaded=True), "b"]) as world:
        await world.in_phase("a", "ready")
        assert world.diary.reports[-1].plan.reason == "preload"
        lease = world.coordinator.try_lease(sid("a"))
        assert lease is not None
        lease.release()


@virtual
async def test_a_preload_nobody_waits_for_makes_way_and_comes_back_when_there_is_room():
    async with World([spec("a", is_preloaded=True), spec("b", idle_unload_s=10.0)]) as world:
        world.script("a").start_s = 60.0
        await world.in_phase("a", "starting")
        began = now()
        assert await world.ask("b") == "answered by b"
        assert now() - began < 3.0
        await world.in_phase("a", "ready")
        assert world.phase("b") == "cold"


@virtual
async def test_a_preload_somebody_waits_for_does_not_make_way():
    async with World([spec("a", is_preloaded=True), "b"]) as world:
        world.script("a").start_s = 30.0
        first = world.request("a")
        await world.in_phase("a", "starting")
        second = world.request("b")
        assert await asyncio.gather(first, second) == ["answered by a", "answered by b"]
        assert world.diary.starts() == ["a", "b"]


@virtual
async def test_a_preload_that_fails_is_not_tried_again_by_itself():
    async with World([spec("a", is_preloaded=True)]) as world:
        world.script("a").outcomes.append("fail")
        await asyncio.sleep(100.0)
        assert world.diary.starts() == ["a"]
        assert await world.ask("a") == "answered by a"


@virtual
async def test_a_preload_that_is_told_to_go_stays_gone():
    async with World([spec("a", is_preloaded=True)]) as world:
        world.script("a").start_s = 60.0
        await world.in_phase("a", "starting")
        assert world.unload("a")
        await world.in_phase("a", "cold")
        await asyncio.sleep(100.0)
        assert world.diary.starts() == ["a"]


@virtual
async def test_two_preloads_that_fit_together_both_start():
    rules = Rules(together=(frozenset({"a", "b"}),))
    async with World([spec("a", is_preloaded=True), spec("b", is_preloaded=True)], rules) as world:
        await world.in_phase("b", "ready")
        assert world.phase("a") == "ready"


# --- unload


@virtual
async def test_unloading_what_is_not_resident_does_nothing_and_swaps_nothing():
    """E4."""
    async with World(["a", "b"]) as world:
        await world.serve("a")
        assert world.unload("b") is False
        await asyncio.sleep(5.0)
        assert world.resident() == ["a"]


@virtual
async def test_unloading_an_idle_slot_frees_it_at_once():
    async with World(["a"]) as world:
        await world.serve("a")
        assert world.unload("a") is True
        await asyncio.sleep(1.0)
        assert world.phase("a") == "cold"
        assert world.diary.reports[-1].plan.reason == "unload"


@virtual
async def test_unloading_a_busy_slot_takes_effect_when_its_last_lease_ends():
    async with World(["a"]) as world:
        await world.serve("a")
        short, long = world.request("a", 5.0), world.request("a", 10.0)
        await asyncio.sleep(1.0)
        began = now()
        assert world.unload("a") is True
        await short
        assert world.phase("a") == "ready"
        await long
        await world.in_phase("a", "cold")
        assert now() - began == pytest.approx(9.0 + 0.5, abs=0.1)
        assert await world.ask("a") == "answered by a"


@virtual
async def test_a_request_after_an_unload_is_served_by_a_new_start():
    async with World(["a"]) as world:
        await world.serve("a")
        world.unload("a")
        await world.in_phase("a", "freeing")
        assert await world.ask("a") == "answered by a"
        await asyncio.sleep(10.0)
        assert world.phase("a") == "ready"


# --- an operator's swap


@virtual
async def test_an_operators_swap_is_first_in_line():
    async with World(["a", "b", "c"]) as world:
        await world.serve("a")
        busy = world.request("a", 5.0)
        others = [world.request("b") for _ in range(3)]
        await asyncio.sleep(0.1)
        await world.coordinator.swap_to(sid("c"))
        assert world.diary.starts() == ["a", "c"]
        await asyncio.gather(busy, *others)


@virtual
async def test_an_operators_swap_holds_the_slot_without_work():
    async with World(["a", "b"], Rules(min_residency_s=5.0)) as world:
        waiting = world.request("b", 10.0)
        await world.in_phase("b", "ready")
        await world.coordinator.swap_to(sid("a"))
        ready_at = now()
        again = world.request("b")
        await world.in_phase("a", "draining")
        assert now() - ready_at == pytest.approx(5.0, abs=0.01)
        await asyncio.gather(waiting, again)


@virtual
async def test_an_operators_swap_to_what_is_resident_holds_it_too():
    async with World(["a", "b"], Rules(min_residency_s=5.0, max_wait_s=1.0)) as world:
        await world.serve("a")
        await asyncio.sleep(100.0)
        busy, waiting = world.request("a", 3.0), world.request("b")
        await settle_down()
        await world.coordinator.swap_to(sid("a"))
        held_at = now()
        await world.in_phase("a", "draining")
        assert now() - held_at == pytest.approx(5.0, abs=0.01)
        await asyncio.gather(busy, waiting)


@virtual
async def test_an_operators_swap_takes_back_an_earlier_unload():
    async with World(["a"]) as world:
        await world.serve("a")
        stream = world.request("a", 5.0)
        await settle_down()
        world.unload("a")
        await world.coordinator.swap_to(sid("a"))
        await stream
        await asyncio.sleep(10.0)
        assert world.phase("a") == "ready"


@virtual
async def test_an_operators_swap_that_fails_says_why():
    async with World(["a"]) as world:
        world.script("a").outcomes.append("fail")
        with pytest.raises(StartFailed):
            await world.coordinator.swap_to(sid("a"))


@virtual
async def test_an_operator_who_leaves_leaks_nothing():
    async with World(["a", "b"]) as world:
        await world.serve("a")
        world.request("a", 20.0)
        swap = asyncio.ensure_future(world.coordinator.swap_to(sid("b")))
        await world.in_phase("a", "draining")
        swap.cancel()
        await asyncio.gather(swap, return_exceptions=True)
        assert world.coordinator.queued == 0
        assert world.phase("a") == "ready"
