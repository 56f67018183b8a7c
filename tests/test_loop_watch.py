"""The watch over the event loop, against blocks that are real and a machine that is busy."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loop_watch import LIMIT_S, loop_watch

BUSY = 6


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """More programs that compute than there are processors."""
    hogs = [subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"]) for _ in range(BUSY)]
    yield
    for hog in hogs:
        hog.kill()
        hog.wait()


def computes() -> None:
    began = time.thread_time()
    while time.thread_time() - began < 2 * LIMIT_S:
        hashlib.sha256(b"x" * 10_000).digest()


def sleeps() -> None:
    time.sleep(2 * LIMIT_S)


def waits_for_a_thread() -> None:
    done = threading.Event()
    threading.Timer(2 * LIMIT_S, done.set).start()
    done.wait()


def waits_for_a_program() -> None:
    subprocess.run(["sleep", str(2 * LIMIT_S)], check=True)


BLOCKS = pytest.mark.parametrize("blocks", [computes, sleeps, waits_for_a_thread, waits_for_a_program])


@BLOCKS
async def test_what_blocks_is_seen_and_named(blocks: Callable[[], None]) -> None:
    with loop_watch() as watch:
        asyncio.get_running_loop().call_soon(blocks)
        await asyncio.sleep(0.01)
    assert watch.longest_s > LIMIT_S
    assert blocks.__name__ in watch.culprit
    with pytest.raises(AssertionError, match="held up for"):
        watch.assert_never_blocked()


@pytest.mark.slow
@BLOCKS
async def test_a_busy_machine_hides_no_block(blocks: Callable[[], None], busy_machine: None) -> None:
    await test_what_blocks_is_seen_and_named(blocks)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="only Linux counts waits for a processor")
async def test_a_busy_machine_blocks_nobody(busy_machine: None) -> None:
    """Much work in small pieces, here and in threads, while others want the processors, too."""
    late = 0.0
    with loop_watch() as watch:
        for _ in range(300):
            began = time.perf_counter()
            sum(range(20_000))
            await asyncio.to_thread(sum, range(20_000))
            late = max(late, time.perf_counter() - began)
    print(f"the clock alone would have said up to {1000 * late:.0f} ms")
    watch.assert_never_blocked()
