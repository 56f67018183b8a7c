"""The three policies of a drain, and what a request sees that is cut."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from enginerouter.errors import EngineBusy, EngineCrashed, EngineStalled, LeaseCut
from enginerouter.swap.model import Rules
from swap.fakes import World, sid
from swap.virtual_time import now, virtual


@virtual
async def test_wait_lets_a_stream_that_receives_bytes_end():
    """E2: the predecessor cut it."""
    async with World(["a", "b"], Rules(min_residency_s=0.0, max_wait_s=1.0, drain_timeout_s=30.0)) as world:
        await world.serve("a")
        stream = world.request("a", 300.0, byte_every_s=10.0)
        assert await world.ask("b") == "answered by b"
        assert stream.result() == "answered by a"


@virtual
async def test_wait_cuts_a_stream_that_is_silent_for_the_drain_timeout():
    async with World(["a", "b"], Rules(min_residency_s=0.0, max_wait_s=1.0, drain_timeout_s=30.0)) as world:
        await world.serve("a")
        silent = world.request("a", 300.0)
        began = now()
        await world.ask("b")
        assert now() - began == pytest.approx(1.0 + 30.0 + 0.5 + 1.0 + 0.1, abs=0.05)
        with pytest.raises(LeaseCut, match="a had to leave memory for b after 30 s"):
            silent.result()


@virtual
async def test_cut_cuts_all_at_the_deadline():
    rules = Rules(min_residency_s=0.0, max_wait_s=1.0, drain_timeout_s=5.0, on_drain_timeout="cut")
    async with World(["a", "b"], rules) as world:
        await world.serve("a")
        streams = [world.request("a", 300.0, byte_every_s=0.5) for _ in range(3)]
        ends_in_time = world.request("a", 4.0)
        began = now()
        await world.ask("b")
        assert now() - began == pytest.approx(1.0 + 5.0 + 0.5 + 1.0 + 0.1, abs=0.05)
        assert all(isinstance(s.exception(), LeaseCut) for s in streams)
        assert ends_in_time.result() == "answered by a"


@virtual
async def test_refuse_calls_the_swap_off_before_anything_is_freed():
    rules = Rules(min_residency_s=0.0, max_wait_s=1.0, drain_timeout_s=5.0, on_drain_timeout="refuse")
    async with World(["a", "b"], rules) as world:
        await world.serve("a")
        stream = world.request("a", 60.0)
        waiters = [world.request("b") for _ in range(2)]
        for waiter in waiters:
            with pytest.raises(EngineBusy, match="a is still answering after 5 s") as refused:
                await waiter
            assert refused.value.retry_after_s == 5.0
        assert world.phase("a") == "ready"
        assert world.engine("a").stops == []
        assert await world.ask("a") == "answered by a"
        assert not stream.done()
        assert world.diary.results() == ["ok", "refused"]


@virtual
async def test_a_drain_ends_with_the_last_lease_and_not_a_moment_later():
    async with World(["a", "b"], Rules(min_residency_s=0.0, max_wait_s=1.0)) as world:
        await world.serve("a")
        world.request("a", 7.0)
        began = now()
        await world.ask("b", 0.0)
        assert now() - began == pytest.approx(7.0 + 0.5 + 1.0, abs=0.01)


@virtual
async def test_an_operators_swap_drains_as_configured():
    async with World(["a", "b"], Rules(min_residency_s=0.0, on_drain_timeout="cut", drain_timeout_s=5.0)) as world:
        await world.serve("a")
        stream = world.request("a", 60.0)
        began = now()
        await world.coordinator.swap_to(sid("b"))
        assert now() - began == pytest.approx(5.0 + 0.5 + 1.0, abs=0.01)
        assert isinstance(stream.exception(), LeaseCut)


# --- a lease that is cut


@virtual
async def test_a_cut_raises_its_reason_inside_the_request():
    async with World(["a"]) as world:
        await world.serve("a")
        lease = world.coordinator.try_lease(sid("a"))
        assert lease is not None
        asyncio.get_running_loop().call_later(1.0, lease.cut, LeaseCut("enough"))
        with pytest.raises(LeaseCut, match="enough"), lease:
            await asyncio.sleep(10.0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert world.in_flight("a") == 0


@virtual
async def test_a_client_that_leaves_stays_a_cancellation_even_if_it_is_cut_too():
    async with World(["a"]) as world:
        await world.serve("a")
        request = world.request("a", 10.0)
        await asyncio.sleep(1.0)
        for lease in list(world.coordinator.slots[sid("a")].leases):
            lease.cut(LeaseCut("enough"))
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert world.in_flight("a") == 0


@virtual
async def test_an_error_that_the_cut_caused_is_explained_by_it():
    async with World(["a"]) as world:
        await world.serve("a")
        lease = world.coordinator.try_lease(sid("a"))
        assert lease is not None
        asyncio.get_running_loop().call_later(1.0, lease.cut, EngineCrashed("a", "a died"))

        async def relay() -> None:
            with lease:
                try:
                    await asyncio.sleep(10.0)
                except asyncio.CancelledError:
                    raise ConnectionError("reset") from None

        with pytest.raises(EngineCrashed):
            await relay()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


@virtual
async def test_a_request_that_ended_in_spite_of_the_cut_is_no_failure_and_not_cancelled_later():
    async with World(["a"]) as world:
        await world.serve("a")
        lease = world.coordinator.try_lease(sid("a"))
        assert lease is not None
        asyncio.get_running_loop().call_later(1.0, lease.cut, LeaseCut("enough"))
        with lease, contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(10.0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        async with asyncio.timeout(1.0):
            await asyncio.sleep(0.1)


@virtual
async def test_a_lease_cut_before_it_is_taken_up_raises_at_once_and_is_given_back():
    async with World(["a"]) as world:
        await world.serve("a")
        lease = world.coordinator.try_lease(sid("a"))
        assert lease is not None
        world.crash("a")
        with pytest.raises(EngineCrashed), lease:
            raise AssertionError("never entered")
        assert lease.is_released


@virtual
async def test_releasing_twice_is_releasing_once():
    async with World(["a"]) as world:
        await world.serve("a")
        lease, other = world.coordinator.try_lease(sid("a")), world.coordinator.try_lease(sid("a"))
        assert lease is not None
        assert other is not None
        lease.release()
        lease.release()
        lease.cut(LeaseCut("too late"))
        assert world.in_flight("a") == 1
        other.release()


# --- frozen engines


@virtual
async def test_a_frozen_engine_ends_its_silent_requests():
    """E13: they hung for ever."""
    async with World(["a"]) as world:
        await world.serve("a")
        silent, lively = world.request("a", 300.0), world.request("a", 40.0, byte_every_s=5.0)
        world.engine("a").frozen = "its process is stopped (state T)"
        with pytest.raises(EngineStalled, match="state T"):
            await silent
        assert 30.0 <= now() <= 33.0
        assert await lively == "answered by a"


@virtual
async def test_a_slow_engine_that_lives_is_left_alone():
    async with World(["a"]) as world:
        assert await world.ask("a", 300.0) == "answered by a"


@virtual
async def test_one_look_that_breaks_does_not_end_the_looking():
    async with World(["a"]) as world:
        await world.serve("a")
        silent = world.request("a", 300.0)

        async def broken(slot: object) -> str:
            raise OSError("no /proc")

        engine = world.engine("a")
        whole, engine.stopped_state = engine.stopped_state, broken  # type: ignore[method-assign, assignment]
        await asyncio.sleep(35.0)
        engine.stopped_state, engine.frozen = whole, "gone"  # type: ignore[method-assign]
        with pytest.raises(EngineStalled):
            await silent
        assert world.coordinator.seconds_since_turn() < 2.0


@virtual
async def test_the_stall_timeout_counts_engine_bytes_only():
    async with World(["a"], Rules(stall_timeout_s=10.0)) as world:
        await world.serve("a")
        began = now()
        lively = world.request("a", 60.0, byte_every_s=8.0)
        with pytest.raises(EngineStalled, match="10 s"):
            await world.ask("a", 300.0)
        assert now() - began == pytest.approx(11.0, abs=1.1)
        assert await lively == "answered by a"
