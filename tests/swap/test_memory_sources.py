"""The sources of memory against what real tools print (`tests/recorded`), and which of them is picked."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from enginerouter.errors import ConfigError
from enginerouter.swap.amdgpu import Amdgpu
from enginerouter.swap.held import device_bytes, is_off_devices, own_bytes
from enginerouter.swap.memory import STALE_AFTER_S, Device, Meminfo, NoSource, Psutil, host_source
from enginerouter.swap.nvidia import CardReading, Nvidia, Nvml, Smi, parse_cards, parse_processes
from enginerouter.swap.pick import Choice, Picked, Survey, choose
from swap.fake_nvml import Card, FakeNvml, Memory, ProcessInfo
from swap.fakes import GIB, MIB
from swap.virtual_time import now, virtual

RECORDED = Path(__file__).resolve().parents[1] / "recorded" / "nvidia-smi"
DISCRETE = Device("NVIDIA H200", 141 * GIB, 140 * GIB)
UNIFIED = Device("NVIDIA GB10", is_unified=True, problem="reports [N/A]")
BROKEN = Device("NVIDIA A100", problem="reports [Insufficient Permissions]")
RADEON = Device("AMD card 1002:744c", 24 * GIB, 23 * GIB)
APU = Device("AMD card 1002:1586", GIB // 2, 100 * GIB, is_unified=True)


# --- nvidia-smi


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def test_a_card_without_memory_of_its_own_says_so():
    assert parse_cards(recorded("gb10.csv")) == (UNIFIED,)


def test_a_card_whose_memory_may_not_be_read_is_not_taken_for_a_unified_one():
    (card,) = parse_cards(recorded("mig-container.csv"))
    assert (card.is_unified, card.is_readable) == (False, False)
    assert card.problem == "reports [Insufficient Permissions]"


def test_eight_cards_are_eight_devices_in_mib():
    cards = parse_cards(recorded("titan-x-8.csv"))
    assert len(cards) == 8
    assert cards[0] == Device("GeForce GTX TITAN X", 12206 * MIB, (12206 - 802) * MIB)


def test_free_is_what_the_card_says_and_not_total_less_used():
    """The driver keeps some for itself, and says so in neither of the two."""
    (card,) = parse_cards("NVIDIA H200, 143771, 1, 143152\n")
    assert card.available_bytes == 143152 * MIB


@pytest.mark.parametrize("word", ["ERR!", "[Unknown Error]", "[GPU is lost]", ""])
def test_words_in_place_of_a_number_are_a_problem_with_that_name(word: str):
    (card,) = parse_cards(f"NVIDIA GeForce RTX 3090, 24576, 10, {word}")
    assert not card.is_readable
    assert card.problem == f"reports {word}"


def test_a_name_with_a_comma_and_words_around_the_lines_do_no_harm():
    cards = parse_cards("Warning: infoROM is corrupted at gpu 0000:65:00.0\nCard, special, 100, 40, 60\n\n")
    assert cards == (Device("Card, special", 100 * MIB, 60 * MIB),)


def test_processes_are_added_up_over_cards_and_may_be_of_unknown_size():
    assert parse_processes("4711, 100\n4711, 50\n4712, 1\n") == {4711: 150 * MIB, 4712: MIB}
    assert parse_processes(recorded("apps-wddm.csv")) == {2936: None, 2964: None}
    assert parse_processes("") == {}
    assert parse_processes("No running processes found\n") == {}


def fake_smi(folder: Path, body: str) -> Smi:
    """A `nvidia-smi` of our own: a Python script that sees the query as `query`."""
    script = folder / "nvidia-smi"
    script.write_text(f"#!{sys.executable}\nimport sys, time\nquery = sys.argv[1]\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return Smi([str(script)])


async def test_nvidia_smi_is_run_and_read(tmp_path: Path):
    body = "print('NVIDIA H200, 1000, 400, 600' if 'gpu=' in query else '77, 400')"
    reading = await fake_smi(tmp_path, body).read()
    assert reading == CardReading((Device("NVIDIA H200", 1000 * MIB, 600 * MIB),), {77: 400 * MIB})


async def test_a_driver_that_is_not_loaded_is_a_problem_in_its_own_words(tmp_path: Path):
    text = recorded("no-driver.txt")
    reading = await fake_smi(tmp_path, f"print({text!r})\nsys.exit(9)").read()
    assert "couldn't communicate with the NVIDIA driver" in reading.problem
    assert not reading.devices


async def test_a_command_that_is_gone_is_a_problem_and_no_crash(tmp_path: Path):
    assert "cannot be run" in (await Smi([str(tmp_path / "none")]).read()).problem


async def test_an_nvidia_smi_that_hangs_is_ended_and_reading_it_never_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("enginerouter.swap.nvidia.TOOL_TIMEOUT_S", 0.5)
    reader = fake_smi(tmp_path, "time.sleep(60)")
    began_at = time.monotonic()
    assert "did not answer within 0.5 s" in (await reader.read()).problem
    assert time.monotonic() - began_at < 5.0
    assert not reader._unkillable


async def test_a_wrapper_of_nvidia_smi_that_hangs_is_ended_with_its_child_and_leaves_no_traceback(tmp_path: Path):
    """`check` used to leave the wrapper's child running, and ended in two tracebacks of a closed event loop."""
    pid, smi = tmp_path / "pid", tmp_path / "bin/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(f"#!/bin/sh\nsleep 60 &\necho $! >> {pid}\nwait\n")
    smi.chmod(0o755)
    script = (
        "import asyncio, enginerouter.swap.nvidia as nvidia\n"
        "nvidia.TOOL_TIMEOUT_S = 0.5\n"
        "from enginerouter.swap.pick import Picked\n"
        "async def main():\n"
        "    source = Picked('auto')\n"
        "    await source.start()\n"
        "    await source.close()\n"
        "    print(source.name, *source.warnings)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PATH": f"{smi.parent}:/usr/bin:/bin"}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=-1, stderr=-1, env=environment)
    out, errors = await asyncio.wait_for(process.communicate(), 20)
    assert errors.decode() == ""
    assert out.decode().startswith(f"{host_source().name} NVIDIA cards cannot be asked: `nvidia-smi` did not answer")
    children = [int(line) for line in pid.read_text().split()]
    assert len(children) == 2
    for child in children:
        assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]


