"""An ordinary swap, seen from outside: its order, its report, who shares it, who leaves it."""

from __future__ import annotations

import asyncio

import pytest

from enginerouter.errors import EngineCrashed
from enginerouter.swap.model import Rules
from swap.fakes import GIB, Script, World, learned, sid, spec
from swap.virtual_time import now, settle_down, virtual


@virtual
async def test_a_swap_drains_frees_settles_and_starts_in_that_order():
    async with World(["a", "b"]) as world:
        assert await world.ask("a") == "answered by a"
        assert await world.ask("b") == "answered by b"
        assert world.diary.phases_of(sid("a"))[2:] == ["draining", "freeing", "settling", "cold"]
        a_is_cold = next(at for at, s, _, after in world.diary.moves if s == sid("a") and after == "cold")
        b_starts = next(at for at, s, _, after in world.diary.moves if s == sid("b") and after == "starting")
        assert b_starts >= a_is_cold
        assert world.resident() == ["b"]


@virtual
async def test_a_resident_is_used_without_any_wait():
    async with World(["a"]) as world:
        await world.serve("a")
        lease = world.coordinator.try_lease(sid("a"))
        assert lease is not None
        lease.release()


@virtual
async def test_a_swap_costs_no_more_than_stopping_starting_and_the_linger():
    async with World(["a", "b"], Rules(linger_s=0.25)) as world:
        await world.ask("a", 0.0)
        began = now()
        await world.ask("b", 0.0)
        assert now() - began == pytest.approx(0.25 + 0.5 + 1.0, abs=0.01)


@virtual
async def test_the_report_has_the_seconds_of_each_step():
    async with World(["a", "b"], scripts={"b": Script(start_s=3.0, check_s=0.2), "a": Script(late_s=2.0)}) as world:
        await world.serve("a")
        await world.ask("b")
        report = world.diary.reports[-1]
        assert (str(report.plan.target), report.result, report.freed) == ("b", "ok", (sid("a"),))
        assert report.seconds == pytest.approx(
            {"checking": 0.2, "draining": 0.0, "freeing": 0.5, "settling": 2.0, "starting": 3.0}, abs=0.03
        )
        assert report.total_s == pytest.approx(sum(report.seconds.values()))


@virtual
async def test_the_requests_running_when_the_gate_closes_are_counted():
    async with World(["a", "b"], Rules(max_wait_s=3.0)) as world:
        await world.serve("a")
        running = [world.request("a", 10.0) for _ in range(3)]
        await world.ask("b")
        assert world.diary.reports[-1].in_flight_at_start == 3
        assert all(t.result() for t in running)


@virtual
async def test_twenty_cold_requests_share_one_start():
    async with World(["a"]) as world:
        await asyncio.gather(*(world.ask("a") for _ in range(20)))
        assert world.diary.starts() == ["a"]


@virtual
async def test_waiters_for_one_target_share_one_swap_even_those_who_come_during_it():
    async with World(["a", "b"]) as world:
        await world.serve("a")
        first = world.request("b")
        await world.in_phase("a", "freeing")
        second = world.request("b")
        await world.in_phase("b", "starting")
        third = world.request("b")
        assert await asyncio.gather(first, second, third) == ["answered by b"] * 3
        assert world.diary.starts() == ["a", "b"]


@virtual
async def test_first_come_first_served_within_a_target():
    async with World([spec("a", max_in_flight=1)]) as world:
        ended: list[int] = []

        async def ask(n: int) -> None:
            await world.ask("a")
            ended.append(n)

        tasks = [asyncio.ensure_future(ask(n)) for n in range(5)]
        await asyncio.gather(*tasks)
        assert ended == [0, 1, 2, 3, 4]


@virtual
async def test_ten_requests_alternating_between_two_engines_cost_two_starts():
    """E1: the predecessor made nine swaps of them."""
    async with World(["a", "b"]) as world:
        await asyncio.gather(*(world.ask("ab"[n % 2], 0.5) for n in range(10)))
        assert world.diary.starts() == ["a", "b"]


@virtual
async def test_requests_for_the_resident_are_served_while_another_target_waits():
    async with World(["a", "b"]) as world:
        await world.serve("a")
        long = world.request("a", 5.0)
        waiting = world.request("b")
        await asyncio.sleep(1.0)
        began = now()
        await world.ask("a", 0.1)
        assert now() - began == pytest.approx(0.1)
        assert not waiting.done()
        await asyncio.gather(long, waiting)


