"""From the name a client sent to a target that may be served: the directory, what engines say, and the fences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from enginerouter.config.model import EngineSettings
from enginerouter.engines.discovery import Discovery
from enginerouter.engines.loaded import Listing
from enginerouter.errors import Forbidden, UnknownModel
from enginerouter.routing import fences
from enginerouter.routing.directory import Directory, Listed, Target
from enginerouter.slots import SlotId
from enginerouter.swap.coordinator import Coordinator
from enginerouter.web.keys import Identity
from enginerouter.web.machine import own_networks

# How long a request waits for engines to list their models, and how long a catalogue does.
PATIENCE_S = 2.0
CATALOGUE_PATIENCE_S = 1.0


def nothing_resident() -> SlotId | None:
    return None


class Naming:
    """What every handler that takes a model asks. `discovery` is given by `attach`, once there is one."""

    def __init__(self, directory: Directory, coordinator: Coordinator, engines: Mapping[str, EngineSettings]) -> None:
        self.directory = directory
        self._coordinator = coordinator
        self._engines = engines
        self._discovery: Discovery | None = None
        self._said_remote: dict[str, Collection[str]] = {}
        own = own_networks()
        self._remote = frozenset(name for name, settings in engines.items() if fences.is_remote(settings, own))

    def attach(self, discovery: Discovery) -> None:
        self._discovery = discovery

    def listed_by(self, engine: str, listing: Listing) -> None:
        """An engine said which models it has."""
        self._said_remote[engine] = listing.remote
        self.directory.learn(engine, listing.ids)

    async def target(
        self, name: str | None, identity: Identity, resident: Callable[[], SlotId | None] = nothing_resident
    ) -> Target:
        """Raises what `Directory.resolve` raises, Forbidden beyond a fence, EngineUnavailable if nobody can tell."""
        try:
            target = self.directory.resolve(name, identity.may_name, resident)
        except UnknownModel as unknown:
            target = await self._ask_engines(name or unknown.model, identity, unknown)
        if not identity.may_use_remote and self.is_remote(target):
            raise Forbidden(f"this key may not use engines of other machines, and {target.label} is one")
        self._coordinator.add(target.slot)
        return target

    async def _ask_engines(self, name: str, identity: Identity, unknown: UnknownModel) -> Target:
        """Engines may have a model by now that they had not when they were asked last."""
        discovery = self._discovery
        if discovery is None:
            raise unknown
        if await discovery.freshen(PATIENCE_S):
            try:
                return self.directory.resolve(name, identity.may_name, nothing_resident)
            except UnknownModel as still:
                unknown = still
        asked = self.directory.asked_of(name)
        if asked is not None and identity.may_name(name) and (failure := discovery.failure_of(asked)) is not None:
            raise failure
        raise unknown

    def is_remote(self, target: Target) -> bool:
        """Whether a request for it leaves this machine."""
        settings = self._engines[target.engine]
        said_remote = self._said_remote.get(target.engine, ())
        return target.engine in self._remote or fences.is_cloud_model(settings, target.upstream_model, said_remote)

    # --- catalogues

    async def listed(self, identity: Identity) -> list[Listed]:
        """All names that this key may use. Asks engines whose list is old, and waits for them only a moment."""
        if self._discovery is not None:
            await self._discovery.freshen(CATALOGUE_PATIENCE_S)
        return [m for m in self.directory.listed(identity.may_name) if self._may_see(m, identity)]

    async def find(self, name: str, identity: Identity) -> Listed:
        """One entry, by any name that requests may use. Raises what `Directory.resolve` raises."""
        listed = await self.listed(identity)
        found = self.directory.find(name, identity.may_name)
        if not self._may_see(found, identity):
            raise UnknownModel(name, [m.id for m in listed])
        return found

    def _may_see(self, model: Listed, identity: Identity) -> bool:
        return identity.may_use_remote or model.engine not in self._remote
