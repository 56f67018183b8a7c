"""The settle inside a swap: what is waited for, what is learned, and that nothing is started on memory not yet back."""

from __future__ import annotations

import asyncio
import mmap

import pytest

from enginerouter.swap.memory import Meminfo, NoSource, Psutil, pick_source
from enginerouter.swap.model import Learned, Rules
from enginerouter.swap.settle import Verdict
from swap.fakes import GIB, MIB, Machine, Script, World, sid, spec
from swap.virtual_time import now, virtual


def verdicts(world: World) -> list[str]:
    return [r.settled.verdict.value for r in world.diary.reports if r.settled is not None]


async def settle_seconds(
    script: Script, *, rules: Rules | None = None, known: Learned | None = None
) -> tuple[str, float]:
    """Swap from a (as scripted) to b; the verdict and the seconds of its settle."""
    async with World(["a", "b"], rules, scripts={"a": script}, known={"a": known} if known else None) as world:
        await world.serve("a")
        await world.ask("b")
        settled = world.diary.reports[-1].settled
        assert settled is not None
        return settled.verdict.value, settled.seconds


@virtual
async def test_memory_that_is_back_at_once_costs_less_than_50_ms():
    said, seconds = await settle_seconds(Script(held=60 * GIB))
    assert said == "recovered"
    assert seconds < 0.05


@virtual
async def test_a_memory_mapped_model_costs_no_wait():
    """Availability never fell, and its own pages are few."""
    said, seconds = await settle_seconds(Script(held=30 * MIB, own_bytes=True))
    assert said == "recovered"
    assert seconds < 0.05


@virtual
async def test_memory_returned_8_s_late_is_waited_for():
    said, seconds = await settle_seconds(Script(held=60 * GIB, late_s=8.0))
    assert said == "recovered"
    assert seconds == pytest.approx(8.0, abs=0.03)


@virtual
async def test_memory_that_returns_slowly_is_waited_out():
    """1.8 GiB a second: the predecessor took it for settled after 1.0 s."""
    said, seconds = await settle_seconds(Script(held=36 * GIB, return_bytes_s=1.8 * GIB))
    assert said == "recovered"
    assert seconds == pytest.approx(0.95 * 20.0, abs=0.1)


@virtual
async def test_memory_that_does_not_return_ends_in_a_timeout_and_a_warning(caplog: pytest.LogCaptureFixture):
    said, seconds = await settle_seconds(Script(held=36 * GIB, late_s=100.0), rules=Rules(settle_timeout_s=25.0))
    assert said == "timeout"
    assert seconds == pytest.approx(25.0, abs=0.03)
    assert any(r.levelname == "WARNING" and "memory of a: timeout" in r.message for r in caplog.records)


@virtual
async def test_a_settle_timeout_of_nothing_switches_it_off():
    assert await settle_seconds(Script(late_s=9.0), rules=Rules(settle_timeout_s=0.0)) == ("off", 0.0)


@virtual
async def test_a_source_that_cannot_be_read_costs_no_wait():
    machine = Machine()
    machine.is_readable = False
    async with World(["a", "b"], machine=machine) as world:
        await world.serve("a")
        await world.ask("b")
        assert verdicts(world) == ["unreadable"]


@virtual
async def test_a_target_whose_need_is_there_does_not_wait_for_more():
    specs = [spec("a"), spec("b", need_bytes=10 * GIB)]
    async with World(
        specs, scripts={"a": Script(held=60 * GIB, return_bytes_s=2 * GIB)}, machine=Machine(64 * GIB)
    ) as w:
        await w.serve("a")
        await w.ask("b")
        settled = w.diary.reports[-1].settled
        assert settled is not None
        assert settled.verdict is Verdict.ENOUGH
        assert settled.seconds == pytest.approx((10.5 - 4.0) / 2.0, abs=0.1)