@virtual
async def test_a_tool_that_hangs_costs_a_swap_its_wait_once_and_not_at_each_step():
    reader = Script(lambda at: 5)
    source = Nvidia(reader, now)
    await source.start()
    reader.seconds = 60.0
    began_at = now()
    for _ in range(8):
        await source.refresh()
    assert now() - began_at == pytest.approx(STALE_AFTER_S)
    assert "has not answered for" in source.problem
    await source.close()


@virtual
async def test_a_driver_that_hangs_from_the_start_is_named_and_not_called_unread():
    source = Nvidia(Script(lambda at: 5, seconds=600.0), now)
    await source.start()
    assert source.problem == "script has not answered within 13 s"
    await source.close()


async def test_where_nvml_cannot_be_used_nvidia_smi_is_asked_and_that_is_said(tmp_path: Path):
    smi = fake_smi(tmp_path, "print('NVIDIA H200, 1000, 400, 600' if 'gpu=' in query else '77, 400')")
    source = Picked("auto", readers=lambda: [Nvml(FakeNvml(init_error=9)), smi], amd=no_amd)
    await source.start()
    assert (source.name, source.available()) == ("nvidia (nvidia-smi)", 600 * MIB)
    assert source.warnings == ("NVML: Driver Not Loaded; nvidia (nvidia-smi) is read",)
    await source.close()


