"""Embeddings of an engine that speaks OpenAI and overlooks what form of them was asked for."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from engine_server import Received, Script, chunked, head, ok
from http_servers import say
from router_kit import MakeRouter, RouterUnderTest, sdk_of

from enginerouter.config.model import Cache
from enginerouter.web import mending

PATH = "/v1/embeddings"
VECTORS = [[0.5, -1.25], [2.0, 0.0], [0.25, 8.0]]
BASE64 = ["AAAAPwAAoL8=", "AAAAQAAAAAA=", "AACAPgAAAEE="]
JSON_CHUNKED = [("Content-Type", "application/json; charset=utf-8"), ("Transfer-Encoding", "chunked")]


def said(vectors: list[Any], *order: int) -> dict[str, Any]:
    data = [{"object": "embedding", "index": i, "embedding": vectors[i]} for i in order or range(len(vectors))]
    return {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 6, "total_tokens": 6}}


def ask(**more: Any) -> bytes:
    return json.dumps({"model": "a", "input": ["x", "y", "z"], **more}).encode()


BASE64_ASKED = ask(encoding_format="base64")


async def overlooking(make_router: MakeRouter, script: Any = None, **settings: Any) -> RouterUnderTest:
    """A router before an engine whose vectors are lists, the last one first."""
    router = await make_router(("a",), **settings)
    router.a.server.script = script or say(said(VECTORS, 2, 0, 1))
    return router


async def test_the_sdk_gets_its_vectors_in_order(make_router: MakeRouter) -> None:
    router = await overlooking(make_router)
    async with sdk_of(router) as sdk:
        answer = await sdk.embeddings.create(model="a", input=["x", "y", "z"])
    assert json.loads(router.a.server.received[-1].body)["encoding_format"] == "base64"
    assert [one.embedding for one in answer.data] == VECTORS
    assert answer.usage.total_tokens == 6


async def test_what_the_sdk_decodes_is_base64(make_router: MakeRouter) -> None:
    router = await overlooking(make_router)
    answer = await router.ask(BASE64_ASKED, path=PATH)
    assert answer.json == said(BASE64)
    assert answer.header("content-length") == str(len(answer.body))


async def test_floats_that_were_asked_for_stay_floats_byte_for_byte(make_router: MakeRouter) -> None:
    body = json.dumps(said(VECTORS, 2, 0, 1), indent=1).encode()
    router = await overlooking(make_router, ok(body))
    for asked in (ask(), ask(encoding_format="float"), ask(encoding_format=None)):
        assert (await router.ask(asked, path=PATH)).body == body


async def test_an_engine_that_heard_the_wish_is_passed_on_byte_for_byte(make_router: MakeRouter) -> None:
    body = json.dumps(said(BASE64), indent=1).encode()
    router = await overlooking(make_router, ok(body))
    assert (await router.ask(BASE64_ASKED, path=PATH)).body == body


async def test_a_chain_and_its_last_target_give_base64_too(make_router: MakeRouter) -> None:
    router = await make_router(aliases={"both": {"chain": ["a", "b"], "mix_embeddings": True}})
    router.a.server.script = say({"error": {"message": "no", "code": 500}}, 500)
    router.b.server.script = say(said(VECTORS, 2, 0, 1))
    answer = await router.ask(ask(model="both", encoding_format="base64"), path=PATH)
    assert (answer.header("x-enginerouter-resolved"), answer.json) == ("b/b", said(BASE64))


async def test_an_answer_in_chunks_or_after_white_space_is_given_in_base64(make_router: MakeRouter) -> None:
    body = json.dumps(said(VECTORS, 2, 0, 1)).encode()
    pieces = [body[i : i + 50] for i in range(0, len(body), 50)]
    script: Script = [head(200, JSON_CHUNKED), *chunked(pieces)]
    router = await overlooking(make_router, script, commit_after_s=0.02)
    router.a.starting.shut()
    async with router.client() as client:
        await client.send("POST", PATH, BASE64_ASKED, {"X-EngineRouter-Keepalive": "json"})
        await client.until(b" ") if await client.head() == 200 else None
        router.a.starting.open()
        raw, is_whole = await client.rest()
    assert (json.loads(raw), is_whole) == (said(BASE64), True)
    assert (await router.ask(BASE64_ASKED, path=PATH)).json == said(BASE64)


async def test_a_large_answer_is_given_in_base64_and_one_beyond_the_limit_passes(
    make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = said([[i / 8 + 0.0625] * 100_000 for i in range(3)])
    router = await overlooking(make_router, say(large))
    async with sdk_of(router) as sdk:
        answer = await sdk.embeddings.create(model="a", input=["x", "y", "z"])
    assert [(len(one.embedding), one.embedding[-1]) for one in answer.data] == [
        (100_000, 0.0625),
        (100_000, 0.1875),
        (100_000, 0.3125),
    ]
    monkeypatch.setattr(mending, "MAX_MENDED_BYTES", 1_000_000)
    assert (await router.ask(BASE64_ASKED, path=PATH)).json == large


async def test_kept_answers_are_in_the_form_that_was_asked_for(make_router: MakeRouter) -> None:
    """Also where a model's settings leave the wish out of what the engine gets."""
    models = [{"id": "a", "engine": "a", "strip_params": ("encoding_format",)}]
    router = await overlooking(make_router, cache=Cache(), models=models)
    for asked, vectors in ((BASE64_ASKED, BASE64), (ask(encoding_format="float"), VECTORS)):
        first, again = [await router.ask(asked, path=PATH) for _ in range(2)]
        assert [a.header("x-enginerouter-cache") for a in (first, again)] == ["miss", "hit"]
        assert first.body == again.body
        assert sorted(first.json["data"], key=lambda one: one["index"]) == said(vectors)["data"]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (say({"error": {"message": "too long", "code": 400}}, 400), openai.BadRequestError),
        (say({"error": {"message": "no", "code": 500}}), None),
        (ok(b"<html>", headers=[("Content-Type", "text/html")]), None),
    ],
)
async def test_what_is_no_answer_passes_as_it_is(make_router: MakeRouter, script: Script, error: Any) -> None:
    router = await overlooking(make_router, script)
    answer = await router.ask(BASE64_ASKED, path=PATH)
    assert answer.body in b"".join(step for step in script if isinstance(step, bytes))
    assert answer.body
    if error is not None:
        async with sdk_of(router) as sdk:
            with pytest.raises(error, match="too long"):
                await sdk.embeddings.create(model="a", input="x")


async def test_an_engine_that_dies_in_the_middle_is_an_error(make_router: MakeRouter) -> None:
    def script(received: Received) -> Script:
        return [head(200, [("Content-Type", "application/json"), ("Content-Length", "999")]), b'{"data":[', breaks]

    async def breaks(exchange: Any) -> None:
        exchange.reset()

    router = await overlooking(make_router, script)
    answer = await router.ask(BASE64_ASKED, path=PATH)
    assert (answer.status, answer.is_whole) == (502, True)