@virtual
async def test_what_a_settle_that_had_enough_left_missing_is_waited_for_by_the_next_start_that_needs_it():
    """a's 60 GiB come back after 6 s; b needs little and starts at once; c needs a's memory 2 s later."""
    specs = [spec("a"), spec("b", need_bytes=3 * GIB), spec("c", need_bytes=60 * GIB)]
    scripts = {"a": Script(held=60 * GIB, late_s=6.0), "b": Script(held=3 * GIB), "c": Script(held=60 * GIB)}
    async with World(specs, scripts=scripts, machine=Machine(64 * GIB)) as world:
        await world.serve("a")
        freed_at = now() + 0.5
        await world.serve("b")
        assert verdicts(world) == ["enough"]
        await world.ask("c", 0.0)
        assert now() == pytest.approx(freed_at + 6.0 + 1.0, abs=0.1)
        assert world.machine.lowest >= 0


@virtual
async def test_the_first_time_the_drop_at_its_start_is_what_is_missing():
    async with World(["a", "b"], scripts={"a": Script(held=40 * GIB, late_s=3.0)}) as world:
        await world.serve("a")
        await world.ask("b")
        settled = world.diary.reports[-1].settled
        assert settled is not None
        assert (settled.held, settled.came_back) == (40 * GIB, 40 * GIB)


@virtual
async def test_what_came_back_replaces_an_estimate_that_was_too_high():
    """Another program took 20 GiB while a loaded. One timeout, then it is known."""
    machine = Machine()
    async with World(["a", "b"], scripts={"a": Script(held=40 * GIB)}, machine=machine) as world:
        machine.others = lambda at: 20 * GIB if at > 0.5 else 0
        await world.serve("a")
        await world.ask("b")
        await world.serve("a")
        await world.ask("b")
        assert verdicts(world)[0] == "timeout"
        assert verdicts(world)[2] == "recovered"
        assert world.coordinator.slots[sid("a")].learned.came_back_bytes == pytest.approx(40 * GIB, rel=0.01)


@virtual
async def test_what_is_learned_does_not_wear_away():
    """Each settle may end 5 % early; learning that each time would end in no wait at all."""
    async with World(["a", "b"], scripts={"a": Script(held=40 * GIB, return_bytes_s=8 * GIB)}) as world:
        for _ in range(30):
            await world.serve("a")
            await world.ask("b")
        assert (world.coordinator.slots[sid("a")].learned.came_back_bytes or 0) >= 39 * GIB


@virtual
async def test_a_crash_whose_memory_is_back_already_costs_no_wait():
    async with World(["a"], scripts={"a": Script(held=60 * GIB)}) as world:
        await world.serve("a")
        await asyncio.sleep(5.0)
        world.crash("a")
        began = now()
        await world.ask("a", 0.0)
        assert now() - began == pytest.approx(1.0, abs=0.1)


@virtual
async def test_a_crash_within_the_first_second_of_service_costs_no_wait_either():
    """The last reading before it must not be one from before its start."""
    async with World(["a"], scripts={"a": Script(held=60 * GIB, start_s=0.9)}) as world:
        await world.ask("a", 0.0)
        world.crash("a")
        began = now()
        await world.ask("a", 0.0)
        assert now() - began == pytest.approx(0.9, abs=0.1)


@virtual
async def test_a_crash_whose_memory_returns_late_is_waited_for():
    machine = Machine(64 * GIB)
    async with World(
        ["a", "b"], scripts={s: Script(held=60 * GIB, late_s=8.0) for s in "ab"}, machine=machine
    ) as world:
        await world.serve("a")
        await asyncio.sleep(5.0)
        world.crash("a")
        await world.ask("b")
        assert verdicts(world) == ["recovered"]
        assert machine.lowest >= 0


@virtual
async def test_a_crash_teaches_nothing_about_what_comes_back():
    """Else the next settle would wait for nothing."""
    machine = Machine(64 * GIB)
    async with World(["a", "b"], scripts={s: Script(held=60 * GIB) for s in "ab"}, machine=machine) as world:
        await world.serve("a")
        await asyncio.sleep(5.0)
        world.crash("a")
        await world.serve("a")
        world.script("a").late_s = 8.0
        await world.ask("b")
        assert verdicts(world)[-1] == "recovered"
        assert machine.lowest >= 0


