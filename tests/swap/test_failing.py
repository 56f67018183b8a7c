"""Starts that fail, slots that will not go: what a user is told, and what is left behind (nothing)."""

from __future__ import annotations

import asyncio

import pytest

from enginerouter.errors import (
    EngineCrashed,
    EngineFailed,
    FreeFailed,
    PortTaken,
    StartCircuitOpen,
    StartFailed,
    StartTimedOut,
)
from enginerouter.swap.model import Rules
from swap.fakes import GIB, Machine, Script, World, sid, spec
from swap.virtual_time import now, settle_down, virtual


@virtual
async def test_a_failed_check_leaves_the_resident_untouched():
    """A4: a missing binary cost the predecessor its running engine."""
    async with World(["a", "b"]) as world:
        await world.serve("a")
        world.script("b").check_error = StartFailed("b", "no such binary: /nowhere/b")
        stream = world.request("a", 5.0)
        with pytest.raises(StartFailed, match="no such binary"):
            await world.ask("b")
        assert world.phase("a") == "ready"
        assert world.engine("a").stops == []
        assert await stream == "answered by a"


@virtual
async def test_a_failed_check_does_not_count_as_a_failed_start():
    async with World(["b"]) as world:
        world.script("b").check_error = PortTaken("b", "port 8001 is held by pid 7")
        for _ in range(5):
            with pytest.raises(PortTaken):
                await world.ask("b")
        world.script("b").check_error = None
        assert await world.ask("b") == "answered by b"


@virtual
async def test_the_check_is_told_who_will_have_left():
    async with World(["a", "b"]) as world:
        await world.serve("a")
        await world.ask("b")
        assert world.engine("b").checks[-1] == (sid("b"), (sid("a"),))


@pytest.mark.parametrize(("outcome", "error"), [
    ("fail", StartFailed), ("timeout", StartTimedOut), ("taken", PortTaken), ("bug", EngineFailed),
])  # fmt: skip
@virtual
async def test_a_failed_start_answers_all_waiters_with_the_reason_and_leaves_nothing(outcome: str, error: type):
    """A6, A7: the predecessor left the process running, and skipped the settle of the next swap."""
    async with World(["a", "b"]) as world:
        world.script("b").outcomes.append(outcome)
        waiters = [world.request("b") for _ in range(3)]
        for waiter in waiters:
            with pytest.raises(error):
                await waiter
        await world.in_phase("b", "cold")
        assert world.resident() == []
        assert world.diary.phases_of(sid("b")) == ["starting", "freeing", "settling", "cold"]
        assert world.diary.results() == ["failed"]
        assert await world.ask("a") == "answered by a"


@virtual
async def test_the_waiters_are_answered_before_the_clearing_up():
    async with World(["b"], scripts={"b": Script(stop_s=9.0)}) as world:
        world.script("b").outcomes.append("timeout")
        began = now()
        with pytest.raises(StartTimedOut):
            await world.ask("b")
        assert now() - began == pytest.approx(1.0, abs=0.01)


@virtual
async def test_a_failed_start_settles_before_the_next_start():
    """Its memory comes back 5 s after its exit, and is waited for."""
    machine = Machine(total=10 * GIB)
    scripts = {"a": Script(held=8 * GIB), "b": Script(held=8 * GIB, late_s=5.0)}
    async with World(["a", "b"], scripts=scripts, machine=machine) as world:
        world.script("b").outcomes.append("fail")
        failed, waiting = world.request("b"), world.request("a")
        assert await waiting == "answered by a"
        assert isinstance(failed.exception(), StartFailed)
        assert machine.lowest >= 0


@virtual
async def test_who_asks_during_the_clearing_up_gets_a_start_of_its_own():
    async with World(["b"], scripts={"b": Script(stop_s=5.0)}) as world:
        world.script("b").outcomes.append("timeout")
        first = world.request("b")
        await world.in_phase("b", "freeing")
        assert isinstance(first.exception(), StartTimedOut)
        assert await world.ask("b") == "answered by b"


