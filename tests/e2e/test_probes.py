"""What clients ask before they send a first word: each gets what it needs, and nothing of it starts an engine.

The sequences are those of the clients themselves; what they conclude from the answers is checked as they do it.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import anthropic
import ollama
import pytest
from engine_server import ok
from http_servers import HANGS, OllamaDaemon, Provider
from router_kit import Answer, MakeRouter, RouterUnderTest

from enginerouter.config.engines import Ollama, Remote
from enginerouter.config.model import ApiKey
from gguf_bytes import ARCHITECTURE, CONTEXT, TEMPLATE, header

SHOWN: dict[str, Any] = {
    "parameters": 'stop    "<x>"',
    "template": "{{ .Prompt }}{{ .Suffix }}",
    "details": {"family": "llama", "parameter_size": "8.0B", "quantization_level": "Q4_K_M", "format": "gguf"},
    "model_info": {"general.architecture": "llama", "llama.context_length": 131072, "general.basename": "Llama"},
    "capabilities": ["completion", "tools"],
}


@pytest.fixture
async def daemon() -> AsyncIterator[OllamaDaemon]:
    server = OllamaDaemon()
    server.shown = SHOWN
    await server.listen()
    yield server
    await server.stop()


@pytest.fixture
async def box(make_router: MakeRouter, tmp_path: Path, daemon: OllamaDaemon) -> RouterUnderTest:
    """An engine with a model file, one whose model is described, an Ollama daemon, a rename and a chain."""
    (tmp_path / "coder.gguf").write_bytes(header(ARCHITECTURE, CONTEXT, TEMPLATE))
    file = str(tmp_path / "coder.gguf")
    return await make_router(
        {"llama": {"start_cmd": ("llama-server", "-m", file)}, "vllm": {"start_cmd": ("vllm", "serve", "org/eyes")}},
        models=[
            {"id": "coder", "engine": "llama", "display_name": "Coder 30B", "description": "writes code"},
            {"id": "eyes", "engine": "vllm", "context_length": 4096, "tags": ("vision", "tools", "completion")},
        ],
        aliases={
            "fast": "coder",
            "secret": {"target": "coder", "hidden": True},
            "best": {"chain": ("coder", "eyes")},
        },
        http=[Ollama(name="ollama", base_url=daemon.url)],
    )


def nothing_was_started(router: RouterUnderTest, daemon: OllamaDaemon | None = None) -> None:
    assert [e.starts for e in router.engines.values()] == [0] * len(router.engines)
    if daemon is not None:
        assert daemon.chats == []
        assert not daemon.called("POST /api/generate"), "a model was loaded or unloaded"


def post(**body: Any) -> bytes:
    return json.dumps(body).encode()


async def show(router: RouterUnderTest, **body: Any) -> dict[str, Any]:
    answer = await router.ask(post(**body), path="/api/show")
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json
    return found


def typed(answer: Answer, kind: str) -> Any:
    assert answer.status == 200, answer.body
    assert (answer.header("content-type") or "").startswith(kind)
    return answer.json


async def test_no_get_of_the_whole_table_starts_an_engine(box: RouterUnderTest, daemon: OllamaDaemon) -> None:
    filled = {"{id}": "resp_1", "{id...}": "coder", "{engine}": "llama", "{path*}": "v1/models", "{digest}": "sha256:x"}
    paths = [r.path for r in box.router.routes.rows if r.method == "GET" and r.path != "/events"]
    assert len(paths) > 20
    for path in paths:
        for name, value in filled.items():
            path = path.replace(name, value)
        for method in ("GET", "HEAD"):
            answer = await box.ask(path=f"{path}?model=coder", method=method)
            assert answer.status in (200, 400, 404, 409), (method, path)
    nothing_was_started(box, daemon)


# --- the clients


async def test_the_probes_of_open_webui(box: RouterUnderTest, daemon: OllamaDaemon) -> None:
    version = typed(await box.get("/api/version"), "application/json")["version"]
    numbers = [int(part) for part in version.lstrip("v").split("-")[0].split(".")]
    assert numbers >= [0, 6, 4]
    tags = typed(await box.get("/api/tags"), "application/json")["models"]
    expected = ["coder", "eyes", "fast", "llama3:latest", "phi:3b", "gpt-oss:120b-cloud", "best"]
    assert [m["model"] for m in tags] == [m["name"] for m in tags] == expected
    assert (await box.get("/api/ps")).json == {"models": []}
    listed = typed(await box.get("/v1/models"), "application/json")
    assert [m["id"] for m in listed["data"]] == expected
    nothing_was_started(box, daemon)


async def test_the_list_of_models_is_anthropic_s_too(box: RouterUnderTest, daemon: OllamaDaemon) -> None:
    http = anthropic.DefaultAsyncHttpxClient(verify=False, trust_env=False)
    async with anthropic.AsyncAnthropic(base_url=box.url, api_key="-", http_client=http) as client:
        listed = [model async for model in client.models.list(limit=2)]
        one = await client.models.retrieve("coder")
    assert [(m.id, m.type) for m in listed][:2] == [("coder", "model"), ("eyes", "model")]
    assert (one.display_name, one.created_at.tzinfo is not None) == ("Coder 30B", True)
    nothing_was_started(box, daemon)


async def test_the_probes_of_copilot_chat(box: RouterUnderTest, daemon: OllamaDaemon) -> None:
    """It offers a model only with "tools", and takes 4096 tokens where it does not find the context."""
    await box.get("/api/version")
    offered = {}
    for model in (m["model"] for m in (await box.get("/api/tags")).json["models"]):
        shown = await show(box, model=model)
        info = shown["model_info"]
        length = info.get(f"{info['general.architecture']}.context_length", 4096)
        if "tools" in shown["capabilities"]:
            offered[model] = (info["general.basename"], length, "vision" in shown["capabilities"])
    assert offered["coder"] == ("Coder 30B", 131072, False)
    assert offered["eyes"] == ("eyes", 4096, True)
    assert offered["fast"] == ("fast", 131072, False)
    assert offered["best"] == ("best", 4096, False), "a chain: the smallest context, and what all of them can"
    assert offered["llama3:latest"] == ("Llama", 131072, False)
    nothing_was_started(box, daemon)


async def test_the_probes_of_continue(box: RouterUnderTest, daemon: OllamaDaemon) -> None:
    shown = await show(box, name="coder")
    parameters = dict(re.split(r"\s+", line, maxsplit=1) for line in shown["parameters"].splitlines())
    assert parameters["num_ctx"] == "131072"
    assert ".Suffix" not in shown["template"], "nothing says that this one can fill in the middle"
    own = await show(box, name="llama3")
    assert 'stop    "<x>"' in own["parameters"], "what a daemon says of its own models is passed on"
    assert ".Suffix" in own["template"]
    nothing_was_started(box, daemon)


async def test_the_probes_of_cline_and_of_strict_clients(box: RouterUnderTest, daemon: OllamaDaemon) -> None:
    """Zed's parser wants every field, none of another type; Go's and Rust's want times and unsigned sizes."""
    for model in (await box.get("/api/tags")).json["models"]:
        assert model["name"]
        assert datetime.fromisoformat(model["modified_at"]).year >= 2000
        assert isinstance(model["size"], int)
        assert model["size"] >= 0
        assert re.fullmatch(r"[0-9a-f]{64}", model["digest"])
        for field in ("format", "family", "parameter_size", "quantization_level"):
            assert isinstance(model["details"][field], str)
            assert model["details"][field]
    nothing_was_started(box, daemon)


