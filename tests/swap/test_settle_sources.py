"""Every scripted curve of memory on every kind of source, through a whole swap in virtual time.

A curve says how many GiB of the freed slot's 40 are back, by seconds since its process ended. A card is read through
the same polling as NVML and nvidia-smi are, each reading taking its time; the host is read at once.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psutil
import pytest

from enginerouter.slots import SlotId
from enginerouter.swap.amdgpu import Amdgpu
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.memory import Device, HostSource, MemorySource, Psutil
from enginerouter.swap.model import Rules, SlotSpec
from enginerouter.swap.nvidia import CardReading, Nvidia
from swap.fakes import GIB, Diary, FakeEngine, Machine, Script, leased, sid
from swap.virtual_time import now, run

HELD = 40
TIMEOUT_S = 25.0
PID = 4711
Curve = Callable[[float], float]


def late(at: float) -> float:
    return HELD if at >= 6.0 else 0.0


def slow(at: float) -> float:
    return min(HELD, 4.0 * at)


def pause(at: float) -> float:
    """Half at once, nothing for 5 s, then the rest: a plateau that is none."""
    return HELD if at >= 5.0 else HELD / 2


def sawtooth(at: float) -> float:
    """Another program takes and gives 3 GiB, again and again; the slot's memory comes back after 4 s."""
    return (HELD if at >= 4.0 else 0.0) - 3.0 * (at % 1.0)


def falling(at: float) -> float:
    """Another program takes more and more, and nothing is seen to come back."""
    return -2.0 * at


CURVES: dict[str, tuple[Curve, str, float]] = {
    "never": (lambda at: 0.0, "timeout", TIMEOUT_S),
    "at once": (lambda at: HELD, "recovered", 0.0),
    "late": (late, "recovered", 6.0),
    "slow": (slow, "recovered", 9.5),
    "pause": (pause, "recovered", 5.0),
    "sawtooth": (sawtooth, "recovered", 4.0),
    "falling": (falling, "timeout", TIMEOUT_S),
}


class Scripted(Machine):
    """Memory whose return follows a curve; `lists` are the processes that a card lists."""

    def __init__(self, curve: Curve, folder: Path = Path()) -> None:
        super().__init__()
        self.curve = curve
        self.folder = folder  # for a source that reads files
        self.ended_at: float | None = None
        self.is_listed_for_s = 0.0

    def free(self) -> int:
        if self.ended_at is not None:
            return self.total - HELD * GIB + int(self.curve(now() - self.ended_at) * GIB)
        return self.total - sum(self.running.values())

    def available(self) -> int | None:
        return self.free()

    def give_back(self, slot: SlotId, script: Script) -> None:
        if slot == sid("a") and slot in self.running:
            self.ended_at = now()
        super().give_back(slot, script)

    def lists(self) -> dict[int, int | None]:
        is_there = sid("a") in self.running
        if self.ended_at is not None:
            is_there = now() - self.ended_at < self.is_listed_for_s
        return {PID: HELD * GIB} if is_there else {}


class CardEngine(FakeEngine):
    """Knows its processes, as an engine of our own does; on a card its host pages say nothing."""

    async def held_bytes(self, slot: SlotId) -> int | None:
        return 90 * GIB  # what it has of the host's memory: not of this pool

    async def pids(self, slot: SlotId) -> list[int]:
        return [PID] if slot in self.machine.running and slot == sid("a") else []


@dataclass
class Reader:
    """A tool that takes `seconds` for each reading, and hangs from `hangs_at` on."""

    machine: Scripted
    seconds: float
    lists: bool
    hangs_at: float | None = None
    name: str = "scripted"

    async def read(self) -> CardReading:
        if self.hangs_at is not None and now() >= self.hangs_at:
            await asyncio.Event().wait()
        free, processes = self.machine.free(), self.machine.lists() if self.lists else None
        await asyncio.sleep(self.seconds)
        return CardReading((Device("card", self.machine.total, free),), processes)


class Amd(Amdgpu):
    """The driver's files under a folder, written anew before each reading."""

    def __init__(self, machine: Scripted, folder: Path) -> None:
        self.machine = machine
        self.card, self.kfd = folder / "drm/card0/device", folder / "kfd"
        for made in (self.card, self.kfd):
            made.mkdir(parents=True)
        (self.card / "mem_info_vram_total").write_text(str(machine.total))
        self.write()
        super().__init__(folder / "drm", self.kfd)

    def write(self) -> None:
        (self.card / "mem_info_vram_used").write_text(str(self.machine.total - self.machine.free()))
        for process in self.kfd.iterdir():
            shutil.rmtree(process)
        for pid, size in self.machine.lists().items():
            (self.kfd / str(pid)).mkdir()
            (self.kfd / str(pid) / "vram_51032").write_text(str(size))

    async def refresh(self) -> None:
        self.write()
        await super().refresh()

    def available(self) -> int | None:
        self.write()
        return super().available()