@virtual
async def test_after_too_many_failures_the_circuit_opens_with_the_reason():
    async with World(["b"]) as world:
        world.script("b").outcomes.extend(["fail"] * 3)
        for _ in range(3):
            with pytest.raises(StartFailed):
                await world.ask("b")
            await world.in_phase("b", "cold")
        with pytest.raises(StartCircuitOpen, match=r"3 times in a row.*b did not start: fail") as refused:
            await world.ask("b")
        assert refused.value.retry_after_s == pytest.approx(30.0, abs=2.0)
        assert refused.value.is_retryable is False
        await asyncio.sleep(31.0)
        assert await world.ask("b") == "answered by b"


@virtual
async def test_an_open_circuit_cannot_be_passed_while_the_failed_start_is_cleared_away():
    async with World(["b"], scripts={"b": Script(stop_s=9.0)}) as world:
        world.script("b").outcomes.extend(["timeout"] * 3)
        for _ in range(3):
            with pytest.raises(StartTimedOut):
                await world.ask("b")
        await world.in_phase("b", "freeing")
        with pytest.raises(StartCircuitOpen):
            await world.ask("b")


@virtual
async def test_a_circuit_that_opens_answers_those_who_wait_for_a_restart():
    """Two failures, a start that dies at once; the waiters for room are not led into a fourth start."""
    async with World([spec("b", max_in_flight=1)]) as world:
        world.script("b").outcomes.extend(["fail", "fail", "ok"])
        for _ in range(2):
            with pytest.raises(StartFailed):
                await world.ask("b")
        served = world.request("b", 50.0)
        waiting = world.request("b")
        await world.in_phase("b", "ready")
        await asyncio.sleep(1.0)
        world.crash("b")
        with pytest.raises(EngineCrashed):
            await served
        with pytest.raises(StartCircuitOpen):
            await waiting


@virtual
async def test_an_explicit_swap_closes_the_circuit():
    async with World(["b"]) as world:
        world.script("b").outcomes.extend(["fail"] * 3)
        for _ in range(3):
            with pytest.raises(StartFailed):
                await world.ask("b")
        await world.coordinator.swap_to(sid("b"))
        assert world.phase("b") == "ready"


@virtual
async def test_a_reset_closes_the_circuit():
    async with World(["b"]) as world:
        world.script("b").outcomes.extend(["fail"] * 3)
        for _ in range(3):
            with pytest.raises(StartFailed):
                await world.ask("b")
        world.coordinator.reset(sid("b"))
        assert await world.ask("b") == "answered by b"


@virtual
async def test_dying_within_a_minute_of_ready_counts_as_a_failed_start():
    async with World(["b"]) as world:
        for _ in range(3):
            await world.ask("b")
            await asyncio.sleep(30.0)
            world.crash("b")
            await world.in_phase("b", "cold")
        with pytest.raises(StartCircuitOpen, match="died"):
            await world.ask("b")


@virtual
async def test_dying_before_the_first_answer_counts_however_late():
    async with World(["b"]) as world:
        for _ in range(3):
            await world.coordinator.swap_to(sid("b"))
            await asyncio.sleep(300.0)
            world.crash("b")
            await world.in_phase("b", "cold")
            assert world.coordinator.slots[sid("b")].circuit.failures >= 1


@virtual
async def test_dying_after_long_service_does_not_count():
    async with World(["b"]) as world:
        for _ in range(5):
            await world.ask("b")
            await asyncio.sleep(61.0)
            world.crash("b")
            assert await world.ask("b") == "answered by b"


@virtual
async def test_a_start_that_ran_out_of_memory_is_tried_once_more_after_freeing_everything_idle():
    rules = Rules(budget_bytes=60 * GIB)
    specs = [spec("idle", need_bytes=10 * GIB), spec("busy", need_bytes=10 * GIB), spec("big", need_bytes=20 * GIB)]
    async with World(specs, rules) as world:
        await world.serve("idle")
        stream = world.request("busy", 30.0)
        await world.in_phase("busy", "ready")
        world.script("big").outcomes.append("oom")
        assert await world.ask("big") == "answered by big"
        assert sorted(world.resident()) == ["big", "busy"]
        assert not stream.done()
        assert world.coordinator.slots[sid("big")].circuit.failures == 0


