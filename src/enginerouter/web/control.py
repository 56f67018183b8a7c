"""Health, status, metrics, and an operator's word: swap, unload, reset, hold, release.

Nothing here changes on a GET. Status is read from what the coordinator knows; no engine is asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl

from aiohttp import web

from enginerouter import __version__
from enginerouter.cache.answers import AnswerCache
from enginerouter.errors import BadRequest, NotFound, RouterError, printable
from enginerouter.metrics import Registry
from enginerouter.routing.health import Health
from enginerouter.routing.target import Target
from enginerouter.slots import SlotId
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.hold import Hold, HoldDrain, HoldMode
from enginerouter.swap.memory import ChosenSource, Device
from enginerouter.swap.model import Learned, Slot, Swap
from enginerouter.swap.phases import Phase
from enginerouter.tasks import TaskGroup
from enginerouter.web.catalog import json_answer
from enginerouter.web.edge import EdgeCall
from enginerouter.web.health import HealthView
from enginerouter.web.json_body import json_object
from enginerouter.web.keys import Identity
from enginerouter.web.naming import Naming
from enginerouter.web.reload import Reloader
from enginerouter.web.shapes import control as shapes
from enginerouter.web.telemetry import Telemetry, swap_fields

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


class Control:
    """The handlers of everything that is not inference."""

    def __init__(
        self,
        naming: Naming,
        coordinator: Coordinator,
        telemetry: Telemetry,
        registry: Registry,
        memory: ChosenSource,
        tasks: TaskGroup,
        health: Health,
        view: HealthView,
        reloader: Reloader,
        cache: AnswerCache | None = None,
        *,
        began_at: float,
    ) -> None:
        self._naming = naming
        self._coordinator = coordinator
        self._telemetry = telemetry
        self._registry = registry
        self._memory = memory
        self._tasks = tasks
        self._cache = cache
        self._health = health
        self._view = view
        self._reloader = reloader
        self._began_at = began_at

    async def health(self, call: EdgeCall) -> web.StreamResponse:
        """`{"status": "ok"}`; 503 and `stuck` when the coordinator has not turned for 15 s. Wakes nothing."""
        silent_s = self._coordinator.seconds_since_turn()
        if silent_s > STUCK_AFTER_S:
            return json_answer(shapes.Alive(status="stuck", silent_s=round(silent_s, 1)), status=503)
        status: Literal["ok", "shutting down"] = "shutting down" if self._coordinator.is_closing else "ok"
        return json_answer(shapes.Alive(status=status, name="enginerouter"))

    async def metrics(self, call: EdgeCall) -> web.StreamResponse:
        """Prometheus's text format, see metrics.md."""
        return web.Response(body=self._registry.text().encode(), headers={"Content-Type": METRICS_TYPE})

    async def status(self, call: EdgeCall) -> web.StreamResponse:
        """Slots and their phases, the queue, swaps that run and the last ones, memory, hold, circuits."""
        return json_answer(await self.snapshot(call.identity))

    async def snapshot(self, identity: Identity) -> shapes.Status:
        """The whole state, as this key may see it."""
        await self._memory.refresh()
        now = time.monotonic()
        coordinator = self._coordinator
        shown = self._shown_to(identity)
        slots = [s for s in coordinator.slots.values() if s.id in shown]
        lanes = {id(lane): lane for lane in (coordinator.lane_of(s) for s in coordinator.slots)}
        swaps = [lane.swap for lane in lanes.values() if lane.swap is not None]
        return {
            "version": __version__,
            "uptime_s": round(now - self._began_at, 1),
            "memory": _memory_status(self._memory),
            "hold": _hold_status(coordinator.current_hold, now),
            "cache": _cache_status(self._cache),
            "queued": coordinator.queued,
            "reload": self._reloader.status(is_admin=identity.is_admin),
            "health": self._view.standings(identity),
            "swaps": [_swap_status(s, now, shown) for s in swaps if _is_shown(s, shown)],
            "slots": [self._slot_status(s, now, identity) for s in slots],
            "last_swaps": {
                str(slot): swap_fields(report, self._telemetry.swapped_at[slot], freed=shown)
                for slot, report in self._telemetry.last_swap.items()
                if slot in shown
            },
        }

    def _shown_to(self, identity: Identity) -> set[SlotId]:
        """The slots that this key may know of: those it may use; an admin key all."""
        return {s for s in self._coordinator.slots if identity.is_admin or self._naming.may_see(s, identity)}

    def _slot_status(self, slot: Slot, now: float, identity: Identity) -> shapes.SlotStatus:
        status: shapes.SlotStatus = {
            "slot": str(slot.id),
            "engine": slot.id.engine,
            "models": self._naming.models_of(slot.id, identity),
            "phase": slot.phase.value,
            "phase_s": round(now - slot.phase_since, 1) if slot.phase_since else None,
            "in_flight": len(slot.leases),
            "queued": len(slot.queue),
            "is_pinned": slot.spec.is_pinned,
            "is_remote": not slot.spec.is_swapped,
            "asleep_bytes": slot.kept_bytes if slot.is_asleep else None,
            "is_outdated": slot.is_outdated,
            "eta_s": round(self._coordinator.eta_s(slot.id), 1),
            "learned": _learned(slot.learned),
        }
        if identity.is_admin and slot.queue:
            status["waiting"] = _waiting(slot, now)
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
        """Load `{"model": …}` or `{"engine": …}`, first in line: 200 when it is ready, 202 at once with `?wait=0`."""
        slots = await self._named(await _asked(call), call.identity)
        return await self._swap_to(self._one_of(slots), call)

    async def _swap_to(self, slot: SlotId, call: EdgeCall) -> web.Response:
        key = call.identity.name
        if not waits(call.raw_query):
            self._tasks.spawn(self._swap_later(slot, key), f"swap to {slot}")
            return json_answer(self._state(slot), status=202)
        began_at = time.monotonic()
        await self._coordinator.swap_to(slot, key=key)
        swapped = self._state(slot)
        swapped["seconds"] = round(time.monotonic() - began_at, 3)
        return json_answer(swapped)

    async def _swap_later(self, slot: SlotId, key: str) -> None:
        try:
            await self._coordinator.swap_to(slot, key=key)
        except RouterError as error:
            log.warning("the swap to %s that was asked for did not happen: %s", slot, error.message)

    async def unload(self, call: EdgeCall) -> web.StreamResponse:
        """Free `{"model": …}` or `{"engine": …}`, or with `{}` all; one in use goes when its last request ends.

        Also what others loaded, which is looked for first, and what sleeps.
        """
        await self._coordinator.look_around()
        asked = await _asked(call)
        slots = await self._named(asked, call.identity) if asked else list(self._coordinator.slots)
        # A provider holds no memory here, and is always there.
        here = [s for s in slots if self._coordinator.slots[s].spec.is_swapped]
        if slots and asked and not here:
            raise BadRequest(f"engine {slots[0].engine!r} is served elsewhere: nothing of it is in memory here")
        leaving = [str(s) for s in here if self._coordinator.unload(s)]
        return json_answer(shapes.Unloading(unloading=leaving))

    async def reset(self, call: EdgeCall) -> web.StreamResponse:
        """Close start and health circuits of what is named, or of everything; free once more what would not go."""
        asked = await self._object(call, {"engine", "model"})
        model, engine = asked.get("model"), asked.get("engine")
        if isinstance(model, str) and isinstance(engine, str | None):
            targets = await self._targets(model, engine, call.identity)
            slots = list(dict.fromkeys(t.slot for t in targets))
            closed = [key for t in targets for key in self._health.reset(t.engine, t.model_id)]
        else:
            slots = await self._named(asked, call.identity) if asked else list(self._coordinator.slots)
            closed = self._health.reset(engine)
        for slot in slots:
            self._coordinator.reset(slot)
        circuits = [engine if model is None else f"{engine}/{model}" for engine, model in closed]
        return json_answer(shapes.Reset(reset=[str(s) for s in slots], circuits=circuits))

    async def _targets(self, model: str, engine: str | None, identity: Identity) -> list[Target]:
        """What a name leads to; of a chain all its targets, or those of one engine."""
        route = await self._naming.route(model, identity)
        targets = [route] if isinstance(route, Target) else route.targets
        found = [t for t in targets if engine in (None, t.engine) and not self._naming.is_fenced(t, identity)]
        if not found and engine is not None:
            known = " and ".join(dict.fromkeys(repr(t.engine) for t in targets))
            raise BadRequest(f"model {printable(model)!r} belongs to {known}, not to engine {printable(engine)!r}")
        return found

    # --- the routes of the sidecar that profiles come from

    async def models_available(self, call: EdgeCall) -> web.StreamResponse:
        """What can be switched to, as a sidecar for profiles told it."""
        listed = [m for m in await self._naming.listed(call.identity) if m.alias_of is None]
        models = [
            {"id": m.id, "name": m.display_name, "engine": m.engine, "status": self._phase(m.slot)} for m in listed
        ]
        return json_answer({"models": models, "active": self._active(call.identity)})

    async def models_status(self, call: EdgeCall) -> web.StreamResponse:
        """What is loaded, and what is being switched to."""
        slots, now = self._coordinator.slots, time.monotonic()
        lanes = {id(lane): lane for lane in (self._coordinator.lane_of(s) for s in slots)}
        swaps = [lane.swap for lane in lanes.values() if lane.swap is not None and lane.swap.plan.target is not None]
        active, switching = self._active(call.identity), None
        if swaps and swaps[0].plan.target is not None:
            target = swaps[0].plan.target
            models = self._naming.models_of(target, call.identity)
            seconds = round(now - swaps[0].began_at, 2)
            switching = {"model": models[0] if models else None, "step": swaps[0].step, "seconds": seconds}
        status = "switching" if switching else "ready" if active is not None else "idle"
        return json_answer({"status": status, "active": active, "switching_to": switching})

    async def models_switch(self, call: EdgeCall) -> web.StreamResponse:
        """As `/admin/swap`, by the model's id alone: `{"model": …}`, or `{"profile": …}` as the sidecar called it."""
        asked = await _asked(call)
        name = asked.get("model", asked.get("profile"))
        if not isinstance(name, str):
            raise BadRequest('say which: {"model": "…"}; GET /models/available lists them')
        target = await self._naming.target(name, call.identity)
        return await self._swap_to(target.slot, call)

    def _active(self, identity: Identity) -> str | None:
        """The model that was used last, of those that are ready on this machine."""
        slots = self._coordinator.slots.values()
        ready = [s for s in slots if s.phase is Phase.READY and self._naming.is_here(s.id)]
        for slot in sorted(ready, key=lambda s: s.active_at, reverse=True):
            if models := self._naming.models_of(slot.id, identity):
                return models[0]
        return None

    # --- what was named

    def _state(self, slot: SlotId) -> shapes.Swapped:
        return {"slot": str(slot), "phase": self._phase(slot)}

    async def hold(self, call: EdgeCall) -> web.StreamResponse:
        """Free all memory and keep it free for `{"owner": …}`: 200 when it is free, 202 at once with `?wait=0`.
        More keys: `expires_s`, `mode` (`refuse` or `queue` requests meanwhile), `drain` (`wait`, `cut` or `refuse`).
        """
        asked = await self._object(call, {"owner", "mode", "expires_s", "drain"})
        began_at = time.monotonic()
        hold = self._coordinator.hold(
            _owner(asked.get("owner")),
            mode=_word(asked, "mode", HOLD_MODES, "refuse"),
            expires_s=_seconds(asked.get("expires_s")),
            drain=_word(asked, "drain", HOLD_DRAINS, None),
        )
        is_waited_for = waits(call.raw_query)
        if is_waited_for:
            await hold.decided.wait()
            if isinstance(hold.outcome, RouterError):
                raise hold.outcome
        now = time.monotonic()
        answer = shapes.Held(hold=_hold_status(hold, now), seconds=round(now - began_at, 3))
        return json_answer(answer, status=200 if is_waited_for else 202)

    async def release(self, call: EdgeCall) -> web.StreamResponse:
        """End the hold. With `{"owner": …}` only that owner's; with `{}`, whoever has it."""
        asked = await self._object(call, {"owner"})
        owner = _owner(asked["owner"]) if "owner" in asked else None
        return json_answer(shapes.Released(released=self._coordinator.release(owner)))

    async def _object(self, call: EdgeCall, known: set[str]) -> dict[str, Any]:
        asked = await _asked(call)
        if unknown := sorted(asked.keys() - known):
            names = ", ".join(sorted(known))
            raise BadRequest(f"{printable(unknown[0])!r} is not known here; there are: {names}")
        return asked

    def _phase(self, slot: SlotId) -> str:
        return self._coordinator.slots[slot].phase.value

    async def _named(self, asked: Mapping[str, Any], identity: Identity) -> list[SlotId]:
        """The slot that `{"model": …}` names, or those of `{"engine": …}`; with both, the two must fit."""
        engine, model = asked.get("engine"), asked.get("model")
        if any(name is not None and not isinstance(name, str) for name in (engine, model)):
            raise BadRequest("'model' and 'engine' must be text")
        slots = [s for s in self._coordinator.slots if s.engine == engine]
        if engine is not None and not slots:
            known = sorted({s.engine for s in self._coordinator.slots})
            close = get_close_matches(engine, known, n=1, cutoff=0.6)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
            raise NotFound(f"no engine {printable(engine)!r} is configured and enabled; {hint}")
        if model is not None:
            target = await self._naming.target(model, identity)
            if engine is not None and target.engine != engine:
                raise BadRequest(f"model {printable(model)!r} belongs to engine {target.engine!r}, not to {engine!r}")
            return [target.slot]
        if engine is not None:
            return slots
        raise BadRequest('say which: {"model": "…"} or {"engine": "…"}')

    def _one_of(self, slots: list[SlotId]) -> SlotId:
        """Of an engine with profiles: the one that is ready, else the caller must say which."""
        ready = [s for s in slots if self._coordinator.slots[s].phase is Phase.READY]
        if len(slots) == 1 or ready:
            return (ready or slots)[0]
        names = ", ".join(str(s.model) for s in slots)
        raise BadRequest(f'engine {slots[0].engine!r} has several models: say {{"model": …}} with one of {names}')


