"""`/props` of llama.cpp, as far as clients read it: how long the context of a request may be."""

from __future__ import annotations

from typing import Any

from enginerouter import __version__
from enginerouter.web.entries import Entry


def props(entry: Entry | None) -> dict[str, Any]:
    """Of one model; None: the key may see none."""
    length = entry.facts.context_length if entry is not None else None
    known: dict[str, Any] = {"n_ctx": length} if length is not None else {}
    return {
        "default_generation_settings": {**known, "params": {}},
        "total_slots": 1,
        "model_alias": entry.id if entry is not None else "",
        "model_path": entry.id if entry is not None else "",
        "modalities": {"vision": entry is not None and "vision" in entry.capabilities, "audio": False},
        "build_info": f"enginerouter {__version__}",
        **known,
    }
