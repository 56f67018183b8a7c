"""Pulling, creating and deleting models through the router: who may, at which daemon, and in how many spellings not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import ollama
import pytest
from engine_server import chunk, head
from http_servers import OllamaDaemon, say
from router_kit import MakeRouter, RouterUnderTest

from enginerouter.config.engines import Ollama, Remote
from enginerouter.config.model import ApiKey

DIGEST = "sha256:" + "a" * 64
KEYS = (ApiKey(name="boss", key="boss", admin=True), ApiKey(name="user", key="user"))
BOSS = {"Authorization": "Bearer boss"}
USER = {"Authorization": "Bearer user"}
DESTRUCTIVE = [
    ("DELETE", "/api/delete"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("POST", "/api/push"),
    ("POST", f"/api/blobs/{DIGEST}"),
    ("HEAD", f"/api/blobs/{DIGEST}"),
]
MANAGED = ("/api/pull", "/api/delete", "/api/create", "/api/copy", "/api/push", "/api/blobs")


@pytest.fixture
async def daemons() -> AsyncIterator[tuple[OllamaDaemon, OllamaDaemon]]:
    both = (OllamaDaemon("llama3:latest"), OllamaDaemon("phi:3b", "qwen:7b"))
    for server in both:
        await server.listen()
    yield both
    for server in both:
        await server.stop()


Both = tuple[OllamaDaemon, OllamaDaemon]


async def box(make_router: MakeRouter, daemons: Both, **settings: Any) -> RouterUnderTest:
    http = [Ollama(name=f"o{n}", base_url=server.url) for n, server in enumerate(daemons, 1)]
    router = await make_router(("a",), http=http, **settings)
    await router.get("/api/tags", **BOSS)  # who has what is known from here on
    return router


def managed(*daemons: OllamaDaemon) -> list[str]:
    """What reached the daemons of all that changes something."""
    return [what for d in daemons for what, _ in d.calls if any(path in what for path in MANAGED)]


def post(**body: Any) -> bytes:
    return json.dumps(body).encode()


# --- who may


async def test_a_pull_is_for_admin_keys(make_router: MakeRouter, daemons: Both) -> None:
    router = await box(make_router, daemons, api_keys=KEYS)
    for headers, status in (({}, 401), (USER, 403)):
        refused = await router.ask(post(model="new"), path="/api/pull", headers=headers)
        assert refused.status == status
        assert isinstance(refused.json["error"], str)
    assert managed(*daemons) == []
    assert (await router.ask(post(model="new"), path="/api/pull", headers=BOSS)).status == 200


@pytest.mark.parametrize(("method", "path"), DESTRUCTIVE)
async def test_what_destroys_needs_the_switch_and_an_admin_key(
    make_router: MakeRouter, daemons: Both, method: str, path: str
) -> None:
    off = await box(make_router, daemons, api_keys=KEYS)
    body = post(model="llama3", source="llama3", destination="x") if method != "HEAD" else None
    for headers in (BOSS, USER):
        refused = await off.ask(body, path=path, method=method, headers=headers)
        assert refused.status == 403
        if method != "HEAD":
            assert isinstance(refused.json["error"], str)
    assert managed(*daemons) == []
    await off.stop()


async def test_with_the_switch_on_it_is_still_for_admin_keys(make_router: MakeRouter, daemons: Both) -> None:
    router = await box(make_router, daemons, api_keys=KEYS, allow_destructive_ollama_api=True)
    for method, path in DESTRUCTIVE:
        body = post(model="llama3") if method != "HEAD" else None
        assert (await router.ask(body, path=path, method=method, headers=USER)).status == 403, path
    assert managed(*daemons) == []


async def test_without_keys_the_switch_alone_decides(make_router: MakeRouter, daemons: Both) -> None:
    off = await box(make_router, daemons)
    refused = await off.ask(post(model="llama3"), path="/api/delete", method="DELETE")
    assert refused.status == 403
    assert "allow_destructive_ollama_api" in refused.json["error"]
    await off.stop()


SPELLINGS = [
    "/api/./delete",
    "/api//delete",
    "//api/delete",
    "/api/delete/",
    "/api/x/../delete",
    "/api/%2e/delete",
    "/api/%64elete",
    "/%61pi/delete",
    "/api%2fdelete",
    "/api/delete;x",
    "/api/delete%00",
    "/api/delete%20",
    "/API/delete",
    "/api/Delete",
    "\\api\\delete",
    "/api\\delete",
    "/api/delete#x",
    "/v1/../api/delete",
    "/v1/models/../../api/delete",
    "/upstream/o1/../../api/delete",
    "/api/show/../delete",
    "http://127.0.0.1/api/delete",
    "/api/blobs/../delete",
    "/api/blobs/%2e%2e%2fdelete",
    "/api/blobs/..%2f..%2fdelete",
]
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


@pytest.mark.parametrize("path", SPELLINGS)
async def test_no_other_spelling_gets_past_the_gate(make_router: MakeRouter, daemons: Both, path: str) -> None:
    router = await box(make_router, daemons, api_keys=KEYS)
    for method in METHODS:
        for target in (path, path.replace("delete", "create")):
            refused = await router.ask(post(model="llama3"), path=target, method=method, headers=BOSS)
            assert refused.status in (400, 403, 404, 405), (method, target)
    assert managed(*daemons) == []


@pytest.mark.parametrize(
    "path",
    ["/api/delete", "/api/%64elete", "/%61pi/delete", "/api/Delete", "/api/delete/", "/api/create", "/api/copy",
     "/api/push", f"/api/blobs/{DIGEST}"],
)  # fmt: skip
async def test_an_engine_s_own_path_does_not_get_past_the_gate(
    make_router: MakeRouter, daemons: Both, path: str
) -> None:
    router = await box(make_router, daemons)
    for method in METHODS:
        refused = await router.ask(post(model="llama3"), path=f"/upstream/o1{path}", method=method)
        assert (refused.status, "allow_destructive_ollama_api" in refused.error["message"]) == (403, True), method
    assert managed(*daemons) == []


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("/api", "/delete"),
        ("/api", "/%64elete"),
        ("/api", f"/blobs/{DIGEST}"),
        ("/API", "/create"),
        ("/%61pi", "/copy"),
        ("/%2561pi", "/copy"),
        ("/x/../api", "/push"),
        ("//api", "/push"),
        ("/ollama", "/api/delete"),
        ("/ollama/api", "/delete"),
        ("/api/delete", "/"),
        ("", "/ollama/api/delete"),
        ("", "/x%2fapi/delete"),
    ],
)
async def test_nor_does_a_path_that_becomes_one_under_the_engine_s_base(
    make_router: MakeRouter, daemons: Both, base: str, path: str
) -> None:
    http = [Remote(name="r", base_url=daemons[0].url + base)]
    router = await make_router(("a",), http=http)
    for method in METHODS:
        refused = await router.ask(post(model="llama3"), path=f"/upstream/r{path}", method=method)
        assert refused.status in (400, 403), method
        assert refused.status == 400 or "allow_destructive_ollama_api" in refused.error["message"]
    assert managed(*daemons) == daemons[0].calls == []


async def test_an_engine_is_not_started_to_be_refused_and_what_only_looks_like_one_passes(
    make_router: MakeRouter,
) -> None:
    router = await make_router({"a": {"base_url": "http://127.0.0.1:1/api"}})
    assert (await router.ask(post(), path="/upstream/a/create")).status == 403
    assert router.a.starts == 0
    for path in ("/creates", "/v1/api-delete", "/apis/delete", "/v1/delete"):
        assert (await router.ask(post(), path=f"/upstream/a{path}")).status == 200
    assert len(router.a.server.received) == 4


async def test_with_the_switch_on_an_engine_s_own_path_passes(make_router: MakeRouter, daemons: Both) -> None:
    router = await box(make_router, daemons, allow_destructive_ollama_api=True)
    gone = await router.ask(post(model="llama3:latest"), path="/upstream/o1/api/delete", method="DELETE")
    assert gone.status == 200
    assert managed(*daemons) == ["DELETE /api/delete"]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "GET", "POST"])
async def test_no_other_method_and_no_override_gets_past_the_gate(
    make_router: MakeRouter, daemons: Both, method: str
) -> None:
    router = await box(make_router, daemons, api_keys=KEYS)
    for header in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        headers = {**BOSS, header: "DELETE"}
        refused = await router.ask(
            post(model="llama3"), path="/api/delete?_method=DELETE", method=method, headers=headers
        )
        assert refused.status == 405
    assert managed(*daemons) == []


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:" + "a" * 63,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "md5:" + "a" * 64,
        "sha256:" + "a" * 64 + "%2f..%2f..%2fetc",
        "sha256:" + "a" * 64 + "?x",
        "sha256:..%2f" + "a" * 59,
    ],
)
async def test_a_digest_that_is_none_goes_nowhere(make_router: MakeRouter, daemons: Both, digest: str) -> None:
    router = await box(make_router, daemons, allow_destructive_ollama_api=True)
    answer = await router.ask(b"data", path=f"/api/blobs/{digest}")
    if digest.endswith("?x"):
        assert answer.status == 201, "a query is no part of a path"
        return
    assert answer.status == 400
    assert managed(*daemons) == []


# --- at which daemon


async def test_a_pull_is_streamed_and_what_it_brought_is_there_at_once(make_router: MakeRouter, daemons: Both) -> None:
    router = await box(make_router, daemons)
    half = asyncio.Event()
    lines = [b'{"status": "pulling manifest"}\n', b'{"status": "success"}\n']
    kind = [("Content-Type", "application/x-ndjson"), ("Transfer-Encoding", "chunked")]
    daemons[0].fails["POST /api/pull"] = [head(200, kind), chunk(lines[0]), half, chunk(lines[1]), b"0\r\n\r\n"]
    async with router.client() as client:
        await client.send("POST", "/api/pull", post(model="new:1b"))
        await client.head()
        assert client.header("content-type") == "application/x-ndjson"
        assert await client.until(b"manifest") == lines[0], "it does not wait for the end"
        daemons[0].models.append("new:1b")
        half.set()
        assert await client.rest() == (lines[1], True)
    assert "new:1b" in [m["model"] for m in (await router.get("/api/tags")).json["models"]]
    assert [b["model"] for b in daemons[0].called("POST /api/pull")] == ["new:1b"]
    assert router.a.starts == 0


async def test_the_daemon_that_has_a_model_gets_what_is_done_to_it(make_router: MakeRouter, daemons: Both) -> None:
    first, second = daemons
    router = await box(
        make_router,
        daemons,
        allow_destructive_ollama_api=True,
        models=[{"id": "small", "engine": "o2", "upstream_id": "qwen:7b"}],
        aliases={"handy": "small"},
    )
    assert (await router.ask(post(model="o2/new"), path="/api/pull")).status == 200
    assert second.called("POST /api/pull") == [{"model": "new"}], "an engine may be named"
    assert (await router.ask(post(model="phi:3b"), path="/api/push")).status == 200
    assert (await router.ask(post(source="small", destination="copy"), path="/api/copy")).status == 200
    assert second.called("POST /api/copy") == [{"source": "qwen:7b", "destination": "copy"}]
    assert (await router.ask(post(model="mine", **{"from": "phi:3b"}), path="/api/create")).status == 200
    assert first.called("POST /api/create") == []
    handy = await router.ask(post(model="handy"), path="/api/delete", method="DELETE")
    assert handy.status == 404, "an alias is no model: what it stands for is not deleted"
    assert "qwen:7b" in second.models
    assert (await router.ask(post(name="unheard"), path="/api/pull")).status == 200
    assert first.called("POST /api/pull") == [{"name": "unheard"}], "what nobody has goes to the first"


async def test_a_deleted_model_is_in_no_list_any_more(make_router: MakeRouter, daemons: Both) -> None:
    router = await box(make_router, daemons, allow_destructive_ollama_api=True)
    client = ollama.AsyncClient(host=router.url, verify=False, trust_env=False)
    assert (await client.delete("phi:3b")).status == "success"
    assert "phi:3b" not in [m.model for m in (await client.list()).models]
    with pytest.raises(ollama.ResponseError) as refused:
        await client.delete("phi:3b")
    assert refused.value.status_code == 404
    progress = [p.status async for p in await client.pull("phi:3b", stream=True)]
    assert progress[-1] == "success"
    assert "phi:3b" in [m.model for m in (await client.list()).models]
    await client._client.aclose()


async def test_kept_answers_of_a_daemon_are_forgotten_when_its_models_change(
    make_router: MakeRouter, daemons: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    from enginerouter.config.model import Cache

    router = await box(make_router, daemons, cache=Cache())
    body = post(model="phi:3b", input="x")

    def embedded(_: Any) -> Any:
        return say({"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [1.0]}]})

    monkeypatch.setattr(daemons[1], "script", _either(daemons[1], "/v1/embeddings", embedded))
    assert (await router.ask(body, path="/v1/embeddings")).header("x-enginerouter-cache") == "miss"
    assert (await router.ask(body, path="/v1/embeddings")).header("x-enginerouter-cache") == "hit"
    await router.ask(post(model="phi:3b"), path="/api/pull")
    assert (await router.ask(body, path="/v1/embeddings")).header("x-enginerouter-cache") == "miss"


def _either(daemon: OllamaDaemon, path: str, special: Any) -> Any:
    usual = daemon.script
    return lambda received: special(received) if received.target == path else usual(received)


async def test_a_blob_larger_than_any_body_passes_piece_by_piece(make_router: MakeRouter, daemons: Both) -> None:
    router = await box(make_router, daemons, allow_destructive_ollama_api=True, max_body_mib=1)
    blob = bytes(range(256)) * 4096 * 3
    path = f"/api/blobs/{DIGEST}"
    assert (await router.ask(path=path, method="HEAD")).status == 404
    assert (await router.ask(blob, path=path)).status == 201
    assert daemons[0].blobs[DIGEST] == blob
    assert (await router.ask(path=path, method="HEAD")).status == 200


async def test_a_client_that_leaves_ends_the_pull(make_router: MakeRouter, daemons: Both) -> None:
    router = await box(make_router, daemons)
    daemons[0].fails["POST /api/pull"] = [head(200), b"", asyncio.Event()]
    async with router.client() as client:
        await client.send("POST", "/api/pull", post(model="new"))
        pull = await asyncio.wait_for(_nth_call(daemons[0], "/api/pull"), 5)
        client.reset()
        await asyncio.wait_for(pull.gone.wait(), 5)


async def _nth_call(daemon: OllamaDaemon, path: str) -> Any:
    number = 0
    while True:
        exchange = await daemon.exchange(number)
        if exchange.received.target == path:
            return exchange
        number += 1


async def test_a_swap_does_not_end_a_pull(make_router: MakeRouter, daemons: Both) -> None:
    """Connections of requests are closed when a daemon's models are freed; a pull holds no memory."""
    router = await box(make_router, daemons)
    rest = asyncio.Event()
    daemons[0].fails["POST /api/pull"] = [
        head(200, [("Transfer-Encoding", "chunked")]),
        chunk(b"{}\n"),
        rest,
        chunk(b"{}\n"),
        b"0\r\n\r\n",
    ]
    await router.load("llama3")
    async with router.client() as client:
        await client.send("POST", "/api/pull", post(model="new"))
        await client.head()
        await client.until(b"{}\n")
        await router.load("a")
        assert daemons[0].running == []
        rest.set()
        assert await client.rest() == (b"{}\n", True)