def _cache_status(cache: AnswerCache | None) -> shapes.CacheStatus | None:
    if cache is None:
        return None
    state = cache.state()
    return {
        "name": state.name,
        "is_up": state.is_up,
        "entries": state.entries,
        "bytes": state.bytes,
        "hits": cache.hits,
        "misses": cache.misses,
        "hit_bytes": cache.hit_bytes,
    }


def _learned(learned: Learned) -> shapes.Learned:
    return {
        "start_s": learned.start_s,
        "held_bytes": learned.held_bytes,
        "came_back_bytes": learned.came_back_bytes,
    }


def _waiting(slot: Slot, now: float) -> list[shapes.Waiter]:
    """Who waits for a slot, by the names of keys, whoever came first first."""
    since: dict[str, list[float]] = {}
    for ticket in sorted(slot.queue, key=lambda t: t.arrived_at):
        since.setdefault(ticket.key, []).append(ticket.arrived_at)
    return [{"key": key, "count": len(times), "longest_s": round(now - times[0], 1)} for key, times in since.items()]


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


def _hold_status(hold: Hold | None, now: float) -> shapes.HoldStatus | None:
    if hold is None:
        return None
    return {
        "owner": hold.owner,
        "mode": hold.mode,
        "is_free": hold.is_free,
        "since_s": round(now - hold.began_at, 1),
        "expires_in_s": None if hold.expires_at is None else round(max(0.0, hold.expires_at - now), 1),
    }


def _memory_status(memory: ChosenSource) -> shapes.Memory:
    status: shapes.Memory = {
        "source": memory.name,
        "why": memory.why,
        "available_bytes": memory.available(),
        "devices": [_device(device) for device in memory.devices()],
    }
    if memory.problem:
        status["problem"] = memory.problem
    return status


def _device(device: Device) -> shapes.Device:
    return {
        "name": device.name,
        "total_bytes": device.total_bytes,
        "available_bytes": device.available_bytes,
        "is_unified": device.is_unified,
        "problem": device.problem,
    }


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


def _swap_status(swap: Swap, now: float, shown: Collection[SlotId]) -> shapes.SwapRunning:
    return {
        "target": str(swap.plan.target) if swap.plan.target is not None else None,
        "reason": swap.plan.reason,
        "step": swap.step,
        "step_s": round(now - swap.step_since, 2),
        "total_s": round(now - swap.began_at, 2),
        "freed": [str(s) for s in swap.freed if s in shown],
        "seconds": {k: round(v, 3) for k, v in swap.seconds.items()},
    }
