"""How often memory is asked for by a router at rest, and which lanes wait for whom when it starts."""

from __future__ import annotations

import asyncio

import pytest

from enginerouter.slots import SlotId
from swap.fakes import Machine, World, sid, spec
from swap.virtual_time import now, virtual


class Counted(Machine):
    """Counts the readings, as `nvidia-smi` would be run."""

    def __init__(self) -> None:
        super().__init__()
        self.refreshed: list[float] = []

    async def refresh(self) -> None:
        self.refreshed.append(now())


@virtual
async def test_memory_is_asked_for_once_in_ten_seconds_while_what_is_resident_is_idle():
    machine = Counted()
    async with World(["a"], machine=machine) as world:
        await asyncio.sleep(30.0)
        assert machine.refreshed == [0.0]  # before what an earlier router left is ended; nothing is resident
        await world.ask("a", 5.3)
        ended_at = now()
        await asyncio.sleep(100.0)
        idle = [at for at in machine.refreshed if at > ended_at]
        assert idle[0] - ended_at < 1.0  # once more when it falls idle: what a crash is judged by
        assert len(idle) == pytest.approx(11, abs=1)


@virtual
async def test_memory_is_asked_for_every_second_while_somebody_is_served():
    machine = Counted()
    async with World(["a"], machine=machine) as world:
        await world.ask("a", 20.0)
        assert len([at for at in machine.refreshed if at > 3.0]) == pytest.approx(18, abs=1)


@virtual
async def test_lanes_without_memory_serve_while_an_engine_that_holds_some_still_says_nothing():
    """A daemon that hung at the router's start used to keep an embedder on the CPU from its first answer."""
    world = World(["slow", "b", spec("cpu", holds_memory=False, is_preloaded=True)])
    says = asyncio.Event()

    async def hangs() -> list[SlotId]:
        await says.wait()
        return []

    world.engine("slow").adopt = hangs  # type: ignore[method-assign]
    starting = asyncio.ensure_future(world.coordinator.start())
    await world.in_phase("cpu", "ready")
    assert await world.ask("cpu") == "answered by cpu"
    waiting = world.request("b")
    await asyncio.sleep(5.0)
    assert world.phase("b") == "cold"
    says.set()
    await starting
    assert await waiting == "answered by b"
    await world.__aexit__()


@virtual
async def test_a_slot_that_somebody_stopped_in_good_order_is_no_failed_start_and_not_restarted():
    async with World([spec("a", max_restarts=1, restarts=True)]) as world:
        for _ in range(3):
            await world.serve("a")
            world.engine("a").crash(sid("a"), was_stopped=True)
            await asyncio.sleep(5.0)
            assert world.phase("a") == "cold"
        assert world.coordinator.slots[sid("a")].circuit.failures == 0
