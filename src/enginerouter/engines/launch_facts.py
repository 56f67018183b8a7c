"""What a command line and a model's file say of the model, as facts. Plain functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from enginerouter.engines.gguf import Header
from enginerouter.engines.model_facts import MOST_TOKENS, NOTHING, ModelFacts, template_capabilities

_CONTEXT_FLAGS = (
    "-c",
    "--ctx-size",
    "--ctx_size",
    "--context-length",
    "--max-model-len",
    "--max-length",
    "--contextsize",
)
_PROJECTOR_FLAGS = ("--mmproj", "-mm", "--mmproj-url", "-mmu")
_MODEL_FLAGS = ("-m", "--model")
# Those of llama.cpp and SGLang. A chat is refused there, or ends llama-server.
_EMBEDDING_FLAGS = ("--embedding", "--embeddings", "--rerank", "--reranking", "--is-embedding")
# vLLM's.
_KIND_FLAGS = ("--runner", "--task")
_EMBEDDING_KINDS = ("pooling", "embed", "embedding", "score", "reward", "classify")
_UNITS = MappingProxyType({"": 1, "k": 1000, "K": 1024, "m": 10**6, "M": 1 << 20})


@dataclass(frozen=True, slots=True)
class Command:
    """What a launch says of its model. `file` is its GGUF file, as written.

    Capabilities are said where flags leave no others, whatever the model could do otherwise.
    """

    facts: ModelFacts = NOTHING
    file: str | None = None


def facts_in_command(argv: Sequence[str]) -> Command:
    """What a command line says of the model it serves."""
    values = dict(_flag_values(argv, (*_CONTEXT_FLAGS, *_MODEL_FLAGS, *_KIND_FLAGS)))
    contexts = [_tokens(values[flag]) for flag in _CONTEXT_FLAGS if flag in values]
    files = [values[flag] for flag in _MODEL_FLAGS if values.get(flag, "").lower().endswith(".gguf")]
    also = {"vision"} if any(word.partition("=")[0] in _PROJECTOR_FLAGS for word in argv) else set()
    capabilities: frozenset[str] | None = None
    if any(word in _EMBEDDING_FLAGS for word in argv) or any(values.get(f) in _EMBEDDING_KINDS for f in _KIND_FLAGS):
        capabilities = frozenset({"embedding"})
    elif _is_vllm(argv) and "--enable-auto-tool-choice" not in argv:
        # vLLM refuses requests with tools unless it was told how to read calls.
        capabilities = frozenset({"completion"})
    return Command(
        ModelFacts(
            context_length=next((n for n in contexts if n), None),
            capabilities=capabilities,
            also=frozenset(also),
        ),
        files[0] if files else None,
    )


def is_llamacpp(argv: Sequence[str]) -> bool:
    """Whether a command launches llama.cpp's server, by itself or as an image of a container."""
    return any(Path(word).name.startswith("llama-server") or "llama.cpp:" in word for word in argv)


def _is_vllm(argv: Sequence[str]) -> bool:
    return any(Path(word).name == "vllm" or word.startswith("vllm.entrypoints") for word in argv[:4])


def _flag_values(argv: Sequence[str], flags: Iterable[str]) -> Iterable[tuple[str, str]]:
    """`--flag value` and `--flag=value`."""
    for word, following in zip(argv, (*argv[1:], ""), strict=True):
        flag, equals, value = word.partition("=")
        if flag in flags:
            yield flag, value if equals else following


def _tokens(text: str) -> int | None:
    """`8192`, and vLLM's `8k` (thousands) and `8K` (1024). 0 is llama.cpp's word for the model's own length."""
    found = re.fullmatch(r"(\d{1,10}(?:\.\d{1,3})?)([kKmM]?)", text)
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    return size if 0 < size <= MOST_TOKENS else None


# --- the file

# general.file_type of llama.cpp.
FILE_TYPES = MappingProxyType(
    {
        0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
        12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
        19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
        26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
        36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
    }
)  # fmt: skip
_FIM_KEYS = ("tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id")
_EMBEDDERS = ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "modern-bert", "gemma-embedding", "t5encoder")
_MOST_PARAMETERS = 10**15


def facts_in_gguf(header: Header, size_bytes: int, modified_utc: float) -> ModelFacts:
    """What the header of a model's file says. The context is that of its training: the most that can be asked for."""
    architecture = header.text("general.architecture")
    is_part = (header.count("split.count") or 1) > 1
    count = header.count("general.parameter_count") or (0 if is_part else header.parameter_count)
    length = header.count(f"{architecture}.context_length")
    file_type = header.values.get("general.file_type")
    if architecture in _EMBEDDERS or header.count(f"{architecture}.pooling_type"):
        capabilities = frozenset({"embedding"})
    else:
        capabilities = template_capabilities(header.text("tokenizer.chat_template"))
        if any(key in header.values for key in _FIM_KEYS):
            capabilities |= {"insert"}
    return ModelFacts(
        context_length=length if length is not None and length <= MOST_TOKENS else None,
        capabilities=capabilities,
        architecture=architecture,
        basename=header.text("general.basename") or header.text("general.name"),
        parameter_count=count if 0 < count <= _MOST_PARAMETERS else None,
        parameter_size=header.text("general.size_label"),
        quantization=FILE_TYPES.get(file_type, "") if isinstance(file_type, int) else "",
        embedding_length=header.count(f"{architecture}.embedding_length"),
        format="gguf",
        size_bytes=size_bytes,
        modified_utc=modified_utc,
    )
