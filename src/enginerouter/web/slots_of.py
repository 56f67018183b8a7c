"""From the configuration to the slots and rules of the swap."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from enginerouter.config.engines import ApiSwap, GenericProcess, Ollama, Profile
from enginerouter.config.model import Config, EngineSettings
from enginerouter.engines.launch import end_seconds
from enginerouter.routing.directory import models_of, slot_of
from enginerouter.service.unit import stop_seconds
from enginerouter.slots import SlotId
from enginerouter.state import StateFile
from enginerouter.swap.model import Learned, Rules, Slot, SlotSpec

GIB = 1024**3
LEARNED = "learned"
# Engines with many models, each used once, must not make the state file grow for ever.
MOST_REMEMBERED = 200


def slot_specs(config: Config) -> list[SlotSpec]:
    """One slot for every enabled engine, for each of its profiles, or for each model of one whose models take turns.

    A `preload` of an engine of the last kind means its first model.
    """
    specs: dict[SlotId, SlotSpec] = {}
    for engine in config.engines.values():
        if not engine.enabled:
            continue
        if isinstance(engine, GenericProcess) and engine.profiles:
            for profile in engine.profiles.values():
                slot = SlotId(engine.name, profile.id)
                specs[slot] = _spec(slot, engine, config, profile=profile, is_preloaded=profile.preload)
            continue
        models = [m for m in models_of(config) if m.engine == engine.name]
        slots = [slot_of(engine, m.upstream_id or m.id, m.id) for m in models] or [SlotId(engine.name)]
        for n, slot in enumerate(dict.fromkeys(slots)):
            is_preloaded = engine.preload and n == 0
            # What needs no start is there from the beginning: no request for it waits in the queue of the others.
            is_there = engine.type == "remote" and not engine.unconfigured
            specs[slot] = _spec(slot, engine, config, is_preloaded=is_preloaded or is_there)
    return list(specs.values())


def stop_s(config: Config) -> float:
    """What an orderly end of a router with this configuration may take."""
    return stop_seconds(config.shutdown_timeout_s, (end_seconds(e) for e in config.engines.values() if e.enabled))


def undeclared_spec(config: Config, slot: SlotId) -> SlotSpec | None:
    """The slot of a model that only its engine knows; None if the configuration has no place for it."""
    engine = config.engines.get(slot.engine)
    if engine is None or not engine.enabled or (slot.model is not None and isinstance(engine, GenericProcess)):
        return None
    return _spec(slot, engine, config, is_preloaded=False)


def _spec(
    slot: SlotId, engine: EngineSettings, config: Config, *, profile: Profile | None = None, is_preloaded: bool
) -> SlotSpec:
    own = profile if profile is not None else engine
    need = own.memory_gib if own.memory_gib is not None else engine.memory_gib
    idle_s = [s for s in (own.idle_unload_s, engine.idle_unload_s, config.idle_unload_s) if s is not None]
    return SlotSpec(
        slot,
        need_bytes=int(need * GIB) if isinstance(need, float | int) else None,
        uses_learned_need=need == "auto",
        is_pinned=own.pin,
        pins_engine=profile is None and engine.pin and slot.model is not None,
        is_preloaded=is_preloaded,
        idle_unload_s=idle_s[0] if idle_s and engine.type != "remote" else None,
        holds_memory=engine.holds_local_memory,
        max_in_flight=engine.max_in_flight,
        max_restarts=engine.max_restarts,
        restarts=engine.auto_restart,
        rolls_back=engine.rollback,
        is_swapped=engine.type != "remote",
        end_within_s=end_seconds(engine) if isinstance(engine, ApiSwap | Ollama) else None,
    )


def rules_of(config: Config) -> Rules:
    budget = config.memory_budget_gib
    return Rules(
        budget_bytes=int(budget * GIB) if budget is not None else None,
        together=tuple(frozenset(names) for names in config.together),
        drain_timeout_s=config.drain_timeout_s,
        on_drain_timeout=config.on_drain_timeout,
        settle_timeout_s=config.swap_memory_settle_timeout_s,
        min_residency_s=config.swap_min_residency_s,
        max_wait_s=config.swap_max_wait_s,
        linger_s=config.swap_linger_s,
        max_queued=config.max_queued_requests,
        queue_timeout_s=config.queue_timeout_s,
        stall_timeout_s=config.upstream_stall_timeout_s,
    )


def read_learned(state: StateFile) -> dict[SlotId, Learned]:
    """What earlier runs measured. What does not look right is forgotten, not trusted."""
    learned = {}
    for name, entry in state.get(LEARNED).items():
        if isinstance(entry, dict):
            engine, _, model = name.partition("/")
            learned[SlotId(engine, model or None)] = Learned(
                start_s=_number(entry.get("start_s"), float),
                held_bytes=_number(entry.get("held_bytes"), int),
                came_back_bytes=_number(entry.get("came_back_bytes"), int),
            )
    return learned


def learned_section(
    slots: Iterable[Slot], earlier: Mapping[SlotId, Learned], engines: Collection[str]
) -> dict[str, dict[str, Any]]:
    """What the state file keeps: `slots` of now, and what is known of slots that nobody has named in this run.

    Of the latter the last MOST_REMEMBERED, those of `engines` only; whoever is named goes to the end of the row.
    """
    now = {slot.id: slot.learned for slot in slots}
    unnamed = {slot: learned for slot, learned in earlier.items() if slot not in now and slot.engine in engines}
    kept = list(unnamed.items())[-MOST_REMEMBERED:]
    return {str(slot): dataclasses.asdict(learned) for slot, learned in (*kept, *now.items()) if learned != Learned()}


def _number(value: Any, kind: type) -> Any:
    is_sound = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    return kind(value) if is_sound else None
