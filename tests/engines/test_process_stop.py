"""Stopping a process engine: everything of it, and nothing else."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from boxes import SLOT, Box, fake, is_alive, logged

from enginerouter.engines import ending, ports, proctree
from enginerouter.engines.listening import has_fallen_silent
from enginerouter.engines.ports import free_port
from enginerouter.engines.process import GenericProcessEngine
from enginerouter.errors import FreeFailed
from enginerouter.slots import SlotId
from loop_watch import loop_watch


async def test_a_polite_engine_is_gone_at_once_and_its_port_closed(box: Box) -> None:
    engine = box.engine(*fake())
    await engine.start(SLOT)
    pid, port = engine.pid(SLOT), int(engine.address(SLOT).rpartition(":")[2])
    before = time.monotonic()
    await engine.stop(SLOT)
    assert time.monotonic() - before < 1
    assert pid is not None
    assert not is_alive(pid)
    assert ports.holder_of("127.0.0.1", port) is None
    assert engine.pid(SLOT) is None
    assert box.crashes.empty()


async def test_stopping_what_does_not_run_does_nothing(box: Box) -> None:
    engine = box.engine(*fake())
    await engine.stop(SLOT)
    await engine.start(SLOT)
    await engine.stop(SLOT)
    await engine.stop(SLOT)


async def test_an_engine_is_stopped_right_after_its_start_began(box: Box) -> None:
    engine = box.engine(*fake("--delay", "60"))
    for _ in range(5):
        start = asyncio.ensure_future(engine.start(SLOT))
        while engine.pid(SLOT) is None:
            await asyncio.sleep(0)
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        await engine.stop(SLOT)
    assert box.living() == set()


async def test_an_engine_that_ignores_the_signal_is_killed_after_its_timeout(box: Box) -> None:
    """B9: the timeout of the configuration is the one that counts."""
    engine = box.engine(*fake("--ignore-term"), stop_timeout_s=0.4)
    await engine.start(SLOT)
    before = time.monotonic()
    await engine.stop(SLOT)
    assert 0.4 <= time.monotonic() - before < 1.5
    assert box.living() == set()


async def test_a_llama_server_that_hangs_in_its_signal_handler_is_asked_again(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep its memory until it is killed, after `stop_timeout_s`. What a second signal means to others is not
    known."""
    monkeypatch.setattr(ending, "ASK_LLAMACPP_AGAIN_S", 0.2)
    interpreter, *rest = fake("--ignore-first-term")
    (tmp_path / "llama-server").symlink_to(interpreter)
    engine = box.engine(str(tmp_path / "llama-server"), *rest, stop_timeout_s=30.0)
    other = box.engine(interpreter, *rest, name="other", stop_timeout_s=0.6)
    await asyncio.gather(engine.start(SLOT), other.start(SlotId("other")))
    before = time.monotonic()
    await engine.stop(SLOT)
    assert time.monotonic() - before < 5
    before = time.monotonic()
    await other.stop(SlotId("other"))
    assert time.monotonic() - before >= 0.6
    assert box.living() == set()


async def test_the_stop_signal_of_the_configuration_is_sent(box: Box) -> None:
    engine = box.engine(*fake("--ignore-term"), stop_signal="INT", stop_timeout_s=30.0)
    await engine.start(SLOT)
    before = time.monotonic()
    await engine.stop(SLOT)
    assert time.monotonic() - before < 2


async def test_a_child_in_a_session_of_its_own_that_ignores_signals_is_ended(box: Box) -> None:
    """vLLM's engine core can outlive the server with the whole card in its hands."""
    engine = box.engine(*fake("--session", "--memory-mb", "50"), stop_timeout_s=0.5)
    await engine.start(SLOT)
    held = await engine.held_bytes(SLOT)
    assert held is not None
    assert 50 * 2**20 < held < 90 * 2**20
    await engine.stop(SLOT)
    assert box.living() == set()
    assert await engine.held_bytes(SLOT) == 0


async def test_a_double_forked_daemon_is_found_and_ended(box: Box) -> None:
    engine = box.engine("sh", "-c", " ".join((*fake("--daemonise"), "; exec sleep 1000")))
    start = asyncio.ensure_future(engine.start(SLOT))
    await start  # the daemon listens, and belongs to the tree although init is its parent
    daemon = int((await logged(engine, "up"))[1])
    assert daemon != engine.pid(SLOT)
    await engine.stop(SLOT)
    assert not is_alive(daemon)


async def test_members_that_hide_their_environment_are_still_found(box: Box) -> None:
    """setproctitle wipes the environment area; a cleaned environment carries no marker."""
    command = " ".join(("env -i", *fake("--serve-in-session")))
    engine = box.engine("sh", "-c", f"{command} & wait", stop_timeout_s=0.5)
    await engine.start(SLOT)
    listener = int((await logged(engine, "up"))[1])
    info = proctree.read_process(listener)
    assert info is not None
    assert info.marker == ""
    await engine.stop(SLOT)
    assert not is_alive(listener)