# --- what cannot be


async def test_without_a_daemon_it_is_501_in_ollama_s_words(make_router: MakeRouter) -> None:
    router = await make_router(allow_destructive_ollama_api=True)
    for method, path in [("POST", "/api/pull"), *DESTRUCTIVE]:
        refused = await router.ask(post(model="x") if method != "HEAD" else None, path=path, method=method)
        assert refused.status == 501, path
        if method != "HEAD":
            assert "no Ollama engine" in refused.json["error"]


async def test_a_daemon_that_is_down_is_named(make_router: MakeRouter, daemons: Both) -> None:
    router = await box(make_router, daemons)
    await daemons[0].stop()
    failed = await router.ask(post(model="new"), path="/api/pull")
    assert failed.status == 502
    assert "o1 refuses connections" in failed.json["error"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"model": 5}', b'{"model": "a\\nb"}', b'{"model": "a", "model": "b"}']
)
async def test_a_body_that_names_nothing_goes_nowhere(make_router: MakeRouter, daemons: Both, body: bytes) -> None:
    router = await box(make_router, daemons)
    refused = await router.ask(body, path="/api/pull", method="POST")
    assert refused.status == 400
    assert isinstance(refused.json["error"], str)
    assert managed(*daemons) == []


async def test_an_admin_key_for_some_models_manages_those(make_router: MakeRouter, daemons: Both) -> None:
    keys = (ApiKey(name="boss", key="boss", admin=True, models=("phi*",)),)
    router = await box(make_router, daemons, api_keys=keys, allow_destructive_ollama_api=True)
    for body in (post(model="llama3"), post(model="phi:1b", name="llama3"), post(model="o1/llama3")):
        assert (await router.ask(body, path="/api/pull", headers=BOSS)).status == 403
    copied = await router.ask(post(source="phi:3b", destination="llama3"), path="/api/copy", headers=BOSS)
    assert copied.status == 403
    assert managed(*daemons) == []
    assert (await router.ask(post(model="phi:3b"), path="/api/pull", headers=BOSS)).status == 200


async def test_the_router_s_key_is_not_the_daemon_s(make_router: MakeRouter, daemons: Both) -> None:
    router = await box(make_router, daemons, api_keys=KEYS)
    await router.ask(post(model="new", insecure=True), path="/api/pull", headers={**BOSS, "Cookie": "x=1"})
    (pulled,) = [r for r in daemons[0].received if r.target == "/api/pull"]
    assert pulled.header("authorization") is None
    assert pulled.header("cookie") is None
