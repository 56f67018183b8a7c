"""Health, status, metrics, and an operator's word: swap, unload, reset.

Nothing here changes on a GET. Status is read from what the coordinator knows; no engine is asked.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any, NamedTuple

from aiohttp import web

from enginerouter import __version__
from enginerouter.errors import BadRequest, NotFound, RouterError, printable
from enginerouter.metrics import Registry
from enginerouter.slots import SlotId
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.memory import MemorySource
from enginerouter.swap.model import Slot, Swap
from enginerouter.swap.phases import Phase
from enginerouter.tasks import TaskGroup
from enginerouter.web.catalog import json_answer
from enginerouter.web.edge import EdgeCall
from enginerouter.web.json_body import json_object
from enginerouter.web.keys import Identity
from enginerouter.web.naming import Naming
from enginerouter.web.telemetry import Telemetry

log = logging.getLogger(__name__)

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# The coordinator's loop turns once a second; a process that has not for this long is stuck.
STUCK_AFTER_S = 15.0


class Named(NamedTuple):
    """What an operator named: a slot, and the word that was used."""

    slot: SlotId
    name: str
    is_engine: bool = False


class Control:
    """The handlers of everything that is not inference."""

    def __init__(
        self,
        naming: Naming,
        coordinator: Coordinator,
        telemetry: Telemetry,
        registry: Registry,
        memory: MemorySource,
        tasks: TaskGroup,
    ) -> None:
        self._naming = naming
        self._coordinator = coordinator
        self._telemetry = telemetry
        self._registry = registry
        self._memory = memory
        self._tasks = tasks
        self._began_at = time.monotonic()

    async def root(self, call: EdgeCall) -> web.StreamResponse:
        """What an Ollama client looks for, and a hint for people."""
        if "text/html" in call.request.headers.get("Accept", ""):
            return web.Response(
                text=f"enginerouter {__version__} is running. Its state: /status, its models: /v1/models\n"
            )
        return web.Response(text="Ollama is running")

    async def health(self, call: EdgeCall) -> web.StreamResponse:
        silent_s = self._coordinator.seconds_since_turn()
        if silent_s > STUCK_AFTER_S:
            return json_answer({"status": "stuck", "silent_s": round(silent_s, 1)}, status=503)
        return json_answer({"status": "shutting down" if self._coordinator.is_closing else "ok"})

    async def metrics(self, call: EdgeCall) -> web.StreamResponse:
        return web.Response(body=self._registry.text().encode(), headers={"Content-Type": METRICS_TYPE})

    async def status(self, call: EdgeCall) -> web.StreamResponse:
        now = time.monotonic()
        coordinator = self._coordinator
        slots = coordinator.slots.values()
        lanes = {id(lane): lane for lane in (coordinator.lane_of(s.id) for s in slots)}
        return json_answer(
            {
                "version": __version__,
                "uptime_s": round(now - self._began_at, 1),
                "memory": {"source": self._memory.name, "available_bytes": self._memory.available()},
                "queued": coordinator.queued,
                "swaps": [_swap_status(lane.swap, now) for lane in lanes.values() if lane.swap is not None],
                "slots": [self._slot_status(s, now, call.identity) for s in slots],
                "last_swaps": {
                    str(slot): {
                        "result": report.result,
                        "total_s": round(report.total_s, 3),
                        "seconds": {k: round(v, 3) for k, v in report.seconds.items()},
                        "settle": report.settled.verdict.value if report.settled else None,
                        "freed": [str(s) for s in report.freed],
                    }
                    for slot, report in self._telemetry.last_swap.items()
                },
            }
        )

    def _slot_status(self, slot: Slot, now: float, identity: Identity) -> dict[str, Any]:
        status: dict[str, Any] = {
            "slot": str(slot.id),
            "engine": slot.id.engine,
            "models": self._naming.directory.models_of(slot.id, identity.may_name),
            "phase": slot.phase.value,
            "phase_s": round(now - slot.phase_since, 1) if slot.phase_since else None,
            "in_flight": len(slot.leases),
            "queued": len(slot.queue),
            "is_pinned": slot.spec.is_pinned,
            "eta_s": round(self._coordinator.eta_s(slot.id), 1),
            "learned": dataclasses.asdict(slot.learned),
        }
        if slot.circuit.failures:
            left = slot.circuit.open_until - now
            status["start_circuit"] = {
                "failures": slot.circuit.failures,
                "open_for_s": round(left, 1) if left > 0 else 0,
                "reason": slot.circuit.reason if identity.is_admin else None,
            }
        return status

    # --- an operator's word

    async def swap(self, call: EdgeCall) -> web.StreamResponse:
        """First in line; 200 when it is ready, or 202 at once with `?wait=0`."""
        named = await self._named(call)
        if call.raw_query == "wait=0":
            self._tasks.spawn(self._swap_later(named.slot), f"swap to {named.slot}")
            return json_answer({"slot": str(named.slot), "phase": self._phase(named.slot)}, status=202)
        began_at = time.monotonic()
        await self._coordinator.swap_to(named.slot)
        seconds = round(time.monotonic() - began_at, 3)
        return json_answer({"slot": str(named.slot), "phase": self._phase(named.slot), "seconds": seconds})

    async def _swap_later(self, slot: SlotId) -> None:
        try:
            await self._coordinator.swap_to(slot)
        except RouterError as error:
            log.warning("the swap to %s that was asked for did not happen: %s", slot, error.message)

    async def unload(self, call: EdgeCall) -> web.StreamResponse:
        """Free the named slot, or all of them; one in use goes when its last request ends."""
        body = await call.read_body()
        slots = await self._named_all(call) if body.raw.strip() not in (b"", b"{}") else self._all()
        leaving = [str(s) for s in slots if self._coordinator.unload(s)]
        return json_answer({"unloading": leaving})

    async def reset(self, call: EdgeCall) -> web.StreamResponse:
        """Close the start circuit of the named slot, or of all."""
        body = await call.read_body()
        slots = await self._named_all(call) if body.raw.strip() not in (b"", b"{}") else self._all()
        for slot in slots:
            self._coordinator.reset(slot)
        return json_answer({"reset": [str(s) for s in slots]})

    def _all(self) -> list[SlotId]:
        return list(self._coordinator.slots)

    def _phase(self, slot: SlotId) -> str:
        return self._coordinator.slots[slot].phase.value

    async def _named_all(self, call: EdgeCall) -> list[SlotId]:
        """The slot that a model names, or all slots of an engine."""
        named = await self._named(call)
        return self._of_engine(named.name) if named.is_engine else [named.slot]

    def _of_engine(self, engine: str) -> list[SlotId]:
        return [s for s in self._coordinator.slots if s.engine == engine]

    async def _named(self, call: EdgeCall) -> Named:
        """The slot that `{"model": …}` or `{"engine": …}` in the body names. Of several: the loaded, or the first."""
        body = await call.read_body()
        asked = await json_object(body.raw or b"{}")
        engine, model = asked.get("engine"), asked.get("model")
        if isinstance(engine, str):
            slots = self._of_engine(engine)
            if not slots:
                known = ", ".join(sorted({s.engine for s in self._coordinator.slots}))
                raise NotFound(f"no engine {printable(engine)!r} is configured and enabled; there are: {known}")
            resident = [s for s in slots if self._coordinator.slots[s].phase is not Phase.COLD]
            return Named((resident or slots)[0], engine, is_engine=True)
        if isinstance(model, str):
            target = await self._naming.target(model, call.identity)
            return Named(target.slot, model)
        raise BadRequest('say which: {"model": "…"} or {"engine": "…"}')


def _swap_status(swap: Swap, now: float) -> dict[str, Any]:
    return {
        "target": str(swap.plan.target) if swap.plan.target is not None else None,
        "reason": swap.plan.reason,
        "step": swap.step,
        "step_s": round(now - swap.step_since, 2),
        "total_s": round(now - swap.began_at, 2),
        "freed": [str(s) for s in swap.freed],
        "seconds": {k: round(v, 3) for k, v in swap.seconds.items()},
    }
