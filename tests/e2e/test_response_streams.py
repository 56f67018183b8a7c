"""Streams of /v1/responses from an engine that numbers nothing, as llama.cpp, read by the SDK's stream helper."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from engine_server import RST, Script, Step, ok, sse
from router_kit import MakeRouter, RouterUnderTest, sdk_of

PATH = "/v1/responses"
WORDS = (" Grüße", " \u2028an", " alle \U0001f600")
TEXT = "".join(WORDS)
OPENED = {"id": "resp_abc", "object": "response", "status": "in_progress"}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant"}
CALL = {"call_id": "fc_1", "type": "function_call", "name": "weather"}
ARGUMENTS = '{"city":"Köln"}'


def event(kind: str, end: str = "\n", **more: Any) -> bytes:
    said = {"type": f"response.{kind}", **more}
    return f"event: {said['type']}{end}data: {json.dumps(said, ensure_ascii=False)}{end}{end}".encode()


def words(end: str = "\n") -> list[bytes]:
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": TEXT}
    done = {**MESSAGE, "status": "completed", "content": [part]}
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5, "input_tokens_details": {"cached_tokens": 0}}
    whole = {**OPENED, "status": "completed", "model": "m", "output": [done], "usage": usage}
    return [
        event("created", end, response=OPENED),
        event("in_progress", end, response=OPENED),
        event("output_item.added", end, item={**MESSAGE, "status": "in_progress", "content": []}),
        event("content_part.added", end, item_id="msg_1", part={"type": "output_text", "text": ""}),
        *[event("output_text.delta", end, item_id="msg_1", delta=word) for word in WORDS],
        event("output_text.done", end, item_id="msg_1", text=TEXT),
        event("content_part.done", end, item_id="msg_1", part=part),
        event("output_item.done", end, item=done),
        event("completed", end, response=whole, timings={"prompt_n": 3}),
    ]


def thought_and_call() -> list[bytes]:
    thought = {"id": "rs_1", "type": "reasoning", "summary": [], "content": [], "encrypted_content": ""}
    done = [{**thought, "content": [{"type": "reasoning_text", "text": "Hm"}]}, {**CALL, "arguments": ARGUMENTS}]
    return [
        event("created", response=OPENED),
        event("in_progress", response=OPENED),
        event("output_item.added", item=thought),
        event("reasoning_text.delta", item_id="rs_1", delta="Hm"),
        event("output_item.added", item={**CALL, "arguments": "", "status": "in_progress"}),
        *[
            event("function_call_arguments.delta", item_id="fc_1", delta=piece)
            for piece in (ARGUMENTS[:5], ARGUMENTS[5:])
        ],
        *[event("output_item.done", item=item) for item in done],
        event("completed", response={**OPENED, "status": "completed", "model": "m", "output": done}),
    ]


async def serving(make_router: MakeRouter, script: Script, **settings: Any) -> RouterUnderTest:
    router = await make_router(("a",), **settings)
    router.a.server.script = script
    return router


async def ask(router: RouterUnderTest) -> bytes:
    answer = await router.ask(json.dumps({"model": "a", "input": "hi", "stream": True}).encode(), path=PATH)
    assert (answer.status, answer.is_whole) == (200, True)
    return answer.body


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_the_stream_helper_reads_words_however_they_come(make_router: MakeRouter, end: str, size: int) -> None:
    raw = b"".join(words(end))
    router = await serving(make_router, sse(*[raw[i : i + size] for i in range(0, len(raw), size)]))
    async with sdk_of(router) as sdk, sdk.responses.stream(model="a", input="hi") as events:
        found = [one async for one in events]
        whole = await events.get_final_response()
    assert [one.sequence_number for one in found] == list(range(len(words())))
    assert [one.snapshot for one in found if one.type == "response.output_text.delta"][-1] == TEXT
    assert whole.output_text == TEXT
    assert whole.usage is not None
    assert whole.usage.total_tokens == 5


async def test_the_stream_helper_reads_thoughts_and_calls(make_router: MakeRouter) -> None:
    router = await serving(make_router, sse(*thought_and_call()))
    async with sdk_of(router) as sdk, sdk.responses.stream(model="a", input="hi") as events:
        found = [one async for one in events]
        whole = await events.get_final_response()
    assert [one.snapshot for one in found if one.type == "response.function_call_arguments.delta"][-1] == ARGUMENTS
    assert [item.type for item in whole.output] == ["reasoning", "function_call"]


async def test_an_engine_that_numbers_its_events_is_passed_on_byte_for_byte(make_router: MakeRouter) -> None:
    router = await serving(make_router, sse(*words("\r\n")))
    numbered = await ask(router)
    assert b'"sequence_number":0' in numbered
    router.a.server.script = sse(numbered[:33], numbered[33:])
    assert await ask(router) == numbered


async def test_along_a_chain_and_after_keepalives_too(make_router: MakeRouter) -> None:
    router = await make_router(aliases={"both": {"chain": ["a", "b"]}}, first_byte_commit_s=0.02)
    router.a.server.script = ok(b'{"error":{"message":"no","code":500}}', status=500)
    router.b.server.script = sse(*words())
    router.b.starting.shut()
    async with router.client() as client:
        body = {"model": "both", "input": "hi", "stream": True}
        await client.send("POST", PATH, json.dumps(body).encode())
        assert await client.head() == 200
        await client.until(b": ")
        router.b.starting.open()
        raw, is_whole = await client.rest()
    data = [json.loads(line[6:]) for line in raw.split(b"\n") if line.startswith(b"data: ")]
    assert ([one["sequence_number"] for one in data], is_whole) == (list(range(len(words()))), True)


async def test_an_engine_that_dies_in_an_event_ends_with_an_error(make_router: MakeRouter) -> None:
    steps: list[Step] = [*words()[:5], words()[5][:40], RST]
    router = await serving(make_router, sse(*steps, ends=False))
    async with sdk_of(router) as sdk, sdk.responses.stream(model="a", input="hi") as events:
        with pytest.raises(openai.APIError):
            async for _ in events:
                pass


async def test_a_stored_response_still_belongs_to_the_key_that_made_it(make_router: MakeRouter) -> None:
    router = await serving(make_router, sse(*words()))
    await ask(router)
    router.a.server.script = ok(b'{"id":"resp_abc","object":"response"}')
    assert (await router.get(f"{PATH}/resp_abc")).json["id"] == "resp_abc"
    assert (await router.get(f"{PATH}/resp_other")).status == 404


async def test_a_whole_answer_and_an_error_pass_as_they_are(make_router: MakeRouter) -> None:
    body = b'{ "id":"resp_abc","object":"response","output":[] }'
    router = await serving(make_router, ok(body))
    assert (await router.ask(b'{"model":"a","input":"hi"}', path=PATH)).body == body
    refused = b'{"error":{"message":"no","code":400}}'
    router.a.server.script = ok(refused, status=400)
    assert (await router.ask(b'{"model":"a","input":"hi","stream":true}', path=PATH)).body == refused
