"""The bounds of the queue, and what those learn who are turned away or made to wait."""

from __future__ import annotations

import asyncio

import pytest

from enginerouter.errors import Pinned, QueueFull, QueueTimedOut, retry_after
from enginerouter.swap.model import Rules
from swap.fakes import World, learned, sid, spec
from swap.virtual_time import now, settle_down, virtual


@virtual
async def test_the_queue_is_bounded_and_says_when_to_come_back():
    """E12: the predecessor let 300 in. The bound is for the router, not for each engine."""
    known = {"b": learned(20.0)}
    async with World(["a", "b"], Rules(max_queued=10, max_wait_s=15.0), known=known) as world:
        await world.serve("a")
        world.request("a", 500.0)
        await settle_down()
        for _ in range(10):
            world.request("b")
        await settle_down()
        assert world.coordinator.queued == 10
        with pytest.raises(QueueFull, match="10 requests are waiting") as refused:
            await world.ask("b")
        assert refused.value.retry_after_s == pytest.approx(15.0 + 20.0)
        assert retry_after(refused.value.retry_after_s or 0.0) == 35
        assert await world.ask("a") == "answered by a"


@virtual
async def test_a_full_queue_does_not_keep_an_operator_out():
    async with World(["a", "b"], Rules(max_queued=1)) as world:
        await world.serve("a")
        world.request("a", 500.0, byte_every_s=400.0)
        world.request("b")
        await settle_down()
        await world.coordinator.swap_to(sid("b"))
        assert world.phase("b") == "ready"


@virtual
async def test_who_waits_too_long_is_told():
    async with World(["a", "b"], Rules(queue_timeout_s=10.0, max_wait_s=60.0)) as world:
        await world.serve("a")
        world.request("a", 500.0)
        began = now()
        with pytest.raises(QueueTimedOut, match="waited 10 s for b"):
            await world.ask("b")
        assert now() - began == pytest.approx(10.0, abs=0.01)
        assert world.coordinator.queued == 0


@virtual
async def test_the_queue_timeout_ends_where_the_swap_begins():
    async with World(["a", "b"], Rules(queue_timeout_s=10.0, max_wait_s=8.0)) as world:
        world.script("b").start_s = 300.0
        await world.serve("a")
        world.request("a", 20.0)
        waiting = world.request("b")
        await asyncio.sleep(9.0)
        joined = world.request("b")
        assert await asyncio.gather(waiting, joined) == ["answered by b"] * 2


@virtual
async def test_a_passed_queue_timeout_does_not_spin_while_the_swap_goes_on():
    """The loop of virtual_time counts its turns: a timer set again and again raises Spinning."""
    async with World(["a", "b"], Rules(queue_timeout_s=10.0)) as world:
        world.script("b").start_s = 100.0
        waiting = world.request("b")
        await asyncio.sleep(11.0)
        dispatches = 0
        dispatcher = world.coordinator._dispatcher
        dispatch = dispatcher.run

        def counted(lane: object) -> None:
            nonlocal dispatches
            dispatches += 1
            dispatch(lane)  # type: ignore[arg-type]

        dispatcher.run = counted  # type: ignore[method-assign, assignment]
        await asyncio.sleep(50.0)
        assert dispatches == 0
        await waiting


@virtual
async def test_above_max_in_flight_requests_wait_in_the_queue():
    async with World([spec("a", max_in_flight=2)]) as world:
        await world.serve("a")
        began = now()
        tasks = [world.request("a", 1.0) for _ in range(6)]
        await settle_down()
        assert (world.in_flight("a"), world.coordinator.queued) == (2, 4)
        await asyncio.gather(*tasks)
        assert now() - began == pytest.approx(3.0)


@virtual
async def test_room_that_becomes_free_goes_to_the_first_in_the_queue_not_to_who_comes_then():
    async with World([spec("a", max_in_flight=1)]) as world:
        await world.serve("a")
        lease = world.coordinator.try_lease(sid("a"))
        assert lease is not None
        first = world.request("a", 1.0)
        await settle_down()
        lease.release()
        assert world.coordinator.try_lease(sid("a")) is None
        await first


@virtual
async def test_a_request_that_pins_make_impossible_is_refused_at_once_and_names_them():
    async with World([spec("a", is_pinned=True), "b"]) as world:
        await world.serve("a")
        began = now()
        with pytest.raises(Pinned, match="a is pinned"):
            await world.ask("b")
        assert now() == began
        assert await world.ask("a") == "answered by a"


@virtual
async def test_it_is_refused_at_once_even_while_a_swap_goes_on():
    async with World([spec("a", is_pinned=True), "b"]) as world:
        world.script("a").start_s = 60.0
        loading = world.request("a")
        await world.in_phase("a", "starting")
        began = now()
        with pytest.raises(Pinned):
            await world.ask("b")
        assert now() == began
        await loading


@virtual
async def test_a_pin_is_overridden_by_an_explicit_unload():
    async with World([spec("a", is_pinned=True), "b"]) as world:
        await world.serve("a")
        world.unload("a")
        assert await world.ask("b") == "answered by b"


@virtual
async def test_key_priority_goes_first_but_starves_nobody():
    async with World(["a", "b", "c"], Rules(max_wait_s=15.0)) as world:
        await world.serve("a")
        low = world.request("b", 0.1)
        began = now()

        async def important() -> None:
            while not low.done():
                await world.ask("ca"[int(now() / 3) % 2], 1.0, priority=9)

        busy = [asyncio.ensure_future(important()) for _ in range(2)]
        await low
        # Its 15 s of ready residents, and the swaps between; each of these is 1.5 s here.
        assert now() - began < 15.0 + 15 * 1.5 + 10.0
        await asyncio.gather(*busy)


@virtual
async def test_progress_says_what_is_waited_for():
    async with World(["a", "b"], Rules(max_wait_s=3.0)) as world:
        await world.serve("a")
        world.request("a", 5.0)
        world.request("b")
        await asyncio.sleep(1.0)
        assert world.coordinator.progress(sid("b")) == "queued b behind a 1s"
        await asyncio.sleep(3.0)
        assert world.coordinator.progress(sid("b")) == "swap draining b 1s"
        await world.in_phase("b", "starting")
        assert world.coordinator.progress(sid("b")) == "swap starting b 0s"
        assert world.coordinator.progress(sid("a")) == "queued a behind b 0s"


@virtual
async def test_the_eta_learns():
    async with World(["a", "b"]) as world:
        assert world.coordinator.eta_s(sid("a")) == 10.0
        await world.serve("a")
        assert world.coordinator.eta_s(sid("a")) == 0.0
        await world.ask("b")
        assert world.coordinator.eta_s(sid("a")) == pytest.approx(1.0)
