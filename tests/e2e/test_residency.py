"""Ollama requests that load and unload, and `keep_alive`, before engines that never heard of either."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import ollama
import pytest
from dialect_engines import ENGINES
from engine_server import Script, ok
from http_servers import OllamaDaemon, lines_of, say
from router_kit import Answer, MakeRouter, RouterUnderTest, chat

from enginerouter.config.engines import Ollama
from enginerouter.config.model import ApiKey
from enginerouter.errors import StartFailed
from enginerouter.swap.phases import Phase

HI = [{"role": "user", "content": "hi"}]


async def ask(router: RouterUnderTest, path: str = "/api/generate", **body: Any) -> Answer:
    return await router.ask(json.dumps({"model": "a", **body}).encode(), path=path)


async def serving(make_router: MakeRouter, settings: Mapping[str, Any] | None = None, **more: Any) -> RouterUnderTest:
    router = await make_router({"a": more, "b": {}}, **(settings or {}))
    for engine in router.engines.values():
        engine.server.script = ENGINES["openai"]
    return router


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/api/generate", {}, {"response": ""}),
        ("/api/generate", {"prompt": "", "stream": True}, {"response": ""}),
        ("/api/chat", {"messages": []}, {"message": {"role": "assistant", "content": ""}}),
    ],
)
async def test_an_empty_prompt_loads(make_router: MakeRouter, path: str, body: Any, said: Any) -> None:
    router = await serving(make_router)
    await router.load("b")
    answer = await ask(router, path, **body)
    assert answer.header("content-type") == "application/json"
    assert {k: v for k, v in answer.json.items() if k != "created_at"} == {
        "model": "a",
        **said,
        "done": True,
        "done_reason": "load",
    }
    assert answer.header("x-enginerouter-resolved") == "a/a"
    assert (router.phase("a"), router.phase("b")) == (Phase.READY, Phase.COLD)
    assert not router.engines["a"].server.received


@pytest.mark.parametrize("body", [{"model": ""}, {"model": "", "keep_alive": 0}, {"messages": HI, "stream": False}])
async def test_who_names_no_model_hears_which_one_it_was(make_router: MakeRouter, body: dict[str, Any]) -> None:
    router = await serving(make_router)
    await router.load("b")
    router.engines["b"].server.script = say({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]})
    answer = await router.ask(json.dumps(body).encode(), path="/api/chat")
    assert (answer.status, answer.json["model"]) == (200, "b")


@pytest.mark.parametrize(("keep_alive", "stays_s"), [("5m", 300.0), (-1, 1e9), (None, 1e9)])
async def test_what_is_loaded_says_until_when_it_stays(
    make_router: MakeRouter, keep_alive: Any, stays_s: float
) -> None:
    router = await serving(make_router)
    await ask(router, "/api/generate", **({} if keep_alive is None else {"keep_alive": keep_alive}))
    (running,) = (await router.get("/api/ps")).json["models"]
    left_s = (datetime.fromisoformat(running["expires_at"]) - datetime.now(UTC)).total_seconds()
    assert stays_s - 5 < left_s <= stays_s if stays_s == 300 else left_s > stays_s


async def test_empty_embeddings_load_as_well(make_router: MakeRouter) -> None:
    router = await serving(make_router)
    assert (await ask(router, "/api/embed", input=[])).json["embeddings"] == []
    assert router.phase("a") is Phase.READY
    assert (await ask(router, "/api/embeddings")).json == {"embedding": []}


async def test_keep_alive_0_without_a_prompt_unloads(make_router: MakeRouter) -> None:
    """As Open WebUI's button does."""
    router = await serving(make_router)
    await router.load()
    answer = await ask(router, prompt="", keep_alive=0)
    assert (answer.status, answer.json["done_reason"]) == (200, "unload")
    await router.until(lambda: router.phase("a") is Phase.COLD)


async def test_unloading_what_is_not_loaded_swaps_nothing(make_router: MakeRouter) -> None:
    router = await serving(make_router)
    await router.load("b")
    assert (await ask(router, keep_alive=0)).json["done_reason"] == "unload"
    assert (router.phase("b"), router.engines["a"].starts) == (Phase.READY, 0)


