"""The handler of every request that names a model: read, resolve, lease, relay. Hop by hop in docs/design.md."""

from __future__ import annotations

from dataclasses import replace

from aiohttp import web
from multidict import istr

from enginerouter.dialects.anthropic import estimated_tokens
from enginerouter.dialects.anthropic_requests import check_prompt
from enginerouter.dialects.ollama import residency_asked
from enginerouter.dialects.translation import OLLAMA, dialect_of
from enginerouter.errors import LoopDetected
from enginerouter.proxy.headers import VIA
from enginerouter.routing import walk
from enginerouter.routing.target import Chain, Route, Target
from enginerouter.web.ask import Ask, understand
from enginerouter.web.counting import counted
from enginerouter.web.edge import EdgeCall
from enginerouter.web.exchange import RESOLVED
from enginerouter.web.naming import Naming
from enginerouter.web.residency import Residence, one_target
from enginerouter.web.surroundings import Surroundings
from enginerouter.web.telemetry import Record, Recorded
from enginerouter.web.translating import AnyExchange
from enginerouter.web.walking import Walking

ESTIMATED = istr("X-EngineRouter-Estimated")


class Inference:
    """The handlers; what they share is in `around`."""

    def __init__(self, naming: Naming, around: Surroundings) -> None:
        self._naming = naming
        self._around = around
        self._residence = Residence(naming, around)

    async def serve(self, call: EdgeCall) -> web.StreamResponse:
        """Goes to the engine that owns the body's (or the form's) `model`, after a swap where that takes one.

        Errors before the commit become answers at the edge.
        """
        with self._recorded(call) as record:
            body = await call.read_body()
            ask = await understand(call.raw_path, body)
            record.asked, record.is_stream = ask.model or "", ask.wants_stream
            if (via := call.request.headers.get(VIA)) is not None:
                call.request.instance = self._around.instance
                self._refuse_loop(via)
            route = await self._route(call, ask)
            if ask.dialect is OLLAMA and (wish := residency_asked(ask.path, ask.json)) is not None:
                return await self._residence.serve(call, ask, route, wish, record)
            if isinstance(route, Chain):
                record.asked = route.asked
                return await Walking(self._around, call, ask, route, record).run()
            record.name(route)
            if route.asked != route.model_id and route.is_declared:
                self._around.telemetry.resolved(route)
            return await AnyExchange(self._around, call, ask, route, record).run()

    def _refuse_loop(self, via: str) -> None:
        own = self._around.instance
        if (why := walk.loop_of(walk.instances(via), own)) is not None:
            raise LoopDetected(why, instance=own)

    async def _route(self, call: EdgeCall, ask: Ask) -> Route:
        before = ask.previous_response_id
        if before is not None and (owned := self._around.owners.known(before, call.identity)) is not None:
            return await self._pinned(owned, call, ask)
        return await self._naming.route(ask.model, call.identity, self._naming.resident)

    async def _pinned(self, owned: Target, call: EdgeCall, ask: Ask) -> Target:
        """Who made the response that a request goes on with: also where another model is named, but within its fence.

        Raises Forbidden: of what must not leave the machine, nothing goes on elsewhere.
        """
        stays_local = owned.stays_local
        if ask.model is not None:
            named = await self._naming.route(ask.model, call.identity)
            targets = (named,) if isinstance(named, Target) else named.targets
            stays_local = stays_local or (bool(targets) and all(t.stays_local for t in targets))
        pinned = replace(owned, stays_local=stays_local)
        self._naming.check_fence(pinned, call.identity)
        return pinned

    async def follow(self, call: EdgeCall) -> web.StreamResponse:
        """GET, DELETE or cancel of a stored response: goes to the engine that made it, and never swaps."""
        with self._recorded(call) as record:
            target = self._around.owners.owner(call.params["id"], call.identity)
            self._naming.check_fence(target, call.identity)
            record.name(target)
            body = await call.read_body()
            exchange = AnyExchange(
                self._around, call, Ask(call.raw_path, body.raw, {"model": target.upstream_model}), target, record
            )
            # No await between the lease and its use.
            lease = self._around.coordinator.lease_beside(target.slot)
            if lease is None:
                raise self._around.owners.not_resident(call.params["id"], target)
            return await exchange.run(lease)

    async def count_tokens(self, call: EdgeCall) -> web.StreamResponse:
        """How many tokens a Messages request would cost: by its engine if that is resident, else estimated."""
        with self._recorded(call) as record:
            ask = await understand(call.raw_path, await call.read_body())
            record.asked = ask.model or ""
            target = one_target(await self._route(call, ask), self._naming, self._around, call)
            record.name(target)
            check_prompt(ask.json)
            count = await counted(self._around, call, ask, target, is_remote=self._naming.is_remote(target))
            headers = {RESOLVED: target.label}
            if count is None:
                headers[ESTIMATED] = "1"
                count = estimated_tokens(ask.json)
            record.status = 200
            return web.json_response({"input_tokens": count}, headers=headers)

    def _recorded(self, call: EdgeCall) -> Recorded:
        return Recorded(
            Record(dialect_of(call.raw_path).name, call.request_id, call.received_at), self._around.telemetry
        )
