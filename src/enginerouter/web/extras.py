"""What llama.cpp serves beside the APIs of others: its tokenizer by model, and any path of an engine for admins.

What only looks never loads: a GET, and what asks the tokenizer. Where the engine is not in memory, the answer is 409
and says what to do.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress

from aiohttp import web

from enginerouter.errors import BadRequest, NotFound, NotResident, UnknownModel, printable
from enginerouter.proxy.upstream import Upstream
from enginerouter.routing.target import Target
from enginerouter.slots import SlotId
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.model import Lease, Slot
from enginerouter.swap.phases import Phase
from enginerouter.web.ask import understand
from enginerouter.web.body import Body
from enginerouter.web.edge import EdgeCall
from enginerouter.web.json_body import json_object, model_of
from enginerouter.web.naming import Naming, anything, nothing_resident
from enginerouter.web.ollama_management import is_destructive, switched_off
from enginerouter.web.passing import RawBody, pass_on
from enginerouter.web.telemetry import Record, Recorded, Telemetry

# Requests for an answer of the model: they are served like a chat.
GENERATING = ("/infill", "/completion", "/rerank", "/reranking")
# Requests that need the model's vocabulary and nothing of its work.
LOOKING = ("/tokenize", "/detokenize", "/apply-template")
NEVER_LOAD = frozenset({*LOOKING, "/v1/messages/count_tokens", "/v1/chat/completions/input_tokens"})
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class Extras:
    """The handlers. `addresses`: the URL that a ready slot answers at; `bases`: what is configured of it, by engine."""

    def __init__(
        self,
        naming: Naming,
        coordinator: Coordinator,
        telemetry: Telemetry,
        upstreams: Mapping[str, Upstream],
        addresses: Mapping[SlotId, str],
        bases: Mapping[str, str],
        *,
        allows_destructive: bool,
    ) -> None:
        self._naming = naming
        self._coordinator = coordinator
        self._telemetry = telemetry
        self._upstreams = upstreams
        self._addresses = addresses
        self._bases = bases
        self._allows_destructive = allows_destructive

    async def look(self, call: EdgeCall) -> web.StreamResponse:
        """llama.cpp's tokenizer by model; of a chain, the first target in memory. Never loads: 409 where none is."""
        with self._recorded(call) as record:
            ask = await understand(call.raw_path, await call.read_body())
            route = await self._naming.route(ask.model, call.identity, self._naming.resident)
            fits = [route] if isinstance(route, Target) else route.targets
            targets = [t for t in fits if not self._naming.is_fenced(t, call.identity)]
            for target in targets:
                body = await ask.body_for(target.upstream_model)
                # No await between the lease and its use.
                if (lease := self._coordinator.lease_beside(target.slot)) is not None:
                    record.name(target)
                    return await self._passed(call, lease, call.raw_path, body, target.label, record)
            if not targets:
                raise UnknownModel(route.asked, [])
            raise self._not_resident(call.raw_path, targets[0].slot)

    async def upstream(self, call: EdgeCall) -> web.StreamResponse:
        """Any path of an engine, as it is. A GET loads nothing."""
        engine, path = call.params["engine"], "/" + call.params["path"]
        self._refuse_destructive(call, self._bases.get(engine, ""), path)
        with self._recorded(call) as record:
            record.asked = engine if engine in self._upstreams else ""
            body = await call.read_body()
            slot = await self._slot_of(engine, body, call)
            record.label = str(slot)
            if call.request.method in ("GET", "HEAD") or path in NEVER_LOAD:
                lease = self._coordinator.lease_beside(slot)
                if lease is None:
                    raise self._not_resident(f"{call.request.method} {path}", slot)
            else:
                lease = self._coordinator.try_lease(slot) or await self._queue(slot, call, record)
            return await self._passed(call, lease, path, body.file or body.raw, str(slot), record)

    async def _passed(
        self, call: EdgeCall, lease: Lease, path: str, body: RawBody, served_by: str, record: Record
    ) -> web.StreamResponse:
        with lease:
            slot = lease.slot.id
            # As it was launched, it may answer elsewhere than it is configured.
            self._refuse_destructive(call, self._addresses[slot], path)
            response = await pass_on(
                call,
                self._upstreams[slot.engine],
                self._addresses[slot],
                path,
                body,
                lease=lease,
                served_by=served_by,
            )
            record.status = response.status
            return response

    def _refuse_destructive(self, call: EdgeCall, base: str, path: str) -> None:
        if not self._allows_destructive and is_destructive(base, path):
            raise switched_off(f"{call.request.method} {printable(path)} of an engine")

    async def _queue(self, slot: SlotId, call: EdgeCall, record: Record) -> Lease:
        """Wait for a lease. Whatever ends the wait, the place in the queue is given back."""
        began_at = time.monotonic()
        ticket = self._coordinator.enqueue(slot, priority=call.identity.priority, key=call.identity.name)
        try:
            return await ticket.granted
        except BaseException:
            self._coordinator.leave(ticket)
            raise
        finally:
            record.queue_s = time.monotonic() - began_at

    async def _slot_of(self, engine: str, body: Body, call: EdgeCall) -> SlotId:
        """The one slot of an engine; of several, that of the model in the body, else the one in memory, else the first.

        Raises NotFound.
        """
        slots = [
            slot
            for slot in self._coordinator.slots.values()
            if slot.id.engine == engine and engine in self._upstreams and self._naming.may_see(slot.id, call.identity)
        ]
        if not slots:
            raise NotFound(f"no engine {printable(engine)!r} is known here; GET /status lists them")
        if len(slots) > 1 and body.raw[:1] == b"{":
            with suppress(BadRequest, UnknownModel):
                model = model_of(await json_object(body.raw))
                route = self._naming.directory.route(f"{engine}/{model}", anything, nothing_resident)
                if isinstance(route, Target) and route.slot in {s.id for s in slots}:
                    return route.slot
        return max(slots, key=_use).id

    def _not_resident(self, what: str, slot: SlotId) -> NotResident:
        phase = self._coordinator.slots[slot].phase.value
        return NotResident(
            f"{printable(what)} needs {str(slot)!r} in memory, which is {phase}, and never loads an engine; send it a "
            f"request that does (a chat), or POST /admin/swap"
        )

    def _recorded(self, call: EdgeCall) -> Recorded:
        return Recorded(Record("openai", call.request_id, call.received_at), self._telemetry)


def _use(slot: Slot) -> tuple[bool, float]:
    return (slot.phase in (Phase.READY, Phase.DRAINING), slot.active_at)
