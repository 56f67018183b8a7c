"""What is not quite HTTP (RFC 9112): bytes → status, connection closed or kept; the handlers see nothing."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import pytest
from edge_kit import HOST, KEYS, MakeEdge

from enginerouter import web

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def get(path: bytes, more: bytes = b"") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + HOST + more + b"\r\n"


CLOSED, KEPT = True, False

FRAMING = {
    "CL and TE": (CHAT + b"Content-Length: 4\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400, CLOSED),
    "two equal CLs": (CHAT + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400, CLOSED),
    "two different CLs": (CHAT + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, CLOSED),
    "CL list": (CHAT + b"Content-Length: 4, 4\r\n\r\n{  }", 400, CLOSED),
    "CL with plus": (CHAT + b"Content-Length: +2\r\n\r\n{}", 400, CLOSED),
    "CL negative": (CHAT + b"Content-Length: -2\r\n\r\n{}", 400, CLOSED),
    "CL with underscore": (CHAT + b"Content-Length: 1_0\r\n\r\n{}", 400, CLOSED),
    "CL overflow": (CHAT + b"Content-Length: 99999999999999999999999\r\n\r\n{}", 400, CLOSED),
    "unknown TE": (CHAT + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, CLOSED),
    "gzip, chunked": (CHAT + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, CLOSED),
    "chunked not last": (CHAT + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400, CLOSED),
    "chunked twice": (CHAT + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", {400, 501}, CLOSED),
    "two TE headers": (CHAT + b"Transfer-Encoding: gzip\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400, CLOSED),
    "HTTP/1.0 with TE": (
        b"POST /v1/chat/completions HTTP/1.0\r\n" + HOST + CHUNKED + b"\r\n0\r\n\r\n",
        400,
        CLOSED,
    ),
    "obs-fold": (get(b"/v1/models", b"X-A: 1\r\n  2\r\n"), 400, CLOSED),
    "space before colon": (get(b"/v1/models", b"X-A : 1\r\n"), 400, CLOSED),
    "empty header name": (get(b"/v1/models", b": 1\r\n"), 400, CLOSED),
    "NUL in a value": (get(b"/v1/models", b"X-A: 1\x002\r\n"), 400, CLOSED),
    "control byte in a value": (get(b"/v1/models", b"X-A: 1\x012\r\n"), 400, CLOSED),
    "bare CR": (get(b"/v1/models", b"X-A: 1\rX-B: 2\r\n"), 400, CLOSED),
    "bare LF": (b"GET /v1/models HTTP/1.1\nHost: localhost\n\n", 400, CLOSED),
    "no Host": (b"GET /v1/models HTTP/1.1\r\n\r\n", 400, CLOSED),
    "two Hosts": (get(b"/v1/models", b"Host: localhost\r\n"), 400, CLOSED),
    "chunk size 0x": (CHAT + CHUNKED + b"\r\n0x2\r\n{}\r\n0\r\n\r\n", 400, CLOSED),
    "chunk size with plus": (CHAT + CHUNKED + b"\r\n+2\r\n{}\r\n0\r\n\r\n", 400, CLOSED),
    "chunk size with space": (CHAT + CHUNKED + b"\r\n 2\r\n{}\r\n0\r\n\r\n", 400, CLOSED),
    "chunk size overflow": (CHAT + CHUNKED + b"\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n", 400, CLOSED),
    "LF in a chunk extension": (CHAT + CHUNKED + b"\r\n2;a\nb\r\n{}\r\n0\r\n\r\n", 400, CLOSED),
    "chunk longer than it says": (CHAT + CHUNKED + b"\r\n2\r\n{}}}\r\n0\r\n\r\n", 400, CLOSED),
    "trailer flood": (
        CHAT + CHUNKED + b"\r\n0\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(9999)) + b"\r\n",
        400,
        CLOSED,
    ),
    "8 kB of cookies, and more": (get(b"/v1/models", b"Cookie: " + b"a=b;" * 3000 + b"\r\n"), 431, CLOSED),
    "header of 9 kB": (get(b"/v1/models", b"X-A: " + b"a" * 9000 + b"\r\n"), 431, CLOSED),
    "path of 9 kB": (get(b"/v1/models?" + b"a" * 9000), 431, CLOSED),
    "Host of 64 kB": (b"GET /health HTTP/1.1\r\nHost: " + b"a" * 65536 + b"\r\n\r\n", 431, CLOSED),
    "200 headers": (get(b"/v1/models", b"".join(b"X-%d: 1\r\n" % i for i in range(200))), 400, CLOSED),
    "HTTP/0.9": (b"GET /v1/models\r\n\r\n", 400, CLOSED),
    "HTTP/0.9 by name": (b"GET /v1/models HTTP/0.9\r\n\r\n", 400, CLOSED),
    "HTTP/1.2": (b"GET /v1/models HTTP/1.2\r\n" + HOST + b"\r\n", 400, CLOSED),
    "HTTP/2.0": (b"GET /v1/models HTTP/2.0\r\n" + HOST + b"\r\n", 400, CLOSED),
    "h2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, CLOSED),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, CLOSED),
    "lower-case method": (b"get /v1/models HTTP/1.1\r\n" + HOST + b"\r\n", 400, CLOSED),
    "no method": (b"FETCH /v1/models HTTP/1.1\r\n" + HOST + b"\r\n", 400, CLOSED),
    "garbage": (b"\x00\xff\xfe garbage\r\n\r\n", 400, CLOSED),
    "unknown Expect": (CHAT + b"Expect: foo\r\nContent-Length: 2\r\n\r\n{}", 417, KEPT),
    "CONNECT": (b"CONNECT localhost:1 HTTP/1.1\r\n" + HOST + b"\r\n", 405, CLOSED),
    "CONNECT to a path": (b"CONNECT /v1/models HTTP/1.1\r\n" + HOST + b"\r\n", {400, 405}, CLOSED),
    "TRACE": (b"TRACE /v1/models HTTP/1.1\r\n" + HOST + b"\r\n", 405, KEPT),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 405, KEPT),
    "PROPFIND": (b"PROPFIND /v1/models HTTP/1.1\r\n" + HOST + b"\r\n", 405, KEPT),
}

TARGETS = {
    "absolute form": (get(b"http://evil.example/v1/models"), 400, KEPT),
    "absolute form of our own name": (get(b"http://localhost/v1/models"), 400, KEPT),
    "no leading slash": (get(b"v1/models"), 400, CLOSED),
    "raw non-ASCII": (get("/v1/modèls".encode()), 400, CLOSED),
    "NUL": (get(b"/v1/\x00models"), 400, CLOSED),
    "escaped NUL": (get(b"/v1/models%00"), 400, KEPT),
    "escaped NUL in an id": (get(b"/v1/models/a%00b"), 400, KEPT),
    "fragment": (get(b"/v1/models#a"), 400, KEPT),
    "fragment after the query": (get(b"/v1/models?a=1#b"), 400, KEPT),
    "double slash": (get(b"//v1/models"), 400, KEPT),
    "double slash inside": (get(b"/v1//models"), 400, KEPT),
    "dot segment": (get(b"/v1/./models"), 400, KEPT),
    "dot-dot segment": (get(b"/v1/x/../models"), 400, KEPT),
    "dot-dot at the end": (get(b"/v1/models/.."), 400, KEPT),
    "dot-dot in an id": (get(b"/v1/models/../../admin/swap"), 400, KEPT),
    "escaped dot-dot in an id": (get(b"/v1/models/%2e%2e%2fadmin"), 400, KEPT),
    "escaped dots": (get(b"/v1/%2e%2e/models"), 400, KEPT),
    "escaped slash": (get(b"/v1%2Fmodels"), 400, KEPT),
    "backslash": (get(b"/v1\\models"), 400, KEPT),
    "escaped backslash": (get(b"/v1%5cmodels"), 400, KEPT),
    "semicolon": (get(b"/v1/models;a=b"), 400, KEPT),
    "space": (get(b"/v1/ models"), 400, CLOSED),
    "broken escape": (get(b"/v1/models/%zz"), 400, KEPT),
    "not UTF-8": (get(b"/v1/models/%ff"), 400, KEPT),
    "escaped letter": (get(b"/v1/%6dodels"), 404, KEPT),
    "upper case": (get(b"/V1/MODELS"), 404, KEPT),
    "trailing slash": (get(b"/v1/models/"), 404, KEPT),
    "unknown": (get(b"/nowhere"), 404, KEPT),
    "wrong method": (get(b"/v1/chat/completions"), 405, KEPT),
    "a step up through upstream": (get(b"/upstream/llama/../../admin"), 400, KEPT),
    "an escaped step up through upstream": (get(b"/upstream/llama/%2e%2e/admin"), 400, KEPT),
    "an escaped slash through upstream": (get(b"/upstream/llama/a%2fb"), 400, KEPT),
}

# Spellings that slipped past the predecessor's gate on destructive calls.
DELETE = [
    b"/api/./delete",
    b"/api/x/../delete",
    b"/api/tags/../delete",
    b"/api//delete",
    b"//api/delete",
    b"/api/%64elete",
    b"/api%2fdelete",
    b"/api/%2e/delete",
    b"/api/;/delete",
    b"/api/delete;x",
    b"/api\\delete",
    b"/API/DELETE",
    b"/api/delete/",
    b"/api/delete%20",
    b"/api/delete%00",
    b"/api/chat/../delete",
    b"/./api/delete",
]


@pytest.mark.parametrize("name", [*FRAMING, *TARGETS])
@pytest.mark.parametrize("has_keys", [False, True], ids=["open", "keys"])
async def test_what_is_not_plain_http_never_reaches_a_handler(
    make_edge: MakeEdge, caplog: pytest.LogCaptureFixture, name: str, has_keys: bool
) -> None:
    data, expected, closed = (FRAMING | TARGETS)[name]
    edge = await make_edge(keys=KEYS if has_keys else ())
    if has_keys:
        data = data.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer admin-key\r\n\r\n", 1)
    with caplog.at_level(logging.INFO):
        async with edge.client() as client:
            await client.send(data)
            answer = await client.answer(has_body=True)
            assert answer.status in (expected if isinstance(expected, set) else {expected})
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["server"] == "enginerouter"
            assert answer.headers["x-request-id"]
            assert answer.error["message"]
            assert await client.is_closed() is closed
    assert edge.seen == [] or edge.seen == [("GET", "/health", "anonymous" if has_keys else "local", b"")]
    assert [r for r in caplog.records if r.levelno >= logging.INFO] == []


@pytest.mark.parametrize("path", DELETE)
@pytest.mark.parametrize("method", [b"DELETE", b"POST", b"PUT", b"PATCH", b"HEAD"])
async def test_no_spelling_of_a_destructive_path_gets_past_its_gate(
    make_edge: MakeEdge, path: bytes, method: bytes
) -> None:
    edge = await make_edge(keys=KEYS)
    key = b"Authorization: Bearer user-key\r\nX-HTTP-Method-Override: DELETE\r\n"
    data = method + b" " + path + b" HTTP/1.1\r\n" + HOST + key + b"\r\n"
    answer = await edge.ask(data, has_body=method != b"HEAD")
    assert answer.status in (400, 403, 404, 405)
    assert edge.seen == []


async def test_the_destructive_path_itself_needs_an_admin_key(make_edge: MakeEdge) -> None:
    edge = await make_edge(keys=KEYS)
    for key, status in (b"user-key", 403), (b"admin-key", 200), (b"wrong", 401):
        data = b"DELETE /api/delete HTTP/1.1\r\n" + HOST + b"X-API-Key: " + key + b"\r\n\r\n"
        assert (await edge.ask(data)).status == status
    assert [name for _, _, name, _ in edge.seen] == ["admin"]


@pytest.mark.parametrize("trailer", [b"Host: evil.example", b"Authorization: Bearer admin-key"])
async def test_trailers_are_dropped(make_edge: MakeEdge, trailer: bytes) -> None:
    edge = await make_edge(keys=KEYS)
    head = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + CHUNKED
    body = b"\r\n2\r\n{}\r\n0\r\n" + trailer + b"\r\n\r\n"
    assert (await edge.ask(head + body)).status == 401
    assert (await edge.ask(head + b"X-API-Key: user-key\r\n" + body)).status == 200
    assert edge.calls[0].identity.name == "user"
    assert edge.calls[0].request.headers["Host"] == "localhost"


async def test_wrong_method_names_the_right_ones(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    answer = await edge.ask(get(b"/v1/chat/completions"))
    assert answer.headers["allow"] == "POST, OPTIONS"
    answer = await edge.ask(b"POST /v1/models HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n")
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


async def test_a_thousand_malformed_requests_log_nothing_above_debug(
    make_edge: MakeEdge, caplog: pytest.LogCaptureFixture
) -> None:
    edge = await make_edge()
    with caplog.at_level(logging.INFO):
        for _ in range(1000 // 50):
            async with edge.client() as client:
                await client.send(b"NOT HTTP AT ALL\r\n\r\n" * 50)
                assert (await client.answer()).status == 400
    assert caplog.records == []


async def test_garbage_after_a_request_ends_the_connection_and_the_wait_for_its_body(make_edge: MakeEdge) -> None:
    """aiohttp alone lets the reader of that body wait for ever."""
    edge = await make_edge()
    async with edge.client() as client:
        await client.send(CHAT + CHUNKED + b"\r\n2\r\n{}\r\n")
        while not edge.server.requests_count:
            await asyncio.sleep(0.001)
        await client.send(b"nonsense\r\n")
        answer = await client.answer()
        assert answer.status == 400
        assert await client.is_closed()
    assert edge.seen == []


async def test_ten_thousand_pipelined_requests_are_answered_one_by_one(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    async with edge.client() as client:
        sending = client.send(get(b"/health") * 10_000)
        task = asyncio.ensure_future(sending)
        for _ in range(10_000):
            assert (await client.answer(10)).status == 200
        await task
        (connection,) = edge.server.connections
        assert len(connection._messages) <= 32


def test_no_decision_reads_what_is_rebuilt_from_the_host_header() -> None:
    """F1: `request.url`, `.host`, `.path` are what BadHost bends; routing and access read the raw message."""
    rebuilt = re.compile(r"request\.(url|rel_url|host|path|path_qs|scheme|query|query_string|match_info)\b")
    for name in ("edge", "routes", "keys", "origin", "listener", "request"):
        source = (Path(web.__file__).parent / f"{name}.py").read_text()
        assert not rebuilt.search(source), name
