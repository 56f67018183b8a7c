"""What an operator sees and says: health, status, metrics, swap, unload, reset – and that limits hold."""

from __future__ import annotations

import asyncio
import json
import re
import time

import pytest
from engine_server import DONE, SSE_HEAD, chunk, chunked, event, ok
from router_kit import CHAT, MakeRouter, RouterUnderTest, chat

from enginerouter.config.model import ApiKey
from enginerouter.errors import StartFailed
from enginerouter.swap.phases import Phase
from loop_watch import loop_watch

HOSTILE = ['m"} 1\nevil{x="', "\\", "\n# HELP evil x", "{}", "日本", "a" * 500, "</script>", "b\u202ea"]
SAMPLE = re.compile(r'[a-z_]+(\{([a-z]+="(\\.|[^"\\\n])*",?)*\})? -?[0-9.e+-]+|[a-z_]+(\{.*\})? (\+Inf|NaN)')


async def test_health_says_ok_whatever_the_engines_do_and_swaps_nothing(make_router: MakeRouter) -> None:
    router = await make_router()
    router.engines["a"].starting.shut()
    async with router.client() as client:
        await client.send("POST", CHAT, chat())
        await router.engines["a"].starting.reached.wait()
        answer = await router.get("/health")
        assert (answer.status, answer.json) == (200, {"status": "ok", "name": "enginerouter"})
        assert (await router.ask(path="/health", method="HEAD")).status == 200
        router.engines["a"].starting.open()
        await client.answer()


