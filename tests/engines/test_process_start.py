"""Starting a process engine: ready as soon as it is, failed as soon as it has."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import stat
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from boxes import SLOT, Box, fake, is_alive

from enginerouter.engines.ports import free_port
from enginerouter.errors import NotBuilt, PortTaken, StartFailed, StartTimedOut
from enginerouter.slots import SlotId


async def test_a_ready_engine_is_served_where_its_address_says(box: Box) -> None:
    engine = box.engine(*fake())
    before = time.monotonic()
    await engine.start(SLOT)
    assert time.monotonic() - before < 2
    url = engine.address(SLOT)
    _reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.close()
    await writer.wait_closed()
    assert await engine.stopped_state(SLOT) is None


async def test_the_port_of_the_base_url_reaches_command_and_environment(box: Box) -> None:
    port = free_port()
    engine = box.engine(*fake("--show-env"), base_url=f"http://127.0.0.1:{port}/", env={"MY_PORT": "p{port}"})
    await engine.start(SLOT)
    assert engine.address(SLOT) == f"http://127.0.0.1:{port}"
    assert f"env MY_PORT=p{port}" in await engine.log_tail(SLOT)


async def test_a_slow_engine_is_waited_for(box: Box) -> None:
    engine = box.engine(*fake("--delay", "0.3", "--ready-after", "0.3"))
    before = time.monotonic()
    await engine.start(SLOT)
    assert 0.6 <= time.monotonic() - before < 2


async def test_an_engine_that_exits_at_once_fails_at_once(box: Box) -> None:
    """A6: the predecessor waited the whole start timeout, and said nothing of the log."""
    engine = box.engine(*fake("--say", "error: invalid argument: --frobnicate", "--exit", "1"), start_timeout_s=300.0)
    before = time.monotonic()
    with pytest.raises(StartFailed, match=r"exited with status 1, .* flag") as caught:
        await engine.start(SLOT)
    assert time.monotonic() - before < 1
    assert caught.value.cause == "bad_flag"
    assert caught.value.engine == "llama"
    assert "--frobnicate" not in caught.value.message  # the tail is for admins
    assert "--frobnicate" in (caught.value.admin_detail or "")


async def test_control_characters_of_a_log_are_escaped_when_quoted(box: Box) -> None:
    engine = box.engine(*fake("--say", "\x1b[31mboom", "--exit", "1"))
    with pytest.raises(StartFailed) as caught:
        await engine.start(SLOT)
    assert "\x1b" not in (caught.value.admin_detail or "")
    assert "boom" in (caught.value.admin_detail or "")


async def test_only_the_log_of_this_launch_is_searched_for_a_cause(box: Box) -> None:
    engine = box.engine(*fake("--say", "cudaMalloc failed: out of memory", "--exit", "1"))
    with pytest.raises(StartFailed) as first:
        await engine.start(SLOT)
    assert first.value.cause == "out_of_memory"
    other = box.engine(*fake("--exit", "1"), log_file=Path("logs/engines/llama.log"))
    with pytest.raises(StartFailed) as second:
        await other.start(SLOT)
    assert second.value.cause is None
    assert "cudaMalloc" not in (second.value.admin_detail or "")


async def test_a_killed_engine_says_so_in_words(box: Box) -> None:
    engine = box.engine(*fake("--kill-self", "9"))
    with pytest.raises(StartFailed, match=r"killed by signal 9 \(SIGKILL; often the kernel's out-of-memory killer\)"):
        await engine.start(SLOT)


async def test_an_engine_that_goes_to_the_background_fails_and_is_ended(box: Box) -> None:
    engine = box.engine(*fake("--daemonise", "--delay", "0.3"))
    with pytest.raises(StartFailed, match="in the foreground"):
        await engine.start(SLOT)
    await engine.stop(SLOT)
    assert box.living() == set()


async def test_a_never_ready_engine_times_out_and_says_what_was_seen(box: Box) -> None:
    engine = box.engine(*fake("--status", "503"), start_timeout_s=0.5)
    with pytest.raises(StartTimedOut, match=r"within 0.5 s .* status 503 instead of 200"):
        await engine.start(SLOT)
    pid = engine.pid(SLOT)
    assert pid is not None
    await engine.stop(SLOT)  # A7: it was left running, holding its memory
    assert not is_alive(pid)


async def test_a_hanging_probe_does_not_outlast_the_start_timeout(box: Box) -> None:
    """The predecessor needed 33 s for a start timeout of 6 s."""
    engine = box.engine(*fake("--hang"), start_timeout_s=0.6, ready_probe_timeout_s=60.0)
    before = time.monotonic()
    with pytest.raises(StartTimedOut, match="no answer"):
        await engine.start(SLOT)
    assert time.monotonic() - before < 1.5


async def test_a_probe_that_hangs_is_given_up_and_the_next_one_counts(box: Box) -> None:
    engine = box.engine(*fake("--hang-first", "2"), ready_probe_timeout_s=0.2)
    before = time.monotonic()
    await engine.start(SLOT)
    assert 0.4 <= time.monotonic() - before < 2


async def test_there_are_never_two_probes_at_once(box: Box) -> None:
    counts = box.folder / "counts"
    engine = box.engine(*fake("--ready-after", "0.5", "--count", str(counts)))
    await engine.start(SLOT)
    most, all_of_them = map(int, counts.read_text().split())
    assert most == 1
    assert 5 < all_of_them < 30


async def test_another_ready_status_and_a_check_of_the_body_are_honoured(box: Box) -> None:
    body = json.dumps({"state": {"loaded": True}, "data": [{"id": "qwen"}]})
    for check in ("state.loaded==true", "model:qwen", "data.id==qwen"):
        engine = box.engine(*fake("--status", "202", "--body", body), ready_status=202, ready_check=check)
        await engine.start(SLOT)
        await engine.stop(SLOT)
    engine = box.engine(*fake("--body", body), ready_check="model:llama", start_timeout_s=0.3)
    with pytest.raises(StartTimedOut, match=r"not 'model:llama'"):
        await engine.start(SLOT)


async def test_without_a_ready_path_an_accepted_connection_is_enough(box: Box) -> None:
    engine = box.engine(*fake("--hang"), ready_path=None)
    await engine.start(SLOT)


async def test_a_listener_in_another_session_of_the_tree_is_ours(box: Box) -> None:
    engine = box.engine(*fake("--serve-in-session"), stop_timeout_s=0.2)
    await engine.start(SLOT)


async def test_a_redirect_is_not_followed_and_not_ready(box: Box) -> None:
    engine = box.engine(*fake("--status", "302"), start_timeout_s=0.3)
    with pytest.raises(StartTimedOut, match="status 302"):
        await engine.start(SLOT)


async def test_a_start_can_be_cancelled_and_leaves_nothing_after_stop(box: Box) -> None:
    engine = box.engine(*fake("--delay", "60"))
    start = asyncio.ensure_future(engine.start(SLOT))
    async with asyncio.timeout(5):
        while engine.pid(SLOT) is None:
            await asyncio.sleep(0.001)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    pid = engine.pid(SLOT)
    assert pid is not None
    await engine.stop(SLOT)
    assert not is_alive(pid)


# --- before anything is drained ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "settings", "words"),
    [
        (("no-such-program-here",), {}, "not on PATH"),
        (("/no/such/program",), {}, "does not exist"),
        (("/etc/passwd",), {}, "not executable"),
        (fake(), {"cwd": Path("/no/such/folder")}, "folder '/no/such/folder'"),
        ((sys.executable, "-m", "/models/none.gguf"), {}, "model file '/models/none.gguf'"),
        ((sys.executable, "--model=none.gguf"), {}, "model file 'none.gguf'"),
        ((sys.executable, "--mmproj", "./none"), {}, "model file './none'"),
        (("sh",), {"env": {"PATH": "/nowhere"}}, "not on PATH"),
    ],
)
async def test_what_cannot_work_is_refused_before_anything_is_drained(
    box: Box, command: tuple[str, ...], settings: dict[str, object], words: str
) -> None:
    """A4: a missing binary was found after the previous engine had been killed."""
    engine = box.engine(*command, **settings)
    with pytest.raises(StartFailed, match=words) as caught:
        await engine.check(SLOT, ())
    assert caught.value.cause == "file_missing"


async def test_a_missing_binary_is_a_failed_start_too(box: Box) -> None:
    engine = box.engine("/no/such/program")
    with pytest.raises(StartFailed, match="could not be launched"):
        await engine.start(SLOT)
    await engine.stop(SLOT)


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-m", "vllm.entrypoints"),
        (sys.executable, "--model", "meta-llama/Llama-3"),
        ("sh", "-hf", "user/repo:Q4"),
    ],
)
async def test_a_name_that_an_engine_would_download_is_no_missing_file(box: Box, command: tuple[str, ...]) -> None:
    await box.engine(*command).check(SLOT, ())


async def test_files_are_looked_for_from_the_folder_of_the_engine(box: Box) -> None:
    (box.folder / "run.sh").write_text("#!/bin/sh\n")
    (box.folder / "run.sh").chmod(0o755)
    (box.folder / "m.gguf").write_text("")
    await box.engine("./run.sh", "-m", "m.gguf", cwd=box.folder).check(SLOT, ())


async def test_a_slot_with_a_model_is_refused_by_name(box: Box) -> None:
    with pytest.raises(NotBuilt, match="llama"):
        await box.engine(*fake()).check(SlotId("llama", "coder"), ())


# --- the port ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def stranger(status: int | None) -> AsyncIterator[int]:
    """A listener that is not ours (it is this test); without a status it never says a word."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if status is not None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
        else:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("status", [200, 404, None])
