"""A unit of a real `systemd --user`: started, watched, stopped, found again."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from boxes import is_alive
from unit_boxes import UNIT_SLOT as SLOT
from unit_boxes import UnitBox

from enginerouter.engines.ports import free_port, holder_of
from enginerouter.errors import PortTaken, StartFailed, StartTimedOut
from loop_watch import loop_watch
from user_manager import FAKE_ENGINE, UserManager

pytestmark = pytest.mark.real
ALWAYS = {"Restart": "always", "RestartSec": "0.1"}


@pytest.fixture
async def units(tmp_path: Path) -> AsyncIterator[UnitBox]:
    box = UnitBox(tmp_path)
    yield box
    await box.close()


async def until(is_so: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not await asyncio.to_thread(is_so):
            await asyncio.sleep(0.02)


async def test_a_unit_is_started_measured_stopped_and_started_again(manager: UserManager, units: UnitBox) -> None:
    port = free_port()
    unit = manager.fake("plain", port, "--memory-mb", "64", **ALWAYS)
    engine = units.engine(unit, port)
    for _ in range(2):
        await engine.check(SLOT, ())
        with loop_watch() as watch:
            await engine.start(SLOT)
        watch.assert_never_blocked()
        assert await engine.stopped_state(SLOT) is None
        held, pid = await engine.held_bytes(SLOT), manager.pid(unit)
        assert held is not None
        assert 60 * 2**20 < held < 120 * 2**20
        await engine.stop(SLOT)
        assert not is_alive(pid)
        assert manager.show(unit, "ActiveState") == "inactive"
        assert await engine.held_bytes(SLOT) == 0
    assert units.crashes.empty()


async def test_a_unit_that_always_restarts_stays_down_after_our_stop(manager: UserManager, units: UnitBox) -> None:
    port = free_port()
    unit = manager.fake("always", port, **ALWAYS)
    engine = units.engine(unit, port)
    await engine.start(SLOT)
    await engine.stop(SLOT)
    await asyncio.sleep(0.6)
    assert manager.show(unit, "ActiveState") == "inactive"
    assert units.crashes.empty()


async def test_many_swaps_in_a_row_never_meet_systemds_start_limit(manager: UserManager, units: UnitBox) -> None:
    port = free_port()
    engine = units.engine(manager.fake("often", port), port)
    for _ in range(8):
        await engine.start(SLOT)
        await engine.stop(SLOT)


async def test_a_killed_unit_is_a_crash_at_once_and_the_one_systemd_brings_back_is_used(
    manager: UserManager, units: UnitBox
) -> None:
    port = free_port()
    unit = manager.fake("killed", port, "--delay", "0.3", Restart="always", RestartSec="0.5")
    engine = units.engine(unit, port)
    await engine.start(SLOT)
    before = time.monotonic()
    os.kill(manager.pid(unit), signal.SIGKILL)
    error = await units.crash()
    assert time.monotonic() - before < 1
    assert "SIGKILL" in error.message
    assert unit in error.message
    assert await engine.stopped_state(SLOT) is not None

    await engine.start(SLOT)  # systemd is about to start it, or has
    assert manager.show(unit, "NRestarts") == "1"
    assert await engine.stopped_state(SLOT) is None
    await asyncio.sleep(0.3)
    assert units.crashes.empty()
    os.kill(manager.pid(unit), signal.SIGKILL)
    await units.crash()
    await engine.stop(SLOT)
    await asyncio.sleep(0.8)
    assert manager.show(unit, "ActiveState") == "inactive"


async def test_a_unit_that_ends_by_itself_is_a_crash(manager: UserManager, units: UnitBox) -> None:
    port = free_port()
    unit = manager.fake("dying", port, "--die-after", "0.5")
    engine = units.engine(unit, port)
    await engine.start(SLOT)
    error = await units.crash()
    assert "exited with status 1 while it served" in error.message
    await engine.stop(SLOT)


async def test_a_unit_that_stays_active_when_its_engine_is_gone_is_a_crash(
    manager: UserManager, units: UnitBox
) -> None:
    port = free_port()
    command = shlex.join([sys.executable, "-I", "-S", str(FAKE_ENGINE), "--port", str(port)])
    unit = manager.unit("remains", "/bin/sh", "-c", f"{command} & exit 0", Type="oneshot", RemainAfterExit="yes")
    engine = units.engine(unit, port)
    await engine.start(SLOT)
    assert manager.pid(unit) == 0, "it has no main process to watch"
    await asyncio.sleep(2.5)
    assert units.crashes.empty()
    holder = holder_of("127.0.0.1", port)
    assert holder is not None
    (listener,) = holder.pids
    os.kill(listener, signal.SIGKILL)
    error = await asyncio.wait_for(units.crashes.get(), 10)
    assert "active (exited), stopped listening at port" in error[1].message
    await engine.stop(SLOT)
    assert manager.show(unit, "ActiveState") == "inactive"
    await engine.start(SLOT)
    assert units.crashes.empty()
    await engine.stop(SLOT)


async def test_a_failing_unit_fails_at_once_with_its_cause_and_the_journals_end(
    manager: UserManager, units: UnitBox
) -> None:
    port = free_port()
    unit = manager.fake("failing", port, "--say", "error: invalid argument: --frobnicate", "--exit", "3")
    engine = units.engine(unit, port, start_timeout_s=300.0)
    before = time.monotonic()
    with pytest.raises(StartFailed, match=r"'failing.service' exited with status 3, .* flag") as caught:
        await engine.start(SLOT)
    assert time.monotonic() - before < 2
    assert caught.value.cause == "bad_flag"
    assert "--frobnicate" not in caught.value.message
    assert "--frobnicate" in (caught.value.admin_detail or "")
    assert "journalctl" in (caught.value.admin_detail or "")
    await engine.stop(SLOT)
    assert "--frobnicate" in "\n".join(await engine.log_tail(SLOT))


async def test_a_unit_that_systemd_restarts_for_ever_fails_at_its_first_death(
    manager: UserManager, units: UnitBox
) -> None:
    port = free_port()
    unit = manager.fake("looping", port, "--delay", "0.2", "--exit", "1", **ALWAYS, StartLimitBurst="1000")
    engine = units.engine(unit, port)
    with pytest.raises(StartFailed, match="looping"):
        await engine.start(SLOT)
    await engine.stop(SLOT)
    await asyncio.sleep(0.5)
    assert manager.show(unit, "ActiveState") in ("inactive", "failed")


async def test_a_program_that_is_not_there_is_said_in_words(manager: UserManager, units: UnitBox) -> None:
    port = free_port()
    engine = units.engine(manager.unit("absent", "/nonexistent/engine", Type="simple"), port)
    with pytest.raises(StartFailed, match=r"ExecStart=.*status 203"):
        await engine.start(SLOT)
    await engine.stop(SLOT)


async def test_a_unit_that_does_not_exist_is_known_before_anything_is_drained(
    manager: UserManager, units: UnitBox
) -> None:
    engine = units.engine("nosuch.service", free_port())
    with pytest.raises(StartFailed, match=r"'nosuch.service' does not exist in the user scope"):
        await engine.check(SLOT, ())
    assert await engine.adopt() == []


async def test_a_unit_that_refuses_to_be_stopped_is_not_started(manager: UserManager, units: UnitBox) -> None:
    port = free_port()
    unit = manager.fake("stubborn", port)
    path = manager.folder / "config/systemd/user" / unit
    path.write_text("[Unit]\nRefuseManualStop=yes\n" + path.read_text())
    manager.systemctl("daemon-reload")
    with pytest.raises(StartFailed, match="RefuseManualStop="):
        await units.engine(unit, port).check(SLOT, ())


async def test_a_unit_that_ignores_the_stop_signal_is_killed_in_time(manager: UserManager, units: UnitBox) -> None:
    port = free_port()
    unit = manager.fake("deaf", port, "--ignore-term", "--session", **ALWAYS)
    engine = units.engine(unit, port, stop_timeout_s=0.5)
    await engine.start(SLOT)
    pid = manager.pid(unit)
    before = time.monotonic()
    await engine.stop(SLOT)
    assert 0.4 < time.monotonic() - before < 4
    assert not is_alive(pid)
    await asyncio.sleep(0.4)
    assert manager.show(unit, "ActiveState") in ("inactive", "failed")


async def test_what_systemd_leaves_in_the_units_group_is_ended_too(manager: UserManager, units: UnitBox) -> None:
    """`KillMode=process` ends the main process only."""
    port = free_port()
    unit = manager.fake("family", port, "--children", "2", KillMode="process")
    engine = units.engine(unit, port, stop_timeout_s=0.5)
    await engine.start(SLOT)
    group = manager.show(unit, "ControlGroup")

    def members() -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if group in (entry / "cgroup").read_text() and is_alive(int(entry.name)):
                        found.append(int(entry.name))
                except OSError:
                    pass
        return found

    assert len(members()) == 3
    await engine.stop(SLOT)
    assert members() == []


async def test_a_unit_that_is_never_ready_times_out_with_what_was_seen(manager: UserManager, units: UnitBox) -> None:
    port = free_port()
    unit = manager.fake("loading", port, "--status", "503", "--say", "loading for ever")
    engine = units.engine(unit, port, start_timeout_s=0.7)
    with pytest.raises(StartTimedOut, match=r"within 0.7 s .* status 503") as caught:
        await engine.start(SLOT)
    assert "loading for ever" in (caught.value.admin_detail or "")
    await engine.stop(SLOT)
    assert manager.show(unit, "ActiveState") == "inactive"


async def test_a_stranger_on_the_units_port_is_named_and_never_served(manager: UserManager, units: UnitBox) -> None:
    port = free_port()
    unit = manager.fake("squatted", port)
    engine = units.engine(unit, port)
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(PortTaken, match=rf"port {port} .* process {os.getpid()}"):
            await engine.check(SLOT, ())
        with pytest.raises(PortTaken):
            await engine.start(SLOT)
        await engine.stop(SLOT)
    assert manager.show(unit, "ActiveState") == "inactive"
    await engine.check(SLOT, ())


async def test_a_stranger_that_answers_in_the_units_place_is_not_taken_for_it(
    manager: UserManager, units: UnitBox
) -> None:
    """The unit lives, but listens elsewhere."""
    port = free_port()
    unit = manager.fake("elsewhere", free_port(), "--delay", "0.1")
    other = manager.fake("stranger", port, "--delay", "0.6")
    engine = units.engine(unit, port)
    manager.systemctl("start", other)
    with pytest.raises(PortTaken, match=f"port {port}"):
        await engine.start(SLOT)
    await engine.stop(SLOT)


async def test_a_unit_that_runs_and_is_ready_is_adopted_and_watched(manager: UserManager, units: UnitBox) -> None:
    port = free_port()
    unit = manager.fake("running", port)
    manager.systemctl("start", unit)
    await until(lambda: holder_of("127.0.0.1", port) is not None)
    engine = units.engine(unit, port)
    assert await engine.adopt() == [SLOT]
    pid = manager.pid(unit)
    os.kill(pid, signal.SIGKILL)
    assert "SIGKILL" in (await units.crash()).message
    await engine.stop(SLOT)


async def test_a_unit_that_somebody_else_started_is_waited_for_not_started_again(
    manager: UserManager, units: UnitBox
) -> None:
    port = free_port()
    unit = manager.fake("by-hand", port, "--delay", "0.4")
    engine = units.engine(unit, port)
    manager.systemctl("start", unit)
    pid = manager.pid(unit)
    await engine.check(SLOT, ())
    await engine.start(SLOT)
    assert manager.pid(unit) == pid
    await engine.stop(SLOT)


async def test_a_unit_that_runs_but_is_not_ready_is_stopped_at_start_up(manager: UserManager, units: UnitBox) -> None:
    port = free_port()
    unit = manager.fake("unfit", port, "--status", "503", **ALWAYS)
    manager.systemctl("start", unit)
    assert await units.engine(unit, port, start_timeout_s=0.5).adopt() == []
    assert manager.show(unit, "ActiveState") == "inactive"


async def test_a_unit_that_still_loads_when_the_router_boots_is_waited_for_and_not_stopped(
    manager: UserManager, units: UnitBox
) -> None:
    """Both start when somebody logs in."""
    port = free_port()
    unit = manager.fake("booting", port, "--delay", "0.8", "--ready-after", "0.4")
    manager.systemctl("start", unit)
    pid = manager.pid(unit)
    engine = units.engine(unit, port)
    assert await engine.adopt() == [SLOT]
    assert manager.pid(unit) == pid
    await engine.stop(SLOT)


@pytest.mark.parametrize("options", [(), ("--exit-on-term",)])
async def test_a_unit_stopped_or_restarted_by_hand_says_so_and_is_no_failed_start(
    manager: UserManager, units: UnitBox, options: tuple[str, ...]
) -> None:
    """Killed by SIGTERM, or ended with status 0 on it, as llama-server does."""
    port = free_port()
    unit = manager.fake("handled", port, *options)
    engine = units.engine(unit, port)
    for word in ("stop", "restart"):
        await engine.start(SLOT)
        manager.systemctl(word, unit)
        crash = await units.crash()
        assert crash.was_stopped
        assert crash.message == f"engine 'unit': unit '{unit}' was stopped by somebody else while it served"
        await engine.stop(SLOT)


@pytest.mark.parametrize("restart", ["no", "always"])
@pytest.mark.parametrize("ends", [("--die-after", "0.4"), ("--die-after", "0.4", "--die-with", "0"), ()])
async def test_a_unit_that_ends_by_itself_or_is_killed_is_a_failed_start(
    manager: UserManager, units: UnitBox, ends: tuple[str, ...], restart: str
) -> None:
    port = free_port()
    unit = manager.fake("alone", port, *ends, Restart=restart, RestartSec="0.05")
    engine = units.engine(unit, port)
    await engine.start(SLOT)
    if not ends:
        os.kill(manager.pid(unit), signal.SIGTERM)
    assert not (await units.crash()).was_stopped
    await engine.stop(SLOT)
