"""How the engines are, for people, programs and `/metrics`: what `routing.health` and the last probes know.

An engine is `unhealthy` when nothing of it is served: its probes opened the circuit, all its models that were called
are passed over, or it may not be started. It is `degraded` while part of it is passed over, cooling down or on trial. A
stopped engine that can be started is healthy. A remote engine without its key is `unconfigured`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from aiohttp import web

from enginerouter.config.engines import EngineSettings
from enginerouter.metrics import Labels, Registry
from enginerouter.routing.circuit import Circuit, Transition
from enginerouter.routing.health import Health
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.model import Slot
from enginerouter.swap.phases import Phase
from enginerouter.web.catalog import json_answer
from enginerouter.web.edge import EdgeCall
from enginerouter.web.keys import Identity
from enginerouter.web.naming import Naming, anything
from enginerouter.web.prober import BackgroundProber
from enginerouter.web.shapes.control import CircuitStatus, EngineHealth, HealthShown, Standing

# Of the names at an engine that no configuration and no list of its own knows.
MOST_UNDECLARED = 20

VALUES: Mapping[Standing, float] = {"healthy": 1.0, "degraded": 0.5, "unhealthy": 0.0}


def standing_of(circuits: Mapping[str | None, Circuit], *, is_stopped: bool, may_start: bool) -> Standing:
    """From its circuits (None: the one that probes open), and whether it is stopped and may be started."""
    if is_stopped and not may_start:
        return "unhealthy"
    # A model that nobody has called tells nothing.
    called = [c for model, c in circuits.items() if model is not None and (c.is_used or c.state != "closed")]
    is_down = circuits.get(None, Circuit()).state == "open" or (
        bool(called) and all(c.state in ("open", "cooling") for c in called)
    )
    if is_down and not is_stopped:
        return "unhealthy"
    return "healthy" if all(c.state == "closed" for c in circuits.values()) else "degraded"


def overall(standings: Collection[Standing]) -> Standing:
    told = {s for s in standings if s != "unconfigured"}
    if told == {"unhealthy"}:
        return "unhealthy"
    return "degraded" if told - {"healthy"} else "healthy"


class HealthView:
    """GET /v1/health, the same in short for /status, and the metrics of health."""

    def __init__(
        self,
        settings: Mapping[str, EngineSettings],
        naming: Naming,
        coordinator: Coordinator,
        health: Health,
        prober: BackgroundProber,
    ) -> None:
        self._settings = settings
        self._naming = naming
        self._coordinator = coordinator
        self._health = health
        self._prober = prober

    async def show(self, call: EdgeCall) -> web.StreamResponse:
        """Every engine with its targets, their circuits and what the last probe saw – as far as this key may know."""
        snapshot, now = self._health.snapshot(), time.monotonic()
        providers: dict[str, EngineHealth] = {
            name: self._engine(name, snapshot.get(name, {}), call.identity, now)
            for name in self._settings
            if self._may_see(name, call.identity)
        }
        status = overall([p["status"] for p in providers.values()])
        return json_answer(HealthShown(status=status, providers=providers))

    def standings(self, identity: Identity) -> dict[str, Standing]:
        snapshot = self._health.snapshot()
        return {n: self._standing(n, snapshot.get(n, {})) for n in self._settings if self._may_see(n, identity)}

    # --- one engine

    def _engine(self, name: str, known: Mapping[str | None, Circuit], identity: Identity, now: float) -> EngineHealth:
        circuits = self._with_declared(name, known)
        may_know = self._naming.may_know_model
        shown = {m: c for m, c in circuits.items() if m is None or may_know(name, m, identity)}
        worst = max(shown.values(), key=lambda c: (c.state != "closed", c.failures), default=Circuit())
        standing, seen = self._standing(name, known), self._prober.seen.get(name)
        left_out = self._left_out(name, shown)
        waits = [c.retry_after_s for c in shown.values() if c.retry_after_s is not None]
        return {
            "status": standing,
            "type": self._settings[name].type,
            "is_resident": self._is_up(name),
            "needs_operator": any(c.needs_operator for c in circuits.values()),
            "consecutive_failures": worst.failures,
            "last_error": worst.reason or None if identity.is_admin else None,
            "last_check_unix": _unix(seen.at, now) if seen is not None else None,
            "last_check": seen.saw if seen is not None and identity.is_admin else None,
            "unhealthy_until_unix": _unix(now + min(waits), now) if standing == "unhealthy" and waits else None,
            "probes": _shown(shown.get(None, Circuit()), identity),
            "models": {m: _shown(c, identity) for m, c in shown.items() if m is not None and m not in left_out},
            "more_models": len(left_out),
        }

    def _with_declared(self, name: str, known: Mapping[str | None, Circuit]) -> dict[str | None, Circuit]:
        """The declared models, and of others what there is to tell of the last minute, or keeps them away now."""
        declared = self._declared(name)
        told = {m: c for m, c in known.items() if m is None or m in declared or c.ok or c.failed or c.retry_after_s}
        return {**{m: Circuit() for m in declared}, **told}

    def _declared(self, name: str) -> dict[str, None]:
        return {m: None for s in self._slots(name) for m in self._naming.directory.models_of(s.id, anything)}

    def _left_out(self, name: str, shown: Mapping[str | None, Circuit]) -> set[str | None]:
        """A client may name thousands of models at a provider: those that are too many to show, the worst shown."""
        declared = self._declared(name)
        others = [m for m in shown if m is not None and m not in declared]
        others.sort(key=lambda m: (shown[m].state == "closed", -shown[m].failures))
        return set(others[MOST_UNDECLARED:])

    def _standing(self, name: str, known: Mapping[str | None, Circuit]) -> Standing:
        if self._settings[name].unconfigured:
            return "unconfigured"
        slots, now = self._slots(name), time.monotonic()
        return standing_of(
            self._with_declared(name, known),
            is_stopped=not self._is_up(name),
            may_start=not slots or not all(s.circuit.is_open(now) for s in slots),
        )

    def _slots(self, name: str) -> list[Slot]:
        return [s for s in self._coordinator.slots.values() if s.id.engine == name]

    def _is_up(self, name: str) -> bool:
        is_serving = any(s.phase in (Phase.READY, Phase.DRAINING) for s in self._slots(name))
        return is_serving or self._prober.is_always_on(name)

    # --- who may know

    def _may_see(self, name: str, identity: Identity) -> bool:
        if not self._naming.may_know_engine(name, identity):
            return False
        return identity.is_admin or any(self._naming.may_see(s.id, identity) for s in self._slots(name))

    # --- metrics

    def values(self) -> dict[Labels, float]:
        snapshot = self._health.snapshot()
        standings = {name: self._standing(name, snapshot.get(name, {})) for name in self._settings}
        return {(name,): VALUES[s] for name, s in standings.items() if s != "unconfigured"}

    def refusals(self) -> dict[Labels, float]:
        """Which engines refuse our key, or want credit."""
        snapshot = self._health.snapshot()
        names = [name for name, settings in self._settings.items() if not settings.unconfigured]
        return {(n,): float(any(c.needs_operator for c in snapshot.get(n, {}).values())) for n in names}


def watch_health(
    registry: Registry,
    health: Health,
    values: Callable[[], dict[Labels, float]],
    refusals: Callable[[], dict[Labels, float]],
) -> None:
    """The metrics of health; `values` and `refusals` are those of the view of the moment."""
    moves = registry.counter(
        "health_transitions_total", "Circuits that opened, cooled down or closed.", ("provider", "to")
    )
    registry.gauge(
        "provider_healthy",
        "1 healthy; 0.5 partly passed over, cooling down or on trial; 0 nothing of it is served.",
        ("provider",),
        read=values,
    )

    registry.gauge(
        "provider_needs_operator",
        "1 while a provider refuses the key that is configured, or wants credit: no wait mends it.",
        ("provider",),
        read=refusals,
    )

    def count(moved: Transition) -> None:
        moves.inc((moved.engine, moved.after))

    health.listeners.append(count)


def _unix(at: float, now: float) -> float:
    """From monotonic seconds to the clock on the wall, as that shows now."""
    return round(time.time() + at - now, 1)


def _shown(circuit: Circuit, identity: Identity) -> CircuitStatus:
    wait_s = circuit.retry_after_s
    return {
        "circuit": circuit.state,
        "opened_by": circuit.opened_by or None,
        "consecutive_failures": circuit.failures,
        "last_error": circuit.reason or None if identity.is_admin else None,
        "retry_after_s": round(wait_s, 1) if wait_s is not None else None,
        "last_60_s": {"ok": circuit.ok, "failed": circuit.failed},
    }