async def test_a_stranger_on_the_port_is_named_and_never_served(box: Box, status: int | None) -> None:
    """B3, B4, B8: served as the engine, or a whole start timeout lost, or ten seconds blocked."""
    async with stranger(status) as port:
        engine = box.engine(*fake(), base_url=f"http://127.0.0.1:{port}")
        before = time.monotonic()
        for attempt in (engine.check(SLOT, ()), engine.start(SLOT)):
            with pytest.raises(PortTaken) as caught:
                await attempt
            assert str(port) in caught.value.message
            assert str(os.getpid()) in caught.value.message
            assert psutil.Process().cmdline()[0] in caught.value.message
        assert time.monotonic() - before < 1.5
        assert engine.pid(SLOT) is None


async def test_a_stranger_on_a_wildcard_address_holds_the_port_too(box: Box) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        engine = box.engine(*fake(), base_url=f"http://localhost:{listener.getsockname()[1]}")
        with pytest.raises(PortTaken):
            await engine.check(SLOT, ())


async def test_a_stranger_who_takes_the_port_while_the_engine_loads_is_not_served(box: Box) -> None:
    """It answers 200 while our child lives: the child has not bound yet."""
    port = free_port()
    engine = box.engine(*fake("--delay", "30"), base_url=f"http://127.0.0.1:{port}")
    start = asyncio.ensure_future(engine.start(SLOT))
    await asyncio.sleep(0.2)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    with pytest.raises(PortTaken, match=f"process {os.getpid()}"):
        await start
    server.close()
    await server.wait_closed()


