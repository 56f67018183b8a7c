"""Hold and release: memory kept free for another program."""

from __future__ import annotations

import asyncio

import pytest

from enginerouter.errors import EngineBusy, FreeFailed, Held, HeldByOther, RouterError, ShuttingDown
from enginerouter.swap.hold import Hold
from enginerouter.swap.model import Rules
from swap.fakes import GIB, Machine, Script, World, sid, spec
from swap.virtual_time import now, settle_down, virtual


async def decided(hold: Hold) -> None:
    await hold.decided.wait()
    if isinstance(hold.outcome, RouterError):
        raise hold.outcome


@virtual
async def test_a_hold_frees_what_is_resident_and_says_when_its_memory_is_back():
    async with World(["a", "b"], scripts={"a": Script(held=60 * GIB, late_s=3.0)}) as world:
        await world.serve("a")
        began = now()
        hold = world.coordinator.hold("comfy")
        assert not hold.is_free
        await decided(hold)
        assert now() - began == pytest.approx(3.5, abs=0.1)
        assert (world.resident(), world.machine.truly_available()) == ([], world.machine.total)
        assert world.diary.reports[-1].plan.reason == "hold"


@virtual
async def test_requests_meanwhile_are_refused_with_the_owner_and_the_time_left():
    async with World(["a"]) as world:
        await decided(world.coordinator.hold("comfy", expires_s=30.0))
        await asyncio.sleep(10.0)
        with pytest.raises(Held, match="memory is held free for 'comfy' for another 20 s") as caught:
            await world.ask("a")
        assert (caught.value.status, caught.value.code) == (503, "held")
        assert caught.value.retry_after_s == pytest.approx(20.0, abs=0.1)


@virtual
async def test_requests_that_wait_already_are_refused_too_and_running_ones_end_first():
    async with World(["a", "b"]) as world:
        await world.serve("a")
        running = world.request("a", 5.0)
        waiting = world.request("b")
        await settle_down()
        hold = world.coordinator.hold("comfy")
        with pytest.raises(Held):
            await waiting
        await decided(hold)
        assert await running == "answered by a"


@virtual
async def test_with_mode_queue_requests_wait_and_are_served_after_the_release():
    async with World(["a", "b"]) as world:
        await world.serve("a")
        await decided(world.coordinator.hold("comfy", mode="queue"))
        asked = [world.request("a"), world.request("b")]
        await asyncio.sleep(60.0)
        assert world.coordinator.queued == 2
        assert "held by comfy 60s" in world.coordinator.progress(sid("a"))
        assert world.resident() == []
        assert world.coordinator.release("comfy")
        assert await asyncio.gather(*asked) == ["answered by a", "answered by b"]


@virtual
async def test_a_queued_request_is_not_kept_beyond_its_queue_timeout():
    async with World(["a"], Rules(queue_timeout_s=20.0)) as world:
        await decided(world.coordinator.hold("comfy", mode="queue"))
        with pytest.raises(RouterError) as caught:
            await world.ask("a")
        assert caught.value.code == "queue_timeout"
        assert now() == pytest.approx(20.0, abs=0.1)


@virtual
async def test_a_hold_that_expires_lets_those_who_wait_in():
    async with World(["a"]) as world:
        world.coordinator.hold("comfy", mode="queue", expires_s=7.0)
        await world.ask("a", 0.0)
        assert now() == pytest.approx(8.0, abs=0.1)
        assert world.coordinator.current_hold is None


@virtual
async def test_the_time_of_a_hold_counts_from_when_the_memory_is_free():
    """A drain that takes longer than the hold used to leave its owner nothing."""
    async with World(["a"]) as world:
        await world.serve("a")
        talking = world.request("a", 20.0)
        await settle_down()
        hold = world.coordinator.hold("comfy", expires_s=3.0)
        with pytest.raises(Held, match="for 'comfy' for 3 s once it is free"):
            await world.ask("a")
        await decided(hold)
        assert await talking == "answered by a"
        free_at = now()
        await world.until(lambda: world.coordinator.current_hold is None)
        assert now() - free_at == pytest.approx(3.0, abs=0.1)


