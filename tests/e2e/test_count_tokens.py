"""POST /v1/messages/count_tokens: the engine's own count where it is in memory and can tell, else an estimate."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import pytest
from dialect_engines import ENGINES, TOKENS_IN
from engine_server import Received, Script
from http_servers import say
from router_kit import Answer, MakeRouter, RouterUnderTest

from enginerouter.swap.phases import Phase
from enginerouter.web import counting

COUNT = "/v1/messages/count_tokens"


async def count(router: RouterUnderTest, query: str = "?beta=true", **body: Any) -> Answer:
    asked = {"model": "a", "messages": [{"role": "user", "content": "x" * 40}], **body}
    return await router.ask(json.dumps(asked).encode(), path=COUNT + query)


def is_estimate(answer: Answer) -> bool:
    assert answer.status == 200
    return answer.header("x-enginerouter-estimated") == "1"


async def test_nothing_is_loaded_for_a_count(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.load("b")
    answer = await count(router)
    assert is_estimate(answer)
    assert answer.json == {"input_tokens": 14}
    assert (router.phase("b"), router.engines["a"].starts) == (Phase.READY, 0)


async def test_a_resident_engine_is_asked(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"api": ("anthropic",)}}, models=[{"id": "a", "engine": "a", "upstream_id": "x"}])
    router.engines["a"].server.script = ENGINES["anthropic"]
    await router.router.coordinator.swap_to(next(iter(router.router.coordinator.slots)))
    answer = await count(router)
    assert not is_estimate(answer)
    assert answer.json == {"input_tokens": TOKENS_IN}
    [asked] = router.engines["a"].server.received
    assert asked.target == COUNT
    assert asked.json["model"] == "x"


def tokenizes(received: Received) -> Script:
    """As vLLM."""
    if received.target != "/tokenize":
        return say({"detail": "Not Found"}, 404)
    return say({"count": 7, "max_model_len": 4096, "tokens": [1] * 7})


async def test_an_engine_that_tokenizes_is_asked_for_that(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.load()
    router.engines["a"].server.script = tokenizes
    answer = await count(router, "", system="Be short.")
    assert not is_estimate(answer)
    assert answer.json == {"input_tokens": 7}
    messages = router.engines["a"].server.received[-1].json["messages"]
    assert [m["role"] for m in messages] == ["system", "user"]


@pytest.mark.parametrize("script", [say({"input_tokens": "many"}), say([]), say({"error": "x"}, 500)])
async def test_an_engine_that_cannot_tell_leaves_it_to_the_estimate(make_router: MakeRouter, script: Script) -> None:
    router = await make_router()
    await router.load()
    router.engines["a"].server.script = script
    assert is_estimate(await count(router))


async def test_an_engine_that_is_busy_is_not_waited_for(
    make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "PATIENCE_S", 0.02)
    router = await make_router()
    await router.load()
    router.engines["a"].server.script = [asyncio.Event()]
    assert is_estimate(await count(router))


async def test_an_engine_that_dies_meanwhile_is_no_error(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.load()
    router.engines["a"].server.script = [asyncio.Event()]
    asking = asyncio.create_task(count(router))
    await router.engines["a"].server.exchange(1)
    await router.engines["a"].crash()
    assert is_estimate(await asking)


async def test_what_is_not_known_is_told_in_anthropic_s_words(make_router: MakeRouter) -> None:
    router = await make_router()
    answer = await count(router, model="nobody")
    assert (answer.status, answer.error["type"]) == (404, "not_found_error")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"messages": None}, "'messages'"),
        ({"messages": []}, "'messages'"),
        ({"messages": "hi"}, "'messages'"),
        ({"messages": ["hi"]}, "'messages[0]'"),
        ({"messages": [{"content": "hi"}]}, "'messages[0].role'"),
        ({"messages": [{"role": "user"}]}, "'messages[0].content'"),
        ({"messages": [{"role": "user", "content": 5}]}, "'messages[0].content'"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "'messages[0].content[0].type'"),
        ({"system": 5}, "'system'"),
        ({"tools": [1]}, "'tools[0]'"),
    ],
)
async def test_what_is_no_prompt_is_not_counted(make_router: MakeRouter, body: dict[str, Any], word: str) -> None:
    router = await make_router()
    answer = await count(router, **body)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert word in answer.error["message"]


async def test_the_sdk_reads_it(make_router: MakeRouter) -> None:
    router = await make_router()
    http = anthropic.DefaultAsyncHttpxClient(verify=False, trust_env=False)
    async with anthropic.AsyncAnthropic(base_url=router.url, api_key="-", http_client=http) as client:
        told = await client.messages.count_tokens(model="a", messages=[{"role": "user", "content": "hello"}])
    assert told.input_tokens == 6
