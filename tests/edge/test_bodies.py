"""Request bodies: bounded, uncompressed, paid for, and invited only after the checks."""

from __future__ import annotations

import asyncio
import gzip
import json
import os

import pytest
from edge_kit import HOST, KEYS, MakeEdge

from enginerouter.web.body import MIB, BodyLimits

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
KEY = b"Authorization: Bearer user-key\r\n"


def with_length(body: bytes, more: bytes = b"") -> bytes:
    return CHAT + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


def in_chunks(body: bytes, size: int, more: bytes = b"") -> bytes:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    framed = b"".join(b"%x\r\n" % len(piece) + piece + b"\r\n" for piece in pieces)
    return CHAT + more + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [0, 1, 1000, 300_000, 3 * MIB])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_arrives_whole(make_edge: MakeEdge, size: int, chunked: bool) -> None:
    edge = await make_edge()
    body = os.urandom(size)
    answer = await edge.ask(in_chunks(body, 65_000) if chunked else with_length(body))
    assert answer.status == 200
    assert edge.seen[0][3] == body
    assert edge.edge.budget.used_bytes == 0


async def test_a_declared_length_above_the_limit_is_refused_before_a_byte_is_read(make_edge: MakeEdge) -> None:
    edge = await make_edge(limits=BodyLimits(max_bytes=1000))
    async with edge.client() as client:
        await client.send(CHAT + b"Content-Length: 1001\r\n\r\n")
        answer = await client.answer()
        assert answer.status == 413
        assert answer.headers["connection"] == "close"
    assert edge.seen == []


async def test_a_chunked_body_above_the_limit_is_refused_while_it_arrives(make_edge: MakeEdge) -> None:
    edge = await make_edge(limits=BodyLimits(max_bytes=1000))
    assert (await edge.ask(in_chunks(b"a" * 1001, 100))).status == 413
    async with edge.client() as client:
        await client.send(CHAT + b"Transfer-Encoding: chunked\r\n\r\n")
        await asyncio.sleep(0.02)
        await client.send(b"7d0\r\n" + b"a" * 2000)
        assert (await client.answer()).status == 413
    assert edge.seen == []
    assert edge.edge.budget.used_bytes == 0


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"deflate", b"zstd", b"gzip, identity", b"GZIP", b"x"])
async def test_compressed_bodies_are_refused(make_edge: MakeEdge, encoding: bytes) -> None:
    """No zip bomb, and no body whose length describes something else (F3, F19)."""
    edge = await make_edge()
    bomb = gzip.compress(bytes(10 * MIB))
    answer = await edge.ask(with_length(bomb, b"Content-Encoding: " + encoding + b"\r\n"))
    assert answer.status == 415
    assert edge.seen == []


async def test_identity_is_no_compression(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    assert (await edge.ask(with_length(b"{}", b"Content-Encoding: identity\r\n"))).status == 200


async def test_all_waiting_bodies_share_one_budget(make_edge: MakeEdge) -> None:
    edge = await make_edge(budget_bytes=1000)
    async with edge.client() as holder:
        await holder.send(CHAT + b"Content-Length: 900\r\n\r\n" + b"a" * 800)
        await asyncio.sleep(0.02)
        answer = await edge.ask(with_length(b"a" * 300))
        assert answer.status == 429
        assert answer.error["code"] == "queue_full"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert (await edge.ask(with_length(b"a" * 100))).status == 200
        await holder.send(b"a" * 100)
        assert (await holder.answer()).status == 200
    assert edge.edge.budget.used_bytes == 0
    assert (await edge.ask(with_length(b"a" * 1000))).status == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_form_goes_to_a_private_file_and_costs_no_budget(make_edge: MakeEdge, chunked: bool) -> None:
    edge = await make_edge(budget_bytes=2 * MIB)
    body = os.urandom(6 * MIB)
    kind = b"Content-Type: multipart/form-data; boundary=b\r\n"
    data = in_chunks(body, 50_000, kind) if chunked else with_length(body, kind)
    async with edge.client() as client:
        sending = asyncio.create_task(client.send(data))
        answer = await client.answer()
        await sending
    assert answer.status == 200
    assert json.loads(answer.body) == {
        "size": len(body),
        "params": {},
        "in_file": True,
        "mode": 0o600,
        "links": 0,  # it has no name that anybody could open
    }
    assert edge.seen[0][3] == body
    assert edge.calls[0].body is not None
    assert edge.calls[0].body.file is None  # closed by the edge
    assert edge.edge.budget.used_bytes == 0


async def test_a_small_form_stays_in_memory(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    answer = await edge.ask(with_length(b"a" * 1000, b"Content-Type: multipart/form-data; boundary=b\r\n"))
    assert b'"in_file": false' in answer.body


async def test_continue_is_said_only_after_the_key_was_checked(make_edge: MakeEdge) -> None:
    edge = await make_edge(keys=KEYS)
    expect = b"Expect: 100-continue\r\nContent-Length: 2\r\n"
    async with edge.client() as client:
        await client.send(CHAT + expect + b"\r\n")
        answer = await client.answer()
        assert answer.status == 401
        assert answer.headers["connection"] == "close"
    async with edge.client() as client:
        await client.send(CHAT + KEY + expect + b"\r\n")
        assert (await client.answer()).status == 100
        await client.send(b"{}")
        assert (await client.answer()).status == 200
        assert not await client.is_closed()
    assert [body for *_, body in edge.seen if body] == [b"{}"]


async def test_no_continue_for_what_is_too_large_or_already_here(make_edge: MakeEdge) -> None:
    edge = await make_edge(limits=BodyLimits(max_bytes=10))
    assert (await edge.ask(CHAT + b"Expect: 100-continue\r\nContent-Length: 11\r\n\r\n")).status == 413
    assert (await edge.ask(with_length(b"{}", b"Expect: 100-Continue\r\n"))).status == 200


async def test_http10_knows_no_expect(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    data = with_length(b"{}", b"Expect: whatever\r\n").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert (await edge.ask(data)).status == 200


async def test_a_hundred_thousand_tiny_chunks_are_read_in_bounded_time(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    loop = asyncio.get_running_loop()
    async with edge.client() as client:
        started = loop.time()
        sending = asyncio.create_task(client.send(in_chunks(b"a" * 100_000, 1)))
        assert (await client.answer(5)).status == 200
        await sending
        assert loop.time() - started < 3
    assert edge.seen[0][3] == b"a" * 100_000


async def test_a_refused_upload_gets_its_answer_and_not_a_reset(make_edge: MakeEdge) -> None:
    edge = await make_edge(keys=KEYS)
    async with edge.client() as client:
        await client.send(CHAT + b"Content-Length: 5000000\r\n\r\n" + b"a" * 100_000)
        assert (await client.answer()).status == 401
        assert await client.is_closed()


async def test_an_unread_small_body_does_not_cost_the_connection(make_edge: MakeEdge) -> None:
    edge = await make_edge(keys=KEYS)
    async with edge.client() as client:
        await client.send(with_length(b"{}"))
        assert (await client.answer()).status == 401
        assert not await client.is_closed()
