"""Moments that come seldom, each of them once a bug."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from pathlib import Path

from engine_server import DONE, chunk, chunked, event, head
from router_kit import MakeRouter, chat

from enginerouter.swap.phases import Phase

PACKED_SSE = [("Content-Type", "text/event-stream"), ("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked")]


async def test_the_own_name_of_this_machine_is_a_good_host_without_keys(make_router: MakeRouter) -> None:
    router = await make_router()
    for name in (socket.gethostname(), "localhost", "127.0.0.1", "box.local"):
        answer = await router.get("/v1/models", Host=f"{name}:8077")
        assert answer.status == 200, name
    assert (await router.get("/v1/models", Host="evil.example")).status == 403


async def test_a_listener_that_breaks_does_not_break_the_swap(make_router: MakeRouter, caplog) -> None:
    router = await make_router()

    def broken(slot, phase):
        raise KeyError(phase)

    router.router.telemetry.listeners.append(broken)
    assert (await router.ask(chat("a"))).status == 200
    await router.a.crash()
    assert (await router.ask(chat("a"))).status == 200
    assert (await router.ask(chat("b"))).status == 200
    assert "an observer of a broke" in caplog.text
    caplog.clear()
    router.router.telemetry.listeners.remove(broken)


async def test_a_router_that_takes_its_time_to_take_over_is_alive(make_router: MakeRouter, monkeypatch) -> None:
    """A watchdog that asks /health would else kill it in a loop."""
    monkeypatch.setattr("enginerouter.swap.lookout.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("enginerouter.web.control.STUCK_AFTER_S", 0.1)
    router = await make_router(starts=False)
    router.a.adopting.shut()
    starting = asyncio.ensure_future(router.router.start())
    await router.a.adopting.reached.wait()
    await asyncio.sleep(0.2)
    assert (await router.get("/health")).status == 200
    router.a.adopting.open()
    await starting


async def test_an_engine_that_dies_while_others_are_taken_over_is_not_ready(make_router: MakeRouter) -> None:
    router = await make_router(starts=False)
    router.a.adopts = True
    router.b.adopting.shut()
    starting = asyncio.ensure_future(router.router.start())
    await router.b.adopting.reached.wait()
    await router.a.crash()
    router.b.adopting.open()
    await starting
    answer = await router.ask(chat("a"))
    assert answer.status == 200
    assert router.a.starts == 1


async def test_no_keep_alive_gets_into_a_compressed_event_stream(make_router: MakeRouter) -> None:
    router = await make_router(swap_keepalive_interval_s=0.02)
    await router.load()
    packed = [b"\x1f\x8b\x08rest", 0.15, b"and more"]
    router.a.server.script = [head(200, PACKED_SSE), *chunked(packed)]
    answer = await router.ask(chat(stream=True))
    assert answer.body == b"\x1f\x8b\x08restand more"


async def test_a_client_that_does_not_read_is_not_a_stalled_engine(make_router: MakeRouter, monkeypatch) -> None:
    monkeypatch.setattr("enginerouter.swap.lookout.LOOK_EVERY_S", 0.02)
    router = await make_router(upstream_stall_timeout_s=0.1)
    await router.load()
    flood = [event("x" * 60_000)] * 400
    router.a.server.script = [head(200, PACKED_SSE[:1] + PACKED_SSE[2:]), *(chunk(e) for e in flood), *chunked([DONE])]
    async with router.client() as client:
        await client.send("POST", "/v1/chat/completions", chat(stream=True))
        await client.head()
        await asyncio.sleep(0.3)
        body, is_whole = await client.rest(10)
    assert is_whole
    assert b"stall" not in body
    assert body.endswith(DONE)


async def test_a_stored_response_is_reachable_while_its_engine_is_full(make_router: MakeRouter) -> None:
    """Cancelling needs no place of its own, least of all when the place is what is to be cancelled."""
    router = await make_router({"a": {"max_in_flight": 1}})
    await router.load()
    hold = asyncio.Event()
    created = b'event: response.created\ndata: {"response":{"id":"resp_1"}}\n\n'
    router.a.server.script = [head(200, PACKED_SSE[:1] + PACKED_SSE[2:]), chunk(created), hold, *chunked([DONE])]
    async with router.client() as client:
        await client.send("POST", "/v1/responses", json.dumps({"model": "a", "stream": True}).encode())
        await client.head()
        await client.until(b"resp_1")
        router.a.server.script = None
        answer = await router.ask(b"{}", path="/v1/responses/resp_1/cancel")
        assert answer.status == 200, answer.body
        hold.set()
        await client.rest()


async def test_a_start_that_fails_is_no_swap_away_from_itself(make_router: MakeRouter) -> None:
    from enginerouter.errors import StartFailed

    router = await make_router()
    router.a.start_error = StartFailed("a", "no luck")
    await router.ask(chat("a"))
    await router.until(lambda: router.phase("a") is Phase.COLD)
    text = (await router.get("/metrics")).body.decode()
    assert 'swap_total{from="none",to="a",result="failed"} 1' in text


async def test_a_signal_during_start_up_is_heard(tmp_path: Path) -> None:
    """Taking over an engine that will not go may take half a minute. One Ctrl-C begins the stop, two end it at once."""
    stubborn = tmp_path / "stubborn.py"
    stubborn.write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(90)\n"
    )
    port = free_port()
    config = tmp_path / "config.yaml"

    def write(flag: str) -> None:
        start = [sys.executable, str(stubborn), "--port", "{port}", flag]
        engine = {"type": "generic_process", "start_cmd": start, "preload": True, "stop_timeout_s": 40}
        config.write_text(json.dumps({"port": port, "engines": {"s": engine}}))

    write("--old")
    first = await router_process(config)
    log_file = tmp_path / "logs" / "engines" / "s.log"
    async with asyncio.timeout(10):
        while not (log_file.exists() and "up" in log_file.read_text()):
            await asyncio.sleep(0.02)
    first.kill()
    await first.wait()
    write("--new")
    second = await router_process(config)
    try:
        async with asyncio.timeout(10):
            while not await answers(port):
                await asyncio.sleep(0.02)
        second.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            # What it has taken over by now it stops, within `stop_timeout_s`.
            await asyncio.wait_for(second.wait(), 1)
        if second.returncode is None:
            second.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(second.wait(), 15) in (0, 1)
    finally:
        await end_all_of(stubborn)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def router_process(config: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "enginerouter", "--config", str(config)), stderr=asyncio.subprocess.DEVNULL
    )


async def answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def end_all_of(script: Path) -> None:
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if str(script) in (process.info["cmdline"] or []):
            process.kill()