async def test_health_is_503_when_the_coordinator_is_stuck(
    make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = await make_router()
    monkeypatch.setattr(router.router.coordinator, "_turned_at", time.monotonic() - 60)
    answer = await router.get("/health")
    assert (answer.status, answer.json["status"]) == (503, "stuck")


async def test_status_shows_a_swap_in_progress_and_asks_no_engine(make_router: MakeRouter) -> None:
    """Predecessor E13, E14: /status asked every engine in turn, and hung with a frozen one."""
    router = await make_router()
    await router.load("b")
    router.engines["b"].server.script = [asyncio.Event()]
    router.engines["a"].starting.shut()
    async with router.client() as client:
        await client.send("POST", CHAT, chat("a"))
        await router.engines["a"].starting.reached.wait()
        seen = len(router.engines["b"].server.received)
        began_at = time.monotonic()
        status = (await router.get("/status")).json
        assert time.monotonic() - began_at < 0.2
        assert len(router.engines["b"].server.received) == seen
        assert status["queued"] == 1
        assert [(s["target"], s["step"], s["freed"]) for s in status["swaps"]] == [("a", "starting", ["b"])]
        slots = {s["slot"]: s for s in status["slots"]}
        assert (slots["a"]["phase"], slots["a"]["queued"], slots["b"]["phase"]) == ("starting", 1, "cold")
        router.engines["a"].starting.open()
        await client.answer()
    status = (await router.get("/status")).json
    assert status["swaps"] == []
    assert status["last_swaps"]["a"]["result"] == "ok"
    assert status["version"]


async def test_status_names_to_a_key_only_what_it_may_use(make_router: MakeRouter) -> None:
    keys = (ApiKey(name="boss", key="boss", admin=True), ApiKey(name="guest", key="guest", models=("fast",)))
    router = await make_router(("mine", "secret"), aliases={"fast": "mine"}, api_keys=keys)
    boss = {"X-API-Key": "boss"}
    for name in ("mine", "secret", "mine"):
        assert (await router.ask(chat(name), headers=boss)).status == 200
        await router.idle()
    router.engines["secret"].starting.shut()
    async with router.client() as client:
        await client.send("POST", CHAT, chat("secret"), boss)
        await router.engines["secret"].starting.reached.wait()
        await router.until(lambda: router.phase("secret") is Phase.STARTING)
        seen = await router.get("/status", **{"X-API-Key": "guest"})
        assert (seen.status, b"secret" in seen.body) == (200, False)
        assert [s["slot"] for s in seen.json["slots"]] == ["mine"]
        assert seen.json["swaps"] == []
        assert list(seen.json["last_swaps"]) == ["mine"]
        assert seen.json["last_swaps"]["mine"]["freed"] == []
        full = (await router.get("/status", **boss)).json
        assert [s["slot"] for s in full["slots"]] == ["mine", "secret"]
        assert full["swaps"][0]["target"] == "secret"
        assert full["last_swaps"]["mine"]["freed"] == ["secret"]
        router.engines["secret"].starting.open()
        await client.answer()


async def test_metrics_parse_and_their_labels_are_configured_names(make_router: MakeRouter) -> None:
    router = await make_router(aliases={"fast": "a", "claude-*": "a"})
    for name in HOSTILE:
        answer = await router.ask(json.dumps({"model": name}).encode())
        assert answer.status == 404
    for name in ("a", "fast", "claude-opus", "claude-haiku", "a:latest"):
        assert (await router.ask(chat(name))).status == 200
    text = (await router.get("/metrics")).body.decode()
    for line in text.splitlines():
        assert line.startswith("# ") or SAMPLE.fullmatch(line), line
    named = {m[1] for m in re.finditer(r'requested="([^"]*)"', text)}
    assert named == {"a", "fast", "claude-*", "other"}
    assert 'enginerouter_requests_total{dialect="openai",requested="other",target="other",status="404"} 8' in text
    assert 'enginerouter_engine_state{engine="a",phase="ready"} 1' in text
    assert 'enginerouter_swap_total{from="none",to="a",result="ok"} 1' in text


async def test_metrics_of_a_request_whose_client_left_say_499(make_router: MakeRouter) -> None:
    router = await make_router()
    router.engines["a"].server.script = [asyncio.Event()]
    async with router.client() as client:
        await client.send("POST", CHAT, chat())
        await router.engines["a"].server.exchange()
    await router.idle()
    await router.until(lambda: 'status="499"' in router.router.registry.text())


# --- an operator's word


async def test_a_swap_is_answered_when_it_is_done(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.load("b")
    answer = await router.ask(b'{"engine": "a"}', path="/admin/swap")
    assert (answer.status, answer.json["slot"], answer.json["phase"]) == (200, "a", "ready")
    assert router.phase("b") is Phase.COLD
    again = await router.ask(b'{"model": "a"}', path="/admin/swap")
    assert again.status == 200
    assert router.engines["a"].starts == 1


async def test_a_swap_need_not_be_waited_for(make_router: MakeRouter) -> None:
    router = await make_router()
    router.engines["a"].starting.shut()
    answer = await router.ask(b'{"engine": "a"}', path="/admin/swap?wait=0")
    assert answer.status == 202
    await router.engines["a"].starting.reached.wait()
    router.engines["a"].starting.open()
    await router.until(lambda: router.phase("a") is Phase.READY)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("wait=0", 202),
        ("wait=false", 202),
        ("wait=No", 202),
        ("x=1&wait=0", 202),
        ("wait=0&x=1", 202),
        ("", 200),
        ("wait=1", 200),
        ("wait=", 200),
        ("nowait=0", 200),
        ("waiting=0&x", 200),
    ],
)
async def test_wait_is_read_from_the_query_and_the_rest_ignored(
    make_router: MakeRouter, query: str, status: int
) -> None:
    router = await make_router()
    assert (await router.ask(b'{"engine": "a"}', path=f"/admin/swap?{query}")).status == status
    await router.until(lambda: router.phase("a") is Phase.READY)


async def test_a_swap_that_is_not_waited_for_fails_in_the_log_only(
    make_router: MakeRouter, caplog: pytest.LogCaptureFixture
) -> None:
    router = await make_router()
    router.engines["a"].start_error = StartFailed("a", "engine 'a' has no model file")
    assert (await router.ask(b'{"engine": "a"}', path="/admin/swap?wait=0")).status == 202
    await router.until(lambda: "was asked for did not happen: engine 'a' has no model file" in caplog.text)