class PsutilOf(Psutil):
    """psutil of a machine whose memory is the script's."""

    def __init__(self, machine: Scripted) -> None:
        self.machine = machine

    def available(self) -> int | None:
        with mock.patch.object(psutil, "virtual_memory", return_value=mock.Mock(available=self.machine.free())):
            return super().available()


Make = Callable[[Scripted], MemorySource]
SOURCES: dict[str, tuple[Make, type[FakeEngine], float]] = {
    "host": (lambda m: m, FakeEngine, 0.0),
    "NVML": (lambda m: Nvidia(Reader(m, 0.002, lists=True), now), CardEngine, 0.01),
    "nvidia-smi": (lambda m: Nvidia(Reader(m, 0.3, lists=True), now), CardEngine, 0.7),
    "amdgpu": (lambda m: Amd(m, m.folder), CardEngine, 0.01),
    "psutil": (PsutilOf, FakeEngine, 0.0),
    "card without a list": (lambda m: Nvidia(Reader(m, 0.002, lists=False), now), CardEngine, 0.01),
}


async def swap(make: Make, engines: type[FakeEngine], machine: Scripted) -> tuple[str, float]:
    """Swap from a to b; the verdict and the seconds of the settle."""
    source, diary = make(machine), Diary()
    scripts = {n: Script(held=HELD * GIB if n == "a" else GIB, own_bytes=engines is FakeEngine) for n in "ab"}
    parts = {n: engines(n, machine, {sid(n): scripts[n]}) for n in "ab"}
    specs = [SlotSpec(sid(n)) for n in "ab"]
    coordinator = Coordinator(specs, parts, Rules(settle_timeout_s=TIMEOUT_S), source, observer=diary, now=now)
    await coordinator.start()
    for slot in "ab":
        async with leased(coordinator, sid(slot)):
            await asyncio.sleep(0.5)
    await coordinator.close()
    await source.close()
    settled = next(r.settled for r in diary.reports if r.settled is not None)
    return settled.verdict.value, settled.seconds


@pytest.mark.parametrize(("curve", "source"), [(c, s) for c in CURVES for s in SOURCES])
def test_each_curve_reaches_its_verdict_on_each_source(curve: str, source: str, tmp_path: Path):
    shape, verdict, seconds = CURVES[curve]
    make, engines, slower_s = SOURCES[source]
    said, took = run(swap(make, engines, Scripted(shape, tmp_path)))
    assert said == verdict
    assert seconds - 0.001 <= took <= seconds + slower_s + 0.05


def test_what_a_card_still_lists_is_not_gone_however_flat_its_memory_is():
    """Nothing is known of what it held: a plateau counts only once its process has left the list."""

    class Unknown(Reader):
        async def read(self) -> CardReading:
            reading = await super().read()
            return CardReading(reading.devices, dict.fromkeys(reading.processes or {}))

    machine = Scripted(lambda at: 0.0)
    machine.is_listed_for_s = 9.0

    class AlreadyThere(CardEngine):
        """Adopted: its start was not seen, so there is no drop to go by."""

        async def adopt(self) -> list[SlotId]:
            if self.name != "a":
                return []
            self.machine.take(sid("a"), HELD * GIB)
            return [sid("a")]

    said, took = run(swap(lambda m: Nvidia(Unknown(m, 0.002, lists=True), now), AlreadyThere, machine))
    assert said == "plateau"
    assert took == pytest.approx(9.0, abs=0.1)


def test_a_driver_that_hangs_in_the_middle_is_unreadable_after_two_seconds():
    machine = Scripted(late)
    said, took = run(swap(lambda m: Nvidia(Reader(m, 0.002, lists=True, hangs_at=4.0), now), CardEngine, machine))
    assert said == "unreadable"
    assert took < 6.0


def test_a_driver_that_hangs_is_a_warning_that_says_so(caplog: pytest.LogCaptureFixture):
    """It used to be one line at INFO without a reason."""
    machine = Scripted(late)
    run(swap(lambda m: Nvidia(Reader(m, 0.002, lists=True, hangs_at=0.7), now), CardEngine, machine))
    (said,) = [r for r in caplog.records if "memory of a: unreadable" in r.getMessage()]
    assert said.levelname == "WARNING"
    assert said.getMessage().endswith(": scripted has not answered for 2 s")


def test_a_source_that_is_off_waits_for_nothing():
    class Off(HostSource):
        name = "none"

    assert run(swap(lambda m: Off(), FakeEngine, Scripted(late))) == ("off", 0.0)
