"""`/api/tags`, `/api/ps` and `/api/show`. Strict clients want every field, none of them empty or of another type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginerouter.dialects.ollama import rfc3339
from enginerouter.web.entries import Entry

# The API that is spoken here is that of this version. Clients want dotted integers, at least 0.6.4.
API_VERSION = "0.33.0"
# How Ollama says that a model stays: so far away that nobody waits for it.
FOREVER_S = 292 * 365 * 24 * 3600.0
UNKNOWN = "unknown"


def tag(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.id,
        "model": entry.id,
        "modified_at": rfc3339(entry.modified_utc),
        "size": entry.size_bytes,
        "digest": entry.digest,
        "details": _details(entry),
        "capabilities": list(entry.capabilities),
    }


def running(entry: Entry, now_utc: float) -> dict[str, Any]:
    """An entry of `/api/ps`."""
    held = entry.held_bytes or entry.size_bytes
    return {
        "name": entry.id,
        "model": entry.id,
        "size": held,
        "digest": entry.digest,
        "details": _details(entry),
        "expires_at": rfc3339(entry.expires_utc if entry.expires_utc is not None else now_utc + FOREVER_S),
        "size_vram": held,
        "context_length": entry.facts.context_length or 0,
    }


def running_by_engine(entry: Entry, said: Mapping[str, Any], now_utc: float) -> dict[str, Any]:
    """The same, with what a daemon itself says of it, as far as that is of the right type."""
    shape = running(entry, now_utc)
    told = {key: said[key] for key in shape if type(said.get(key)) is type(shape[key]) and said[key] != ""}
    return {**shape, **told, "name": entry.id, "model": entry.id}


def show(entry: Entry) -> dict[str, Any]:
    """`/api/show`. `parameters` is text: one `name  value` a line."""
    architecture, length = entry.architecture, entry.facts.context_length
    info: dict[str, Any] = {"general.architecture": architecture, "general.basename": entry.display_name}
    numbers = {
        "general.parameter_count": entry.facts.parameter_count,
        f"{architecture}.context_length": length,
        f"{architecture}.embedding_length": entry.facts.embedding_length,
    }
    return {
        "license": "",
        "modelfile": f"FROM {entry.id}\n",
        "parameters": f"num_ctx    {length}" if length is not None else "",
        "template": _template(entry),
        "details": _details(entry),
        "model_info": info | {key: number for key, number in numbers.items() if number is not None},
        "capabilities": list(entry.capabilities),
        "modified_at": rfc3339(entry.modified_utc),
    }


def shown_by_engine(entry: Entry, said: Mapping[str, Any]) -> dict[str, Any]:
    """What a daemon says of its own model, completed; of its context, what the operator says counts more."""
    ours = show(entry)
    told = {key: value for key, value in said.items() if value is not None}
    info = told.get("model_info")
    if not isinstance(info, dict):
        return {**ours, **told, "model_info": ours["model_info"]}
    architecture, length = info.get("general.architecture"), entry.facts.context_length
    own = {f"{architecture}.context_length": length} if length is not None and isinstance(architecture, str) else {}
    return {**ours, **told, "model_info": {**ours["model_info"], **info, **own}}


def _details(entry: Entry) -> dict[str, Any]:
    return {
        "parent_model": entry.alias_of or "",
        "format": entry.facts.format or "gguf",
        "family": entry.architecture,
        "families": [entry.architecture],
        "parameter_size": entry.parameter_size or UNKNOWN,
        "quantization_level": entry.facts.quantization or UNKNOWN,
    }


def _template(entry: Entry) -> str:
    """What becomes of a prompt is the engine's affair; by `.Suffix` clients see that it can fill in the middle."""
    if "insert" in entry.capabilities:
        return "{{ if .Suffix }}{{ .Prompt }}{{ .Suffix }}{{ else }}{{ .Prompt }}{{ end }}"
    return "{{ .Prompt }}"
