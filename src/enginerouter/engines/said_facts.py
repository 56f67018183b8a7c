"""What engines say of their models, in any engine's form, as facts. Plain functions over JSON that never raise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from enginerouter.engines.model_facts import (
    CAPABILITIES,
    MOST_TOKENS,
    NOTHING,
    ModelFacts,
    known,
    template_capabilities,
)

_LONGEST_TEXT = 200
_LONGEST_TEMPLATE = 1 << 20
_NUM_CTX = re.compile(r"^num_ctx\s+([1-9]\d{0,8})\s*$", re.MULTILINE)


def facts_in_entry(entry: Any) -> ModelFacts:
    """What one entry of a list of models says."""
    if not isinstance(entry, dict):
        return NOTHING
    details, meta = _dict(entry.get("details")), _dict(entry.get("meta"))
    quantization = entry.get("quantization")
    return ModelFacts(
        context_length=_context(entry, meta),
        capabilities=_capabilities(entry),
        also=frozenset({"vision"}) if "multimodal" in _words(entry.get("capabilities")) else frozenset(),
        architecture=_text(details.get("family")) or _text(entry.get("architecture")),
        parameter_count=_count(meta.get("n_params")),
        parameter_size=_text(details.get("parameter_size")) or _text(entry.get("params_string")),
        quantization=_text(details.get("quantization_level"))
        or _text(_dict(quantization).get("name"))
        or _text(quantization),
        embedding_length=_count(meta.get("n_embd")),
        format=_text(details.get("format")) or _text(entry.get("format")),
        size_bytes=_count(entry.get("size")) or _count(entry.get("size_bytes")) or _count(meta.get("size")),
        digest=_digest(entry.get("digest")),
        modified_utc=_moment(entry.get("modified_at")),
        is_llamacpp=True if entry.get("owned_by") == "llamacpp" else None,
    )


def facts_in_show(document: Any) -> ModelFacts:
    """What Ollama's `/api/show` says. A `num_ctx` of the model's own is how it is really loaded."""
    said = _dict(document)
    info = _dict(said.get("model_info"))
    architecture = _text(info.get("general.architecture"))
    num_ctx = _NUM_CTX.search(_text(said.get("parameters"), _LONGEST_TEMPLATE))
    own = ModelFacts(
        context_length=int(num_ctx[1]) if num_ctx else _count(info.get(f"{architecture}.context_length")),
        # Complete, also where it is one word only.
        capabilities=frozenset(_words(said.get("capabilities"))) & frozenset(CAPABILITIES) or None,
        architecture=architecture,
        basename=_text(info.get("general.basename")),
        parameter_count=_count(info.get("general.parameter_count")),
        embedding_length=_count(info.get(f"{architecture}.embedding_length")),
    )
    return known(own, facts_in_entry(said))


def facts_in_props(document: Any) -> ModelFacts:
    """What llama.cpp's `/props` says of the model that it serves: the context of one slot, as it really is."""
    said = _dict(document)
    caps = _dict(said.get("chat_template_caps"))
    template = _text(said.get("chat_template"), _LONGEST_TEMPLATE)
    capabilities = template_capabilities(template) if caps or template else None
    if capabilities is not None and (caps.get("supports_tools") is True or caps.get("supports_tool_calls") is True):
        capabilities |= {"tools"}
    return ModelFacts(
        context_length=_count(_dict(said.get("default_generation_settings")).get("n_ctx")),
        capabilities=capabilities,
        also=frozenset({"vision"}) if _dict(said.get("modalities")).get("vision") is True else frozenset(),
        quantization=_text(said.get("model_ftype")),
    )


def _context(entry: Mapping[str, Any], meta: Mapping[str, Any]) -> int | None:
    instances = entry.get("loaded_instances")
    first = instances[0] if isinstance(instances, list) and instances else None
    places = (
        _dict(_dict(first).get("config")).get("context_length"),  # LM Studio: as it is loaded now
        entry.get("loaded_context_length"),
        meta.get("n_ctx"),
        entry.get("context_length"),
        entry.get("max_model_len"),
        entry.get("context_window"),
        _dict(entry.get("parameters")).get("max_seq_len"),
        entry.get("max_context_length"),
        entry.get("inputTokenLimit"),
    )
    return next((n for place in places if (n := _count(place)) is not None and n <= MOST_TOKENS), None)


def _capabilities(entry: Mapping[str, Any]) -> frozenset[str] | None:
    """All that a model can do, where the entry says it. llama.cpp's list of one word says nothing of tools."""
    said = entry.get("capabilities")
    if entry.get("type") in ("embedding", "embeddings"):
        return frozenset({"embedding"})
    if isinstance(said, list) and "multimodal" not in said and said != ["completion"]:
        return frozenset(_words(said)) & frozenset(CAPABILITIES) or None
    if isinstance(said, dict) and entry.get("type") == "llm":  # LM Studio
        more = {"vision": "vision", "trained_for_tool_use": "tools", "reasoning": "thinking"}
        return frozenset({"completion"} | {word for key, word in more.items() if said.get(key)})
    if isinstance(entry.get("supported_parameters"), list):  # OpenRouter
        return _of_openrouter(entry)
    return None


def _of_openrouter(entry: Mapping[str, Any]) -> frozenset[str]:
    parameters = set(_words(entry.get("supported_parameters")))
    found = {"completion"} | ({"tools"} & parameters)
    if {"reasoning", "include_reasoning"} & parameters:
        found.add("thinking")
    if "image" in _words(_dict(entry.get("architecture")).get("input_modalities")):
        found.add("vision")
    return frozenset(found)


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _words(value: Any) -> list[str]:
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def _text(value: Any, longest: int = _LONGEST_TEXT) -> str:
    return value[:longest] if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and 0 < value < 1 << 63 else None


def _digest(value: Any) -> str:
    return value if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) else ""


def _moment(value: Any) -> float | None:
    try:
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) and value else None
    except (ValueError, OverflowError):
        return None
