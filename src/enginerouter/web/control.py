"""Health, status, metrics, and an operator's word: swap, unload, reset, hold, release.

Nothing here changes on a GET. Status is read from what the coordinator knows; no engine is asked.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any, NamedTuple, TypeVar

from aiohttp import web

from enginerouter import __version__
from enginerouter.errors import BadRequest, NotFound, RouterError, printable
from enginerouter.metrics import Registry
from enginerouter.routing.directory import Directory
from enginerouter.slots import SlotId
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.hold import Hold, HoldDrain, HoldMode
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
HOLD_MODES: tuple[HoldMode, ...] = ("refuse", "queue")
HOLD_DRAINS: tuple[HoldDrain, ...] = ("wait", "cut", "refuse")
LONGEST_OWNER = 100
LONGEST_HOLD_S = 30 * 24 * 3600
W = TypeVar("W", bound=str)
D = TypeVar("D")


class Named(NamedTuple):
    """What an operator named: a slot, and the word that was used."""

    slot: SlotId
    name: str


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
        await self._memory.refresh()
        now = time.monotonic()
        coordinator = self._coordinator
        slots = coordinator.slots.values()
        lanes = {id(lane): lane for lane in (coordinator.lane_of(s.id) for s in slots)}
        return json_answer(
            {
                "version": __version__,
                "uptime_s": round(now - self._began_at, 1),
                "memory": _memory_status(self._memory),
                "hold": _hold_status(coordinator.current_hold, now),
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
        slots = [(await self._named(call)).slot] if body.raw.strip() not in (b"", b"{}") else list(self._all())
        leaving = [str(s) for s in slots if self._coordinator.unload(s)]
        return json_answer({"unloading": leaving})

    async def reset(self, call: EdgeCall) -> web.StreamResponse:
        """Close the start circuit of the named slot, or of all."""
        body = await call.read_body()
        slots = [(await self._named(call)).slot] if body.raw.strip() not in (b"", b"{}") else list(self._all())
        for slot in slots:
            self._coordinator.reset(slot)
        return json_answer({"reset": [str(s) for s in slots]})

    async def hold(self, call: EdgeCall) -> web.StreamResponse:
        """Free all memory and keep it free for another program; 200 when it is free, or 202 at once with `?wait=0`."""
        asked = await self._object(call, {"owner", "mode", "expires_s", "drain"})
        began_at = time.monotonic()
        hold = self._coordinator.hold(
            _owner(asked.get("owner")),
            mode=_word(asked, "mode", HOLD_MODES, "refuse"),
            expires_s=_seconds(asked.get("expires_s")),
            drain=_word(asked, "drain", HOLD_DRAINS, None),
        )
        is_waited_for = call.raw_query != "wait=0"
        if is_waited_for:
            await hold.decided.wait()
            if isinstance(hold.outcome, RouterError):
                raise hold.outcome
        now = time.monotonic()
        answer = {"hold": _hold_status(hold, now), "seconds": round(now - began_at, 3)}
        return json_answer(answer, status=200 if is_waited_for else 202)

    async def release(self, call: EdgeCall) -> web.StreamResponse:
        """End the hold. With an owner only that owner's; without one, whoever has it."""
        asked = await self._object(call, {"owner"})
        owner = _owner(asked["owner"]) if "owner" in asked else None
        return json_answer({"released": self._coordinator.release(owner)})

    async def _object(self, call: EdgeCall, known: set[str]) -> dict[str, Any]:
        body = await call.read_body()
        asked = await json_object(body.raw or b"{}")
        if unknown := sorted(asked.keys() - known):
            names = ", ".join(sorted(known))
            raise BadRequest(f"{printable(unknown[0])!r} is not known here; there are: {names}")
        return asked

    def _all(self) -> list[SlotId]:
        return list(self._coordinator.slots)

    def _phase(self, slot: SlotId) -> str:
        return self._coordinator.slots[slot].phase.value

    async def _named(self, call: EdgeCall) -> Named:
        """The slot that `{"model": …}` or `{"engine": …}` in the body names."""
        body = await call.read_body()
        asked = await json_object(body.raw or b"{}")
        engine, model = asked.get("engine"), asked.get("model")
        if isinstance(engine, str):
            slot = SlotId(engine)
            if slot not in self._coordinator.slots:
                known = ", ".join(sorted({s.engine for s in self._coordinator.slots}))
                raise NotFound(f"no engine {printable(engine)!r} is configured and enabled; there are: {known}")
            return Named(slot, engine)
        if isinstance(model, str):
            target = self._directory.resolve(model, call.identity.may_name, lambda: None)
            return Named(target.slot, model)
        raise BadRequest('say which: {"model": "…"} or {"engine": "…"}')


def _owner(said: Any) -> str:
    if not isinstance(said, str) or not said.strip() or len(said) > LONGEST_OWNER or not said.isprintable():
        raise BadRequest(f'say who: {{"owner": "…"}}, up to {LONGEST_OWNER} printable characters')
    return said


def _seconds(said: Any) -> float | None:
    if said is None:
        return None
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 < said <= LONGEST_HOLD_S:
        raise BadRequest(f"expires_s has to be a number of seconds above 0, up to {LONGEST_HOLD_S}; without it: no end")
    return float(said)


def _word(asked: dict[str, Any], key: str, words: tuple[W, ...], default: D) -> W | D:
    said = asked.get(key)
    if said is None:
        return default
    for word in words:
        if said == word:
            return word
    raise BadRequest(f"{key} has to be one of: {', '.join(words)}")


def _hold_status(hold: Hold | None, now: float) -> dict[str, Any] | None:
    if hold is None:
        return None
    return {
        "owner": hold.owner,
        "mode": hold.mode,
        "is_free": hold.is_free,
        "since_s": round(now - hold.began_at, 1),
        "expires_in_s": None if hold.expires_at is None else round(max(0.0, hold.expires_at - now), 1),
    }


def _memory_status(memory: MemorySource) -> dict[str, Any]:
    status: dict[str, Any] = {
        "source": memory.name,
        "why": memory.why,
        "available_bytes": memory.available(),
        "devices": [dataclasses.asdict(d) for d in memory.devices()],
    }
    if memory.problem:
        status["problem"] = memory.problem
    return status


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