async def test_a_swap_fails_with_the_reason(make_router: MakeRouter) -> None:
    router = await make_router()
    router.engines["a"].start_error = StartFailed("a", "engine 'a' has no model file", admin_detail="tail of the log")
    answer = await router.ask(b'{"engine": "a"}', path="/admin/swap")
    assert (answer.status, answer.error["detail"]) == (502, "tail of the log")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"engine": "none"}', 404),
        (b'{"model": "none"}', 404),
        (b"{}", 400),
        (b"", 400),
        (b"[]", 400),
        (b'{"engine": 7}', 400),
        (b'{"model": ["a"]}', 400),
    ],
)
async def test_a_swap_to_nowhere_says_so(make_router: MakeRouter, body: bytes, status: int) -> None:
    router = await make_router()
    answer = await router.ask(body, path="/admin/swap")
    assert answer.status == status
    assert answer.error["message"]


async def test_unloading_frees_what_is_idle_and_waits_for_what_is_not(make_router: MakeRouter) -> None:
    router = await make_router()
    hold = asyncio.Event()
    router.engines["a"].server.script = [SSE_HEAD, chunk(event("x")), hold, *chunked([DONE])]
    async with router.client() as client:
        await client.send("POST", CHAT, chat(stream=True))
        await client.head()
        answer = await router.ask(b'{"model": "a"}', path="/admin/unload")
        assert (answer.status, answer.json) == (200, {"unloading": ["a"]})
        assert router.phase("a") is Phase.READY
        hold.set()
        assert (await client.rest())[1]
    await router.until(lambda: router.phase("a") is Phase.COLD)
    nothing = await router.ask(b"{}", path="/admin/unload")
    assert (nothing.status, nothing.json) == (200, {"unloading": []})
    assert router.engines["b"].starts == 0


@pytest.mark.parametrize("body", [b"", b"  ", b"{}", b"{ }", b"\n{\n}\n"])
async def test_an_empty_object_or_body_means_all_however_it_is_spelt(make_router: MakeRouter, body: bytes) -> None:
    router = await make_router(together=(("a", "b"),))
    await router.load("a")
    await router.load("b")
    assert (await router.ask(body, path="/admin/reset")).json == {"reset": ["a", "b"], "circuits": []}
    assert (await router.ask(body, path="/admin/unload")).json == {"unloading": ["a", "b"]}
    await router.until(lambda: router.phase("a") is Phase.COLD and router.phase("b") is Phase.COLD)


@pytest.mark.parametrize("body", [b'{"engin": "a"}', b'{"engine": null}', b"[]", b"{", b'{"model": 1}'])
async def test_what_names_nothing_is_never_taken_for_all(make_router: MakeRouter, body: bytes) -> None:
    router = await make_router()
    await router.load("a")
    for path in ("/admin/unload", "/admin/reset"):
        assert (await router.ask(body, path=path)).status == 400
    assert router.phase("a") is Phase.READY


async def test_a_misspelt_engine_is_answered_with_the_closest(make_router: MakeRouter) -> None:
    router = await make_router(("llama", "vllm"))
    answer = await router.ask(b'{"engine": "lama"}', path="/admin/swap")
    assert answer.status == 404
    assert answer.error["message"].endswith("; did you mean 'llama'?")
    answer = await router.ask(b'{"engine": "zzz"}', path="/admin/swap")
    assert answer.error["message"].endswith("; there are: llama, vllm")


async def test_an_engine_and_a_model_of_it_may_be_named_together(make_router: MakeRouter) -> None:
    router = await make_router(models=[{"id": "qwen", "engine": "a"}], aliases={"fast": "qwen"})
    for model in ("qwen", "fast", "a/qwen"):
        body = json.dumps({"engine": "a", "model": model}).encode()
        assert (await router.ask(body, path="/admin/swap")).json["slot"] == "a"
    answer = await router.ask(b'{"engine": "b", "model": "qwen"}', path="/admin/swap")
    assert (answer.status, answer.error["message"]) == (400, "model 'qwen' belongs to engine 'a', not to 'b'")
    assert (await router.ask(b'{"engine": "b", "model": "none"}', path="/admin/swap")).status == 404
    assert router.engines["b"].starts == 0


