"""A repeated request is answered from what was kept: nothing is woken, swapped, queued or called for it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest
from engine_server import CLOSE, Received, Script, chunked, completion, head, ok
from http_servers import Provider
from router_kit import CHAT, Answer, MakeRouter, RouterUnderTest, chat

from enginerouter.config.engines import Remote
from enginerouter.config.model import ApiKey, Cache
from enginerouter.swap.phases import Phase
from enginerouter.web.answers import reached_by

EMBED = "/v1/embeddings"
VECTORS = b'{"object":"list","data":[{"index":0,"embedding":[0.25,-1]}],"model":"m"}'


def embed(model: str = "a", text: str = "hi", **more: Any) -> bytes:
    return json.dumps({"model": model, "input": text, **more}).encode()


def asked(router: RouterUnderTest, engine: str = "a") -> int:
    return len(router.engines[engine].server.received)


async def vectors(make_router: MakeRouter, *engines: str, **settings: Any) -> RouterUnderTest:
    router = await make_router(engines or ("a", "b"), **{"cache": Cache(), **settings})
    for engine in router.engines.values():
        engine.server.script = ok(VECTORS)
    return router


async def test_an_embedding_asked_twice_costs_no_second_swap(make_router: MakeRouter) -> None:
    router = await vectors(make_router)
    first = await router.ask(embed("a"), path=EMBED)
    router.engines["b"].server.script = None
    assert (await router.ask(chat("b"))).text == "b serves b"
    await router.idle()
    again = await router.ask(b'{ "input":"hi",\n "model":"a" }', path=EMBED)
    assert (first.header("x-enginerouter-cache"), again.header("x-enginerouter-cache")) == ("miss", "hit")
    assert (again.status, again.body) == (200, VECTORS)
    assert again.header("content-type") == "application/json"
    assert again.header("x-enginerouter-resolved") == "a/a"
    assert again.header("x-enginerouter-attempts") == "0"
    assert again.header("x-enginerouter-queue-ms") == again.header("x-enginerouter-swap-ms") == "0"
    assert (asked(router), router.engines["a"].starts, router.phase("b")) == (1, 1, Phase.READY)


async def test_a_hit_waits_for_nothing_even_while_the_memory_is_held_or_an_engine_starts(
    make_router: MakeRouter,
) -> None:
    router = await vectors(make_router)
    await router.ask(embed("a"), path=EMBED)
    starting = router.engines["b"].starting
    starting.shut()
    async with router.client() as client:
        await client.send("POST", CHAT, chat("b"))
        await starting.reached.wait()
        assert (await router.ask(embed("a"), path=EMBED)).header("x-enginerouter-cache") == "hit"
        starting.open()
        await client.answer()
    await router.ask(b'{"owner": "game"}', path="/admin/hold")
    assert (await router.ask(embed("a"), path=EMBED)).header("x-enginerouter-cache") == "hit"
    assert (await router.ask(embed("a", "new"), path=EMBED)).status == 503


async def test_without_a_cache_nothing_is_kept_and_nothing_said(make_router: MakeRouter) -> None:
    router = await vectors(make_router, cache=None)
    for _ in range(2):
        assert (await router.ask(embed(), path=EMBED)).header("x-enginerouter-cache") is None
    assert asked(router) == 2
    assert (await router.get("/status")).json["cache"] is None


async def test_an_alias_and_its_model_share_and_another_model_does_not(make_router: MakeRouter) -> None:
    models = [{"id": "m", "engine": "a"}, {"id": "n", "engine": "a"}, {"id": "o", "engine": "b"}]
    router = await vectors(make_router, models=models, aliases={"fast": "m"})
    said = [(await router.ask(embed(name), path=EMBED)).header("x-enginerouter-cache") for name in ("m", "fast", "a/m")]
    assert said == ["miss", "hit", "hit"]
    assert [(await router.ask(embed(n), path=EMBED)).header("x-enginerouter-cache") for n in "no"] == ["miss", "miss"]


async def test_what_a_model_s_settings_change_is_part_of_the_question(make_router: MakeRouter) -> None:
    """Two requests that become the same one upstream are the same."""
    models = [{"id": "m", "engine": "a", "set_params": {"dimensions": 8}, "strip_params": ("user",)}]
    router = await vectors(make_router, models=models)
    await router.ask(embed("m"), path=EMBED)
    again = await router.ask(embed("m", dimensions=99, user="x"), path=EMBED)
    assert again.header("x-enginerouter-cache") == "hit"


# --- fences


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_keys_with_different_fences_never_share(make_router: MakeRouter) -> None:
    keys = (
        ApiKey(name="one", key="one", models=("a",)),
        ApiKey(name="same", key="same", models=("a",)),
        ApiKey(name="wide", key="wide", models=("a", "b")),
        ApiKey(name="poor", key="poor", models=("a",), remote=False),
    )
    router = await vectors(make_router, api_keys=keys)
    said = {}
    for name in ("one", "same", "wide", "poor", "poor"):
        answer = await router.ask(embed(), path=EMBED, headers=bearer(name))
        said[name] = answer.header("x-enginerouter-cache")
        assert answer.body == VECTORS
    assert said == {"one": "miss", "same": "hit", "wide": "miss", "poor": "hit"}
    assert asked(router) == 3


async def test_a_key_that_may_not_name_the_model_gets_no_kept_answer_either(make_router: MakeRouter) -> None:
    keys = (ApiKey(name="one", key="one"), ApiKey(name="other", key="other", models=("b",)))
    router = await vectors(make_router, api_keys=keys)
    await router.ask(embed(), path=EMBED, headers=bearer("one"))
    assert (await router.ask(embed(), path=EMBED, headers=bearer("other"))).status == 404


async def test_local_only_aliases_share_with_nothing_else(make_router: MakeRouter) -> None:
    router = await vectors(make_router, aliases={"private": {"target": "a", "local_only": True}, "open": "a"})
    answers = [await router.ask(embed(name), path=EMBED) for name in ("open", "private", "private")]
    assert [a.header("x-enginerouter-cache") for a in answers] == ["miss", "miss", "hit"]


# --- what is never kept


@pytest.mark.parametrize(
    "script",
    [
        ok(VECTORS, status=201),
        ok(b'{"error": {"message": "no"}}', status=500),
        ok(b'{"error": {"message": "in a 200"}}'),
        ok(b'{"data": [tru'),
        ok(VECTORS, headers=[("Content-Type", "application/json"), ("Cache-Control", "no-store")]),
        ok(VECTORS, headers=[("Content-Type", "application/json"), ("Content-Encoding", "gzip")]),
        [head(200, [("Content-Type", "application/json"), ("Connection", "close")]) + VECTORS, CLOSE],
        [head(200, [("Content-Type", "application/json"), ("Content-Length", "999")]) + VECTORS, CLOSE],
        [head(200, [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")]),
         *chunked([VECTORS], ends=False), CLOSE],
    ],
)  # fmt: skip
async def test_what_is_no_whole_good_answer_is_not_kept(make_router: MakeRouter, script: Script) -> None:
    router = await vectors(make_router)
    router.engines["a"].server.script = script
    await router.ask(embed(), path=EMBED)
    await router.idle()
    router.engines["a"].server.script = ok(VECTORS)
    again = await router.ask(embed(), path=EMBED)
    assert (again.header("x-enginerouter-cache"), again.body) == ("miss", VECTORS)


async def test_an_answer_in_chunks_or_after_white_space_is_kept_as_the_engine_gave_it(make_router: MakeRouter) -> None:
    router = await vectors(make_router, json_keepalive_after_s=0.0, swap_keepalive_interval_s=0.1)
    router.engines["a"].server.script = [
        head(200, [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")]),
        *chunked([VECTORS[:9], 0.02, VECTORS[9:]]),
    ]
    first = await router.ask(embed(), path=EMBED)
    again = await router.ask(embed(), path=EMBED)
    assert first.body.strip() == again.body == VECTORS
    assert again.header("x-enginerouter-cache") == "hit"


async def test_an_answer_of_a_provider_is_kept_too(make_router: MakeRouter) -> None:
    class Vectors(Provider):
        def _answer(self, received: Received) -> Script:
            return ok(VECTORS)

    provider = Vectors()
    await provider.listen()
    try:
        cloud = Remote(name="cloud", base_url=provider.url, served_models=("big",))
        router = await make_router((), http=[cloud], cache=Cache())
        said = [(await router.ask(embed("big"), path=EMBED)).header("x-enginerouter-cache") for _ in range(2)]
    finally:
        await provider.stop()
    assert (said, len(provider.received)) == (["miss", "hit"], 1)


async def test_an_answer_too_large_for_the_cache_passes_and_is_not_kept(make_router: MakeRouter) -> None:
    router = await vectors(make_router, cache=Cache(max_mib=1))
    large = json.dumps({"data": "x" * 300_000}).encode()
    router.engines["a"].server.script = ok(large)
    for _ in range(2):
        answer = await router.ask(embed(), path=EMBED)
        assert (answer.body, answer.header("x-enginerouter-cache")) == (large, "miss")
    assert (await router.get("/status")).json["cache"]["entries"] == 0


async def test_a_large_answer_is_kept_once_it_was_looked_at(make_router: MakeRouter) -> None:
    router = await vectors(make_router)
    large = json.dumps({"data": ["x" * 1_500_000]}).encode()
    router.engines["a"].server.script = ok(large)
    async with asyncio.timeout(5):
        while (answer := await router.ask(embed(), path=EMBED)).header("x-enginerouter-cache") != "hit":
            assert answer.body == large
    assert answer.body == large


async def test_a_body_that_names_a_thing_twice_is_never_kept(make_router: MakeRouter) -> None:
    """One engine takes the first, another the last: whose answer would it be?"""
    router = await vectors(make_router)
    for _ in range(2):
        answer = await router.ask(b'{"model":"a","input":"x","input":"y"}', path=EMBED)
        assert answer.header("x-enginerouter-cache") is None
    assert asked(router) == 2


async def test_the_client_may_rule_it_out(make_router: MakeRouter) -> None:
    router = await vectors(make_router)

    async def said(value: str | None) -> str | None:
        headers = {} if value is None else {"Cache-Control": value}
        return (await router.ask(embed(), path=EMBED, headers=headers)).header("x-enginerouter-cache")

    assert [await said("no-store"), await said(None), await said("no-store"), await said(None)] == [
        None, "miss", None, "hit",
    ]  # fmt: skip
    # no-cache: asked anew, and the new answer is kept.
    newer = VECTORS.replace(b"0.25", b"0.5")
    router.engines["a"].server.script = ok(newer)
    assert [await said("no-cache"), await said(None)] == ["miss", "hit"]
    assert (await router.ask(embed(), path=EMBED)).body == newer


# --- chats


async def test_chats_are_kept_only_where_the_operator_wants_it(make_router: MakeRouter) -> None:
    router = await make_router(cache=Cache(deterministic=True))
    cold = chat("a", temperature=0)
    said = [await router.ask(cold) for _ in range(2)]
    assert [s.header("x-enginerouter-cache") for s in said] == ["miss", "hit"]
    assert said[1].text == "a serves a"
    for body in (chat("a"), chat("a", temperature=0, stream=True), chat("a", temperature=0, tools=[{}])):
        for _ in range(2):
            assert (await router.ask(body)).header("x-enginerouter-cache") is None
    await router.stop()
    other = await make_router(cache=Cache())
    for _ in range(2):
        assert (await other.ask(cold)).header("x-enginerouter-cache") is None


async def test_a_chat_that_was_cut_short_by_the_engine_is_not_kept(make_router: MakeRouter) -> None:
    router = await make_router(cache=Cache(deterministic=True))
    router.engines["a"].server.script = ok(completion("hal").replace(b'"stop"', b'"error"'))
    for _ in range(2):
        assert (await router.ask(chat("a", temperature=0))).header("x-enginerouter-cache") == "miss"


# --- chains


async def test_a_chain_s_target_that_was_asked_before_is_not_asked_again(make_router: MakeRouter) -> None:
    router = await make_router(
        {"a": {"holds_memory": False}, "b": {}}, cache=Cache(deterministic=True), aliases={"any": {"chain": ("a", "b")}}
    )
    router.engines["a"].server.script = ok(b'{"error": {"message": "no"}}', status=500)
    cold = chat("any", temperature=0)
    first = await router.ask(cold)
    assert (first.text, first.header("x-enginerouter-attempts")) == ("b serves b", "2")
    again = await router.ask(cold)
    assert (again.body, again.header("x-enginerouter-cache")) == (first.body, "hit")
    # The first target was asked once more, and had nothing; the second was not.
    assert (again.header("x-enginerouter-resolved"), again.header("x-enginerouter-attempts")) == ("b/b", "1")
    assert (asked(router, "a"), asked(router, "b")) == (2, 1)
    metrics = (await router.get("/metrics")).body.decode()
    assert 'enginerouter_alias_resolved_total{alias="any",target="b/b"} 2' in metrics
    assert 'enginerouter_cache_requests_total{target="b/b",result="hit"} 1' in metrics


async def test_a_chain_takes_what_was_kept_of_a_target_that_is_not_resident(
    make_router: MakeRouter,
) -> None:
    router = await vectors(make_router, aliases={"any": {"chain": ("a", "b"), "go_on_after_s": 0.0}, "fast": "a"})
    await router.ask(embed("fast"), path=EMBED)
    router.engines["b"].server.script = None
    await router.ask(chat("b"))
    await router.idle()
    again = await router.ask(embed("any"), path=EMBED)
    assert (again.header("x-enginerouter-cache"), again.header("x-enginerouter-attempts")) == ("hit", "0")
    assert (router.phase("b"), router.engines["a"].starts) == (Phase.READY, 1)


async def test_a_local_only_chain_shares_with_nothing_else(make_router: MakeRouter) -> None:
    chains = {"private": {"chain": ("a", "b"), "local_only": True}, "any": {"chain": ("a", "b")}}
    router = await vectors(make_router, aliases=chains)
    answers = [await router.ask(embed(name), path=EMBED) for name in ("any", "private", "private", "a")]
    assert [a.header("x-enginerouter-cache") for a in answers] == ["miss", "miss", "hit", "hit"]


# --- changes, and what an operator sees


async def test_an_engine_that_is_reached_in_another_way_has_no_kept_answers(make_router: MakeRouter) -> None:
    """Keys hold a digest of what an engine is reached and launched by."""
    router = await vectors(make_router)
    settings = router.router.config.engines["a"]
    assert reached_by(settings) == reached_by(dataclasses.replace(settings))
    for change in ({"base_url": "http://127.0.0.1:2"}, {"env": {"X": "1"}}, {"start_cmd": ("other",)},
                   {"headers": {"X-Tenant": "2"}}, {"api_key": "new"}):  # fmt: skip
        assert reached_by(dataclasses.replace(settings, **change)) != reached_by(settings)  # type: ignore[arg-type]


async def test_the_answers_of_an_engine_can_be_forgotten(make_router: MakeRouter) -> None:
    router = await vectors(make_router)
    for model in ("a", "b"):
        await router.ask(embed(model), path=EMBED)
    assert router.router.cache is not None
    router.router.cache.forget("a")
    said = [(await router.ask(embed(m), path=EMBED)).header("x-enginerouter-cache") for m in ("b", "a")]
    assert said == ["hit", "miss"]


async def test_metrics_status_and_log_tell_of_hits(make_router: MakeRouter, caplog: pytest.LogCaptureFixture) -> None:
    router = await vectors(make_router)
    for text in ("one", "one", "two"):
        await router.ask(embed("a", text), path=EMBED)
    status = (await router.get("/status")).json["cache"]
    assert {k: status[k] for k in ("name", "is_up", "entries", "hits", "misses", "hit_bytes")} == {
        "name": "memory", "is_up": True, "entries": 2, "hits": 1, "misses": 2, "hit_bytes": len(VECTORS),
    }  # fmt: skip
    metrics = (await router.get("/metrics")).body.decode()
    for line in (
        'cache_requests_total{target="a/a",result="hit"} 1',
        'cache_requests_total{target="a/a",result="miss"} 2',
        f'cache_hit_bytes_total{{target="a/a"}} {len(VECTORS)}',
        'cache_up{store="memory"} 1',
        "cache_answers 2",
        'requests_total{dialect="openai",requested="a",target="a/a",status="200"} 3',
    ):
        assert f"enginerouter_{line}\n" in metrics
    lines = [r.getMessage() for r in caplog.records if r.name == "enginerouter.requests"]
    assert ["cache hit" in line for line in lines[:3]] == [False, True, False]


async def test_many_requests_at_once_all_get_their_answers(make_router: MakeRouter) -> None:
    router = await vectors(make_router)
    await router.ask(embed(), path=EMBED)

    async def again(number: int) -> Answer:
        return await router.ask(embed("a", "hi" if number % 2 else f"n{number % 10}"), path=EMBED)

    said = await asyncio.gather(*(again(n) for n in range(200)))
    assert {s.body for s in said} == {VECTORS}
    assert {s.header("x-enginerouter-cache") for n, s in enumerate(said) if n % 2} == {"hit"}