async def test_where_neither_can_be_used_both_reasons_are_told(tmp_path: Path):
    smi = fake_smi(tmp_path, "print('no driver here')\nsys.exit(9)")
    source = Picked("auto", readers=lambda: [Nvml(FakeNvml(init_error=9)), smi], amd=no_amd)
    await source.start()
    (warning,) = source.warnings
    assert "NVML: Driver Not Loaded; no driver here (`nvidia-smi`)" in warning
    assert source.name == host_source().name


async def test_closing_ends_the_command_that_is_being_read(tmp_path: Path):
    pids = tmp_path / "pids"
    body = f"import os\nopen({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\ntime.sleep(60)"
    source = Nvidia(fake_smi(tmp_path, body))
    await source.refresh(within_s=0.01)
    async with asyncio.timeout(10.0):
        while not pids.exists() or pids.read_text().count("\n") < 2:
            await asyncio.sleep(0.01)
    await source.close()
    for pid in map(int, pids.read_text().split()):
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


# --- NVML


async def test_nvml_gives_free_bytes_and_the_processes_of_both_lists():
    card = Card("NVIDIA H200", Memory(1000, 600), [ProcessInfo(7, 300), ProcessInfo(8, None)], [ProcessInfo(7, 300)])
    reading = await Nvml(FakeNvml(card, Card("two", Memory(100, 50), [ProcessInfo(7, 5)]))).read()
    assert reading.devices == (Device("NVIDIA H200", 1000, 600), Device("two", 100, 50))
    assert reading.processes == {7: 305, 8: None}


async def test_nvml_on_a_unified_machine_says_that_the_host_is_the_pool():
    (card,) = (await Nvml(FakeNvml(Card("NVIDIA GB10", 3))).read()).devices
    assert card == Device("NVIDIA GB10", is_unified=True, problem="reports Not Supported")


async def test_nvml_in_a_mig_container_says_that_it_may_not():
    reading = await Nvml(FakeNvml(Card("NVIDIA A100", 4, 4, 4))).read()
    assert reading.devices == (Device("NVIDIA A100", problem="reports Insufficient Permissions"),)
    assert reading.processes is None


async def test_nvml_is_begun_again_once_the_driver_is_back():
    nvml = FakeNvml(Card("c", Memory(10, 5)), init_error=9)
    reader = Nvml(nvml)
    assert (await reader.read()).problem == "NVML: Driver Not Loaded"
    nvml.init_error = None
    assert (await reader.read()).devices[0].available_bytes == 5
    await reader.read()
    assert nvml.inits == 2


async def test_a_driver_that_hangs_makes_memory_unreadable_and_stops_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("enginerouter.swap.nvidia.STALE_AFTER_S", 0.2)
    nvml = FakeNvml(Card("c", Memory(10, 5)))
    source = Nvidia(Nvml(nvml))
    await source.start()
    assert source.available() == 5
    nvml.gate.clear()
    began_at = time.monotonic()
    await source.refresh(within_s=0.3)
    assert time.monotonic() - began_at < 1.0
    assert source.available() is None
    assert "has not answered for" in source.problem
    threads = threading.active_count()
    await source.refresh(within_s=0.1)
    assert threading.active_count() == threads  # no second call into it
    began_at = time.monotonic()
    await source.refresh()
    assert time.monotonic() - began_at < 0.1  # it is known to hang: a swap has many steps
    nvml.gate.set()
    async with asyncio.timeout(5.0):
        while source.available() != 5:
            await source.refresh()
            await asyncio.sleep(0.01)
    assert not source.problem
    await source.close()


# --- the polling


class Script:
    """A reader in virtual time: each reading takes `seconds` and sees what is so when it begins."""

    name = "script"

    def __init__(self, free: Callable[[float], int | None], seconds: float = 0.05) -> None:
        self.free = free
        self.seconds = seconds
        self.began: list[float] = []

    async def read(self) -> CardReading:
        self.began.append(now())
        free = self.free(now())
        await asyncio.sleep(self.seconds)
        if free is None:
            return CardReading(problem="script: nothing")
        return CardReading((Device("card", 100 * GIB, free),), {})


