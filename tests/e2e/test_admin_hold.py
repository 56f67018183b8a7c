"""`POST /admin/hold` and `/admin/release`, as another program and its victims see them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from router_kit import Answer, MakeRouter, RouterUnderTest, chat

from enginerouter.config.model import ApiKey
from enginerouter.swap.phases import Phase


async def say(router: RouterUnderTest, path: str, **words: Any) -> Answer:
    return await router.ask(json.dumps(words).encode(), path=f"/admin/{path}")


async def test_a_hold_answers_when_memory_is_free_and_requests_get_503_until_the_release(
    make_router: MakeRouter,
) -> None:
    router = await make_router(settles=True)
    await router.load("a")
    answer = await say(router, "hold", owner="comfy", expires_s=40)
    assert answer.status == 200
    assert (answer.json["hold"]["owner"], answer.json["hold"]["is_free"]) == ("comfy", True)
    assert router.phase("a") is Phase.COLD
    refused = await router.ask(chat("b"))
    assert (refused.status, refused.json["error"]["code"]) == (503, "held")
    assert "'comfy'" in refused.json["error"]["message"]
    assert 1 <= int(dict(refused.headers)["Retry-After"]) <= 40
    status = (await router.get("/status")).json
    assert (status["hold"]["mode"], status["hold"]["owner"]) == ("refuse", "comfy")
    assert b"enginerouter_memory_held 1\n" in (await router.get("/metrics")).body
    assert (await say(router, "release", owner="comfy")).json == {"released": True}
    assert (await router.ask(chat("b"))).status == 200
    assert (await router.get("/status")).json["hold"] is None
    assert b"enginerouter_memory_held 0\n" in (await router.get("/metrics")).body
    assert (await say(router, "release")).json == {"released": False}


async def test_with_mode_queue_a_request_waits_for_the_release(make_router: MakeRouter) -> None:
    router = await make_router()
    assert (await say(router, "hold", owner="comfy", mode="queue")).status == 200
    asked = asyncio.ensure_future(router.ask(chat("a")))
    await router.until(lambda: router.router.coordinator.queued == 1)
    await asyncio.sleep(0.1)
    assert router.engines["a"].starts == 0
    await say(router, "release")
    assert (await asked).status == 200


async def test_a_hold_of_somebody_else_is_a_409_that_names_them(make_router: MakeRouter) -> None:
    router = await make_router()
    assert (await say(router, "hold", owner="comfy")).status == 200
    for path in ("hold", "release"):
        answer = await say(router, path, owner="blender")
        assert (answer.status, answer.json["error"]["code"]) == (409, "held")
        assert "'comfy'" in answer.json["error"]["message"]


async def test_a_hold_need_not_be_waited_for(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.load("a")
    router.engines["a"].stopping.shut()
    answer = await router.ask(b'{"owner": "comfy"}', path="/admin/hold?wait=0")
    assert (answer.status, answer.json["hold"]["is_free"]) == (202, False)
    router.engines["a"].stopping.open()
    await router.until(lambda: router.phase("a") is Phase.COLD)
    assert (await router.get("/status")).json["hold"]["is_free"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "say who"),
        ({"owner": ""}, "say who"),
        ({"owner": 7}, "say who"),
        ({"owner": "x" * 101}, "say who"),
        ({"owner": "a\nb"}, "say who"),
        ({"owner": "c", "expires_s": 0}, "expires_s"),
        ({"owner": "c", "expires_s": True}, "expires_s"),
        ({"owner": "c", "expires_s": "5"}, "expires_s"),
        ({"owner": "c", "mode": "maybe"}, "mode has to be one of: refuse, queue"),
        ({"owner": "c", "drain": "never"}, "drain has to be one of: wait, cut, refuse"),
        ({"owner": "c", "expires": 5}, "'expires' is not known here"),
    ],
)
async def test_what_makes_no_sense_is_a_400_and_holds_nothing(
    make_router: MakeRouter, words: dict[str, Any], said: str
) -> None:
    router = await make_router()
    answer = await say(router, "hold", **words)
    assert answer.status == 400
    assert said in answer.json["error"]["message"]
    assert router.router.coordinator.current_hold is None


async def test_only_an_admin_may_hold(make_router: MakeRouter) -> None:
    router = await make_router(api_keys=(ApiKey(name="u", key="user-key", admin=False),))
    for path in ("/admin/hold", "/admin/release"):
        answer = await router.ask(b'{"owner": "c"}', path=path, headers={"Authorization": "Bearer user-key"})
        assert answer.status == 403


async def test_status_and_metrics_say_where_memory_is_read_and_why(make_router: MakeRouter) -> None:
    router = await make_router(settles=True)
    memory = (await router.get("/status")).json["memory"]
    assert (memory["source"], memory["devices"]) == ("fake", [])
    assert memory["available_bytes"] == 64 * 1024**3
    metrics = (await router.get("/metrics")).body
    assert b'enginerouter_memory_source_info{source="fake"} 1\n' in metrics
    assert b"enginerouter_memory_available_bytes 68719476736\n" in metrics
