"""Servers that others use too: what they load, unload and keep behind the router's back."""

from __future__ import annotations

import asyncio

import pytest

from enginerouter.errors import FreeFailed, RouterError
from enginerouter.swap.held import Measured, note_held
from enginerouter.swap.model import Rules, Slot
from enginerouter.swap.phases import Phase
from swap.fakes import GIB, MIB, Machine, Script, World, sid, spec
from swap.virtual_time import now, virtual


def shared_world(*specs, **options) -> World:
    """`s` and `t` are servers of others."""
    return World(specs or ("a", "b", "s"), shared=("s", "t"), **options)


# --- loaded from outside


@virtual
async def test_what_others_loaded_leaves_before_the_next_start():
    async with shared_world(machine=Machine(10 * GIB)) as world:
        world.shared("s").load(sid("s"))
        assert await world.ask("a") == "answered by a"
        assert world.engine("s").stops, "it was freed"
        assert world.machine.lowest >= 0, "nothing was started on top of it"
        assert world.resident() == ["a"]


@virtual
async def test_what_others_loaded_stays_where_it_fits():
    rules = Rules(budget_bytes=40 * GIB)
    async with shared_world(*(spec(n, need_bytes=8 * GIB) for n in "as"), rules=rules) as world:
        world.shared("s").load(sid("s"))
        await world.serve("a")
        assert sorted(world.resident()) == ["a", "s"]
        assert world.phase("s") == "ready"


@virtual
async def test_the_target_itself_is_taken_over_as_it_is():
    async with shared_world() as world:
        world.shared("s").load(sid("s"))
        await world.serve("s")
        assert world.engine("s").stops == []


@virtual
async def test_who_waits_for_what_turns_out_to_be_loaded_is_served_at_once():
    """Not only when the swap is over in which it was found."""
    async with shared_world() as world:
        await world.serve("a")
        running = world.request("a", 5.0)
        await asyncio.sleep(0)
        first = world.request("b", 0.1)
        second = world.request("s", 0.1)
        world.shared("s").load(sid("s"))
        await world.until(lambda: world.phase("s") == "ready")
        assert await second == "answered by s"
        assert await first == "answered by b"
        await running


@virtual
async def test_a_hold_is_free_only_when_what_others_loaded_is_gone():
    async with shared_world() as world:
        world.shared("s").load(sid("s"))
        hold = world.coordinator.hold("somebody")
        assert not hold.is_free
        await hold.decided.wait()
        assert hold.is_free
        assert world.machine.truly_available() == world.machine.total
        assert world.diary.results() == ["ok"]


@virtual
async def test_a_hold_of_memory_that_is_free_anyhow_is_no_swap():
    async with shared_world() as world:
        hold = world.coordinator.hold("somebody")
        await hold.decided.wait()
        assert hold.is_free
        assert world.diary.results() == []


@virtual
async def test_an_unload_frees_what_others_loaded():
    async with shared_world() as world:
        world.shared("s").load(sid("s"))
        assert not world.unload("s"), "nothing is known of it yet"
        await world.coordinator.look_around()
        assert world.unload("s")
        await world.until(lambda: world.resident() == [])
        await world.until(world.is_at_rest)


@virtual
async def test_what_is_found_and_not_ready_is_freed_or_waited_for_by_its_own_start():
    """A unit that somebody has just started: it holds memory, and serves nobody yet."""
    async with shared_world() as world:
        world.shared("s").is_ready = False
        world.shared("s").load(sid("s"))
        await world.serve("a")
        assert world.diary.phases_of(sid("s")) == ["stuck", "freeing", "settling", "cold"]
        world.shared("s").load(sid("s"))
        await world.serve("s")
        assert world.diary.phases_of(sid("s"))[-2:] == ["starting", "ready"]


# --- what looking costs


@virtual
async def test_all_servers_are_asked_at_once_and_while_the_target_is_checked():
    async with shared_world("a", "s", "t") as world:
        await world.serve("a")
        world.unload("a")
        await world.in_phase("a", "cold")
        world.shared("s").look_s = world.shared("t").look_s = world.script("a").check_s = 0.4
        before = now()
        await world.ask("a", 0.0)
        assert now() - before == pytest.approx(1.4, abs=0.01), "0.4 s of looking, and the start"


@virtual
async def test_a_server_that_hangs_costs_one_second_and_is_named(caplog):
    async with shared_world() as world:
        world.shared("s").look_s = 1e6
        before = now()
        await world.ask("a", 0.0)
        assert now() - before == pytest.approx(2.0, abs=0.01)
        assert "engine 's' does not say within 1 s what it has in memory" in caplog.text


@virtual
async def test_a_server_that_cannot_be_seen_keeps_nobody_from_starting(caplog):
    async with shared_world() as world:
        world.shared("s").look_error = FreeFailed("s", "500: disk gone")
        await world.serve("a")
        world.unload("a")
        await world.in_phase("a", "cold")
        world.shared("s").look_error = ValueError("a bug")
        await world.serve("a")
        assert "disk gone" in caplog.text
        assert "looking at engine 's' broke" in caplog.text


@virtual
async def test_servers_in_use_and_other_lanes_are_not_asked():
    async with shared_world("a", "s", spec("t", holds_memory=False)) as world:
        await world.serve("s")
        looks = world.shared("s").looks
        await world.serve("t")
        await world.serve("a")
        assert (world.shared("s").looks, world.shared("t").looks) == (looks, 0)


# --- unloaded from outside


