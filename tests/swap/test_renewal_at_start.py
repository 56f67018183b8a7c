"""A reload while engines have not said yet what of theirs is left running: it goes by what they say. Virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from swap.fakes import Script, World, sid, spec
from swap.test_renewal import reload
from swap.virtual_time import now, virtual


@contextlib.asynccontextmanager
async def slow_to_say(world: World, slot: str, *, has: tuple[str, ...] = ()) -> AsyncIterator[None]:
    """The engine of `slot` says after 10 s what it has in memory; begins a second after the start."""
    world.engine(slot).adopt_s, world.engine(slot).to_adopt = 10.0, [sid(s) for s in has]
    starting = asyncio.create_task(world.coordinator.start())
    await asyncio.sleep(1.0)
    try:
        yield
        await starting
    finally:
        starting.cancel()
        await world.__aexit__()


@virtual
@pytest.mark.parametrize("has", [(), ("a",), ("a/unheard-of",)])
async def test_an_engine_that_is_removed_before_it_has_said_what_it_has_is_waited_for_and_leaves_with_all_of_it(has):
    world = World(["a", "b"], scripts={"a/unheard-of": Script(own_bytes=True)})
    world.engine("a").scripts[sid("a/unheard-of")] = Script(own_bytes=True)
    async with slow_to_say(world, "a", has=has):
        old = world.engine("a")
        reload(world, ["b"], removed=["a"])
        waiting = world.request("b")
        await asyncio.sleep(5.0)
        assert (world.diary.starts(), old.closes) == ([], 0), "it may hold memory"
        assert await waiting == "answered by b"
        assert world.resident() == ["b"]
        assert [slot for _, slot in old.stops] == [sid(s) for s in has]
        assert old.closes == 1
        assert list(world.coordinator.slots) == [sid("b")]


@virtual
async def test_the_successor_of_an_engine_that_has_not_said_what_it_has_begins_after_that():
    world = World(["a", "b"])
    async with slow_to_say(world, "a", has=("a",)):
        old = world.engine("a")
        new = reload(world, changed=["a"])["a"]
        assert await world.ask("a") == "answered by a"
        assert now() > 10.0
        assert ([s for _, s in old.stops], [s for _, s in new.starts]) == ([sid("a")], [sid("a")])


@virtual
async def test_what_a_reload_adds_to_a_lane_that_has_not_begun_is_preloaded_when_it_begins():
    world = World(["a"])
    async with slow_to_say(world, "a"):
        reload(world, ["a", spec("b", is_preloaded=True)], added=["b"])
        await asyncio.sleep(5.0)
        assert world.diary.starts() == []
        await world.in_phase("b", "ready")


@virtual
async def test_what_a_reload_adds_beside_the_memory_waits_for_no_other_engine():
    world = World(["a"])
    async with slow_to_say(world, "a"):
        reload(world, ["a", spec("cpu", holds_memory=False)], added=["cpu"])
        assert await world.ask("cpu") == "answered by cpu"
        assert now() < 10.0
