"""What an earlier router left running and this one ends at its start: its memory is waited for like any other."""

from __future__ import annotations

import asyncio

import pytest

from enginerouter.engines.base import Ended
from enginerouter.slots import SlotId
from enginerouter.swap.model import Learned, Rules
from swap.fakes import GIB, Script, World, sid, spec
from swap.virtual_time import now, settle_down, virtual


def left_behind(
    slot: str, script: Script, *more: str, rules: Rules | None = None, known: Learned | None = None
) -> World:
    """An engine of an earlier router that runs when this one starts, and is not fit to go on."""
    world = World([slot, *more], rules, scripts={slot: script}, known={slot: known} if known else None)
    world.machine.take(sid(slot), script.held)
    world.engine(slot).to_end = [sid(slot)]
    return world


@virtual
async def test_nothing_is_started_before_the_memory_of_what_was_ended_is_back():
    async with left_behind("a", Script(held=60 * GIB, late_s=3.0, own_bytes=True), "b") as world:
        await world.ask("b")
        (started_at, _), *_ = world.engine("b").starts
        assert started_at == pytest.approx(3.0, abs=0.05)
        assert world.machine.lowest >= 0


@virtual
async def test_the_same_slot_waits_for_its_own_memory_too():
    async with left_behind("a", Script(held=60 * GIB, late_s=3.0, own_bytes=True)) as world:
        await world.ask("a")
        (started_at, _), *_ = world.engine("a").starts
        assert started_at == pytest.approx(3.0, abs=0.05)


@virtual
async def test_a_preload_waits_for_it_too():
    script = Script(held=60 * GIB, late_s=2.0, own_bytes=True)
    world = World([spec("a"), spec("b", is_preloaded=True)], scripts={"a": script})
    world.machine.take(sid("a"), script.held)
    world.engine("a").to_end = [sid("a")]
    async with world:
        await world.in_phase("b", "ready")
        assert world.engine("b").starts[0][0] == pytest.approx(2.0, abs=0.05)


@virtual
async def test_where_nothing_is_known_of_it_a_level_line_will_do():
    async with left_behind("a", Script(held=60 * GIB, own_bytes=False), "b") as world:
        await world.ask("b")
        assert world.engine("b").starts[0][0] == pytest.approx(1.0, abs=0.05)


@virtual
async def test_what_came_back_the_last_time_is_what_is_waited_for():
    """A container says nothing of its memory."""
    known, script = Learned(came_back_bytes=60 * GIB), Script(held=60 * GIB, late_s=6.0, own_bytes=False)
    async with left_behind("a", script, "b", known=known) as world:
        await world.ask("b")
        assert world.engine("b").starts[0][0] == pytest.approx(6.0, abs=0.05)


@virtual
async def test_memory_that_never_returns_costs_the_settle_timeout(caplog: pytest.LogCaptureFixture):
    script = Script(held=60 * GIB, late_s=10_000.0, own_bytes=True)
    async with left_behind("a", script, "b", rules=Rules(settle_timeout_s=5.0)) as world:
        await world.ask("b")
        assert world.engine("b").starts[0][0] == pytest.approx(5.0, abs=0.05)
    assert "timeout" in caplog.text


@virtual
async def test_without_settle_nothing_is_waited_for():
    script = Script(held=60 * GIB, late_s=3.0, own_bytes=True)
    async with left_behind("a", script, "b", rules=Rules(settle_timeout_s=0.0)) as world:
        await world.ask("b")
        assert world.engine("b").starts[0][0] == pytest.approx(0.0, abs=0.05)


@virtual
async def test_meanwhile_what_was_taken_over_serves_and_the_others_are_told_what_they_wait_for():
    script = Script(held=40 * GIB, late_s=3.0, own_bytes=True)
    world = left_behind("a", script, "b", "c")
    world.engine("b").to_adopt = [sid("b")]
    async with world:
        waiting = world.request("c")
        await world.ask("b", 0.0)
        assert now() < 0.1
        await asyncio.sleep(2.0)
        assert world.coordinator.progress(sid("c")) == "swap settling c 2s"
        await waiting
        assert world.engine("c").starts[0][0] > 3.0


@virtual
async def test_a_slot_without_memory_of_its_own_does_not_wait():
    script = Script(held=60 * GIB, late_s=3.0, own_bytes=True)
    world = World(["a", spec("cpu", holds_memory=False)], scripts={"a": script})
    world.machine.take(sid("a"), script.held)
    world.engine("a").to_end = [sid("a")]
    async with world:
        await world.ask("cpu")
        assert world.engine("cpu").starts[0][0] == 0.0


@virtual
async def test_what_belongs_to_no_engine_any_more_is_waited_for_too():
    world = World(["b"])
    gone, script = SlotId("removed"), Script(held=60 * GIB, late_s=4.0)
    world.machine.take(gone, script.held)

    async def clear() -> list[Ended]:
        await asyncio.sleep(0.5)
        world.machine.give_back(gone, script)
        return [Ended(gone, script.held)]

    starting = asyncio.ensure_future(world.coordinator.start(clear))
    await world.ask("b")
    assert world.engine("b").starts[0][0] == pytest.approx(4.5, abs=0.05)
    await starting
    await world.__aexit__()


@virtual
async def test_the_end_of_the_router_ends_the_wait():
    async with left_behind("a", Script(held=60 * GIB, late_s=1000.0, own_bytes=True), "b") as world:
        world.request("b")
        await settle_down()
    assert now() < 1.0