@virtual
async def test_the_gate_closes_when_somebody_has_waited_too_long():
    async with World(["a", "b"], Rules(max_wait_s=15.0)) as world:
        await world.serve("a")
        streams = [world.request("a", 20.0)]
        began = now()
        waiting = world.request("b")
        await asyncio.sleep(14.0)
        assert world.phase("a") == "ready"
        streams.append(world.request("a", 20.0))
        await asyncio.sleep(1.1)
        assert world.phase("a") == "draining"
        late = world.request("a")
        await settle_down()
        assert world.in_flight("a") == 2
        await waiting
        assert now() - began == pytest.approx(34.0 + 0.5 + 1.0 + 0.1, abs=0.1)
        assert await late == "answered by a"


@virtual
async def test_a_slow_start_gives_the_resident_as_long_a_turn():
    async with World(["a", "b"], known={"b": learned(60.0)}) as world:
        await world.serve("a")
        busy = world.request("a", 300.0)
        world.request("b")
        await asyncio.sleep(59.0)
        assert world.phase("a") == "ready"
        await asyncio.sleep(1.1)
        assert world.phase("a") == "draining"
        busy.cancel()


@virtual
async def test_waiting_through_a_long_load_does_not_make_anybody_overdue():
    """The clock stands still in swaps: c, which came while b loaded for 60 s, waits its 15 s from b's ready on."""
    scripts = {"b": Script(start_s=60.0)}
    async with World(["a", "b", "c"], scripts=scripts) as world:
        await world.serve("a")
        first = world.request("b", 40.0)
        await world.in_phase("b", "starting")
        second = world.request("c")
        await world.in_phase("b", "ready")
        await asyncio.sleep(14.9)
        assert world.phase("b") == "ready"
        await asyncio.sleep(0.2)
        assert world.phase("b") == "draining"
        await asyncio.gather(first, second)


@virtual
async def test_the_clock_stands_still_in_a_swap_during_which_nothing_else_happens():
    """It is stopped by the change of phase itself, not by the next request that comes along."""
    async with World(["a", "b", "c"], scripts={"b": Script(start_s=60.0)}) as world:
        await world.ask("a", 0.0)
        first, second = world.request("b", 40.0), world.request("c")
        await world.in_phase("b", "ready")
        await asyncio.sleep(14.5)
        assert world.phase("b") == "ready"
        await asyncio.sleep(0.6)
        assert world.phase("b") == "draining"
        await asyncio.gather(first, second)


@virtual
async def test_waiting_through_a_long_drain_does_not_make_anybody_overdue():
    """Late requests for the slot being drained wait from the moment its successor is ready."""
    async with World(["a", "b"], Rules(max_wait_s=15.0, drain_timeout_s=100.0)) as world:
        await world.serve("a")
        world.request("a", 60.0)
        world.request("b", 30.0)
        await world.in_phase("a", "draining")
        late = world.request("a")
        await world.in_phase("b", "ready")
        await asyncio.sleep(14.9)
        assert world.phase("b") == "ready"
        await late


@virtual
async def test_a_fresh_slot_serves_its_minimum_residency():
    async with World(["a", "b"], Rules(max_wait_s=1.0, min_residency_s=5.0)) as world:
        first, second = world.request("a", 30.0), world.request("b")
        await world.in_phase("a", "ready")
        ready_at = now()
        await world.in_phase("a", "draining")
        assert now() - ready_at == pytest.approx(5.0, abs=0.01)
        await asyncio.gather(first, second)


@virtual
async def test_the_next_step_of_an_agent_keeps_its_engine():
    """Strict alternation with a think time below the linger does not thrash."""
    async with World(["a", "b"], Rules(linger_s=0.25, max_wait_s=15.0)) as world:

        async def agent(slot: str, until: float) -> int:
            steps = 0
            while now() < until:
                await world.ask(slot, 0.5)
                steps += 1
                await asyncio.sleep(0.1)
            return steps

        steps = await asyncio.gather(agent("a", 120.0), agent("b", 120.0))
        assert len(world.diary.starts()) <= 2 + 120 / 15
        assert sum(steps) * 0.6 > 0.8 * 120


@virtual
async def test_two_busy_agents_on_60_s_loads_are_served_at_least_40_percent_of_the_time():
    scripts = {s: Script(start_s=60.0) for s in "ab"}
    async with World(["a", "b"], scripts=scripts) as world:
        served = 0.0
        end = 3600.0

        async def agent(slot: str) -> None:
            nonlocal served
            while now() < end:
                await world.ask(slot, 2.0)
                served += 2.0
                await asyncio.sleep(0.1)

        agents = [asyncio.ensure_future(agent(s)) for s in "ab"]
        await asyncio.sleep(end)
        share = served / end
        print(f"served {share:.0%} of the time, {len(world.diary.starts())} starts")
        assert share >= 0.40
        for task in agents:
            task.cancel()
        await asyncio.gather(*agents, return_exceptions=True)


# --- leaving


