"""One router, put together: from a configuration to a listening server, and back down again.

This is the only module that knows every part. It holds no logic except order.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from aiohttp import web

from enginerouter.config.engines import GenericProcess
from enginerouter.config.model import Config, EngineSettings
from enginerouter.engines.api_swap import ApiSwapEngine
from enginerouter.engines.base import Engine
from enginerouter.engines.directory import SlotDirectory
from enginerouter.engines.discovery import Discovery, ListsModels, is_askable
from enginerouter.engines.launch import log_path
from enginerouter.engines.ollama import OllamaEngine
from enginerouter.engines.ports import Holder, holder_of
from enginerouter.engines.registry import build_engines, end_launches_of_removed_engines
from enginerouter.engines.remote import RemoteEngine
from enginerouter.engines.served import ProcessModels, is_process
from enginerouter.errors import AlreadyRunning, CannotListen, ConfigError, Problem
from enginerouter.metrics import Registry
from enginerouter.proxy.downstream import KeepAlive, Mode
from enginerouter.proxy.upstream import Upstream
from enginerouter.routing import walk
from enginerouter.routing.directory import Directory, models_of
from enginerouter.routing.health import Health
from enginerouter.slots import SlotId
from enginerouter.state import StateFile
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.memory import MemorySource
from enginerouter.swap.phases import Phase
from enginerouter.swap.pick import Picked
from enginerouter.tasks import TaskGroup
from enginerouter.web.answers import KeptAnswers, open_cache
from enginerouter.web.body import BufferBudget
from enginerouter.web.catalog import Catalog
from enginerouter.web.control import Control
from enginerouter.web.discovered import Discovered, Discovering
from enginerouter.web.edge import Edge, edge_rules
from enginerouter.web.exchange import Surroundings
from enginerouter.web.explain import Explain
from enginerouter.web.health import HealthView
from enginerouter.web.inference import Inference
from enginerouter.web.listener import GuardedServer, listen
from enginerouter.web.naming import Naming
from enginerouter.web.params import ModelParams
from enginerouter.web.prober import BackgroundProber
from enginerouter.web.responses import ResponseOwners
from enginerouter.web.routes import Access, Route, RouteHandler, Routes
from enginerouter.web.slots_of import LEARNED, learned_section, read_learned, rules_of, slot_specs, undeclared_spec
from enginerouter.web.status_page import StatusPage
from enginerouter.web.telemetry import Telemetry
from enginerouter.web.watching import Watching

log = logging.getLogger(__name__)

MIB = 1024 * 1024
# Paths whose POST carries a model, in its JSON or as a part of a form.
INFERENCE_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/rerank",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/images/variations",
)


class Router:
    """One running router. `await start()`, then `await stop()`; both once. `memory` and `engines` are for tests.

    `sock` is one that listens already; without it `host` and `port` of the configuration are listened on.
    """

    def __init__(
        self,
        config: Config,
        *,
        memory: MemorySource | None = None,
        engines: Mapping[str, Engine] | None = None,
        sock: socket.socket | None = None,
    ) -> None:
        self.config = config
        self._sock = sock
        self.registry = Registry()
        self.memory = memory if memory is not None else Picked(config.memory_source)
        self.telemetry = Telemetry(self.registry)
        self.state = StateFile(config.base_dir / config.state_file)
        # Which router this is among others. Of this process alone: two boxes may keep their state in the same place.
        self.instance = secrets.token_hex(8)
        self.health = Health(config.health)
        self._tasks = TaskGroup()
        self._slot_directory = SlotDirectory(self.state.router_id)
        self.engines = (
            dict(engines)
            if engines is not None
            else build_engines(
                config.engines,
                self.state,
                config.base_dir,
                self._slot_directory,
                {m.engine: m.upstream_id or m.id for m in reversed(config.models)},
                upstream_models(config),
            )
        )
        self.learned = read_learned(self.state)
        self.coordinator = Coordinator(
            slot_specs(config),
            self.engines,
            rules_of(config),
            self.memory,
            observer=self.telemetry,
            learned=self.learned,
            spec_of=lambda slot: undeclared_spec(config, slot),
        )
        self._naming = Naming(Directory(config), self.coordinator, config.engines)
        self._prober = BackgroundProber(config.health, config.engines, self.engines, self.coordinator, self.health)
        self._addresses: dict[SlotId, str] = {}
        sources = self._sources()
        self._discovered = Discovered(config, self.state, self._naming)
        self._discovered.recall({name: source for name, (source, _) in sources.items()})
        self._discovery = Discovery(sources, self._discovered.listed)
        self._naming.attach(self._discovery)
        self._upstreams: dict[str, Upstream] = {}
        self.cache = open_cache(config.cache, self._tasks)
        self._runner: web.ServerRunner | None = None
        self.routes = Routes(())
        self.port = 0

    async def start(self) -> None:
        """Listen, take over running engines, begin preloads. Raises CannotListen, AlreadyRunning or ConfigError."""
        await self._claim_state()
        await self.memory.start()
        self._upstreams = {name: self._upstream(self.config.engines[name]) for name in self.engines}
        self.telemetry.watch(self.coordinator)
        self.telemetry.watch_memory(self.memory)
        if self.cache is not None:
            self.telemetry.watch_cache(self.cache)
        self.telemetry.listeners.append(self._slot_moved)
        self.telemetry.listeners.append(self._prober.slot_moved)
        budget = BufferBudget(self.config.max_buffered_mib * MIB)
        self.routes = Routes(self._routes())
        edge = Edge(edge_rules(self.config, self.routes), budget)
        server = GuardedServer(edge.handle)
        tls = tls_context(self.config)
        try:
            self._runner, self.port = await listen(
                server,
                host=self.config.host,
                port=self.config.port,
                sock=self._sock,
                ssl_context=tls,
                shutdown_timeout_s=self.config.shutdown_timeout_s,
            )
        except OSError as error:
            raise CannotListen(self.config.host, self.config.port, await self._why_not(error)) from error
        self._discovery.begin()
        await end_launches_of_removed_engines(self.state, self.engines)
        await self.coordinator.start()
        self._prober.begin()

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
        self.coordinator.refuse_new()
        self.telemetry.hub.close()
        if self._runner is not None:
            await self._stop_listening(self._runner)
        await self._discovery.close()
        await self._prober.close()
        await self.coordinator.close(keeps_engines=self.config.on_exit == "keep")
        for upstream in self._upstreams.values():
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

    def _sources(self) -> dict[str, tuple[ListsModels, float]]:
        """The engines whose word on their models counts, with how long it does."""
        sources: dict[str, tuple[ListsModels, float]] = {}
        for name, engine in self.engines.items():
            settings = self.config.engines[name]
            if not is_askable(settings, is_enabled=self.config.discover.enabled):
                continue
            if isinstance(engine, ApiSwapEngine | OllamaEngine | RemoteEngine):
                sources[name] = engine, settings.tags_cache_ttl_s
            elif is_process(settings):
                sources[name] = ProcessModels(settings, self._ready_address(name)), settings.tags_cache_ttl_s
        return sources

    def _ready_address(self, engine: str) -> Callable[[], str | None]:
        """Where an engine may be asked, while it may."""

        def address() -> str | None:
            slot = self.coordinator.slots.get(SlotId(engine))
            return self._addresses.get(SlotId(engine)) if slot is not None and slot.phase is Phase.READY else None

        return address

    def _upstream(self, settings: EngineSettings) -> Upstream:
        headers = dict(settings.headers)
        if settings.api_key:
            headers["Authorization"] = f"Bearer {settings.api_key}"
        return Upstream(
            settings.name,
            headers=headers,
            connect_timeout_s=self.config.upstream_connect_timeout_s,
            tasks=self._tasks,
            is_server=settings.type in ("remote", "ollama", "api_swap"),
        )

    def _slot_moved(self, slot: SlotId, phase: Phase) -> None:
        if phase is Phase.READY:
            self._addresses[slot] = self.engines[slot.engine].address(slot)
            if is_process(self.config.engines[slot.engine]):
                self._discovery.ask(slot.engine)  # now it can tell by itself
            self._note_learned()
        elif phase in (Phase.FREEING, Phase.CRASHED):
            # Before the stop signal: llama-server keeps its memory while somebody is connected.
            self._upstreams[slot.engine].drop()
            self._note_learned()
        elif phase is Phase.COLD:
            self._note_learned()

    def _note_learned(self) -> None:
        slots = self.coordinator.slots.values()
        self.state.put(LEARNED, learned_section(slots, self.learned, self.config.engines))

    def _routes(self) -> Iterable[Route]:
        config = self.config
        naming = self._naming
        params = ModelParams(config)
        around = Surroundings(
            self.instance,
            self.coordinator,
            naming,
            self.health,
            walk.CoolDowns(config.health.rate_limit_cooldown_s, config.health.credit_cooldown_s),
            self._upstreams,
            self._addresses,
            _keepalive(config),
            self.telemetry,
            ResponseOwners(),
            params,
            KeptAnswers(self.cache, config, params),
            self._tasks,
        )
        inference = Inference(naming, around)
        catalog = Catalog(naming, self.coordinator)
        discovering = Discovering(naming, self._discovery)
        page = StatusPage()
        engines = {name: config.engines[name] for name in self.engines}
        view = HealthView(engines, naming, self.coordinator, self.health, self._prober, self.registry)
        control = Control(
            naming,
            self.coordinator,
            self.telemetry,
            self.registry,
            self.memory,
            self._tasks,
            self.health,
            view,
            self.cache,
        )
        watching = Watching(self.telemetry.hub, naming, control.snapshot, log_files(config))
        for path in INFERENCE_PATHS:
            yield Route("POST", path, inference.serve)
        metrics_access: Access = "key" if config.metrics_require_key else "open"
        rows: list[tuple[str, str, RouteHandler, Access]] = [
            ("GET", "/v1/responses/{id}", inference.follow, "key"),
            ("DELETE", "/v1/responses/{id}", inference.follow, "key"),
            ("POST", "/v1/responses/{id}/cancel", inference.follow, "key"),
            ("GET", "/v1/responses/{id}/input_items", inference.follow, "key"),
            ("GET", "/v1", catalog.root, "key"),
            ("GET", "/v1/models", catalog.models, "key"),
            ("GET", "/v1/models/{id...}", catalog.model, "key"),
            ("GET", "/v1/aliases", catalog.aliases, "key"),
            ("GET", "/", page.root, "open"),
            ("GET", "/page.css", page.style, "open"),
            ("GET", "/page.js", page.script, "open"),
            ("GET", "/health", control.health, "open"),
            ("GET", "/v1/health", view.show, "key"),
            ("GET", "/metrics", control.metrics, metrics_access),
            ("GET", "/status", control.status, "key"),
            ("GET", "/events", watching.events, "key"),
            ("GET", "/logs", watching.logs, "admin"),
            ("POST", "/admin/swap", control.swap, "admin"),
            ("POST", "/admin/unload", control.unload, "admin"),
            ("POST", "/admin/reset", control.reset, "admin"),
            ("POST", "/admin/discover", discovering.discover, "admin"),
            ("POST", "/admin/explain", Explain(naming, params, self.coordinator, self.health).explain, "key"),
            ("GET", "/models/available", control.models_available, "key"),
            ("GET", "/models/status", control.models_status, "key"),
            ("POST", "/models/switch", control.models_switch, "admin"),
            ("POST", "/admin/hold", control.hold, "admin"),
            ("POST", "/admin/release", control.release, "admin"),
        ]
        yield from (Route(method, path, handler, access) for method, path, handler, access in rows)


def upstream_models(config: Config) -> dict[str, list[str]]:
    """What each engine calls its known models."""
    found: dict[str, list[str]] = {}
    for model in models_of(config):
        found.setdefault(model.engine, []).append(model.upstream_id or model.id)
    return found


def _keepalive(config: Config) -> KeepAlive:
    return KeepAlive(
        enabled=config.swap_keepalive_enabled,
        interval_s=config.swap_keepalive_interval_s,
        commit_after_s=config.commit_after_s,
        first_byte_commit_s=config.first_byte_commit_s,
        prefill=config.prefill_keepalive,
        json_after_s=config.json_keepalive_after_s,
        stream_mode=Mode(config.swap_progress),
    )


def tls_context(config: Config) -> ssl.SSLContext | None:
    """What to serve HTTPS with, or None. Raises ConfigError if the files cannot be used."""
    if config.tls_cert_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_cert_file, config.tls_key_file)
    except OSError as error:  # ssl.SSLError is one
        files = f"{config.tls_cert_file} and {config.tls_key_file}"
        raise ConfigError([Problem(f"{files} cannot be used: {error}", path="tls_cert_file")]) from error
    return context


def log_files(config: Config) -> dict[str, tuple[Path, ...]]:
    """Where each engine and each of its slots print to, and "" for the router; none = to no file of ours."""
    files: dict[str, tuple[Path, ...]] = {"": (config.log_file,) if config.log_file is not None else ()}
    for engine in config.engines.values():
        slots = [s.id for s in slot_specs(config) if s.id.engine == engine.name]
        if isinstance(engine, GenericProcess):
            own = {str(slot): (log_path(engine, slot, config.base_dir),) for slot in slots}
            files |= own | {engine.name: tuple(path for paths in own.values() for path in paths)}
        else:
            files[engine.name] = ()
    return files
