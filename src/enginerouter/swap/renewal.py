"""What a reload does to slots and engines: all that can be changed as it runs is; what cannot drains first.

A slot whose launch has changed is *outdated*: it lets nobody new in, serves its running requests to their end without a
deadline, is freed, and is then made anew or taken away. Who waits for it waits for what it will be. An engine is
replaced as a whole, once all of its slots are cold. Everything else of a slot is words, and counts at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass, field

from enginerouter.engines.base import Engine, OnExit, Sleeper
from enginerouter.errors import FreeFailed
from enginerouter.slots import SlotId
from enginerouter.swap import words
from enginerouter.swap.board import Board
from enginerouter.swap.circuit import CLOSED
from enginerouter.swap.leases import Leases
from enginerouter.swap.model import Fate, Lane, Learned, Rules, Slot, SlotSpec
from enginerouter.swap.phases import Event, Phase
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

SpecOf = Callable[[SlotId], SlotSpec | None]


@dataclass(frozen=True, slots=True)
class Renewed:
    """What another configuration means for the swap.

    `specs` are all its slots; `spec_of` gives those that it allows without naming them. `engines` are new objects, of
    engines that were added or have changed; `moved` of engines that hold nothing here, which are replaced under their
    requests. `removed` names engines, `changed_slots` slots of engines that stay.
    """

    specs: Collection[SlotSpec]
    rules: Rules
    spec_of: SpecOf
    engines: Mapping[str, Engine] = field(default_factory=dict)
    moved: Mapping[str, Engine] = field(default_factory=dict)
    removed: Collection[str] = ()
    changed_slots: Collection[SlotId] = ()


@dataclass(slots=True)
class _Coming:
    """What takes the place of an engine once it is cold; `engine` None: nothing."""

    engine: Engine | None
    specs: list[SlotSpec]


class Renewals:
    """`engines` is changed here, and only here. `crashed` is what engines are to call, `move` moves a slot.

    `done` is called when something that had to drain first has been replaced or taken away.
    """

    def __init__(
        self,
        board: Board,
        engines: MutableMapping[str, Engine],
        tasks: TaskGroup,
        leases: Leases,
        move: Callable[[Slot, Event, str], None],
        crashed: OnExit,
        dispatch: Callable[[Lane], None],
        done: Callable[[], None],
    ) -> None:
        self._board = board
        self._engines = engines
        self._tasks = tasks
        self._leases = leases
        self._move = move
        self._crashed = crashed
        self._dispatch = dispatch
        self._done = done
        self._coming: dict[str, _Coming] = {}
        self._outdated: set[SlotId] = set()
        self._under_way: set[str | SlotId] = set()
        self._retired: set[Engine] = set()

    def apply(self, renewed: Renewed) -> list[SlotId]:
        """All of it in one step. Gives the slots that are new and may be started."""
        board = self._board
        board.rules = renewed.rules
        by_engine: dict[str, list[SlotSpec]] = {}
        for spec in renewed.specs:
            by_engine.setdefault(spec.id.engine, []).append(spec)
        was_preloaded = {s.id for s in board.slots.values() if s.spec.is_preloaded}
        for name, engine in renewed.moved.items():
            self._exchange(name, engine)
        for name in renewed.removed:
            self._replace_later(name, _Coming(None, []), "removed")
        for name, engine in renewed.engines.items():
            specs = by_engine.get(name, [])
            if name in self._engines:
                self._replace_later(name, _Coming(engine, specs), "renewed")
            else:
                self._engines[name] = engine
                engine.watch(self._crashed)
        for name in self._engines:
            if (coming := self._coming.get(name)) is None:
                self._put(name, by_engine.get(name, []), renewed)
            elif coming.engine is not None:
                coming.specs = by_engine.get(name, [])
        for slot in board.slots.values():
            if slot.spec.is_preloaded and slot.id not in was_preloaded and slot.phase is Phase.COLD and not slot.fate:
                slot.wish = "preload"
        return [slot_id for name in renewed.engines for slot_id in board.slots if slot_id.engine == name]

    def engine_to_be(self, name: str) -> Engine | None:
        """The engine that a setting is for: the one that takes over, where one is to."""
        coming = self._coming.get(name)
        return coming.engine if coming is not None else self._engines.get(name)

    def goes_along(self, slot_id: SlotId) -> None:
        """Of an engine that is to go something was in memory all along, as it says only now: that goes, too."""
        if (coming := self._coming.get(slot_id.engine)) is None:
            return
        slot = self._board.slots.get(slot_id) or self._board.add(SlotSpec(slot_id))
        if not slot.fate:
            self._outdate(slot, "removed" if coming.engine is None else "renewed")

    # --- slots of engines that stay

    def _put(self, name: str, specs: list[SlotSpec], renewed: Renewed) -> None:
        named = {spec.id: spec for spec in specs}
        for slot in self._of(name):
            spec = named.pop(slot.id, None) or renewed.spec_of(slot.id)
            if spec is None:
                self._outdate(slot, "removed")
                continue
            self._board.put(slot, spec)
            if slot.id in renewed.changed_slots or slot.fate:
                self._outdate(slot, "renewed")
        for spec in named.values():
            self._board.add(spec)

    def _outdate(self, slot: Slot, fate: Fate) -> None:
        slot.fate = fate
        slot.circuit = CLOSED
        slot.wish = ""
        slot.wished_until = 0.0
        slot.is_unload_wanted = slot.phase is not Phase.COLD
        self._outdated.add(slot.id)
        if fate == "removed":
            self._leases.reject(slot, words.removed(slot.id))

    # --- engines

    def _replace_later(self, name: str, coming: _Coming, fate: Fate) -> None:
        if (before := self._coming.get(name)) is not None and before.engine is not None:
            self._retire(before.engine)
        self._coming[name] = coming
        for slot in self._of(name):
            self._outdate(slot, fate)

    def _exchange(self, name: str, engine: Engine) -> None:
        old = self._engines[name]
        self._engines[name] = engine
        engine.watch(self._crashed)
        self._retire(old)

    def _retire(self, engine: Engine) -> None:
        self._retired.add(engine)
        self._tasks.spawn(self._close(engine), f"close {engine.name}")

    async def _close(self, engine: Engine) -> None:
        await engine.close()
        self._retired.discard(engine)

    def _of(self, name: str) -> list[Slot]:
        return [s for s in self._board.slots.values() if s.id.engine == name]

    # --- once they are cold

    def renew(self, lane: Lane) -> None:
        """Begin to make anew what is outdated and cold, in a lane in which no swap runs."""
        if not self._outdated:
            return
        for slot in [s for s in lane.slots.values() if s.fate and s.phase is Phase.COLD]:
            name = slot.id.engine
            of_one = name if name in self._coming else slot.id
            slots = self._of(name) if name in self._coming else [slot]
            if of_one not in self._under_way and all(s.phase is Phase.COLD for s in slots):
                self._under_way.add(of_one)
                self._tasks.spawn(self._finish(of_one, slots), f"renew {of_one}")

    async def _finish(self, of_one: str | SlotId, slots: list[Slot]) -> None:
        """End what sleeps, then put the new in place of the old in one step."""
        try:
            for slot in slots:
                await self._end_asleep(slot)
        finally:
            self._under_way.discard(of_one)
        lanes = [self._board.lane_of(slot) for slot in slots if slot.id in self._board.slots]
        if all(slot.phase is Phase.COLD for slot in slots):
            if isinstance(of_one, str):
                self._install(of_one)
            else:
                self._remake(slots[0])
            self._done()
        if not self._board.is_closing:
            for lane in dict.fromkeys((*lanes, *self._board.lanes)):
                self._dispatch(lane)

    async def _end_asleep(self, slot: Slot) -> None:
        engine = self._engines[slot.id.engine]
        if not isinstance(engine, Sleeper):
            return
        slot.kept_bytes = None  # nobody else ends it now
        try:
            await engine.end(slot.id)
        except FreeFailed as stuck:
            self._move(slot, Event.NOT_GONE, stuck.message)

    def _install(self, name: str) -> None:
        coming = self._coming.pop(name)
        self._retire(self._engines[name])
        specs = {spec.id: spec for spec in coming.specs}
        for slot in self._of(name):
            if (spec := specs.pop(slot.id, None)) is not None:
                self._board.put(slot, spec)
                self._make_new(slot)
            else:
                self._take_away(slot)
        if coming.engine is None:
            del self._engines[name]
            return
        self._engines[name] = coming.engine
        coming.engine.watch(self._crashed)
        for spec in specs.values():
            self._board.add(spec)

    def _remake(self, slot: Slot) -> None:
        if slot.fate == "removed":
            self._take_away(slot)
        else:
            self._make_new(slot)

    def _take_away(self, slot: Slot) -> None:
        self._outdated.discard(slot.id)
        self._leases.reject(slot, words.removed(slot.id))
        self._board.remove(slot)
        log.info("%s is no longer configured", slot.id)

    def _make_new(self, slot: Slot) -> None:
        """What was measured of it was measured of another launch."""
        self._outdated.discard(slot.id)
        slot.fate = ""
        slot.circuit = CLOSED
        slot.learned = Learned()
        slot.early_crash = None
        slot.before_start_bytes = slot.drop_bytes = slot.before_end_bytes = slot.missing_bytes = None
        slot.kept_bytes, slot.was_unloaded = None, False
        log.info("%s starts with its new configuration when it is next needed", slot.id)

    async def close(self) -> None:
        """Close the engines that nobody uses any more, and those that were to come."""
        coming = [c.engine for c in self._coming.values() if c.engine is not None]
        await asyncio.gather(*(engine.close() for engine in (*self._retired, *coming)), return_exceptions=True)
