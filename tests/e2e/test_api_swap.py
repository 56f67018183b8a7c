"""Servers that load models over HTTP, behind a whole router: swaps, what is seen, what is said when it goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engine_server import event, ok, sse
from http_servers import ERROR_SHAPES, HANGS, LM_STUDIO, TABBY, LmStudio, OllamaDaemon, Tabby
from router_kit import FakeMemory, MakeRouter, RouterUnderTest, chat

from enginerouter.config.engines import ApiSwap, Ollama
from enginerouter.config.load import load
from enginerouter.engines.api_swap import ApiSwapEngine
from enginerouter.errors import FreeFailed, StartFailed
from enginerouter.slots import SlotId
from enginerouter.swap.phases import Phase
from enginerouter.web.app import Router


@pytest.fixture
async def lms() -> AsyncIterator[LmStudio]:
    server = LmStudio()
    await server.listen()
    yield server
    await server.stop()


@pytest.fixture
async def tabby() -> AsyncIterator[Tabby]:
    server = Tabby()
    await server.listen()
    yield server
    await server.stop()


@pytest.fixture
async def daemon() -> AsyncIterator[OllamaDaemon]:
    server = OllamaDaemon()
    await server.listen()
    yield server
    await server.stop()


def lm_studio(server: LmStudio, **more: Any) -> ApiSwap:
    given = {"served_models": ("qwen", "gemma"), "ready_path": "/api/v1/models", "unload_timeout_s": 0.4, **more}
    return ApiSwap(name="lms", base_url=server.url, **{**LM_STUDIO, **given})


def tabby_api(server: Tabby, **more: Any) -> ApiSwap:
    given = {"served_models": ("mistral", "yi", "broken"), "ready_path": "/health", "unload_timeout_s": 0.4, **more}
    return ApiSwap(name="tabby", base_url=server.url, **{**TABBY, **given})


def phase(router: RouterUnderTest, engine: str, model: str) -> Phase:
    return router.router.coordinator.slots[SlotId(engine, model)].phase


async def answer(router: RouterUnderTest, model: str) -> str:
    said = await router.ask(chat(model))
    assert said.status == 200, said.body
    return said.text


async def test_three_kinds_of_engines_take_turns_in_memory(
    make_router: MakeRouter, lms: LmStudio, tabby: Tabby, daemon: OllamaDaemon
) -> None:
    ollama = Ollama(name="ollama", base_url=daemon.url, served_models=("llama3",), unload_timeout_s=0.5)
    router = await make_router(("a",), http=[lm_studio(lms), tabby_api(tabby), ollama])
    for _ in range(2):
        assert await answer(router, "a") == "a serves a"
        assert (lms.loaded, tabby.model, daemon.running) == ([], None, [])
        assert await answer(router, "qwen") == "lms serves qwen"
        assert not router.engines["a"].is_running
        assert len(lms.loaded) == 1
        assert await answer(router, "mistral") == "tabby serves mistral"
        assert (lms.loaded, tabby.model) == ([], "mistral")
        assert await answer(router, "llama3:latest") == "ollama serves llama3"
        assert (tabby.model, daemon.running) == (None, ["llama3:latest"])
    assert await answer(router, "a") == "a serves a"
    assert daemon.running == []


async def test_a_model_is_put_into_the_body_at_any_depth(make_router: MakeRouter, tabby: Tabby) -> None:
    router = await make_router((), http=[tabby_api(tabby)])
    await answer(router, "mistral")
    assert tabby.called("POST /v1/model/load") == [
        {"model_name": "mistral", "draft_model": {"names": ["mistral-draft"]}}
    ]


async def test_a_change_of_model_inside_one_engine_lets_the_running_stream_end(
    make_router: MakeRouter, lms: LmStudio
) -> None:
    router = await make_router((), http=[lm_studio(lms)])
    await router.load("qwen")
    go_on = asyncio.Event()
    lms.queued.append(sse(event("first "), go_on, event("last")))
    async with router.client() as client:
        await client.send("POST", "/v1/chat/completions", chat("qwen", stream=True))
        await client.head()
        await client.until(b"first")
        other = asyncio.create_task(router.ask(chat("gemma")))
        await router.until(lambda: phase(router, "lms", "qwen") is Phase.DRAINING)
        await asyncio.sleep(0.05)
        assert not lms.called("POST /api/v1/models/unload")
        go_on.set()
        body, is_whole = await client.rest()
    assert is_whole
    assert b"last" in body
    assert (await other).text == "lms serves gemma"
    assert lms.instances["qwen"] == []
    unloaded = lms.called("POST /api/v1/models/unload")
    assert unloaded == [{"instance_id": "qwen:2"}], "the id of the instance, not the key"


async def test_many_requests_are_one_load_and_a_loaded_model_is_not_loaded_again(
    make_router: MakeRouter, lms: LmStudio
) -> None:
    router = await make_router((), http=[lm_studio(lms)])
    answers = await asyncio.gather(*(answer(router, "qwen") for _ in range(8)))
    assert set(answers) == {"lms serves qwen"}
    assert len(lms.called("POST /api/v1/models/load")) == 1


async def test_what_is_loaded_when_the_router_starts_is_resident(make_router: MakeRouter, lms: LmStudio) -> None:
    lms.instances["gemma"] = ["gemma:7"]
    router = await make_router(("a",), http=[lm_studio(lms)])
    assert phase(router, "lms", "gemma") is Phase.READY
    await answer(router, "gemma")
    assert not lms.called("POST /api/v1/models/load")
    await answer(router, "a")
    assert lms.called("POST /api/v1/models/unload") == [{"instance_id": "gemma:7"}]


async def test_a_router_that_comes_back_takes_over_and_loads_nothing_again(
    make_router: MakeRouter, lms: LmStudio
) -> None:
    first = await make_router(("a",), http=[lm_studio(lms)], on_exit="keep")
    await first.load("gemma")
    await first.stop()
    assert len(lms.loaded) == 1
    second = await make_router(("a",), http=[lm_studio(lms)])
    assert phase(second, "lms", "gemma") is Phase.READY
    await answer(second, "gemma")
    assert len(lms.called("POST /api/v1/models/load")) == 1
    await second.stop()
    assert lms.loaded == [], "and without `keep` it is unloaded at the end"


async def test_two_engines_with_something_loaded_at_the_start_end_as_one(
    make_router: MakeRouter, lms: LmStudio, tabby: Tabby
) -> None:
    lms.instances["gemma"] = ["gemma:7"]
    tabby.model = "yi"
    router = await make_router((), http=[lm_studio(lms), tabby_api(tabby)])
    await router.until(lambda: len(lms.loaded) + (tabby.model is not None) == 1)


async def test_a_model_nobody_declared_that_is_loaded_at_the_start_is_resident_too(
    make_router: MakeRouter, lms: LmStudio
) -> None:
    lms.instances["stray"] = ["stray:1", "stray:2"]
    router = await make_router(("a",), http=[lm_studio(lms)])
    assert phase(router, "lms", "stray") is Phase.READY
    await answer(router, "a")
    assert lms.loaded == []


async def test_an_unload_that_does_nothing_is_an_error_that_names_the_model(
    make_router: MakeRouter, lms: LmStudio
) -> None:
    router = await make_router(("a",), http=[lm_studio(lms)])
    await router.load("qwen")
    lms.lies.add("unload")
    failed = await router.ask(chat("a"))
    assert (failed.status, failed.error["code"]) == (502, "free_failed")
    assert "'lms' could not be freed: still in its memory after 0.4 s: qwen" in failed.error["message"]
    assert not router.engines["a"].starts, "nothing is started on top of it"
    lms.lies.clear()
    assert await answer(router, "a") == "a serves a"
    assert lms.loaded == []


@pytest.mark.parametrize("shape", ERROR_SHAPES)
async def test_an_error_of_the_list_is_never_read_as_nothing_loaded(
    make_router: MakeRouter, lms: LmStudio, shape: str
) -> None:
    status, body, words = ERROR_SHAPES[shape]
    router = await make_router(("a",), http=[lm_studio(lms)])
    await router.load("qwen")
    lms.fails["GET /api/v1/models"] = list(ok(body, status=status))
    failed = await router.ask(chat("a"))
    assert (failed.status, failed.error["code"]) == (502, "free_failed")
    assert words in failed.error["message"]
    assert "/api/v1/models" in failed.error["message"]
    assert not router.engines["a"].starts
    lms.fails.clear()
    assert await answer(router, "a") == "a serves a"


async def test_a_list_that_fails_once_its_unload_is_under_way_is_an_error_too(
    make_router: MakeRouter, lms: LmStudio
) -> None:
    """Its models may still be there, and nobody has seen them go."""
    router = await make_router(("a",), http=[lm_studio(lms)])
    await router.load("qwen")
    lms.lies |= {"unload", "blind"}
    failed = await router.ask(chat("a"))
    assert (failed.status, failed.error["code"]) == (502, "free_failed")
    assert "gone blind" in failed.error["message"]
    assert not router.engines["a"].starts


async def test_a_list_that_hangs_is_an_error_within_a_bounded_time(
    make_router: MakeRouter, lms: LmStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.engines.api_swap.LIST_TIMEOUT_S", 0.2)
    router = await make_router(("a",), http=[lm_studio(lms)])
    await router.load("qwen")
    lms.fails["GET /api/v1/models"] = HANGS
    failed = await router.ask(chat("a"))
    assert failed.status == 502
    assert "gave no whole answer within 0.2 s" in failed.error["message"]
    lms.fails.clear()


async def test_a_load_that_says_ok_and_loads_nothing_is_no_start(make_router: MakeRouter, lms: LmStudio) -> None:
    router = await make_router((), http=[lm_studio(lms, load_timeout_s=0.3)])
    lms.lies.add("load")
    failed = await router.ask(chat("qwen"))
    assert (failed.status, failed.error["code"]) == (504, "start_timeout")
    assert "said that 'qwen' is loaded, but" in failed.error["message"]
    assert "lists nothing at all" in failed.error["message"]


async def test_a_load_that_is_refused_says_why_and_the_rest_goes_on(make_router: MakeRouter, lms: LmStudio) -> None:
    router = await make_router(("a",), http=[lm_studio(lms, served_models=("missing",))])
    failed = await router.ask(chat("missing"))
    assert (failed.status, failed.error["code"]) == (502, "start_failed")
    assert "'missing' could not be loaded" in failed.error["message"]
    assert "Model missing not found" in failed.error["message"]
    assert await answer(router, "a") == "a serves a"


async def test_an_error_within_the_events_of_a_load_is_an_error(make_router: MakeRouter, tabby: Tabby) -> None:
    router = await make_router((), http=[tabby_api(tabby)])
    failed = await router.ask(chat("broken"))
    assert failed.status == 502
    assert "CUDA is out of memory" in failed.error["message"]
    assert await answer(router, "yi") == "tabby serves yi"


async def test_an_unknown_path_answered_with_200_and_an_error_is_an_error(
    make_router: MakeRouter, lms: LmStudio
) -> None:
    router = await make_router((), http=[lm_studio(lms, load_path="/api/v0/load")])
    failed = await router.ask(chat("qwen"))
    assert failed.status == 502
    assert "Unexpected endpoint or method" in failed.error["message"]


async def test_a_wrong_admin_key_is_said(make_router: MakeRouter, tabby: Tabby) -> None:
    router = await make_router((), http=[tabby_api(tabby, control_headers={"x-admin-key": "wrong"})])
    failed = await router.ask(chat("mistral"))
    assert "401: Invalid admin key" in failed.error["message"]


async def test_control_headers_go_with_our_own_calls_only(make_router: MakeRouter, tabby: Tabby) -> None:
    router = await make_router((), http=[tabby_api(tabby)])
    await answer(router, "mistral")
    asked = [r for r in tabby.received if r.target == "/v1/chat/completions"]
    assert [r.header("x-admin-key") for r in asked] == [None]


async def test_a_server_that_is_not_there_is_named_and_nothing_is_evicted_for_it(
    make_router: MakeRouter, lms: LmStudio
) -> None:
    settings = lm_studio(lms)
    await lms.stop()
    router = await make_router(("a",), http=[settings])
    await router.load("a")
    failed = await router.ask(chat("qwen"))
    assert (failed.status, failed.error["code"]) == (502, "start_failed")
    assert f"http://127.0.0.1:{lms.port}/api/v1/models cannot be reached: connection refused" in failed.error["message"]
    assert router.phase("a") is Phase.READY


async def test_a_server_that_dies_is_noticed_and_does_not_block_the_others(
    make_router: MakeRouter, lms: LmStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.engines.server_watch.ASK_EVERY_S", 0.05)
    monkeypatch.setattr("enginerouter.engines.server_watch.ASK_AGAIN_AFTER_S", 0.02)
    router = await make_router(("a",), http=[lm_studio(lms)])
    await router.load("qwen")
    await lms.stop()
    await router.until(lambda: phase(router, "lms", "qwen") is Phase.COLD)
    assert await answer(router, "a") == "a serves a"
    lms.instances["qwen"].clear()
    await lms.listen()
    assert await answer(router, "qwen") == "lms serves qwen", "and it comes back when the server does"


async def test_a_server_that_is_slow_to_answer_is_not_taken_for_dead(
    make_router: MakeRouter, lms: LmStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginerouter.engines.server_watch.ASK_EVERY_S", 0.02)
    monkeypatch.setattr("enginerouter.engines.api_swap.LIST_TIMEOUT_S", 0.05)
    router = await make_router((), http=[lm_studio(lms)])
    await router.load("qwen")
    lms.fails["GET /api/v1/models"] = HANGS
    await asyncio.sleep(0.4)
    assert phase(router, "lms", "qwen") is Phase.READY
    lms.fails.clear()


async def test_an_unhealthy_status_that_sticks_is_waited_for_and_then_said(
    make_router: MakeRouter, tabby: Tabby
) -> None:
    tabby.lies.add("sick")
    router = await make_router((), http=[tabby_api(tabby, start_timeout_s=0.3)])
    failed = await router.ask(chat("mistral"))
    assert (failed.status, failed.error["code"]) == (504, "start_timeout")
    assert "/health within 0.3 s" in failed.error["message"]
    await router.until(lambda: phase(router, "tabby", "mistral") is Phase.COLD)
    assert tabby.model is None, "nothing is left half-started"


async def test_a_start_called_off_does_not_leave_its_load_behind(make_router: MakeRouter, lms: LmStudio) -> None:
    """The server goes on loading when the caller hangs up; what it loaded is unloaded all the same."""
    router = await make_router(("a",), http=[lm_studio(lms, unload_timeout_s=3.0)])
    loaded = asyncio.Event()

    async def late(exchange: Any) -> None:
        await loaded.wait()
        lms.instances["qwen"].append("qwen:late")

    lms.fails["POST /api/v1/models/load"] = [late, *ok(b'{"status": "loaded"}')]
    async with router.client() as client:
        await client.send("POST", "/v1/chat/completions", chat("qwen"))
        await router.until(lambda: bool(lms.called("POST /api/v1/models/load")))
    other = asyncio.create_task(router.ask(chat("a")))
    await router.until(lambda: phase(router, "lms", "qwen") is Phase.FREEING)
    await asyncio.sleep(0.1)
    assert not router.engines["a"].starts
    loaded.set()
    assert (await other).text == "a serves a"
    assert lms.loaded == []


async def test_an_undeclared_model_is_served_if_the_server_has_it(make_router: MakeRouter, lms: LmStudio) -> None:
    lms.instances["extra"] = []
    router = await make_router(("a",), http=[lm_studio(lms)])
    assert await answer(router, "lms/extra") == "lms serves extra"
    assert await answer(router, "qwen") == "lms serves qwen"
    assert lms.instances["extra"] == []


async def test_an_undeclared_model_that_the_server_has_not_evicts_nothing(
    make_router: MakeRouter, lms: LmStudio
) -> None:
    router = await make_router(("a",), http=[lm_studio(lms)])
    await router.load("a")
    for name in ("lms/typo", "typo", "lms/"):
        assert (await router.ask(chat(name))).error["code"] == "model_not_found", name
    assert router.phase("a") is Phase.READY
    assert not lms.called("POST /api/v1/models/load")
    assert b"typo" not in (await router.get("/metrics")).body


async def test_the_models_of_a_server_are_listed_where_that_is_asked_for(
    make_router: MakeRouter, lms: LmStudio
) -> None:
    router = await make_router((), http=[lm_studio(lms, served_models=("qwen",), discover_models=True)])
    ids = [m["id"] for m in (await router.get("/v1/models")).json["data"]]
    assert ids == ["qwen", "gemma"]
    assert await answer(router, "gemma") == "lms serves gemma"
    assert not lms.instances["qwen"]


async def test_an_operator_frees_an_engine_by_its_name(make_router: MakeRouter, lms: LmStudio) -> None:
    router = await make_router((), http=[lm_studio(lms)])
    unclear = await router.ask(b'{"engine": "lms"}', path="/admin/swap")
    assert "lms" in unclear.error["message"]
    assert "qwen" in unclear.error["message"]
    swapped = await router.ask(b'{"model": "qwen"}', path="/admin/swap")
    assert swapped.json["slot"] == "lms/qwen"
    assert len(lms.loaded) == 1
    assert (await router.ask(b'{"engine": "lms"}', path="/admin/unload")).json == {"unloading": ["lms/qwen"]}
    await router.until(lambda: not lms.loaded)


async def test_a_pinned_engine_may_change_its_model_but_leaves_for_nobody(
    make_router: MakeRouter, lms: LmStudio
) -> None:
    router = await make_router(("a",), http=[lm_studio(lms, pin=True)])
    await answer(router, "qwen")
    assert await answer(router, "gemma") == "lms serves gemma"
    assert (await router.ask(chat("a"))).error["code"] == "pinned"


# --- the engine by itself


async def test_without_a_list_the_word_of_the_server_counts(tabby: Tabby) -> None:
    engine = ApiSwapEngine(tabby_api(tabby, loaded_path=None))
    slot = SlotId("tabby", "mistral")
    try:
        await engine.start(slot)
        assert tabby.model == "mistral"
        tabby.fails["POST /v1/model/unload"] = list(ok(b'{"detail": "busy"}', status=500))
        with pytest.raises(FreeFailed, match=r"'mistral' could not be unloaded: .* 500: busy"):
            await engine.stop(slot)
        tabby.fails.clear()
        await engine.stop(slot)
        assert tabby.model is None
        await engine.stop(slot)
        assert len(tabby.called("POST /v1/model/unload")) == 2, "nothing is unloaded twice"
    finally:
        await engine.close()


async def test_what_cannot_be_unloaded_is_said(lms: LmStudio) -> None:
    engine = ApiSwapEngine(lm_studio(lms, unload_path=""))
    try:
        await engine.start(SlotId("lms", "qwen"))
        with pytest.raises(FreeFailed, match=r"qwen \(there is no unload_path\)"):
            await engine.stop(SlotId("lms", "qwen"))
    finally:
        await engine.close()


async def test_other_models_in_the_memory_of_the_server_go_before_a_load(lms: LmStudio) -> None:
    lms.instances["gemma"] = ["by hand"]
    engine = ApiSwapEngine(lm_studio(lms))
    try:
        await engine.start(SlotId("lms", "qwen"))
        assert len(lms.loaded) == 1
        assert lms.instances["gemma"] == []
    finally:
        await engine.close()


async def test_a_list_that_fails_at_the_start_of_the_router_is_an_error_of_that_engine(lms: LmStudio) -> None:
    engine = ApiSwapEngine(lm_studio(lms))
    lms.fails["GET /api/v1/models"] = list(ok(b"{}", status=500))
    try:
        with pytest.raises(FreeFailed, match="what it has in memory cannot be seen"):
            await engine.adopt()
    finally:
        await engine.close()


async def test_redirects_are_not_followed(lms: LmStudio, tmp_path: Path) -> None:
    engine = ApiSwapEngine(lm_studio(lms))
    lms.fails["POST /api/v1/models/load"] = list(ok(b"", status=302, headers=[("Location", "http://127.0.0.1:1/")]))
    try:
        with pytest.raises(StartFailed, match="redirects are not followed"):
            await engine.start(SlotId("lms", "qwen"))
    finally:
        await engine.close()


async def test_a_whole_configuration_file_with_every_kind_of_server_works(
    lms: LmStudio, daemon: OllamaDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        f"""