async def test_a_frozen_engine_is_stopped(box: Box) -> None:
    """E13. It takes its signal when it is made to continue."""
    engine = box.engine(*fake("--children", "2"), stop_timeout_s=10.0)
    await engine.start(SLOT)
    pid = engine.pid(SLOT)
    assert pid is not None
    os.killpg(pid, signal.SIGSTOP)
    async with asyncio.timeout(5):
        while "is stopped" not in str(await engine.stopped_state(SLOT)):
            await asyncio.sleep(0.01)
    before = time.monotonic()
    await engine.stop(SLOT)
    assert time.monotonic() - before < 2
    assert box.living() == set()


async def test_a_frozen_engine_that_ignores_signals_is_killed(box: Box) -> None:
    engine = box.engine(*fake("--ignore-term", "--session"), stop_timeout_s=0.3)
    await engine.start(SLOT)
    for key in proctree.members(proctree.snapshot(), next(iter(box.living())), ()):
        os.kill(key.pid, signal.SIGSTOP)
    await engine.stop(SLOT)
    assert box.living() == set()


async def test_an_unrelated_process_with_the_same_arguments_is_untouched(box: Box) -> None:
    """B7: the predecessor killed by a pattern of the command line."""
    command = [word.replace("{port}", "0") for word in fake()]
    twin = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    engine = box.engine(*fake())
    await engine.start(SLOT)
    await engine.stop(SLOT)
    assert twin.returncode is None
    assert is_alive(twin.pid)
    twin.kill()
    await twin.wait()


async def test_a_leader_in_our_own_group_is_signalled_alone(box: Box) -> None:
    """B6: the predecessor ended itself with a group signal."""
    children = [await asyncio.create_subprocess_exec("sleep", "1000") for _ in range(2)]
    info = proctree.read_process(children[0].pid)
    assert info is not None
    assert os.getpgid(children[0].pid) == os.getpgrp()
    assert proctree.send_to_group(info.key, signal.SIGTERM)
    assert await children[0].wait() == -signal.SIGTERM
    assert children[1].returncode is None
    children[1].kill()
    await children[1].wait()


async def test_a_pid_that_is_somebody_elses_by_now_is_not_signalled() -> None:
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    info = proctree.read_process(process.pid)
    assert info is not None
    older = proctree.ProcessKey(process.pid, info.key.started - 100)
    assert not proctree.send(older, signal.SIGKILL)
    assert not proctree.send_to_group(older, signal.SIGKILL)
    assert proctree.members(proctree.snapshot(), "", {older}) == set()
    assert not proctree.send(proctree.ProcessKey(os.getpid(), info.key.started), signal.SIGTERM)
    process.kill()
    assert await process.wait() == -signal.SIGKILL


async def test_neither_the_router_nor_what_it_descends_from_is_ever_in_a_tree() -> None:
    processes = proctree.snapshot()
    parent = processes[os.getpid()].parent
    found = {key.pid for key in proctree.members(processes, "", {processes[parent].key})}
    assert os.getpid() not in found
    assert parent not in found


async def test_the_stop_command_is_run_before_any_signal(box: Box) -> None:
    told = box.folder / "told"
    engine = box.engine(
        *fake("--ignore-term"),
        stop_cmd=("sh", "-c", f"echo {{port}} > {told}; kill -INT $(grep -o '[0-9]*' logs/engines/llama.log)"),
        cwd=box.folder,
        stop_timeout_s=20.0,
    )
    await engine.start(SLOT)
    port = engine.address(SLOT).rpartition(":")[2]
    before = time.monotonic()
    await engine.stop(SLOT)
    assert time.monotonic() - before < 2
    assert told.read_text().strip() == port