async def test_resetting_lets_a_broken_engine_be_tried_again(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"max_restarts": 1}})
    router.engines["a"].start_error = StartFailed("a", "engine 'a' has no model file")
    assert (await router.ask(chat())).error["code"] == "start_failed"
    refused = await router.ask(chat())
    assert (refused.status, refused.error["code"]) == (503, "start_circuit_open")
    assert "engine 'a' has no model file" in refused.error["message"]
    assert 1 <= int(refused.header("retry-after") or 0) <= 60
    assert refused.header("x-should-retry") == "false"
    assert (await router.get("/status")).json["slots"][0]["start_circuit"]["failures"] == 1
    router.engines["a"].start_error = None
    answer = await router.ask(b"{}", path="/admin/reset")
    assert answer.json == {"reset": ["a"], "circuits": []}
    assert (await router.ask(chat())).status == 200


async def test_only_admins_swap_unload_and_reset(make_router: MakeRouter) -> None:
    keys = (ApiKey(name="boss", key="boss", admin=True), ApiKey(name="guest", key="guest"))
    router = await make_router(api_keys=keys)
    for path in ("/admin/swap", "/admin/unload", "/admin/reset"):
        for key, status in (("guest", 403), ("", 401)):
            headers = {"X-API-Key": key} if key else {}
            answer = await router.ask(b'{"engine": "a"}', path=path, headers=headers)
            assert answer.status == status
    assert router.engines["a"].starts == 0
    assert (await router.ask(b'{"engine": "a"}', path="/admin/swap", headers={"X-API-Key": "boss"})).status == 200


async def test_an_admin_key_sees_which_keys_wait_for_what_and_no_other_does(make_router: MakeRouter) -> None:
    keys = (ApiKey(name="boss", key="boss", admin=True), ApiKey(name="agents", key="agents"))
    router = await make_router(api_keys=keys)
    router.engines["a"].starting.shut()
    boss, agents = {"X-API-Key": "boss"}, {"X-API-Key": "agents"}
    asked = []
    for number, headers in enumerate((agents, boss, agents), start=1):
        asked.append(asyncio.create_task(router.ask(chat("a"), headers=headers)))
        await waiting(router, number)
    slots = {s["slot"]: s for s in (await router.get("/status", **boss)).json["slots"]}
    assert [(w["key"], w["count"]) for w in slots["a"]["waiting"]] == [("agents", 2), ("boss", 1)]
    assert all(w["longest_s"] >= 0 for w in slots["a"]["waiting"])
    assert "waiting" not in slots["b"]
    seen = await router.get("/status", **agents)
    assert [s["queued"] for s in seen.json["slots"]] == [3, 0]
    assert b"boss" not in seen.body
    router.engines["a"].starting.open()
    assert [(await answer).status for answer in asked] == [200, 200, 200]


async def test_metrics_may_ask_for_a_key(make_router: MakeRouter) -> None:
    router = await make_router(api_keys=(ApiKey(name="k", key="k"),), metrics_require_key=True)
    assert (await router.get("/metrics")).status == 401
    assert (await router.get("/metrics", Authorization="Bearer k")).status == 200


# --- limits


async def waiting(router: RouterUnderTest, number: int) -> None:
    await router.until(lambda: router.router.coordinator.queued == number)


async def test_a_full_queue_is_429_with_a_time_to_come_back(make_router: MakeRouter) -> None:
    router = await make_router(max_queued_requests=2)
    router.engines["a"].starting.shut()
    first = [asyncio.create_task(router.ask(chat())) for _ in range(2)]
    await waiting(router, 2)
    for stream in (False, True):
        answer = await router.ask(chat(stream=stream))
        assert (answer.status, answer.error["code"]) == (429, "queue_full")
        assert 1 <= int(answer.header("retry-after") or 0) <= 60
    router.engines["a"].starting.open()
    assert [(await t).status for t in first] == [200, 200]


async def test_bodies_that_wait_are_bounded_together(make_router: MakeRouter) -> None:
    router = await make_router(max_buffered_mib=1)
    router.engines["a"].starting.shut()
    first = asyncio.create_task(router.ask(chat(pad="x" * 700_000)))
    await waiting(router, 1)
    full = await router.ask(chat(pad="x" * 700_000))
    assert (full.status, full.error["code"]) == (429, "queue_full")
    # How long the engine takes is not known: ten seconds are assumed, of which few have passed.
    assert 5 < int(full.header("retry-after") or 0) <= 10
    router.engines["a"].starting.open()
    assert (await first).status == 200
    assert (await router.ask(chat(pad="x" * 700_000))).status == 200


