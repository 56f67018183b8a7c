"""Several slots side by side: a memory budget, `together`, and slots without memory."""

from __future__ import annotations

import asyncio

import pytest

from enginerouter.swap.model import Rules, SlotSpec
from swap.fakes import GIB, World, spec
from swap.virtual_time import now, settle_down, virtual


def of(name: str, gib: float, **options: object) -> SlotSpec:
    return spec(name, need_bytes=int(gib * GIB), **options)


@virtual
async def test_three_slots_that_fit_are_served_side_by_side():
    async with World([of("a", 20), of("b", 20), of("c", 20)], Rules(budget_bytes=60 * GIB)) as world:
        await asyncio.gather(*(world.ask(s, 10.0) for s in "abc"))
        assert sorted(world.resident()) == ["a", "b", "c"]
        began = now()
        await asyncio.gather(*(world.ask(s, 1.0) for s in "abc"))
        assert now() - began == pytest.approx(1.0)


@virtual
async def test_only_the_gates_of_the_plan_close():
    rules = Rules(budget_bytes=60 * GIB, max_wait_s=1.0)
    async with World([of("a", 20), of("b", 20), of("c", 20), of("d", 20)], rules) as world:
        for slot in "abc":
            await world.serve(slot)
        streams = {s: world.request(s, 30.0) for s in "bca"}
        waiting = world.request("d")
        await world.until(lambda: "draining" in (world.phase(s) for s in "abc"))
        closed = [s for s in "abc" if world.phase(s) == "draining"]
        assert len(closed) == 1
        for slot in set("abc") - set(closed):
            began = now()
            await world.ask(slot, 0.1)
            assert now() - began == pytest.approx(0.1)
        await asyncio.gather(*streams.values(), waiting)


@virtual
async def test_an_idle_slot_goes_and_the_busy_ones_do_not_notice():
    async with World([of("a", 20), of("b", 20), of("c", 20), of("d", 20)], Rules(budget_bytes=60 * GIB)) as world:
        for slot in "abc":
            await world.serve(slot)
        streams = [world.request("a", 30.0), world.request("c", 30.0)]
        await world.ask("d")
        assert sorted(world.resident()) == ["a", "c", "d"]
        assert not any(s.done() for s in streams)


@virtual
async def test_a_slot_that_fits_starts_while_others_are_busy():
    async with World([of("a", 20), of("b", 20)], Rules(budget_bytes=60 * GIB)) as world:
        await world.serve("a")
        world.request("a", 300.0)
        began = now()
        await world.ask("b", 0.0)
        assert now() - began == pytest.approx(1.0, abs=0.01)


@virtual
async def test_together_lets_an_embedder_live_beside_a_chat_model():
    """E4: one embedding evicted the chat engine."""
    async with World(["chat", "embed", "other"], Rules(together=(frozenset({"chat", "embed"}),))) as world:
        await world.serve("chat")
        stream = world.request("chat", 30.0)
        await world.ask("embed")
        assert sorted(world.resident()) == ["chat", "embed"]
        assert not stream.done()
        await stream
        await world.ask("other")
        assert world.resident() == ["other"]


@virtual
async def test_a_big_one_is_not_starved_by_small_ones_that_take_turns():
    """Each small start would be one more fresh resident in its way."""
    rules = Rules(budget_bytes=40 * GIB, max_wait_s=5.0, min_residency_s=2.0)
    async with World([of("big", 40), *(of(s, 20) for s in "xyz")], rules) as world:

        async def busy(slot: str) -> None:
            while True:
                await world.ask(slot, 0.7)

        small = [asyncio.ensure_future(busy(s)) for s in "xyz"]
        await asyncio.sleep(20.0)
        began = now()
        assert await world.ask("big") == "answered by big"
        assert now() - began < 5.0 + 5 * (2.0 + 0.7 + 1.5)
        for task in small:
            task.cancel()
        await asyncio.gather(*small, return_exceptions=True)


@virtual
async def test_a_slot_without_memory_starts_at_once_even_during_a_swap():
    async with World(["a", "b", spec("cpu", holds_memory=False)]) as world:
        world.script("b").start_s = 60.0
        await world.serve("a")
        loading = world.request("b")
        await world.in_phase("b", "starting")
        began = now()
        await world.ask("cpu", 0.0)
        assert now() - began == pytest.approx(1.0, abs=0.01)
        await loading


@virtual
async def test_a_slot_without_memory_is_never_freed_for_another():
    async with World(["a", "b", spec("cpu", holds_memory=False)]) as world:
        await world.serve("cpu")
        await world.serve("a")
        await world.ask("b")
        assert sorted(world.resident()) == ["b", "cpu"]
        assert world.diary.phases_of(spec("cpu").id) == ["starting", "ready"]


@virtual
async def test_a_slot_without_memory_still_knows_idleness_and_unload():
    async with World([spec("cpu", holds_memory=False, idle_unload_s=30.0)]) as world:
        await world.serve("cpu")
        await asyncio.sleep(31.0)
        assert world.phase("cpu") == "cold"
        await world.serve("cpu")
        assert world.unload("cpu")
        await asyncio.sleep(1.0)
        assert world.phase("cpu") == "cold"


@virtual
async def test_profiles_of_one_engine_are_slots_of_their_own():
    async with World(["llama/small", "llama/large"]) as world:
        assert await world.ask("llama/small") == "answered by llama/small"
        assert await world.ask("llama/large") == "answered by llama/large"
        assert world.resident() == ["llama/large"]
        await settle_down()
