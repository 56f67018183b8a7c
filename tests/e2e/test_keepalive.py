"""Bytes for clients that wait: when the status is committed, what is sent, and what is never broken by it."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import re
import time

import pytest
from engine_server import (
    DONE,
    SSE_HEAD,
    chunk,
    chunked,
    completion,
    event,
    head,
    ok,
    sse,
)
from router_kit import CHAT, Client, MakeRouter, RouterUnderTest, chat, sdk_of

from enginerouter.errors import StartFailed

# A client is told after 20 ms, then every 30 ms.
SOON = {"commit_after_s": 0.02, "first_byte_commit_s": 0.02, "swap_keepalive_interval_s": 0.03}


async def begun(client: Client, *, stream: bool = True, model: str = "a", **headers: str) -> None:
    await client.send("POST", CHAT, chat(model, stream=stream), headers)


def comments(text: bytes) -> list[bytes]:
    return [line for line in text.split(b"\n") if line.startswith(b":")]


# --- the status


async def test_a_fast_failure_keeps_its_status(make_router: MakeRouter) -> None:
    router = await make_router(commit_after_s=5.0)
    router.engines["a"].start_error = StartFailed("a", "a has no model file")
    answer = await router.ask(chat(stream=True))
    assert answer.status == 502
    assert answer.error["code"] == "start_failed"
    assert answer.header("content-type") == "application/json"
    assert answer.header("x-should-retry") == "false"


async def test_an_engine_that_refuses_at_once_keeps_its_status_after_a_slow_swap(make_router: MakeRouter) -> None:
    router = await make_router(commit_after_s=5.0)
    router.engines["a"].server.script = ok(b'{"error":{"message":"no"}}', status=422)
    assert (await router.ask(chat(stream=True))).status == 422


async def test_a_slow_swap_commits_200_and_sends_comments(make_router: MakeRouter) -> None:
    router = await make_router(**SOON)
    router.engines["a"].starting.shut()
    async with router.client() as client:
        began_at = time.monotonic()
        await begun(client)
        assert await client.head() == 200
        assert 0.015 <= time.monotonic() - began_at < 1
        assert client.header("content-type") == "text/event-stream; charset=utf-8"
        assert client.header("cache-control") == "no-cache"
        assert client.header("x-accel-buffering") == "no"
        assert client.header("x-request-id")
        assert client.header("x-enginerouter-resolved") is None
        frames = [await client.piece() for _ in range(4)]
        for frame in frames:
            assert re.fullmatch(rb": swap starting a \d+s\n\n", frame), frame
        router.engines["a"].starting.open()
        rest, is_whole = await client.rest()
        assert is_whole
        assert rest.count(b": served by a/a\n\n") == 1
        assert rest.index(b": served by a/a\n\n") < rest.index(b"data:")
        assert rest.endswith(event("a ") + event("serves a") + DONE)


async def test_comments_come_at_the_interval(make_router: MakeRouter) -> None:
    router = await make_router(commit_after_s=0.0, swap_keepalive_interval_s=0.05)
    router.engines["a"].starting.shut()
    async with router.client() as client:
        await begun(client)
        await client.head()
        times = []
        for _ in range(6):
            await client.piece()
            times.append(time.monotonic())
        gaps = [b - a for a, b in itertools.pairwise(times)]
        assert 0.04 <= sorted(gaps)[len(gaps) // 2] <= 0.09, gaps
        assert sum(gaps) >= 0.2
        router.engines["a"].starting.open()
        await client.rest()


@pytest.mark.parametrize("path", ["/completion", "/infill"])
@pytest.mark.parametrize("fails", [False, True])
async def test_llama_cpp_s_own_streams_are_kept_alive_and_never_end_with_done(
    make_router: MakeRouter, path: str, fails: bool
) -> None:
    router = await make_router(**SOON)
    router.engines["a"].starting.shut()
    router.engines["a"].start_error = StartFailed("a", "a has no model file") if fails else None
    router.engines["a"].server.script = sse(b'data: {"content": "x", "stop": true}\n\n')
    async with router.client() as client:
        await client.send("POST", path, chat(stream=True))
        assert await client.head() == 200
        assert re.fullmatch(rb": swap starting a \d+s\n\n", await client.piece())
        router.engines["a"].starting.open()
        rest, is_whole = await client.rest()
    assert is_whole
    assert b"[DONE]" not in rest
    last = rest.split(b"\n\n")[-2]
    assert last.startswith(b'data: {"error": {"message": "a has no' if fails else b'data: {"content": "x"'), rest


async def test_no_text_begins_with_ping_whatever_the_engine_is_called(make_router: MakeRouter) -> None:
    """Continue reads `: ping` as an event of its own."""
    router = await make_router(("ping", "pong"), **SOON)
    router.engines["ping"].starting.shut()
    silent = asyncio.Event()
    router.engines["ping"].server.script = [silent, *sse(DONE)]
    async with router.client() as client:
        await begun(client, model="ping")
        await client.head()
        seen = await client.piece()
        router.engines["ping"].starting.open()
        seen += await client.until(b"waiting")
        silent.set()
        seen += (await client.rest())[0]
    assert len(comments(seen)) >= 3
    assert not [c for c in comments(seen) if c.lstrip(b": ").startswith(b"ping")]


async def test_whoever_queues_behind_a_busy_engine_hears_so(make_router: MakeRouter) -> None:
    router = await make_router(**SOON, swap_max_wait_s=60.0)
    hold = asyncio.Event()
    router.engines["a"].server.script = [hold, *ok(completion("x"))]
    async with router.client() as first, router.client() as second:
        await begun(first, stream=False)
        await router.engines["a"].server.exchange()
        await begun(second, model="b")
        await second.head()
        assert await second.piece() == b": queued b behind a 0s\n\n"
        hold.set()
        assert (await first.answer()).text == "x"
        seen, is_whole = await second.rest()
        assert is_whole
        assert seen.endswith(event("b ") + event("serves b") + DONE)


async def test_keep_alive_goes_on_while_the_engine_is_silent_before_its_headers(make_router: MakeRouter) -> None:
    router = await make_router(**SOON)
    await router.load()
    go = asyncio.Event()
    router.engines["a"].server.script = [go, *sse(event("x"), DONE)]
    async with router.client() as client:
        await begun(client)
        await client.head()
        for _ in range(3):
            assert re.fullmatch(rb": waiting for a/a \d+s\n\n", await client.piece())
        go.set()
        seen, is_whole = await client.rest()
        assert is_whole
        assert seen.endswith(b": served by a/a\n\n" + event("x") + DONE)


async def test_the_status_is_held_for_first_byte_commit_once_the_lease_is_granted(make_router: MakeRouter) -> None:
    router = await make_router(commit_after_s=0.01, first_byte_commit_s=0.3)
    await router.load()
    router.engines["a"].server.script = [0.1, *ok(b'{"error":{"message":"full"}}', status=503)]
    assert (await router.ask(chat(stream=True))).status == 503


async def test_keep_alive_goes_on_between_the_headers_and_the_first_event_and_between_events(
    make_router: MakeRouter,
) -> None:
    """Two newlines before the engine's first byte, one after it."""
    router = await make_router(**SOON)
    await router.load()
    first, second = asyncio.Event(), asyncio.Event()
    router.engines["a"].server.script = [SSE_HEAD, first, chunk(b"id: 1\n" + event("x")), second, *chunked([DONE])]
    async with router.client() as client:
        await begun(client)
        await client.head()
        assert client.header("x-enginerouter-resolved") == "a/a"
        for _ in range(2):
            assert re.fullmatch(rb": waiting for a/a \d+s\n\n", await client.piece())
        first.set()
        assert (await client.until(event("x"))).endswith(b"id: 1\n" + event("x"))
        for _ in range(2):
            assert re.fullmatch(rb": waiting for a/a \d+s\n", await client.piece())
        second.set()
        seen, is_whole = await client.rest()
        assert is_whole
        assert seen.endswith(DONE)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
