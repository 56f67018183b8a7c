"""A provider, or another box: its key, its paths, its errors – and that it never waits for a swap."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engine_server import DONE, event, sse
from http_servers import Provider, say
from router_kit import MakeRouter, chat
from test_tls import certificate, needs_openssl

from enginerouter.addresses import joined
from enginerouter.config.engines import Ollama, Remote
from enginerouter.config.load import load
from enginerouter.config.model import ApiKey
from enginerouter.routing.fences import is_remote, may_leave, own_networks
from enginerouter.swap.phases import Phase


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    server = Provider()
    await server.listen()
    yield server
    await server.stop()


def cloud(server: Provider, **more: Any) -> Remote:
    given = {"api_key": "provider-key", "served_models": ("big",), "headers": {"X-Title": "my box"}, **more}
    return Remote(name="cloud", base_url=server.url, **given)


async def test_a_request_goes_to_the_provider_with_our_key_and_never_the_clients(
    make_router: MakeRouter, provider: Provider
) -> None:
    router = await make_router((), http=[cloud(provider)], api_keys=(ApiKey(name="me", key="client-secret"),))
    said = await router.ask(chat("big"), headers={"Authorization": "Bearer client-secret", "Cookie": "c=1"})
    assert said.text == "provider serves big"
    [got] = provider.received
    assert got.target == "/api/v1/chat/completions"
    assert got.all("Authorization") == ["Bearer provider-key"]
    assert got.all("Host") == [f"127.0.0.1:{provider.port}"]
    assert got.all("X-Title") == ["my box"]
    assert "client-secret" not in str(got.headers) + got.body.decode()
    assert got.header("Cookie") is None


async def test_a_provider_is_not_unloaded(make_router: MakeRouter, provider: Provider) -> None:
    """It holds nothing here; as `cold` it would wait for a swap."""
    router = await make_router(("a",), http=[cloud(provider)])
    await router.load("a")
    assert (await router.ask(b"{}", path="/admin/unload")).json == {"unloading": ["a"]}
    refused = await router.ask(b'{"engine": "cloud"}', path="/admin/unload")
    assert refused.status == 400
    assert "'cloud' is served elsewhere" in refused.error["message"]
    assert router.phase("cloud") is Phase.READY


async def test_the_key_in_the_clients_other_header_stays_here_too(make_router: MakeRouter, provider: Provider) -> None:
    router = await make_router((), http=[cloud(provider)], api_keys=(ApiKey(name="me", key="client-secret"),))
    await router.ask(chat("big"), headers={"X-API-Key": "client-secret"})
    assert "client-secret" not in str(provider.received[0].headers)


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        ("https://openrouter.ai/api/v1", "/v1/chat/completions", "https://openrouter.ai/api/v1/chat/completions"),
        ("https://api.groq.com/openai/v1", "/v1/models?a=/v1/b", "https://api.groq.com/openai/v1/models?a=/v1/b"),
        ("https://g.example/v1beta/openai", "/v1/embeddings", "https://g.example/v1beta/openai/embeddings"),
        ("https://api.deepseek.com", "/v1/chat/completions", "https://api.deepseek.com/v1/chat/completions"),
        ("https://api.anthropic.com", "/v1/messages", "https://api.anthropic.com/v1/messages"),
        ("http://box:8077", "/v1/chat/completions", "http://box:8077/v1/chat/completions"),
        ("http://box/router", "/v1/chat/completions", "http://box/router/v1/chat/completions"),
        ("http://v1", "/v1/models", "http://v1/v1/models"),
        ("http://box/openai", "/api/chat", "http://box/openai/api/chat"),
        ("http://box/nov1", "/v1/models", "http://box/nov1/v1/models"),
    ],
)
def test_how_a_path_joins_a_base(base: str, path: str, url: str) -> None:
    assert joined(base, path) == url


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (402, {"error": {"code": 402, "message": "Insufficient credits", "metadata": {"x": 1}}}),
        (429, {"error": {"code": 429, "message": "slow down"}}),
        (500, [{"error": {"message": "wrapped", "status": "INTERNAL"}}]),
        (200, {"error": {"code": 502, "message": "failed late"}}),
    ],
)
async def test_a_providers_own_error_passes_as_it_is(
    make_router: MakeRouter, provider: Provider, status: int, body: Any
) -> None:
    provider.answer = say(body, status)
    router = await make_router((), http=[cloud(provider)])
    said = await router.ask(chat("big"))
    assert (said.status, said.json) == (status, body)


async def test_a_stream_with_a_providers_comments_passes_byte_for_byte(
    make_router: MakeRouter, provider: Provider
) -> None:
    pieces = [b": OPENROUTER PROCESSING\n\n", event("hello"), DONE]
    provider.answer = sse(*pieces)
    router = await make_router((), http=[cloud(provider)])
    assert (await router.ask(chat("big", stream=True))).body == b"".join(pieces)


async def test_it_starts_at_once_beside_a_swap_and_evicts_nothing(make_router: MakeRouter, provider: Provider) -> None:
    router = await make_router(("a", "b"), http=[cloud(provider)])
    await router.load("a")
    router.engines["b"].starting.shut()
    swap = asyncio.create_task(router.ask(chat("b")))
    await router.until(lambda: router.phase("b") is Phase.STARTING)
    assert (await router.ask(chat("big"), within_s=1.0)).text == "provider serves big"
    assert router.phase("b") is Phase.STARTING
    router.engines["b"].starting.open()
    assert (await swap).text == "b serves b"
    assert (await router.ask(chat("big"))).status == 200
    assert router.phase("b") is Phase.READY


async def test_any_model_may_be_named_behind_the_name_of_the_engine(
    make_router: MakeRouter, provider: Provider
) -> None:
    router = await make_router(
        (), http=[cloud(provider)], models=[{"id": "mine", "engine": "cloud", "upstream_id": "x/y"}]
    )
    for name, upstream in (("cloud/meta/llama-4", "meta/llama-4"), ("mine", "x/y")):
        said = await router.ask(chat(name))
        assert said.text == f"provider serves {upstream}"
    assert "meta" not in (await router.get("/metrics")).body.decode(), "a name that a client made up"


async def test_its_models_are_listed_only_where_that_is_asked_for(make_router: MakeRouter, provider: Provider) -> None:
    quiet = cloud(provider)
    loud = dataclasses.replace(quiet, name="loud", discover_models=True, served_models=())
    router = await make_router((), http=[quiet, loud])
    ids = [m["id"] for m in (await router.get("/v1/models")).json["data"]]
    assert ids == ["big", "loud", "meta/llama", "gpt-x"]
    assert (await router.ask(chat("gpt-x"))).header("X-EngineRouter-Resolved") == "loud/gpt-x"


async def test_a_provider_without_its_key_says_which_variable_is_missing(
    make_router: MakeRouter, provider: Provider, tmp_path: Path
) -> None:
    text = "engines:\n  {}: {{type: remote, base_url: 'http://x.example', {}}}\n"
    path = tmp_path / "config.yaml"
    for written in ("api_key_env: MY_KEY", "api_key: '${MY_KEY}'"):
        path.write_text(text.format("cloud", written))
        [settings] = load(path, {}).config.engines.values()
        assert settings.unconfigured
        http = [dataclasses.replace(settings, base_url=provider.url, served_models=("big",))]
        router = await make_router((), http=http)
        failed = await router.ask(chat("big"))
        assert (failed.status, failed.error["code"]) == (503, "unconfigured")
        assert "'cloud' has no key: the environment variable MY_KEY is not set" in failed.error["message"]
        assert failed.header("x-should-retry") == "false"
        await router.stop()
    assert not provider.received


async def test_a_key_that_may_not_spend_gets_403_and_does_not_see_the_models(
    make_router: MakeRouter, provider: Provider
) -> None:
    keys = (ApiKey(name="home", key="home", remote=False), ApiKey(name="all", key="all"))
    router = await make_router(("a",), http=[cloud(provider)], api_keys=keys)
    home = {"Authorization": "Bearer home"}
    for name in ("big", "cloud/anything"):
        failed = await router.ask(chat(name), headers=home)
        assert (failed.status, failed.error["code"]) == (403, "forbidden")
    assert (await router.ask(chat("a"), headers=home)).status == 200
    listed = await router.ask(path="/v1/models", headers=home)
    assert [m["id"] for m in listed.json["data"]] == ["a"]
    assert not provider.received


@needs_openssl
async def test_an_untrusted_certificate_is_refused(make_router: MakeRouter, tmp_path: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate(tmp_path))
    got: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    try:
        remote = Remote(name="cloud", base_url=f"https://localhost:{port}", api_key="provider-key")
        router = await make_router((), http=[remote])
        failed = await router.ask(chat("cloud"))
        assert failed.status == 502
        assert "is not trusted" in failed.error["message"]
        assert not any(got), "nothing was sent"
    finally:
        server.close()


async def test_a_provider_that_is_down_is_named(make_router: MakeRouter, provider: Provider) -> None:
    settings = cloud(provider)
    await provider.stop()
    router = await make_router((), http=[settings])
    failed = await router.ask(chat("big"))
    assert (failed.status, failed.error["code"]) == (502, "upstream_failed")
    assert "cloud refuses connections" in failed.error["message"]


async def test_an_operators_unload_of_everything_leaves_it_usable(make_router: MakeRouter, provider: Provider) -> None:
    router = await make_router(("a",), http=[cloud(provider)])
    await router.load("big")
    await router.ask(b"{}", path="/admin/unload")
    assert (await router.ask(chat("big"))).text == "provider serves big"


@pytest.mark.parametrize(
    ("base_url", "is_far"),
    [
        ("http://127.0.0.1:1", False),
        ("http://localhost:1", False),
        ("http://192.168.1.5:1", False),
        ("http://192.168.1.6:1", True),
        ("http://172.17.0.2:1", False),
        ("http://[::1]:1", False),
        ("http://[::ffff:127.0.0.1]:1", False),
        ("http://[::ffff:8.8.8.8]:1", True),
        ("http://spark.local:1", False),
        ("http://ollama.example.com:1", True),
        ("http://8.8.8.8:1", True),
    ],
)
def test_what_leaves_this_machine(base_url: str, is_far: bool) -> None:
    own = own_networks(
        [("eth0", "192.168.1.5", "255.255.255.0"), ("docker0", "172.17.0.1", "255.255.0.0"), ("eth0", "aa:bb:cc", None)]
    )
    assert is_remote(Ollama(name="o", base_url=base_url), own) is is_far
    assert not is_remote(Ollama(name="o", base_url=base_url, trust_local=True), own)
    assert is_remote(Remote(name="r", base_url=base_url, trust_local=True), own)


@pytest.mark.parametrize(
    ("host", "is_out"),
    [
        ("127.0.0.1", False),
        ("localhost", False),
        ("spark", False),
        ("Spark.local", False),
        ("host.docker.internal", False),
        ("gpu-box", True),
        ("gpu-box.local", True),
        ("ip-10-0-0-1.internal", True),
        ("2130706433", True),
        ("192.168.1.6", True),
    ],
)
def test_a_name_that_may_be_anybodys_is_beyond_a_fence(host: str, is_out: bool) -> None:
    names = {"spark", "spark.local"}
    assert may_leave(Ollama(name="o", base_url=f"http://{host}:1"), [], names) is is_out
    assert not may_leave(Ollama(name="o", base_url=f"http://{host}:1", trust_local=True), [], names)
