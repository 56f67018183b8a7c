"""Everything that is known of the models which a key may see, put together. Asking loads nothing and starts nothing.

Of a model's context, the first that says anything counts: the configuration, the list of its engine, what the engine
said when it last became ready, its command line, the header of its file.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from enginerouter.addresses import stands_for_v1
from enginerouter.config.engines import EngineSettings, GenericProcess
from enginerouter.config.model import Config, Model
from enginerouter.engines.base import Engine
from enginerouter.engines.launch import digest_of, model_paths, plan_launch
from enginerouter.engines.launch_facts import Command, facts_in_command
from enginerouter.engines.model_facts import CAPABILITIES, NOTHING, ModelFacts, common, known
from enginerouter.routing.directory import Listed, models_of
from enginerouter.routing.target import Target
from enginerouter.slots import SlotId
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.phases import Phase
from enginerouter.web.entries import OWNER_OF_CHAINS, Entry
from enginerouter.web.file_facts import FileFacts
from enginerouter.web.keys import Identity
from enginerouter.web.learned_facts import LearnedFacts
from enginerouter.web.naming import Naming
from enginerouter.web.slots_of import slot_specs

NO_COMMAND = Command()


@dataclass(frozen=True, slots=True)
class Launched:
    """How a slot is launched, as far as it says something of its model. `digest` tells whether that has changed."""

    digest: str
    command: Command = NO_COMMAND
    file: Path | None = None


class Knowledge:
    """What catalogues are made of, for one configuration."""

    def __init__(
        self, config: Config, naming: Naming, coordinator: Coordinator, learned: LearnedFacts, files: FileFacts
    ) -> None:
        self._naming = naming
        self._coordinator = coordinator
        self._learned = learned
        self._files = files
        self._engines = config.engines
        self._models = {m.id: m for m in models_of(config)}
        slots = [spec.id for spec in slot_specs(config)]
        self._launched = {slot: launched(config.engines[slot.engine], slot, config) for slot in slots}
        learned.keep_only(slots)

    async def entries(self, identity: Identity) -> list[Entry]:
        """All names that a key may use."""
        listed = await self._naming.listed(identity)
        await self._freshen()
        return [self._entry(one, identity) for one in listed]

    async def entry(self, name: str, identity: Identity) -> Entry:
        """By any name that requests may use. Raises what `Naming.find` raises."""
        found = await self._naming.find(name, identity)
        await self._freshen()
        return self._entry(found, identity)

    async def ask(self, engine: Engine, slot: SlotId) -> None:
        """A slot has become ready: hear from it what it really serves."""
        how = self._launched.get(slot)
        if how is not None:
            model = slot.model or self._upstream_model(slot.engine)
            await self._learned.ask(engine, self._engines[slot.engine], slot, how.digest, model)

    def facts_of(self, target: Target) -> ModelFacts:
        """What is known of a target."""
        how = self._launched.get(target.slot)
        configured, listed = _configured(self._models.get(target.model_id)), self._naming.said_of(target)
        if how is None:
            return known(configured, listed)
        of_file = self._files.of(how.file) if how.file is not None else None
        learned, command = self._learned.of(target.slot, how.digest), how.command.facts
        # What flags leave a model to do counts more than what it could: an embedder's template is one for chats.
        return known(configured, ModelFacts(capabilities=command.capabilities), listed, learned, command, of_file)

    def has_infill(self, target: Target) -> bool:
        """Whether its engine has said that it is a llama.cpp, and is reached at its root: there is its `/infill`."""
        base = self._engines[target.engine].base_url
        return bool(self.facts_of(target).is_llamacpp) and not (base is not None and stands_for_v1(base))

    # --- the parts

    async def _freshen(self) -> None:
        await self._files.freshen([how.file for how in self._launched.values() if how.file is not None])

    def _upstream_model(self, engine: str) -> str | None:
        return next((m.upstream_id or m.id for m in self._models.values() if m.engine == engine), None)

    def _entry(self, listed: Listed, identity: Identity) -> Entry:
        if listed.targets:
            return self._chain(listed, [t for t in listed.targets if not self._naming.is_fenced(t, identity)])
        entry, target = self._placed(listed, listed.slot), self._naming.target_of(listed.id)
        if target is None:
            return entry
        return replace(entry, facts=self.facts_of(target), is_remote=self._naming.is_remote(target))

    def _chain(self, listed: Listed, targets: Sequence[Target]) -> Entry:
        """What all of its targets can, and where it is: with the first of them that is in memory here."""
        here = [t for t in targets if not self._naming.is_remote(t)]
        ready = [t.slot for t in here if self._phase(t.slot) is Phase.READY]
        entry = self._placed(listed, next(iter((*ready, *(t.slot for t in (*here, *targets)), listed.slot))))
        facts = common([self.facts_of(t) for t in targets])
        return replace(entry, owner=OWNER_OF_CHAINS, is_chain=True, facts=facts, is_remote=bool(targets) and not here)

    def _placed(self, listed: Listed, at: SlotId) -> Entry:
        """The entry as its slot is now."""
        entry = Entry(
            listed.id, listed.engine, listed.display_name, listed.description, listed.alias_of, phase=self._phase(at)
        )
        slot = self._coordinator.slots.get(at)
        if slot is None:
            return entry
        idle_s, expires_utc = slot.idle_unload_s, None
        if idle_s is not None and not slot.is_busy:
            expires_utc = time.time() + max(0.0, slot.active_at + idle_s - time.monotonic())
        return replace(entry, held_bytes=slot.learned.held_bytes, expires_utc=expires_utc)

    def _phase(self, slot: SlotId) -> Phase:
        found = self._coordinator.slots.get(slot)
        return found.phase if found is not None else Phase.COLD


def _configured(model: Model | None) -> ModelFacts:
    """Of the `tags`, those that are words of capabilities say which the model has."""
    if model is None:
        return NOTHING
    words = frozenset(model.tags) & frozenset(CAPABILITIES)
    return ModelFacts(context_length=model.context_length, capabilities=words or None)


def launched(settings: EngineSettings, slot: SlotId, config: Config) -> Launched:
    """What a slot's launch says of its model."""
    if not isinstance(settings, GenericProcess):
        return Launched(digest_of([settings.type, settings.base_url or "", str(slot)], {}, None))
    launch = plan_launch(settings, slot, config.base_dir, 0)
    command = facts_in_command(launch.argv)
    file = launch.model
    if file is None and command.file is not None and command.file in model_paths(launch.argv):
        file = Path(command.file).expanduser()
    if file is None or file.suffix.lower() != ".gguf":
        return Launched(launch.digest, command)
    return Launched(launch.digest, command, (launch.cwd or Path()) / file)


def resident(entries: Iterable[Entry]) -> list[Entry]:
    """Those that are in the memory of this machine, each under its own name only."""
    return [e for e in entries if e.is_loaded and not e.is_remote and not e.is_chain and e.alias_of is None]
