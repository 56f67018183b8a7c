"""The end: who waits is told, streams may finish in time, what is left is cut with a word – and signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from engine_server import DONE, SSE_HEAD, chunk, chunked, event
from router_kit import CHAT, Client, MakeRouter, chat
from router_process import demo_engine, serving

EAGER = {"commit_after_s": 0.0, "first_byte_commit_s": 0.0, "swap_keepalive_interval_s": 0.02}


async def test_waiters_get_503_or_the_error_frame(make_router: MakeRouter) -> None:
    router = await make_router(**EAGER)
    router.engines["a"].starting.shut()
    async with router.client() as plain, router.client() as stream:
        await plain.send("POST", CHAT, chat())
        await stream.send("POST", CHAT, chat(stream=True))
        await stream.head()
        await router.until(lambda: router.router.coordinator.queued == 2)
        stopping = asyncio.create_task(router.stop())
        answer = await plain.answer()
        assert (answer.status, answer.error["code"]) == (503, "shutting_down")
        assert answer.header("retry-after")
        seen, is_whole = await stream.rest()
        assert is_whole
        assert b'"code": "shutting_down"' in seen
        assert seen.endswith(DONE)
        await stopping


async def test_a_stream_that_ends_in_time_is_whole_and_nobody_new_is_let_in(make_router: MakeRouter) -> None:
    router = await make_router(shutdown_timeout_s=3.0)
    hold = asyncio.Event()
    router.engines["a"].server.script = [SSE_HEAD, chunk(event("x")), hold, *chunked([event("y"), DONE])]
    async with router.client() as client, router.client() as kept:
        await client.send("POST", CHAT, chat(stream=True))
        await client.head()
        await client.until(event("x"))
        await kept.send("GET", "/health")
        await kept.answer()
        began_at = time.monotonic()
        stopping = asyncio.create_task(router.stop())
        await asyncio.sleep(0.05)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", router.port)
        await kept.send("POST", CHAT, chat())
        assert (await kept.answer()).status == 503
        hold.set()
        assert await client.rest() == (event("y") + DONE, True)
        await stopping
        assert time.monotonic() - began_at < 1
    assert router.engines["a"].stops == 1


async def test_a_stream_that_does_not_end_in_time_is_cut_with_a_word(make_router: MakeRouter) -> None:
    router = await make_router(shutdown_timeout_s=0.1)
    router.engines["a"].server.script = [SSE_HEAD, chunk(event("x")), asyncio.Event()]
    async with router.client() as client:
        await client.send("POST", CHAT, chat(stream=True))
        await client.head()
        await client.until(event("x"))
        began_at = time.monotonic()
        await router.stop()
        assert 0.09 < time.monotonic() - began_at < 1
        seen, is_whole = await client.rest()
    assert is_whole
    assert b"the router is shutting down" in seen
    assert seen.endswith(DONE)
    assert router.engines["a"].stops == 1


async def test_a_plain_request_that_does_not_end_in_time_is_503(make_router: MakeRouter) -> None:
    router = await make_router(shutdown_timeout_s=0.1)
    router.engines["a"].server.script = [asyncio.Event()]
    async with router.client() as client:
        await client.send("POST", CHAT, chat())
        await router.engines["a"].server.exchange()
        await router.stop()
        assert (await client.answer()).status == 503


async def test_a_client_that_reads_nothing_does_not_hold_the_router_up(make_router: MakeRouter) -> None:
    router = await make_router(shutdown_timeout_s=0.2)
    flood = chunk(b"data: " + b"x" * 60_000 + b"\n\n")

    async def pour(exchange: object) -> None:
        await exchange.send(SSE_HEAD)  # type: ignore[attr-defined]
        while True:
            await exchange.send(flood)  # type: ignore[attr-defined]

    router.engines["a"].server.script = [pour]
    async with router.client() as client:
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await client.send("POST", CHAT, chat(stream=True))
        await router.engines["a"].server.exchange()
        await asyncio.sleep(0.2)
        began_at = time.monotonic()
        await router.stop()
        assert time.monotonic() - began_at < 2


# --- a real process


async def test_the_manager_is_told_how_long_the_end_of_engines_takes_that_a_reload_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0enginerouter-test-{os.getpid()}")
        manager.settimeout(15)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@enginerouter-test-{os.getpid()}")

        async def heard(says: str) -> str:
            while says not in (message := (await asyncio.to_thread(manager.recv, 4096)).decode()):
                pass
            return message

        async with serving(tmp_path, {"m": demo_engine("m")}) as (process, _):
            await heard("READY=1")
            file = tmp_path / "config.yaml"
            config = json.loads(file.read_text())
            config["engines"]["slow"] = {**demo_engine("slow"), "stop_timeout_s": 500}
            file.write_text(json.dumps(config))
            process.send_signal(signal.SIGHUP)
            await heard("RELOADING=1")
            await heard("READY=1")
            process.terminate()
            said = dict(line.split("=", 1) for line in (await heard("STOPPING=1")).splitlines())
            assert int(said["EXTEND_TIMEOUT_USEC"]) > 500e6


async def test_sigterm_with_an_open_stream_ends_in_time_and_sighup_ends_nothing(tmp_path: Path) -> None:
    """Predecessor E10: still running after 20 s. E11: SIGHUP killed it."""
    async with serving(tmp_path, {"m": demo_engine("m")}) as (process, port):
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        await client.send("POST", CHAT, chat("m", stream=True, max_tokens=100_000))
        assert await client.head(10) == 200
        await client.until(b"data:", 10)
        process.send_signal(signal.SIGHUP)
        await client.until(b"data:")
        began_at = time.monotonic()
        process.send_signal(signal.SIGTERM)
        seen, is_whole = await client.rest()
        assert is_whole
        assert b"the router is shutting down" in seen
        async with asyncio.timeout(10):
            assert await process.wait() == 0
        assert time.monotonic() - began_at < 4
        await client.close()