@virtual
async def test_a_start_that_runs_out_of_memory_twice_fails_once():
    async with World(["b"]) as world:
        world.script("b").outcomes.extend(["oom", "oom"])
        with pytest.raises(StartFailed, match="oom"):
            await world.ask("b")
        await world.in_phase("b", "cold")
        assert len(world.engine("b").starts) == 2
        assert world.coordinator.slots[sid("b")].circuit.failures == 1


@virtual
async def test_a_second_try_whose_waiters_have_left_leaves_nothing_half_done():
    rules = Rules(budget_bytes=60 * GIB)
    specs = [spec("idle", need_bytes=10 * GIB), spec("big", need_bytes=20 * GIB)]
    async with World(specs, rules, scripts={"idle": Script(held_bytes_s=1.0), "big": Script(stop_s=0.2)}) as world:
        await world.serve("idle")
        world.script("big").outcomes.append("oom")
        leaver = world.request("big")
        await world.in_phase("idle", "draining")
        leaver.cancel()
        await asyncio.sleep(10.0)
        assert (world.phase("big"), world.phase("idle")) == ("cold", "ready")
        assert world.is_at_rest()
        assert await world.ask("big") == "answered by big"


@virtual
async def test_memory_of_a_failed_try_and_of_what_made_way_for_the_next_is_waited_for_together():
    """Both rise from the same point: the wait is over when both are back, not in a timeout."""
    rules = Rules(together=(frozenset({"idle", "big"}),))
    scripts = {
        "idle": Script(held=10 * GIB, own_bytes=True, late_s=1.0, held_bytes_s=0.5),
        "big": Script(held=40 * GIB, own_bytes=True, late_s=0.2, fails_after_s=0.5),
    }
    async with World(["idle", "big"], rules, scripts=scripts) as world:
        await world.serve("idle")
        world.script("big").outcomes.append("oom")
        began = now()
        await world.ask("big")
        assert now() - began < 8.0
        settled = world.diary.reports[-1].settled
        assert settled is not None
        assert (settled.held, settled.came_back) == (50 * GIB, 50 * GIB)


# --- what will not go


@virtual
async def test_a_stuck_free_is_an_error_with_a_name_and_nothing_is_started_on_top():
    """E8: the predecessor warned, and started the next engine anyway."""
    async with World(["a", "b"], scripts={"a": Script(stuck=2)}) as world:
        await world.serve("a")
        for _ in range(2):
            with pytest.raises(FreeFailed, match="a would not go") as refused:
                await world.ask("b")
            assert refused.value.code == "free_failed"
            assert world.phase("a") == "stuck"
            assert world.engine("b").starts == []
        assert await world.ask("b") == "answered by b"


@virtual
async def test_a_stuck_slot_can_be_wanted_again():
    async with World(["a", "b"], scripts={"a": Script(stuck=1)}) as world:
        await world.serve("a")
        with pytest.raises(FreeFailed):
            await world.ask("b")
        assert await world.ask("a") == "answered by a"


@virtual
async def test_a_stop_that_breaks_counts_as_not_gone():
    async with World(["a", "b"], scripts={"a": Script(stop_error=ValueError("a bug"))}) as world:
        await world.serve("a")
        with pytest.raises(FreeFailed, match="a bug"):
            await world.ask("b")
        assert world.phase("a") == "stuck"
        world.script("a").stop_error = None
        assert await world.ask("b") == "answered by b"


@virtual
async def test_a_failed_start_that_will_not_go_is_told_with_the_reason_of_the_start():
    async with World(["a", "b"], scripts={"b": Script(stuck=1)}) as world:
        world.script("b").outcomes.append("timeout")
        with pytest.raises(StartTimedOut):
            await world.ask("b")
        await world.in_phase("b", "stuck")
        assert await world.ask("a") == "answered by a"
        assert world.resident() == ["a"]


