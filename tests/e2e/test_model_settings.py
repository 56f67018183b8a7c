"""A model's settings change requests on their way; `/admin/explain` says how, and what would become of a request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from engine_server import Received, ok
from http_servers import Provider
from router_kit import CHAT, GIB, MakeRouter, RouterUnderTest, chat

from enginerouter.config.engines import Remote
from enginerouter.config.model import ApiKey
from enginerouter.swap.phases import Phase

TUNED: dict[str, Any] = {
    "id": "m",
    "engine": "a",
    "upstream_id": "m.gguf",
    "strip_params": ("n_discard",),
    "default_params": {"temperature": 0.2, "options.num_ctx": 8192},
    "set_params": {"cache_prompt": True},
    "disable_thinking_below_max_tokens": 512,
}
OFF = {"chat_template_kwargs": {"enable_thinking": False}}


def last(router: RouterUnderTest, engine: str = "a") -> Received:
    return router.engines[engine].server.received[-1]


@pytest.mark.parametrize("name", ["m", "fast", "a/m", "claude-x"])
async def test_by_whatever_name_a_model_is_asked_for_its_settings_apply(make_router: MakeRouter, name: str) -> None:
    router = await make_router(models=[TUNED], aliases={"fast": "m", "claude-*": "m"})
    answer = await router.ask(chat(name, max_tokens=100, n_discard=9, top_k=1))
    assert answer.text == "a serves m.gguf"
    asked = json.loads(chat("m.gguf", max_tokens=100, top_k=1))
    assert last(router).json == {**asked, "temperature": 0.2, "options": {"num_ctx": 8192}, "cache_prompt": True, **OFF}
    assert last(router).header("content-length") == str(len(last(router).body))


async def test_a_request_that_needs_no_change_keeps_its_bytes(make_router: MakeRouter) -> None:
    router = await make_router(models=[{**TUNED, "upstream_id": None, "default_params": {}, "set_params": {}}])
    odd = b'{ "model":"m",\n"max_tokens": 512, "max_tokens":512, "x":1E5, "messages":["\\u00e9"]}'
    await router.ask(odd)
    assert last(router).body == odd


async def test_other_models_of_the_engine_are_left_alone(make_router: MakeRouter) -> None:
    router = await make_router(models=[TUNED, {"id": "plain", "engine": "a"}])
    await router.ask(chat("plain", max_tokens=5))
    assert last(router).body == chat("plain", max_tokens=5)


async def test_a_provider_is_told_in_the_words_it_knows(make_router: MakeRouter) -> None:
    provider = Provider()
    await provider.listen()
    try:
        cloud = Remote(name="cloud", base_url=provider.url)
        model = {"id": "big", "engine": "cloud", "disable_thinking_below_max_tokens": 512}
        router = await make_router((), http=[cloud], models=[model])
        await router.ask(chat("big", max_tokens=5))
        assert provider.received[0].json == json.loads(chat("big", max_tokens=5, reasoning_effort="none"))
    finally:
        await provider.stop()


async def test_a_body_too_deep_to_be_written_again_is_refused_and_never_a_500(make_router: MakeRouter) -> None:
    router = await make_router(models=[TUNED])
    statuses = set()
    for depth in range(900, 1100, 5):
        deep = b"[" * depth + b"]" * depth
        statuses.add((await router.ask(b'{"model":"m","messages":' + deep + b"}")).status)
    assert statuses <= {200, 400}


async def test_what_asks_for_a_stored_response_is_left_alone(make_router: MakeRouter) -> None:
    router = await make_router(models=[TUNED])
    router.engines["a"].server.script = ok(b'{"id": "resp_1", "object": "response", "output": []}')
    await router.ask(b'{"model": "m", "input": "x"}', path="/v1/responses")
    assert last(router).json["cache_prompt"] is True
    for method, path, body in (("GET", "", None), ("DELETE", "", None), ("POST", "/cancel", b"{}")):
        assert (await router.ask(body, method=method, path=f"/v1/responses/resp_1{path}")).status == 200
        assert last(router).body == (body or b"")


async def explain(router: RouterUnderTest, body: bytes, query: str = "", **headers: str) -> Any:
    answer = await router.ask(body, path=f"/admin/explain{query}", headers=headers)
    assert answer.status == 200, answer.body
    return answer.json


async def first_of(router: RouterUnderTest, body: bytes, query: str = "", **headers: str) -> Any:
    return (await explain(router, body, query, **headers))["targets"][0]


async def test_explain_tells_the_changes_in_order_and_changes_nothing(make_router: MakeRouter) -> None:
    router = await make_router(models=[TUNED], aliases={"fast": "m"})
    said = await explain(router, chat("fast", max_tokens=100, n_discard=9, temperature=1))
    assert (said["asked"], said["served_by"]) == ("fast", "a/m")
    [target] = said["targets"]
    assert (target["target"], target["model"], target["path"]) == ("a/m", "m.gguf", CHAT)
    assert target["changes"] == [
        {"step": "strip", "path": "n_discard"},
        {"step": "default", "path": "options.num_ctx", "value": 8192},
        {"step": "set", "path": "cache_prompt", "value": True},
        {"step": "guard", "path": "chat_template_kwargs.enable_thinking", "value": False},
        {"step": "model", "path": "model", "value": "m.gguf"},
    ]
    assert router.engines["a"].starts == 0
    other = await first_of(router, chat("m", max_tokens=100), "?path=/v1/messages")
    assert other["path"] == CHAT
    assert [c["path"] for c in other["changes"] if c["step"] == "guard"] == ["chat_template_kwargs.enable_thinking"]
    cannot = await first_of(router, b'{"model":"m","messages":7}', "?path=/api/chat")
    assert cannot["refused"]["message"] == "'messages' must be an array, not a whole number"


async def test_explain_tells_what_a_request_would_wait_for_and_evict(make_router: MakeRouter) -> None:
    keys = (ApiKey(name="boss", key="boss", admin=True), ApiKey(name="guest", key="guest", models=("b",)))
    router = await make_router(api_keys=keys)
    boss, guest = {"Authorization": "Bearer boss"}, {"Authorization": "Bearer guest"}
    await router.ask(chat("a"), headers=boss)
    await router.idle()
    ready = await first_of(router, b'{"model": "a"}', **boss)
    assert (ready["phase"], ready["evicts"], ready["eta_s"], ready["changes"]) == ("ready", [], 0, [])
    cold = await first_of(router, b'{"model": "b"}', **boss)
    assert (cold["phase"], cold["evicts"], cold["refused"]) == ("cold", ["a"], None)
    # Another key's engines have no names here.
    assert (await first_of(router, b'{"model": "b"}', **guest))["evicts"] == ["another"]
    assert (await router.ask(b'{"model": "a"}', path="/admin/explain", headers=guest)).status == 404
    assert (router.phase("a"), router.engines["b"].starts) == (Phase.READY, 0)


async def test_explain_tells_of_pins_that_make_a_request_impossible(make_router: MakeRouter) -> None:
    router = await make_router(
        {"a": {"pin": True, "memory_gib": 6.0}, "b": {"memory_gib": 6.0}}, memory_budget_gib=8.0, settles=True
    )
    router.memory.bytes = 64 * GIB
    await router.load("a")
    said = await explain(router, b'{"model": "b"}')
    assert said["targets"][0]["refused"]["code"] == "pinned"
    assert said["served_by"] is None


async def test_explain_tells_of_every_target_of_a_chain(make_router: MakeRouter) -> None:
    cloud = Remote(name="cloud", base_url="http://192.0.2.1/v1", served_models=("big",))
    keys = (ApiKey(name="boss", key="boss", admin=True), ApiKey(name="guest", key="guest", remote=False))
    router = await make_router(
        ("a", "b"), http=[cloud], api_keys=keys, aliases={"any": {"chain": ("cloud/big", "m", "b")}}, models=[TUNED]
    )
    boss = await explain(router, chat("any"), Authorization="Bearer boss")
    assert [t["target"] for t in boss["targets"]] == ["cloud/big", "a/m", "b/b"]
    assert boss["served_by"] == "cloud/big"
    assert [len(t["changes"]) for t in boss["targets"]] == [1, 4, 1]
    guest = await explain(router, chat("any"), Authorization="Bearer guest")
    assert (guest["targets"][0], guest["served_by"]) == (
        {"target": None, "passed_over": "fenced", "refused": None},
        "a/m",
    )


async def test_explain_tells_which_targets_a_chain_would_pass_over(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"holds_memory": False}, "b": {}}, aliases={"any": {"chain": ("a", "b")}})
    router.engines["a"].server.script = ok(b'{"error": {"message": "no"}}', status=500)
    for _ in range(2):
        await router.ask(chat("any"))
    said = await explain(router, chat("any"))
    assert [t["passed_over"] for t in said["targets"]] == ["circuit_open", None]
    assert said["served_by"] == "b/b"
    assert (await explain(router, chat("a")))["served_by"] == "a/a"  # named itself, it is asked all the same
    vectors = await explain(router, b'{"model": "any", "input": "x"}', "?path=/v1/embeddings")
    assert vectors["targets"][1]["passed_over"] == "other_vectors"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": 1}', b'{"messages": []}'])
async def test_what_is_no_request_cannot_be_explained(make_router: MakeRouter, body: bytes) -> None:
    router = await make_router()
    assert (await router.ask(body, path="/admin/explain")).status == 400
    assert (await router.ask(path=CHAT)).status == 405


async def test_a_choice_that_a_translation_has_no_word_for_is_a_choice_all_the_same(make_router: MakeRouter) -> None:
    provider = Provider()
    await provider.listen()
    try:
        cloud = Remote(name="cloud", base_url=provider.url, api_key="provider-key")
        router = await make_router((), http=[cloud], models=[{**TUNED, "engine": "cloud"}])
        asked = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
        for body, effort in (({**asked, "thinking": {"type": "adaptive"}}, None), (asked, "none")):
            assert (await router.ask(json.dumps(body).encode(), path="/v1/messages")).status == 200
            assert provider.received[-1].json.get("reasoning_effort") == effort
            said = await explain(router, json.dumps(body).encode(), "?path=/v1/messages")
            assert ("guard" in [change["step"] for change in said["targets"][0]["changes"]]) == (effort is not None)
    finally:
        await provider.stop()
