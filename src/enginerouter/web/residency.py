"""Ollama requests that want no answer but load or unload a model, and what `keep_alive` says of those that want one.

An engine that speaks Ollama does as it is told itself. For every other one the router does it: a load is a swap like
any other, an unload frees the slot once it is idle, and a `keep_alive` is the time that the slot may then be idle.

A load is answered with one object. Who asked for a stream, as `ollama run` does, gets its keep-alives meanwhile.
"""

from __future__ import annotations

import json
import time

from aiohttp import ClientResponse, web
from multidict import CIMultiDict

from enginerouter.dialects import ollama
from enginerouter.dialects.beginnings import error_in_whole
from enginerouter.dialects.ollama import Residency
from enginerouter.dialects.reading import compact
from enginerouter.errors import Forbidden, UpstreamFailed
from enginerouter.routing.target import Chain, Route, Target
from enginerouter.swap.model import Lease
from enginerouter.swap.phases import Phase
from enginerouter.web.answering import end_stream, is_packed
from enginerouter.web.ask import Ask
from enginerouter.web.edge import EdgeCall
from enginerouter.web.exchange import ERROR_BYTES, Exchange
from enginerouter.web.naming import Naming
from enginerouter.web.surroundings import Surroundings
from enginerouter.web.telemetry import Record
from enginerouter.web.translating import AnyExchange

JSON = "application/json"


class Loading(Exchange):
    """A wait for a slot, answered when it is ready: nothing is asked of its engine."""

    # What was asked for, as the answer says it.
    wish = Residency("load", None)

    async def _relay_with(self, lease: Lease) -> web.StreamResponse:
        with lease:
            if self.wish.keep_alive_s is not None:
                self._coordinator.keep_for(self._target.slot, self.wish.keep_alive_s)
        self._record.status, self._record.first_byte_at = 200, time.monotonic()
        load_s = time.monotonic() - self._record.began_at
        body = _said(self._ask, self._target, self.wish, load_s)
        await self._client.pause()
        if self._client.is_committed:
            await self._client.write(body + b"\n" if self._client.is_event_stream else body, time.monotonic())
            return await self._client.finish()
        headers: CIMultiDict[str] = CIMultiDict({"Content-Type": JSON})
        self._add_ours(headers)
        return web.Response(headers=headers, body=body)


class ToldToLoad(AnyExchange):
    """A load that the engine does itself. It answers with one object: after the commit, the only line of the stream."""

    async def _relay_after_commit(self, answer: ClientResponse, lease: Lease) -> web.StreamResponse:
        client, engine = self._client, self._target.engine
        if not client.is_event_stream or answer.status >= 400 or answer.content_type != JSON or is_packed(answer):
            return await super()._relay_after_commit(answer, lease)
        body = self._note_whole(answer, await self._read(answer, at_most=ERROR_BYTES))
        if (failed := error_in_whole(body)) is not None:
            return await end_stream(client, self._ask, failed.status, failed.fields)
        try:
            said = json.loads(body)
        except (ValueError, RecursionError):
            raise UpstreamFailed(
                engine, f"{engine} was told to load {self._target.label}, and said no answer"
            ) from None
        await client.write(compact(said).encode() + b"\n", time.monotonic())
        return await client.finish()


class Residence:
    """Loads and unloads what a request names. Of a chain: what is resident, else its first target that may be used."""

    def __init__(self, naming: Naming, around: Surroundings) -> None:
        self._naming = naming
        self._around = around

    async def serve(
        self, call: EdgeCall, ask: Ask, route: Route, wish: Residency, record: Record
    ) -> web.StreamResponse:
        target = one_target(route, self._naming, self._around, call)
        record.name(target)
        record.is_stream = False  # the answer is one object in any case
        speaks_it = "ollama" in self._around.upstreams[target.engine].dialects
        if wish.action == "load":
            if speaks_it:
                return await ToldToLoad(self._around, call, ask, target, record).run()
            loading = Loading(self._around, call, ask, target, record)
            loading.wish = wish
            return await loading.run()
        ask.wants_stream = False  # nothing is waited for
        if speaks_it and (lease := self._around.coordinator.lease_beside(target.slot)) is not None:
            # It may have other models in memory, which stay.
            return await AnyExchange(self._around, call, ask, target, record).run(lease)
        self._unload(call, target)
        record.status = 200
        return web.Response(body=_said(ask, target, wish, 0.0), content_type=JSON)

    def _unload(self, call: EdgeCall, target: Target) -> None:
        """Frees the slot when its last lease ends. What is not resident is left alone."""
        slot = self._around.coordinator.slots[target.slot]
        if slot.spec.is_pinned and not call.identity.is_admin:
            raise Forbidden(f"{target.label} is pinned in memory: it takes an admin key to unload it")
        if not self._naming.is_remote(target):
            self._around.coordinator.unload(target.slot)


def one_target(route: Route, naming: Naming, around: Surroundings, call: EdgeCall) -> Target:
    """What is meant where only one target can be. Raises Forbidden if this key may use none."""
    if not isinstance(route, Chain):
        return route
    usable = [t for t in route.targets if not naming.is_fenced(t, call.identity)]
    if not usable:
        raise Forbidden(f"no target of {route.asked!r} may be used with this key, or none is known now")
    slots = around.coordinator.slots
    return next((t for t in usable if slots[t.slot].phase is Phase.READY), usable[0])


def _said(ask: Ask, target: Target, wish: Residency, load_s: float) -> bytes:
    model = ask.model or target.model_id
    return compact(ollama.residency_answer(ask.path, model, wish, time.time(), load_s)).encode()
