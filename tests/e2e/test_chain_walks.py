"""A chain over this box, a cloud and a small box: which failures go on, which do not, and what the client sees."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from chain_kit import Boxes, boxes, reasons, refused, saying
from engine_server import CLOSE, DONE, RST, SSE_HEAD, UNFRAMED_SSE_HEAD, Script, chunk, completion, event, head, ok, sse
from http_servers import say
from router_kit import MakeRouter, RouterUnderTest, chat, sdk_of

from enginerouter.config.model import ApiKey, Health
from enginerouter.errors import StartFailed
from enginerouter.swap.circuit import StartCircuit
from enginerouter.swap.phases import Phase


@pytest.fixture
async def far() -> AsyncIterator[Boxes]:
    async with boxes() as made:
        yield made


def role(text: str = "") -> bytes:
    said = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text or None}, "finish_reason": None}]}
    return b"data: " + json.dumps(said).encode() + b"\n\n"


def said_error(**fields: Any) -> bytes:
    return b"data: " + json.dumps({"error": {"message": "boom", **fields}}).encode() + b"\n\n"


def metric(text: str, name: str) -> float:
    found = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"enginerouter_{name} ")]
    return float(found[0]) if found else 0.0


async def metrics(router: RouterUnderTest) -> str:
    return (await router.get("/metrics")).body.decode()


# What the first target can do that lets the walk go on, with its reason.
GOES_ON: dict[str, tuple[Script, str]] = {
    "500": (refused(500), "http_500"),
    "503 in plain text": (ok(b"busy", status=503), "http_503"),
    "529": (refused(529), "http_529"),
    "408": (refused(408), "http_408"),
    "425": (refused(425), "http_425"),
    "429": (refused(429), "rate_limited"),
    "loop": (refused(508), "loop"),
    "reset before an answer": ([RST], "connection_broke"),
    "closed before an answer": ([CLOSE], "connection_broke"),
    "a page with 200": (ok(b"<html>sign in</html>", headers=[("Content-Type", "text/html")]), "no_answer"),
    "an empty 200": (ok(b""), "no_answer"),
    "an empty object": (ok(b"{}"), "no_answer"),
    "garbage": ([b"220 smtp ready\r\n\r\n", CLOSE], "connection_broke"),
}


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", GOES_ON)
async def test_the_next_target_answers_when_one_fails_before_its_answer(
    make_router: MakeRouter, far: Boxes, name: str, is_stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    script, reason = GOES_ON[name]
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"))
    saying(far.cloud, script)
    answer = await router.ask(chat("best", stream=is_stream))
    assert answer.status == 200
    assert answer.header("x-enginerouter-resolved") == "lxc/small"
    assert answer.header("x-enginerouter-attempts") == "2"
    assert b"serves small" in answer.body
    assert len(far.cloud.received) == 1, "the same engine is not asked twice"
    seen = await metrics(router)
    labels = f'from_model="cloud/big",to_model="lxc/small",reason="{reason}"'
    assert metric(seen, f"fallback_total{{{labels}}}") == 1
    assert metric(seen, 'alias_resolved_total{alias="best",target="lxc/small"}') == 1
    warned = [r for r in caplog.records if "goes on" in r.getMessage() and r.levelno == logging.WARNING]
    assert len(warned) == 1
    assert re.search(rf"best: the chain goes on past cloud/big after 0\.\d\d s \({reason}\): ", warned[0].getMessage())


STREAM_BEGINNINGS: dict[str, tuple[Script, str]] = {
    "an error that names its status": (sse(said_error(code=503)), "http_503"),
    "an error that names nothing": (sse(role(), said_error()), "http_500"),
    "an error event": (sse(b": hi\n\n", b'event: error\ndata: {"message": "x", "type": "rate_limit_error"}\n\n'),
                       "rate_limited"),
    "an error as text": (sse(b'data: {"error": "boom"}\n\n'), "http_500"),
    "reset after a role": ([SSE_HEAD, chunk(role()), 0.02, RST], "connection_broke"),
    "cut within the first event": ([SSE_HEAD, chunk(event("never")[:40]), 0.02, CLOSE], "connection_broke"),
    "an end without an answer": (sse(b": hi\n\n", role()), "connection_broke"),
    "an unframed end without an answer": ([UNFRAMED_SSE_HEAD, role(), CLOSE], "connection_broke"),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAM_BEGINNINGS)
async def test_a_stream_that_has_said_nothing_yet_is_not_the_answer(
    make_router: MakeRouter, far: Boxes, name: str
) -> None:
    script, reason = STREAM_BEGINNINGS[name]
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"))
    saying(far.cloud, script)
    async with sdk_of(router) as client:
        stream = await client.chat.completions.create(model="best", messages=[], stream=True)
        words = [part.choices[0].delta.content async for part in stream]
    assert "".join(words) == "lxc serves small"
    assert f'from_model="cloud/big",to_model="lxc/small",reason="{reason}"' in await metrics(router)


async def test_after_the_first_word_an_error_is_the_clients_to_see(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"))
    saying(far.cloud, [SSE_HEAD, chunk(event("half")), 0.02, RST])
    words: list[str | None] = []

    async def read() -> None:
        async with sdk_of(router) as client:
            stream = await client.chat.completions.create(model="best", messages=[], stream=True)
            async for part in stream:
                words.append(part.choices[0].delta.content)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(openai.APIError, match="broke off"):
        await read()
    assert words == ["half"]
    assert far.lxc.received == []


async def test_every_event_of_the_answer_reaches_the_client_as_it_was_sent(make_router: MakeRouter, far: Boxes) -> None:
    sent = [b": hello\n\n", role(), event("one"), event("two"), DONE]
    router = await far.router(make_router, chain=("cloud/big",))
    saying(far.cloud, sse(*sent))
    answer = await router.ask(chat("best", stream=True))
    assert answer.body == b"".join(sent)


@pytest.mark.parametrize(
    ("status", "more"),
    [
        (400, {"code": "context_length_exceeded"}),
        (404, {"code": "model_not_found"}),
        (422, {}),
        (409, {}),
        (501, {}),
    ],
)
async def test_the_callers_own_mistakes_are_its_answer_and_no_failure(
    make_router: MakeRouter, far: Boxes, status: int, more: dict[str, Any]
) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"))
    saying(far.cloud, refused(status, "yours", **more))
    for _ in range(3):
        answer = await router.ask(chat("best"))
        assert (answer.status, answer.error["message"]) == (status, "yours")
        assert answer.header("x-enginerouter-resolved") == "cloud/big"
    assert far.lxc.received == []


@pytest.mark.parametrize(
    ("status", "more"),
    [
        (400, {"code": "context_length_exceeded"}),
        (404, {}),
        (413, {}),
        (501, {}),
        (400, {"type": "not_supported_error"}),
    ],
)
async def test_with_on_mismatch_next_what_one_cannot_do_the_next_may(
    make_router: MakeRouter, far: Boxes, status: int, more: dict[str, Any]
) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"), on_mismatch="next")
    saying(far.cloud, refused(status, **more))
    for _ in range(3):
        assert (await router.ask(chat("best"))).text == "lxc serves small"
    assert len(far.cloud.received) == 3, "it says nothing of the target's health"


async def test_an_error_with_status_200_is_an_error(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"))
    saying(far.cloud, say({"error": {"message": "upstream is overloaded", "code": 502}}))
    assert (await router.ask(chat("best"))).text == "lxc serves small"


async def test_a_whole_answer_that_breaks_off_goes_on(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"))
    saying(
        far.cloud, [head(200, [("Content-Type", "application/json"), ("Content-Length", "100")]) + b'{"id"', 0.02, RST]
    )
    assert (await router.ask(chat("best"))).text == "lxc serves small"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_target_that_hangs_is_left_after_its_time(make_router: MakeRouter, far: Boxes, is_stream: bool) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"), first_byte_timeout_s=0.1)
    saying(far.cloud, [SSE_HEAD, chunk(b": working\n\n"), asyncio.Event()] if is_stream else [asyncio.Event()])
    answer = await router.ask(chat("best", stream=is_stream))
    assert answer.header("x-enginerouter-resolved") == "lxc/small"
    assert (await far.cloud.exchange()).gone.is_set(), "the failed connection is closed first"


# --- nothing left


async def test_nothing_left_is_a_503_that_tells_every_attempt(
    make_router: MakeRouter, far: Boxes, caplog: pytest.LogCaptureFixture
) -> None:
    router = await far.router(make_router)
    router.a.start_error = StartFailed("a", "engine 'a' exited with status 1")
    saying(far.cloud, refused(500))
    await far.lxc.stop()
    failed = await router.ask(chat("best"))
    assert (failed.status, failed.error["code"]) == (503, "no_healthy_target")
    assert reasons(failed) == [("a", "start_failed"), ("cloud", "http_500"), ("lxc", "connection_refused")]
    first, second, third = failed.error["attempts"]
    assert second == {
        "engine": "cloud",
        "model": "big",
        "reason": "http_500",
        "status": 500,
        "seconds": second["seconds"],
    }
    assert "status" not in first
    assert all(0 <= entry["seconds"] < 5 for entry in (first, second, third))
    assert any("a/a: start_failed; cloud/big: http_500; lxc/small" in r.getMessage() for r in caplog.records)
    seen = await metrics(router)
    assert 'fallback_total{from_model="a/a",to_model="cloud/big",reason="start_failed"} 1' in seen
    assert 'fallback_total{from_model="lxc/small",to_model="none",reason="connection_refused"} 1' in seen
    assert 'requests_total{dialect="openai",requested="best",target="none",status="503"} 1' in seen


async def test_with_the_sdk_nothing_left_is_an_internal_server_error_with_the_attempts(
    make_router: MakeRouter, far: Boxes
) -> None:
    router = await far.router(make_router, chain=("cloud/big",))
    saying(far.cloud, refused(500))
    async with sdk_of(router) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="best", messages=[])
    assert caught.value.code == "no_healthy_target"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["attempts"][0]["engine"] == "cloud"


@pytest.mark.parametrize(
    ("cloud", "is_final"),
    [(refused(400, code="context_length_exceeded"), True), (refused(401), True), (refused(500), False)],
    ids=["too long", "our key", "broken"],
)
async def test_what_would_end_so_again_is_not_to_be_tried_again(
    make_router: MakeRouter, far: Boxes, cloud: Script, is_final: bool
) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"), on_mismatch="next")
    saying(far.cloud, cloud)
    saying(far.lxc, refused(413))
    failed = await router.ask(chat("best"))
    assert (failed.status, failed.error["code"]) == (503, "no_healthy_target")
    assert (failed.header("x-should-retry"), failed.header("retry-after")) == ("false" if is_final else None, None)


async def test_two_failures_open_the_circuit_and_the_target_is_passed_over(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"))
    saying(far.cloud, refused(500))
    tries = [(await router.ask(chat("best"))).header("x-enginerouter-attempts") for _ in range(4)]
    assert tries == ["2", "2", "1", "1"]
    assert len(far.cloud.received) == 2
    saying(far.lxc, refused(500))
    for _ in range(3):
        failed = await router.ask(chat("best"))
    assert reasons(failed) == [("cloud", "circuit_open"), ("lxc", "circuit_open")]
    assert 1 <= int(failed.header("retry-after") or 0) <= 60


async def test_a_rate_limit_is_a_time_to_be_left_alone_not_a_death(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("cloud/big",))
    limited = json.dumps({"error": {"message": "slow", "type": "x"}}).encode()
    json_type = ("Content-Type", "application/json")
    saying(far.cloud, ok(limited, status=429, headers=[json_type, ("Retry-After", "7")]))
    first, second = await router.ask(chat("best")), await router.ask(chat("best"))
    assert reasons(first) == reasons(second) == [("cloud", "rate_limited")]
    assert len(far.cloud.received) == 1
    assert int(second.header("retry-after") or 0) in (6, 7)


# --- the operator's keys


@pytest.mark.parametrize(
    ("status", "more"),
    [
        (401, {}),
        (402, {}),
        (403, {}),
        (429, {"code": "insufficient_quota"}),
        (400, {"message": "API key not valid. Please pass a valid API key."}),
        (400, {"message": "Your credit balance is too low to access the Anthropic API."}),
    ],
)
async def test_what_refuses_the_operators_key_goes_on_and_is_left_alone(
    make_router: MakeRouter, far: Boxes, status: int, more: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"))
    saying(far.cloud, refused(status, **more))
    for _ in range(3):
        assert (await router.ask(chat("best"))).text == "lxc serves small"
    assert len(far.cloud.received) == 1
    assert any(r.levelno >= logging.WARNING and "key_refused" in r.getMessage() for r in caplog.records)


async def test_with_nowhere_left_the_client_is_told_that_it_is_not_its_key(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("cloud/big",))
    saying(far.cloud, refused(401))
    for _ in range(2):
        failed = await router.ask(chat("best"))
        assert (failed.status, failed.error["code"]) == (502, "key_refused")
        assert "engine 'cloud' refused our key" in failed.error["message"]


async def test_a_refusal_of_content_is_the_callers(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"))
    saying(far.cloud, refused(403, metadata={"reasons": ["violence"], "flagged_input": "…"}))
    assert (await router.ask(chat("best"))).status == 403
    assert far.lxc.received == []


async def test_an_engine_without_a_key_of_ours_speaks_to_the_caller(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("lxc/small", "cloud/big"))
    saying(far.lxc, refused(401))
    assert (await router.ask(chat("best"))).status == 401


# --- what may be repeated


@pytest.mark.parametrize(
    ("path", "body", "goes_on"),
    [
        ("/v1/responses", {"input": "x"}, True),
        ("/v1/responses", {"input": "x", "store": False}, True),
        ("/v1/responses", {"input": "x", "store": True}, False),
        ("/v1/responses", {"input": "x", "background": True}, False),
        ("/v1/responses", {"input": "x", "previous_response_id": "resp_1"}, False),
        ("/v1/images/generations", {"prompt": "x"}, False),
        ("/v1/audio/speech", {"input": "x"}, False),
        ("/v1/completions", {"prompt": "x"}, True),
        ("/v1/rerank", {"query": "x"}, True),
    ],
)
async def test_what_may_have_happened_already_does_not_happen_twice(
    make_router: MakeRouter, far: Boxes, path: str, body: dict[str, Any], goes_on: bool
) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"))
    saying(far.cloud, refused(500, "broken"))
    answer = await router.ask(json.dumps({"model": "best", **body}).encode(), path=path)
    assert (answer.status, len(far.lxc.received)) == ((200, 1) if goes_on else (500, 0))


async def test_where_nothing_was_begun_even_that_goes_on(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"))
    await far.cloud.stop()
    answer = await router.ask(b'{"model": "best", "prompt": "x"}', path="/v1/images/generations")
    assert answer.header("x-enginerouter-resolved") == "lxc/small"


async def test_retry_unsafe_lets_all_go_on(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"), retry_unsafe=True)
    saying(far.cloud, [RST])
    answer = await router.ask(b'{"model": "best", "prompt": "x"}', path="/v1/images/generations")
    assert answer.header("x-enginerouter-resolved") == "lxc/small"


async def test_a_form_is_sent_to_each_target_under_its_own_name(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"), retry_unsafe=True)
    saying(far.cloud, [RST])
    saying(far.lxc, say({"text": "heard"}))
    filler = b"x" * (3 << 20)
    body = b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nbest\r\n' + (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + filler + b"\r\n--B--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    answer = await router.ask(body, path="/v1/audio/transcriptions", headers=headers)
    assert answer.json == {"text": "heard"}
    for server, name in ((far.cloud, b"big"), (far.lxc, b"small")):
        assert server.received[0].body == body.replace(b"\r\nbest\r\n", b"\r\n" + name + b"\r\n")


# --- embeddings


async def test_embeddings_never_go_into_another_vector_space(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"))
    saying(far.cloud, refused(500))
    failed = await router.ask(b'{"model": "best", "input": "x"}', path="/v1/embeddings")
    assert reasons(failed) == [("cloud", "http_500"), ("lxc", "other_vectors")]
    assert far.lxc.received == []


@pytest.mark.parametrize("how", ["upstream_id", "same_as", "mix_embeddings"])
async def test_embeddings_go_on_to_the_same_model_elsewhere(make_router: MakeRouter, far: Boxes, how: str) -> None:
    more: dict[str, Any] = {} if how == "mix_embeddings" else {how: "nomic"}
    models = [{"id": "here", "engine": "cloud", **more}, {"id": "there", "engine": "lxc", **more}]
    router = await far.router(
        make_router, chain=("here", "there"), settings={"models": models}, mix_embeddings=how == "mix_embeddings"
    )
    saying(far.cloud, refused(500))
    answer = await router.ask(b'{"model": "best", "input": "x"}', path="/v1/embeddings")
    assert answer.header("x-enginerouter-resolved") == "lxc/there"


# --- the client that waits


async def test_a_client_that_has_had_keepalives_is_still_answered_by_the_next_target(
    make_router: MakeRouter, far: Boxes
) -> None:
    router = await far.router(
        make_router, chain=("cloud/big", "lxc/small"),
        settings={"first_byte_commit_s": 0.05, "swap_keepalive_interval_s": 0.1},
    )  # fmt: skip
    saying(far.cloud, [0.2, *refused(500)])
    async with router.client() as client:
        await client.send("POST", "/v1/chat/completions", chat("best", stream=True))
        assert await client.head() == 200
        body, is_whole = await client.rest()
    assert is_whole
    assert body.startswith(b": waiting for cloud/big")
    assert b": served by lxc/small\n\n" in body
    assert b"data: [DONE]\n\n" in body


async def test_a_client_that_has_had_keepalives_is_told_in_band_that_nothing_is_left(
    make_router: MakeRouter, far: Boxes
) -> None:
    router = await far.router(make_router, chain=("cloud/big",), settings={"first_byte_commit_s": 0.05})
    saying(far.cloud, [0.15, *refused(500)])
    async with sdk_of(router) as client:
        with pytest.raises(openai.APIError, match="no target of 'best' could answer"):
            async for _ in await client.chat.completions.create(model="best", messages=[], stream=True):
                pass


async def test_a_client_that_leaves_ends_the_walk_and_gives_no_verdict(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"))
    saying(far.cloud, [asyncio.Event()])
    for n in range(3):
        async with router.client() as client:
            await client.send("POST", "/v1/chat/completions", chat("best"))
            exchange = await far.cloud.exchange(n)
        await exchange.gone.wait()
    await router.idle()
    assert far.lxc.received == []
    saying(far.cloud, None)
    assert (await router.ask(chat("best"))).text == "cloud serves big"


# --- engines of this box


async def test_a_crash_before_the_answer_goes_on_and_the_engine_is_started_again(
    make_router: MakeRouter, far: Boxes
) -> None:
    router = await far.router(make_router)
    await router.load("a")
    router.a.server.script = [asyncio.Event()]
    asked = asyncio.ensure_future(router.ask(chat("best")))
    await router.a.server.exchange(1)
    await router.a.crash()
    answer = await asked
    assert answer.header("x-enginerouter-resolved") == "cloud/big"
    router.a.server.script = None
    assert (await router.ask(chat("best"))).header("x-enginerouter-resolved") == "a/a"


async def test_a_full_queue_goes_on(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, settings={"max_queued_requests": 1})
    router.a.starting.shut()
    waiting = asyncio.ensure_future(router.ask(chat("a")))
    await router.a.starting.reached.wait()
    assert (await router.ask(chat("best"))).header("x-enginerouter-resolved") == "cloud/big"
    router.a.starting.open()
    assert (await waiting).status == 200


async def test_held_memory_goes_on(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router)
    await router.ask(b'{"owner": "game"}', path="/admin/hold")
    assert (await router.ask(chat("best"))).header("x-enginerouter-resolved") == "cloud/big"


async def test_a_broken_first_engine_does_not_evict_a_working_second_one_again_and_again(
    make_router: MakeRouter, far: Boxes
) -> None:
    router = await far.router(
        make_router, chain=("a", "b"), locals_=("a", "b"), settings={"health": Health(enabled=False, open_s=0.3)}
    )
    router.a.server.script = refused(500)
    for _ in range(2):
        assert (await router.ask(chat("best"))).header("x-enginerouter-resolved") == "b/b"
    stops = router.b.stops
    for _ in range(8):
        await asyncio.sleep(0.1)
        assert (await router.ask(chat("best"))).header("x-enginerouter-resolved") == "b/b"
    assert router.b.stops == stops, "the trial of a waited until b was not in use"
    assert router.phase("b") is Phase.READY


# --- how long a chain waits


async def test_a_swap_that_takes_too_long_is_not_waited_for_and_happens_when_nobody_minds(
    make_router: MakeRouter, far: Boxes
) -> None:
    router = await far.router(make_router, locals_=("a", "b"), settings={"swap_linger_s": 0.1}, go_on_after_s=0.05)
    await router.load("b")
    router.b.server.script = [0.3, *ok(completion("late"))]
    busy = asyncio.ensure_future(router.ask(chat("b")))
    await router.b.server.exchange(1)
    answer = await router.ask(chat("best"))
    assert answer.header("x-enginerouter-resolved") == "cloud/big"
    assert router.b.stops == 0, "no gate closes for it"
    assert (await busy).text == "late"
    await router.until(lambda: router.phase("a") is Phase.READY)
    assert (await router.ask(chat("best"))).header("x-enginerouter-resolved") == "a/a"
    assert 'reason="would_take_longer"} 1' in await metrics(router)


async def test_a_known_start_is_passed_over_at_once(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, go_on_after_s=5.0)
    (slot,) = [s for s in router.router.coordinator.slots.values() if s.id.engine == "a"]
    slot.learned.start_s = 60.0
    router.a.starting.shut()
    async with asyncio.timeout(2):
        answer = await router.ask(chat("best"))
    assert answer.header("x-enginerouter-resolved") == "cloud/big"
    assert answer.header("x-enginerouter-attempts") == "1"
    saying(far.cloud, refused(500))
    saying(far.lxc, refused(500))
    failed = await router.ask(chat("best"))
    assert reasons(failed)[0] == ("a", "would_take_longer")
    assert 30 <= int(failed.header("retry-after") or 0) <= 60
    router.a.starting.open()


# --- fences


async def test_a_key_that_may_not_leave_the_machine_is_served_by_what_is_here(
    make_router: MakeRouter, far: Boxes
) -> None:
    keys = (ApiKey(name="boss", key="boss", admin=True), ApiKey(name="home", key="home", remote=False))
    router = await far.router(make_router, chain=("cloud/big", "a", "lxc/small"), settings={"api_keys": keys})
    home = {"Authorization": "Bearer home"}
    answer = await router.ask(chat("best"), headers=home)
    assert answer.header("x-enginerouter-resolved") == "a/a"
    router.a.server.script = refused(500)
    failed = await router.ask(chat("best"), headers=home)
    assert failed.status == 503
    assert [e["reason"] for e in failed.error["attempts"]] == ["fenced", "http_500", "fenced"]
    assert b"cloud" not in failed.body
    assert b"lxc" not in failed.body
    assert far.cloud.received == far.lxc.received == []


async def test_where_every_target_is_fenced_it_is_forbidden(make_router: MakeRouter, far: Boxes) -> None:
    keys = (ApiKey(name="home", key="home", remote=False),)
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"), settings={"api_keys": keys})
    home = {"Authorization": "Bearer home"}
    failed = await router.ask(chat("best"), headers=home)
    assert (failed.status, failed.error["code"]) == (403, "forbidden")
    assert "cloud" not in failed.error["message"]
    assert (await router.get("/v1/models", **home)).json["data"][0]["id"] == "a"
    assert all(m["id"] != "best" for m in (await router.get("/v1/models", **home)).json["data"])
    assert far.cloud.received == far.lxc.received == []


async def test_an_engine_without_its_key_is_passed_over(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, remote={"unconfigured": True}, chain=("cloud/big", "a"))
    answer = await router.ask(chat("best"))
    assert answer.header("x-enginerouter-resolved") == "a/a"
    assert answer.header("x-enginerouter-attempts") == "1"
    assert far.cloud.received == []


async def test_naming_a_permitted_chain_grants_its_targets_and_no_more(make_router: MakeRouter, far: Boxes) -> None:
    keys = (ApiKey(name="guest", key="guest", models=("best",)),)
    router = await far.router(make_router, settings={"api_keys": keys})
    guest = {"Authorization": "Bearer guest"}
    assert (await router.ask(chat("best"), headers=guest)).text == "a serves a"
    for name in ("a", "big", "cloud/big"):
        assert (await router.ask(chat(name), headers=guest)).status == 404, name
    assert [m["id"] for m in (await router.get("/v1/models", **guest)).json["data"]] == ["best"]


# --- what would become of it


async def explained(router: RouterUnderTest) -> dict[str, str | None]:
    said = (await router.ask(chat("best"), path="/admin/explain")).json
    return {t["target"]: t["passed_over"] for t in said["targets"]} | {"served by": said["served_by"]}


async def test_a_flood_of_comments_is_no_answer(make_router: MakeRouter) -> None:
    router = await make_router(aliases={"best": {"chain": ("a", "b")}})
    router.engines["a"].server.script = [SSE_HEAD, *[chunk(b":" + b"x" * 65_536 + b"\n\n")] * 40, asyncio.Event()]
    async with asyncio.timeout(5):
        answer = await router.ask(chat("best", stream=True))
    assert answer.header("X-EngineRouter-Resolved") == "b/b"


async def test_explain_knows_what_the_queue_refuses(make_router: MakeRouter) -> None:
    """A start circuit that is open, and memory that is held: the walk goes past both."""
    router = await make_router(aliases={"best": {"chain": ("a", "b")}})
    await router.load("b")
    slot = next(s for s in router.router.coordinator.slots.values() if s.id.engine == "a")
    slot.circuit = StartCircuit(failures=3, open_until=time.monotonic() + 60, reason="it broke")
    said = (await router.ask(chat("best"), path="/admin/explain")).json
    assert (said["served_by"], said["targets"][0]["refused"]["code"]) == ("b/b", "start_circuit_open")
    assert (await router.ask(chat("best"))).header("X-EngineRouter-Resolved") == "b/b"
    slot.circuit = StartCircuit()
    assert (await router.ask(b'{"owner": "comfyui"}', path="/admin/hold")).status == 200
    said = (await router.ask(chat("a"), path="/admin/explain")).json
    assert (said["served_by"], said["targets"][0]["refused"]["code"]) == (None, "held")
    assert (await router.ask(chat("a"))).status == 503


async def test_explain_says_of_every_target_what_a_walk_would_do_and_does_nothing(
    make_router: MakeRouter, far: Boxes
) -> None:
    router = await far.router(make_router, go_on_after_s=5.0)
    (slot,) = [s for s in router.router.coordinator.slots.values() if s.id.engine == "a"]
    slot.learned.start_s = 60.0
    expected = {"a/a": "would_take_longer", "cloud/big": None, "lxc/small": None, "served by": "cloud/big"}
    assert await explained(router) == expected
    saying(far.cloud, refused(500))
    router.a.starting.shut()
    for _ in range(2):
        assert (await router.ask(chat("best"))).header("x-enginerouter-resolved") == "lxc/small"
    asked = len(far.lxc.received)
    assert await explained(router) == {**expected, "cloud/big": "circuit_open", "served by": "lxc/small"}
    assert len(far.lxc.received) == asked
    router.a.starting.open()


async def test_a_stream_of_nothing_but_comments_is_given_up_and_not_kept(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("cloud/big", "lxc/small"))
    saying(far.cloud, [SSE_HEAD, *[chunk(b": wait\n\n" * 4096)] * 64])
    answer = await router.ask(chat("best", stream=True))
    assert answer.header("x-enginerouter-resolved") == "lxc/small"
    assert b"serves small" in answer.body


async def test_a_direct_429_is_left_alone_for_as_long_as_it_says(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("cloud/big",))
    saying(far.cloud, [head(429, [("Retry-After", "3"), ("Content-Length", "2")]), b"{}"])
    assert (await router.ask(chat("cloud/big"))).status == 429
    answer = await router.ask(chat("best"))
    assert reasons(answer) == [("cloud", "rate_limited")]
    assert int(answer.header("retry-after") or 0) <= 3


async def test_a_providers_refusal_is_logged_without_the_clients_query_and_told_without_our_key(
    make_router: MakeRouter, far: Boxes, caplog: pytest.LogCaptureFixture
) -> None:
    router = await far.router(make_router)
    saying(far.cloud, refused(401, "the key cloud-key is not known here"))
    answer = await router.ask(chat("cloud/big"), path="/v1/chat/completions?api_key=URLSECRET")
    assert answer.status == 401
    assert b"cloud-key" not in answer.body
    assert b"is not known here" in answer.body
    assert "cloud answered 401" in caplog.text
    assert "URLSECRET" not in caplog.text
    assert "cloud-key" not in caplog.text


async def test_pictures_that_a_text_model_refuses_with_500_close_it_to_nobody(
    make_router: MakeRouter, far: Boxes
) -> None:
    router = await far.router(make_router, chain=("a", "cloud/big"))
    for _ in range(3):
        router.a.server.script = refused(500, "image input is not supported - hint: you may need the mmproj")
        assert (await router.ask(chat("a"))).status == 500
    saying(router.a.server, None)
    assert (await router.ask(chat("best"))).header("x-enginerouter-resolved") == "a/a"