async def test_an_unknown_model_is_not_found(make_router: MakeRouter) -> None:
    router = await serving(make_router)
    answer = await ask(router, model="nobody", keep_alive=0)
    assert answer.status == 404
    assert "nobody" in answer.json["error"]


async def test_the_sdk_loads_and_unloads(make_router: MakeRouter) -> None:
    router = await serving(make_router)
    client = ollama.AsyncClient(router.url, verify=False, trust_env=False)
    assert (await client.generate("a")).done_reason == "load"
    assert (await client.generate("a", keep_alive=0)).done_reason == "unload"
    await client.close()


async def test_a_load_that_fails_says_so(make_router: MakeRouter) -> None:
    router = await serving(make_router)
    router.engines["a"].start_error = StartFailed("a", "a has no model file")
    answer = await ask(router)
    assert (answer.status, answer.header("x-should-retry")) == (502, "false")
    assert "a has no model file" in answer.json["error"]


SOON = {"commit_after_s": 0.02, "first_byte_commit_s": 0.02, "swap_keepalive_interval_s": 0.02}
LOAD = {"/api/generate": {"prompt": ""}, "/api/chat": {"messages": []}}


@pytest.mark.parametrize("path", LOAD)
async def test_a_streamed_load_is_kept_alive_until_it_is_done(make_router: MakeRouter, path: str) -> None:
    router = await serving(make_router, SOON)
    await router.load("b")
    router.a.starting.shut()
    async with router.client() as client:
        await client.send("POST", path, json.dumps({"model": "a", **LOAD[path]}).encode())
        assert await client.head() == 200
        assert client.header("content-type") == "application/x-ndjson"
        waited = await client.until(b"  ")
        router.a.starting.open()
        raw, is_whole = await client.rest()
    assert is_whole
    assert waited.strip() == b""
    (line,) = (waited + raw).splitlines()
    assert (json.loads(line)["done_reason"], router.phase("a")) == ("load", Phase.READY)


async def test_the_sdk_waits_for_a_streamed_load_and_hears_of_its_failure(make_router: MakeRouter) -> None:
    router = await serving(make_router, SOON)
    client = ollama.AsyncClient(router.url, trust_env=False)

    async def load() -> list[str | None]:
        return [part.done_reason async for part in await client.chat("a", [], stream=True)]

    router.a.start_error = StartFailed("a", "a has no model file")
    for outcome in ("fails", "loads"):
        router.a.starting.shut()
        router.a.starting.reached.clear()
        loading = asyncio.ensure_future(load())
        await router.a.starting.reached.wait()
        await asyncio.sleep(0.06)
        router.a.starting.open()
        if outcome == "fails":
            with pytest.raises(ollama.ResponseError, match="a has no model file") as said:
                await loading
            assert said.value.status_code == -1, "in the stream"
            router.a.start_error = None
        else:
            assert await loading == ["load"]
    await client.close()


async def test_a_load_that_is_no_stream_gets_its_status_when_it_is_done(make_router: MakeRouter) -> None:
    router = await serving(make_router, SOON)
    router.a.start_error = StartFailed("a", "a has no model file")
    router.a.starting.shut()
    async with router.client() as client:
        await client.send("POST", "/api/generate", b'{"model":"a","stream":false}')
        await router.a.starting.reached.wait()
        await asyncio.sleep(0.06)
        router.a.starting.open()
        assert await client.head() == 502


async def test_an_ordinary_key_does_not_unload_what_is_pinned(make_router: MakeRouter) -> None:
    keys = (ApiKey(name="boss", key="boss", admin=True), ApiKey(name="guest", key="guest"))
    router = await make_router({"a": {"pin": True}}, api_keys=keys)
    body = b'{"model":"a","keep_alive":0}'
    guest, boss = ({"Authorization": f"Bearer {name}"} for name in ("guest", "boss"))
    assert (await router.ask(chat(), headers=guest)).status == 200
    assert (await router.ask(body, path="/api/generate", headers=guest)).status == 403
    assert router.phase("a") is Phase.READY
    assert (await router.ask(body, path="/api/generate", headers=boss)).status == 200
    await router.until(lambda: router.phase("a") is Phase.COLD)


# --- keep_alive beside a prompt


