"""A reloaded configuration: what has changed leaves when it is idle, what has not changed does not notice."""

from __future__ import annotations

import asyncio

import pytest

from enginerouter.errors import FreeFailed, NoLongerConfigured
from enginerouter.swap.model import Rules
from swap.fakes import Script, World, sid, spec
from swap.virtual_time import now, settle_down, virtual


@virtual
async def test_what_has_not_changed_is_not_touched():
    async with World(["a", "b"]) as world:
        await world.serve("a")
        request = world.request("a", 5.0)
        await asyncio.sleep(1.0)
        for _ in range(50):
            world.reload(["a", "b"], changed=["b"])
            await asyncio.sleep(0.01)
        assert await request == "answered by a"
        assert await world.ask("a") == "answered by a"
        assert world.diary.starts() == ["a"]


@virtual
async def test_a_changed_slot_serves_its_requests_to_their_end_and_restarts_at_its_next_need():
    async with World(["a"], Rules(drain_timeout_s=1.0, on_drain_timeout="cut")) as world:
        await world.serve("a")
        long = world.request("a", 400.0)
        await asyncio.sleep(0.1)
        world.reload(["a"], changed=["a"])
        later = world.request("a")
        await asyncio.sleep(300.0)
        assert world.diary.starts() == ["a"], "a reload has no deadline"
        assert not later.done(), "it waits for the new one"
        assert await long == "answered by a"
        assert await later == "answered by a"
        assert world.diary.starts() == ["a", "a"]


@virtual
async def test_a_changed_slot_that_is_idle_goes_at_once_and_stays_away():
    async with World(["a"]) as world:
        await world.serve("a")
        world.reload(["a"], changed=["a"])
        await world.in_phase("a", "cold")
        await asyncio.sleep(60.0)
        assert world.resident() == []
        assert world.diary.reports[-1].plan.reason == "reload"
        assert await world.ask("a") == "answered by a"


@virtual
async def test_a_start_of_what_has_changed_is_ended_and_made_anew():
    async with World(["a"], scripts={"a": Script(start_s=60.0)}) as world:
        waiting = world.request("a")
        await world.in_phase("a", "starting")
        began = now()
        world.script("a").start_s = 1.0
        world.reload(["a"], changed=["a"])
        assert await waiting == "answered by a"
        assert now() - began < 10.0
        assert world.diary.starts() == ["a", "a"]


@virtual
async def test_who_waits_for_a_removed_slot_is_told_and_who_uses_it_is_served_to_the_end():
    async with World([spec("a", max_in_flight=1), "b"]) as world:
        await world.serve("a")
        using, waiting = world.request("a", 30.0), world.request("a")
        await asyncio.sleep(0.1)
        world.reload(["b"])
        with pytest.raises(NoLongerConfigured, match="a is no longer there: the configuration was reloaded"):
            await waiting
        with pytest.raises(NoLongerConfigured):
            await world.ask("a")
        old = world.engines["a"]
        assert await using == "answered by a"
        await world.until(lambda: sid("a") not in world.coordinator.slots)
        assert world.resident() == []
        assert old.is_closed
        assert "a" not in world.engines
        with pytest.raises(NoLongerConfigured):
            world.coordinator.add(sid("a"))
        with pytest.raises(NoLongerConfigured):
            world.coordinator.try_lease(sid("a"))
        assert await world.ask("b") == "answered by b"


@virtual
async def test_the_successor_of_an_engine_waits_until_nothing_of_the_old_one_is_left():
    specs = ["a/x", "a/y", "b"]
    async with World(specs) as world:
        await world.serve("a/x")
        old = world.engine("a")
        using = world.request("a/x", 20.0)
        await asyncio.sleep(0.1)
        new = world.reload(specs, replaced=["a"])["a"]
        other = world.request("a/y")
        await asyncio.sleep(10.0)
        assert (len(old.starts), new.starts, old.is_closed) == (1, [], False)
        assert await using == "answered by a/x"
        assert await other == "answered by a/y"
        assert len(old.stops) == 1
        assert old.is_closed
        assert [s for _, s in new.starts] == [sid("a/y")]
        world.crash("a/y")
        assert world.phase("a/y") == "crashed", "the new one is watched"


