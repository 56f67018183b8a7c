"""The background probes: every `probe_interval_s` each engine that should be serving is asked for a sign of life.

Only remote, always-on and resident engines are asked: one that is stopped can be started, and nothing is wrong with
it. Probes take no lease, start nothing and are never held back by an open circuit, so a circuit that they opened
closes by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from enginerouter.config.engines import EngineSettings
from enginerouter.config.model import Health as HealthSettings
from enginerouter.engines import watching
from enginerouter.engines.base import Engine
from enginerouter.engines.probe import Prober, Reply
from enginerouter.routing.health import Health
from enginerouter.slots import SlotId
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.model import Slot
from enginerouter.swap.phases import Phase
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """The last probe of an engine. `at` is monotonic; `is_ok` None: it gave no verdict."""

    at: float
    is_ok: bool | None
    saw: str


class BackgroundProber:
    """`begin` once, `close` once. `seen` is the last probe of each engine.

    `engines` is read at every round: a reload may change it, and then calls `configure`.
    """

    def __init__(
        self,
        rules: HealthSettings,
        settings: Mapping[str, EngineSettings],
        engines: Mapping[str, Engine],
        coordinator: Coordinator,
        health: Health,
    ) -> None:
        self._rules = rules
        self._settings = {name: e for name, e in settings.items() if e.enabled}
        self._engines = engines
        self._coordinator = coordinator
        self._health = health
        self._probers: dict[str, Prober] = {}
        self._tasks = TaskGroup()
        self._running: asyncio.Task[None] | None = None
        self.seen: dict[str, Seen] = {}

    def begin(self) -> None:
        if self._rules.enabled:
            self._running = self._tasks.spawn(self._run(), "background probes")

    def configure(
        self, rules: HealthSettings, settings: Mapping[str, EngineSettings], changed: Collection[str]
    ) -> None:
        """Go by another configuration. What was seen of engines that changed, or are gone, counts no more."""
        before, self._settings = self._settings, {name: e for name, e in settings.items() if e.enabled}
        for name in before:
            if self._settings.get(name) == before[name] and name not in changed:
                continue
            if (prober := self._probers.pop(name, None)) is not None:
                self._tasks.spawn(prober.close(), f"close the prober of {name}")
            if name in changed or name not in self._settings:
                self.seen.pop(name, None)
        if rules == self._rules:
            return
        self._rules = rules
        if self._running is not None:
            self._running.cancel()
            self._running = None
        self.begin()

    async def close(self) -> None:
        await self._tasks.close()
        for prober in self._probers.values():
            await prober.close()

    def slot_moved(self, slot: SlotId, phase: Phase) -> None:
        """What probes saw of an engine says nothing of it once it was stopped."""
        if phase is not Phase.READY and not self._resident(slot.engine) and not self.is_always_on(slot.engine):
            self._health.forget(slot.engine, "it was stopped", models=False)
            self.seen.pop(slot.engine, None)

    async def _run(self) -> None:
        while True:
            began_at = time.monotonic()
            names = [name for name in self._settings if name in self._engines]
            said = await asyncio.gather(*(self._probe(name) for name in names), return_exceptions=True)
            for name, error in zip(names, said, strict=True):
                if isinstance(error, Exception):  # of one engine: the others are probed all the same
                    log.error("the probe of %s failed in an unexpected way", name, exc_info=error)
            await asyncio.sleep(max(0.0, began_at + self._rules.probe_interval_s - time.monotonic()))

    async def _probe(self, engine: str) -> None:
        """One engine, one verdict: it lives if one of its servers does."""
        targets = self._targets(engine)
        if not targets:
            return
        verdict, was_busy = self._health.probe(engine), self._is_busy(engine)
        settings = self._settings[engine]
        replies = await asyncio.gather(*(self._ask(engine, slot) for slot, _ in targets))
        if self._settings.get(engine) != settings:
            verdict.dropped()  # what was asked is not what there is now
            return
        now, is_resident = time.monotonic(), bool(self._resident(engine))
        is_busy = was_busy or self._is_busy(engine)
        said = [
            reply
            for (slot, ready_at), reply in zip(targets, replies, strict=True)
            if self._is_still_there(slot, ready_at) and not (reply.is_late and is_busy)
        ]
        alive = [r for r in said if watching.is_alive(settings, r, is_resident=is_resident)]
        if alive:
            verdict.succeeded()
            self.seen[engine] = Seen(now, True, alive[0].saw)
        elif said:
            verdict.failed(f"its probe saw: {said[0].saw}")
            self.seen[engine] = Seen(now, False, said[0].saw)
        else:
            verdict.dropped()
            if self._targets(engine):
                self.seen[engine] = Seen(now, None, replies[0].saw)

    async def _ask(self, engine: str, slot: SlotId) -> Reply:
        settings = self._settings[engine]
        prober = self._probers.get(engine)
        if prober is None:
            prober = self._probers[engine] = watching.prober_of(settings)
        url = watching.probe_url(settings, self._engines[engine].address(slot))
        return await prober.glance(url, timeout_s=self._rules.probe_timeout_s)

    def _targets(self, engine: str) -> list[tuple[SlotId, float]]:
        """What to ask: its resident slots, and since when they are ready; 0 where that does not matter."""
        if self.is_always_on(engine):
            return [(SlotId(engine), 0.0)]
        return [(slot.id, slot.ready_at) for slot in self._resident(engine)]

    def _is_still_there(self, slot_id: SlotId, ready_at: float) -> bool:
        """Whether what was asked has served all the while: a server that was stopped meanwhile is not dead."""
        if not ready_at:
            return True
        slot = self._coordinator.slots.get(slot_id)
        return slot is not None and slot.phase is Phase.READY and slot.ready_at == ready_at

    def _resident(self, engine: str) -> list[Slot]:
        """Without what a reload has changed: that is on its way out."""
        slots = self._coordinator.slots.values()
        return [s for s in slots if s.id.engine == engine and s.phase is Phase.READY and not s.is_outdated]

    def _is_busy(self, engine: str) -> bool:
        return any(s.leases for s in self._coordinator.slots.values() if s.id.engine == engine)

    def is_always_on(self, engine: str) -> bool:
        settings = self._settings.get(engine)
        return settings is not None and watching.is_always_on(settings)