@virtual
async def test_after_a_hold_a_pinned_slot_comes_back_before_whoever_waits():
    """It used to stay cold for as long as the other one had work."""
    together = Rules(together=(frozenset({"a", "b"}),))
    for rules, outcome in ((Rules(), "pinned"), (together, "answered by b")):
        async with World([spec("a", is_pinned=True), "b"], rules) as world:
            await world.serve("a")
            await decided(world.coordinator.hold("comfy", mode="queue"))
            asked = world.request("b", 100.0)
            await settle_down()
            world.coordinator.release()
            await world.in_phase("a", "ready")
            assert world.diary.starts()[:2] == ["a", "a"]
            (said,) = await asyncio.gather(asked, return_exceptions=True)
            assert (said.code if isinstance(said, RouterError) else said) == outcome


@virtual
async def test_a_pin_does_not_keep_its_slot_but_it_comes_back_by_itself():
    async with World([spec("a", is_pinned=True), "b"]) as world:
        await world.serve("a")
        await decided(world.coordinator.hold("comfy"))
        assert world.resident() == []
        world.coordinator.release()
        await world.in_phase("a", "ready")


@virtual
async def test_a_pinned_slot_that_was_not_resident_is_not_started_by_a_release():
    async with World([spec("a", is_pinned=True), "b"]) as world:
        await decided(world.coordinator.hold("comfy"))
        world.coordinator.release()
        await asyncio.sleep(10.0)
        assert world.diary.starts() == []


@virtual
async def test_a_preload_waits_for_the_release():
    async with World([spec("a", is_preloaded=True)], scripts={"a": Script(start_s=5.0)}) as world:
        await world.in_phase("a", "starting")
        await asyncio.sleep(1.0)
        await decided(world.coordinator.hold("comfy"))
        await asyncio.sleep(10.0)
        assert world.resident() == []
        world.coordinator.release()
        await world.in_phase("a", "ready")


@virtual
async def test_a_start_under_way_is_ended_and_its_waiters_are_refused_or_go_on_waiting():
    for mode, outcome in (("refuse", "held"), ("queue", "answered by a")):
        async with World(["a"], scripts={"a": Script(start_s=30.0)}) as world:
            asked = world.request("a")
            await asyncio.sleep(5.0)
            began = now()
            hold = world.coordinator.hold("comfy", mode=mode)
            await decided(hold)
            assert now() - began < 2.0
            assert world.resident() == []
            world.coordinator.release()
            (said,) = await asyncio.gather(asked, return_exceptions=True)
            assert (said.code if isinstance(said, Held) else said) == outcome
            assert world.coordinator.slots[sid("a")].circuit.failures == 0


@virtual
async def test_a_swap_beyond_its_point_of_no_return_frees_for_the_hold_and_starts_nothing():
    async with World(["a", "b"], scripts={"a": Script(late_s=2.0)}) as world:
        await world.serve("a")
        asked = world.request("b")
        await world.in_phase("a", "settling")
        hold = world.coordinator.hold("comfy", mode="queue")
        await decided(hold)
        assert world.machine.truly_available() == world.machine.total
        assert world.diary.starts() == ["a"]
        world.coordinator.release()
        assert await asked == "answered by b"


@virtual
async def test_engines_without_memory_of_their_own_serve_on():
    async with World(["a", spec("cpu", holds_memory=False)]) as world:
        await world.serve("cpu")
        await decided(world.coordinator.hold("comfy"))
        assert await world.ask("cpu") == "answered by cpu"


@virtual
async def test_a_hold_during_the_start_of_the_router_waits_for_what_an_earlier_one_left_running():
    world = World(["a"])
    world.engine("a").to_adopt = [sid("a")]
    hold = world.coordinator.hold("comfy")
    await settle_down()
    assert not hold.is_free
    async with world:
        await decided(hold)
        assert world.resident() == []
        assert [str(s) for _, s in world.engine("a").stops] == ["a"]


@virtual
async def test_a_second_owner_is_refused_and_the_first_may_say_it_again():
    async with World(["a"]) as world:
        first = world.coordinator.hold("comfy", expires_s=10.0)
        with pytest.raises(HeldByOther, match="held by 'comfy', not by 'blender'") as caught:
            world.coordinator.hold("blender")
        assert caught.value.status == 409
        with pytest.raises(HeldByOther):
            world.coordinator.release("blender")
        assert world.coordinator.hold("comfy", expires_s=100.0) is first
        await asyncio.sleep(50.0)
        assert world.coordinator.current_hold is first
        assert world.coordinator.release("comfy")
        assert not world.coordinator.release("comfy")
        world.coordinator.hold("blender")