port: 0
log_file: null
memory_source: none
swap_linger_s: 0
swap_min_residency_s: 0
engines:
  lms: {{type: api_swap, base_url: '{lms.url}', health_path: /v1/models, unload_path: /api/v1/models/unload,
    unload_body: {{instance_id: '{{model}}'}}, load_path: /api/v1/models/load, load_body: {{model: '{{model}}'}},
    loaded_path: /api/v1/models, loaded_name_key: key}}
  ollama: {{type: ollama, base_url: '{daemon.url}'}}
models: [{{id: big, engine: lms, upstream_id: qwen}}, {{id: same, engine: lms, upstream_id: qwen}}]
""",
        encoding="utf-8",
    )
    router = Router(load(path, {}).config)
    await router.start()
    under_test = RouterUnderTest(router, {}, FakeMemory())
    try:
        for model, said in (
            ("big", "lms serves qwen"),
            ("same", "lms serves qwen"),
            ("phi:3b", "ollama serves phi:3b"),
        ):
            assert await answer(under_test, model) == said
        assert len(lms.called("POST /api/v1/models/load")) == 1, "two ids of one model are one slot"
        slots = {s["slot"]: s["models"] for s in (await under_test.get("/status")).json["slots"]}
        assert slots["lms/qwen"] == ["big", "same"]
        assert lms.loaded == []
    finally:
        await under_test.stop()
    assert daemon.running == []
