from __future__ import annotations

import asyncio
import time

import pytest

from swap.virtual_time import Deadlock, Spinning, now, run, virtual


def test_an_hour_of_waiting_takes_no_time():
    began = time.perf_counter()

    async def wait() -> float:
        await asyncio.sleep(3600)
        return now()

    assert run(wait()) == pytest.approx(3600)
    assert time.perf_counter() - began < 1


def test_everybody_waiting_without_a_timer_is_a_deadlock():
    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run(wait())


def test_turning_while_time_stands_still_is_noticed():
    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Spinning):
        run(spin())


@virtual
async def test_timers_fire_in_their_order():
    seen: list[float] = []
    async with asyncio.TaskGroup() as group:
        for delay in (0.3, 0.1, 0.2):

            async def note(delay: float = delay) -> None:
                await asyncio.sleep(delay)
                seen.append(delay)

            group.create_task(note())
    assert seen == [0.1, 0.2, 0.3]