async def test_a_body_that_never_has_room_is_too_large_and_not_to_be_sent_again(make_router: MakeRouter) -> None:
    router = await make_router(max_buffered_mib=1)
    for path in (CHAT, "/api/chat", "/v1/messages"):
        answer = await router.ask(chat(pad="x" * 1_100_000), path=path)
        assert (answer.status, answer.header("retry-after")) == (413, None)
        assert b"max_buffered_mib" in answer.body


async def test_a_running_answer_holds_no_part_of_the_body_budget(make_router: MakeRouter) -> None:
    router = await make_router(max_buffered_mib=1)
    hold = asyncio.Event()
    router.engines["a"].server.queued = [[SSE_HEAD, hold, *chunked([DONE])]]
    async with router.client() as client:
        await client.send("POST", CHAT, chat(stream=True, pad="x" * 700_000))
        await client.head()
        assert (await router.ask(chat(pad="x" * 700_000))).status == 200
        hold.set()
        await client.rest()


async def test_a_wait_beyond_queue_timeout_is_503(make_router: MakeRouter) -> None:
    router = await make_router(queue_timeout_s=0.05, swap_max_wait_s=60.0)
    hold = asyncio.Event()
    router.engines["a"].server.script = [hold, *ok()]
    busy = asyncio.create_task(router.ask(chat()))
    await router.engines["a"].server.exchange()
    answer = await router.ask(chat("b"))
    assert (answer.status, answer.error["code"]) == (503, "queue_timeout")
    assert 1 <= int(answer.header("retry-after") or 0) <= 60
    hold.set()
    assert (await busy).status == 200


async def test_what_a_pin_makes_impossible_is_503_at_once(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"pin": True}, "b": {}})
    await router.load("a")
    answer = await router.ask(chat("b"))
    assert (answer.status, answer.error["code"], answer.header("x-should-retry")) == (503, "pinned", "false")
    assert "a is pinned" in answer.error["message"]


async def test_max_in_flight_queues_the_rest_and_serves_them(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"max_in_flight": 1}})
    hold = asyncio.Event()
    router.engines["a"].server.queued = [[hold, *ok(b"1")]]
    first = asyncio.create_task(router.ask(chat()))
    await router.engines["a"].server.exchange()
    second = asyncio.create_task(router.ask(chat()))
    await waiting(router, 1)
    assert len(router.engines["a"].server.received) == 1
    hold.set()
    assert [(await first).status, (await second).status] == [200, 200]


async def test_the_loop_is_never_held_up_while_engines_are_swapped_under_load(make_router: MakeRouter) -> None:
    router = await make_router(("a", "b", "c"), swap_max_wait_s=0.02)

    async def use(model: str) -> None:
        for _ in range(6):
            assert (await router.ask(chat(model, stream=True, pad="x" * 50_000))).is_whole

    with loop_watch() as watch:
        await asyncio.gather(*(use(model) for model in "abc" for _ in range(3)))
    assert sum(e.starts for e in router.engines.values()) >= 3
    watch.assert_never_blocked()


async def test_adopting_engines_and_a_request_at_that_moment_do_not_meet(make_router: MakeRouter) -> None:
    """A request that comes while an earlier router's engines are looked for waits until they are known."""
    router = await make_router(("a", "b"), starts=False)
    engine = router.engines["a"]
    engine.adopts = True
    engine.adopting.shut()
    starting = asyncio.create_task(router.router.start())
    await engine.adopting.reached.wait()
    asking = asyncio.create_task(router.ask(chat()))
    await asyncio.sleep(0.05)
    engine.adopting.open()
    await starting
    try:
        answer = await asking
    except OSError:  # nobody listens yet: that is fine, too
        answer = await router.ask(chat())
    assert answer.status == 200
    assert engine.starts == 0