@virtual
async def test_what_was_removed_and_is_back_before_it_has_gone_restarts():
    async with World(["a", "b"]) as world:
        await world.serve("a")
        old, using = world.engine("a"), world.request("a", 20.0)
        await asyncio.sleep(0.1)
        world.reload(["b"])
        new = world.reload(["a", "b"])["a"]
        waiting = world.request("a")
        assert await using == "answered by a"
        assert await waiting == "answered by a"
        assert old.is_closed
        assert world.engines["a"] is new


@virtual
async def test_new_rules_and_limits_hold_at_once():
    async with World([spec("a", max_in_flight=1), "b"], Rules(max_wait_s=1000.0)) as world:
        await world.serve("a")
        first, second = world.request("a", 50.0), world.request("a", 0.1)
        await asyncio.sleep(1.0)
        world.reload([spec("a", max_in_flight=2), "b"])
        await asyncio.sleep(1.0)
        assert second.done()
        other = world.request("b")
        await asyncio.sleep(1.0)
        world.reload(["a", "b"], rules=Rules(max_wait_s=5.0, drain_timeout_s=0.0, on_drain_timeout="cut"))
        assert await other == "answered by b"
        assert now() < 20.0
        await asyncio.gather(first, return_exceptions=True)


@virtual
async def test_a_slot_that_changes_sides_restarts_beside_the_others():
    async with World(["a", "b"]) as world:
        await world.serve("a")
        world.reload([spec("a", holds_memory=False), "b"], changed=["a"])
        await world.serve("a")
        await world.serve("b")
        assert (world.phase("a"), world.phase("b")) == ("ready", "ready")


@virtual
async def test_a_new_engine_serves_and_a_new_preload_is_begun():
    async with World(["a"], Rules(budget_bytes=1 << 60)) as world:
        world.reload(["a", "c", spec("p", is_preloaded=True, holds_memory=False)])
        await world.in_phase("p", "ready")
        assert await world.ask("c") == "answered by c"


@virtual
async def test_a_slot_that_will_not_go_says_so_to_those_who_wait_and_is_tried_again():
    async with World(["a"], scripts={"a": Script(stuck=1)}) as world:
        await world.serve("a")
        world.reload(["a"], changed=["a"])
        waiting = world.request("a")
        with pytest.raises(FreeFailed):
            await waiting
        assert world.phase("a") == "stuck"
        assert await world.ask("a") == "answered by a"


@virtual
async def test_a_reload_that_changes_an_engine_closes_its_start_circuit():
    async with World(["a"]) as world:
        world.script("a").outcomes.extend(["fail"] * 3)
        for _ in range(3):
            await asyncio.gather(world.request("a"), return_exceptions=True)
        assert world.coordinator.slots[sid("a")].circuit.failures == 3
        world.reload(["a"], changed=["a"])
        assert await world.ask("a") == "answered by a"


@virtual
async def test_reloads_at_any_moment_lose_nobody():
    """Requests for three slots without a pause, and every 70 ms a reload that changes, replaces or spares one."""
    specs = ["a", "b", "c"]
    async with World(specs, Rules(max_wait_s=2.0)) as world:

        async def ask_on(slot: str) -> list[str]:
            return [await world.ask(slot, 0.05 + n % 3 / 10) for n in range(60)]

        asking = [asyncio.ensure_future(ask_on(slot)) for slot in specs]
        n = 0
        while not all(task.done() for task in asking):
            n += 1
            if n < 400:
                kind = {"changed": specs[n % 3 : n % 3 + 1]} if n % 4 else {"replaced": [specs[n % 3]]}
                world.reload(specs, **kind)
            await asyncio.sleep(0.07 if n % 7 else 3.0)
        assert [len(answers) for answers in await asyncio.gather(*asking)] == [60, 60, 60]
        await settle_down()
