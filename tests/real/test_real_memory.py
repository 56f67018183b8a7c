"""The memory of real engines: really gone before the next start, waited for when it is late, and only then."""

from __future__ import annotations

import re
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from real_kit import GIB, MIB, MemoryWatch, Start, assert_said_by, born_at, demo_engine, is_gone, llama, until

pytestmark = pytest.mark.real

BIG_MIB = 1024
# What other programs do to the machine's memory while a test looks at it.
NOISE_BYTES = 200 * MIB
LATE_S = 8.0
LATE_BYTES = 1536 * MIB


def logged_at(line: str) -> float:
    """The unix time of a line of the router's log."""
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def test_a_models_own_memory_is_really_gone_before_the_next_engine_starts(start: Start) -> None:
    """A gigabyte held with mmap off: verdict and seconds are in the log and in /metrics, both ways."""
    router = start({"big": llama("big", size=BIG_MIB, is_mapped=False, context=512), "blue": llama("blue")})
    assert_said_by("big", router.ask("big", words=2))
    big = router.engine("big")
    with MemoryWatch(big) as watch:
        assert_said_by("blue", router.ask("blue"))
    born = born_at(router.engine("blue"))

    freeing, settling = router.wait_log("big draining -> freeing"), router.wait_log("big freeing -> settling")
    cold, starting = router.wait_log("big settling -> cold"), router.wait_log("blue cold -> starting")
    moments = [logged_at(line) for line in (freeing, settling, cold, starting)]
    assert moments == sorted(moments)
    # The kernel counts the birth of a process in hundredths of a second, and we look as often.
    assert watch.gone_at <= born + 0.02
    assert moments[-1] <= born + 0.02
    rise = watch.available_at(born) - watch.available_at(moments[0])
    assert rise >= BIG_MIB * MIB - NOISE_BYTES

    (settle,) = router.settles()
    assert settle.slot == "big"
    assert settle.verdict in ("recovered", "enough")
    assert settle.came_back >= 0.8
    assert settle.held >= 1
    assert router.metric(f'memory_settle_total{{verdict="{settle.verdict}"}}') == 1
    assert router.metric("memory_settle_seconds_count") == 1
    assert router.metric("memory_settle_seconds_sum") == pytest.approx(settle.seconds, abs=0.01)
    assert router.swap_seconds("blue")["settling"] == pytest.approx(settle.seconds, abs=0.05)

    assert_said_by("big", router.ask("big", words=2))
    assert router.settles(2)[-1].verdict in ("recovered", "enough")
    assert router.metric("memory_settle_seconds_count") == 2


def test_a_memory_mapped_model_costs_no_settle_wait(start: Start) -> None:
    router = start({"big": llama("big", size=BIG_MIB, context=512), "blue": llama("blue")})
    for _ in range(2):
        router.ask("big", words=1)
        router.ask("blue", words=1)
        assert router.swap_seconds("blue")["settling"] < 0.1
    assert all(settle.verdict in ("recovered", "enough") for settle in router.settles(3))
    assert all(settle.held < 0.5 for settle in router.settles(3))


LINGERING = """
import os, sys
path, size, *command = sys.argv[1:]
with open(path, "wb") as file:
    for _ in range(int(size) // 2**20):
        file.write(os.urandom(4096) * 256)
os.execv(command[0], command)
"""


def test_memory_that_comes_back_8_s_after_the_exit_is_waited_for(start: Start, tmp_path: Path) -> None:
    """Shared memory that outlives the engine and is removed from outside, as a driver gives memory back late."""
    shared = Path("/dev/shm") / f"enginerouter-late-{tmp_path.name}"
    script = tmp_path / "lingering.py"
    script.write_text(LINGERING)
    late = [sys.executable, str(script), str(shared), str(LATE_BYTES), *demo_engine("late")]
    router = start(
        {
            "late": {"type": "generic_process", "start_cmd": late},
            "next": {"type": "generic_process", "start_cmd": demo_engine("next")},
        }
    )
    removed_at: list[float] = []

    def give_back() -> None:
        until(lambda: is_gone(late_process), "the end of the engine", timeout_s=60, every_s=0.01)
        time.sleep(LATE_S)
        removed_at.append(time.time())
        shared.unlink()

    try:
        router.ask("late")
        late_process = router.engine("late")
        giving_back = threading.Thread(target=give_back)
        giving_back.start()
        router.ask("next")
        giving_back.join()
    finally:
        shared.unlink(missing_ok=True)
    assert born_at(router.engine("next")) >= removed_at[0] - 0.02
    (settle,) = router.settles()
    assert (settle.slot, settle.verdict) == ("late", "recovered")
    assert LATE_S - 0.5 <= settle.seconds <= LATE_S + 1.5
    assert settle.came_back >= 0.9 * LATE_BYTES / GIB
    buckets = router.get("/metrics")
    assert re.search(r'^enginerouter_memory_settle_seconds_bucket\{le="8(\.0)?"\} 0', buckets, re.MULTILINE) or (
        settle.seconds <= 8
    )


def test_memory_that_is_back_already_costs_no_wait(start: Start) -> None:
    """Anonymous memory returns with the exit: less than 50 ms to see that it did."""
    engines = {
        name: {"type": "generic_process", "start_cmd": demo_engine(name, memory_mib=512)} for name in ("one", "two")
    }
    router = start(engines)
    router.ask("one")
    for name in ("two", "one", "two", "one"):
        router.ask(name)
        assert router.swap_seconds(name)["settling"] < 0.05
    assert all(settle.verdict in ("recovered", "enough") for settle in router.settles(4))
