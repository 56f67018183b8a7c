"""Models that nobody declared: told by running engines, by the commands of stopped ones, remembered over a restart."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from engine_server import Received, Script, usual
from http_servers import HANGS, LM_STUDIO, LmStudio, OllamaDaemon, say
from router_kit import MakeRouter, RouterUnderTest, chat

from enginerouter.config.engines import ApiSwap, Ollama
from enginerouter.config.model import ApiKey, Discover
from enginerouter.swap.phases import Phase

ON = Discover(enabled=True)
LLAMA = ("llama-server", "-m", "/models/small.gguf", "--alias", "small", "--port", "{port}")
VLLM = ("vllm", "serve", "Qwen/Big", "--served-model-name", "big", "--port", "{port}")


def lists(*ids: str) -> Any:
    """An engine that lists these models, and answers chats."""

    def script(received: Received) -> Script:
        if received.target == "/v1/models":
            return say({"object": "list", "data": [{"id": i, "owned_by": "x"} for i in ids]})
        return usual("engine")(received)

    return script


async def ids(router: RouterUnderTest) -> list[str]:
    return [m["id"] for m in (await router.get("/v1/models")).json["data"]]


async def discovered(router: RouterUnderTest) -> Any:
    answer = await router.ask(b"", path="/admin/discover", within_s=10)
    assert answer.status == 200, answer.body
    return answer.json


async def test_a_stopped_engines_models_are_read_off_its_command(make_router: MakeRouter) -> None:
    engines = {"a": {"discover_models": True, "start_cmd": LLAMA}, "b": {"discover_models": True, "start_cmd": VLLM}}
    router = await make_router(engines, discover=ON)
    assert await ids(router) == ["a", "b", "small", "small.gguf", "big"]
    assert router.a.starts == router.b.starts == 0
    answer = await router.ask(chat("big"))
    assert answer.status == 200
    assert router.b.server.received[-1].json["model"] == "big"
    assert router.a.starts == 0


async def test_without_the_switch_a_command_names_nothing(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"discover_models": True, "start_cmd": LLAMA}})
    assert await ids(router) == ["a"]
    assert (await router.ask(chat("small"))).error["code"] == "model_not_found"


async def test_an_engine_that_does_not_ask_for_it_is_not_discovered(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"start_cmd": LLAMA}}, discover=ON)
    assert await ids(router) == ["a"]


async def test_a_running_engine_tells_by_itself(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"discover_models": True}, "b": {}}, discover=ON)
    router.a.server.script = lists("lora-1", "base")
    await router.load("a")
    await router.until(lambda: any(r.target == "/v1/models" for r in router.a.server.received))
    found = await discovered(router)
    assert found == {"engines": {"a": ["lora-1", "base"]}, "failed": {}, "collisions": []}
    await router.load("b")
    # It is stopped now, and its models are still known.
    assert router.phase("a") is Phase.COLD
    assert await ids(router) == ["a", "b", "lora-1", "base"]
    assert (await router.ask(chat("lora-1"))).status == 200
    assert router.a.server.received[-1].json["model"] == "lora-1"


async def test_a_discovered_model_goes_by_its_engines_name_too(make_router: MakeRouter) -> None:
    engines = {"a": {"discover_models": True, "start_cmd": LLAMA}}
    router = await make_router(engines, discover=ON, aliases={"chat": "small", "direct": "a/small"})
    router.a.server.script = lists("small")
    for name in ("a/small", "chat", "direct"):
        assert (await router.ask(chat(name))).status == 200, name
        assert router.a.server.received[-1].json["model"] == "small"
    assert (await router.ask(chat("a/unknown"))).error["code"] == "model_not_found"


async def test_what_was_seen_is_known_after_a_restart_before_anything_runs(make_router: MakeRouter) -> None:
    engines = {"a": {"discover_models": True}}
    router = await make_router(engines, discover=ON)
    router.a.server.script = lists("seen")
    await router.load("a")
    await discovered(router)
    await router.stop()
    again = await make_router(engines, discover=ON)
    assert await ids(again) == ["a", "seen"]
    assert again.a.starts == 0


async def test_what_was_seen_is_forgotten_when_the_command_changes(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"discover_models": True}}, discover=ON)
    router.a.server.script = lists("old")
    await router.load("a")
    await discovered(router)
    await router.stop()
    again = await make_router({"a": {"discover_models": True, "start_cmd": LLAMA}}, discover=ON)
    assert await ids(again) == ["a", "small", "small.gguf"]


@pytest.mark.parametrize(
    "kept", [{"a": 1}, {"a": {"ids": "x", "command": "y"}}, {"a": {"ids": [1], "remote": None}}, {"gone": {"ids": []}}]
)
async def test_a_damaged_memory_is_no_memory(make_router: MakeRouter, tmp_path: Path, kept: Any) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"seen_models": kept}))
    router = await make_router({"a": {"discover_models": True, "start_cmd": VLLM}}, discover=ON)
    assert await ids(router) == ["a", "big"]


async def test_the_first_in_the_configuration_serves_what_two_have_and_that_is_said_once(
    make_router: MakeRouter, caplog: pytest.LogCaptureFixture
) -> None:
    engines = {name: {"discover_models": True, "start_cmd": LLAMA} for name in ("a", "b")}
    router = await make_router(engines, discover=ON)
    assert (await ids(router)).count("small") == 1
    assert (await router.ask(chat("small"))).status == 200
    assert (router.a.starts, router.b.starts) == (1, 0)
    assert (await router.ask(chat("b/small"))).status == 200
    assert router.b.starts == 1
    found = await discovered(router)
    assert found["collisions"] == [{"served_by": "a", "also_at": "b", "models": ["small", "small.gguf"]}]
    said = [r.getMessage() for r in caplog.records if "both have model" in r.getMessage()]
    assert said == [
        "engines 'a' and 'b' both have model 'small' and 1 more: 'a' serves it, as the first in the configuration; "
        "ask for 'b/…' to mean the other"
    ]


async def test_declared_models_stay_first(make_router: MakeRouter, caplog: pytest.LogCaptureFixture) -> None:
    router = await make_router(
        {"a": {"discover_models": True, "start_cmd": LLAMA}, "b": {}},
        discover=ON,
        models=[{"id": "small", "engine": "b"}],
    )
    await router.ask(chat("small"))
    assert (router.a.starts, router.b.starts) == (0, 1)
    assert "both have" not in caplog.text


async def test_a_running_engine_that_does_not_list_keeps_what_its_command_says(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"discover_models": True, "start_cmd": VLLM}}, discover=ON)

    def script(received: Received) -> Script:
        if received.target == "/v1/models":
            return say({"error": "no"}, 404)
        return usual("a")(received)

    router.a.server.script = script
    await router.load("big")
    found = await discovered(router)
    assert found["engines"] == {"a": ["big"]}
    assert "answered 404" in found["failed"]["a"]


async def test_asking_starts_and_loads_nothing(make_router: MakeRouter) -> None:
    lms, daemon = LmStudio(), OllamaDaemon("phi:3b")
    await lms.listen()
    await daemon.listen()
    servers = [
        ApiSwap(name="lms", base_url=lms.url, discover_models=True, **LM_STUDIO),
        Ollama(name="ollama", base_url=daemon.url),
    ]
    try:
        router = await make_router({"a": {"discover_models": True, "start_cmd": LLAMA}}, http=servers, discover=ON)
        found = await discovered(router)
        assert found["engines"]["lms"] == ["qwen", "gemma"]
        assert found["engines"]["ollama"][0] == "phi:3b"
        assert router.a.starts == 0
        assert not lms.called("POST /api/v1/models/load")
        assert not daemon.called("POST /api/generate")
        # What came since then is known at once, not when the list has grown old.
        daemon.models.append("new:1b")
        assert "new:1b" in (await discovered(router))["engines"]["ollama"]
        assert "new:1b" in await ids(router)
        await router.stop()
    finally:
        await lms.stop()
        await daemon.stop()


async def test_a_server_that_is_down_after_a_restart_is_remembered(make_router: MakeRouter) -> None:
    lms = LmStudio()
    await lms.listen()
    engine = ApiSwap(name="lms", base_url=lms.url, discover_models=True, **LM_STUDIO)
    router = await make_router((), http=[engine], discover=ON)
    await discovered(router)
    await router.stop()
    await lms.stop()
    again = await make_router(("a",), http=[engine], discover=ON)
    await again.load("a")
    assert "gemma" in await ids(again)
    refused = await again.ask(chat("gemma"))
    assert refused.status == 502
    assert "start that server" in refused.error["message"]
    assert again.phase("a") is Phase.READY, "nothing was evicted for a server that is down"
    found = await discovered(again)
    assert "connection refused" in found["failed"]["lms"]
    assert found["engines"]["lms"] == ["qwen", "gemma"]


async def test_an_engine_that_hangs_does_not_keep_the_others_lists(make_router: MakeRouter) -> None:
    lms = LmStudio()
    await lms.listen()
    lms.fails["GET /v1/models"] = lms.fails["GET /api/v1/models"] = HANGS
    engine = ApiSwap(name="lms", base_url=lms.url, discover_models=True, **LM_STUDIO)
    engine = dataclasses.replace(engine, load_path="", unload_path="", loaded_path=None)
    router = await make_router({"a": {"discover_models": True, "start_cmd": LLAMA}}, http=[engine], discover=ON)
    assert "small" in await ids(router)
    await router.stop()
    await lms.stop()


async def test_only_admin_keys_may_ask(make_router: MakeRouter) -> None:
    keys = (ApiKey(name="root", key="root", admin=True), ApiKey(name="guest", key="guest"))
    router = await make_router({"a": {"discover_models": True, "start_cmd": LLAMA}}, discover=ON, api_keys=keys)
    asked = {
        who: await router.ask(b"", path="/admin/discover", headers={"Authorization": f"Bearer {who}"})
        for who in ("root", "guest")
    }
    assert asked["root"].json["engines"] == {"a": ["small", "small.gguf"]}
    assert asked["guest"].status == 403
