"""What tells engines apart that answer alike: what each of them says, as far as its makers document it."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from enginerouter.engines.http_control import Said
from enginerouter.setup.recognise import FoundModel, command_kind, kind_of, models_of, needs_key


def said(answers: dict[str, Any]) -> dict[str, Said]:
    """Paths with a document, or (status, document). A text is no JSON."""
    found = {}
    for path, value in answers.items():
        status, document = value if isinstance(value, tuple) else (200, value)
        is_text = isinstance(document, str)
        body = document.encode() if is_text else json.dumps(document).encode()
        found[path] = Said(f"http://x{path}", status, "application/json", body, None if is_text else document)
    return found


def models(owner: str | None, *ids: str, **more: Any) -> dict[str, Any]:
    owned = {} if owner is None else {"owned_by": owner}
    return {"object": "list", "data": [{"id": i, "object": "model", **owned, **more} for i in ids]}


LM = {"models": [{"type": "llm", "key": "qwen/q3", "loaded_instances": [], "max_context_length": 32768}]}
UNEXPECTED = {"error": "Unexpected endpoint or method. (GET /props)"}
LLAMA_PROPS = {"default_generation_settings": {"n_ctx": 4096}, "model_path": "/m/a.gguf"}
OLLAMA_TAGS = {"models": [{"name": "qwen3:8b", "model": "qwen3:8b", "size": 1}]}

ENGINES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "llama-server": ("llamacpp", {"/v1/models": models("llamacpp", "a"), "/props": LLAMA_PROPS}),
    "llama-server that loads": (
        "llamacpp", {"/v1/models": (503, {"error": {"message": "Loading model", "code": 503}})},
    ),
    "llama-server as a router": ("llamacpp", {"/v1/models": models("llamacpp"), "/props": {"role": "router"}}),
    "vLLM": ("vllm", {"/v1/models": models("vllm", "a", max_model_len=8192), "/": (404, {"detail": "Not Found"})}),
    "SGLang": ("sglang", {"/v1/models": models("sglang", "a"), "/": "SGLang is running", "/api/tags": OLLAMA_TAGS}),
    "KoboldCpp": (
        "koboldcpp",
        {
            "/v1/models": models("koboldcpp", "koboldcpp/a"), "/api/version": {"version": "0.7.0"},
            "/api/tags": OLLAMA_TAGS, "/api/extra/version": {"result": "KoboldCpp", "version": "1.102"},
        },
    ),
    "MAX": ("max", {"/v1/models": models("", "a", max_model_len=8192), "/version": "26.7"}),
    "Ollama": (
        "ollama",
        {"/": "Ollama is running", "/api/version": {"version": "0.33"}, "/v1/models": models("library", "qwen3:8b")},
    ),
    "LocalAI, which speaks Ollama": (
        "localai",
        {
            "/": "Ollama is running", "/api/version": {"version": "0.9"}, "/v1/models": models(None, "phi-2"),
            "/system": {"backends": ["llama-cpp"], "loaded_models": []},
        },
    ),
    "LM Studio": ("lmstudio", {"/api/v1/models": LM, "/v1/models": models("organization_owner", "qwen/q3")}),
    "LM Studio without a model": ("lmstudio", {"/api/v1/models": {"models": []}, "/props": UNEXPECTED}),
    "TabbyAPI": ("tabbyapi", {"/v1/models": models("tabbyAPI", "a", "b"), "/v1/model": {"id": "a"}}),
    "TabbyAPI with nothing loaded": (
        "tabbyapi",
        {"/v1/models": models(None), "/v1/model": (503, {"detail": "No models are currently loaded."})},
    ),
    "TabbyAPI that wants a key": (
        "tabbyapi",
        {"/v1/models": (401, {"detail": "Please provide an API key"}), "/v1/model": (401, {"detail": "…"})},
    ),
    "text-generation-webui on its port": (
        "textgen", {"/v1/models": models(None), "/v1/internal/model/info": {"model_name": "None"}},
    ),
    "Lemonade": ("lemonade", {"/api/v1/health": {"status": "ok", "all_models_loaded": []}}),
    "llama-swap": ("llama-swap", {"/v1/models": models("llama-swap", "a"), "/running": {"running": []}}),
    "llama-swap without models": ("llama-swap", {"/v1/models": models(None), "/running": {"running": []}}),
    "another enginerouter": (
        "enginerouter",
        {"/v1": {"name": "enginerouter"}, "/": "Ollama is running", "/api/version": {"version": "0.6.4"},
         "/v1/models": models("llamacpp", "a")},
    ),
    "AirPlay on port 5000": (None, {"/": (403, ""), "/v1/models": (403, "")}),
    "a web server": (None, {"/": "<html>", "/v1/models": (404, "<html>")}),
    "one that answers everything alike": (None, {path: {"ok": True} for path in ("/", "/v1", "/v1/models", "/props")}),
    "nonsense": (None, {"/v1/models": [1, None, "x"], "/props": 5, "/system": [], "/api/v1/models": {"models": [3]}}),
}  # fmt: skip


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_is_known_by_what_it_says(name: str) -> None:
    kind, answers = ENGINES[name]
    assert kind_of(said(answers), None) == kind


def test_the_command_decides_where_nothing_is_said() -> None:
    refused = said({"/v1/models": (401, {"error": "Unauthorized"})})
    assert kind_of(refused, "vllm") == "vllm"
    assert kind_of(said({"/v1/models": models(None, "cache/one")}), "mlx") == "mlx"
    # What is said counts: the command may be of something in between.
    assert kind_of(said({"/v1/models": models("sglang", "a")}), "vllm") == "sglang"
    assert kind_of(said({"/v1/models": models("llamacpp", "a")}), "ramalama") == "ramalama"
    assert kind_of({}, "vllm") is None, "something listens, but not in HTTP"


COMMANDS = [
    ("llama-server -m a.gguf", "llamacpp"),
    ("/opt/llama.cpp/build/bin/llama-server-b6123 -m a", "llamacpp"),
    ("numactl --cpunodebind=0 llama-server -m a", "llamacpp"),
    ("/venv/bin/python /venv/bin/vllm serve Q", "vllm"),
    ("python -m vllm.entrypoints.openai.api_server --model Q", "vllm"),
    ("python3 -m sglang.launch_server --model-path Q", "sglang"),
    ("./koboldcpp-linux-x64 --model a.gguf", "koboldcpp"),
    ("python koboldcpp.py --model a.gguf", "koboldcpp"),
    ("/x/python -m mlx_lm.server --model m", "mlx"),
    ("/x/python -m mlx_lm server --model m", "mlx"),
    ("/x/python /x/mlx_lm.server --model m", "mlx"),
    ("/x/python /x/max serve --model m", "max"),
    ("ramalama serve granite", "ramalama"),
    ("local-ai run phi", "localai"),
    ("/usr/local/bin/ollama serve", "ollama"),
    ("llama-swap --config c", "llama-swap"),
    ("/x/python -m enginerouter --config c", "enginerouter"),
    ("/x/python /home/u/tabbyAPI/main.py", "tabbyapi"),
    ("vim vllm.md", None),
    ("python train.py --arg max serve", None),
    ("", None),
]


@pytest.mark.parametrize(("command", "kind"), COMMANDS, ids=[c for c, _ in COMMANDS])
def test_a_command_tells_which_engine_it_starts(command: str, kind: str | None) -> None:
    assert command_kind(shlex.split(command)) == kind


def test_models_and_their_context() -> None:
    meta = {"data": [{"id": "a", "meta": {"n_ctx": 512}}], "models": [{"name": "other"}]}
    assert models_of("llamacpp", said({"/v1/models": meta}), ()) == (FoundModel("a", 512),)
    old = said({"/v1/models": models("llamacpp", "a"), "/props": LLAMA_PROPS})
    assert models_of("llamacpp", old, ()) == (FoundModel("a", 4096),)
    assert models_of("vllm", said({"/v1/models": models("vllm", "a", max_model_len=8192)}), ()) == (
        FoundModel("a", 8192),
    )
    assert models_of("lmstudio", said({"/api/v1/models": LM}), ()) == (FoundModel("qwen/q3", 32768),)
    assert models_of("ollama", said({"/api/tags": OLLAMA_TAGS}), ()) == (FoundModel("qwen3:8b"),)
    kobold = said({"/v1/models": models("koboldcpp", "koboldcpp/a")})
    assert models_of("koboldcpp", kobold, ()) == (FoundModel("a", upstream_id="koboldcpp/a"),)


def test_what_mlx_lists_is_its_cache_and_what_it_serves_is_in_its_command() -> None:
    cache = said({"/v1/models": models(None, "cached/one", "cached/two")})
    command = shlex.split("python -m mlx_lm.server --model mlx-community/Q")
    assert models_of("mlx", cache, command) == (FoundModel("Q", upstream_id="mlx-community/Q"),)
    assert models_of("mlx", cache, ()) == ()


def test_names_that_no_client_could_send_are_left_out() -> None:
    listed = said({"/v1/models": models("vllm", "good", "bad\nname", " spaced ", "\x1b[31m", "")})
    assert [m.id for m in models_of("vllm", listed, ())] == ["good"]


def test_a_key_is_needed_where_the_list_is_refused() -> None:
    assert needs_key(said({"/v1/models": (401, {})}))
    assert not needs_key(said({"/v1/models": models("vllm", "a")}))
    assert not needs_key({})
