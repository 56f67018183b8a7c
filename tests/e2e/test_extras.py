"""What llama.cpp serves beside other APIs, by model, and any path of an engine for admins."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from engine_server import chunk, head, ok, sse
from router_kit import MakeRouter, RouterUnderTest, chat

from enginerouter.config.engines import Remote
from enginerouter.config.model import ApiKey

LOOKS = ("/tokenize", "/detokenize", "/apply-template")


def post(**body: Any) -> bytes:
    return json.dumps(body).encode()


def last(router: RouterUnderTest, engine: str = "a") -> Any:
    return router.engines[engine].server.received[-1]


# --- by model


@pytest.mark.parametrize("path", ["/infill", "/completion", "/rerank", "/reranking"])
async def test_what_generates_is_routed_and_swapped_like_a_chat(make_router: MakeRouter, path: str) -> None:
    router = await make_router(models=[{"id": "m", "engine": "b", "upstream_id": "its-name"}])
    answer = await router.ask(post(model="m", prompt="x"), path=path)
    assert (answer.status, answer.header("x-enginerouter-resolved")) == (200, "b/m")
    assert (last(router, "b").target, last(router, "b").json["model"]) == (path, "its-name")


async def test_a_streamed_completion_ends_without_a_done_of_ours(make_router: MakeRouter) -> None:
    router = await make_router()
    frame = b'data: {"content": "x", "stop": true}\n\n'
    router.a.server.script = lambda _: sse(frame)
    answer = await router.ask(post(model="a", stream=True), path="/completion")
    assert answer.body == frame


@pytest.mark.parametrize("path", LOOKS)
async def test_the_tokenizer_of_what_is_not_loaded_is_409(make_router: MakeRouter, path: str) -> None:
    router = await make_router()
    await router.load("b")
    refused = await router.ask(post(model="a", content="x"), path=path)
    assert (refused.status, refused.error["code"]) == (409, "not_resident")
    assert refused.header("x-should-retry") == "false"
    for word in (path, "'a'", "cold", "/admin/swap"):
        assert word in refused.error["message"]
    assert (router.a.starts, router.b.is_running) == (0, True)


@pytest.mark.parametrize("path", LOOKS)
async def test_the_tokenizer_of_what_is_loaded_answers(make_router: MakeRouter, path: str) -> None:
    router = await make_router(models=[{"id": "m", "engine": "a", "upstream_id": "own"}], aliases={"x": "m"})
    await router.load("m")
    router.a.server.script = lambda _: ok(b'{"tokens": [1]}')
    for body in (post(model="m"), post(model="x"), post(content="no model: the one in memory")):
        answer = await router.ask(body, path=path)
        assert (answer.status, answer.json) == (200, {"tokens": [1]})
        assert answer.header("x-enginerouter-resolved") == "a/m"
        assert last(router).json["model"] == "own"


async def test_of_a_chain_the_first_target_in_memory_answers(make_router: MakeRouter) -> None:
    router = await make_router(aliases={"c": {"chain": ("a", "b")}})
    await router.load("b")
    answer = await router.ask(post(model="c", content="x"), path="/tokenize")
    assert answer.header("x-enginerouter-resolved") == "b/b"
    assert router.a.starts == 0


async def test_a_key_tokenizes_with_what_it_may_use(make_router: MakeRouter) -> None:
    cloud = Remote(name="cloud", base_url="http://192.0.2.1:9")
    router = await make_router(
        http=[cloud],
        models=[{"id": "a", "engine": "a"}, {"id": "far", "engine": "cloud"}],
        api_keys=(ApiKey(name="k", key="k", models=("b", "far"), remote=False),),
    )
    key = {"Authorization": "Bearer k"}
    assert (await router.ask(post(model="a"), path="/tokenize", headers=key)).status == 404
    assert (await router.ask(post(model="far"), path="/tokenize", headers=key)).status == 403


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": 1}'])
async def test_a_body_that_is_none_is_400(make_router: MakeRouter, body: bytes) -> None:
    router = await make_router()
    assert (await router.ask(body, path="/tokenize", method="POST")).status == 400


# --- any path of an engine


async def test_a_path_of_an_engine_passes_as_it_is(make_router: MakeRouter) -> None:
    router = await make_router(
        {"a": {"headers": {"X-Engine": "yes"}, "api_key": "engine-key"}},
        models=[{"id": "m", "engine": "a", "set_params": {"temperature": 1}}],
        api_keys=(ApiKey(name="boss", key="boss", admin=True),),
    )
    boss = {"Authorization": "Bearer boss"}
    await router.ask(chat("m"), headers=boss)
    router.a.server.script = lambda _: ok(b"raw", status=207, headers=[("Content-Type", "text/x"), ("X-Its", "own")])
    body = b'{"model":"whatever",  "odd": true}'
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = await router.ask(body, path="/upstream/a/slots/0%201?action=save&x=%2F", method=method, headers=boss)
        assert (answer.status, answer.body, answer.header("x-its")) == (207, b"raw", "own")
        assert (last(router).method, last(router).target) == (method, "/slots/0%201?action=save&x=%2F")
        assert last(router).body == body, "not even the parameters of a model are written into it"
        assert last(router).header("authorization") == "Bearer engine-key"
        assert last(router).header("x-engine") == "yes"
    assert (await router.ask(path="/upstream/a/", headers=boss)).status == 207
    assert last(router).target == "/"
    assert (await router.ask(path="/upstream/a", headers=boss)).status == 207


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "slots"),
        ("HEAD", "health"),
        ("POST", "tokenize"),
        ("POST", "apply-template"),
        ("POST", "v1/messages/count_tokens"),
    ],
)
async def test_what_only_looks_at_an_engine_loads_nothing(make_router: MakeRouter, method: str, path: str) -> None:
    router = await make_router()
    await router.load("b")
    refused = await router.ask(b"{}" if method == "POST" else None, path=f"/upstream/a/{path}", method=method)
    assert refused.status == 409
    if method != "HEAD":
        assert refused.error["code"] == "not_resident"
    assert router.a.starts == 0
    await router.load("a")
    router.a.server.script = lambda _: ok(b"")
    assert (
        await router.ask(b"{}" if method == "POST" else None, path=f"/upstream/a/{path}", method=method)
    ).status == 200


async def test_a_post_to_an_engine_loads_it(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.load("b")
    answer = await router.ask(chat("a"), path="/upstream/a/v1/chat/completions")
    assert (answer.status, answer.text) == (200, "a serves a")
    assert answer.header("x-enginerouter-resolved") == "a"
    assert (router.a.starts, router.b.is_running) == (1, False)


async def test_a_path_of_an_engine_is_for_admins(make_router: MakeRouter) -> None:
    keys = (
        ApiKey(name="user", key="user"),
        ApiKey(name="some", key="some", admin=True, models=("b",)),
    )
    router = await make_router(api_keys=keys)
    for key, status in (("user", 403), ("some", 404), ("nobody", 401)):
        refused = await router.ask(b"{}", path="/upstream/a/slots", headers={"Authorization": f"Bearer {key}"})
        assert refused.status == status, key
    assert router.a.starts == 0


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/upstream/nobody/x", 404),
        ("/upstream/", 404),
        ("/upstream", 404),
        ("/upstream/a/../b/x", 400),
        ("/upstream/a/%2e%2e/x", 400),
        ("/upstream/a//x", 400),
        ("/upstream/a/x;y", 400),
        ("/upstream/a%2fb/x", 404),
        ("/upstream/a/%2f%2fexample.org", 400),
        ("/upstream/a/@example.org", 409),
    ],
)
async def test_no_path_leads_elsewhere(make_router: MakeRouter, path: str, status: int) -> None:
    router = await make_router()
    assert (await router.ask(path=path)).status == status
    assert [e.starts for e in router.engines.values()] == [0, 0]


async def test_an_upload_and_a_stream_pass_and_a_swap_waits_for_them(make_router: MakeRouter) -> None:
    router = await make_router()
    rest = asyncio.Event()
    kind = [("Content-Type", "text/plain"), ("Transfer-Encoding", "chunked")]
    await router.load("a")
    router.a.server.script = lambda _: [head(200, kind), chunk(b"one"), rest, chunk(b"two"), b"0\r\n\r\n"]
    async with router.client() as client, asyncio.TaskGroup() as group:
        await client.send("POST", "/upstream/a/x", b"\0\1" * 100_000, {"Content-Type": "application/octet-stream"})
        await client.head()
        assert await client.until(b"one") == b"one"
        assert last(router).body == b"\0\1" * 100_000
        other = group.create_task(router.ask(chat("b")))
        await router.until(lambda: router.phase("a").value == "draining")
        rest.set()
        assert await client.rest() == (b"two", True)
        assert (await other).status == 200


async def test_an_engine_that_dies_in_the_middle_does_not_end_tidily(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.load("a")
    stays = asyncio.Event()
    kind = [("Content-Type", "text/plain"), ("Transfer-Encoding", "chunked")]
    router.a.server.script = lambda _: [head(200, kind), chunk(b"one"), stays]
    async with router.client() as client:
        await client.send("GET", "/upstream/a/x")
        await client.head()
        await client.until(b"one")
        await router.a.crash()
        assert await client.rest() == (b"", False)


async def test_a_client_that_leaves_while_it_waits_leaves_no_ticket(make_router: MakeRouter) -> None:
    router = await make_router()
    router.a.starting.shut()
    async with router.client() as client:
        await client.send("POST", "/upstream/a/x", b"{}")
        await router.a.starting.reached.wait()
        client.reset()
    await router.until(lambda: router.router.coordinator.queued == 0)
    router.a.starting.open()


async def test_a_refused_connection_says_so(make_router: MakeRouter) -> None:
    router = await make_router()
    await router.load("a")
    await router.a.server.stop()
    failed = await router.ask(path="/upstream/a/x")
    assert failed.status == 502
    assert "a refuses connections" in failed.error["message"]