@pytest.mark.parametrize("phase", ["freeing", "settling", "starting"])
@virtual
async def test_a_client_leaving_mid_swap_does_not_stop_it(phase: str):
    """A1: the predecessor then believed in a dead engine for ever."""
    async with World(["a", "b"], scripts={"a": Script(late_s=1.0)}) as world:
        await world.serve("a")
        leaver = world.request("b")
        await world.in_phase("b" if phase == "starting" else "a", phase)
        leaver.cancel()
        await world.in_phase("b", "ready")
        assert world.diary.results() == ["ok", "ok"]
        assert world.is_at_rest()
        assert await world.ask("b") == "answered by b"
        assert await world.ask("a") == "answered by a"


@pytest.mark.parametrize("phase", ["draining", "freeing", "settling", "starting"])
@virtual
async def test_the_first_of_two_waiters_leaving_changes_nothing_for_the_second(phase: str):
    async def served_at(leaves: bool) -> float:
        async with World(["a", "b"], Rules(max_wait_s=1.0), scripts={"a": Script(late_s=1.0)}) as world:
            began = now()
            await world.serve("a")
            world.request("a", 5.0)
            leaver, stayer = world.request("b"), world.request("b")
            await world.in_phase("b" if phase == "starting" else "a", phase)
            if leaves:
                leaver.cancel()
            await stayer
            assert world.diary.starts() == ["a", "b"]
            return now() - began

    assert await served_at(leaves=True) == pytest.approx(await served_at(leaves=False))


@virtual
async def test_a_queued_client_that_leaves_takes_its_wish_along():
    async with World(["a", "b"]) as world:
        await world.serve("a")
        busy = world.request("a", 5.0)
        leaver = world.request("b")
        await asyncio.sleep(1.0)
        leaver.cancel()
        await busy
        await asyncio.sleep(5.0)
        assert world.resident() == ["a"]
        assert world.coordinator.queued == 0


@virtual
async def test_a_swap_whose_only_waiter_leaves_during_the_check_is_not_begun():
    async with World(["a", "b"], scripts={"b": Script(check_s=1.0)}) as world:
        await world.serve("a")
        leaver = world.request("b")
        await asyncio.sleep(0.5)
        leaver.cancel()
        await asyncio.sleep(5.0)
        assert world.resident() == ["a"]
        assert world.diary.results() == ["ok"]


@virtual
async def test_a_drain_whose_waiters_have_left_is_called_off_and_late_requests_are_served_without_a_restart():
    async with World(["a", "b"], Rules(max_wait_s=1.0)) as world:
        await world.serve("a")
        stream = world.request("a", 10.0)
        leaver = world.request("b")
        await world.in_phase("a", "draining")
        late = world.request("a")
        await asyncio.sleep(0.5)
        assert not late.done()
        leaver.cancel()
        await settle_down()
        assert world.phase("a") == "ready"
        assert await late == "answered by a"
        assert not stream.done()
        await stream
        assert world.diary.starts() == ["a"]
        assert world.diary.results() == ["ok", "called_off"]


@virtual
async def test_a_waiter_leaving_while_the_engine_is_asked_what_it_holds_still_calls_the_swap_off():
    """No stop signal has been sent yet."""
    async with World(["a", "b"], scripts={"a": Script(held_bytes_s=1.0)}) as world:
        await world.serve("a")
        leaver = world.request("b")
        await world.in_phase("a", "draining")
        leaver.cancel()
        await asyncio.sleep(2.0)
        assert (world.phase("a"), world.engine("a").stops) == ("ready", [])


@virtual
async def test_a_waiter_cancelled_at_any_moment_leaks_nothing():
    """One waiter, cancelled after n turns of the loop or at some moment of its swap: the counters come back."""
    moments = [0.0, 0.2501, 0.26, 0.5, 0.7, 0.7505, 0.77, 1.0, 1.7, 1.7505, 1.752, 1.9]
    for moment in moments:
        for turns in range(12):
            async with World(["a", "b"]) as world:
                await world.ask("a", 0.0)
                request = world.request("b", 0.1)
                await asyncio.sleep(moment)
                await settle_down(turns)
                request.cancel()
                await asyncio.gather(request, return_exceptions=True)
                assert world.coordinator.queued == 0
                assert world.in_flight("b") == 0
                assert await world.ask("b") == "answered by b"


@virtual
async def test_a_client_that_leaves_in_the_middle_of_its_answer_holds_no_swap_up():
    """E5: its lease stayed, and the next swap waited out the whole drain timeout."""
    async with World(["a", "b"]) as world:
        await world.serve("a")
        leaver = world.request("a", 600.0)
        waiting = world.request("b", 0.0)
        await asyncio.sleep(1.0)
        leaver.cancel()
        began = now()
        await waiting
        assert now() - began == pytest.approx(0.25 + 0.5 + 1.0, abs=0.01)


