"""`/api/v1/models` of LM Studio, under `models`; beside it, under `data`, the list that everybody else reads."""

from __future__ import annotations

from typing import Any

from enginerouter.web.entries import Entry
from enginerouter.web.shapes import openai


def model_list(entries: list[Entry]) -> dict[str, Any]:
    return {**openai.model_list(entries), "models": [model(e) for e in entries]}


def model(entry: Entry) -> dict[str, Any]:
    capabilities, facts, length = entry.capabilities, entry.facts, entry.facts.context_length
    instance = {"id": entry.id, "config": {"context_length": length} if length is not None else {}}
    shape: dict[str, Any] = {
        "type": "llm" if "completion" in capabilities else "embedding",
        "publisher": entry.owner,
        "key": entry.id,
        "id": entry.id,
        "display_name": entry.display_name,
        "architecture": facts.architecture or None,
        "quantization": {"name": facts.quantization, "bits_per_weight": None} if facts.quantization else None,
        "size_bytes": entry.size_bytes,
        "params_string": entry.parameter_size or None,
        "loaded_instances": [instance] if entry.is_loaded else [],
        "format": facts.format or None,
        "capabilities": {"vision": "vision" in capabilities, "trained_for_tool_use": "tools" in capabilities},
        "description": entry.description or None,
    }
    if length is not None:
        shape["max_context_length"] = shape["context_length"] = length
    return shape
