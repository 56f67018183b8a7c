"""The lists of models, in the shape of every API that is spoken here. Looking loads nothing and starts nothing.

What is known of a model is put together in `knowledge`, how a client wants it is in `shapes`. What a key may see is
decided in one place for all of them: `Naming.listed` and `Naming.find`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

from enginerouter import __version__
from enginerouter.engines.base import Engine
from enginerouter.engines.describe import ShowsModels
from enginerouter.engines.loaded import is_elsewhere
from enginerouter.errors import BadRequest
from enginerouter.routing.target import Chain
from enginerouter.web.edge import EdgeCall
from enginerouter.web.entries import Entry
from enginerouter.web.json_body import json_object, model_of
from enginerouter.web.knowledge import Knowledge, resident
from enginerouter.web.naming import Naming
from enginerouter.web.shapes import llamacpp, lmstudio, ollama, openai
from enginerouter.web.shapes.names import Aliases, AliasShown

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models")
MOST_PARAMETERS = 100


def json_answer(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=json.dumps(value).encode(), content_type="application/json")


class Catalog:
    """The handlers. `default_model` is what a request without a model gets."""

    def __init__(
        self, naming: Naming, knowledge: Knowledge, engines: Mapping[str, Engine], default_model: str | None
    ) -> None:
        self._naming = naming
        self._knowledge = knowledge
        self._engines = engines
        self._default_model = default_model

    # --- OpenAI

    async def root(self, call: EdgeCall) -> web.StreamResponse:
        """That this is an OpenAI API, and which program serves it."""
        return json_answer(
            {"object": "api", "name": "enginerouter", "version": __version__, "endpoints": list(ENDPOINTS)}
        )

    async def models(self, call: EdgeCall) -> web.StreamResponse:
        """What can be named, in the form of a list of OpenAI models, each with its phase."""
        return json_answer(openai.model_list(await self._knowledge.entries(call.identity)))

    async def model(self, call: EdgeCall) -> web.StreamResponse:
        """One of them; its id may have slashes."""
        return json_answer(openai.model(await self._knowledge.entry(call.params["id"], call.identity)))

    async def aliases(self, call: EdgeCall) -> web.StreamResponse:
        """Every alias, with the targets that it leads to in their order: one for a rename, several for a chain.
        Under `unknown`, what it names and no engine has now.
        """
        found = await self._naming.aliases(call.identity)
        return json_answer(Aliases(object="list", data=[_alias_entry(chain) for chain in found]))

    # --- Ollama

    async def tags(self, call: EdgeCall) -> web.StreamResponse:
        """All models of all engines, in the form of Ollama's list."""
        return json_answer({"models": [ollama.tag(e) for e in await self._knowledge.entries(call.identity)]})

    async def show(self, call: EdgeCall) -> web.StreamResponse:
        """One model: context, capabilities, details. By POST as Ollama has it, and by GET as some agents ask."""
        name = await _shown_name(call)
        entry = await self._knowledge.entry(name, call.identity)
        said = await self._said_by_engine(name)
        return json_answer(ollama.show(entry) if said is None else ollama.shown_by_engine(entry, said))

    async def running(self, call: EdgeCall) -> web.StreamResponse:
        """What is in memory. Which models a daemon has there is its own business: it is asked, where it is resident."""
        loaded, now = resident(await self._knowledge.entries(call.identity)), time.time()
        daemons = {name: engine for name, engine in self._engines.items() if isinstance(engine, ShowsModels)}
        shown = [ollama.running(e, now) for e in loaded if e.owner not in daemons]
        for name in dict.fromkeys(e.owner for e in loaded if e.owner in daemons):
            known = {e.id: e for e in loaded if e.owner == name}
            for said in await daemons[name].running():
                entry = known.get(str(said.get("model") or said.get("name")))
                if entry is not None and not is_elsewhere(said):
                    shown.append(ollama.running_by_engine(entry, said, now))
        return json_answer({"models": shown})

    async def version(self, call: EdgeCall) -> web.StreamResponse:
        """The version of Ollama whose API this is."""
        return json_answer({"version": ollama.API_VERSION})

    async def _said_by_engine(self, name: str) -> dict[str, Any] | None:
        """What a daemon says of a model of its own, where the name, which the key may see, leads to one."""
        target = self._naming.target_of(name)
        engine = self._engines.get(target.engine) if target is not None else None
        if target is None or not isinstance(engine, ShowsModels):
            return None
        return await engine.show(target.upstream_model)

    # --- others

    async def lmstudio_models(self, call: EdgeCall) -> web.StreamResponse:
        """All models, in the form of LM Studio's list and of OpenAI's at once."""
        return json_answer(lmstudio.model_list(await self._knowledge.entries(call.identity)))

    async def props(self, call: EdgeCall) -> web.StreamResponse:
        """llama.cpp's: of `?model=`, else of what a request without a model gets, else of the shortest context."""
        if (name := model_of(dict(_query(call)))) is not None:
            return json_answer(llamacpp.props(await self._knowledge.entry(name, call.identity)))
        return json_answer(llamacpp.props(self._usual(await self._knowledge.entries(call.identity))))

    def _usual(self, entries: Sequence[Entry]) -> Entry | None:
        default = [e for e in entries if e.id == self._default_model]
        known = [e for e in entries if e.facts.context_length is not None]
        shortest = sorted(known, key=lambda e: e.facts.context_length or 0)
        return next(iter((*default, *resident(entries), *shortest, *entries)), None)

    async def engine_version(self, call: EdgeCall) -> web.StreamResponse:
        """The router's version, where vLLM has its own."""
        return json_answer({"version": __version__})


def _query(call: EdgeCall) -> dict[str, str]:
    """The last value of each parameter of the query. Raises BadRequest."""
    try:
        found = parse_qs(call.raw_query, max_num_fields=MOST_PARAMETERS)
    except ValueError:
        raise BadRequest(f"the query has more than {MOST_PARAMETERS} parameters") from None
    return {name: values[-1] for name, values in found.items()}


async def _shown_name(call: EdgeCall) -> str:
    if call.request.method == "POST":
        body = await call.read_body()
        asked: dict[str, Any] = await json_object(body.raw)
    else:
        asked = dict(_query(call))
    name = model_of(asked) or model_of({"model": asked.get("name")})
    if name is None:
        raise BadRequest("the request names no model: give it a 'model'")
    return name


def _alias_entry(chain: Chain) -> AliasShown:
    alias = chain.alias
    entry: AliasShown = {
        "id": alias.name,
        "object": "alias",
        "kind": "chain" if alias.chain else "rename",
        "description": alias.description,
        "local_only": alias.local_only,
        "hidden": alias.hidden,
        "targets": [{"target": t.label, "engine": t.engine, "model": t.model_id} for t in chain.targets],
        "unknown": list(chain.unknown),
    }
    if alias.chain:
        entry["chain"] = [t.label for t in chain.targets]
        entry["go_on_after_s"] = alias.go_on_after_s
        entry["first_byte_timeout_s"] = alias.first_byte_timeout_s
        entry["on_mismatch"] = alias.on_mismatch
        entry["mix_embeddings"] = alias.mix_embeddings
        entry["retry_unsafe"] = alias.retry_unsafe
    return entry
