"""What every answer carries, and what becomes of errors."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiohttp import web
from edge_kit import HOST, KEYS, MakeEdge

from enginerouter.web.listener import parser_problem
from enginerouter.web.request import RequestIds, is_sane_id

ADMIN = b"X-API-Key: admin-key\r\n"
USER = b"X-API-Key: user-key\r\n"


def get(path: bytes, more: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"GET " + path + b" HTTP/" + version + b"\r\n" + HOST + more + b"\r\n"


async def test_every_answer_has_an_id_of_its_own(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    ids = [(await edge.ask(get(p))).headers["x-request-id"] for p in (b"/v1/models", b"/nowhere", b"//", b"/health")]
    assert len(set(ids)) == 4
    assert all(is_sane_id(i) for i in ids)


async def test_a_sane_id_of_the_client_comes_back(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    for path in (b"/v1/models", b"/nowhere", b"/test/bug"):
        answer = await edge.ask(get(path, b"X-Request-Id: trace-42.a/b\r\n"))
        assert answer.headers["x-request-id"] == "trace-42.a/b"


@pytest.mark.parametrize("given", [b"", b"a b", b"a" * 129, b"\xff", "ü".encode(), b"a\tb"])
async def test_other_ids_are_replaced(make_edge: MakeEdge, given: bytes) -> None:
    edge = await make_edge()
    answer = await edge.ask(get(b"/v1/models", b"X-Request-Id: " + given + b"\r\n"))
    assert answer.status == 200
    assert is_sane_id(answer.headers["x-request-id"])
    assert answer.headers["x-request-id"].encode() != given


def test_ids_are_cheap_and_differ_between_processes() -> None:
    one, two = RequestIds(), RequestIds()
    assert len({one.new(), one.new(), two.new(), two.new()}) == 4


async def test_head_is_answered_where_get_is(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    async with edge.client() as client:
        await client.send(get(b"/v1/models").replace(b"GET", b"HEAD"))
        answer = await client.answer(has_body=False)
        assert answer.status == 200
        assert not await client.is_closed()


async def test_http10_gets_its_answer_and_the_end_of_the_connection(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    async with edge.client() as client:
        await client.send(get(b"/v1/models", version=b"1.0"))
        assert (await client.answer()).status == 200
        assert await client.is_closed()


async def test_a_bug_is_logged_once_with_its_traceback_and_not_shown(
    make_edge: MakeEdge, caplog: pytest.LogCaptureFixture
) -> None:
    edge = await make_edge()
    answer = await edge.ask(get(b"/test/bug?key=in-the-query"))
    assert answer.status == 500
    assert answer.error["code"] == "internal_error"
    assert b"secret detail" not in answer.body
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.exc_info is not None
    assert "secret detail" in str(record.exc_info[1])
    assert "in-the-query" not in record.getMessage()
    assert answer.headers["x-request-id"] in record.getMessage()


async def test_details_are_for_admin_keys(make_edge: MakeEdge) -> None:
    edge = await make_edge(keys=KEYS)
    user, admin = [await edge.ask(get(b"/test/crashed", key)) for key in (USER, ADMIN)]
    assert user.status == admin.status == 502
    assert user.error["message"] == "engine 'llama' died"
    assert user.error["type"] == "server_error"
    assert user.error["code"] == "engine_crashed"
    assert "detail" not in user.error
    assert admin.error["detail"] == "CUDA error"


async def test_retry_after_is_clamped_and_hopeless_retries_are_said_so(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    answer = await edge.ask(get(b"/test/circuit"))
    assert answer.status == 503
    assert answer.headers["retry-after"] == "60"
    assert answer.headers["x-should-retry"] == "false"
    answer = await edge.ask(get(b"/test/crashed"))
    assert "retry-after" not in answer.headers
    assert "x-should-retry" not in answer.headers


async def test_an_error_after_the_answer_began_cuts_it(make_edge: MakeEdge, caplog: pytest.LogCaptureFixture) -> None:
    """A tidy last chunk would make a cut stream look complete."""
    edge = await make_edge()
    with caplog.at_level(logging.INFO):
        async with edge.client() as client:
            await client.send(get(b"/test/cut"))
            async with asyncio.timeout(1):
                data = await client.reader.read()
    assert b"data: 1\n\n" in data
    assert b"0\r\n\r\n" not in data
    assert caplog.records == []


async def test_an_answer_whose_headers_cannot_be_sent_is_a_logged_500(
    make_edge: MakeEdge, caplog: pytest.LogCaptureFixture
) -> None:
    edge = await make_edge()
    answer = await edge.ask(get(b"/test/bad-header"))
    assert answer.status == 500
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


async def test_ids_with_slashes_are_decoded_after_the_match(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    for path, name in [
        (b"/v1/models/qwen3:8b", "qwen3:8b"),
        (b"/v1/models/llama/qwen3", "llama/qwen3"),
        (b"/v1/models/llama%2Fqwen3%20coder", "llama/qwen3 coder"),
        (b"/v1/models/%C3%BC", "ü"),
    ]:
        await edge.ask(get(path + b"?a=%2e%2e/;b"))
        assert edge.calls[-1].params == {"id": name}
        assert edge.calls[-1].raw_path == path.decode()
        assert edge.calls[-1].raw_query == "a=%2e%2e/;b"
    await edge.ask(get(b"/upstream/llama/v1/a%20b?x"))
    assert edge.calls[-1].params == {"engine": "llama", "path": "v1/a%20b"}
    await edge.ask(get(b"/upstream/llama/"))
    assert edge.calls[-1].params == {"engine": "llama", "path": ""}
    await edge.ask(b"POST /v1/responses/resp_1/cancel HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n")
    assert edge.calls[-1].params == {"id": "resp_1"}
    assert edge.calls[-1].route.path == "/v1/responses/{id}/cancel"


async def test_a_request_for_an_upgrade_is_an_ordinary_request(make_edge: MakeEdge) -> None:
    edge = await make_edge()
    for protocol in (b"websocket", b"h2c"):
        async with edge.client() as client:
            more = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + protocol + b"\r\nHTTP2-Settings: AAMA\r\n"
            await client.send(get(b"/v1/models", more))
            assert (await client.answer()).status == 200
            assert not await client.is_closed()


async def test_new_rules_apply_from_the_next_request_on(make_edge: MakeEdge) -> None:
    open_edge, keyed = await make_edge(), await make_edge(keys=KEYS)
    async with open_edge.client() as client:
        await client.send(get(b"/v1/models"))
        assert (await client.answer()).status == 200
        open_edge.edge.rules = keyed.edge.rules
        await client.send(get(b"/v1/models"))
        assert (await client.answer()).status == 401


def test_the_c_parser_is_active() -> None:
    assert parser_problem() is None


def test_a_python_parser_or_an_old_release_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import aiohttp
    from aiohttp import http_parser

    monkeypatch.setattr(aiohttp, "__version__", "3.14.3")
    assert "3.14.4" in (parser_problem() or "")
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)
    assert "pure-Python" in (parser_problem() or "")


def test_two_routes_for_one_place_are_an_error() -> None:
    from enginerouter.web.routes import Route, Routes

    async def handler(call: object) -> web.StreamResponse:
        return web.Response()

    with pytest.raises(ValueError, match="two routes"):
        Routes([Route("GET", "/a", handler), Route("GET", "/a", handler)])
