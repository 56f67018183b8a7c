"""Servers that run without the router: others load and unload there, they are down, or are not what was configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from engine_server import FakeEngineServer, event, ok, sse, usual
from http_servers import HANGS, LM_STUDIO, LmStudio, OllamaDaemon, Provider, say
from router_kit import GIB, MakeRouter, RouterUnderTest, chat

from enginerouter.config.engines import ApiSwap, Ollama, Remote
from enginerouter.engines.api_swap import ApiSwapEngine
from enginerouter.errors import FreeFailed, StartTimedOut
from enginerouter.slots import SlotId
from enginerouter.swap.phases import Phase


@pytest.fixture
async def stranger() -> AsyncIterator[FakeEngineServer]:
    server = FakeEngineServer("stranger")
    await server.listen()
    yield server
    await server.stop()


@pytest.fixture(autouse=True)
def _no_cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def watched_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginerouter.engines.server_watch.ASK_EVERY_S", 0.05)
    monkeypatch.setattr("enginerouter.engines.server_watch.ASK_AGAIN_AFTER_S", 0.02)


def ollama(url: str, **more: Any) -> Ollama:
    return Ollama(name="ollama", base_url=url, **{"unload_timeout_s": 0.4, "systemd_unit": None, **more})


def lm_studio(url: str, **more: Any) -> ApiSwap:
    given = {"served_models": ("qwen", "gemma"), "ready_path": "/api/v1/models", "unload_timeout_s": 0.4, **more}
    return ApiSwap(name="lms", base_url=url, **{**LM_STUDIO, **given})


def phase(router: RouterUnderTest, slot: str) -> Phase:
    engine, _, model = slot.partition("/")
    return router.router.coordinator.slots[SlotId(engine, model or None)].phase


async def told(router: RouterUnderTest, model: str) -> str:
    """The error of a request that fails to start."""
    failed = await router.ask(chat(model))
    assert (failed.status, failed.error["code"]) == (502, "start_failed"), failed.body
    return str(failed.error["message"])


# --- memory that comes late


async def test_the_memory_of_a_daemon_that_loads_on_request_is_waited_for(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    """It is ready with nothing in memory, so its start took nothing; what it held is what counts, at every swap."""
    router = await make_router(("a",), http=[ollama(daemon.url)], settles=True)
    daemon.sizes = {"phi:3b": 8 * GIB, "llama3:latest": 20 * GIB}
    router.engines["a"].held = 60 * GIB
    came_back: list[float] = []

    def taken(size: int) -> None:
        if size >= 0:
            router.memory.bytes -= size
            return
        asyncio.get_running_loop().call_later(0.3, come_back, -size)

    def come_back(size: int) -> None:
        router.memory.bytes += size
        came_back.append(size)

    daemon.taken = taken
    for number, model in enumerate(("phi:3b", "llama3", "phi:3b"), start=1):
        await router.load(model)
        await router.load("a")
        assert len(came_back) == number, f"started on top of {model}"
        assert router.memory.bytes >= 0
        last = (await router.get("/status")).json["last_swaps"]["a"]
        assert last["settle"] == "recovered", model
        assert last["seconds"]["settling"] < 1.0


# --- servers that are not there, or not what was configured


@pytest.mark.parametrize("url", ["http://ollama-not-there.invalid:11434", "http://[100::1]:11434"])
async def test_a_server_whose_host_is_not_there_keeps_nobody_else_from_starting(
    make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    """The name of a container that is down, a box that is switched off."""
    monkeypatch.setattr("enginerouter.engines.ollama.LIST_TIMEOUT_S", 0.5)
    monkeypatch.setattr("enginerouter.swap.outside.LOOK_TIMEOUT_S", 0.3)
    settings = ollama(url, served_models=("phi:3b",), ready_probe_timeout_s=0.5)
    router = await make_router(("a",), http=[settings])
    await router.load("a")
    said = await told(router, "phi:3b")
    assert "its server does not run" in said
    assert "correct `base_url`" in said
    assert url in caplog.text, "said at the start, too"


STRANGERS: dict[str, Callable[[Any], Any]] = {
    "a directory of files": lambda _: ok(b"<!DOCTYPE HTML><html>", status=404, headers=[("Content-Type", "text/html")]),
    "200 to everything": lambda _: say({}),
    "an error in an answer of 200": lambda _: say({"error": "Unexpected endpoint or method."}),
    "a proxy without its server": lambda _: ok(b"<html>Bad Gateway</html>", status=502),
    "a login": lambda _: say({"detail": "who are you?"}, 401),
    "not HTTP": lambda _: [b"SSH-2.0-OpenSSH_9.6\r\n"],
}


@pytest.mark.parametrize("kind", STRANGERS)
async def test_a_stranger_at_the_port_of_a_server_stops_no_other_engine(
    make_router: MakeRouter, stranger: FakeEngineServer, kind: str
) -> None:
    stranger.script = STRANGERS[kind]
    url = f"http://127.0.0.1:{stranger.port}"
    engines = [ollama(url, served_models=("phi:3b",)), lm_studio(url)]
    router = await make_router(("a",), http=engines)
    await router.load("a")
    for model in ("phi:3b", "qwen"):
        said = await told(router, model)
        assert "not the server that is configured" in said, model
        assert url in said
    assert router.phase("a") is Phase.READY, "nothing was evicted for them"


ANYBODY: dict[str, Callable[[Any], Any]] = {
    "[]": lambda _: say([]),
    "{}": lambda _: say({}),
    "ok": lambda _: ok(b"ok", headers=[("Content-Type", "text/plain")]),
    "nothing": lambda _: ok(b""),
}
KINDS: dict[str, dict[str, Any]] = {
    "LM Studio": LM_STUDIO,
    "TabbyAPI": {
        "health_path": "/health", "load_path": "/v1/model/load", "unload_path": "/v1/model/unload",
        "loaded_path": "/v1/model", "loaded_models_key": "", "loaded_name_key": "id",
    },
    "LocalAI": {
        "health_path": "/readyz", "load_path": "/backend/load", "unload_path": "/backend/shutdown",
        "loaded_path": "/system", "loaded_models_key": "loaded_models", "loaded_name_key": "id",
    },
    "some other": {
        "health_path": "/v1/models", "load_path": "/load", "unload_path": "/unload", "loaded_path": "/loaded",
    },
    "another that lists all with their state": {
        "health_path": "/v1/models", "load_path": "/load", "unload_path": "/unload", "loaded_path": "/loaded",
        "loaded_models_key": "data", "loaded_name_key": "id", "loaded_filter": "state==loaded",
    },
}  # fmt: skip


@pytest.mark.parametrize("said", ANYBODY)
@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_that_anybody_may_give_is_not_taken_for_nothing_loaded(
    make_router: MakeRouter, stranger: FakeEngineServer, kind: str, said: str
) -> None:
    """The resident was evicted for it, and the client waited for the whole of `load_timeout_s`."""
    stranger.script = ANYBODY[said]
    url = f"http://127.0.0.1:{stranger.port}"
    engine = ApiSwap(name="x", base_url=url, served_models=("qwen",), unload_timeout_s=0.4, **KINDS[kind])
    router = await make_router(("a",), http=[engine])
    await router.load("a")
    words = await told(router, "qwen")
    assert "not the server that is configured: asked what is loaded" in words
    assert url + str(KINDS[kind]["loaded_path"]) in words
    assert said in words
    assert router.phase("a") is Phase.READY, "nothing was evicted for it"


async def test_an_empty_list_of_a_server_that_has_the_model_is_an_empty_list(
    make_router: MakeRouter, stranger: FakeEngineServer
) -> None:
    loaded: list[str] = []

    def script(received: Any) -> Any:
        if received.target == "/load":
            loaded.append("qwen")
        if received.target == "/v1/models":
            return say({"data": [{"id": "org/qwen"}]})
        return (
            say(loaded)
            if received.target == "/loaded"
            else say({})
            if received.target == "/load"
            else usual("x")(received)
        )

    stranger.script = script
    url = f"http://127.0.0.1:{stranger.port}"
    engine = ApiSwap(name="x", base_url=url, served_models=("qwen",), unload_timeout_s=0.4, **KINDS["some other"])
    router = await make_router((), http=[engine])
    assert (await router.ask(chat("qwen"))).text == "x serves qwen"


async def test_a_bare_list_is_believed_where_it_is_configured_so(
    make_router: MakeRouter, stranger: FakeEngineServer
) -> None:
    loaded: list[str] = []

    def script(received: Any) -> Any:
        if received.target == "/load":
            loaded.append("qwen")
        return usual("x")(received) if "chat" in received.target else say(loaded)

    stranger.script = script
    url = f"http://127.0.0.1:{stranger.port}"
    settings = {**KINDS["some other"], "loaded_models_key": "", "unload_timeout_s": 0.4}
    router = await make_router((), http=[ApiSwap(name="x", base_url=url, served_models=("qwen",), **settings)])
    assert (await router.ask(chat("qwen"))).text == "x serves qwen"


@pytest.mark.parametrize("said", ["[]", "ok", "nothing"])
async def test_a_load_that_is_answered_as_no_such_server_does_is_refused_at_once(
    make_router: MakeRouter, lms: LmStudio, said: str
) -> None:
    lms.fails["POST /api/v1/models/load"] = ANYBODY[said](None)
    router = await make_router((), http=[lm_studio(lms.url)])
    words = await told(router, "qwen")
    assert f"asked to load 'qwen', {lms.url}/api/v1/models/load answered 200" in words
    assert "LM Studio" in words
    assert said in words


async def test_a_server_in_trouble_when_the_router_starts_is_not_started_on_top_of(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    """It may hold memory. What to do is said, and a reset looks again."""
    daemon.fails["GET /api/ps"] = list(say({"error": "disk gone"}, 500))
    router = await make_router(("a",), http=[ollama(daemon.url)])
    failed = await router.ask(chat("a"))
    assert (failed.status, failed.error["code"]) == (502, "free_failed")
    assert phase(router, "ollama") is Phase.STUCK
    daemon.fails.clear()
    await router.ask(b'{"engine": "ollama"}', path="/admin/reset")
    await router.until(lambda: phase(router, "ollama") is Phase.COLD)
    await router.load("a")


async def test_a_busy_server_is_not_said_to_be_down(make_router: MakeRouter, lms: LmStudio) -> None:
    router = await make_router((), http=[lm_studio(lms.url, ready_probe_timeout_s=0.1)])
    lms.fails["GET /api/v1/models"] = HANGS
    said = await told(router, "qwen")
    assert "does not answer in time" in said
    assert "it may be busy" in said
    assert "start that server" not in said
    lms.fails.clear()


# --- loaded behind the router's back


async def test_a_model_that_was_loaded_in_ollama_directly_leaves_before_the_next_start(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    router = await make_router(("a",), http=[ollama(daemon.url)])
    daemon.running.append("phi:3b")
    await router.load("a")
    assert daemon.running == []


async def test_a_model_that_was_loaded_in_lm_studio_by_hand_leaves_before_the_next_start(
    make_router: MakeRouter, lms: LmStudio
) -> None:
    router = await make_router(("a",), http=[lm_studio(lms.url)])
    lms.instances["gemma"] = ["by hand"]
    await router.load("a")
    assert lms.loaded == []


async def test_a_hold_says_free_only_when_what_others_loaded_is_gone(
    make_router: MakeRouter, daemon: OllamaDaemon, lms: LmStudio
) -> None:
    router = await make_router(("a",), http=[ollama(daemon.url), lm_studio(lms.url)])
    daemon.running.append("phi:3b")
    lms.instances["gemma"] = ["by hand"]
    held = await router.ask(b'{"owner": "comfy"}', path="/admin/hold")
    assert held.json["hold"]["is_free"] is True
    assert (daemon.running, lms.loaded) == ([], [])


async def test_an_unload_frees_what_others_loaded(make_router: MakeRouter, daemon: OllamaDaemon) -> None:
    router = await make_router(("a",), http=[ollama(daemon.url)])
    daemon.running.append("phi:3b")
    said = await router.ask(b'{"engine": "ollama"}', path="/admin/unload")
    assert said.json == {"unloading": ["ollama"]}
    await router.until(lambda: not daemon.running)


# --- unloaded behind the router's back


async def test_a_model_that_its_server_unloaded_is_loaded_again_by_the_next_request(
    make_router: MakeRouter, lms: LmStudio, watched_closely: None
) -> None:
    """By its own idle time, or by hand; more often than a start may fail."""
    router = await make_router((), http=[lm_studio(lms.url)])
    for _ in range(4):
        await router.load("qwen")
        lms.instances["qwen"].clear()
        await router.until(lambda: phase(router, "lms/qwen") is Phase.COLD)
    assert len(lms.called("POST /api/v1/models/load")) == 4
    status = (await router.get("/status")).json["slots"][0]
    assert "start_circuit" not in status


async def test_a_list_without_the_model_ends_no_request_that_is_being_answered(
    make_router: MakeRouter, lms: LmStudio, watched_closely: None
) -> None:
    router = await make_router((), http=[lm_studio(lms.url)])
    await router.load("qwen")
    go_on = asyncio.Event()
    lms.queued.append(sse(event("first "), go_on, event("last")))
    async with router.client() as client:
        await client.send("POST", "/v1/chat/completions", chat("qwen", stream=True))
        await client.head()
        await client.until(b"first")
        looks = len(lms.called("GET /api/v1/models"))
        lms.instances["qwen"].clear()
        await router.until(lambda: len(lms.called("GET /api/v1/models")) > looks + 6)
        go_on.set()
        body, is_whole = await client.rest()
    assert is_whole
    assert b"last" in body
    await router.until(lambda: phase(router, "lms/qwen") is Phase.COLD)


async def test_a_server_that_loads_on_request_is_ready_with_nothing_loaded(
    make_router: MakeRouter, lms: LmStudio, watched_closely: None
) -> None:
    router = await make_router((), http=[lm_studio(lms.url, load_path="")])
    await router.load("qwen")
    looks = len(lms.called("GET /api/v1/models"))
    await router.until(lambda: len(lms.called("GET /api/v1/models")) > looks + 6)
    assert phase(router, "lms/qwen") is Phase.READY


async def test_a_daemon_that_dies_while_it_serves_ends_its_requests_and_is_used_again_when_it_is_back(
    make_router: MakeRouter, daemon: OllamaDaemon, watched_closely: None
) -> None:
    router = await make_router(("a",), http=[ollama(daemon.url)])
    await router.load("phi:3b")
    daemon.queued.append(sse(event("first "), asyncio.Event()))
    async with router.client() as client:
        await client.send("POST", "/v1/chat/completions", chat("phi:3b", stream=True))
        await client.head()
        await client.until(b"first")
        await daemon.stop()
        body, _ = await client.rest()
        assert b"error" in body
    await router.until(lambda: phase(router, "ollama") is Phase.COLD)
    await router.load("a")
    daemon.running.clear()
    await daemon.listen()
    await router.load("phi:3b")


# --- what will not go, and what comes late


async def test_a_daemon_that_would_not_unload_still_serves_its_own_models(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    router = await make_router(("a",), http=[ollama(daemon.url)])
    await router.load("phi:3b")
    daemon.lies.add("unload")
    assert (await router.ask(chat("a"))).error["code"] == "free_failed"
    assert phase(router, "ollama") is Phase.STUCK
    await router.load("phi:3b")
    assert (await router.ask(chat("a"))).error["code"] == "free_failed"
    daemon.lies.clear()
    await router.load("a")


async def test_a_load_that_ends_after_its_time_is_unloaded_before_anything_else_starts(
    make_router: MakeRouter, lms: LmStudio
) -> None:
    settings = lm_studio(lms.url, load_timeout_s=0.3, unload_timeout_s=5.0)
    router = await make_router(("a",), http=[settings])
    lms.fails["POST /api/v1/models/load"] = HANGS

    def appears() -> None:
        assert not router.engines["a"].starts, "started although the load goes on"
        lms.instances["qwen"].append("qwen:late")

    failed = await router.ask(chat("qwen"))
    assert (failed.status, failed.error["code"]) == (504, "start_timeout")
    asyncio.get_running_loop().call_later(0.2, appears)
    await router.load("a")
    assert lms.called("POST /api/v1/models/unload") == [{"instance_id": "qwen"}, {"instance_id": "qwen:late"}]
    assert lms.loaded == []
    lms.fails.clear()


async def test_a_load_that_never_ends_is_stuck_and_believed_dead_after_twice_its_time(lms: LmStudio) -> None:
    engine = ApiSwapEngine(lm_studio(lms.url, load_timeout_s=0.5, unload_timeout_s=0.2))
    slot = SlotId("lms", "qwen")
    lms.fails["POST /api/v1/models/load"] = HANGS
    try:
        with pytest.raises(StartTimedOut):
            await engine.start(slot)
        with pytest.raises(FreeFailed, match="the load of qwen did not end within load_timeout_s, and may go on"):
            await engine.stop(slot)
        with pytest.raises(FreeFailed):
            await engine.stop(slot)
        await engine.stop(slot)
    finally:
        await engine.close()


# --- what is no swap


async def test_a_provider_is_no_swap(make_router: MakeRouter, caplog: pytest.LogCaptureFixture) -> None:
    provider = Provider()
    await provider.listen()
    remote = Remote(name="rem", base_url=provider.url, api_key="provider-key", served_models=("gpt-x",))
    router = await make_router(("a",), http=[remote])
    assert (await router.ask(chat("rem/gpt-x"))).status == 200
    await router.load("a")
    metrics = (await router.get("/metrics")).body.decode()
    assert 'to="a"' in metrics
    assert 'to="rem"' not in metrics
    assert "swap to rem" not in caplog.text
    await provider.stop()


async def test_what_sleeps_is_shown_with_its_bytes(make_router: MakeRouter) -> None:
    router = await make_router(("a",))
    router.router.coordinator.slots[SlotId("a")].kept_bytes = 3 * GIB
    shown = (await router.get("/status")).json["slots"][0]
    assert (shown["phase"], shown["asleep_bytes"]) == ("cold", 3 * GIB)
