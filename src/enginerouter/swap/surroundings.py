"""What a walk acts on: engines, memory, and the way back to the coordinator. Given to it, and to nobody else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from enginerouter.engines.base import Engine, Found
from enginerouter.errors import RouterError
from enginerouter.swap.memory import MemorySource
from enginerouter.swap.model import Rules, Slot
from enginerouter.swap.phases import Event
from enginerouter.tasks import TaskGroup


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`move` changes a slot's phase, `reject` answers all who wait for a slot.

    `found` lets be known what others have loaded.
    """

    engines: Mapping[str, Engine]
    rules: Rules
    memory: MemorySource
    tasks: TaskGroup
    now: Callable[[], float]
    move: Callable[[Slot, Event, str], None]
    reject: Callable[[Slot, RouterError], None]
    start_failed: Callable[[Slot, str], None]
    found: Callable[[Found], None]

    def engine(self, slot: Slot) -> Engine:
        return self.engines[slot.id.engine]
