"""Clients that dawdle, vanish or stop half-way: each is bounded by a timer of ours."""

from __future__ import annotations

import asyncio
import socket

import pytest
from edge_kit import HOST, Client, MakeEdge

from enginerouter.web.body import BodyLimits

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
FAST = BodyLimits(max_bytes=1 << 20, progress_s=0.15, min_bytes_per_s=100.0)


async def drip(client: Client, data: bytes, every_s: float) -> None:
    for index in range(len(data)):
        if client.reader.at_eof():
            return
        await client.send(data[index : index + 1])
        await asyncio.sleep(every_s)


@pytest.mark.parametrize(
    "start",
    [b"", b"G", b"GET /v1/mod", b"GET /v1/models HTTP/1.1\r\n", b"GET /v1/models HTTP/1.1\r\n" + HOST],
    ids=["idle", "one byte", "partial line", "no headers", "partial headers"],
)
async def test_headers_that_do_not_come_in_time_get_408(make_edge: MakeEdge, start: bytes) -> None:
    edge = await make_edge(header_timeout_s=0.1)
    async with edge.client() as client:
        await client.send(start)
        answer = await client.answer(1.0)
        assert answer.status == 408
        assert answer.headers["connection"] == "close"
        assert answer.error["code"] == "request_timeout"
        assert await client.reader.read() == b""
    assert edge.seen == []


async def test_a_drip_of_headers_does_not_buy_time(make_edge: MakeEdge) -> None:
    edge = await make_edge(header_timeout_s=0.15)
    async with edge.client() as client:
        started = asyncio.get_running_loop().time()
        dripping = asyncio.create_task(drip(client, b"GET /v1/models HTTP/1.1\r\nX: " + b"a" * 500, 0.01))
        assert (await client.answer(1.0)).status == 408
        assert asyncio.get_running_loop().time() - started < 0.5
        await dripping


async def test_a_further_request_on_a_kept_connection_has_a_header_timer_too(make_edge: MakeEdge) -> None:
    edge = await make_edge(header_timeout_s=0.1)
    async with edge.client() as client:
        for _ in range(3):
            await client.send(b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n")
            assert (await client.answer()).status == 200
            await asyncio.sleep(0.15)  # idle is not slow
        await client.send(b"GET /v1/mod")
        assert (await client.answer(1.0)).status == 408
        assert await client.reader.read() == b""


async def test_an_idle_kept_connection_is_closed_without_a_word(make_edge: MakeEdge) -> None:
    edge = await make_edge(keepalive_timeout_s=0.1)
    async with edge.client() as client:
        await client.send(b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await client.answer()).status == 200
        async with asyncio.timeout(1.0):
            assert await client.reader.read() == b""


async def test_a_request_in_progress_is_not_cut_by_the_header_timer(make_edge: MakeEdge) -> None:
    edge = await make_edge(header_timeout_s=0.05)
    async with edge.client() as client:
        await client.send(b"GET /test/wait HTTP/1.1\r\n" + HOST + b"\r\n")
        await asyncio.sleep(0.2)
        assert not client.reader.at_eof()
    await asyncio.sleep(0.02)
    assert edge.cancelled == 1


@pytest.mark.parametrize(
    "data",
    [
        CHAT + b"Content-Length: 1000\r\n\r\n",
        CHAT + b"Content-Length: 1000\r\n\r\n{",
        CHAT + b"Transfer-Encoding: chunked\r\n\r\n",
        CHAT + b"Transfer-Encoding: chunked\r\n\r\n100\r\n{",
        CHAT + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    ],
    ids=["no body", "one byte", "no chunk", "stalled chunk", "no last chunk"],
)
async def test_a_body_that_stalls_gets_408_and_the_connection_ends(make_edge: MakeEdge, data: bytes) -> None:
    edge = await make_edge(limits=FAST)
    async with edge.client() as client:
        await client.send(data)
        answer = await client.answer(1.0)
        assert answer.status == 408
        assert answer.headers["connection"] == "close"
        assert await client.is_closed()
    assert edge.seen == []
    assert edge.edge.budget.used_bytes == 0


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_drips_below_the_minimum_rate_gets_408(make_edge: MakeEdge, chunked: bool) -> None:
    """Neither HAProxy nor nginx ends this one: every byte restarts their timers."""
    edge = await make_edge(limits=FAST)
    async with edge.client() as client:
        await client.send(CHAT + (b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1000"))
        await client.send(b"\r\n\r\n")
        body = b"1\r\na\r\n" * 500 if chunked else b"a" * 500
        dripping = asyncio.create_task(drip(client, body, 0.03))
        assert (await client.answer(2.0)).status == 408
        await dripping
    assert edge.seen == []


async def test_a_slow_body_above_the_minimum_rate_is_read(make_edge: MakeEdge) -> None:
    edge = await make_edge(limits=FAST)
    async with edge.client() as client:
        await client.send(CHAT + b"Content-Length: 100\r\n\r\n")
        for _ in range(10):
            await client.send(b"a" * 10)
            await asyncio.sleep(0.05)
        assert (await client.answer(1.0)).status == 200
    assert edge.seen[0][3] == b"a" * 100


async def test_a_client_that_leaves_cancels_its_handler(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    for leave in ("fin", "rst", "half-close"):
        async with edge.client() as client:
            await client.send(b"GET /test/wait HTTP/1.1\r\n" + HOST + b"\r\n")
            await asyncio.sleep(0.02)
            if leave == "half-close":
                client.writer.write_eof()
            elif leave == "rst":
                client.writer.transport.abort()
            else:
                client.writer.close()
            await asyncio.sleep(0.03)
    assert edge.cancelled == 3
    assert edge.server.connections == []


async def test_a_client_that_leaves_mid_body_leaves_nothing_behind(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    async with edge.client() as client:
        await client.send(CHAT + b"Content-Length: 100000\r\n\r\n" + b"a" * 50_000)
        await asyncio.sleep(0.05)
        assert edge.edge.budget.used_bytes == 50_000
    await asyncio.sleep(0.05)
    assert edge.edge.budget.used_bytes == 0
    assert edge.server.connections == []


async def test_five_hundred_slow_clients_do_not_hold_up_a_normal_one(make_edge: MakeEdge) -> None:
    edge = await make_edge(header_timeout_s=1.0, limits=FAST)
    loop = asyncio.get_running_loop()
    slow = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(500)]
    try:
        for index, (_, writer) in enumerate(slow):
            kinds = (b"GET /v1/mo", CHAT + b"Content-Length: 99\r\n\r\n{", b"", CHAT)
            writer.write(kinds[index % 4])
        await asyncio.sleep(0.1)
        started = loop.time()
        for _ in range(20):
            assert (await edge.ask(b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n")).status == 200
        assert (loop.time() - started) / 20 < 0.05
        await asyncio.sleep(1.3)
        assert edge.server.connections == []
    finally:
        for _, writer in slow:
            writer.transport.abort()
        await asyncio.sleep(0)


async def test_the_options_really_took_hold(make_edge: MakeEdge) -> None:
    """aiohttp drops all server options without an error when one is misspelt."""
    edge = await make_edge(header_timeout_s=7.0, keepalive_timeout_s=33.0)
    async with edge.client() as client:
        await client.send(b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n")
        await client.answer()
        (connection,) = edge.server.connections
        assert edge.server.handler_cancellation
        assert connection.keepalive_timeout == 33.0
        assert connection._lingering_time == 0.1
        assert not connection._logging_enabled
        assert connection.max_field_size == 8190
        assert connection.transport is not None
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 15
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 4
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000
