"""POST /admin/explain: what would become of a request – who serves it, what it waits for and evicts, what is changed
in it. The body is the request itself, `?path=` the path it would go to. Nothing changes: no engine is asked or started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from enginerouter.dialects.params import changed, of_translated, told
from enginerouter.dialects.translation import dialect_of, plan
from enginerouter.errors import BadRequest, NotBuilt, RouterError
from enginerouter.proxy.upstream import Upstream
from enginerouter.routing import walk
from enginerouter.routing.health import Health
from enginerouter.routing.target import Chain, Route, Target
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.phases import Phase
from enginerouter.web.catalog import json_answer
from enginerouter.web.edge import EdgeCall
from enginerouter.web.json_body import json_object, model_of
from enginerouter.web.keys import Identity
from enginerouter.web.naming import Naming
from enginerouter.web.params import ModelParams
from enginerouter.web.shapes.control import Explained, ExplainedTarget, Wait

CHAT = "/v1/chat/completions"
# What a key may not know of is counted under this name.
ANOTHER = "another"


class Explain:
    def __init__(
        self,
        naming: Naming,
        params: ModelParams,
        coordinator: Coordinator,
        health: Health,
        upstreams: Mapping[str, Upstream],
        has_infill: Callable[[Target], bool],
    ) -> None:
        self._upstreams = upstreams
        self._has_infill = has_infill
        self._naming = naming
        self._params = params
        self._coordinator = coordinator
        self._health = health

    async def explain(self, call: EdgeCall) -> web.StreamResponse:
        """What the request in the body, sent to `?path=`, would be served by, wait for and evict. Changes nothing."""
        body = await call.read_body()
        if body.file is not None or not body.raw:
            raise BadRequest("send the request to be explained: a JSON object with 'model'")
        asked = await json_object(body.raw)
        path = dict(parse_qsl(call.raw_query)).get("path", CHAT)
        route = await self._naming.route(model_of(asked), call.identity)
        targets = (route,) if isinstance(route, Target) else route.targets
        told_of = [self._target(target, route, call.identity, path, asked) for target in targets]
        explained: Explained = {
            "asked": route.asked,
            # The first that is neither passed over nor refused; others may follow where a chain goes on.
            "served_by": next((t["target"] for t in told_of if not t["passed_over"] and not t["refused"]), None),
            "targets": told_of,
            "unknown": [] if isinstance(route, Target) else list(route.unknown),
        }
        return json_answer(explained)

    def _target(
        self, target: Target, route: Route, identity: Identity, path: str, asked: dict[str, Any]
    ) -> ExplainedTarget:
        """What would become of the request at one target, were it the first."""
        passed_over = self._passed_over(target, route, identity, path)
        if passed_over == walk.FENCED:
            return {"target": target.label if identity.is_admin else None, "passed_over": passed_over, "refused": None}
        wait = self._wait(target, identity)
        engine = self._upstreams[target.engine]
        sent_path, body, rules = path, asked, self._params.of(target)
        try:
            translation = plan(
                dialect_of(path),
                path,
                asked,
                engine.dialects,
                answer_id="",
                is_strict=engine.is_strict,
                has_infill=engine.has_infill or self._has_infill(target),
            )
            if translation is not None:
                sent_path, body = translation.path, translation.body
                rules = of_translated(rules, asked, body)
        except (BadRequest, NotBuilt) as refused:
            wait["refused"] = wait["refused"] or {"code": refused.code, "message": refused.message}
        _, changes = changed(sent_path, body, rules, target.upstream_model)
        return {
            "target": target.label,
            "model": target.upstream_model,
            # Another one where the engine speaks another dialect, and the request is translated.
            "path": sent_path,
            "passed_over": passed_over,
            **wait,
            "changes": told(changes),
        }

    def _passed_over(self, target: Target, route: Route, identity: Identity, path: str) -> str | None:
        """Why a chain would not ask this target now. One that is named itself is asked in any case."""
        if isinstance(route, Target):
            return None
        reason = walk.pass_over(
            target,
            route,
            path=path,
            is_fenced=self._naming.is_fenced(target, identity),
            is_unconfigured=self._naming.is_unconfigured(target),
            instance=None,
            via=(),
        )
        circuit = self._health.state(target.engine, target.model_id)
        if not reason and circuit.retry_after_s:
            reason = walk.closed_by(circuit)
        if not reason and not self._naming.is_remote(target):
            reason = self._not_waited_for(target, route, is_trial=circuit.state == "half_open")
        return reason or None

    def _not_waited_for(self, target: Target, chain: Chain, *, is_trial: bool) -> str:
        """Whether a swap to a target would cost others too much for a trial, or take too long for the chain."""
        coordinator = self._coordinator
        if is_trial and coordinator.disturbs(target.slot, within_s=self._health.back_off_s):
            return walk.CIRCUIT_OPEN
        return walk.SLOW if walk.is_too_slow(chain, coordinator.known_eta_s(target.slot)) else ""

    def _wait(self, target: Target, identity: Identity) -> Wait:
        """What stands between the request and its engine now."""
        coordinator = self._coordinator
        slot = coordinator.slots[target.slot]
        is_ready = slot.phase is Phase.READY
        refusal: RouterError | None = None if is_ready else coordinator.refusal_of(slot.id)
        try:
            leaving = [] if is_ready or refusal is not None else coordinator.would_evict(slot.id)
        except RouterError as error:
            leaving, refusal = [], error
        may_use, may_name = self._naming.directory.may_use, identity.may_name
        evicts = [str(s) if identity.is_admin or may_use(s, may_name) else ANOTHER for s in leaving]
        circuit_s = slot.circuit.open_until - time.monotonic()
        return {
            "slot": str(slot.id),
            "phase": slot.phase.value,
            "in_flight": len(slot.leases),
            "queued": len(slot.queue),
            "eta_s": 0.0 if is_ready else round(coordinator.eta_s(slot.id), 1),
            "evicts": evicts,
            "refused": None if refusal is None else {"code": refusal.code, "message": refusal.message},
            "start_circuit_open_for_s": round(circuit_s, 1) if circuit_s > 0 and not is_ready else 0,
            "is_held": coordinator.current_hold is not None,
        }
