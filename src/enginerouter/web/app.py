"""One router, put together: from a configuration to a listening server, to another configuration, and back down again.

This is the only module that knows every part. It holds no logic except order.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import secrets
import socket
import ssl
import time
from collections.abc import Mapping

from aiohttp import web

from enginerouter.cache.answers import AnswerCache
from enginerouter.config.changes import Changes, diff
from enginerouter.config.load import Loaded
from enginerouter.config.model import Config, EngineSettings
from enginerouter.config.source import see_file
from enginerouter.engines.base import Engine
from enginerouter.engines.directory import SlotDirectory
from enginerouter.engines.discovery import Discovery
from enginerouter.engines.left_running import end_launches_of_removed_engines
from enginerouter.engines.ports import Holder, holder_of
from enginerouter.engines.registry import build_engines
from enginerouter.engines.served import is_process
from enginerouter.errors import AlreadyRunning, CannotListen, ConfigError, FreeFailed, Problem
from enginerouter.metrics import Registry
from enginerouter.routing.directory import models_of
from enginerouter.routing.health import Health
from enginerouter.slots import SlotId
from enginerouter.state import StateFile
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.history import MemoryHistory, Remembering
from enginerouter.swap.memory import ChosenSource
from enginerouter.swap.phases import Phase
from enginerouter.swap.pick import Picked
from enginerouter.tasks import TaskGroup
from enginerouter.web.answers import open_cache
from enginerouter.web.body import BufferBudget
from enginerouter.web.edge import Edge
from enginerouter.web.health import watch_health
from enginerouter.web.keys import Identity
from enginerouter.web.learned_facts import LearnedFacts
from enginerouter.web.listener import GuardedServer, listen
from enginerouter.web.logs import change_logging
from enginerouter.web.prober import BackgroundProber
from enginerouter.web.reload import Reloader
from enginerouter.web.renewal import Renewal, running_in, without_restart
from enginerouter.web.routes import Routes
from enginerouter.web.shapes.control import Status
from enginerouter.web.slots_of import LEARNED, learned_section, read_learned, rules_of, slot_specs, undeclared_spec
from enginerouter.web.surface import Lasting, Surface
from enginerouter.web.telemetry import Telemetry

log = logging.getLogger(__name__)

MIB = 1024 * 1024
# At its start the router waits this long for its engines to say what of theirs runs already.
TAKE_OVER_PATIENCE_S = 1.0


class Router:
    """One running router. `await start()`, then `await stop()`; both once. `memory` and `engines` are for tests.

    `sock` is one that listens already; without it `host` and `port` of the configuration are listened on.
    """

    def __init__(
        self,
        config: Config,
        *,
        memory: ChosenSource | None = None,
        engines: Mapping[str, Engine] | None = None,
        sock: socket.socket | None = None,
    ) -> None:
        self.config = config
        self._sock = sock
        self.registry = Registry()
        self._memory_history = MemoryHistory()
        self.memory = Remembering(memory or Picked(config.memory_source), self._memory_history)
        self.telemetry = Telemetry(self.registry)
        self.state = StateFile(config.base_dir / config.state_file)
        # Which router this is among others. Of this process alone: two boxes may keep their state in the same place.
        self.instance = secrets.token_hex(8)
        self.health = Health(config.health)
        self._tasks = TaskGroup()
        self._slot_directory = SlotDirectory(self.state.router_id)
        self.engines = dict(engines) if engines is not None else self._build(config, config.engines)
        self.learned = read_learned(self.state)
        self.coordinator = Coordinator(
            slot_specs(config),
            self.engines,
            rules_of(config),
            self.memory,
            observer=self.telemetry,
            learned=self.learned,
            spec_of=lambda slot: undeclared_spec(config, slot),
            renewed=self._drained,
        )
        self._prober = BackgroundProber(config.health, config.engines, self.engines, self.coordinator, self.health)
        self.reloader = Reloader(config.path, self._renew)
        self._lasting = self._made_to_last()
        self._surface = Surface(config, self._lasting, self.engines, open_cache(config.cache, self._tasks))
        # Of earlier configurations: requests that began with them may still wait for an answer.
        self._earlier: list[Discovery] = []
        self._edge = Edge(self._surface.rules, BufferBudget(config.max_buffered_mib * MIB, self._until_served_s))
        self._tls: ssl.SSLContext | None = None
        self._is_up = asyncio.Event()
        self._runner: web.ServerRunner | None = None
        self._taking_over: asyncio.Task[None] | None = None
        self.port = 0

    def _until_served_s(self) -> float | None:
        """When the first of those who wait may be served; None if nobody waits."""
        waited_for = (slot.id for slot in self.coordinator.slots.values() if slot.queue)
        return min((self.coordinator.eta_s(slot) for slot in waited_for), default=None)

    def _made_to_last(self) -> Lasting:
        return Lasting(
            self.instance,
            self.registry,
            self.telemetry,
            self.memory,
            self.state,
            self.health,
            self.coordinator,
            self._prober,
            self.reloader,
            self._tasks,
            self._snapshot,
            time.monotonic(),
            LearnedFacts(self.state),
            self._memory_history,
        )

    @property
    def cache(self) -> AnswerCache | None:
        return self._surface.cache

    async def _snapshot(self, identity: Identity) -> Status:
        return await self._surface.control.snapshot(identity)

    @property
    def routes(self) -> Routes:
        """The table of the configuration of the moment."""
        return self._surface.rules.routes

    async def start(self) -> None:
        """Listen, take over running engines, begin preloads. Raises CannotListen, AlreadyRunning or ConfigError."""
        await self._claim_state()
        await self.memory.start()
        log.info("memory is read from %s: %s", self.memory.name, self.memory.why)
        for warning in self.memory.warnings:
            log.warning("memory: %s", warning)
        self._surface.use_upstreams()
        self.telemetry.watch(self.coordinator)
        self.telemetry.watch_memory(self.memory)
        self.telemetry.watch_cache(lambda: self._surface.cache)
        watch_health(
            self.registry,
            self.health,
            lambda: self._surface.view.values(),
            lambda: self._surface.view.refusals(),
        )
        self.telemetry.listeners.append(self._slot_moved)
        self.telemetry.listeners.append(self._prober.slot_moved)
        server = GuardedServer(self._edge.handle)
        self._tls = tls_context(self.config)
        try:
            self._runner, self.port = await listen(
                server,
                host=self.config.host,
                port=self.config.port,
                sock=self._sock,
                ssl_context=self._tls,
                shutdown_timeout_s=self.config.shutdown_timeout_s,
            )
        except OSError as error:
            raise CannotListen(self.config.host, self.config.port, await self._why_not(error)) from error
        self._surface.discovery.begin()
        await self._take_over()
        self._prober.begin()
        self._is_up.set()

    async def _take_over(self) -> None:
        """Whoever hangs, or is still loading, holds up its own lane and not the router's being there."""
        clear = functools.partial(end_launches_of_removed_engines, self.state, tuple(self.engines))
        self._taking_over = self._tasks.spawn(self.coordinator.start(clear), "take over what runs")
        await asyncio.wait({self._taking_over}, timeout=TAKE_OVER_PATIENCE_S)
        if self._taking_over.done():
            self._taking_over.result()
        else:
            log.info("some engines have not said yet what of theirs runs; what needs their memory waits")

    async def _claim_state(self) -> None:
        try:
            self.state.lock()
        except BlockingIOError:
            holder = await self._port_holder()
            port = f", and {holder} listens on {self.config.host}:{self.config.port}" if holder is not None else ""
            own = "a `state_file` and a `port`" if port else "a `state_file`"
            raise AlreadyRunning(
                f"another router is running with the state file {self.state.path}{port}; "
                f"stop it, or give this one {own} of its own"
            ) from None

    async def _why_not(self, error: OSError) -> str:
        if error.errno == errno.EADDRINUSE and (holder := await self._port_holder()) is not None:
            return f"{holder} listens there"
        # asyncio's own text names the address once more.
        return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error.strerror or error)

    async def _port_holder(self) -> Holder | None:
        port = self.config.port
        return await asyncio.to_thread(holder_of, self.config.host, port) if port else None

    async def stop(self) -> None:
        """Answer those who wait, let streams end within `shutdown_timeout_s`, stop the engines, save the state."""
        await self.reloader.close()
        self.coordinator.refuse_new()
        if self._taking_over is not None:
            self._taking_over.cancel()
            await asyncio.wait({self._taking_over})
        self.telemetry.hub.close()
        if self._runner is not None:
            await self._stop_listening(self._runner)
        for discovery in (*self._earlier, self._surface.discovery):
            await discovery.close()
        await self._prober.close()
        await self.coordinator.close(keeps_engines=self.config.on_exit == "keep")
        for upstream in (*self._lasting.upstreams.values(), *self._lasting.management_upstreams.values()):
            await upstream.close()
        await self._tasks.close()
        if self.cache is not None:
            await self.cache.close()
        for engine in self.engines.values():
            await engine.close()
        await self.memory.close()
        self._note_learned()
        await self.state.close()

    async def _stop_listening(self, runner: web.ServerRunner) -> None:
        """No new connections; running answers have `shutdown_timeout_s`, then they are cut with a word."""
        for site in list(runner.sites):
            await site.stop()
        await self.coordinator.end_leases(self.config.shutdown_timeout_s)
        await runner.cleanup()

    # --- parts

    def _build(self, config: Config, settings: Mapping[str, EngineSettings]) -> dict[str, Engine]:
        return build_engines(
            settings, self.state, config.base_dir, self._slot_directory, warmup_models(config), upstream_models(config)
        )

    def _slot_moved(self, slot: SlotId, phase: Phase) -> None:
        if phase is Phase.READY:
            self._lasting.addresses[slot] = self.engines[slot.engine].address(slot)
            settings = self.config.engines.get(slot.engine)
            self._tasks.spawn(self._surface.knowledge.ask(self.engines[slot.engine], slot), f"what {slot} serves")
            if settings is not None and is_process(settings):
                self._surface.discovery.ask(slot.engine)  # now it can tell by itself
            self._note_learned()
        elif phase in (Phase.FREEING, Phase.CRASHED):
            # Before the stop signal: llama-server keeps its memory while somebody is connected.
            self._lasting.upstreams[slot.engine].drop()
            self._note_learned()
        elif phase is Phase.COLD:
            self._note_learned()

    def _note_learned(self) -> None:
        slots = self.coordinator.slots.values()
        self.state.put(LEARNED, learned_section(slots, self.learned, self.config.engines))

    # --- another configuration

    async def _renew(self, loaded: Loaded) -> Changes:
        """Go by it from now on, but for what needs a restart. Raises ConfigError, and then nothing has changed."""
        await self._is_up.wait()
        changes = diff(self.config, loaded.config)
        config = without_restart(loaded.config, self.config)
        refuse_to_empty(self.config, config)
        # What only a start finds, also of what counts at the next one only.
        await asyncio.to_thread(tls_context, loaded.config)
        if "memory_source" in changes.restart:
            await see_memory_source(loaded.config)
        built = self._build(config, {n: config.engines[n] for n in (*changes.added, *changes.changed, *changes.moved)})
        try:
            running = await running_in({name: built[name] for name in changes.added})
            if self._tls is not None and not {"tls_cert_file", "tls_key_file"} & set(changes.restart):
                await asyncio.to_thread(load_certificates, self._tls, config)
        except BaseException:
            for engine in built.values():
                await engine.close()
            raise
        self._put(Renewal(changes, config), built, running)
        return changes

    def _put(
        self, renewal: Renewal, built: Mapping[str, Engine], running: Mapping[str, list[SlotId] | FreeFailed]
    ) -> None:
        """All of it in one step, and without an await: no request sees a part of each."""
        config, before, was = renewal.config, self._surface, self.config
        cache = before.cache if config.cache == was.cache else open_cache(config.cache, self._tasks)
        staying = {n: e for n in config.engines if n not in built and (e := self.coordinator.engine_to_be(n))}
        engines = {n: built.get(n) or staying[n] for n, settings in config.engines.items() if settings.enabled}
        surface = Surface(config, self._lasting, engines, cache)
        self.config, self._surface, self._edge.rules = config, surface, surface.rules
        self._edge.budget.max_bytes = config.max_buffered_mib * MIB
        change_logging(was, config)
        models, warmup = upstream_models(config), warmup_models(config)
        for name, engine in engines.items():
            if name not in built:
                engine.configure(config.engines[name], warmup_model=warmup.get(name), models=models.get(name, ()))
        surface.use_upstreams()
        self._forget(renewal, cache)
        self.health.configure(config.health)
        self._prober.configure(config.health, config.engines, renewal.others)
        self.coordinator.renew(renewal.for_swap(built), running)
        for slot in self.coordinator.slots:
            if slot.engine in renewal.changes.moved:
                self._lasting.addresses[slot] = built[slot.engine].address(slot)
        surface.carry_on(before, engines.keys() - built.keys())
        surface.discovery.begin()
        self._earlier = [d for d in (*self._earlier, before.discovery) if d.is_asking]
        if cache is not before.cache and before.cache is not None:
            self._tasks.spawn(before.cache.close(), "close the cache")
        self._note_learned()

    def _forget(self, renewal: Renewal, cache: AnswerCache | None) -> None:
        """What was measured, seen and kept of engines that are others now, or gone."""
        for slot in [slot for slot in self.learned if renewal.forgets(slot)]:
            del self.learned[slot]
        for name in renewal.others:
            self.health.forget(name)
            if cache is not None:
                cache.forget(name)

    def _drained(self) -> None:
        """An engine or a slot that was to go is gone, or another one now."""
        lasting, slots = self._lasting, self.coordinator.slots
        for upstreams in (lasting.upstreams, lasting.management_upstreams):
            for name in [n for n in upstreams if n not in self.engines]:
                self._tasks.spawn(upstreams.pop(name).close(), f"close connections to {name}")
        for slot in [s for s in lasting.addresses if s not in slots]:
            del lasting.addresses[slot]
        self._note_learned()


