"""Sleep instead of stop, against a server that speaks and lies like vLLM."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import pytest
from boxes import SCRIPTS, SLOT, Box, is_alive

from enginerouter.config.engines import Profile
from enginerouter.engines import ports
from enginerouter.engines.process import GenericProcessEngine
from enginerouter.engines.sleeping import state_path
from enginerouter.slots import SlotId
from llama import free_port

MIB = 1 << 20


def sleepy(box: Box, lie: str = "", *more: str, **settings: object) -> GenericProcessEngine:
    command = (sys.executable, "-I", str(SCRIPTS / "sleepy_server.py"), "--port", "{port}", "--lie", lie, *more)
    given = {"sleep_path": "/sleep?level=1", "wake_path": "/wake_up", "stop_timeout_s": 1.0}
    return box.engine(*command, **(given | settings))


async def calls(engine: GenericProcessEngine, slot: SlotId = SLOT) -> list[str]:
    return [line.removeprefix("call ") for line in await engine.log_tail(slot) if line.startswith("call ")]


async def asleep(box: Box, lie: str = "", *more: str, **settings: object) -> tuple[GenericProcessEngine, int]:
    """An engine whose slot has been freed, and the pid that it had."""
    engine = sleepy(box, lie, *more, **settings)
    await engine.start(SLOT)
    pid = engine.pid(SLOT)
    assert pid is not None
    await engine.stop(SLOT)
    return engine, pid


def test_the_state_lies_beside_the_sleep_path() -> None:
    assert state_path("/sleep?level=1") == "/is_sleeping"
    assert state_path("/prefix/sleep") == "/prefix/is_sleeping"


async def test_a_sleeper_that_has_closed_its_port_is_no_crash_and_is_restarted_when_it_is_wanted(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.engines.children.LOOK_EVERY_S", 0.02)
    engine, pid = await asleep(box)
    port = int(engine.address(SLOT).rpartition(":")[2])
    os.kill(pid, signal.SIGUSR1)
    while ports.listeners(port):
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.15)  # several looks
    assert engine.asleep() == [SLOT]
    assert box.crashes.empty()
    await engine.start(SLOT)
    assert engine.pid(SLOT) != pid
    assert not is_alive(pid)


@pytest.mark.parametrize("lie", ["", "no-state"])
async def test_freeing_sleeps_and_starting_wakes_the_same_process(box: Box, lie: str) -> None:
    engine, pid = await asleep(box, lie)
    assert is_alive(pid)
    assert await calls(engine) == ["/sleep?level=1 asleep=False"]
    await engine.stop(SLOT)  # what sleeps is freed already
    await engine.check(SLOT, ())
    await engine.start(SLOT)
    assert engine.pid(SLOT) == pid
    assert (await calls(engine))[1:] == ["/wake_up asleep=True"]
    await engine.stop(SLOT)
    assert is_alive(pid)
    await engine.end(SLOT)
    assert not is_alive(pid)


async def test_what_a_sleeping_process_keeps_is_told(box: Box) -> None:
    engine = sleepy(box, "", "--memory-mb", "96", "--kept-mb", "32")
    await engine.start(SLOT)
    awake = await engine.held_bytes(SLOT)
    await engine.stop(SLOT)
    kept = await engine.held_bytes(SLOT)
    assert awake is not None
    assert kept is not None
    assert awake - kept > 60 * MIB
    assert kept > 32 * MIB
    await engine.end(SLOT)
    assert await engine.held_bytes(SLOT) == 0


@pytest.mark.parametrize("lie", ["sleep-fails", "sleep-lies", "sleep-hangs"])
async def test_an_engine_that_does_not_sleep_is_stopped(box: Box, lie: str, caplog: pytest.LogCaptureFixture) -> None:
    """A 200 is not yet sleep: `is_sleeping` says."""
    began_at = time.monotonic()
    engine, pid = await asleep(box, lie)
    assert not is_alive(pid)
    assert engine.pid(SLOT) is None
    assert time.monotonic() - began_at < 5
    assert "does not sleep and is stopped" in caplog.text
    assert box.crashes.empty()


@pytest.mark.parametrize("lie", ["wake-fails", "wake-lies", "wake-dies"])
async def test_an_engine_that_does_not_wake_is_restarted(box: Box, lie: str, caplog: pytest.LogCaptureFixture) -> None:
    engine, pid = await asleep(box, lie)
    await engine.start(SLOT)
    assert engine.pid(SLOT) not in (pid, None)
    assert not is_alive(pid)
    assert "does not wake and is restarted" in caplog.text
    assert box.crashes.empty()


async def test_one_that_dies_in_its_sleep_is_told_at_once_and_started_anew(box: Box) -> None:
    engine, pid = await asleep(box)
    os.kill(pid, signal.SIGKILL)
    slot, error = await asyncio.wait_for(box.crashes.get(), 5)
    assert slot == SLOT
    assert "SIGKILL" in error.message
    assert "while it slept" in error.message
    await engine.start(SLOT)
    assert engine.pid(SLOT) not in (pid, None)
    assert box.crashes.empty()


async def test_one_that_dies_after_it_woke_is_a_crash(box: Box) -> None:
    engine, pid = await asleep(box)
    await engine.start(SLOT)
    os.kill(pid, signal.SIGKILL)
    slot, _ = await asyncio.wait_for(box.crashes.get(), 5)
    assert slot == SLOT


async def test_a_start_that_failed_is_stopped_not_put_to_sleep(box: Box) -> None:
    engine = sleepy(box, "", ready_path="/nothing", start_timeout_s=0.5)
    with pytest.raises(Exception, match="not ready within"):
        await engine.start(SLOT)
    pid = engine.pid(SLOT)
    assert pid is not None
    await engine.stop(SLOT)
    assert not is_alive(pid)


@pytest.mark.parametrize("lie", ["", "no-state"])
async def test_the_next_router_knows_that_it_sleeps(box: Box, lie: str) -> None:
    """`/health` is 200 in sleep: an adopted one would be taken for ready."""
    engine, pid = await asleep(box, lie)
    await engine.close()
    later = sleepy(box, lie)
    assert await later.adopt() == []
    assert later.pid(SLOT) == pid
    await later.start(SLOT)
    assert later.pid(SLOT) == pid
    assert (await calls(later))[-1] == "/wake_up asleep=True"


async def test_at_one_address_a_sleeping_profile_makes_way_for_another(box: Box) -> None:
    (box.folder / "m").touch()
    profiles = {name: Profile(id=name, model=box.folder / "m") for name in "pq"}
    p, q = SlotId("llama", "p"), SlotId("llama", "q")
    engine = sleepy(box, "", "--name", "{id}", base_url=f"http://127.0.0.1:{free_port()}", profiles=profiles)
    await engine.start(p)
    await engine.stop(p)
    pid = engine.pid(p)
    assert pid is not None
    await engine.check(q, ())
    await engine.start(q)
    assert not is_alive(pid)


async def test_at_addresses_of_their_own_profiles_sleep_side_by_side(box: Box) -> None:
    (box.folder / "m").touch()
    profiles = {name: Profile(id=name, model=box.folder / "m") for name in "pq"}
    p, q = SlotId("llama", "p"), SlotId("llama", "q")
    engine = sleepy(box, "", "--name", "{id}", profiles=profiles)
    for slot in (p, q):
        await engine.start(slot)
        await engine.stop(slot)
    pids = [engine.pid(p), engine.pid(q)]
    for slot in (p, q):
        await engine.start(slot)
        await engine.stop(slot)
    assert [engine.pid(p), engine.pid(q)] == pids
