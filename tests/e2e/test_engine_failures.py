"""A dead or broken engine never looks like a finished answer: what clients and the official SDK see instead."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator

import openai
import pytest
from engine_server import (
    CLOSE,
    DONE,
    RST,
    SSE_HEAD,
    UNFRAMED_SSE_HEAD,
    Script,
    chunk,
    chunked,
    completion,
    event,
    head,
    ok,
    sse,
)
from openai import AsyncOpenAI
from router_kit import CHAT, MakeRouter, RouterUnderTest, chat, sdk_of

from enginerouter.errors import StartFailed, StartTimedOut

HI = [{"role": "user", "content": "hi"}]
SOON = {"commit_after_s": 0.02, "first_byte_commit_s": 0.02, "swap_keepalive_interval_s": 0.03}
JSON = ("Content-Type", "application/json")


@pytest.fixture
async def routed(make_router: MakeRouter) -> RouterUnderTest:
    router = await make_router(**SOON)
    await router.load()
    return router


async def streamed(sdk: AsyncOpenAI, model: str = "a") -> AsyncIterator[str]:
    async for part in await sdk.chat.completions.create(model=model, messages=HI, stream=True):  # type: ignore[arg-type]
        yield part.choices[0].delta.content or ""


async def read_until_error(sdk: AsyncOpenAI, model: str = "a") -> tuple[str, openai.APIError]:
    """The text that came, and the error that ended it."""
    text = ""
    try:
        async for part in streamed(sdk, model):
            text += part
    except openai.APIError as error:
        return text, error
    raise AssertionError(f"the SDK took {text!r} for a finished answer")


# --- with the SDK


async def test_the_sdk_raises_for_a_start_that_fails_after_the_commit(make_router: MakeRouter) -> None:
    router = await make_router(**SOON)
    engine = router.engines["a"]
    engine.starting.shut()
    engine.start_error = StartFailed("a", "engine 'a' could not start: out of memory")
    asyncio.get_running_loop().call_later(0.1, engine.starting.open)
    async with sdk_of(router) as sdk:
        _, error = await read_until_error(sdk)
    assert "engine 'a' could not start: out of memory" in error.message
    assert error.code == "start_failed"


async def test_the_sdk_raises_at_once_for_a_start_that_fails_before_the_commit(make_router: MakeRouter) -> None:
    router = await make_router()
    router.engines["a"].start_error = StartTimedOut("a", "engine 'a' was not ready within 3 s")
    async with sdk_of(router, max_retries=2) as sdk:
        for stream in (True, False):
            with pytest.raises(openai.InternalServerError) as caught:
                await sdk.chat.completions.create(model="a", messages=HI, stream=stream)  # type: ignore[call-overload]
            assert caught.value.status_code == 504
            assert "engine 'a'" in caught.value.message
    assert router.engines["a"].starts == 2, "x-should-retry: false keeps the SDK from starting a broken engine again"


@pytest.mark.parametrize("resets", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("framing", ["chunked", "unframed"])
async def test_the_sdk_raises_for_a_crash_mid_stream(routed: RouterUnderTest, framing: str, resets: bool) -> None:
    engine = routed.engines["a"]
    hold = asyncio.Event()
    if framing == "chunked":
        engine.server.script = [SSE_HEAD, chunk(event("Hel")), chunk(event("lo")), hold]
    else:
        engine.server.script = [UNFRAMED_SSE_HEAD, event("Hel"), event("lo"), hold]
    async with sdk_of(routed) as sdk:
        reading = asyncio.create_task(read_until_error(sdk))
        await engine.server.exchange(1)
        await routed.until(lambda: any(le.last_byte_at > le.granted_at for le in leases(routed)))
        await asyncio.sleep(0.02)
        await engine.crash("engine 'a' died: signal 11", resets=resets, noticed_after_s=0.02)
        text, error = await reading
    assert text == "Hello"
    assert error.message == "engine 'a' died: signal 11"
    assert error.code == "engine_crashed"


def leases(router: RouterUnderTest) -> list:  # type: ignore[type-arg]
    return [le for s in router.router.coordinator.slots.values() for le in s.leases]


BREAKS: dict[str, Script] = {
    "reset": [SSE_HEAD, chunk(event("Hello")), 0.05, RST],
    "closed between events": [SSE_HEAD, chunk(event("Hello")), CLOSE],
    "closed in an event": [SSE_HEAD, chunk(event("Hello")), chunk(b'data: {"cho'), 0.02, CLOSE],
    "closed in a chunk": [SSE_HEAD, chunk(event("Hello")), b"ff\r\ndata: {", 0.02, CLOSE],
    "bad chunk size": [SSE_HEAD, chunk(event("Hello")), 0.02, b"zz\r\n", CLOSE],
    "truncated length": [
        head(200, [("Content-Type", "text/event-stream"), ("Content-Length", "9999")]),
        event("Hello"),
        CLOSE,
    ],
    "large truncated length": [
        head(200, [("Content-Type", "text/event-stream"), ("Content-Length", "99999999")]),
        event("Hello"),
        CLOSE,
    ],
}


@pytest.mark.parametrize("how", BREAKS)
async def test_the_sdk_raises_for_a_stream_that_breaks_off(routed: RouterUnderTest, how: str) -> None:
    routed.engines["a"].server.script = BREAKS[how]
    async with sdk_of(routed) as sdk:
        text, error = await read_until_error(sdk)
    assert text == "Hello"
    assert "the answer of a broke off" in error.message


async def test_the_half_of_an_event_that_came_is_kept_back(routed: RouterUnderTest) -> None:
    """openai-python raises JSONDecodeError for it, and never reads the error that follows."""
    routed.engines["a"].server.script = BREAKS["closed in an event"]
    answer = await routed.ask(chat(stream=True))
    assert b"cho" not in answer.body.replace(event("Hello"), b"").replace(b"choices", b"")
    assert re.match(rb"(: waiting for a/a \d+s\n)*data: \{\"error\": ", answer.body.removeprefix(event("Hello")))
    assert answer.body.endswith(b"\n\n" + DONE)


async def test_a_huge_event_is_passed_on_in_parts_and_ended_before_the_error_frame(routed: RouterUnderTest) -> None:
    routed.engines["a"].server.script = [SSE_HEAD, chunk(b"data: " + b"x" * 200_000), 0.05, chunk(b"yz"), 0.02, CLOSE]
    answer = await routed.ask(chat(stream=True))
    assert re.match(rb'data: x{200000}yz\n\ndata: \{"error": ', answer.body)
    assert b": waiting" not in answer.body


async def test_the_error_of_a_responses_stream_is_one_the_sdk_raises(routed: RouterUnderTest) -> None:
    said = {"type": "response.created", "sequence_number": 0, "response": {"id": "resp_1"}}
    created = f"event: response.created\ndata: {json.dumps(said)}\n\n".encode()
    routed.engines["a"].server.script = [SSE_HEAD, chunk(created), CLOSE]
    async with sdk_of(routed) as sdk:
        with pytest.raises(openai.APIError, match="the answer of a broke off"):
            async for _ in await sdk.responses.create(model="a", input="hi", stream=True):
                pass


@pytest.mark.parametrize("resets", [False, True], ids=["FIN", "RST"])
async def test_a_crash_before_the_answer_is_502_and_names_the_engine(routed: RouterUnderTest, resets: bool) -> None:
    engine = routed.engines["a"]
    engine.server.script = [asyncio.Event()]
    asking = asyncio.create_task(routed.ask(chat()))
    await engine.server.exchange(1)
    await engine.crash("engine 'a' died: out of memory", resets=resets, noticed_after_s=0.03)
    answer = await asking
    assert answer.status == 502
    assert answer.error["message"] == "engine 'a' died: out of memory"
    assert answer.error["code"] == "engine_crashed"
    assert len(engine.server.received) == 2, "it was not asked twice"


PLAIN_BREAKS: dict[str, Script] = {
    "truncated length": [head(200, [JSON, ("Content-Length", "99")]), b'{"choi', CLOSE],
    "truncated chunks": [head(200, [JSON, ("Transfer-Encoding", "chunked")]), CLOSE],
    "no answer": [CLOSE],
    "half a head": [b"HTTP/1.1 200 OK\r\nContent-Ty", CLOSE],
    "reset": [RST],
    "garbage": [b"220 mail.example ESMTP\r\n\r\n", CLOSE],
    "not a number": [b"HTTP/1.1 abc OK\r\n\r\n", CLOSE],
    "two lengths": [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", CLOSE],
    "negative length": [b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}", CLOSE],
    "huge header": [b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", CLOSE],
    "an error whose body breaks off": [head(500, [JSON, ("Content-Length", "99")]), b'{"er', CLOSE],
}


@pytest.mark.parametrize("how", PLAIN_BREAKS)
async def test_a_plain_answer_that_breaks_off_is_502_or_cut(routed: RouterUnderTest, how: str) -> None:
    routed.engines["a"].server.script = PLAIN_BREAKS[how]
    async with routed.client() as client:
        await client.send("POST", CHAT, chat())
        answer = await client.answer()
    if answer.status == 200:
        assert not answer.is_whole
    else:
        assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
        assert answer.error["message"].startswith(("a ", "the answer of a "))
    await routed.idle()


async def test_a_large_plain_answer_that_breaks_off_is_cut_not_ended(routed: RouterUnderTest) -> None:
    routed.engines["a"].server.script = [head(200, [JSON, ("Content-Length", "9000000")]), b" " * 5_000_000, CLOSE]
    answer = await routed.ask(chat())
    assert not answer.is_whole


async def test_a_plain_answer_in_chunks_that_breaks_off_is_cut_not_ended(routed: RouterUnderTest) -> None:
    routed.engines["a"].server.script = [
        head(200, [JSON, ("Transfer-Encoding", "chunked")]), chunk(b'{"a":'), 0.02, CLOSE
    ]  # fmt: skip
    answer = await routed.ask(chat())
    assert not answer.is_whole
    assert b"error" not in answer.body


async def test_an_answer_without_length_cut_by_a_crash_is_not_ended(routed: RouterUnderTest) -> None:
    engine = routed.engines["a"]
    engine.server.script = [head(200, [("Content-Type", "text/plain")]), b"one ", asyncio.Event()]
    async with routed.client() as client:
        await client.send("POST", CHAT, chat())
        await client.head()
        await client.until(b"one ")
        await engine.crash(noticed_after_s=0.03)
        _, is_whole = await client.rest()
    assert not is_whole


async def test_a_crash_in_one_engine_leaves_the_streams_of_others_alone(make_router: MakeRouter) -> None:
    router = await make_router({"a": {}, "b": {"holds_memory": False}})
    hold = asyncio.Event()
    for name in "ab":
        router.engines[name].server.script = [SSE_HEAD, chunk(event("x")), hold, *chunked([DONE])]
    async with router.client() as first, router.client() as second:
        for client, model in ((first, "a"), (second, "b")):
            await client.send("POST", CHAT, chat(model, stream=True))
            await client.head()
            await client.until(event("x"))
        await router.engines["a"].crash()
        assert b"engine_crashed" in (await first.rest())[0]
        hold.set()
        assert await second.rest() == (DONE, True)


async def test_the_request_after_a_crash_starts_the_engine_again(routed: RouterUnderTest) -> None:
    await routed.engines["a"].crash()
    await routed.load()
    assert routed.engines["a"].starts == 2


async def test_what_a_drain_cuts_says_so_in_band(make_router: MakeRouter) -> None:
    router = await make_router(drain_timeout_s=0.05, on_drain_timeout="cut")
    router.engines["a"].server.script = [SSE_HEAD, chunk(event("x")), asyncio.Event()]
    async with router.client() as client:
        await client.send("POST", CHAT, chat(stream=True))
        await client.head()
        await client.until(event("x"))
        assert (await router.ask(chat("b"))).text == "b serves b"
        seen, is_whole = await client.rest()
    assert is_whole
    assert b'"code": "cut_for_swap"' in seen
    assert seen.endswith(DONE)


# --- the one retry


async def test_a_pooled_connection_that_the_engine_closed_is_replaced_once(make_router: MakeRouter) -> None:
    """Predecessor D8: up to half of the requests were a 502."""
    router = await make_router()
    server = router.engines["a"].server
    server.queued = [[*ok(completion("1")), 0.003, CLOSE] for _ in range(60)]
    statuses = []
    async with router.client() as client:
        for _ in range(60):
            await client.send("POST", CHAT, chat())
            statuses.append((await client.answer()).status)
            await asyncio.sleep(0.003)
    assert statuses == [200] * 60


async def test_the_body_of_the_retry_is_the_same(make_router: MakeRouter) -> None:
    router = await make_router(aliases={"fast": "a"})
    server = router.engines["a"].server
    await router.load()
    server.queued = [[CLOSE]]
    answer = await router.ask(chat("fast", pad="x" * 100_000))
    assert answer.status == 200
    _, first, second = server.received
    assert first.body == second.body == chat("a", pad="x" * 100_000)
    assert (server.exchanges[1].number, server.exchanges[2].number) == (1, 0), "reused, then new"


async def test_there_is_no_second_retry(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.load()
    router.engines["a"].server.script = [CLOSE]
    answer = await router.ask(chat())
    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
    assert len(router.engines["a"].server.received) == 3


async def test_a_fresh_connection_is_not_retried(make_router: MakeRouter) -> None:
    router = await make_router()
    router.engines["a"].server.script = [CLOSE]
    assert (await router.ask(chat())).status == 502
    assert len(router.engines["a"].server.received) == 1


async def test_after_a_part_of_an_answer_there_is_no_retry(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.load()
    router.engines["a"].server.queued = [[b"HTTP/1.1 200 OK\r\nConte", 0.02, CLOSE]]
    assert (await router.ask(chat())).status == 502
    assert len(router.engines["a"].server.received) == 2


async def test_a_request_that_the_dying_engine_took_is_not_sent_to_its_next_life(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.load()
    engine = router.engines["a"]
    engine.server.script = [asyncio.Event()]
    asking = asyncio.create_task(router.ask(chat()))
    await engine.server.exchange(1)
    assert engine.server.exchanges[1].number == 1, "on a reused connection"
    await engine.crash("engine 'a' died", noticed_after_s=0.04)
    assert (await asking).error["code"] == "engine_crashed"
    assert len(engine.server.received) == 2


async def test_an_engine_that_refuses_connections_is_named_with_its_address(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.load()
    await router.engines["a"].server.stop()
    answer = await router.ask(chat())
    assert answer.status == 502
    assert f"a refuses connections at http://127.0.0.1:{router.engines['a'].server.port}" in answer.error["message"]


@pytest.mark.parametrize("size", [100_000, 3_000_000, 20_000_000])
async def test_an_engine_that_refuses_before_it_has_read_the_request_is_heard(
    make_router: MakeRouter, size: int
) -> None:
    router = await make_router()
    server = router.engines["a"].server
    server.reads_bodies = False
    server.script = [*ok(b'{"error":{"message":"too long"}}', status=413), 0.1, CLOSE]
    answer = await router.ask(chat(pad="x" * size))
    assert (answer.status, answer.error["message"]) == (413, "too long")


@pytest.mark.parametrize("stream", [event("Hel") + event("lo") + DONE, b"data: 1\r\n\r\n", b"data: [DONE]\n", b"data"])
async def test_a_stream_of_single_bytes_arrives_whole(routed: RouterUnderTest, stream: bytes) -> None:
    """Also one whose last event has no blank line behind it."""
    routed.engines["a"].server.script = sse(*(bytes([b]) for b in stream))
    answer = await routed.ask(chat(stream=True))
    assert answer.is_whole
    assert answer.body == stream