@virtual
async def test_nobody_is_evicted_for_a_swap_that_a_stuck_slot_makes_impossible():
    rules = Rules(budget_bytes=60 * GIB)
    specs = [spec(s, need_bytes=20 * GIB) for s in ("stuck", "fine")] + [spec("big", need_bytes=60 * GIB)]
    async with World(specs, rules, scripts={"stuck": Script(stuck=9)}) as world:
        await world.serve("fine")
        await world.serve("stuck")
        world.unload("stuck")
        await world.in_phase("stuck", "stuck")
        with pytest.raises(FreeFailed):
            await world.ask("big")
        assert world.phase("fine") == "ready"
        assert await world.ask("fine") == "answered by fine"


@virtual
async def test_beside_a_stuck_slot_a_busy_one_still_makes_way_in_time():
    rules = Rules(budget_bytes=60 * GIB, max_wait_s=5.0)
    specs = [spec(s, need_bytes=20 * GIB) for s in ("stuck", "busy")] + [spec("big", need_bytes=60 * GIB)]
    async with World(specs, rules, scripts={"stuck": Script(stuck=1)}) as world:
        await world.serve("stuck")
        world.request("busy", 500.0, byte_every_s=400.0)
        await world.in_phase("busy", "ready")
        world.unload("stuck")
        await world.in_phase("stuck", "stuck")
        began = now()
        assert await world.ask("big") == "answered by big"
        assert now() - began < 5.0 + 30.0 + 10.0


@virtual
async def test_what_is_left_of_a_stuck_slot_is_waited_for_and_no_more():
    """Most of its memory was back before: only the rest is missing, so the second free is no 25 s timeout."""
    async with World(["a", "b"], scripts={"a": Script(stuck=1, held=60 * GIB)}) as world:
        await world.serve("a")
        with pytest.raises(FreeFailed):
            await world.ask("b")
        world.machine.running[sid("a")] = GIB
        began = now()
        assert await world.ask("b") == "answered by b"
        assert now() - began < 3.0


@virtual
async def test_an_engine_that_cannot_say_what_it_holds_is_stopped_all_the_same():
    async with World(["a", "b"]) as world:
        await world.serve("a")

        async def broken(slot: object) -> int:
            raise OSError("no /proc")

        world.engine("a").held_bytes = broken  # type: ignore[method-assign, assignment]
        assert await world.ask("b") == "answered by b"


# --- starts nobody waits for


@virtual
async def test_a_start_nobody_waits_for_makes_way_without_counting():
    async with World(["a", "b"], scripts={"b": Script(start_s=100.0)}) as world:
        leaver = world.request("b")
        await world.in_phase("b", "starting")
        leaver.cancel()
        await asyncio.sleep(5.0)
        assert world.phase("b") == "starting"
        began = now()
        assert await world.ask("a") == "answered by a"
        assert now() - began < 3.0
        assert world.diary.results() == ["ended", "ok"]
        assert world.coordinator.slots[sid("b")].circuit.failures == 0


@virtual
async def test_a_start_that_hangs_ends_when_another_is_wanted_and_its_client_has_left():
    async with World(["a", "b"]) as world:
        world.script("b").outcomes.append("hang")
        leaver = world.request("b")
        await world.in_phase("b", "starting")
        waiting = world.request("a")
        await asyncio.sleep(50.0)
        assert not waiting.done()
        leaver.cancel()
        assert await waiting == "answered by a"


@virtual
async def test_who_asks_while_an_ended_start_is_cleared_away_is_served():
    async with World(["a", "b"], scripts={"b": Script(start_s=100.0, stop_s=2.0)}) as world:
        leaver = world.request("b")
        await world.in_phase("b", "starting")
        leaver.cancel()
        other = world.request("a")
        await world.in_phase("b", "freeing")
        world.script("b").start_s = 1.0
        again = world.request("b")
        assert await asyncio.gather(other, again) == ["answered by a", "answered by b"]


@virtual
async def test_the_router_can_serve_everything_else_when_one_engine_cannot_start():
    async with World(["a", "b", "c"]) as world:
        world.script("b").outcomes.extend(["fail"] * 50)
        for _ in range(10):
            with pytest.raises((StartFailed, StartCircuitOpen)):
                await world.ask("b")
            assert await world.ask("a") == "answered by a"
            assert await world.ask("c") == "answered by c"
        await settle_down()
        assert world.is_at_rest()