async def test_the_probes_of_hermes(box: RouterUnderTest, daemon: OllamaDaemon) -> None:
    studio = typed(await box.get("/api/v1/models"), "application/json")
    entry = next(m for m in studio["models"] if m["key"] == "coder")
    assert (entry["type"], entry["max_context_length"], entry["loaded_instances"]) == ("llm", 131072, [])
    assert entry["capabilities"] == {"vision": False, "trained_for_tool_use": True}
    assert [m["id"] for m in studio["data"]] == [m["id"] for m in studio["models"]]
    for path in ("/v1/props", "/props"):
        props = typed(await box.get(path), "application/json")
        assert props["default_generation_settings"]["n_ctx"] == 4096, "no model was named: the shortest"
        of_one = typed(await box.get(f"{path}?model=coder"), "application/json")
        assert (of_one["n_ctx"], of_one["model_alias"]) == (131072, "coder")
    assert typed(await box.get("/version"), "application/json")["version"]
    shown = await show(box, name="coder")
    assert next(v for k, v in shown["model_info"].items() if k.endswith(".context_length")) == 131072
    listed = {m["id"]: m for m in (await box.get("/v1/models")).json["data"]}
    assert listed["coder"]["max_model_len"] == listed["coder"]["context_length"] == 131072
    nothing_was_started(box, daemon)