@pytest.mark.parametrize("stop_cmd", [("false",), ("/no/such/command",)])
async def test_a_stop_command_that_fails_is_followed_by_the_signal(
    box: Box, stop_cmd: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    engine = box.engine(*fake(), stop_cmd=stop_cmd, stop_timeout_s=20.0)
    await engine.start(SLOT)
    before = time.monotonic()
    await engine.stop(SLOT)
    assert time.monotonic() - before < 2
    assert "stop_cmd" in caplog.text


async def test_a_stop_command_that_hangs_costs_no_more_than_the_stop_timeout(box: Box) -> None:
    engine = box.engine(*fake(), stop_cmd=("sleep", "1000"), stop_timeout_s=0.4)
    await engine.start(SLOT)
    before = time.monotonic()
    await engine.stop(SLOT)
    assert time.monotonic() - before < 1.5


async def test_a_port_that_a_stranger_took_meanwhile_is_not_our_failure(box: Box) -> None:
    port = free_port()
    engine = box.engine(*fake("--die-after", "0.2"), base_url=f"http://127.0.0.1:{port}")
    await engine.start(SLOT)
    await asyncio.wait_for(box.crashes.get(), 5)
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", port)
    await engine.stop(SLOT)
    server.close()
    await server.wait_closed()


async def test_a_container_whose_port_stays_open_is_not_taken_as_freed(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.engines.ending.CONTAINER_PORT_TIMEOUT_S", 0.3)
    client = box.folder / "docker"  # the client ends, the container – here: a process it knows nothing of – does not
    client.write_text('#!/bin/sh\n[ $1 = run ] && echo $$ > "$0.pid" && exec sleep 1000\nkill $(cat "$0.pid")\n')
    client.chmod(0o755)
    port = free_port()
    engine = box.engine(str(client), "run", base_url=f"http://127.0.0.1:{port}", stop_cmd=(str(client), "stop"))
    start = asyncio.ensure_future(engine.start(SLOT))
    while engine.pid(SLOT) is None:
        await asyncio.sleep(0.001)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    await start  # the listener is not in its tree, but the port was free before and the client lives
    assert await engine.held_bytes(SLOT) is None
    with pytest.raises(FreeFailed, match=f"port {port} is still open"):
        await engine.stop(SLOT)
    server.close()
    await server.wait_closed()
    await engine.stop(SLOT)


# --- exits that nobody asked for --------------------------------------------------------------------------


async def test_a_crash_is_told_at_once_with_its_cause(box: Box) -> None:
    """A2, A3"""
    engine = box.engine(*fake("--say", "CUDA error: an illegal memory access was encountered"))
    await engine.start(SLOT)
    pid = engine.pid(SLOT)
    assert pid is not None
    os.kill(pid, signal.SIGABRT)
    before = time.monotonic()
    slot, error = await asyncio.wait_for(box.crashes.get(), 5)
    assert time.monotonic() - before < 0.5
    assert slot == SLOT
    assert "SIGABRT" in error.message
    assert "GPU" in error.message
    assert "illegal memory access" in (error.admin_detail or "")
    assert "gone" in str(await engine.stopped_state(SLOT))


async def test_an_engine_whose_script_outlives_it_is_a_crash_and_starts_again(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell waits for something else, and its dead child for the shell."""
    monkeypatch.setattr("enginerouter.engines.children.LOOK_EVERY_S", 0.05)
    engine = box.engine("/bin/sh", "-c", f"{shlex.join(fake())} & sleep 1000")
    await engine.start(SLOT)
    up = int((await logged(engine, "up"))[1])
    await asyncio.sleep(0.2)
    assert box.crashes.empty()
    os.kill(up, signal.SIGKILL)
    slot, error = await asyncio.wait_for(box.crashes.get(), 10)
    assert slot == SLOT
    assert "does not listen at port" in error.message
    await engine.stop(SLOT)
    assert box.living() == set()
    await engine.start(SLOT)
    assert box.crashes.empty()


def is_open(engine: GenericProcessEngine) -> bool:
    port = int(engine.address(SLOT).rpartition(":")[2])
    return bool(ports.listeners(port))


async def signalled(engine: GenericProcessEngine, number: int, *, opens: bool) -> int:
    """Tell the engine to close or open its port, and see it done; its process."""
    pid = engine.pid(SLOT)
    assert pid is not None
    os.kill(pid, number)
    async with asyncio.timeout(5):
        while is_open(engine) is not opens:
            await asyncio.sleep(0.002)
    return pid


async def test_an_engine_that_lives_but_has_closed_its_port_is_a_crash_and_starts_again(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.engines.children.LOOK_EVERY_S", 0.05)
    engine = box.engine(*fake())
    await engine.start(SLOT)
    pid = await signalled(engine, signal.SIGUSR1, opens=False)
    slot, error = await asyncio.wait_for(box.crashes.get(), 10)
    assert slot == SLOT
    assert "does not listen at port" in error.message
    assert f"although its process {pid} lives" in error.message
    assert is_alive(pid)
    await engine.stop(SLOT)
    assert not is_alive(pid)
    await engine.start(SLOT)
    assert box.crashes.empty()


async def test_an_engine_that_opens_its_port_again_before_the_second_look_goes_on(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that reloads itself."""
    monkeypatch.setattr("enginerouter.engines.children.LOOK_EVERY_S", 0.02)
    engine = box.engine(*fake())
    seen: asyncio.Queue[bool] = asyncio.Queue()

    async def look(*args: Any) -> bool:
        is_silent = await has_fallen_silent(*args)
        if is_silent:
            await signalled(engine, signal.SIGUSR2, opens=True)
        seen.put_nowait(is_silent)
        return is_silent

    monkeypatch.setattr("enginerouter.engines.children.has_fallen_silent", look)
    await engine.start(SLOT)
    for _ in range(2):
        await signalled(engine, signal.SIGUSR1, opens=False)
        async with asyncio.timeout(5):
            while not await seen.get():
                pass
            assert not await seen.get()
    assert box.crashes.empty()
    assert await engine.stopped_state(SLOT) is None


async def test_an_engine_that_finishes_its_answers_behind_a_closed_port_is_left_to_it(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As servers do that were told to stop by somebody else."""
    monkeypatch.setattr("enginerouter.engines.children.LOOK_EVERY_S", 0.02)
    looks: asyncio.Queue[bool] = asyncio.Queue()

    async def look(*args: Any) -> bool:
        looks.put_nowait(is_silent := await has_fallen_silent(*args))
        return is_silent

    monkeypatch.setattr("enginerouter.engines.children.has_fallen_silent", look)
    engine = box.engine(*fake("--hang"), ready_path=None)
    await engine.start(SLOT)
    _, writer = await asyncio.open_connection("127.0.0.1", int(engine.address(SLOT).rpartition(":")[2]))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await signalled(engine, signal.SIGUSR1, opens=False)
    while not looks.empty():
        looks.get_nowait()
    async with asyncio.timeout(5):
        assert [await looks.get() for _ in range(4)] == [False] * 4
    assert box.crashes.empty()
    writer.close()
    await asyncio.wait_for(box.crashes.get(), 10)


async def test_an_adopted_engine_that_closes_its_port_is_a_crash(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginerouter.engines.children.LOOK_EVERY_S", 0.05)
    first = box.engine(*fake())
    await first.start(SLOT)
    await first.close()
    engine = box.engine(*fake())
    assert await engine.adopt() == [SLOT]
    await signalled(engine, signal.SIGUSR1, opens=False)
    _, error = await asyncio.wait_for(box.crashes.get(), 10)
    assert "does not listen at port" in error.message


@pytest.mark.slow
async def test_an_engine_that_replaces_the_process_that_listens_goes_on(box: Box) -> None:
    engine = box.engine("/bin/sh", "-c", f"while true; do {shlex.join(fake())}; done")
    await engine.start(SLOT)
    first = int((await logged(engine, "up"))[1])
    os.kill(first, signal.SIGKILL)
    await asyncio.sleep(4.5)
    assert box.crashes.empty()
    assert await engine.stopped_state(SLOT) is None


async def test_after_a_crash_the_engine_stops_what_is_left_and_starts_again(box: Box) -> None:
    engine = box.engine(*fake("--session"), stop_timeout_s=0.2)
    await engine.start(SLOT)
    pid = engine.pid(SLOT)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await asyncio.wait_for(box.crashes.get(), 5)
    assert box.living()  # its child in another session
    await engine.stop(SLOT)
    assert box.living() == set()
    await engine.start(SLOT)
    assert box.crashes.empty()


async def test_a_start_that_fails_is_no_crash(box: Box) -> None:
    engine = box.engine(*fake("--exit", "1"))
    with pytest.raises(Exception, match="exited with status 1"):
        await engine.start(SLOT)
    await engine.stop(SLOT)
    assert box.crashes.empty()


# --- the event loop ---------------------------------------------------------------------------------------


async def test_the_loop_is_never_blocked_by_an_engine_of_many_processes(box: Box) -> None:
    """E6: synchronous process scans blocked everything for seconds."""
    engine = box.engine(*fake("--children", "80"))
    with loop_watch() as watch:
        await engine.start(SLOT)
        await engine.held_bytes(SLOT)
        await engine.stopped_state(SLOT)
        await engine.stop(SLOT)
    watch.assert_never_blocked()


async def test_no_descriptor_is_left_open_by_starts_and_stops(box: Box) -> None:
    engine = box.engine(*fake())
    await engine.start(SLOT)
    await engine.stop(SLOT)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await engine.start(SLOT)
        await engine.stop(SLOT)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_processes_can_be_told_apart_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows, where psutil answers."""
    monkeypatch.setattr(proctree, "IS_LINUX", False)
    monkeypatch.setattr(ports, "IS_LINUX", False)
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={"ENGINEROUTER_LAUNCH": "r:s:t"}
    )
    try:
        info = proctree.read_process(child.pid)
        assert info is not None
        assert info.parent == os.getpid()
        assert proctree.is_alive(info.key)
        assert proctree.members(proctree.snapshot(), "", {info.key}) == {info.key}
        held = proctree.held_bytes([info.key])
        assert held is not None
        assert held > 0
        assert Path(sys.executable).name in proctree.command_line(child.pid)
    finally:
        child.communicate(b"\n")
    assert not proctree.is_alive(info.key)
