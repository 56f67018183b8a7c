"""Clients that leave, in every phase and in both ways: nothing of them is left, and nobody else notices."""

from __future__ import annotations

import asyncio

import pytest
from engine_server import DONE, SSE_HEAD, chunk, chunked, completion, event, head, ok
from router_kit import CHAT, GIB, Client, MakeRouter, RouterUnderTest, chat

from enginerouter.slots import SlotId
from enginerouter.swap.phases import Phase

PHASES = ("queued", "draining", "freeing", "settling", "starting", "first byte", "mid-stream", "after the last byte")
WAYS = ("FIN", "RST")
# Statuses and comments at once, so that "waiting" includes clients that are committed.
EAGER = {"commit_after_s": 0.0, "first_byte_commit_s": 0.0, "swap_keepalive_interval_s": 0.02}


async def leave(client: Client, way: str) -> None:
    if way == "RST":
        client.reset()
    else:
        await client.close()


class Stage:
    """Brings a request for `a` (resident: `b`) into a phase; `release` lets everything go on."""

    def __init__(self, router: RouterUnderTest, phase: str) -> None:
        self.router = router
        self.phase = phase
        self.hold = asyncio.Event()

    async def prepare(self) -> None:
        """Bring `b` into memory, busy where the phase needs it."""
        a, b = self.router.engines["a"], self.router.engines["b"]
        await self.router.load("b")
        if self.phase in ("queued", "draining"):
            b.server.script = [SSE_HEAD, chunk(event("b")), self.hold, *chunked([DONE])]
        elif self.phase == "freeing":
            b.stopping.shut()
        elif self.phase == "settling":
            b.gives_back = False
        elif self.phase == "starting":
            a.starting.shut()
        elif self.phase == "first byte":
            a.server.script = [self.hold, *ok(completion("x"))]
        elif self.phase == "mid-stream":
            a.server.script = [
                head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]),
                chunk(event("x")), self.hold, *chunked([DONE]),
            ]  # fmt: skip

    async def reach(self, client: Client) -> None:
        """Wait until the request of `client` is where it should be."""
        router, coordinator = self.router, self.router.router.coordinator
        if self.phase == "queued":
            await router.until(lambda: coordinator.queued == 1)
            assert router.phase("b") is Phase.READY
        elif self.phase in ("draining", "freeing", "settling"):
            await router.until(lambda: router.phase("b") is Phase(self.phase))
        elif self.phase == "starting":
            await router.engines["a"].starting.reached.wait()
        elif self.phase == "first byte":
            await router.engines["a"].server.exchange()
        elif self.phase == "mid-stream":
            await client.head()
            await client.until(event("x"))
        else:
            await client.answer()

    def release(self) -> None:
        self.hold.set()
        self.router.memory.bytes = 64 * GIB
        for engine in self.router.engines.values():
            engine.starting.open()
            engine.stopping.open()
            engine.gives_back = True
            engine.server.script = None


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", PHASES)
async def test_nothing_is_left_of_a_client_that_leaves(
    make_router: MakeRouter, phase: str, way: str, stream: bool
) -> None:
    waits = {"swap_max_wait_s": 60.0} if phase == "queued" else {}
    router = await make_router(settles=True, **EAGER, **waits)
    router.engines["b"].held = GIB
    stage = Stage(router, phase)
    await stage.prepare()
    baseline = asyncio.all_tasks()
    async with router.client() as other, router.client() as client:
        if phase in ("queued", "draining"):
            await other.send("POST", CHAT, chat("b", stream=True))
            await other.head()
            await other.until(event("b"))
        await client.send("POST", CHAT, chat("a", stream=stream))
        await stage.reach(client)
        await leave(client, way)
        # Its place in the queue or its lease is given back while everything else stands still.
        others = 1 if phase in ("queued", "draining") else 0
        await router.until(lambda: router.in_flight == others and not router.router.coordinator.queued)
        if phase in ("first byte", "mid-stream"):
            exchange = await router.engines["a"].server.exchange()
            async with asyncio.timeout(1):
                await exchange.gone.wait()
        stage.release()
        if others:
            rest, is_whole = await other.rest()
            assert is_whole
            assert DONE in rest
            assert b"error" not in rest
    # The swap that it began ends one way or the other, and both engines can be had.
    assert (await router.ask(chat("b"))).text == "b serves b"
    assert (await router.ask(chat("a"))).text == "a serves a"
    await router.idle()
    await router.until(lambda: len(asyncio.all_tasks()) <= len(baseline) + 1)


