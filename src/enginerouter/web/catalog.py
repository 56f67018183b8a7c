"""The lists of models: what is configured, and what engines say they have. Looking loads nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from enginerouter import __version__
from enginerouter.config.model import Alias
from enginerouter.routing.directory import Listed
from enginerouter.routing.target import Target
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.phases import Phase
from enginerouter.web.edge import EdgeCall
from enginerouter.web.naming import Naming

CHAIN_SETTINGS = ("go_on_after_s", "first_byte_timeout_s", "on_mismatch", "mix_embeddings", "retry_unsafe")
# Clients want a creation time; a constant one is as true as any.
CREATED = 1767225600


def json_answer(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=json.dumps(value).encode(), content_type="application/json")


class Catalog:
    """GET /v1, /v1/models, /v1/models/{id} and /v1/aliases."""

    def __init__(self, naming: Naming, coordinator: Coordinator) -> None:
        self._naming = naming
        self._coordinator = coordinator

    async def root(self, call: EdgeCall) -> web.StreamResponse:
        """That this is an OpenAI API, and which program serves it."""
        return json_answer(
            {
                "object": "api",
                "name": "enginerouter",
                "version": __version__,
                "endpoints": sorted(["/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"]),
            }
        )

    async def models(self, call: EdgeCall) -> web.StreamResponse:
        """What can be named, in the form of a list of OpenAI models, each with its phase."""
        listed = await self._naming.listed(call.identity)
        return json_answer({"object": "list", "data": [self._entry(m) for m in listed]})

    async def model(self, call: EdgeCall) -> web.StreamResponse:
        """One of them; its id may have slashes."""
        return json_answer(self._entry(await self._naming.find(call.params["id"], call.identity)))

    async def aliases(self, call: EdgeCall) -> web.StreamResponse:
        """Every alias, with the targets that it leads to in their order: one for a rename, several for a chain."""
        found = await self._naming.aliases(call.identity)
        return json_answer({"object": "list", "data": [_alias_entry(alias, targets) for alias, targets in found]})

    def _entry(self, model: Listed) -> dict[str, Any]:
        slot = self._coordinator.slots.get(model.slot)
        phase = slot.phase if slot is not None else Phase.COLD
        entry: dict[str, Any] = {
            "id": model.id,
            "object": "model",
            "created": CREATED,
            "owned_by": model.engine,
            "name": model.display_name,
            "status": {"value": "loaded" if phase is Phase.READY else phase.value},
        }
        if model.context_length is not None:
            entry["context_length"] = entry["max_model_len"] = model.context_length
        if model.description:
            entry["description"] = model.description
        if model.alias_of is not None:
            entry["alias_of"] = model.alias_of
        if model.targets:
            entry["owned_by"] = "enginerouter"
        return entry


def _alias_entry(alias: Alias, targets: Sequence[Target]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": alias.name,
        "object": "alias",
        "kind": "chain" if alias.chain else "rename",
        "description": alias.description,
        "local_only": alias.local_only,
        "hidden": alias.hidden,
        "targets": [{"target": t.label, "engine": t.engine, "model": t.model_id} for t in targets],
    }
    if alias.chain:
        entry["chain"] = [t.label for t in targets]
        entry |= {name: getattr(alias, name) for name in CHAIN_SETTINGS}
    return entry
