"""What passes through unchanged, what is renamed, and what is kept back – in both directions."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys

import pytest
from engine_server import CLOSE, SSE_HEAD, Received, Script, chunk, chunked, event, head, ok, sse
from router_kit import CHAT, MakeRouter, chat


@pytest.mark.parametrize("status", [201, 400, 404, 422, 429, 500, 503])
async def test_status_and_body_of_the_engine_are_kept(make_router: MakeRouter, status: int) -> None:
    router = await make_router()
    said = b'{"error": {"message": "n\xc3\xb6", "code": 7}, "x" : 1e5}'
    router.engines["a"].server.script = ok(said, status=status)
    for stream in (False, True):
        answer = await router.ask(chat(stream=stream))
        assert (answer.status, answer.body) == (status, said)


async def test_headers_of_the_engine_are_kept_repeated_ones_too(make_router: MakeRouter) -> None:
    router = await make_router()
    given = [("Content-Type", "application/json"), ("Retry-After", "7"), ("x-should-retry", "false"),
             ("X-RateLimit-Remaining", "3"), ("X-Two", "1"), ("X-Two", "2"), ("OpenAI-Version", "x")]  # fmt: skip
    router.engines["a"].server.script = ok(status=429, headers=given)
    answer = await router.ask(chat())
    for name, value in given:
        assert value in answer.all(name)
    assert answer.all("x-two") == ["1", "2"]
    assert len(answer.all("content-type")) == 1


async def test_what_belongs_to_the_engine_s_own_connection_is_kept_back(make_router: MakeRouter) -> None:
    router = await make_router()
    kept_back = [("Connection", "X-Hop, close"), ("X-Hop", "1"), ("Keep-Alive", "timeout=5"), ("Set-Cookie", "a=1"),
                 ("Access-Control-Allow-Origin", "*"), ("Access-Control-Allow-Credentials", "true"),
                 ("Proxy-Authenticate", "Basic"), ("Upgrade", "h2c"), ("Alt-Svc", 'h3=":1"'),
                 ("WWW-Authenticate", "Bearer"), ("X-EngineRouter-Resolved", "forged/name")]  # fmt: skip
    router.engines["a"].server.script = [*ok(headers=[("Content-Type", "application/json"), *kept_back]), CLOSE]
    answer = await router.ask(chat())
    assert answer.status == 200
    for name, value in kept_back:
        assert value not in answer.all(name), name
    assert answer.header("server") == "enginerouter"


async def test_an_answer_says_who_gave_it_and_how_long_it_waited(make_router: MakeRouter) -> None:
    router = await make_router()
    answer = await router.ask(chat(), headers={"X-Request-Id": "mine-1"})
    assert answer.header("x-enginerouter-resolved") == "a/a"
    assert answer.header("x-enginerouter-attempts") == "1"
    assert int(answer.header("x-enginerouter-queue-ms") or -1) >= 0
    assert int(answer.header("x-enginerouter-swap-ms") or -1) >= 0
    assert answer.header("x-request-id") == "mine-1"


async def test_the_swap_s_time_is_told_to_whom_it_kept_waiting_and_to_nobody_else(make_router: MakeRouter) -> None:
    router = await make_router()
    router.engines["a"].server.script = None
    starting = router.engines["a"].starting
    starting.shut()
    async with router.client() as client:
        await client.send("POST", CHAT, chat())
        await starting.reached.wait()
        await router.until(lambda: router.router.coordinator.queued == 1)

        await asyncio.sleep(0.05)
        starting.open()
        first = await client.answer()
    second = await router.ask(chat())
    assert int(first.header("x-enginerouter-swap-ms") or 0) >= 40
    assert int(first.header("x-enginerouter-queue-ms") or 0) >= 40
    assert second.header("x-enginerouter-swap-ms") == "0"


ODD = (
    '{ "messages":[ {"role":"user", "content":"héllo \\u00e9 \u2028 \\ud83d\\ude00"} ],'
    '"n":1.0,"n":2,\n\t"model" : "a" }'
)


async def test_a_body_that_needs_no_change_is_passed_on_byte_for_byte(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.ask(ODD.encode())
    got = router.engines["a"].server.received[0]
    assert got.body == ODD.encode()
    assert got.all("content-length") == [str(len(ODD.encode()))]


async def test_a_renamed_body_keeps_every_other_byte(make_router: MakeRouter) -> None:
    router = await make_router(aliases={"fast": "a"})
    asked = ODD.replace('"a" }', '"fast" }').encode()
    await router.ask(asked)
    assert router.engines["a"].server.received[0].body == ODD.encode()


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"fast","messages":[{"role":"user","content":"say \\"model\\":\\"fast\\""}]}',
        '{"tools":[{"parameters":{"properties":{"model":{"type":"string"}}}}],"model":"fast"}',
        '{"mod\\u0065l":"fast","x":"\\ud800"}',
        '{"model":"f\\u0061st","x":[1,2.50,1e3]}',
        '{"metadata":{"model":"fast"},"model":"fast"}',
    ],
)
async def test_an_alias_is_the_engine_s_name_upstream_and_nothing_else_changes(
    make_router: MakeRouter, body: str
) -> None:
    router = await make_router(
        models=[{"id": "m", "engine": "a", "upstream_id": 'org/"m".gguf'}], aliases={"fast": "m"}
    )
    answer = await router.ask(body.encode())
    assert answer.status == 200
    got = router.engines["a"].server.received[0].json
    assert got == {**json.loads(body), "model": 'org/"m".gguf'}


async def test_a_lone_surrogate_stays_an_escape_when_the_model_is_renamed(make_router: MakeRouter) -> None:
    router = await make_router(aliases={"fast": "a"})
    await router.ask(b'{"x":{"model":1},"y":"\\ud800","model":"fast"}')
    assert router.engines["a"].server.received[0].body.decode("utf-8")  # strict: engines refuse anything else


async def test_path_and_query_arrive_as_they_were_sent(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.ask(chat(), path=CHAT + "?api-version=2&x=%41+%2f&empty=&y=a%20b&z=/../")
    assert router.engines["a"].server.received[0].target == CHAT + "?api-version=2&x=%41+%2f&empty=&y=a%20b&z=/../"


async def test_a_query_that_is_no_utf8_is_no_internal_error(make_router: MakeRouter) -> None:
    router = await make_router()
    answer = await router.ask(chat(), path=CHAT + "?x=\udcff")
    assert answer.status in (200, 400)


async def test_a_header_that_is_no_utf8_is_no_internal_error(make_router: MakeRouter) -> None:
    """Predecessor D9: a Latin-1 byte in a request header was a 500."""
    router = await make_router()
    answer = await router.ask(chat(), headers={"X-Name": "Jos\udce9", "X-Good": "José"})
    assert answer.status == 200
    got = router.engines["a"].server.received[0]
    assert got.header("x-good") == "José".encode().decode("latin-1")


@pytest.mark.skipif(sys.flags.dev_mode, reason="under -X dev aiohttp refuses such an answer as a whole")
async def test_an_engine_s_header_that_cannot_be_sent_is_dropped_and_the_answer_arrives(
    make_router: MakeRouter,
) -> None:
    """Predecessor D9, the other way."""
    router = await make_router()
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Bad: a\x01b\r\nX-Latin: caf\xe9\r\nX-Good: 1\r\n\r\n{}"
    router.engines["a"].server.script = [raw]
    answer = await router.ask(chat())
    assert (answer.status, answer.body) == (200, b"{}")
    assert answer.header("x-good") == "1"
    assert answer.header("x-bad") is None


async def test_the_client_s_key_never_reaches_an_engine_and_the_engine_s_own_does(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"api_key": "engine-secret", "headers": {"X-Team": "blue"}}, "b": {}})
    sent = {"Authorization": "Bearer client-secret", "X-API-Key": "client-secret", "X_Api_Key": "client-secret",
            "Cookie": "s=1", "Forwarded": "for=1", "X-Forwarded-For": "1.2.3.4", "X-EngineRouter-Keepalive": "off",
            "Origin": "http://localhost", "X-Kept": "yes"}  # fmt: skip
    await router.ask(chat("a"), headers=sent)
    got = router.engines["a"].server.received[0]
    assert got.all("authorization") == ["Bearer engine-secret"]
    assert got.header("x-team") == "blue"
    assert got.header("x-kept") == "yes"
    for name in ("x-api-key", "x_api_key", "cookie", "forwarded", "x-forwarded-for", "x-enginerouter-keepalive",
                 "origin"):  # fmt: skip
        assert got.header(name) is None, name
    await router.ask(chat("b"), headers=sent)
    other = router.engines["b"].server.received[0]
    assert other.header("authorization") is None
    assert "secret" not in repr(other.headers)


async def test_the_engine_is_never_asked_to_pack_its_answer_and_a_packed_one_stays_packed(
    make_router: MakeRouter,
) -> None:
    """Predecessor D5: raw gzip bytes without their Content-Encoding."""
    router = await make_router()
    packed = gzip.compress(b'{"x": 1}')
    given = [("Content-Type", "application/json"), ("Content-Encoding", "gzip")]
    router.engines["a"].server.script = ok(packed, headers=given)
    answer = await router.ask(chat(), headers={"Accept-Encoding": "gzip, br"})
    assert router.engines["a"].server.received[0].all("accept-encoding") == ["identity"]
    assert answer.header("content-encoding") == "gzip"
    assert answer.body == packed


async def test_cookies_of_an_engine_are_neither_passed_on_nor_sent_back(make_router: MakeRouter) -> None:
    """aiohttp's own jar keeps no cookies of bare addresses, but those of names, and sends them for everybody."""
    router = await make_router()
    router.engines["a"].host = "localhost"
    router.engines["a"].server.script = ok(
        headers=[("Content-Type", "application/json"), ("Set-Cookie", "who=alice; Path=/")]
    )
    assert (await router.ask(chat())).header("set-cookie") is None
    await router.ask(chat())
    assert router.engines["a"].server.received[1].header("cookie") is None


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_are_passed_on_and_never_followed(make_router: MakeRouter, status: int) -> None:
    router = await make_router()
    router.engines["a"].server.script = ok(status=status, headers=[("Location", "http://169.254.169.254/")])
    answer = await router.ask(chat())
    assert (answer.status, answer.header("location")) == (status, "http://169.254.169.254/")
    assert len(router.engines["a"].server.received) == 1