async def test_the_probes_of_claude_code(box: RouterUnderTest, daemon: OllamaDaemon) -> None:
    listed = await box.get("/v1/models?limit=1000", Authorization="Bearer anything")
    assert typed(listed, "application/json")["data"][0]["id"] == "coder"
    assert (await box.ask(path="/", method="HEAD")).status == 200
    nothing_was_started(box, daemon)


async def test_the_probes_of_the_ollama_command(box: RouterUnderTest, daemon: OllamaDaemon) -> None:
    head = await box.ask(path="/", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert (await box.get("/")).body == b"Ollama is running"
    client = ollama.AsyncClient(host=box.url, verify=False, trust_env=False)
    models = (await client.list()).models
    assert [m.model for m in models][:2] == ["coder", "eyes"]
    shown = await client.show("coder:latest")
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 131072
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert (await client.ps()).models == []
    with pytest.raises(ollama.ResponseError) as refused:
        await client.show("codr")
    assert refused.value.status_code == 404
    assert "'coder'" in refused.value.error
    await client._client.aclose()
    nothing_was_started(box, daemon)


# --- what they see when something is loaded


async def test_what_is_loaded_is_shown_under_its_own_name(make_router: MakeRouter) -> None:
    router = await make_router({"a": {"idle_unload_s": 600}, "b": {}}, aliases={"x": "a", "c": {"chain": ("a", "b")}})
    await router.load("a")
    (loaded,) = (await router.get("/api/ps")).json["models"]
    assert loaded["model"] == "a"
    left_s = datetime.fromisoformat(loaded["expires_at"]).timestamp() - datetime.now().timestamp()
    assert 590 < left_s <= 600
    states = {m["id"]: m["status"]["value"] for m in (await router.get("/v1/models")).json["data"]}
    assert states == {"a": "loaded", "b": "cold", "x": "loaded", "c": "loaded"}
    assert [m["key"] for m in (await router.get("/api/v1/models")).json["models"] if m["loaded_instances"]] == [
        "a",
        "x",
        "c",
    ]
    await router.load("b")
    (loaded,) = (await router.get("/api/ps")).json["models"]
    assert (loaded["model"], datetime.fromisoformat(loaded["expires_at"]).year > 2300) == ("b", True), "it stays"


async def test_of_a_daemon_only_what_it_has_loaded_here_is_shown(box: RouterUnderTest, daemon: OllamaDaemon) -> None:
    await box.load("phi:3b")
    await box.load("gpt-oss:120b-cloud")
    (loaded,) = (await box.get("/api/ps")).json["models"]
    assert (loaded["model"], loaded["size_vram"]) == ("phi:3b", 1)
    daemon.fails["GET /api/ps"] = list(ok(b"[]"))
    assert (await box.get("/api/ps")).json == {"models": []}
    daemon.fails.clear()


async def test_a_daemon_that_is_down_is_in_nobody_s_way(box: RouterUnderTest, daemon: OllamaDaemon) -> None:
    await daemon.stop()
    assert (await show(box, model="coder"))["capabilities"]
    assert (await box.get("/api/tags")).json["models"][0]["model"] == "coder"
    assert (await box.get("/api/ps")).json == {"models": []}


async def test_a_daemon_that_hangs_holds_up_a_list_for_a_moment_only(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    daemon.fails["POST /api/show"] = HANGS
    router = await make_router(("a",), http=[Ollama(name="ollama", base_url=daemon.url)])
    tags = await router.ask(path="/api/tags", within_s=2.0)
    assert "llama3:latest" in [m["model"] for m in tags.json["models"]]


async def test_a_model_file_that_changes_is_read_again(box: RouterUnderTest, tmp_path: Path) -> None:
    async def length() -> int | None:
        entry: dict[str, Any] = (await box.get("/v1/models/coder")).json
        return entry.get("context_length")

    assert await length() == 131072
    (tmp_path / "coder.gguf").write_bytes(b"GGUF is what this is not")
    assert await length() is None
    (tmp_path / "coder.gguf").unlink()
    assert await length() is None
    (tmp_path / "coder.gguf").write_bytes(header(ARCHITECTURE, CONTEXT))
    assert await length() == 131072


async def test_a_command_line_says_more_of_the_context_than_the_file(make_router: MakeRouter, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(header(ARCHITECTURE, CONTEXT))
    command = ("llama-server", "-m", str(tmp_path / "m.gguf"), "-c", "8192")
    router = await make_router({"a": {"start_cmd": command}})
    assert (await router.get("/v1/models/a")).json["context_length"] == 8192


async def test_a_provider_s_list_says_the_context_of_its_models(make_router: MakeRouter) -> None:
    provider = Provider()
    await provider.listen()
    try:
        listed = json.dumps({"data": [{"id": "big", "context_length": 200000, "supported_parameters": ["tools"]}]})
        provider.script = lambda _: ok(listed.encode())
        cloud = Remote(name="cloud", base_url=provider.url, api_key="provider-key", discover_models=True)
        router = await make_router(("a",), http=[cloud])
        assert (await router.get("/v1/models/big")).json["context_length"] == 200000
        assert (await show(router, model="big"))["capabilities"] == ["completion", "tools"]
    finally:
        await provider.stop()


# --- who may see what


CATALOGUES = ("/v1/models", "/api/tags", "/api/v1/models", "/api/ps", "/props", "/v1/props")


async def test_a_key_finds_in_every_catalogue_what_it_may_use_and_no_more(
    make_router: MakeRouter, daemon: OllamaDaemon
) -> None:
    keys = (ApiKey(name="guest", key="guest", models=("b", "gpt-*"), remote=False), ApiKey(name="me", key="me"))
    router = await make_router(
        api_keys=keys, aliases={"c": {"chain": ("a", "b")}}, http=[Ollama(name="ollama", base_url=daemon.url)]
    )
    guest = {"Authorization": "Bearer guest"}
    for path in CATALOGUES:
        said = (await router.get(path, **guest)).body.decode()
        assert '"a"' not in said, path
        assert "llama3" not in said, path
        assert "gpt-oss" not in said, "it runs in a cloud, where this key may not go"
    assert [m["model"] for m in (await router.get("/api/tags", **guest)).json["models"]] == ["b"]
    for name in ("a", "llama3", "gpt-oss:120b-cloud", "c"):
        refused = await router.ask(post(model=name), path="/api/show", headers=guest)
        assert refused.status == 404, name
        assert (await router.get(f"/v1/models/{name}", **guest)).status == 404
        assert (await router.get(f"/props?model={name}", **guest)).status == 404
    for path in (*CATALOGUES, "/version", "/api/version", "/api/show?model=b"):
        assert (await router.get(path)).status == 401, "without a key"
    assert (await router.get("/api/show?model=b", **guest)).status == 200
    nothing_was_started(router, daemon)


async def test_a_chain_shows_a_key_what_it_may_use_of_it(make_router: MakeRouter) -> None:
    cloud = Remote(name="cloud", base_url="https://cloud.example/v1")
    router = await make_router(
        ("a",),
        models=[
            {"id": "mine", "engine": "a", "context_length": 32768, "tags": ("completion", "vision")},
            {"id": "small", "engine": "cloud", "context_length": 4096, "tags": ("completion",)},
        ],
        aliases={"best": {"chain": ("mine", "small")}},
        http=[cloud],
        api_keys=(ApiKey(name="home", key="home", remote=False), ApiKey(name="all", key="all")),
    )
    for key, length, capabilities in (("home", 32768, ["completion", "vision"]), ("all", 4096, ["completion"])):
        best = (await router.get("/v1/models/best", Authorization=f"Bearer {key}")).json
        assert (best["context_length"], best["capabilities"]) == (length, capabilities)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/show", b"", 400),
        ("/api/show", b"{}", 400),
        ("/api/show", b"[]", 400),
        ("/api/show", b'{"model": 5}', 400),
        ("/api/show", b'{"model": "a", "model": "b"}', 400),
        ("/api/show", b'{"name": "\\ud800"}', 400),
        ("/api/show", b'{"model": "nobody"}', 404),
        ("/api/show", None, 400),
        ("/api/show?model=" + "x" * 600, None, 400),
        ("/api/show?" + "&".join(f"x{n}=1" for n in range(200)), None, 400),
        ("/api/tags", b"{}", 405),
    ],
)
async def test_what_cannot_be_answered_is_said_as_ollama_says_it(
    make_router: MakeRouter, path: str, body: bytes | None, status: int
) -> None:
    router = await make_router()
    refused = await router.ask(body, path=path)
    assert refused.status == status
    if status != 405:
        assert isinstance(refused.json["error"], str), "an object there is a TypeError in Ollama's client"
