"""The lists of models: from what is configured, never from an engine, so that looking loads nothing."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from enginerouter import __version__
from enginerouter.routing.directory import Directory, Listed
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.phases import Phase
from enginerouter.web.edge import EdgeCall

# Clients want a creation time; a constant one is as true as any.
CREATED = 1767225600


def json_answer(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=json.dumps(value).encode(), content_type="application/json")


class Catalog:
    """GET /v1, /v1/models and /v1/models/{id}."""

    def __init__(self, directory: Directory, coordinator: Coordinator) -> None:
        self._directory = directory
        self._coordinator = coordinator

    async def root(self, call: EdgeCall) -> web.StreamResponse:
        return json_answer(
            {
                "object": "api",
                "name": "enginerouter",
                "version": __version__,
                "endpoints": sorted(["/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"]),
            }
        )

    async def models(self, call: EdgeCall) -> web.StreamResponse:
        listed = self._directory.listed(call.identity.may_name)
        return json_answer({"object": "list", "data": [self._entry(m) for m in listed]})

    async def model(self, call: EdgeCall) -> web.StreamResponse:
        return json_answer(self._entry(self._directory.find(call.params["id"], call.identity.may_name)))

    def _entry(self, model: Listed) -> dict[str, Any]:
        phase = self._coordinator.slots[model.slot].phase
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
        return entry