@virtual
async def test_nothing_is_read_while_nobody_asks():
    reader = Script(lambda at: 5)
    source = Nvidia(reader, now)
    await source.start()
    await asyncio.sleep(100.0)
    assert len(reader.began) == 1
    assert source.available() is None  # and what was read then is none any more
    await source.close()


@virtual
async def test_a_refreshed_reading_has_seen_what_happened_before_it_was_asked_for():
    reader = Script(lambda at: int(at * 1000), seconds=1.0)
    source = Nvidia(reader, now)
    first = asyncio.ensure_future(source.refresh())
    await asyncio.sleep(0.5)
    await source.refresh()  # the reading under way began 0.5 s ago
    assert source.available() == 1000
    await first
    assert reader.began == [0.0, 1.0]
    await source.close()


@virtual
async def test_many_who_ask_at_once_share_one_reading():
    reader = Script(lambda at: 5)
    source = Nvidia(reader, now)
    await asyncio.gather(*(source.refresh() for _ in range(20)))
    assert len(reader.began) == 1
    await source.close()


@virtual
async def test_a_reading_older_than_two_seconds_is_none():
    source = Nvidia(Script(lambda at: 5), now)
    await source.start()
    await asyncio.sleep(STALE_AFTER_S - 0.1)
    assert source.available() == 5
    await asyncio.sleep(0.2)
    assert source.available() is None
    await source.close()


# --- amdgpu


def amd_card(root: Path, name: str, *, vram: tuple[int, int], gtt: tuple[int, int], metrics: bytes | None) -> None:
    device = root / name / "device"
    device.mkdir(parents=True)
    for key, size in zip(("vram_total", "vram_used", "gtt_total", "gtt_used"), (*vram, *gtt), strict=True):
        (device / f"mem_info_{key}").write_text(f"{size}\n")
    (device / "vendor").write_text("0x1002\n")
    (device / "device").write_text("0x744c\n")
    if metrics is not None:
        (device / "gpu_metrics").write_bytes(metrics)
    (root / f"{name}-DP-1").mkdir()


def meminfo(folder: Path, available: int) -> Meminfo:
    path = folder / "meminfo"
    path.write_text(f"MemAvailable: {available // 1024} kB\n")
    return Meminfo(path)


CARD_METRICS = bytes([120, 0, 1, 3])
APU_METRICS = bytes([8, 1, 3, 0])


def test_a_discrete_amd_card_is_read_from_its_files(tmp_path: Path):
    amd_card(tmp_path, "card1", vram=(24 * GIB, 20 * GIB), gtt=(32 * GIB, 0), metrics=CARD_METRICS)
    source = Amdgpu(tmp_path, tmp_path / "none")
    assert source.devices() == (Device("AMD card 1002:744c", 24 * GIB, 4 * GIB),)
    assert (source.available(), source.problem, source.counts_host_pages) == (4 * GIB, "", False)
    assert source.processes() is None


@pytest.mark.parametrize("metrics", [APU_METRICS, None])
def test_an_apu_is_known_by_its_metrics_or_its_small_carve_out(tmp_path: Path, metrics: bytes | None):
    """The figures of a Strix Halo: half a GiB of VRAM, the rest through the GTT."""
    amd_card(tmp_path, "card0", vram=(536870912, 155189248), gtt=(118111600640, 18 * MIB), metrics=metrics)
    source = Amdgpu(tmp_path, tmp_path / "none", meminfo(tmp_path, 100 * GIB))
    (device,) = source.devices()
    assert device.is_unified
    # Asked for by name it counts the GTT too, but never more than the host has.
    assert source.available() == 536870912 - 155189248 + 100 * GIB


def test_an_apu_whose_carve_out_is_the_larger_part_is_a_card(tmp_path: Path):
    """The host does not see what is in it."""
    amd_card(tmp_path, "card0", vram=(96 * GIB, GIB), gtt=(16 * GIB, 0), metrics=APU_METRICS)
    assert Amdgpu(tmp_path, tmp_path / "none").available() == 95 * GIB