@virtual
async def test_what_its_server_unloaded_is_loaded_by_the_next_request_and_no_failure():
    async with shared_world() as world:
        for _ in range(4):  # more often than a start may fail
            await world.serve("s")
            world.shared("s").unload(sid("s"))
            await world.in_phase("s", "cold")
        assert world.coordinator.slots[sid("s")].circuit.failures == 0
        await world.serve("s")
        assert len(world.engine("s").starts) == 5


@virtual
async def test_an_unload_that_is_told_while_requests_run_cuts_none_of_them():
    """A list may be wrong; a request that is being answered is not."""
    async with shared_world() as world:
        running = world.request("s", 5.0)
        await world.in_phase("s", "ready")
        world.shared("s").unload(sid("s"))
        assert world.phase("s") == "ready"
        assert await running == "answered by s"


@virtual
async def test_memory_that_came_back_before_the_unload_was_noticed_is_not_waited_for():
    async with shared_world(knows_bytes=False) as world:
        await world.serve("s")
        machine, script = world.machine, world.script("s")
        machine.give_back(sid("s"), script)
        await asyncio.sleep(2.0)
        machine.running[sid("s")] = 0
        world.shared("s").unload(sid("s"))
        before = now()
        await world.in_phase("s", "cold")
        assert now() - before < 1.5


# --- what would not go


@virtual
async def test_a_server_that_would_not_unload_still_serves_its_own_models():
    async with shared_world() as world:
        await world.serve("s")
        world.script("s").stuck = 2
        with pytest.raises(RouterError, match="would not go"):
            await world.ask("a")
        assert world.phase("s") == "stuck"
        stops = len(world.engine("s").stops)
        assert await world.ask("s") == "answered by s"
        assert len(world.engine("s").stops) == stops, "it was not freed for that"
        with pytest.raises(RouterError, match="would not go"):
            await world.ask("a")
        assert await world.ask("a") == "answered by a"


@virtual
async def test_a_process_that_would_not_go_is_never_taken_back():
    async with shared_world() as world:
        await world.serve("a")
        world.script("a").stuck = 1
        with pytest.raises(RouterError, match="would not go"):
            await world.ask("b")
        stops = len(world.engine("a").stops)
        await world.serve("a")
        assert len(world.engine("a").stops) == stops + 1, "freed before it is started again"


@virtual
async def test_a_reset_frees_once_more_what_would_not_go():
    async with shared_world() as world:
        await world.serve("s")
        world.script("s").stuck = 1
        assert world.unload("s")
        await world.in_phase("s", "stuck")
        world.coordinator.reset(sid("s"))
        await world.in_phase("s", "cold")
        assert world.resident() == []


# --- memory of models that a server loads after it is ready


@pytest.mark.parametrize("claim", [None, 8 * GIB, 9 * GIB])
@virtual
async def test_memory_taken_by_the_first_request_is_waited_for_each_time(claim: int | None):
    """A daemon is ready with nothing in memory; what it loads then comes back three seconds after its unload."""
    script = Script(held=8 * GIB, late_s=3.0)
    async with shared_world("a", "s", scripts={"s": script}, machine=Machine(10 * GIB)) as world:
        server = world.shared("s")
        server.loads_on_request, server.claim = True, claim
        for _ in range(3):
            world.script("s").held = 8 * GIB
            await world.serve("s")
            world.machine.take(sid("s"), script.held)
            await world.serve("a")
            assert world.machine.lowest >= 0, "started before the memory was back"
            settled = world.diary.reports[-1].settled
            assert settled is not None
            assert settled.verdict.value == "recovered"
            assert settled.seconds == pytest.approx(3.0, abs=0.1)


@virtual
async def test_a_bound_that_was_too_large_is_not_waited_for_to_the_end():
    """Other programs took 2 GiB while the daemon was resident; of what is not its own nothing will come back."""
    async with shared_world("a", "s") as world:
        server = world.shared("s")
        server.loads_on_request, server.claim = True, 20 * GIB
        await world.serve("s")
        world.machine.take(sid("s"), 4 * GIB)
        world.machine.others = lambda at: 2 * GIB
        await world.serve("a")
        settled = world.diary.reports[-1].settled
        assert settled is not None
        assert (settled.verdict.value, settled.held) == ("plateau", 6 * GIB)
        assert settled.seconds < 6.0


def test_what_a_server_claims_is_no_more_than_what_memory_has_lost():
    """Pages of a mapped model file count in `/api/ps`, and were never taken."""
    slot = Slot(spec("s"), phase=Phase.DRAINING, before_start_bytes=10 * GIB, drop_bytes=0)
    slot.learned.came_back_bytes = 9 * GIB  # of another model
    note_held(slot, Measured(None, 9 * GIB, claimed_bytes=5 * GIB, grew_bytes=GIB))
    assert (slot.missing_bytes, slot.missing_is_bound) == (GIB, True)
    note_held(slot, Measured(None, 9 * GIB, claimed_bytes=5 * GIB))
    assert (slot.missing_bytes, slot.missing_is_bound) == (5 * GIB, True)


def test_an_engine_that_knows_its_own_pages_is_believed():
    slot = Slot(spec("s"), phase=Phase.DRAINING, before_start_bytes=10 * GIB)
    note_held(slot, Measured(3 * GIB, GIB, grew_bytes=9 * GIB))
    assert (slot.missing_bytes, slot.missing_is_bound) == (3 * GIB, False)
    assert slot.missing_bytes > 64 * MIB
