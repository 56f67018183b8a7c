"""A target that a chain went past: it starts when that costs nobody anything, and not otherwise."""

from __future__ import annotations

import asyncio

import pytest

from enginerouter.swap.coordinator import WISH_S
from enginerouter.swap.model import Rules
from swap.fakes import Script, World, learned, sid, spec
from swap.virtual_time import now, settle_down, virtual

RULES = Rules(linger_s=0.25)


def wish(world: World, slot: str) -> None:
    world.coordinator.wish(sid(slot))


@virtual
async def test_with_nothing_resident_it_starts_at_once():
    async with World(["a", "b"], RULES) as world:
        wish(world, "b")
        await world.until(lambda: world.phase("b") == "ready")
        assert now() == pytest.approx(1.0, abs=0.1)
        assert world.diary.reports[-1].plan.reason == "wish"


@virtual
async def test_an_idle_resident_makes_way_once_its_linger_is_over():
    async with World(["a", "b"], RULES) as world:
        await world.ask("a", 0.0)
        began = now()
        wish(world, "b")
        await world.until(lambda: world.phase("a") != "ready")
        assert now() - began == pytest.approx(0.25, abs=0.01)
        await world.until(lambda: world.phase("b") == "ready")


@virtual
async def test_a_busy_resident_is_not_disturbed_however_long_it_works():
    async with World(["a", "b"], RULES) as world:
        await world.serve("a")
        long = world.request("a", 100.0)
        await settle_down()
        wish(world, "b")
        await asyncio.sleep(50.0)
        assert world.phase("a") == "ready"
        assert await world.ask("a", 0.1) == "answered by a", "no gate is closed"
        await long
        ended = now()
        await world.until(lambda: world.phase("b") == "ready")
        assert now() - ended < 3.0


@virtual
async def test_steps_that_follow_within_the_linger_keep_the_resident():
    async with World(["a", "b"], RULES) as world:
        await world.serve("a")
        wish_at = now()
        step = world.request("a", 0.1)
        await settle_down()
        wish(world, "b")
        await step
        for _ in range(50):
            await asyncio.sleep(0.1)
            await world.ask("a", 0.1)
        assert now() - wish_at > 9.0
        assert world.phase("b") == "cold"


@virtual
async def test_a_wish_expires():
    async with World(["a", "b"], RULES) as world:
        await world.serve("a")
        long = world.request("a", WISH_S + 10.0)
        await settle_down()
        wish(world, "b")
        await long
        await asyncio.sleep(100.0)
        assert (world.phase("a"), world.phase("b")) == ("ready", "cold")


@virtual
async def test_a_request_for_what_is_about_to_leave_is_served_and_the_wish_waits():
    """The check of the wished-for engine takes time, and somebody comes meanwhile."""
    async with World(["a", "b"], RULES, scripts={"b": Script(check_s=1.0)}) as world:
        await world.serve("a")
        wish(world, "b")
        await asyncio.sleep(0.5)
        assert await world.ask("a", 5.0) == "answered by a"
        assert world.engine("a").stops == []
        await world.until(lambda: world.phase("b") == "ready")


@virtual
async def test_somebody_who_waits_goes_first_and_ends_the_start_of_a_wish():
    async with World(["a", "b", "c"], RULES, scripts={"b": Script(start_s=60.0)}) as world:
        wish(world, "b")
        await asyncio.sleep(5.0)
        assert world.phase("b") == "starting"
        assert await world.ask("c") == "answered by c"
        assert now() < 10.0


@virtual
async def test_one_wish_per_target_however_often_it_is_wished():
    async with World(["a", "b"], RULES) as world:
        for _ in range(100):
            wish(world, "b")
        await world.until(lambda: world.phase("b") == "ready")
        await world.serve("a")
        await asyncio.sleep(400.0)
        assert world.diary.starts() == ["b", "a"]


@virtual
async def test_what_is_just_leaving_may_be_wished_back():
    async with World(["a", "b"], RULES, scripts={"a": Script(stop_s=2.0)}) as world:
        await world.serve("a")
        asked = world.request("b")
        await world.in_phase("a", "freeing")
        wish(world, "a")
        await asked
        await world.until(lambda: world.phase("a") == "ready")


@virtual
async def test_a_wish_whose_start_fails_is_not_tried_for_ever():
    async with World(["b"], RULES, scripts={"b": Script()}) as world:
        world.script("b").outcomes.extend(["fail"] * 9)
        wish(world, "b")
        await asyncio.sleep(400.0)
        assert len(world.engine("b").starts) == 1


@virtual
async def test_pinned_slots_do_not_make_way():
    async with World([spec("a", is_pinned=True), "b"], RULES) as world:
        await world.serve("a")
        wish(world, "b")
        await asyncio.sleep(400.0)
        assert (world.phase("a"), world.phase("b")) == ("ready", "cold")


@virtual
async def test_under_a_hold_no_wish_is_granted():
    async with World(["b"], RULES) as world:
        hold = world.coordinator.hold("game")
        wish(world, "b")
        await asyncio.sleep(10.0)
        assert world.phase("b") == "cold"
        assert hold.is_free
        world.coordinator.release("game")
        await world.until(lambda: world.phase("b") == "ready")


@virtual
async def test_an_unload_takes_the_wish_back():
    async with World(["a", "b"], RULES) as world:
        await world.serve("a")
        long = world.request("a", 10.0)
        await settle_down()
        wish(world, "b")
        assert not world.unload("b"), "there is nothing to free"
        await long
        await asyncio.sleep(20.0)
        assert world.phase("b") == "cold"


# --- a trial is at nobody's cost


@virtual
async def test_a_start_disturbs_what_works_what_served_lately_and_those_who_wait():
    async with World(["a", "b", "c"], RULES, scripts={"c": Script(start_s=30.0)}) as world:
        disturbs = world.coordinator.disturbs
        assert not disturbs(sid("b"), within_s=60.0), "nothing is resident"
        await world.serve("a")
        assert disturbs(sid("b"), within_s=60.0)
        assert not disturbs(sid("a"), within_s=60.0), "it is there already"
        await asyncio.sleep(61.0)
        assert not disturbs(sid("b"), within_s=60.0)
        working = world.request("a", 100.0)
        await asyncio.sleep(90.0)
        assert disturbs(sid("b"), within_s=60.0)
        await working
        await asyncio.sleep(61.0)
        world.request("c")
        await asyncio.sleep(5.0)
        assert disturbs(sid("b"), within_s=60.0), "a swap for somebody is under way"


@virtual
async def test_how_long_it_takes_is_known_once_it_was_measured():
    async with World(["a", "b"], RULES, known={"a": learned(20.0)}) as world:
        assert world.coordinator.known_eta_s(sid("a")) == pytest.approx(20.0)
        assert world.coordinator.known_eta_s(sid("b")) is None
        await world.serve("b")
        assert world.coordinator.known_eta_s(sid("b")) == 0.0
