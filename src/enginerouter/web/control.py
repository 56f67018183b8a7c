"""Health, status, metrics, and an operator's word: swap, unload, reset.

Nothing here changes on a GET. Status is read from what the coordinator knows; no engine is asked.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from enginerouter import __version__
from enginerouter.errors import BadRequest, NotFound, RouterError, printable
from enginerouter.metrics import Registry
from enginerouter.routing.directory import Directory
from enginerouter.slots import SlotId
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.memory import MemorySource
from enginerouter.swap.model import Slot, Swap
from enginerouter.tasks import TaskGroup
from enginerouter.web.catalog import json_answer
from enginerouter.web.edge import EdgeCall
from enginerouter.web.json_body import json_object
from enginerouter.web.keys import Identity
from enginerouter.web.telemetry import Telemetry

log = logging.getLogger(__name__)

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# The coordinator's loop turns once a second; a process that has not for this long is stuck.
STUCK_AFTER_S = 15.0


class Control:
    """The handlers of everything that is not inference."""

    def __init__(
        self,
        directory: Directory,
        coordinator: Coordinator,
        telemetry: Telemetry,
        registry: Registry,
        memory: MemorySource,
        tasks: TaskGroup,
    ) -> None:
        self._directory = directory
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
        shown = self._shown_to(call.identity)
        slots = [s for s in coordinator.slots.values() if s.id in shown]
        lanes = {id(lane): lane for lane in (coordinator.lane_of(s) for s in coordinator.slots)}
        swaps = [lane.swap for lane in lanes.values() if lane.swap is not None]
        return json_answer(
            {
                "version": __version__,
                "uptime_s": round(now - self._began_at, 1),
                "memory": {"source": self._memory.name, "available_bytes": self._memory.available()},
                "queued": coordinator.queued,
                "swaps": [_swap_status(s, now, shown) for s in swaps if _is_shown(s, shown)],
                "slots": [self._slot_status(s, now, call.identity) for s in slots],
                "last_swaps": {
                    str(slot): {
                        "result": report.result,
                        "total_s": round(report.total_s, 3),
                        "seconds": {k: round(v, 3) for k, v in report.seconds.items()},
                        "settle": report.settled.verdict.value if report.settled else None,
                        "freed": [str(s) for s in report.freed if s in shown],
                    }
                    for slot, report in self._telemetry.last_swap.items()
                    if slot in shown
                },
            }
        )

    def _shown_to(self, identity: Identity) -> set[SlotId]:
        """The slots that this key may know of: those it may use; an admin key all."""
        may_name = identity.may_name
        return {s for s in self._coordinator.slots if identity.is_admin or self._directory.may_use(s, may_name)}

    def _slot_status(self, slot: Slot, now: float, identity: Identity) -> dict[str, Any]:
        status: dict[str, Any] = {
            "slot": str(slot.id),
            "engine": slot.id.engine,
            "models": self._directory.models_of(slot.id, identity.may_name),
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
        slot = self._named(await _asked(call), call.identity)
        if not waits(call.raw_query):
            self._tasks.spawn(self._swap_later(slot), f"swap to {slot}")
            return json_answer({"slot": str(slot), "phase": self._phase(slot)}, status=202)
        began_at = time.monotonic()
        await self._coordinator.swap_to(slot)
        seconds = round(time.monotonic() - began_at, 3)
        return json_answer({"slot": str(slot), "phase": self._phase(slot), "seconds": seconds})

    async def _swap_later(self, slot: SlotId) -> None:
        try:
            await self._coordinator.swap_to(slot)
        except RouterError as error:
            log.warning("the swap to %s that was asked for did not happen: %s", slot, error.message)

    async def unload(self, call: EdgeCall) -> web.StreamResponse:
        """Free the named slot, or all of them; one in use goes when its last request ends."""
        slots = await self._named_or_all(call)
        leaving = [str(s) for s in slots if self._coordinator.unload(s)]
        return json_answer({"unloading": leaving})

    async def reset(self, call: EdgeCall) -> web.StreamResponse:
        """Close the start circuit of the named slot, or of all."""
        slots = await self._named_or_all(call)
        for slot in slots:
            self._coordinator.reset(slot)
        return json_answer({"reset": [str(s) for s in slots]})

    def _phase(self, slot: SlotId) -> str:
        return self._coordinator.slots[slot].phase.value

    async def _named_or_all(self, call: EdgeCall) -> list[SlotId]:
        """The slot that the body names; all of them if it is empty or `{}`."""
        asked = await _asked(call)
        return [self._named(asked, call.identity)] if asked else list(self._coordinator.slots)

    def _named(self, asked: Mapping[str, Any], identity: Identity) -> SlotId:
        """The slot that `{"model": …}` or `{"engine": …}` names, or both together."""
        engine, model = asked.get("engine"), asked.get("model")
        if any(name is not None and not isinstance(name, str) for name in (engine, model)):
            raise BadRequest("'model' and 'engine' must be text")
        slots = self._coordinator.slots
        if engine is not None and SlotId(engine) not in slots:
            known = sorted({s.engine for s in slots})
            close = get_close_matches(engine, known, n=1, cutoff=0.6)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
            raise NotFound(f"no engine {printable(engine)!r} is configured and enabled; {hint}")
        if model is not None:
            target = self._directory.resolve(model, identity.may_name, lambda: None)
            if engine is not None and target.engine != engine:
                raise BadRequest(f"model {printable(model)!r} belongs to engine {target.engine!r}, not to {engine!r}")
            return target.slot
        if engine is not None:
            return SlotId(engine)
        raise BadRequest('say which: {"model": "…"} or {"engine": "…"}')


async def _asked(call: EdgeCall) -> dict[str, Any]:
    body = await call.read_body()
    if body.file is not None:
        raise BadRequest("the body must be a JSON object")
    return await json_object(body.raw if body.raw.strip() else b"{}")


def waits(query: str) -> bool:
    """Whether the answer is to come when it is done; `wait=0` says no. Other parameters mean nothing here."""
    said = [value.lower() for name, value in parse_qsl(query, keep_blank_values=True) if name == "wait"]
    return not said or said[-1] not in ("0", "false", "no")


def _is_shown(swap: Swap, shown: Collection[SlotId]) -> bool:
    target = swap.plan.target
    return target in shown if target is not None else any(s in shown for s in swap.plan.victims)


def _swap_status(swap: Swap, now: float, shown: Collection[SlotId]) -> dict[str, Any]:
    return {
        "target": str(swap.plan.target) if swap.plan.target is not None else None,
        "reason": swap.plan.reason,
        "step": swap.step,
        "step_s": round(now - swap.step_since, 2),
        "total_s": round(now - swap.began_at, 2),
        "freed": [str(s) for s in swap.freed if s in shown],
        "seconds": {k: round(v, 3) for k, v in swap.seconds.items()},
    }
