"""The first and the last moments of the coordinator: adoption and shutdown."""

from __future__ import annotations

import asyncio

import pytest

from enginerouter.errors import FreeFailed, LeaseCut, ShuttingDown
from enginerouter.swap.model import Rules
from swap.fakes import Script, World, sid, spec
from swap.virtual_time import now, settle_down, virtual


@virtual
async def test_what_an_earlier_router_left_running_is_taken_over_and_can_be_swapped_away():
    """B1: it was believed in, and could never be stopped again."""
    world = World(["a", "b"])
    world.engine("a").to_adopt = [sid("a")]
    async with world:
        assert world.phase("a") == "ready"
        assert await world.ask("a") == "answered by a"
        assert world.diary.starts() == []
        assert await world.ask("b") == "answered by b"
        assert world.resident() == ["b"]


@virtual
async def test_of_two_that_may_not_stay_together_one_is_kept():
    world = World(["a", "b"])
    for slot in "ab":
        world.engine(slot).to_adopt = [sid(slot)]
    async with world:
        await asyncio.sleep(1.0)
        assert world.resident() == ["a"]


@virtual
async def test_an_adopted_slot_is_not_preloaded_again():
    world = World([spec("a", is_preloaded=True)])
    world.engine("a").to_adopt = [sid("a")]
    async with world:
        await asyncio.sleep(5.0)
        assert world.diary.starts() == []


@virtual
async def test_what_an_earlier_router_left_and_could_not_end_is_freed_before_anything_starts():
    """The router comes up all the same."""
    world = World(["a", "b"], scripts={"a": Script(stuck=1)})
    world.engine("a").adopt_error = FreeFailed("a", "pid 7 would not go")
    async with world:
        world.machine.take(sid("a"), 1)
        assert (world.phase("a"), world.phase("b")) == ("stuck", "cold")
        with pytest.raises(FreeFailed):
            await world.ask("b")
        assert await world.ask("b") == "answered by b"
        assert world.resident() == ["b"]


# --- shutdown


@virtual
async def test_those_who_wait_are_told_and_nobody_new_is_let_in():
    async with World(["a", "b"]) as world:
        await world.serve("a")
        stream = world.request("a", 5.0)
        waiting = world.request("b")
        await settle_down()
        world.coordinator.refuse_new()
        for request in (waiting, world.request("a"), world.request("b")):
            with pytest.raises(ShuttingDown):
                await request
        assert await stream == "answered by a"
        assert world.coordinator.queued == 0


@virtual
async def test_a_drain_for_those_who_were_told_is_called_off_and_cuts_nobody():
    rules = Rules(max_wait_s=1.0, min_residency_s=0.0, drain_timeout_s=2.0, on_drain_timeout="cut")
    async with World(["a", "b"], rules) as world:
        await world.serve("a")
        stream = world.request("a", 8.0)
        world.request("b")
        await world.in_phase("a", "draining")
        world.coordinator.refuse_new()
        assert await stream == "answered by a"
        assert world.phase("a") == "ready"


@virtual
async def test_closing_cuts_what_runs_with_a_word_and_stops_every_engine_at_once():
    rules = Rules(together=(frozenset({"a", "b"}),))
    async with World(["a", "b"], rules, scripts={s: Script(stop_s=4.0) for s in "ab"}) as world:
        await world.serve("a")
        await world.serve("b")
        stream = world.request("a", 100.0)
        await settle_down()
        began = now()
        await world.coordinator.close()
        assert now() - began == pytest.approx(4.0)
        assert isinstance(stream.exception(), LeaseCut)
        assert world.resident() == []


@pytest.mark.parametrize("phase", ["draining", "freeing", "settling", "starting"])
@virtual
async def test_closing_in_the_middle_of_a_swap_leaves_nothing_running(phase: str):
    """E10."""
    scripts = {"a": Script(late_s=3.0), "b": Script(start_s=60.0)}
    async with World(["a", "b"], Rules(max_wait_s=1.0, min_residency_s=0.0), scripts=scripts) as world:
        await world.serve("a")
        world.request("a", 4.0)
        waiting = world.request("b")
        await world.in_phase("b" if phase == "starting" else "a", phase)
        began = now()
        await world.coordinator.close()
        assert now() - began < 2.0
        assert world.resident() == []
        with pytest.raises(ShuttingDown):
            await waiting


@virtual
async def test_closing_twice_is_closing_once():
    async with World(["a"]) as world:
        await world.serve("a")
        await world.coordinator.close()
        await world.coordinator.close()
        assert world.resident() == []


@virtual
async def test_an_engine_that_will_not_go_does_not_stop_the_others_from_being_stopped():
    rules = Rules(together=(frozenset({"a", "b"}),))
    async with World(["a", "b"], rules, scripts={"a": Script(stuck=1)}) as world:
        await world.serve("a")
        await world.serve("b")
        await world.coordinator.close()
        assert world.resident() == ["a"]


@virtual
async def test_on_exit_keep_leaves_ready_engines_running():
    rules = Rules(together=(frozenset({"a", "b"}),))
    world = World(["a", "b"], rules)
    async with world:
        world.script("b").start_s = 60.0
        await world.serve("a")
        world.request("b")
        await world.in_phase("b", "starting")
        await world.coordinator.close(keeps_engines=True)
        assert world.resident() == ["a"]
        assert world.engine("a").stops == []


@virtual
async def test_on_exit_keep_leaves_one_that_was_only_draining():
    async with World(["a", "b"], Rules(max_wait_s=1.0, min_residency_s=0.0)) as world:
        await world.serve("a")
        world.request("a", 60.0)
        world.request("b")
        await world.in_phase("a", "draining")
        await world.coordinator.close(keeps_engines=True)
        assert world.resident() == ["a"]


@virtual
async def test_the_loop_is_seen_turning():
    async with World(["a"]) as world:
        await asyncio.sleep(100.0)
        assert world.coordinator.seconds_since_turn() <= 1.0