def test_beside_a_card_the_apu_is_not_part_of_the_pool(tmp_path: Path):
    amd_card(tmp_path, "card0", vram=(GIB // 2, 0), gtt=(64 * GIB, 0), metrics=APU_METRICS)
    amd_card(tmp_path, "card1", vram=(24 * GIB, 0), gtt=(32 * GIB, 0), metrics=CARD_METRICS)
    assert Amdgpu(tmp_path, tmp_path / "none", meminfo(tmp_path, GIB)).available() == 24 * GIB


def test_the_compute_driver_lists_what_each_process_has(tmp_path: Path):
    amd_card(tmp_path, "card1", vram=(24 * GIB, 20 * GIB), gtt=(32 * GIB, 0), metrics=CARD_METRICS)
    for pid, name, size in ((4711, "vram_51032", "1000"), (4711, "vram_51033", "24"), (4712, "vram_51032", "")):
        (tmp_path / "kfd" / str(pid)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "kfd" / str(pid) / name).write_text(size)
    assert Amdgpu(tmp_path, tmp_path / "kfd").processes() == {4711: 1024, 4712: None}


def test_a_card_whose_kind_its_memory_tells_is_not_woken_for_its_metrics(tmp_path: Path):
    """Reading `gpu_metrics` wakes a card on older kernels; here the file cannot be read, and is not missed."""
    amd_card(tmp_path, "card1", vram=(48 * GIB, 0), gtt=(32 * GIB, 0), metrics=None)
    (tmp_path / "card1/device/gpu_metrics").mkdir()  # whoever opens it gets an error
    assert [d.is_unified for d in Amdgpu(tmp_path, tmp_path / "none").devices()] == [False]


async def test_amd_cards_are_looked_for_in_a_thread():
    threads: list[threading.Thread] = []

    def find() -> Amdgpu:
        threads.append(threading.current_thread())
        return no_amd()

    await Picked("auto", readers=list, amd=find).start()
    assert threads != [threading.main_thread()]


def test_a_machine_without_amd_cards_has_none(tmp_path: Path):
    source = Amdgpu(tmp_path, tmp_path)
    assert (source.available(), source.devices()) == (None, ())
    assert source.problem == "no card was found"


# --- what is held


def test_what_a_slot_holds_is_what_the_cards_list_for_its_tree():
    processes = {7: 100, 8: 20, 9: 5000}
    assert device_bytes([7, 8, 1], processes) == 120
    assert own_bytes(999, [7], processes, counts_host_pages=False) == 100
    assert own_bytes(999, [7], processes, counts_host_pages=True) == 999


def test_what_the_cards_do_not_say_is_unknown_and_not_nothing():
    assert device_bytes([7], None) is None
    assert device_bytes([7], {9: 5}) is None  # Vulkan, or pids of another namespace
    assert device_bytes([7, 8], {7: 5, 8: None}) is None


def test_a_process_that_the_cards_still_list_is_not_gone():
    assert not is_off_devices([7], {7: None})
    assert is_off_devices([7], {8: 5})
    assert is_off_devices([7], None)


# --- what is picked


@pytest.mark.parametrize(
    ("survey", "kind", "why"),
    [
        (Survey(), "host", "no discrete card was found"),
        (Survey(nvidia=(DISCRETE,)), "nvidia", "discrete cards: NVIDIA H200"),
        (Survey(nvidia=(DISCRETE,), amd=(APU,)), "nvidia", "discrete cards: NVIDIA H200"),
        (Survey(amd=(RADEON,)), "amd", "discrete cards: AMD card 1002:744c"),
        (Survey(nvidia=(UNIFIED,)), "host", "the host's memory is the pool: NVIDIA GB10 reports [N/A]"),
        (Survey(amd=(APU,)), "host", "the host's memory is the pool: AMD card 1002:1586"),
        (Survey(nvidia=(UNIFIED,), amd=(RADEON,)), "amd", "discrete cards: AMD card 1002:744c"),
    ],
)
def test_auto_takes_nvidia_cards_before_amd_cards_before_the_host_and_says_why(survey: Survey, kind: str, why: str):
    assert choose("auto", survey) == Choice(kind, why)


def test_several_cards_are_one_pool_with_a_warning():
    for survey in (Survey(nvidia=(DISCRETE, DISCRETE)), Survey(nvidia=(DISCRETE,), amd=(RADEON,))):
        (warning,) = choose("auto", survey).warnings
        assert "run one router for each card" in warning


def test_a_card_that_cannot_be_read_leaves_the_host_with_a_warning():
    choice = choose("auto", Survey(nvidia=(BROKEN,)))
    assert (choice.kind, len(choice.warnings)) == ("host", 1)
    assert "NVIDIA A100 reports [Insufficient Permissions]" in choice.warnings[0]
    assert choose("auto", Survey(nvidia_problem="NVML: Driver Not Loaded")).warnings


@pytest.mark.parametrize(
    ("wanted", "survey", "said"),
    [
        ("nvidia", Survey(amd=(RADEON,)), "no NVIDIA card"),
        ("nvidia", Survey(nvidia=(UNIFIED,)), "NVIDIA GB10 reports [N/A]"),
        ("nvidia", Survey(nvidia=(BROKEN,)), "[Insufficient Permissions]"),
        ("nvidia", Survey(nvidia_problem="NVML: Driver Not Loaded"), "Driver Not Loaded"),
        ("amd", Survey(nvidia=(DISCRETE,)), "no AMD card"),
    ],
)
def test_a_source_asked_for_by_name_and_absent_is_an_error_that_names_it(wanted: str, survey: Survey, said: str):
    with pytest.raises(ConfigError) as caught:
        choose(wanted, survey)
    (problem,) = caught.value.problems
    assert problem.path == "memory_source"
    assert said in problem.message


def test_amd_asked_for_by_name_may_be_an_apu():
    assert choose("amd", Survey(amd=(APU,))).kind == "amd"


def no_amd() -> Amdgpu:
    return Amdgpu(Path("/nonexistent"), Path("/nonexistent"))


async def test_the_picked_source_is_read_and_closed():
    nvml = FakeNvml(Card("NVIDIA H200", Memory(1000, 600), [ProcessInfo(7, 300)]))
    source = Picked("auto", readers=lambda: [Nvml(nvml)], amd=no_amd)
    assert source.available() is not None  # the host's, until it is started
    await source.start()
    assert (source.name, source.why) == ("nvidia (NVML)", "discrete cards: NVIDIA H200")
    assert (source.available(), source.processes(), source.counts_host_pages) == (600, {7: 300}, False)
    assert [d.name for d in source.devices()] == ["NVIDIA H200"]
    await source.close()


async def test_on_a_unified_machine_the_host_is_read_and_the_card_is_shown():
    source = Picked("auto", readers=lambda: [Nvml(FakeNvml(Card("NVIDIA GB10", 3)))], amd=no_amd)
    await source.start()
    assert source.name == host_source().name
    assert source.counts_host_pages
    assert "NVIDIA GB10" in source.why
    assert [d.name for d in source.devices()] == ["NVIDIA GB10"]
    await source.close()


async def test_every_source_can_be_asked_for():
    for wanted, kind in (("none", NoSource), ("psutil", Psutil), ("meminfo", Meminfo)):
        source = Picked(wanted)
        await source.start()
        assert (source.name, source.why) == (kind.name, "asked for")
    assert Picked("none").available() is None
    assert (Picked("psutil").available() or 0) > 0
    assert (Picked("auto").available() or 0) > 0


async def test_nvidia_asked_for_where_no_tool_is_there_is_an_error():
    with pytest.raises(ConfigError, match=r"'nvidia' is asked for, .*neither nvidia-smi nor the extra `gpu`"):
        await Picked("nvidia", readers=list, amd=no_amd).start()
