"""Reloads that change what engines are, who is asked after whom, and what was known of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from engine_server import FakeEngineServer, ok
from reload_kit import FromFile, from_file, process
from router_kit import chat

TWO: dict[str, Any] = {"a": process("a"), "b": process("b")}


def remote(server: FakeEngineServer) -> dict[str, Any]:
    return {"type": "remote", "base_url": f"http://127.0.0.1:{server.port}"}


@contextlib.asynccontextmanager
async def servers(*names: str) -> AsyncIterator[list[FakeEngineServer]]:
    found = [FakeEngineServer(name) for name in names]
    for server in found:
        await server.listen()
    try:
        yield found
    finally:
        for server in found:
            await server.stop()


async def test_who_waits_in_a_chain_goes_on_when_its_target_is_removed(tmp_path: Path) -> None:
    engines = {"a": process("a", max_in_flight=1), "b": process("b", holds_memory=False)}
    end = tmp_path / "end"
    async with (
        from_file(tmp_path, engines, aliases={"best": {"chain": ["a", "b"]}}) as router,
        router.stream("a", end) as client,
    ):
        waiting = asyncio.ensure_future(router.said_by("best"))
        await router.until(lambda: router.router.coordinator.queued == 1)
        await router.rewrite({"b": engines["b"]})
        assert (await waiting)[1] == "b"
        end.touch()
        assert (await client.rest())[1]


async def test_a_disabled_engine_goes_and_an_enabled_one_comes(tmp_path: Path) -> None:
    async with from_file(tmp_path, {"a": process("a"), "b": process("b", enabled=False)}) as router:
        await router.said_by("a")
        assert (await router.ask(chat("b"))).status == 404
        await router.rewrite({"a": process("a", enabled=False), "b": process("b")})
        assert (await router.said_by("b"))[1] == "b"
        assert (await router.ask(chat("a"))).status == 404
        await router.until_gone("a")


async def test_an_engine_may_become_one_of_another_kind_and_back(tmp_path: Path) -> None:
    async with servers("a") as (server,), from_file(tmp_path, {"a": process("a")}) as router:
        await router.said_by("a")
        await router.rewrite({"a": remote(server)})
        assert (await router.ask(chat())).status == 200
        assert len(server.received) == 1
        await router.rewrite({"a": process("a")})
        assert (await router.said_by("a"))[1] == "a"
        assert len(server.received) == 1


async def test_a_walk_keeps_the_chain_it_began_with(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with servers("first", "second") as (first, second):
        first.script = [gate, *ok(b'{"error": {"message": "boom"}}', status=500)]
        engines = {server.name: remote(server) for server in (first, second)}
        async with from_file(tmp_path, engines, aliases={"best": {"chain": ["first", "second"]}}) as router:
            waiting = asyncio.ensure_future(router.ask(chat("best")))
            await first.exchange()
            await router.rewrite(engines, aliases={"best": {"chain": ["first"]}})
            gate.set()
            assert (await waiting).header("X-EngineRouter-Resolved") == "second/second"
            assert (await router.ask(chat("best"))).status == 503


async def test_circuits_survive_unless_their_engine_has_changed(tmp_path: Path) -> None:
    async with servers("r") as (server,):
        server.script = ok(b'{"error": {"message": "boom"}}', status=500)
        engines, aliases = {"r": remote(server), "b": process("b")}, {"best": {"chain": ["r", "b"]}}
        async with from_file(tmp_path, engines, aliases=aliases) as router:
            for _ in range(2):
                assert (await router.said_by("best"))[1] == "b"
            await router.rewrite(engines, aliases=aliases, queue_timeout_s=99)
            assert (await router.said_by("best"))[1] == "b"
            assert len(server.received) == 2, "it is still passed over"
            engines["r"]["base_url"] += "/v1"
            await router.rewrite(engines, aliases=aliases)
            assert (await router.said_by("best"))[1] == "b"
            assert len(server.received) == 3, "what is elsewhere now begins anew"


async def test_a_cache_comes_goes_and_forgets_what_a_changed_engine_said(tmp_path: Path) -> None:
    async def embed(router: FromFile) -> str | None:
        answer = await router.ask(json.dumps({"model": "r", "input": "x"}).encode(), path="/v1/embeddings")
        assert answer.status == 200, answer.body
        return answer.header("X-EngineRouter-Cache")

    vectors = ok(json.dumps({"object": "list", "data": [{"embedding": [1.0], "index": 0}]}).encode())
    async with servers("one", "two") as (one, two):
        one.script = two.script = vectors
        async with from_file(tmp_path, {"r": remote(one)}) as router:
            assert await embed(router) is None
            await router.rewrite({"r": remote(one)}, cache={"embeddings": True})
            assert [await embed(router), await embed(router)] == ["miss", "hit"]
            await router.rewrite({"r": remote(one)}, cache={"embeddings": True}, queue_timeout_s=99)
            assert await embed(router) == "hit"
            await router.rewrite({"r": remote(two)}, cache={"embeddings": True})
            assert await embed(router) == "miss"
            assert "enginerouter_cache_up" in (await router.get("/metrics")).body.decode()
            await router.rewrite({"r": remote(two)})
            assert await embed(router) is None


async def test_the_metrics_of_engines_that_went_and_came_are_true(tmp_path: Path) -> None:
    async with from_file(tmp_path, TWO) as router:
        await router.said_by("a")
        await router.rewrite({"b": process("b"), "c": process("c")})
        await router.said_by("c")
        await router.until_gone("a")
        text = (await router.get("/metrics")).body.decode()
        assert 'enginerouter_provider_healthy{provider="c"} 1' in text
        assert 'enginerouter_provider_healthy{provider="a"}' not in text
        assert 'enginerouter_engine_state{engine="c",phase="ready"} 1' in text
        names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(names) == len(set(names)), "registered twice"


async def test_a_stream_goes_on_though_its_key_is_gone(tmp_path: Path) -> None:
    old, new = {"Authorization": "Bearer old"}, {"Authorization": "Bearer new"}
    async with from_file(tmp_path, TWO, api_keys=["old"]) as router, router.client() as client:
        end = tmp_path / "end"
        await client.send("POST", "/v1/chat/completions", chat("a", stream=True, user=str(end)), old)
        assert await client.head() == 200
        router.write(TWO, api_keys=["new"])
        assert (await router.reload(**old)).status == 200
        assert (await router.ask(chat("a"), headers=old)).status == 401
        assert (await router.ask(chat("a"), headers=new)).status == 200
        end.touch()
        assert (await client.rest())[1]


async def test_only_the_profile_of_a_manifest_that_changed_restarts(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    manifest = tmp_path / "profiles.yaml"

    def profiles(**contexts: int) -> None:
        manifest.write_text(json.dumps({n: {"model": "m.gguf", "flags": {"ctx-size": c}} for n, c in contexts.items()}))

    engine = process("p")
    engine["start_cmd"] += ["--model", "{model}", "{flags}"]
    profiles(x=1, y=1)
    async with from_file(tmp_path, {"p": {**engine, "manifest": "profiles.yaml"}}) as router:
        pid, _ = await router.said_by("x")
        profiles(x=1, y=2, z=3)
        assert (await router.reload()).status == 200
        assert (await router.said_by("x"))[0] == pid, "only y has changed"
        assert (await router.said_by("z"))[1] == "p"
        pid, _ = await router.said_by("x")
        profiles(x=5)
        assert (await router.reload()).status == 200
        assert (await router.said_by("x"))[0] != pid
        assert (await router.ask(chat("y"))).status == 404
        manifest.write_text("x: {modle: m.gguf}")
        answer = await router.reload()
        assert answer.status == 422
        assert "profiles.yaml" in answer.error["message"]


async def test_reloads_that_are_asked_for_together_all_see_the_last_file(tmp_path: Path) -> None:
    async with from_file(tmp_path, TWO) as router:
        answers = []
        for n in range(10):
            router.write(TWO, aliases={f"x{n}": "a"})
            answers.append(asyncio.ensure_future(router.reload()))
            await asyncio.sleep(0)
        assert {a.status for a in await asyncio.gather(*answers)} == {200}
        assert (await router.ask(chat("x9"))).status == 200
        assert (await router.ask(chat("x8"))).status == 404


async def test_a_stored_response_follows_the_fence_of_now_and_a_gone_engine_is_said(tmp_path: Path) -> None:
    key = {"Authorization": "Bearer k"}
    keys = [{"name": "k", "key": "k", "admin": True, "remote": True}]
    async with servers("cloud") as (cloud,):
        cloud.script = ok(b'{"id": "resp_1", "object": "response", "output": []}')
        engines = {"a": process("a"), "cloud": {**remote(cloud), "served_models": ["big"]}}
        async with from_file(tmp_path, engines, api_keys=keys) as router:
            first = b'{"model": "big", "input": "x"}'
            assert (await router.ask(first, path="/v1/responses", headers=key)).status == 200
            router.write(engines, api_keys=[{**keys[0], "remote": False}])
            assert (await router.reload(**key)).status == 200
            more = b'{"model": "a", "previous_response_id": "resp_1"}'
            assert (await router.ask(more, path="/v1/responses", headers=key)).status == 403
            assert (await router.get("/v1/responses/resp_1", **key)).status == 403
            assert len(cloud.received) == 1
            router.write({"a": engines["a"]}, api_keys=[{**keys[0], "remote": False}])
            assert (await router.reload(**key)).status == 200
            for answer in (
                await router.ask(more, path="/v1/responses", headers=key),
                await router.get("/v1/responses/resp_1", **key),
            ):
                assert (answer.status, answer.error["code"]) == (503, "no_longer_configured")


async def test_a_stored_response_is_a_keys_only_while_it_may_name_what_made_it(tmp_path: Path) -> None:
    key = {"Authorization": "Bearer k"}

    def may(*models: str) -> list[dict[str, Any]]:
        return [{"name": "k", "key": "k", "models": list(models)}, {"name": "boss", "key": "b", "admin": True}]

    async with servers("cloud") as (cloud,):
        engines = {"a": process("a"), "cloud": {**remote(cloud), "served_models": ["big"]}}
        aliases = {"claude-*": "big", "best": {"chain": ["big", "a"]}}
        async with from_file(tmp_path, engines, aliases=aliases, api_keys=may("*")) as router:

            async def said(n: int) -> tuple[int, int]:
                """How a look at the response ends, and one that goes on with it, which makes the next one."""
                looked = await router.get(f"/v1/responses/resp_{n}", **key)
                cloud.script = ok(b'{"id": "resp_%d", "object": "response", "output": []}' % (n + 10))
                more = b'{"previous_response_id": "resp_%d", "input": "x"}' % n
                return looked.status, (await router.ask(more, path="/v1/responses", headers=key)).status

            for n, model in enumerate((b"big", b"claude-x", b"best", b"cloud/other")):
                cloud.script = ok(b'{"id": "resp_%d", "object": "response", "output": []}' % n)
                first = b'{"model": "%s", "input": "x"}' % model
                assert (await router.ask(first, path="/v1/responses", headers=key)).status == 200
                assert await said(n) == (200, 200)
            for models, permitted in (
                (("big",), [0]),
                (("claude-x*",), [1]),
                (("best",), [2]),
                (("cloud/*",), [3]),
                (("a",), []),
            ):
                router.write(engines, aliases=aliases, api_keys=may(*models))
                assert (await router.reload(Authorization="Bearer b")).status == 200
                for n in range(4):
                    allowed = (200, 200) if n in permitted else (404, 404)
                    assert await said(n) == allowed, (models, n)
                    assert await said(n + 10) == allowed, (models, n, "and what was made by going on with it")


async def test_a_reload_says_and_refuses_what_only_this_machine_can_tell(tmp_path: Path) -> None:
    """As a check and a start do: 192.0.2.7 is none of its addresses."""
    far = {"type": "ollama", "base_url": "http://192.0.2.7:11434"}
    async with from_file(tmp_path, {"a": process()}) as router:
        told = await router.rewrite({"a": process(), "far": far})
        assert [w["path"] for w in told["warnings"]] == ["engines.far.base_url"]
        assert "192.0.2.7 is not this machine" in told["warnings"][0]["message"]
        router.write({"a": process(), "far": far}, aliases={"safe": {"chain": ["a", "far/m"], "local_only": True}})
        refused = await router.reload()
        assert refused.status == 422
        assert [p["path"] for p in refused.error["problems"]] == ["aliases.safe.local_only"]
        assert (await router.ask(chat("safe"))).status == 404, "the running one goes on"