@virtual
async def test_two_slots_freed_together_are_waited_for_together():
    rules = Rules(together=(frozenset({"a", "b"}),))
    scripts = {
        "a": Script(held=20 * GIB, late_s=1.0),
        "b": Script(held=30 * GIB, late_s=4.0),
        "c": Script(held=60 * GIB),
    }
    async with World(["a", "b", "c"], rules, scripts=scripts, machine=Machine(64 * GIB)) as world:
        await world.serve("a")
        await world.serve("b")
        await world.ask("c")
        settled = world.diary.reports[-1].settled
        assert settled is not None
        assert (settled.verdict.value, settled.held) == ("recovered", 50 * GIB)
        assert settled.seconds == pytest.approx(4.0, abs=0.05)
        assert world.machine.lowest >= 0


@virtual
async def test_if_memory_is_short_before_a_start_an_idle_slot_goes_too():
    """The figures say that it fits, the machine says that it does not."""
    rules = Rules(budget_bytes=60 * GIB)
    specs = [spec("idle", need_bytes=10 * GIB), spec("big", need_bytes=40 * GIB)]
    machine = Machine(64 * GIB)
    async with World(specs, rules, machine=machine) as world:
        await world.serve("idle")
        machine.others = lambda _: 20 * GIB
        await world.ask("big")
        assert world.resident() == ["big"]


@virtual
async def test_if_memory_stays_short_it_is_started_with_a_warning(caplog: pytest.LogCaptureFixture):
    machine = Machine(64 * GIB)
    async with World([spec("big", need_bytes=40 * GIB)], machine=machine) as world:
        machine.others = lambda _: 30 * GIB
        assert await world.ask("big") == "answered by big"
        assert any("expected to need 40.00 GiB, but only 34.00 GiB" in r.message for r in caplog.records)


@virtual
async def test_start_seconds_and_bytes_are_learned_into_the_objects_given():
    known = Learned()
    async with World(
        ["a", "b"], scripts={"a": Script(start_s=7.0, held=20 * GIB, own_bytes=True)}, known={"a": known}
    ) as w:
        await w.serve("a")
        await w.ask("b")
        assert known.start_s == pytest.approx(7.0, abs=0.01)
        assert known.held_bytes == 20 * GIB
        assert known.came_back_bytes == 20 * GIB


# --- the sources


def test_meminfo_is_read_in_bytes(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  100 kB\nMemFree:  1 kB\nMemAvailable:   42 kB\n")
    assert Meminfo(path).available() == 42 * 1024


def test_pages_that_the_kernel_keeps_for_one_cpu_count_as_available(tmp_path):
    """Free pages that MemAvailable leaves out: after the exit of an engine, hundreds of MiB for many seconds."""
    (tmp_path / "meminfo").write_text("MemAvailable: 1000 kB\n")
    (tmp_path / "zoneinfo").write_text(
        "Node 0, zone   Normal\n  pages free     38334\n        high     14558\n  pagesets\n    cpu: 0\n"
        "              count:    300\n              high:     39409\n    cpu: 1\n              count:    7\n"
    )
    assert Meminfo(tmp_path / "meminfo").available() == 1000 * 1024 + 307 * mmap.PAGESIZE


@pytest.mark.parametrize("text", ["", "MemTotal: 100 kB\n"])
def test_meminfo_without_the_line_is_unreadable(tmp_path, text: str):
    path = tmp_path / "meminfo"
    path.write_text(text)
    assert Meminfo(path).available() is None
    assert Meminfo(tmp_path / "none").available() is None


def test_every_source_can_be_asked_for():
    assert pick_source("none").available() is None
    assert isinstance(pick_source("none"), NoSource)
    assert isinstance(pick_source("psutil"), Psutil)
    assert (pick_source("psutil").available() or 0) > 0
    assert (pick_source("auto").available() or 0) > 0
