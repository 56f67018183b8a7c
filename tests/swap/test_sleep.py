"""An engine whose stop is a sleep: what it keeps is neither waited for nor needed again."""

from __future__ import annotations

import asyncio

from enginerouter.slots import SlotId
from enginerouter.swap.held import note_kept
from enginerouter.swap.model import Slot
from swap.fakes import GIB, FakeEngine, Returning, Script, World, sid, spec
from swap.virtual_time import now, virtual

KEPT = 3 * GIB


class SleepyEngine(FakeEngine):
    """Its stop gives back all but what it keeps."""

    def __init__(self, name: str, machine, scripts: dict[SlotId, Script]) -> None:
        super().__init__(name, machine, scripts)
        self.sleeping: set[SlotId] = set()
        self.ended: list[SlotId] = []

    def asleep(self) -> set[SlotId]:
        return self.sleeping

    async def start(self, slot: SlotId) -> None:
        if slot in self.sleeping:
            self.sleeping.discard(slot)
            self.machine.running.pop(slot)
        await super().start(slot)

    async def stop(self, slot: SlotId) -> None:
        held = self.machine.running.get(slot, 0)
        if not held or slot in self.sleeping:
            return
        self.machine.running[slot] = KEPT
        self.machine.returning.append(Returning(held - KEPT, now() + 1.0, None))
        self.sleeping.add(slot)

    async def end(self, slot: SlotId) -> None:
        self.ended.append(slot)
        self.sleeping.discard(slot)
        self.machine.give_back(slot, self.scripts[slot])

    async def held_bytes(self, slot: SlotId) -> int | None:
        return self.machine.running.get(slot, 0)


def sleepy_world(*specs) -> World:
    world = World(specs)
    world.engines["a"] = SleepyEngine("a", world.machine, {sid("a"): world.scripts[sid("a")]})
    return world


@virtual
async def test_the_settle_waits_for_what_comes_back_and_not_for_what_is_kept():
    async with sleepy_world("a", "b") as world:
        await world.serve("a")
        await world.serve("b")
        settled = world.diary.reports[-1].settled
        assert settled is not None
        assert settled.verdict.value == "recovered"
        assert 0.9 < settled.seconds < 1.2
        assert settled.held == 5 * GIB
        await world.serve("a")
        await world.serve("b")
        assert world.diary.reports[-1].settled.verdict.value in ("recovered", "enough")


@virtual
async def test_waking_needs_only_what_it_does_not_hold_already():
    """Otherwise an idle neighbour would be evicted for it."""
    async with sleepy_world(spec("a"), "b") as world:
        await world.serve("a")
        await world.serve("b")
        assert world.unload("b")
        await world.in_phase("b", "cold")
        world.machine.others = lambda at: 91 * GIB  # of 100: 6 are left, it holds 3 and needs 8
        before = now()
        await world.serve("a")
        assert now() - before < 2


@virtual
async def test_at_the_end_it_is_ended_also_where_it_sleeps():
    async with sleepy_world("a", "b") as world:
        await world.serve("a")
        await world.serve("b")
        engine = world.engines["a"]
        assert engine.ended == []
        await world.coordinator.close()
        assert engine.ended == [sid("a")]
        assert world.resident() == []


@virtual
async def test_a_hold_ends_what_sleeps_too():
    """Else `is_free` would be said of memory that is not."""
    async with sleepy_world("a", "b") as world:
        await world.serve("a")
        await world.serve("b")
        hold = world.coordinator.hold("somebody")
        await hold.decided.wait()
        assert hold.is_free
        assert world.engines["a"].ended == [sid("a")]
        assert world.machine.truly_available() == world.machine.total


@virtual
async def test_an_explicit_unload_ends_what_sleeps_and_what_would_sleep():
    async with sleepy_world("a", "b") as world:
        await world.serve("a")
        await world.serve("b")
        assert world.unload("a")
        await world.until(lambda: world.engines["a"].ended == [sid("a")])
        assert world.resident() == ["b"], "its neighbour stays"
        await world.until(world.is_at_rest)
        assert not world.unload("a"), "nothing of it is in memory any more"
        await world.serve("a")
        assert world.unload("a")
        await world.until(lambda: world.resident() == [])
        await world.until(world.is_at_rest)


@virtual
async def test_what_slept_for_as_long_as_it_may_be_idle_is_ended():
    async with sleepy_world(spec("a", idle_unload_s=10.0), "b") as world:
        await world.serve("a")
        await world.serve("b")
        assert world.engines["a"].ended == []
        await asyncio.sleep(10.0)
        assert world.engines["a"].ended == [sid("a")]
        assert world.phase("b") == "ready"


@virtual
async def test_a_start_that_is_short_of_memory_ends_what_sleeps_first():
    async with sleepy_world("a", spec("b", need_bytes=98 * GIB)) as world:
        world.script("b").held = 98 * GIB
        await world.serve("a")
        await world.serve("b")
        assert world.engines["a"].ended == [sid("a")]
        assert world.machine.lowest >= 0, "never started on top"


@virtual
async def test_what_sleeps_is_known_after_a_restart_of_the_router():
    world = sleepy_world("a", "b")
    world.machine.running[sid("a")] = KEPT
    world.engines["a"].sleeping.add(sid("a"))
    async with world:
        slot = world.coordinator.slots[sid("a")]
        assert (slot.is_asleep, slot.kept_bytes) == (True, KEPT)
        assert world.unload("a")
        await world.until(lambda: world.resident() == [])
        await world.until(world.is_at_rest)


@virtual
async def test_what_dies_in_its_sleep_is_freed_at_once_and_is_no_failure():
    """Workers of it may be left, and what it kept is not kept any more."""
    async with sleepy_world("a", "b") as world:
        await world.serve("a")
        await world.serve("b")
        slot = world.coordinator.slots[sid("a")]
        assert slot.is_asleep
        world.crash("a")
        await world.until(lambda: not slot.is_asleep)
        assert world.engines["a"].ended == [sid("a")]
        assert slot.circuit.failures == 0
        assert world.resident() == ["b"]
        await world.serve("a")


def test_what_is_kept_is_taken_off_what_is_missing() -> None:
    slot = Slot(spec("a"))
    note_kept(slot, 5)
    assert slot.missing_bytes is None
    slot.missing_bytes = 7
    note_kept(slot, 5)
    assert slot.missing_bytes == 2
    note_kept(slot, 5)
    assert slot.missing_bytes == 0