@virtual
async def test_what_happens_during_a_hold_does_not_make_it_longer():
    async with World(["a"]) as world:
        hold = world.coordinator.hold("comfy", mode="queue", expires_s=10.0)
        await hold.decided.wait()
        for _ in range(4):
            await asyncio.sleep(2.0)
            waiting = world.request("a")
        await waiting
        assert now() == pytest.approx(11.0, abs=0.2), "10 s of the hold, a start"


@virtual
async def test_said_again_a_hold_lasts_from_then():
    async with World(["a"]) as world:
        hold = world.coordinator.hold("comfy", expires_s=10.0)
        await hold.decided.wait()
        await asyncio.sleep(8.0)
        world.coordinator.hold("comfy", expires_s=10.0)
        await asyncio.sleep(9.0)
        assert world.coordinator.current_hold is hold
        await asyncio.sleep(2.0)
        assert world.coordinator.current_hold is None


@virtual
async def test_a_hold_drains_as_it_is_told_to():
    async with World(["a"], Rules(drain_timeout_s=5.0, on_drain_timeout="wait")) as world:
        await world.serve("a")
        talking = world.request("a", 100.0, byte_every_s=0.5)
        await settle_down()
        await decided(world.coordinator.hold("comfy", drain="cut"))
        assert now() < 12.0
        with pytest.raises(RouterError) as caught:
            await talking
        assert caught.value.code == "cut_for_swap"


@virtual
async def test_a_hold_that_may_not_cut_ends_with_engine_busy_and_everything_as_it_was():
    async with World(["a"], Rules(drain_timeout_s=5.0)) as world:
        await world.serve("a")
        talking = world.request("a", 20.0)
        await settle_down()
        with pytest.raises(EngineBusy):
            await decided(world.coordinator.hold("comfy", drain="refuse"))
        assert world.coordinator.current_hold is None
        assert world.phase("a") == "ready"
        assert await talking == "answered by a"


@virtual
async def test_a_release_during_the_drain_calls_it_off():
    async with World(["a"]) as world:
        await world.serve("a")
        talking = world.request("a", 20.0, byte_every_s=0.5)
        await settle_down()
        hold = world.coordinator.hold("comfy")
        await asyncio.sleep(3.0)
        world.coordinator.release("comfy")
        with pytest.raises(RouterError, match="ended before the memory was free: it was released"):
            await decided(hold)
        await settle_down()
        assert world.phase("a") == "ready"
        assert await talking == "answered by a"
        assert world.engine("a").stops == []


@virtual
async def test_what_will_not_go_ends_the_hold_with_its_name_and_is_not_tried_for_ever():
    async with World(["a"], scripts={"a": Script(stuck=1)}) as world:
        await world.serve("a")
        with pytest.raises(FreeFailed, match="a would not go"):
            await decided(world.coordinator.hold("comfy"))
        assert world.coordinator.current_hold is None
        assert len(world.engine("a").stops) == 1
        await decided(world.coordinator.hold("comfy"))
        assert world.resident() == []


@virtual
async def test_a_crashed_slot_beside_ready_ones_goes_too():
    rules = Rules(together=(frozenset({"a", "b"}),))
    async with World(["a", "b"], rules, machine=Machine(64 * GIB)) as world:
        await world.serve("a")
        await world.serve("b")
        hold = world.coordinator.hold("comfy")
        world.crash("a")
        await decided(hold)
        assert world.resident() == []


@virtual
async def test_a_shutdown_ends_a_hold_that_is_not_free_yet():
    async with World(["a"]) as world:
        await world.serve("a")
        talking = world.request("a", 20.0)
        await settle_down()
        hold = world.coordinator.hold("comfy")
        await settle_down()
        world.coordinator.refuse_new()
        with pytest.raises(RouterError, match="shutting down"):
            await decided(hold)
        with pytest.raises(ShuttingDown):
            world.coordinator.hold("comfy")
        assert await talking == "answered by a"