@virtual
async def test_a_lease_granted_to_somebody_who_leaves_in_the_same_turn_is_given_back():
    async with World(["a"]) as world:
        ticket = world.coordinator.enqueue(sid("a"))
        await world.in_phase("a", "ready")
        assert world.in_flight("a") == 1
        world.coordinator.leave(ticket)
        assert world.in_flight("a") == 0
        world.coordinator.leave(ticket)
        assert world.in_flight("a") == 0


@virtual
async def test_a_ticket_whose_client_is_cancelled_in_the_turn_of_the_grant_gets_no_lease():
    async with World([spec("a", max_in_flight=1)]) as world:
        await world.serve("a")
        holder = world.coordinator.try_lease(sid("a"))
        assert holder is not None
        waiting = world.request("a")
        await settle_down()
        waiting.cancel()
        holder.release()
        await asyncio.gather(waiting, return_exceptions=True)
        assert world.in_flight("a") == 0
        assert world.coordinator.queued == 0


# --- crashes


@virtual
async def test_an_engine_killed_while_idle_is_started_again_by_the_next_request():
    """A2: every request got 502 for ever."""
    async with World(["a"]) as world:
        await world.serve("a")
        world.crash("a")
        assert world.phase("a") == "crashed"
        assert await world.ask("a") == "answered by a"
        assert world.diary.starts() == ["a", "a"]


@virtual
async def test_an_engine_killed_while_idle_is_cleared_away_though_nobody_asks():
    async with World(["a"]) as world:
        await world.serve("a")
        world.crash("a")
        await asyncio.sleep(2.0)
        assert world.phase("a") == "cold"


@virtual
async def test_an_engine_that_dies_mid_stream_ends_its_streams_with_the_reason_and_starts_again():
    """A3."""
    async with World(["a"]) as world:
        await world.serve("a")
        streams = [world.request("a", 60.0) for _ in range(3)]
        await asyncio.sleep(1.0)
        world.crash("a")
        for stream in streams:
            with pytest.raises(EngineCrashed, match="a died"):
                await stream
        assert world.in_flight("a") == 0
        assert await world.ask("a") == "answered by a"


@virtual
async def test_an_engine_that_dies_while_draining_does_not_stop_the_swap():
    async with World(["a", "b"], Rules(max_wait_s=1.0)) as world:
        await world.serve("a")
        stream = world.request("a", 60.0)
        waiting = world.request("b")
        await world.in_phase("a", "draining")
        world.crash("a")
        with pytest.raises(EngineCrashed):
            await stream
        assert await waiting == "answered by b"
        assert world.diary.phases_of(sid("a"))[-4:] == ["crashed", "freeing", "settling", "cold"]


@virtual
async def test_a_swap_called_off_while_one_victim_has_died_leaves_the_other_serving():
    rules = Rules(max_wait_s=1.0, budget_bytes=60 * GIB)
    specs = [spec("a", need_bytes=20 * GIB), spec("b", need_bytes=20 * GIB), spec("big", need_bytes=60 * GIB)]
    async with World(specs, rules) as world:
        await world.serve("a")
        await world.serve("b")
        stream = world.request("b", 60.0)
        died = world.request("a", 60.0)
        leaver = world.request("big")
        await world.in_phase("a", "draining")
        world.crash("a")
        leaver.cancel()
        await asyncio.sleep(3.0)
        assert (world.phase("a"), world.phase("b")) == ("cold", "ready")
        assert not stream.done()
        assert isinstance(died.exception(), EngineCrashed)
        assert await world.ask("b") == "answered by b"


@virtual
async def test_an_engine_that_dies_just_after_it_said_ready_is_noticed():
    async with World(["a"]) as world:
        world.script("a").outcomes.append("crash")
        with pytest.raises(EngineCrashed):
            await world.ask("a", 5.0)
        assert await world.ask("a") == "answered by a"


@virtual
async def test_waiters_for_room_outlive_a_crash():
    async with World([spec("a", max_in_flight=1)]) as world:
        await world.serve("a")
        served, waiting = world.request("a", 5.0), world.request("a")
        await asyncio.sleep(1.0)
        world.crash("a")
        with pytest.raises(EngineCrashed):
            await served
        assert await waiting == "answered by a"


@virtual
async def test_a_request_that_was_cut_but_does_not_end_holds_the_next_start_up_for_seconds_only():
    async with World(["a"]) as world:
        await world.serve("a")

        async def stubborn() -> None:
            lease = world.coordinator.try_lease(sid("a"))
            assert lease is not None
            with lease:
                try:
                    await asyncio.sleep(600.0)
                finally:
                    await asyncio.sleep(60.0)

        task = asyncio.ensure_future(stubborn())
        await asyncio.sleep(1.0)
        world.crash("a")
        began = now()
        await world.ask("a")
        assert now() - began < 10.0
        with pytest.raises(EngineCrashed):
            await task
