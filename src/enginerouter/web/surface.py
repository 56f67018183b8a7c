"""Everything that one configuration makes for requests: names, fences, rules of the edge, handlers and their routes.

A reload makes another surface and puts its rules in place of the old ones, in one step: the edge reads them once per
request, the handlers in their routes know their own surface, and so a request goes by the configuration it began with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from enginerouter.cache.answers import AnswerCache
from enginerouter.config.engines import GenericProcess, SystemdUnit
from enginerouter.config.model import Config, EngineSettings
from enginerouter.engines.base import Engine
from enginerouter.engines.discovery import Discovery, ListsModels, is_askable
from enginerouter.engines.launch import log_path
from enginerouter.engines.launch_facts import is_llamacpp
from enginerouter.engines.served import ProcessModels, is_process
from enginerouter.engines.systemctl import journal_command
from enginerouter.errors import NoLongerConfigured
from enginerouter.metrics import Registry
from enginerouter.proxy.downstream import KeepAlive, Mode
from enginerouter.proxy.upstream import Upstream
from enginerouter.routing import walk
from enginerouter.routing.directory import Directory
from enginerouter.routing.health import Health
from enginerouter.slots import SlotId
from enginerouter.state import StateFile
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.history import MemoryHistory
from enginerouter.swap.memory import ChosenSource
from enginerouter.swap.phases import Phase
from enginerouter.tasks import TaskGroup
from enginerouter.web.answers import KeptAnswers
from enginerouter.web.catalog import Catalog
from enginerouter.web.catalog_routes import catalog_routes, extra_routes, management_routes
from enginerouter.web.control import Control
from enginerouter.web.discovered import Discovered, Discovering
from enginerouter.web.edge import EdgeRules, edge_rules
from enginerouter.web.explain import Explain
from enginerouter.web.extras import Extras
from enginerouter.web.file_facts import FileFacts
from enginerouter.web.health import HealthView
from enginerouter.web.inference import Inference
from enginerouter.web.knowledge import Knowledge
from enginerouter.web.learned_facts import LearnedFacts
from enginerouter.web.naming import Naming
from enginerouter.web.ollama_management import OllamaManagement
from enginerouter.web.params import ModelParams
from enginerouter.web.prober import BackgroundProber
from enginerouter.web.reload import Reloader
from enginerouter.web.responses import ResponseOwners
from enginerouter.web.routes import Access, Route, RouteHandler, Routes
from enginerouter.web.slots_of import slot_specs
from enginerouter.web.status_page import StatusPage
from enginerouter.web.surroundings import Surroundings
from enginerouter.web.telemetry import Telemetry
from enginerouter.web.watching import Snapshot, Watching

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
    "/v1/messages",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
)


class Upstreams(dict[str, Upstream]):
    """The pools of the engines of one configuration. A stored response may name an engine that is gone since."""

    def __missing__(self, engine: str) -> Upstream:
        raise NoLongerConfigured(f"engine {engine!r} is no longer configured")


@dataclass(frozen=True, slots=True)
class Lasting:
    """What outlives every configuration of one router.

    `addresses`: the URL that a ready slot answers at. `upstreams`: also of engines that drain before they go;
    `management_upstreams`: of Ollama daemons, besides, because those of requests end when a daemon's models are freed.
    `snapshot`: the state as a key may see it, by the configuration of the moment. `warned`: of which pairs of engines
    the log has said that they have one model.
    """

    instance: str
    registry: Registry
    telemetry: Telemetry
    memory: ChosenSource
    state: StateFile
    health: Health
    coordinator: Coordinator
    prober: BackgroundProber
    reloader: Reloader
    tasks: TaskGroup
    snapshot: Snapshot
    began_at: float
    learned_facts: LearnedFacts
    memory_history: MemoryHistory
    file_facts: FileFacts = field(default_factory=FileFacts)
    addresses: dict[SlotId, str] = field(default_factory=dict)
    upstreams: dict[str, Upstream] = field(default_factory=dict)
    management_upstreams: dict[str, Upstream] = field(default_factory=dict)
    owners: ResponseOwners = field(default_factory=ResponseOwners)
    page: StatusPage = field(default_factory=StatusPage)
    warned: set[tuple[str, str]] = field(default_factory=set)


class Surface:
    """`engines` are those of this configuration; `rules` are for the edge."""

    def __init__(
        self, config: Config, lasting: Lasting, engines: Mapping[str, Engine], cache: AnswerCache | None
    ) -> None:
        self.config = config
        self.cache = cache
        self._lasting = lasting
        self._engines = engines
        self._settings = {name: config.engines[name] for name in engines}
        self._upstreams = self._pools(self._settings, lasting.upstreams)
        daemons = {name: settings for name, settings in self._settings.items() if settings.type == "ollama"}
        self._management_upstreams = self._pools(daemons, lasting.management_upstreams)
        self.naming = naming = Naming(Directory(config), lasting.coordinator, config.engines)
        sources = self._sources(engines)
        discovered = Discovered(config, lasting.state, naming, lasting.warned)
        discovered.recall({name: source for name, (source, _) in sources.items()})
        self.discovery = Discovery(sources, discovered.listed)
        naming.attach(self.discovery)
        self.knowledge = Knowledge(config, naming, lasting.coordinator, lasting.learned_facts, lasting.file_facts)
        self.view = HealthView(self._settings, naming, lasting.coordinator, lasting.health, lasting.prober)
        self.control = self._control()
        self.rules: EdgeRules = edge_rules(config, Routes(self._routes()))

    def use_upstreams(self) -> None:
        """Let the pools go by this configuration, also for requests of earlier ones that wait still."""
        lasting = self._lasting
        self._use(self._upstreams, lasting.upstreams)
        self._use(self._management_upstreams, lasting.management_upstreams)

    def _use(self, pools: Upstreams, kept: dict[str, Upstream]) -> None:
        for name, upstream in pools.items():
            settings = self._settings[name]
            upstream.configure(
                headers=_headers_to(settings),
                connect_timeout_s=self.config.upstream_connect_timeout_s,
                is_server=_is_server(settings),
                dialects=settings.api,
                is_strict=settings.type == "remote",
                has_infill=_has_infill(settings),
            )
            kept[name] = upstream

    def carry_on(self, before: Surface, engines: Collection[str]) -> None:
        """Know what was known of these engines, which are as they were."""
        self.discovery.carry_on(before.discovery, engines)

    # --- parts

    def _pools(self, engines: Mapping[str, EngineSettings], kept: Mapping[str, Upstream]) -> Upstreams:
        """One pool per engine, over all configurations: open connections stay open."""
        return Upstreams((name, kept.get(name) or self._upstream(settings)) for name, settings in engines.items())

    def _upstream(self, settings: EngineSettings) -> Upstream:
        return Upstream(
            settings.name,
            headers=_headers_to(settings),
            connect_timeout_s=self.config.upstream_connect_timeout_s,
            tasks=self._lasting.tasks,
            is_server=_is_server(settings),
            dialects=settings.api,
            is_strict=settings.type == "remote",
            has_infill=_has_infill(settings),
        )

    def _sources(self, engines: Mapping[str, Engine]) -> dict[str, tuple[ListsModels, float]]:
        """The engines whose word on their models counts, with how long it does."""
        sources: dict[str, tuple[ListsModels, float]] = {}
        for name, engine in engines.items():
            settings = self._settings[name]
            if not is_askable(settings, is_enabled=self.config.discover.enabled):
                continue
            if isinstance(engine, ListsModels):
                sources[name] = engine, settings.tags_cache_ttl_s
            elif is_process(settings):
                sources[name] = ProcessModels(settings, self._ready_address(name)), settings.tags_cache_ttl_s
        return sources

    def _ready_address(self, engine: str) -> Callable[[], str | None]:
        """Where an engine may be asked, while it may."""
        slots, addresses = self._lasting.coordinator.slots, self._lasting.addresses

        def address() -> str | None:
            slot = slots.get(SlotId(engine))
            return addresses.get(SlotId(engine)) if slot is not None and slot.phase is Phase.READY else None

        return address

    def _control(self) -> Control:
        lasting = self._lasting
        return Control(
            self.naming,
            lasting.coordinator,
            lasting.telemetry,
            lasting.registry,
            lasting.memory,
            lasting.tasks,
            lasting.health,
            self.view,
            lasting.reloader,
            self.cache,
            began_at=lasting.began_at,
        )

    def _surroundings(self, params: ModelParams) -> Surroundings:
        config, lasting = self.config, self._lasting
        return Surroundings(
            lasting.instance,
            lasting.coordinator,
            self.naming,
            lasting.health,
            walk.CoolDowns(config.health.rate_limit_cooldown_s, config.health.credit_cooldown_s),
            self._upstreams,
            lasting.addresses,
            _keepalive(config),
            lasting.telemetry,
            lasting.owners,
            params,
            KeptAnswers(self.cache, config, params),
            self.knowledge.has_infill,
            lasting.tasks,
        )

    def _routes(self) -> Iterable[Route]:
        config, naming, lasting, control, view = self.config, self.naming, self._lasting, self.control, self.view
        page = lasting.page
        params = ModelParams(config)
        inference = Inference(naming, self._surroundings(params))
        catalog = Catalog(naming, self.knowledge, self._engines, config.default_model)
        discovering = Discovering(naming, self.discovery)
        has_infill = self.knowledge.has_infill
        explain = Explain(naming, params, lasting.coordinator, lasting.health, self._upstreams, has_infill)
        hub, history = lasting.telemetry.hub, lasting.memory_history
        watching = Watching(hub, naming, lasting.snapshot, history, log_files(config), journals(config))
        for path in INFERENCE_PATHS:
            yield Route("POST", path, inference.serve)
        metrics_access: Access = "key" if config.metrics_require_key else "open"
        rows: list[tuple[str, str, RouteHandler, Access]] = [
            ("GET", "/v1/responses/{id}", inference.follow, "key"),
            ("DELETE", "/v1/responses/{id}", inference.follow, "key"),
            ("POST", "/v1/responses/{id}/cancel", inference.follow, "key"),
            ("GET", "/v1/responses/{id}/input_items", inference.follow, "key"),
            ("POST", "/v1/messages/count_tokens", inference.count_tokens, "key"),
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
            ("POST", "/admin/reload", lasting.reloader.asked, "admin"),
            ("POST", "/admin/discover", discovering.discover, "admin"),
            ("POST", "/admin/explain", explain.explain, "key"),
            ("GET", "/models/available", control.models_available, "key"),
            ("GET", "/models/status", control.models_status, "key"),
            ("POST", "/models/switch", control.models_switch, "admin"),
            ("POST", "/admin/hold", control.hold, "admin"),
            ("POST", "/admin/release", control.release, "admin"),
        ]
        yield from (Route(method, path, handler, access) for method, path, handler, access in rows)
        yield from catalog_routes(catalog)
        yield from management_routes(self._management())
        extras = Extras(
            naming,
            lasting.coordinator,
            lasting.telemetry,
            self._upstreams,
            lasting.addresses,
            {name: settings.base_url or "" for name, settings in self._settings.items()},
            allows_destructive=config.allow_destructive_ollama_api,
        )
        yield from extra_routes(extras, inference)

    def _management(self) -> OllamaManagement:
        """Ollama daemons in the order of the configuration."""
        cache = self.cache
        return OllamaManagement(
            self.naming,
            self._lasting.telemetry,
            {name: (self._settings[name].base_url or "").rstrip("/") for name in self._management_upstreams},
            self._management_upstreams,
            cache.forget if cache is not None else lambda _engine: None,
            allows_destructive=self.config.allow_destructive_ollama_api,
        )


def _is_server(settings: EngineSettings) -> bool:
    return settings.type in ("remote", "ollama", "api_swap")


def _has_infill(settings: EngineSettings) -> bool:
    return isinstance(settings, GenericProcess) and is_llamacpp(settings.start_cmd)


def _headers_to(settings: EngineSettings) -> dict[str, str]:
    headers = dict(settings.headers)
    if settings.api_key:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    return headers


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


def journals(config: Config) -> dict[str, str]:
    """The command that shows what an engine prints, for those that systemd runs for us."""
    units = [engine for engine in config.engines.values() if isinstance(engine, SystemdUnit)]
    return {unit.name: journal_command(unit.unit, unit.scope) for unit in units}
