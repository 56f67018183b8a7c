"""Readiness: the rule and the pace, as plain functions; the probe against a socket."""

from __future__ import annotations

import asyncio
import json

import pytest

from enginerouter.engines.probe import Prober, ReadyRule, gap_s, judge


def rule(check: str = "", url: str = "http://x/health", status: int = 200) -> ReadyRule:
    return ReadyRule(url, status, check, 1.0)


def test_the_gap_between_probes_is_a_twentieth_of_the_wait_within_bounds() -> None:
    assert gap_s(0.0) == 0.02
    assert gap_s(1.0) == pytest.approx(0.05)
    assert gap_s(1000.0) == 0.25


@pytest.mark.parametrize(
    ("check", "document", "is_ready"),
    [
        ("model:a", {"data": [{"id": "b"}, {"id": "a"}]}, True),
        ("model:a", {"models": ["a"]}, True),
        ("model:a", [{"name": "a"}], True),
        ("model:a", ["b", "a"], True),
        ("model:a", {"model": "a"}, True),
        ("model:a", {"data": [{"id": "ab"}]}, False),
        ("model:a", {"data": None}, False),
        ("model:a", "a", True),
        ("model:org/a:q4", {"data": [{"id": "org/a:q4"}]}, True),
        ("status==ok", {"status": "ok"}, True),
        ("status == ok", {"status": "ok"}, True),
        ("status==ok", {"status": "loading"}, False),
        ("a.b==1", {"a": {"b": 1}}, True),
        ("a.b==True", {"a": {"b": True}}, True),
        ("a.b==true", {"a": {"b": True}}, True),
        ("a.b==null", {"a": {"b": None}}, True),
        ("a.b==1", {"a.b": 1}, True),
        ("state==loaded", [{"state": "x"}, {"state": "loaded"}], True),
        ("a.b==1", {"a": [{"b": 2}, {"b": 1}]}, True),
        ("a.b==1", {"a": 1}, False),
        ("a==", {"a": ""}, True),
        ("a==1", 7, False),
    ],
)
def test_a_check_looks_into_the_json(check: str, document: object, is_ready: bool) -> None:
    assert judge(rule(check), 200, json.dumps(document).encode()).is_ready is is_ready


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_is_not_ready_where_a_check_wants_some(body: bytes) -> None:
    answer = judge(rule("a==b"), 200, body)
    assert not answer.is_ready
    assert answer.answered
    assert judge(rule(), 200, body).is_ready


def test_only_the_wanted_status_is_ready() -> None:
    assert not judge(rule(), 204, b"").is_ready
    assert judge(rule(status=204), 204, b"").is_ready


async def test_a_probe_carries_control_headers_and_key_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """C6: with HTTP_PROXY set, nothing was ever ready."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    heads = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        prober = Prober({"X-Control": "1"}, "secret")
        for _ in range(2):
            found = await prober.probe(rule(url=f"http://127.0.0.1:{port}/health"), "127.0.0.1", port, 2.0)
            assert found.is_ready
        await prober.close()
    for head in heads:
        assert b"X-Control: 1" in head
        assert b"Authorization: Bearer secret" in head
        assert b"Cookie" not in head


async def test_a_configured_header_replaces_ours_however_it_is_written() -> None:
    heads = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        prober = Prober({"authorization": "Basic eDp5"}, "secret")
        await prober.probe(rule(url=f"http://127.0.0.1:{port}/health"), "127.0.0.1", port, 2.0)
        await prober.close()
    assert [line for line in heads[0].splitlines() if line.lower().startswith(b"authorization")] == [
        b"authorization: Basic eDp5"
    ]


async def test_a_probe_that_needs_no_body_waits_for_none() -> None:
    """A ready path may be a stream that never ends."""
    is_over = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()
        is_over.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        prober = Prober({}, None)
        found = await prober.probe(rule(url=f"http://127.0.0.1:{port}/"), "127.0.0.1", port, 2.0)
        await prober.close()
        await is_over.wait()
    assert found.is_ready


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"\0" * 9000])
async def test_whoever_speaks_no_http_is_not_ready_and_nothing_raises(said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        prober = Prober({}, None)
        found = await prober.probe(rule(url=f"http://127.0.0.1:{port}/"), "127.0.0.1", port, 2.0)
        await prober.close()
    assert not found.is_ready
    assert found.saw