async def test_keep_alive_0_frees_the_engine_when_the_answer_is_over(make_router: MakeRouter) -> None:
    router = await serving(make_router)
    answer = await ask(router, "/api/chat", messages=HI, stream=False, keep_alive=0)
    assert answer.status == 200
    assert "keep_alive" not in router.engines["a"].server.received[0].json
    await router.until(lambda: router.phase("a") is Phase.COLD)


async def test_keep_alive_is_the_idle_time(make_router: MakeRouter) -> None:
    router = await serving(make_router)
    await ask(router, "/api/chat", messages=HI, keep_alive="30ms")
    assert router.phase("a") is Phase.READY
    await router.until(lambda: router.phase("a") is Phase.COLD)


async def test_a_negative_keep_alive_outlasts_the_configured_idle_time_for_this_stay(make_router: MakeRouter) -> None:
    router = await serving(make_router, idle_unload_s=0.03)
    await ask(router, "/api/chat", messages=HI, keep_alive=-1)
    await asyncio.sleep(0.08)
    assert router.phase("a") is Phase.READY
    await router.load("b")
    assert router.phase("a") is Phase.COLD, "it pins nothing"
    await ask(router, "/api/chat", messages=HI)
    await router.until(lambda: router.phase("a") is Phase.COLD)


async def test_a_keep_alive_that_is_no_duration_is_refused_before_anything_is_loaded(make_router: MakeRouter) -> None:
    router = await serving(make_router)
    answer = await ask(router, "/api/chat", messages=HI, keep_alive="soon")
    assert answer.status == 400
    assert "'keep_alive' must be a number of seconds" in answer.json["error"]
    assert router.engines["a"].starts == 0


# --- an Ollama daemon


async def test_a_daemon_that_is_resident_is_told_itself(make_router: MakeRouter) -> None:
    """Its other models stay."""
    daemon = OllamaDaemon("llama3:latest", "phi:3b")
    await daemon.listen()
    router = await make_router({}, http=[Ollama(name="o", base_url=daemon.url, systemd_unit=None)])
    for model in ("llama3", "phi:3b"):
        assert (await ask(router, "/api/chat", model=model, messages=HI, stream=False)).status == 200
    answer = await ask(router, model="o/phi:3b", keep_alive=0)
    assert answer.json == {"model": "phi:3b", "response": "", "done": True, "done_reason": "unload"}
    await router.idle()
    assert router.phase("o") is Phase.READY
    assert daemon.called("POST /api/generate") == [{"model": "phi:3b", "keep_alive": 0}]
    await router.stop()
    await daemon.stop()


LOADED = {"model": "phi:3b", "response": "", "done": True, "done_reason": "load"}


@pytest.mark.parametrize(
    ("told", "line", "is_whole"),
    [
        (say(LOADED), LOADED, True),
        (ok(json.dumps(LOADED, indent=1).encode()), LOADED, True),
        (lines_of(LOADED), LOADED, True),
        (say({"error": "llama runner terminated"}, 500), {"error": "llama runner terminated"}, False),
        (say({"error": "llama runner terminated"}), {"error": "llama runner terminated"}, False),
        (ok(b"OK"), None, False),
    ],
)
async def test_a_load_by_the_daemon_is_kept_alive_too(
    make_router: MakeRouter, told: Script, line: Any, is_whole: bool
) -> None:
    daemon, slow = OllamaDaemon("llama3:latest", "phi:3b"), asyncio.Event()
    await daemon.listen()
    daemon.fails["POST /api/generate"] = [slow, *told]
    router = await make_router({}, http=[Ollama(name="o", base_url=daemon.url, systemd_unit=None)], **SOON)
    async with router.client() as client:
        await client.send("POST", "/api/generate", b'{"model":"o/phi:3b"}')
        assert await client.head() == 200
        waited = await client.until(b"  ")
        slow.set()
        raw, was_whole = await client.rest()
    (said,) = (waited + raw).decode().splitlines()
    assert was_whole is is_whole
    if line is None:
        assert "no answer" in json.loads(said)["error"]
    elif is_whole:
        assert json.loads(said) == line
    else:
        assert json.loads(said)["error"] == line["error"]
    await router.stop()
    await daemon.stop()
