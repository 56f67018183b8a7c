"""Golden shapes: one entry as each API has it. A change here is a change for some client."""

from __future__ import annotations

from typing import Any

from enginerouter.dialects.ollama import rfc3339
from enginerouter.engines.model_facts import ModelFacts
from enginerouter.swap.phases import Phase
from enginerouter.web.entries import CREATED, Entry
from enginerouter.web.shapes import llamacpp, lmstudio, ollama, openai

FACTS = ModelFacts(
    context_length=32768,
    capabilities=frozenset({"tools", "completion"}),
    also=frozenset({"vision"}),
    architecture="qwen3",
    parameter_count=8_190_735_360,
    quantization="Q4_K_M",
    embedding_length=4096,
    format="gguf",
    size_bytes=5_027_783_488,
    digest="d" * 64,
    modified_utc=1_790_000_000.25,
)
CODER = Entry(
    "org/coder:8b",
    "llama",
    "Coder 8B",
    "writes code",
    phase=Phase.READY,
    facts=FACTS,
    held_bytes=6_000_000_000,
    expires_utc=1_790_000_600.0,
)
UNHEARD = Entry("unheard", "cloud", "unheard", is_remote=True)
DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "qwen3",
    "families": ["qwen3"],
    "parameter_size": "8.2B",
    "quantization_level": "Q4_K_M",
}
UNKNOWN_DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "unknown",
    "families": ["unknown"],
    "parameter_size": "unknown",
    "quantization_level": "unknown",
}


def test_openai() -> None:
    assert openai.model_list([CODER, UNHEARD]) == {
        "object": "list",
        "data": [
            {
                "id": "org/coder:8b",
                "object": "model",
                "created": 1_790_000_000,
                "owned_by": "llama",
                "name": "Coder 8B",
                "type": "model",
                "display_name": "Coder 8B",
                "created_at": "2026-09-21T14:13:20.250000Z",
                "status": {"value": "loaded"},
                "capabilities": ["completion", "tools", "vision"],
                "context_length": 32768,
                "context_window": 32768,
                "max_model_len": 32768,
                "meta": {"n_ctx": 32768},
                "description": "writes code",
            },
            {
                "id": "unheard",
                "object": "model",
                "created": CREATED,
                "owned_by": "cloud",
                "name": "unheard",
                "type": "model",
                "display_name": "unheard",
                "created_at": "2026-01-01T00:00:00.000000Z",
                "status": {"value": "cold"},
                "capabilities": ["completion", "tools"],
            },
        ],
        "has_more": False,
        "first_id": "org/coder:8b",
        "last_id": "unheard",
    }
    assert openai.model_list([]) == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}


def test_ollama_tags() -> None:
    assert ollama.tag(CODER) == {
        "name": "org/coder:8b",
        "model": "org/coder:8b",
        "modified_at": "2026-09-21T14:13:20.250000Z",
        "size": 5_027_783_488,
        "digest": "d" * 64,
        "details": DETAILS,
        "capabilities": ["completion", "tools", "vision"],
    }
    unheard = ollama.tag(UNHEARD)
    assert unheard["details"] == UNKNOWN_DETAILS
    assert (unheard["size"], unheard["modified_at"]) == (0, "2026-01-01T00:00:00.000000Z")
    assert len(unheard["digest"]) == 64
    assert unheard["digest"] != ollama.tag(Entry("other", "cloud", "other"))["digest"]


def test_ollama_ps() -> None:
    now = 1_790_000_000.0
    assert ollama.running(CODER, now) == {
        "name": "org/coder:8b",
        "model": "org/coder:8b",
        "size": 6_000_000_000,
        "digest": "d" * 64,
        "details": DETAILS,
        "expires_at": "2026-09-21T14:23:20.000000Z",
        "size_vram": 6_000_000_000,
        "context_length": 32768,
    }
    assert ollama.running(UNHEARD, now)["expires_at"] == rfc3339(now + ollama.FOREVER_S)
    assert ollama.running(UNHEARD, now)["expires_at"].startswith("2318-")