def warmup_models(config: Config) -> dict[str, str]:
    """What to ask each engine for once it is ready: its first model."""
    return {m.engine: m.upstream_id or m.id for m in reversed(config.models)}


def upstream_models(config: Config) -> dict[str, list[str]]:
    """What each engine calls its known models."""
    found: dict[str, list[str]] = {}
    for model in models_of(config):
        found.setdefault(model.engine, []).append(model.upstream_id or model.id)
    return found


def refuse_to_empty(before: Config, after: Config) -> None:
    """A file that an editor has just truncated is a valid one, without engines. Raises ConfigError."""
    if any(e.enabled for e in before.engines.values()) and not any(e.enabled for e in after.engines.values()):
        raise ConfigError(
            [
                Problem(
                    "there are no engines in it, and some are served",
                    path="engines",
                    file=str(after.path or ""),
                    hint="the file may be half-written; to serve none, restart the router",
                )
            ]
        )


async def see_memory_source(config: Config) -> None:
    """Raises ConfigError if a start with it would fail."""
    source = Picked(config.memory_source)
    try:
        await source.start()
    finally:
        await source.close()


def tls_context(config: Config) -> ssl.SSLContext | None:
    """What to serve HTTPS with, or None. Raises ConfigError if the files cannot be used."""
    if config.tls_cert_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_certificates(context, config)
    return context


def load_certificates(context: ssl.SSLContext, config: Config) -> None:
    """Read them, also anew: connections that come after this see them. Blocks. Raises ConfigError."""
    assert config.tls_cert_file is not None
    try:
        for file in filter(None, (config.tls_cert_file, config.tls_key_file)):
            see_file(file)
        context.load_cert_chain(config.tls_cert_file, config.tls_key_file)
    except OSError as error:  # ssl.SSLError is one
        files = f"{config.tls_cert_file} and {config.tls_key_file}"
        raise ConfigError(
            [Problem(f"{files} cannot be used: {error}", path="tls_cert_file", file=str(config.path or ""))]
        ) from error
