"""Slots that nobody waits for and that are started all the same: after a crash, after a failed swap."""

from __future__ import annotations

import asyncio

import pytest

from enginerouter.errors import EngineFailed, StartFailed
from enginerouter.swap.model import Rules
from swap.fakes import GIB, World, sid, spec
from swap.virtual_time import now, virtual


@virtual
async def test_with_auto_restart_a_crashed_slot_is_started_at_once():
    async with World([spec("a", restarts=True), "b"]) as world:
        await world.serve("a")
        before = now()
        world.crash("a")
        await world.in_phase("a", "ready")
        assert now() - before < 5
        assert world.diary.reports[-1].plan.reason == "restart"
        assert await world.ask("a") == "answered by a"


@virtual
async def test_without_it_the_next_request_starts_it():
    async with World(["a"]) as world:
        await world.serve("a")
        world.crash("a")
        await asyncio.sleep(100)
        assert world.phase("a") == "cold"


@virtual
async def test_a_slot_somebody_else_waits_for_comes_first_and_the_crashed_one_stays_away():
    async with World([spec("a", restarts=True), "b"]) as world:
        await world.serve("a")
        busy = world.request("a", 60.0)
        await asyncio.sleep(0.1)
        other = world.request("b")
        await asyncio.sleep(0.1)
        world.crash("a")
        assert await other == "answered by b"
        await asyncio.sleep(100)
        assert world.diary.starts() == ["a", "b"]
        assert world.resident() == ["b"]
        assert world.unload("b")
        await asyncio.sleep(100)
        assert world.resident() == [], "it was overtaken: it does not come back later, out of the blue"
        assert busy.done()


@virtual
async def test_beside_the_other_it_does_come_back():
    rules = Rules(budget_bytes=40 * GIB)
    specs = [spec("a", restarts=True, need_bytes=8 * GIB), spec("b", need_bytes=8 * GIB)]
    async with World(specs, rules) as world:
        await world.serve("a")
        busy = world.request("b")
        world.crash("a")
        assert await busy == "answered by b"
        await world.in_phase("a", "ready")
        assert world.resident() == ["b", "a"]


@virtual
async def test_one_that_crashes_again_and_again_waits_for_its_circuit():
    async with World([spec("a", restarts=True, max_restarts=2)]) as world:
        await world.serve("a")
        world.crash("a")
        await world.in_phase("a", "ready")
        world.crash("a")
        before = now()
        await world.in_phase("a", "ready")
        assert now() - before > 30
        assert world.phase("a") == "ready"


@virtual
async def test_a_restart_that_fails_is_not_tried_for_ever():
    async with World([spec("a", restarts=True)]) as world:
        await world.serve("a")
        world.script("a").outcomes.append("fail")
        world.crash("a")
        await asyncio.sleep(100)
        assert world.diary.starts() == ["a", "a"]
        assert await world.ask("a") == "answered by a"


@virtual
async def test_a_slot_that_was_leaving_when_it_crashed_does_not_come_back():
    async with World([spec("a", restarts=True)]) as world:
        await world.serve("a")
        busy = world.request("a", 10.0)
        await asyncio.sleep(0.1)
        assert world.unload("a")
        world.crash("a")
        await asyncio.sleep(100)
        assert world.resident() == []
        assert busy.done()


@pytest.mark.parametrize("outcome", ["fail", "oom", "timeout", "bug"])
@virtual
async def test_with_rollback_a_slot_is_put_back_if_the_swap_away_from_it_fails(outcome: str):
    async with World([spec("a", rolls_back=True), "b"]) as world:
        await world.serve("a")
        world.script("b").outcomes.extend([outcome, outcome])
        with pytest.raises(EngineFailed):
            await world.ask("b")
        await world.in_phase("a", "ready")
        assert world.diary.reports[-1].plan.reason == "rollback"
        assert world.resident() == ["a"]


@virtual
async def test_without_rollback_it_stays_away():
    async with World(["a", "b"]) as world:
        await world.serve("a")
        world.script("b").outcomes.append("fail")
        with pytest.raises(StartFailed):
            await world.ask("b")
        await asyncio.sleep(100)
        assert world.resident() == []


@virtual
async def test_a_swap_that_went_well_puts_nothing_back():
    async with World([spec("a", rolls_back=True), "b"]) as world:
        await world.serve("a")
        await world.serve("b")
        assert world.unload("b")
        await asyncio.sleep(100)
        assert world.resident() == []


@virtual
async def test_who_waits_for_a_third_comes_before_the_put_back():
    async with World([spec("a", rolls_back=True), "b", "c"]) as world:
        await world.serve("a")
        world.script("b").outcomes.append("fail")
        first = world.request("b")
        await world.in_phase("b", "starting")
        assert await world.ask("c") == "answered by c"
        with pytest.raises(StartFailed):
            await first
        await asyncio.sleep(100)
        assert world.diary.starts() == ["a", "b", "c"]


@virtual
async def test_the_slots_of_an_engine_without_memory_take_turns():
    specs = [spec("cpu/p", holds_memory=False), spec("cpu/q", holds_memory=False), spec("emb", holds_memory=False)]
    async with World([*specs, "big"]) as world:
        await world.serve("big")
        await world.serve("emb")
        await world.serve("cpu/p")
        await world.serve("cpu/q")
        assert world.resident() == ["big", "emb", "cpu/q"]
        lane = world.coordinator.lane_of
        assert lane(sid("cpu/p")) is lane(sid("cpu/q"))
        assert lane(sid("cpu/p")) is not lane(sid("emb"))