async def test_nothing_gets_inside_an_event_that_comes_in_parts(make_router: MakeRouter, line_end: bytes) -> None:
    router = await make_router(**{**SOON, "swap_keepalive_interval_s": 0.01})
    await router.load()
    whole = event("héllo").replace(b"\n", line_end)
    cuts = [2, 9, len(whole) // 2, len(whole) - 2 * len(line_end), len(whole) - len(line_end), len(whole) - 1]
    parts = [whole[a:b] for a, b in itertools.pairwise([0, *sorted(set(cuts)), len(whole)])]
    paced = list(itertools.chain.from_iterable((p, 0.02) for p in parts))
    router.engines["a"].server.script = sse(*paced, *paced, 0.04, DONE)
    answer = await router.ask(chat(stream=True))
    assert answer.is_whole
    without = re.sub(rb": waiting for a/a \d+s\n+", b"", answer.body)
    assert without == whole + whole + DONE
    assert answer.body.count(whole) == 2
    assert answer.body.count(b": waiting") >= 1


async def test_nothing_is_added_to_a_finished_stream(make_router: MakeRouter) -> None:
    router = await make_router(commit_after_s=0.0, first_byte_commit_s=0.0, swap_keepalive_interval_s=0.01)
    await router.load()
    async with router.client() as client:
        await begun(client)
        await client.answer()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.reader.read(1)


# --- what a client wishes


async def _while_it_starts(router: RouterUnderTest, seconds: float, *, stream: bool = True, **headers: str) -> bytes:
    """The raw bytes of an answer to a request that waits this long for the start."""
    router.engines["a"].starting.shut()
    async with router.client() as client:
        await begun(client, stream=stream, **headers)
        await router.engines["a"].starting.reached.wait()
        await asyncio.sleep(seconds)
        router.engines["a"].starting.open()
        await client.head()
        return (await client.rest())[0]


async def test_keepalive_off_sends_nothing_and_keeps_the_status_open(make_router: MakeRouter) -> None:
    router = await make_router(**SOON)
    router.engines["a"].server.script = ok(b"{}", status=418)
    assert await _while_it_starts(router, 0.1, **{"X-EngineRouter-Keepalive": "off"}) == b"{}"


async def test_keepalive_event_sends_progress_events(make_router: MakeRouter) -> None:
    router = await make_router(**SOON)
    seen = await _while_it_starts(router, 0.1, **{"X-EngineRouter-Keepalive": "event"})
    assert re.match(rb'event: model_switching\ndata: \{"status": "swap starting a \d+s"\}\n\n', seen)


async def test_a_client_may_wish_for_comments_where_events_are_configured(make_router: MakeRouter) -> None:
    router = await make_router(**SOON, swap_progress="event")
    assert (await _while_it_starts(router, 0.1)).startswith(b"event: model_switching\n")
    router.router.coordinator.unload(next(iter(router.router.coordinator.slots)))
    await router.until(lambda: router.phase("a") == "cold")
    seen = await _while_it_starts(router, 0.1, **{"X-EngineRouter-Keepalive": "comment"})
    assert seen.startswith(b": swap starting")
    assert b"model_switching" not in seen


async def test_keepalive_switched_off_in_the_configuration_sends_nothing(make_router: MakeRouter) -> None:
    router = await make_router(**SOON, swap_keepalive_enabled=False)
    seen = await _while_it_starts(router, 0.1, **{"X-EngineRouter-Keepalive": "comment"})
    assert not comments(seen)


async def test_prefill_keepalive_off_is_silent_once_the_lease_is_granted(make_router: MakeRouter) -> None:
    router = await make_router(**SOON, prefill_keepalive=False)
    router.engines["a"].starting.shut()
    go = asyncio.Event()
    router.engines["a"].server.script = [go, SSE_HEAD, 0.06, *chunked([event("x"), 0.06, DONE])]
    async with router.client() as client:
        await begun(client)
        await client.head()
        await client.until(b"starting")
        router.engines["a"].starting.open()
        await router.engines["a"].server.exchange()
        await asyncio.sleep(0.08)
        go.set()
        seen, is_whole = await client.rest()
    assert is_whole
    assert b"waiting" not in seen


async def test_a_plain_request_gets_no_byte_before_its_answer(make_router: MakeRouter) -> None:
    router = await make_router(**SOON)
    seen = await _while_it_starts(router, 0.1, stream=False)
    assert seen == completion("a serves a", "a")


async def test_white_space_before_json_parses_and_says_nothing_else(make_router: MakeRouter) -> None:
    router = await make_router(**SOON)
    seen = await _while_it_starts(router, 0.15, stream=False, **{"X-EngineRouter-Keepalive": "json"})
    assert re.match(rb" {2,}\{", seen)
    assert seen.strip() == completion("a serves a", "a")


async def test_json_keepalive_after_s_holds_the_status_for_that_long(make_router: MakeRouter) -> None:
    router = await make_router(json_keepalive_after_s=0.05, swap_keepalive_interval_s=0.02)
    router.engines["a"].start_error = StartFailed("a", "no")
    assert (await router.ask(chat())).status == 502
    router.engines["a"].start_error = None
    assert (await _while_it_starts(router, 0.1, stream=False)).startswith(b" ")


@pytest.mark.parametrize("failure", ["start", "status", "crash", "packed", "not json"])
async def test_a_failure_after_white_space_breaks_the_connection_without_a_last_chunk(
    make_router: MakeRouter, failure: str
) -> None:
    """A 200 with an error object would be silently accepted by openai-python."""
    router = await make_router(**SOON)
    engine = router.engines["a"]
    engine.starting.shut()
    hold = asyncio.Event()
    plain = [("Content-Type", "application/json")]
    if failure == "start":
        engine.start_error = StartFailed("a", "no")
    elif failure == "status":
        engine.server.script = ok(b'{"error":"full"}', status=500)
    elif failure == "crash":
        engine.server.script = [head(200, [*plain, ("Transfer-Encoding", "chunked")]), chunk(b'{"x":'), hold]
    elif failure == "packed":
        engine.server.script = ok(gzip.compress(b"{}"), headers=[*plain, ("Content-Encoding", "gzip")])
    else:
        engine.server.script = ok(b"x", headers=[("Content-Type", "text/plain")])
    async with router.client() as client:
        await begun(client, stream=False, **{"X-EngineRouter-Keepalive": "json"})
        assert await client.head() == 200
        assert await client.piece() == b" "
        engine.starting.open()
        if failure == "crash":
            await client.until(b'{"x":')
            await engine.crash()
        seen, is_whole = await client.rest()
    assert not is_whole
    assert b"error" not in seen


async def test_white_space_never_comes_before_audio(make_router: MakeRouter) -> None:
    router = await make_router(**SOON, json_keepalive_after_s=0.0)
    router.engines["a"].server.script = [0.1, *ok(b"RIFF", headers=[("Content-Type", "audio/wav")])]
    answer = await router.ask(chat(), path="/v1/audio/speech")
    assert (answer.body, answer.header("content-type")) == (b"RIFF", "audio/wav")


# --- after an early commit


async def test_an_engine_s_error_after_the_commit_is_an_error_event(make_router: MakeRouter) -> None:
    router = await make_router(**SOON)
    router.engines["a"].server.script = [0.1, *ok(b'{"error":{"message":"context full","code":400}}', status=400)]
    answer = await router.ask(chat(stream=True))
    assert answer.status == 200
    assert answer.is_whole
    assert b'"message": "context full"' in answer.body
    assert answer.body.endswith(DONE)


@pytest.mark.parametrize("kind", ["json", "packed"])
async def test_what_is_no_event_stream_after_the_commit_is_an_error_event(make_router: MakeRouter, kind: str) -> None:
    router = await make_router(**SOON)
    packed = [("Content-Type", "text/event-stream"), ("Content-Encoding", "gzip")]
    script = ok(completion("x")) if kind == "json" else ok(gzip.compress(event("x")), headers=packed)
    router.engines["a"].server.script = [0.1, *script]
    answer = await router.ask(chat(stream=True))
    assert b'"code": "upstream_failed"' in answer.body
    assert answer.body.endswith(DONE)
    assert b"\x1f\x8b" not in answer.body


async def test_a_slow_reader_gets_no_heap_of_keep_alives(make_router: MakeRouter) -> None:
    """What does not fit in the client's socket waits, and nothing is queued behind it."""
    router = await make_router(commit_after_s=0.0, first_byte_commit_s=0.0, swap_keepalive_interval_s=0.01)
    await router.load()
    hold = asyncio.Event()
    large = b"data: " + b"x" * 8_000_000 + b"\n\n"
    router.engines["a"].server.script = [SSE_HEAD, chunk(large), hold, *chunked([DONE])]
    async with router.client() as client:
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await begun(client)
        await router.engines["a"].server.exchange(1)
        await asyncio.sleep(0.3)
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        await client.head()
        hold.set()
        seen, is_whole = await client.rest()
    assert is_whole
    assert seen.count(b": waiting") <= 5
    assert large in seen


async def test_the_sdk_reads_a_stream_through_keep_alives_of_every_phase(make_router: MakeRouter) -> None:
    router = await make_router(**SOON)
    router.engines["a"].starting.shut()
    router.engines["a"].server.script = [
        0.05,
        SSE_HEAD,
        0.05,
        *chunked([b"id: 3\n" + event("Hel"), 0.1, event("lo"), DONE]),
    ]
    asyncio.get_running_loop().call_later(0.1, router.engines["a"].starting.open)
    async with sdk_of(router) as sdk:
        stream = await sdk.chat.completions.create(model="a", messages=[{"role": "user", "content": "hi"}], stream=True)
        text = [c.choices[0].delta.content async for c in stream]
    assert "".join(t or "" for t in text) == "Hello"


async def test_the_sdk_reads_json_behind_white_space(make_router: MakeRouter) -> None:
    router = await make_router(**SOON)
    router.engines["a"].starting.shut()
    asyncio.get_running_loop().call_later(0.1, router.engines["a"].starting.open)
    async with sdk_of(router) as sdk:
        said = await sdk.chat.completions.create(
            model="a",
            messages=[{"role": "user", "content": "hi"}],
            extra_headers={"X-EngineRouter-Keepalive": "json"},
        )
    assert said.choices[0].message.content == "a serves a"


async def test_an_interval_of_almost_nothing_is_no_flood(make_router: MakeRouter) -> None:
    """Predecessor E17: 98,950 frames in three seconds. One frame is sent at a time."""
    router = await make_router(commit_after_s=0.0, swap_keepalive_interval_s=0.1)
    seen = await _while_it_starts(router, 0.35)
    assert 2 <= len(comments(seen)) <= 6


async def test_a_kept_connection_serves_the_next_request_after_an_early_commit(make_router: MakeRouter) -> None:
    router = await make_router(**SOON)
    router.engines["a"].server.script = [0.08, *sse(event("x"), DONE)]
    async with router.client() as client:
        for _ in range(2):
            await begun(client)
            assert (await client.answer()).is_whole