@pytest.mark.parametrize("way", WAYS)
async def test_a_drain_that_nobody_waits_for_is_called_off(make_router: MakeRouter, way: str) -> None:
    router = await make_router(**EAGER)
    stage = Stage(router, "draining")
    await stage.prepare()
    async with router.client() as other, router.client() as client:
        await other.send("POST", CHAT, chat("b", stream=True))
        await other.head()
        await client.send("POST", CHAT, chat("a", stream=True))
        await stage.reach(client)
        await leave(client, way)
        await router.until(lambda: router.phase("b") is Phase.READY)
        stage.release()
        assert (await other.rest())[1]
    assert (router.engines["b"].stops, router.engines["a"].starts) == (0, 0)


async def test_one_of_two_waiters_leaves_and_the_other_is_served_by_the_same_start(make_router: MakeRouter) -> None:
    router = await make_router(**EAGER)
    starting = router.engines["a"].starting
    starting.shut()
    async with router.client() as first, router.client() as second:
        for client in (first, second):
            await client.send("POST", CHAT, chat(stream=True))
            await client.head()
        first.reset()
        await router.until(lambda: router.router.coordinator.queued == 1)
        starting.open()
        rest, is_whole = await second.rest()
    assert is_whole
    assert DONE in rest
    assert router.engines["a"].starts == 1


async def test_a_client_that_leaves_at_the_moment_it_is_served_gives_the_lease_back(make_router: MakeRouter) -> None:
    """The cancellation and the grant meet in one turn of the loop."""
    router = await make_router()
    starting = router.engines["a"].starting
    for turns in range(8):
        starting.shut()
        starting.reached.clear()
        async with router.client() as client:
            await client.send("POST", CHAT, chat(stream=True))
            await starting.reached.wait()
            await router.until(lambda: router.router.coordinator.queued == 1)
            starting.open()
            for _ in range(turns):
                await asyncio.sleep(0)
            client.reset()
        await router.idle()
        router.router.coordinator.unload(SlotId("a"))
        await router.until(lambda: router.phase("a") is Phase.COLD)


async def test_a_client_that_leaves_while_it_sends_its_body_is_forgotten(make_router: MakeRouter) -> None:
    router = await make_router()
    async with router.client() as client:
        client.writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode())
        await client.writer.drain()
        await asyncio.sleep(0.02)
        client.reset()
    assert router.engines["a"].starts == 0


# --- back-pressure


async def test_a_client_that_reads_nothing_stops_the_engine(make_router: MakeRouter) -> None:
    router = await make_router(**EAGER)
    piece = chunk(b"data: " + b"x" * 65_000 + b"\n\n")

    async def pour(exchange: object) -> None:
        await exchange.send(SSE_HEAD)  # type: ignore[attr-defined]
        while True:
            await exchange.send(piece)  # type: ignore[attr-defined]

    router.engines["a"].server.script = [pour]
    async with router.client() as client:
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await client.send("POST", CHAT, chat(stream=True))
        exchange = await router.engines["a"].server.exchange()
        sent = -1
        async with asyncio.timeout(10):
            while sent != exchange.sent_bytes:
                sent = exchange.sent_bytes
                await asyncio.sleep(0.15)
        # Kernel buffers on both hops, and about a megabyte of ours.
        assert sent < 32_000_000
        assert (await router.get("/health")).status == 200
        client.reset()
    await exchange.gone.wait()


async def test_two_hundred_streams_are_served_at_once(make_router: MakeRouter) -> None:
    """Predecessor D12: only a hundred reached the engine."""
    router = await make_router()
    hold = asyncio.Event()
    router.engines["a"].server.script = [SSE_HEAD, chunk(event("x")), hold, *chunked([DONE])]
    await router.router.coordinator.swap_to(SlotId("a"))
    clients = [Client(*await asyncio.open_connection("127.0.0.1", router.port)) for _ in range(200)]
    try:
        for client in clients:
            await client.send("POST", CHAT, chat(stream=True))
        for client in clients:
            await client.head(10)
            await client.until(event("x"))
        assert router.in_flight == 200
        hold.set()
        assert all([await client.rest() == (DONE, True) for client in clients])
    finally:
        for client in clients:
            await client.close()
