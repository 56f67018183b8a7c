"""Asking an engine that has just become ready what it really serves. Never raises: it is for catalogues only.

`/v1/models` is what all engines have; llama.cpp says the context of one slot in `/props`. Both load nothing, and wake
nothing that sleeps.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from enginerouter.engines.model_facts import NOTHING, ModelFacts, known
from enginerouter.engines.probe import Prober
from enginerouter.engines.said_facts import facts_in_entry, facts_in_props

TIMEOUT_S = 5.0


@runtime_checkable
class ShowsModels(Protocol):
    """An engine whose own words on a model are worth passing on (Ollama)."""

    async def show(self, model: str) -> dict[str, Any] | None:
        """The whole answer of its `/api/show`, or None. Loads nothing."""

    async def running(self) -> list[dict[str, Any]]:
        """The entries of its `/api/ps`; none where it does not answer."""


async def describe(prober: Prober, address: str, model: str | None) -> ModelFacts:
    """What the server at an address says of a model, or of the only one that it has."""
    reply = await prober.call("GET", f"{address}/v1/models", timeout_s=TIMEOUT_S)
    entry = _entry_of(reply.document, model)
    if entry is None:
        return NOTHING
    facts = facts_in_entry(entry)
    if not facts.is_llamacpp:
        return facts
    props = await prober.call("GET", f"{address}/props", timeout_s=TIMEOUT_S)
    return known(facts_in_props(props.document), facts)


def _entry_of(document: Any, model: str | None) -> dict[str, Any] | None:
    listed = document.get("data") if isinstance(document, dict) else document
    entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    named = [e for e in entries if model is not None and model in (e.get("id"), e.get("root"))]
    return named[0] if named else entries[0] if len(entries) == 1 else None