async def test_proxies_of_the_environment_are_not_used(
    make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    router = await make_router()
    assert (await router.ask(chat())).status == 200


async def test_an_event_stream_passes_byte_for_byte(make_router: MakeRouter) -> None:
    router = await make_router()
    parts = [
        b": hello\r\n\r\n",
        b'data:{"a":"\xe2\x80\xa8"}\r\n',
        b"\r\n",
        b"id: 7\nretry: 3\n\n",
        b"data: [DO",
        b"NE]\n\n",
    ]
    router.engines["a"].server.script = sse(*parts)
    answer = await router.ask(chat(stream=True))
    assert answer.body == b"".join(parts)
    assert answer.is_whole
    assert answer.header("content-type") == "text/event-stream"


async def test_a_stream_reaches_the_client_piece_by_piece(make_router: MakeRouter) -> None:

    router = await make_router()
    go = asyncio.Event()
    router.engines["a"].server.script = [SSE_HEAD, chunk(event("one")), go, *chunked([event("two")])]
    async with router.client() as client:
        await client.send("POST", CHAT, chat(stream=True))
        assert await client.head() == 200
        assert await client.until(b"one") == event("one")
        go.set()
        assert await client.rest() == (event("two"), True)


async def test_a_stream_that_says_its_length_reaches_the_client_piece_by_piece(make_router: MakeRouter) -> None:

    router = await make_router()
    go = asyncio.Event()
    first, second = event("one"), event("two")
    said = [("Content-Type", "text/event-stream"), ("Content-Length", str(len(first + second)))]
    router.engines["a"].server.script = [head(200, said), first, go, second]
    async with router.client() as client:
        await client.send("POST", CHAT, chat(stream=True))
        await client.head()
        assert await client.until(b"one") == first
        go.set()
        assert await client.rest() == (second, True)


async def test_a_json_answer_to_a_stream_request_keeps_its_type(make_router: MakeRouter) -> None:
    """Predecessor D11: it was labelled an event stream."""
    router = await make_router()
    router.engines["a"].server.script = ok(b'{"object": "list"}')
    answer = await router.ask(chat(stream=True), path="/v1/embeddings")
    assert answer.header("content-type") == "application/json"
    assert answer.body == b'{"object": "list"}'


async def test_a_large_answer_passes_whole(make_router: MakeRouter) -> None:
    router = await make_router()
    body = bytes(range(256)) * 4096 * 5
    router.engines["a"].server.script = ok(body, headers=[("Content-Type", "audio/wav")])
    answer = await router.ask(chat(), path="/v1/audio/speech")
    assert answer.body == body
    assert answer.header("content-length") == str(len(body))


async def test_an_answer_without_a_body_passes(make_router: MakeRouter) -> None:
    router = await make_router()
    router.engines["a"].server.script = [head(204, [("X-Kept", "1")])]
    answer = await router.ask(chat())
    assert (answer.status, answer.body, answer.header("x-kept")) == (204, b"", "1")


async def test_an_answer_without_length_ends_with_its_connection(make_router: MakeRouter) -> None:
    router = await make_router()
    router.engines["a"].server.script = [head(200, [("Content-Type", "text/plain")]), b"one ", b"two", CLOSE]
    answer = await router.ask(chat())
    assert (answer.body, answer.is_whole) == (b"one two", True)


async def test_interim_answers_of_an_engine_are_not_the_answer(make_router: MakeRouter) -> None:
    router = await make_router()

    def storm(received: Received) -> Script:
        return [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 3, b"HTTP/1.1 100 Continue\r\n\r\n", *ok(b"{}")]

    router.engines["a"].server.script = storm
    answer = await router.ask(chat())
    assert (answer.status, answer.body) == (200, b"{}")


async def test_long_headers_of_an_engine_pass(make_router: MakeRouter) -> None:
    router = await make_router()
    router.engines["a"].server.script = ok(headers=[("Content-Type", "application/json"), ("X-Long", "y" * 9000)])
    assert (await router.ask(chat())).header("x-long") == "y" * 9000
