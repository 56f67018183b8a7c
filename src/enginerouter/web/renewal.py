"""From what has changed in the configuration to what the swap and the rest have to know of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from enginerouter.config.changes import Changes
from enginerouter.config.key import keys_of
from enginerouter.config.model import Config
from enginerouter.engines.base import Engine
from enginerouter.engines.process import GenericProcessEngine
from enginerouter.errors import FreeFailed
from enginerouter.slots import SlotId
from enginerouter.swap.renewal import Renewed
from enginerouter.swap.takeover import taken_over
from enginerouter.web.slots_of import rules_of, slot_specs, undeclared_spec


def without_restart(new: Config, running: Config) -> Config:
    """A configuration as far as it counts without a restart of the router."""
    kept = {f.name: getattr(running, f.name) for f in keys_of(Config) if f.key.reload == "restart"}
    return dataclasses.replace(new, **kept)


@dataclass(frozen=True, slots=True)
class Renewal:
    """`config` is the one to come, `changes` what is different in it."""

    changes: Changes
    config: Config

    @property
    def others(self) -> tuple[str, ...]:
        """Engines of which nothing counts any more that was seen of them."""
        changes = self.changes
        return (*changes.removed, *changes.changed, *changes.moved)

    def forgets(self, slot: SlotId) -> bool:
        """Whether what was measured of a slot was measured of another launch, or is of no use."""
        changes = self.changes
        profiles = (*changes.changed_profiles, *changes.removed_profiles)
        return slot.engine in (*changes.removed, *changes.changed) or (slot.engine, slot.model) in profiles

    def for_swap(self, built: Mapping[str, Engine]) -> Renewed:
        changes, config = self.changes, self.config
        return Renewed(
            specs=slot_specs(config),
            rules=rules_of(config),
            spec_of=lambda slot: undeclared_spec(config, slot),
            engines={name: built[name] for name in (*changes.added, *changes.changed)},
            moved={name: built[name] for name in changes.moved},
            removed=changes.removed,
            changed_slots={SlotId(engine, profile) for engine, profile in changes.changed_profiles},
        )


async def running_in(engines: Mapping[str, Engine]) -> dict[str, list[SlotId] | FreeFailed]:
    """What new engines have in memory before anything is asked of them.

    Servers and units may. A process of ours cannot: it would be that of an engine which is only just leaving.
    """
    asked = {name: engine for name, engine in engines.items() if not isinstance(engine, GenericProcessEngine)}
    return {name: found async for name, found in taken_over(asked)}