async def test_an_engine_that_dies_of_a_taken_port_says_who_has_it(box: Box) -> None:
    async with stranger(None) as port:
        # Its command names the port itself, so that nothing is seen before it fails to bind.
        command = [str(port) if word == "{port}" else word for word in fake("--delay", "0.05")]
        engine = box.engine(*command, base_url=f"http://127.0.0.1:{free_port()}")
        with pytest.raises(StartFailed, match="port is already in use") as caught:
            await engine.start(SLOT)
        assert caught.value.cause == "port_in_use"


async def test_a_port_held_by_a_slot_that_leaves_is_fine(box: Box) -> None:
    """B5: several engines on one port confused the predecessor."""
    url = f"http://127.0.0.1:{free_port()}"
    first = box.engine(*fake(), name="a", base_url=url)
    second = box.engine(*fake(), name="b", base_url=url)
    await first.start(SlotId("a"))
    await second.check(SlotId("b"), [SlotId("a")])
    with pytest.raises(PortTaken, match="engine 'a', which stays"):
        await second.check(SlotId("b"), [])
    await first.check(SlotId("a"), [])
    await first.stop(SlotId("a"))
    await second.start(SlotId("b"))
    await first.check(SlotId("a"), [SlotId("b")])


# --- the log and the environment ----------------------------------------------------------------------------


async def test_the_log_belongs_to_its_owner_and_is_appended_to(box: Box) -> None:
    engine = box.engine(*fake())
    for _ in range(2):
        await engine.start(SLOT)
        await engine.stop(SLOT)
    path = box.folder / "logs" / "engines" / "llama.log"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(re.findall(r"^up \d+$", path.read_text(), re.MULTILINE)) == 2


async def test_a_bare_log_file_name_works(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """E15"""
    monkeypatch.chdir(box.folder)
    engine = box.engine(*fake(), log_file=Path("eng.log"))
    await engine.start(SLOT)
    assert (box.folder / "eng.log").read_text().startswith("up ")


async def test_a_log_that_cannot_be_written_is_a_failed_start(box: Box) -> None:
    (box.folder / "file").write_text("")
    engine = box.engine(*fake(), log_file=Path("file/x.log"))
    with pytest.raises(StartFailed, match="log_file"):
        await engine.start(SLOT)


async def test_a_hundred_megabytes_of_output_block_nobody_and_are_cut(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.engines.children.LOOK_EVERY_S", 0.05)
    engine = box.engine(*fake("--print-mb", "100"))
    await engine.start(SLOT)
    path = box.folder / "logs" / "engines" / "llama.log"
    async with asyncio.timeout(10):
        while path.stat().st_size > 5 * 2**20:
            await asyncio.sleep(0.02)
    assert sum(p.stat().st_size for p in path.parent.iterdir()) < 22 * 2**20


async def test_what_systemd_meant_for_the_router_is_not_inherited(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"):
        monkeypatch.setenv(name, "leaked")
    monkeypatch.setenv("PLAIN", "inherited")
    engine = box.engine(*fake("--show-env"), env={"ADDED": "yes"})
    await engine.start(SLOT)
    shown = await engine.log_tail(SLOT, 1000)
    assert not [line for line in shown if "leaked" in line]
    assert "env PLAIN=inherited" in shown
    assert "env ADDED=yes" in shown


async def test_secrets_of_the_environment_are_not_in_the_state_file(box: Box) -> None:
    engine = box.engine(*fake(), env={"HF_TOKEN": "hf_verysecret"})
    await engine.start(SLOT)
    await box.state.flush()
    assert "llama" in box.state.get("launches")
    assert "verysecret" not in box.state.path.read_text()
