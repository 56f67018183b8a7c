"""What a fence keeps in stays in: nothing that is fenced is started, asked, listed or named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from chain_kit import Boxes, boxes, reasons, refused
from http_servers import OllamaDaemon, say
from router_kit import MakeRouter, RouterUnderTest, chat

from enginerouter.config.engines import Ollama
from enginerouter.config.model import ApiKey

HOME = {"Authorization": "Bearer home"}
BOSS = {"Authorization": "Bearer boss"}
KEYS = (ApiKey(name="boss", key="boss", admin=True), ApiKey(name="home", key="home", remote=False))
CLOUD_MODEL = "gpt-oss:120b-cloud"


@pytest.fixture
async def far() -> AsyncIterator[Boxes]:
    async with boxes() as made:
        yield made


@pytest.fixture
async def daemon() -> AsyncIterator[OllamaDaemon]:
    server = OllamaDaemon("llama3:latest")
    await server.listen()
    yield server
    await server.stop()


async def with_daemon(make_router: MakeRouter, daemon: OllamaDaemon, **settings: Any) -> RouterUnderTest:
    return await make_router(("a",), http=[Ollama(name="ollama", base_url=daemon.url)], **settings)


async def test_a_local_only_chain_passes_over_what_its_daemon_runs_elsewhere(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    best = {"chain": (f"ollama/{CLOUD_MODEL}", "a"), "local_only": True}
    router = await with_daemon(make_router, daemon, aliases={"best": best})
    assert (await router.ask(chat("best"))).text == "a serves a"
    router.a.server.script = refused(500)
    assert reasons(await router.ask(chat("best"))) == [("ollama", "fenced"), ("a", "http_500")]
    assert daemon.chats == []


async def test_a_local_only_rename_does_not_leave_the_machine(make_router: MakeRouter, daemon: OllamaDaemon) -> None:
    safe = {"target": f"ollama/{CLOUD_MODEL}", "local_only": True}
    router = await with_daemon(make_router, daemon, aliases={"safe": safe})
    failed = await router.ask(chat("safe"))
    assert (failed.status, failed.error["code"]) == (403, "forbidden")
    assert "local_only" in failed.error["message"]
    assert daemon.chats == []


async def test_a_model_that_a_daemon_only_passes_on_is_fenced_in_a_chain(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    daemon.cloud = ["plain-name"]  # nothing in its name says so; the daemon does
    best = {"chain": ("ollama/plain-name", "ollama/llama3:latest")}
    router = await with_daemon(make_router, daemon, aliases={"best": best}, api_keys=KEYS)
    await router.get("/v1/models", **HOME)
    answer = await router.ask(chat("best"), headers=HOME)
    assert answer.header("x-enginerouter-resolved") == "ollama/llama3:latest"
    assert daemon.chats == ["llama3:latest"]


async def test_fenced_targets_are_in_no_list(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, settings={"api_keys": KEYS})
    listed = (await router.get("/v1/aliases", **HOME)).json["data"]
    assert [entry["chain"] for entry in listed] == [["a/a"]]
    everything = (await router.get("/v1/aliases", **BOSS)).json["data"]
    assert [entry["chain"] for entry in everything] == [["a/a", "cloud/big", "lxc/small"]]
    for path in ("/v1/aliases", "/v1/models", "/status"):
        assert b"cloud" not in (await router.get(path, **HOME)).body, path


async def test_the_aliases_and_what_they_lead_to(make_router: MakeRouter) -> None:
    router = await make_router(
        aliases={
            "fast": "a",
            "best": {"chain": ("fast", "b"), "description": "what is there", "go_on_after_s": 3.0},
            "claude-*": {"chain": ("b",)},
            "dark": {"target": "b", "hidden": True},
            "half": {"chain": ("nobody-has-it", "b")},
            "none": "nor-this",
        },
        api_keys=(ApiKey(name="boss", key="boss", admin=True), ApiKey(name="guest", key="guest", models=("*a*",))),
    )
    found = {entry["id"]: entry for entry in (await router.get("/v1/aliases", **BOSS)).json["data"]}
    assert list(found) == ["fast", "best", "claude-*", "dark", "half", "none"]
    assert (found["fast"]["kind"], found["best"]["kind"]) == ("rename", "chain")
    assert found["best"]["targets"] == [
        {"target": "a/a", "engine": "a", "model": "a"},
        {"target": "b/b", "engine": "b", "model": "b"},
    ]
    assert (found["best"]["description"], found["best"]["go_on_after_s"]) == ("what is there", 3.0)
    assert {name: entry["unknown"] for name, entry in found.items() if entry["unknown"]} == {
        "half": ["nobody-has-it"],
        "none": ["nor-this"],
    }
    guest = (await router.get("/v1/aliases", Authorization="Bearer guest")).json["data"]
    assert [entry["id"] for entry in guest] == ["fast", "claude-*", "half"]
    assert router.a.starts == router.b.starts == 0


async def test_an_operator_may_name_a_chain_and_means_what_is_on_this_machine(
    make_router: MakeRouter, far: Boxes
) -> None:
    router = await far.router(make_router, chain=("cloud/big", "a"))
    swapped = await router.ask(b'{"model": "best"}', path="/admin/swap")
    assert swapped.json["slot"] == "a"


async def test_a_chain_is_the_default_model(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, chain=("lxc/small", "a"), settings={"default_model": "best"})
    assert (await router.ask(chat(None))).text == "lxc serves small"


async def test_no_list_and_no_answer_names_what_is_fenced(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router, settings={"api_keys": KEYS})
    await router.ask(chat("big"), headers=BOSS)
    for path in ("/models/available", "/models/status", "/v1/models/bi", "/props?model=bi", "/v1/health"):
        seen = (await router.get(path, **HOME)).body
        assert b"big" not in seen, path
        assert b"cloud" not in seen, path
    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/api/show", "/tokenize", "/admin/explain"):
        misspelt = await router.ask(chat("bigg"), path=path, headers=HOME)
        assert (misspelt.status, b"'big'" in misspelt.body) == (404, False), path
        refused_ = await router.ask(chat("big"), path=path, headers=HOME)
        assert (refused_.status, b"cloud" in refused_.body) == (404 if path == "/api/show" else 403, False), path
    assert b"'big'" in (await router.ask(chat("bigg"), headers=BOSS)).body
    assert len(far.cloud.received) == 1


async def test_models_that_a_daemon_only_passes_on_are_in_no_list(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    router = await with_daemon(make_router, daemon, api_keys=KEYS)
    await router.get("/v1/models", **HOME)
    for path in ("/models/available", "/status", "/v1/health", "/v1/models", "/api/tags", "/api/v1/models"):
        seen = (await router.get(path, **HOME)).body
        assert CLOUD_MODEL.encode() not in seen, path
        assert path == "/v1/health" or b"llama3" in seen, path
    assert CLOUD_MODEL.encode() in (await router.get("/status", **BOSS)).body


async def test_a_key_that_may_not_leave_does_not_hear_of_requests_that_did(
    make_router: MakeRouter, far: Boxes, daemon: OllamaDaemon
) -> None:
    http = [*far.engines(), Ollama(name="ollama", base_url=daemon.url)]
    router = await make_router(("a",), http=http, api_keys=KEYS)
    async with router.client() as client:
        await client.send("GET", "/events", headers=HOME)
        await client.head()
        await client.until(b"event: status")
        for model in ("big", CLOUD_MODEL, "a"):
            await router.ask(chat(model), headers=BOSS)
        seen = await client.until(b'"target": "a/a"')
    assert b"cloud" not in seen
    assert b"big" not in seen


async def test_without_a_model_nothing_leaves_the_machine(make_router: MakeRouter, far: Boxes) -> None:
    router = await far.router(make_router)
    failed = await router.ask(chat(None))
    assert (failed.status, failed.error["code"]) == (400, "invalid_request")
    await router.load("a")
    assert (await router.ask(chat("big"))).status == 200
    assert (await router.ask(chat(None))).text == "a serves a"
    assert (await router.get("/models/status")).json["active"] == "a"


async def test_what_must_stay_here_does_not_go_to_a_box_of_the_network(make_router: MakeRouter) -> None:
    box = Ollama(name="box", base_url="http://gpu-box:11434")
    chain = {"safe": {"chain": ("box/m", "a"), "local_only": True}, "usual": {"chain": ("box/m", "a")}}
    router = await make_router(("a",), http=[box], aliases=chain, api_keys=KEYS)
    for name, key in (("safe", BOSS), ("usual", HOME)):
        answer = await router.ask(chat(name), headers=key)
        assert (answer.header("x-enginerouter-attempts"), answer.text) == ("1", "a serves a")
    router.a.server.script = refused(500)
    assert reasons(await router.ask(chat("safe"), headers=BOSS)) == [("box", "fenced"), ("a", "http_500")]
    assert b"box" not in (await router.get("/v1/health", **HOME)).body


async def test_what_must_stay_here_does_not_go_on_with_a_response_of_elsewhere(
    make_router: MakeRouter, far: Boxes
) -> None:
    chains = {"safe": {"chain": ("a",), "local_only": True}, "best": {"chain": ("big",)}}
    router = await make_router(("a",), http=far.engines(), aliases=chains)
    far.cloud.script = say({"id": "resp_1", "object": "response", "output": []})
    assert (await router.ask(b'{"model": "best", "input": "x"}', path="/v1/responses")).status == 200
    for model, status in (("safe", 403), ("best", 200), ("a", 200), ("nobody", 404)):
        body = f'{{"model": "{model}", "previous_response_id": "resp_1", "input": "x"}}'.encode()
        assert (await router.ask(body, path="/v1/responses")).status == status, model
    assert len(far.cloud.received) == 3