def test_what_a_daemon_says_of_a_running_model_counts_where_it_is_of_the_right_type() -> None:
    said: dict[str, Any] = {"model": "x", "size_vram": 7, "context_length": "8192", "digest": "", "details": None}
    shape = ollama.running_by_engine(CODER, {**said, "expires_at": "2026-11-21T10:00:00Z"}, 0.0)
    assert (shape["size_vram"], shape["expires_at"], shape["context_length"]) == (7, "2026-11-21T10:00:00Z", 32768)
    assert (shape["model"], shape["digest"], shape["details"]) == ("org/coder:8b", "d" * 64, DETAILS)


def test_ollama_show() -> None:
    assert ollama.show(CODER) == {
        "license": "",
        "modelfile": "FROM org/coder:8b\n",
        "parameters": "num_ctx    32768",
        "template": "{{ .Prompt }}",
        "details": DETAILS,
        "model_info": {
            "general.architecture": "qwen3",
            "general.basename": "Coder 8B",
            "general.parameter_count": 8_190_735_360,
            "qwen3.context_length": 32768,
            "qwen3.embedding_length": 4096,
        },
        "capabilities": ["completion", "tools", "vision"],
        "modified_at": "2026-09-21T14:13:20.250000Z",
    }
    unheard = ollama.show(UNHEARD)
    assert unheard["parameters"] == ""
    assert unheard["model_info"] == {"general.architecture": "unknown", "general.basename": "unheard"}


def test_a_model_that_fills_in_the_middle_shows_it_in_its_template() -> None:
    entry = Entry("m", "e", "m", facts=ModelFacts(capabilities=frozenset({"completion", "insert"})))
    assert ".Suffix" in ollama.show(entry)["template"]


def test_a_daemon_s_own_words_go_first_but_for_the_context() -> None:
    said: dict[str, Any] = {
        "template": "{{ .Own }}",
        "model_info": {"general.architecture": "llama", "llama.context_length": 131072, "llama.block_count": 32},
        "license": None,
    }
    shape = ollama.shown_by_engine(CODER, said)
    assert shape["template"] == "{{ .Own }}"
    assert (shape["model_info"]["llama.context_length"], shape["model_info"]["llama.block_count"]) == (32768, 32)
    assert (shape["license"], shape["capabilities"]) == ("", ["completion", "tools", "vision"])
    assert ollama.shown_by_engine(CODER, {"model_info": []})["model_info"] == ollama.show(CODER)["model_info"]


def test_lm_studio() -> None:
    shape = lmstudio.model_list([CODER])
    assert shape["data"] == openai.model_list([CODER])["data"]
    assert shape["models"] == [
        {
            "type": "llm",
            "publisher": "llama",
            "key": "org/coder:8b",
            "id": "org/coder:8b",
            "display_name": "Coder 8B",
            "architecture": "qwen3",
            "quantization": {"name": "Q4_K_M", "bits_per_weight": None},
            "size_bytes": 5_027_783_488,
            "params_string": "8.2B",
            "loaded_instances": [{"id": "org/coder:8b", "config": {"context_length": 32768}}],
            "format": "gguf",
            "capabilities": {"vision": True, "trained_for_tool_use": True},
            "description": "writes code",
            "max_context_length": 32768,
            "context_length": 32768,
        }
    ]
    embedder = Entry("e", "llama", "e", facts=ModelFacts(capabilities=frozenset({"embedding"})))
    assert lmstudio.model(embedder)["type"] == "embedding"
    assert "max_context_length" not in lmstudio.model(embedder)


def test_llama_cpp() -> None:
    props = llamacpp.props(CODER)
    assert props["default_generation_settings"] == {"n_ctx": 32768, "params": {}}
    assert (props["n_ctx"], props["model_alias"], props["modalities"]["vision"]) == (32768, "org/coder:8b", True)
    assert llamacpp.props(UNHEARD)["default_generation_settings"] == {"params": {}}
    assert llamacpp.props(None)["model_alias"] == ""
