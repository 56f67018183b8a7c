"""What is read of engines' words and of command lines, and how several sources are put together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginerouter.engines.launch_facts import facts_in_command, is_llamacpp
from enginerouter.engines.model_facts import ASSUMED, ModelFacts, common, known
from enginerouter.engines.said_facts import facts_in_entry, facts_in_props, facts_in_show


@pytest.mark.parametrize(
    ("entry", "length"),
    [
        ({"id": "m", "max_model_len": 32768}, 32768),  # vLLM, SGLang, MAX
        ({"id": "m", "context_length": 131072}, 131072),  # OpenRouter, Together
        ({"id": "m", "context_window": 8192}, 8192),  # Groq
        ({"id": "m", "meta": {"n_ctx": 4096, "n_ctx_train": 131072}}, 4096),  # llama.cpp
        ({"id": "m", "parameters": {"max_seq_len": 16384}}, 16384),  # TabbyAPI
        ({"name": "models/g", "inputTokenLimit": 1048576}, 1048576),  # Gemini
        (
            {
                "key": "m",
                "max_context_length": 40960,
                "loaded_instances": [{"id": "m", "config": {"context_length": 512}}],
            },
            512,
        ),  # LM Studio: what is loaded counts, not what could be
        ({"key": "m", "max_context_length": 40960, "loaded_instances": []}, 40960),
        ({"id": "m", "context_length": "131072"}, None),
        ({"id": "m", "context_length": 0}, None),
        ({"id": "m", "context_length": True, "max_model_len": 7}, 7),
        ({"id": "m", "context_length": 10**12}, None),
    ],
)
def test_every_engine_s_word_for_the_context_is_known(entry: dict[str, Any], length: int | None) -> None:
    assert facts_in_entry(entry).context_length == length


@pytest.mark.parametrize(
    ("entry", "capabilities"),
    [
        ({"id": "m"}, ("completion", "tools")),
        ({"id": "m", "owned_by": "llamacpp", "capabilities": ["completion"]}, ("completion", "tools")),
        ({"id": "m", "capabilities": ["completion", "multimodal"]}, ("completion", "tools", "vision")),
        ({"model": "m", "capabilities": ["vision", "completion"]}, ("completion", "vision")),  # Ollama says all
        ({"key": "m", "type": "embedding"}, ("embedding",)),
        (
            {"key": "m", "type": "llm", "capabilities": {"vision": True, "trained_for_tool_use": False}},
            ("completion", "vision"),
        ),
        (
            {
                "id": "m",
                "architecture": {"input_modalities": ["text", "image"]},
                "supported_parameters": ["tools", "reasoning", "seed"],
            },
            ("completion", "tools", "vision", "thinking"),
        ),
    ],
)
def test_what_engines_say_a_model_can(entry: dict[str, Any], capabilities: tuple[str, ...]) -> None:
    assert facts_in_entry(entry).all_capabilities == capabilities


def test_llama_cpp_s_empty_texts_are_no_facts() -> None:
    entry = {"name": "m", "modified_at": "", "size": "", "digest": "", "details": {"family": "", "format": "gguf"}}
    assert facts_in_entry(entry) == ModelFacts(format="gguf")


def test_a_num_ctx_of_the_model_s_own_counts_more_than_its_training() -> None:
    info = {"general.architecture": "qwen3", "qwen3.context_length": 40960, "qwen3.embedding_length": 4096}
    shown = {"model_info": info, "parameters": 'stop   "<x>"\nnum_ctx    16384\n', "capabilities": ["completion"]}
    facts = facts_in_show(shown)
    assert (facts.context_length, facts.embedding_length, facts.architecture) == (16384, 4096, "qwen3")
    assert facts.all_capabilities == ("completion",), "Ollama says all that a model can"
    assert facts_in_show({**shown, "parameters": "num_ctx_x 5"}).context_length == 40960


def test_props_say_the_context_of_one_slot() -> None:
    said = {
        "default_generation_settings": {"n_ctx": 2048},
        "modalities": {"vision": True},
        "chat_template": "<think>",
        "chat_template_caps": {"supports_tools": True},
    }
    facts = facts_in_props(said)
    assert facts.context_length == 2048
    assert facts.all_capabilities == ("completion", "tools", "vision", "thinking")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(
            ["capabilities", "details", "meta", "n_ctx", "type", "architecture", "model_info", "parameters", "digest",
             "loaded_instances", "config", "modified_at", "modalities", "default_generation_settings", "size"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(said=JSON)
def test_nothing_that_an_engine_says_is_an_error(said: Any) -> None:
    for read in (facts_in_entry, facts_in_show, facts_in_props):
        assert set(read(said).all_capabilities) <= {"completion", "tools", "insert", "vision", "embedding", "thinking"}


@pytest.mark.parametrize(
    ("command", "length"),
    [
        ("llama-server -m x.gguf -c 8192", 8192),
        ("llama-server -m x.gguf --ctx-size=16384", 16384),
        ("llama-server -m x.gguf -c 0", None),  # as long as the model was trained
        ("vllm serve org/m --max-model-len 32k", 32000),
        ("vllm serve org/m --max-model-len 32K", 32768),
        ("python -m sglang.launch_server --context-length 4096", 4096),
        ("llama-server -m x.gguf -c", None),
        ("llama-server -m x.gguf -c auto", None),
        ("docker run img -m /m/x.gguf --ctx-size 512", 512),
    ],
)
def test_the_context_on_a_command_line(command: str, length: int | None) -> None:
    assert facts_in_command(command.split()).facts.context_length == length


def test_what_a_command_line_says_besides() -> None:
    assert facts_in_command(["llama-server", "-m", "a.gguf", "--mmproj", "p.gguf"]).facts.also == {"vision"}
    assert facts_in_command(["llama-server", "--model=a.gguf", "--embeddings"]).file == "a.gguf"
    assert facts_in_command(["llama-server", "-hf", "org/m:Q4"]).file is None
    assert facts_in_command(["vllm", "serve", "m"]).facts.all_capabilities == ("completion",)
    with_tools = facts_in_command(["/opt/bin/vllm", "serve", "m", "--enable-auto-tool-choice"])
    assert with_tools.facts.all_capabilities == ("completion", "tools")


@pytest.mark.parametrize(
    ("command", "is_one"),
    [
        ("llama-server -m x.gguf", True),
        ("nice -n 5 /opt/llama.cpp/build/bin/llama-server-cuda -m x.gguf", True),
        ("docker run --rm ghcr.io/ggml-org/llama.cpp:server -m /m/x.gguf", True),
        ("python /opt/llama.cpp/tools/other.py", False),
        ("vllm serve m", False),
    ],
)
def test_a_llama_cpp_is_known_by_its_command(command: str, is_one: bool) -> None:
    assert is_llamacpp(command.split()) is is_one


@pytest.mark.parametrize(
    "command",
    [
        "llama-server -m e.gguf --embeddings",
        "llama-server -m e.gguf --embedding --pooling mean",
        "llama-server -m e.gguf --reranking",
        "python -m sglang.launch_server --model-path e --is-embedding",
        "vllm serve e --runner pooling",
        "vllm serve e --task=embed",
    ],
)
def test_a_server_launched_for_embeddings_is_not_offered_for_chats(command: str) -> None:
    assert facts_in_command(command.split()).facts.all_capabilities == ("embedding",)


def test_the_first_source_that_says_anything_counts_field_by_field() -> None:
    first = ModelFacts(architecture="llama", also=frozenset({"vision"}))
    second = ModelFacts(context_length=4096, architecture="other", capabilities=frozenset({"completion"}))
    together = known(None, first, ModelFacts(), second)
    assert (together.context_length, together.architecture) == (4096, "llama")
    assert together.all_capabilities == ("completion", "vision")


def test_a_chain_promises_what_all_of_its_targets_can() -> None:
    small = ModelFacts(context_length=4096, capabilities=frozenset({"completion", "tools"}))
    large = ModelFacts(context_length=131072, capabilities=frozenset({"completion", "tools", "vision"}))
    both = common([large, small, ModelFacts()])
    assert (both.context_length, both.capabilities) == (4096, ASSUMED)
