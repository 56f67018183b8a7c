"""`/v1/models`, with the fields beyond OpenAI's by which clients find a model's context, and with Anthropic's: its list
has the same path.
"""

from __future__ import annotations

from typing import Any

from enginerouter.dialects.ollama import rfc3339
from enginerouter.web.entries import Entry


def model(entry: Entry) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "id": entry.id,
        "object": "model",
        "created": int(entry.modified_utc),
        "owned_by": entry.owner,
        "name": entry.display_name,
        "type": "model",
        "display_name": entry.display_name,
        "created_at": rfc3339(entry.modified_utc),
        "status": {"value": "loaded" if entry.is_loaded else entry.phase.value},
        "capabilities": list(entry.capabilities),
    }
    length = entry.facts.context_length
    if length is not None:
        # OpenRouter's word, Groq's, vLLM's, and llama.cpp's.
        shape["context_length"] = shape["context_window"] = shape["max_model_len"] = length
        shape["meta"] = {"n_ctx": length}
    if entry.description:
        shape["description"] = entry.description
    if entry.alias_of is not None:
        shape["alias_of"] = entry.alias_of
    return shape


def model_list(entries: list[Entry]) -> dict[str, Any]:
    ids = [e.id for e in entries]
    page = {"has_more": False, "first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return {"object": "list", "data": [model(e) for e in entries], **page}
