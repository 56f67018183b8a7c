"""From the name a client sent to a target that may be served: the directory, what engines say, and the fences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace

from enginerouter.config.model import EngineSettings
from enginerouter.engines.discovery import Discovery
from enginerouter.engines.loaded import Listing
from enginerouter.engines.model_facts import ModelFacts
from enginerouter.errors import Forbidden, UnknownModel, printable
from enginerouter.routing import fences
from enginerouter.routing.directory import Directory, Listed, respelt
from enginerouter.routing.target import Chain, Route, Target
from enginerouter.slots import SlotId
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.phases import Phase
from enginerouter.web.keys import Identity
from enginerouter.web.machine import own_names, own_networks

# Headers by which engines are told who pays.
KEY_HEADERS = frozenset({"authorization", "x-api-key", "api-key", "x-goog-api-key"})
# How long a request waits for engines to list their models, and how long a catalogue does.
PATIENCE_S = 2.0
CATALOGUE_PATIENCE_S = 1.0


def nothing_resident() -> SlotId | None:
    return None


def anything(_name: str) -> bool:
    return True


class Naming:
    """What every handler that takes a model asks. `discovery` is given by `attach`, once there is one."""

    def __init__(self, directory: Directory, coordinator: Coordinator, engines: Mapping[str, EngineSettings]) -> None:
        self.directory = directory
        self._coordinator = coordinator
        self._engines = engines
        self._discovery: Discovery | None = None
        self._said_remote: dict[str, Collection[str]] = {}
        self._said_facts: dict[str, Mapping[str, ModelFacts]] = {}
        own = own_networks()
        self._remote = frozenset(name for name, settings in engines.items() if fences.is_remote(settings, own))
        names = own_names()
        self._fenced = frozenset(name for name, e in engines.items() if fences.may_leave(e, own, names))

    def attach(self, discovery: Discovery) -> None:
        self._discovery = discovery

    def listed_by(self, engine: str, listing: Listing) -> None:
        """An engine said which models it has."""
        self._said_remote[engine] = listing.remote
        self._said_facts[engine] = listing.facts
        self.directory.learn(engine, listing.ids)

    async def route(
        self, name: str | None, identity: Identity, resident: Callable[[], SlotId | None] = nothing_resident
    ) -> Route:
        """Raises what `Directory.route` raises, Forbidden beyond a fence, EngineUnavailable if nobody can tell."""
        try:
            route = self.directory.route(name, identity.may_name, resident)
        except UnknownModel as unknown:
            route = await self._ask_engines(name or unknown.model, identity)
        if isinstance(route, Target):
            self.check_fence(route, identity)
            self._coordinator.add(route.slot)
            return route
        if route.unknown and self._discovery is not None and await self._discovery.freshen(CATALOGUE_PATIENCE_S):
            again = self.directory.route(name, identity.may_name, resident)
            route = again if isinstance(again, Chain) else route
        for target in route.targets:
            if not self.is_fenced(target, identity):
                self._coordinator.add(target.slot)
        return route

    async def target(
        self, name: str | None, identity: Identity, resident: Callable[[], SlotId | None] = nothing_resident
    ) -> Target:
        """As `route`, for what is done to one target (a swap, an unload): of a chain, its first on this machine."""
        route = await self.route(name, identity, resident)
        if isinstance(route, Target):
            return route
        usable = [t for t in route.targets if not self.is_fenced(t, identity)]
        if not usable:
            raise Forbidden(f"no target of {route.asked!r} may be used with this key, or none is known now")
        return next((t for t in usable if not self.is_remote(t)), usable[0])

    def resident(self) -> SlotId | None:
        """What serves a request without a model, where no default is configured: the slot here that was last in use.

        One that holds memory before one that is always there; never what is on another machine, which nobody named.
        """
        ready = [s for s in self._coordinator.slots.values() if s.phase is Phase.READY and self.is_here(s.id)]
        return max(ready, key=lambda s: (s.spec.holds_memory, s.active_at)).id if ready else None

    def is_here(self, slot: SlotId) -> bool:
        """Whether its engine is one of this machine."""
        return slot.engine not in self._remote

    def check_fence(self, target: Target, identity: Identity) -> None:
        """Raises Forbidden for what `is_fenced`."""
        if self.is_fenced(target, identity):
            raise _beyond_fence(target)

    def is_fenced(self, target: Target, identity: Identity) -> bool:
        """Whether a request of this key for the target would leave the machine, or might, and may not."""
        if identity.may_use_remote and not target.stays_local:
            return False
        return target.engine in self._fenced or self.is_remote(target)

    async def _ask_engines(self, name: str, identity: Identity) -> Route:
        """Engines may have a model by now that they had not when they were asked last."""
        discovery = self._discovery
        if discovery is None:
            raise self._unknown(name, identity)
        if await discovery.freshen(PATIENCE_S):
            with suppress(UnknownModel):
                return self.directory.route(name, identity.may_name, nothing_resident)
        asked = self.directory.asked_of(name)
        if asked is not None and identity.may_name(name) and (failure := discovery.failure_of(asked)) is not None:
            raise failure
        raise self._unknown(name, identity)

    def _unknown(self, name: str, identity: Identity) -> UnknownModel:
        """What is suggested instead is what this key may use."""
        names = self.directory.suggestions(identity.may_name)
        if not identity.may_use_remote:
            names = [name for name in names if self._is_within(name, identity)]
        return UnknownModel(name, names)

    def _is_within(self, name: str, identity: Identity) -> bool:
        """Whether a name leads to anything that is not fenced from this key."""
        try:
            route = self.directory.route(name, anything, nothing_resident)
        except UnknownModel:
            return False
        targets = (route,) if isinstance(route, Target) else route.targets
        return any(not self.is_fenced(t, identity) for t in targets)

    def is_unconfigured(self, target: Target) -> bool:
        """Whether its engine lacks the key that it was configured to have."""
        return self._engines[target.engine].unconfigured

    def has_our_key(self, target: Target) -> bool:
        """Whether its engine knows the operator by a key, so that a refusal is the operator's to mend."""
        settings = self._engines[target.engine]
        return settings.api_key is not None or any(h.lower() in KEY_HEADERS for h in settings.headers)

    def is_remote(self, target: Target) -> bool:
        """Whether a request for it leaves this machine."""
        settings = self._engines.get(target.engine)
        if settings is None:  # a reload has taken it away, and nothing reaches it any more
            return False
        said_remote = self._said_remote.get(target.engine, ())
        return target.engine in self._remote or fences.is_cloud_model(settings, target.upstream_model, said_remote)

    def said_of(self, target: Target) -> ModelFacts | None:
        """What its engine's list says of it, under either spelling of its name."""
        said = self._said_facts.get(target.engine, {})
        return said.get(target.upstream_model) or said.get(respelt(target.upstream_model))

    def target_of(self, name: str) -> Target | None:
        """What a name of a catalogue leads to; None for a chain, and for what has just gone."""
        try:
            route = self.directory.route(name, anything, nothing_resident)
        except UnknownModel:
            return None
        return route if isinstance(route, Target) else None

    def outdate(self, engine: str) -> None:
        """The models of an engine have changed through us."""
        if self._discovery is not None:
            self._discovery.outdate(engine)

    def may_see(self, slot: SlotId, identity: Identity) -> bool:
        """Whether a key may use some name of a slot, and leave the machine for it if it is elsewhere."""
        return self.may_know_engine(slot.engine, identity) and self.directory.may_use(slot, identity.may_name)

    def may_know_engine(self, engine: str, identity: Identity) -> bool:
        """Whether a key may hear of an engine at all: not of other machines' if it may not go there."""
        return identity.may_use_remote or engine not in self._fenced

    def may_know_model(self, engine: str, model: str, identity: Identity) -> bool:
        """Whether a key may hear of a model of an engine, by its id here."""
        if not identity.is_admin and not identity.may_name(model) and not identity.may_name(f"{engine}/{model}"):
            return False
        try:
            route = self.directory.route(f"{engine}/{model}", anything, nothing_resident)
        except UnknownModel:  # no engine has it any more
            return self.may_know_engine(engine, identity)
        return isinstance(route, Target) and not self.is_fenced(route, identity)

    def may_know_target(self, label: str, identity: Identity) -> bool:
        """Whether a key may hear that `engine/model` served somebody: not from beyond its fence."""
        engine, _, model = label.partition("/")
        if identity.may_use_remote or engine not in self._engines:
            return True
        target = self.target_of(label)
        if target is not None:
            return not self.is_fenced(target, identity)
        return self.may_know_engine(engine, identity) and not fences.is_cloud_model(self._engines[engine], model, ())

    def models_of(self, slot: SlotId, identity: Identity) -> list[str]:
        """The models of a slot that a key may use, by their ids."""
        return [m for m in self.directory.models_of(slot, identity.may_name) if self._is_within(m, identity)]

    # --- catalogues

    async def listed(self, identity: Identity) -> list[Listed]:
        """All names that this key may use. Asks engines whose list is old, and waits for them only a moment."""
        if self._discovery is not None:
            await self._discovery.freshen(CATALOGUE_PATIENCE_S)
        return [m for m in self.directory.listed(identity.may_name) if self._may_see(m, identity)]

    async def aliases(self, identity: Identity) -> list[Chain]:
        """The aliases that this key may use, with those of their targets that it may; hidden ones for admins only."""
        if self._discovery is not None:
            await self._discovery.freshen(CATALOGUE_PATIENCE_S)
        found = [
            replace(chain, targets=tuple(t for t in chain.targets if not self.is_fenced(t, identity)))
            for chain in self.directory.aliases(identity.may_name)
            if identity.is_admin or not chain.alias.hidden
        ]
        return [chain for chain in found if chain.targets or identity.is_admin]

    async def find(self, name: str, identity: Identity) -> Listed:
        """One entry, by any name that requests may use. Raises what `Directory.resolve` raises."""
        await self.listed(identity)
        try:
            found = self.directory.find(name, identity.may_name)
        except UnknownModel:
            raise self._unknown(name, identity) from None
        if not self._may_see(found, identity):
            raise self._unknown(name, identity)
        return found

    def _may_see(self, model: Listed, identity: Identity) -> bool:
        """A chain shows if the key may use any of its targets."""
        if model.targets:
            return any(not self.is_fenced(t, identity) for t in model.targets)
        target = self.target_of(model.id)
        return target is not None and not self.is_fenced(target, identity)


def _beyond_fence(target: Target) -> Forbidden:
    if target.stays_local:
        return Forbidden(f"{target.asked!r} must not leave this machine (local_only), and {target.label} would")
    return Forbidden(
        f"this key may not use engines of other machines, and {printable(target.asked)!r} is served by one"
    )
