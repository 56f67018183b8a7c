"""Health, status, metrics, and an operator's word: swap, unload, reset, hold, release.

Nothing here changes on a GET. Status is read from what the coordinator knows; no engine is asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
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
from enginerouter.swap.hold import HoldDrain, HoldMode
from enginerouter.swap.memory import ChosenSource
from enginerouter.swap.phases import Phase
from enginerouter.tasks import TaskGroup
from enginerouter.web import status_of
from enginerouter.web.catalog import json_answer
from enginerouter.web.edge import EdgeCall
from enginerouter.web.health import HealthView
from enginerouter.web.json_body import json_object
from enginerouter.web.keys import Identity
from enginerouter.web.naming import Naming
from enginerouter.web.reload import Reloader
from enginerouter.web.shapes import control as shapes
from enginerouter.web.shapes.names import AvailableModel, AvailableModels, SwitchingStatus, SwitchingTo
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
            "memory": status_of.memory_status(self._memory),
            "hold": status_of.hold_status(coordinator.current_hold, now),
            "cache": status_of.cache_status(self._cache),
            "queued": coordinator.queued,
            "reload": self._reloader.status(is_admin=identity.is_admin),
            "health": self._view.standings(identity),
            "swaps": [status_of.swap_status(s, now, shown) for s in swaps if status_of.is_shown(s, shown)],
            "slots": [
                status_of.slot_status(
                    s,
                    now,
                    models=self._naming.models_of(s.id, identity),
                    eta_s=coordinator.eta_s(s.id),
                    is_admin=identity.is_admin,
                )
                for s in slots
            ],
            "last_swaps": {
                str(slot): swap_fields(report, self._telemetry.swapped_at[slot], shown, is_admin=identity.is_admin)
                for slot, report in self._telemetry.last_swap.items()
                if slot in shown
            },
        }

    def _shown_to(self, identity: Identity) -> set[SlotId]:
        """The slots that this key may know of: those it may use; an admin key all."""
        return {s for s in self._coordinator.slots if identity.is_admin or self._naming.may_see(s, identity)}

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
        models: list[AvailableModel] = [
            {"id": m.id, "name": m.display_name, "engine": m.engine, "status": self._phase(m.slot)} for m in listed
        ]
        return json_answer(AvailableModels(models=models, active=self._active(call.identity)))

    async def models_status(self, call: EdgeCall) -> web.StreamResponse:
        """What is loaded, and what is being switched to."""
        slots, now = self._coordinator.slots, time.monotonic()
        lanes = {id(lane): lane for lane in (self._coordinator.lane_of(s) for s in slots)}
        swaps = [lane.swap for lane in lanes.values() if lane.swap is not None and lane.swap.plan.target is not None]
        active = self._active(call.identity)
        switching: SwitchingTo | None = None
        if swaps and swaps[0].plan.target is not None:
            target = swaps[0].plan.target
            models = self._naming.models_of(target, call.identity)
            seconds = round(now - swaps[0].began_at, 2)
            switching = SwitchingTo(model=models[0] if models else None, step=swaps[0].step, seconds=seconds)
        at_rest: Literal["ready", "idle"] = "ready" if active is not None else "idle"
        status = SwitchingStatus(status="switching" if switching else at_rest, active=active, switching_to=switching)
        return json_answer(status)

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
        answer = shapes.Held(hold=status_of.hold_status(hold, now), seconds=round(now - began_at, 3))
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


async def _asked(call: EdgeCall) -> dict[str, Any]:
    body = await call.read_body()
    if body.file is not None:
        raise BadRequest("the body must be a JSON object")
    return await json_object(body.raw if body.raw.strip() else b"{}")


def waits(query: str) -> bool:
    """Whether the answer is to come when it is done; `wait=0` says no. Other parameters mean nothing here."""
    said = [value.lower() for name, value in parse_qsl(query, keep_blank_values=True) if name == "wait"]
    return not said or said[-1] not in ("0", "false", "no")
