"""From settings to engines: which class serves which `type`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from enginerouter.config.engines import ApiSwap, EngineSettings, GenericProcess, Ollama, Remote, SystemdUnit
from enginerouter.engines import adoption, proctree
from enginerouter.engines.adoption import LaunchRecord
from enginerouter.engines.api_swap import ApiSwapEngine
from enginerouter.engines.base import Ended, Engine
from enginerouter.engines.child import Child, Tree
from enginerouter.engines.directory import SlotDirectory
from enginerouter.engines.ending import end_tree, end_wholly, ended_of, signal_number, would_not_go
from enginerouter.engines.enginelog import EngineLog, Mark
from enginerouter.engines.launch import stop_timeout_s
from enginerouter.engines.ollama import OllamaEngine
from enginerouter.engines.process import GenericProcessEngine
from enginerouter.engines.remote import RemoteEngine
from enginerouter.engines.systemd_unit import SystemdUnitEngine
from enginerouter.errors import FreeFailed
from enginerouter.state import StateFile
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

_LEFTOVER_GRACE_S = 10.0


def build_engine(
    settings: EngineSettings,
    state: StateFile,
    base_dir: Path,
    directory: SlotDirectory,
    warmup_model: str | None = None,
    models: Collection[str] = (),
) -> Engine:
    if isinstance(settings, ApiSwap):
        return ApiSwapEngine(settings, tuple(models))
    if isinstance(settings, Ollama):
        return OllamaEngine(settings, warmup_model=warmup_model)
    if isinstance(settings, Remote):
        return RemoteEngine(settings)
    if isinstance(settings, SystemdUnit):
        return SystemdUnitEngine(settings, directory, warmup_model=warmup_model)
    assert isinstance(settings, GenericProcess), settings.type
    return GenericProcessEngine(settings, base_dir, state, directory, warmup_model=warmup_model)


def build_engines(
    engines: Mapping[str, EngineSettings],
    state: StateFile,
    base_dir: Path,
    directory: SlotDirectory,
    warmup_models: Mapping[str, str] = MappingProxyType({}),
    models: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> dict[str, Engine]:
    """The enabled engines, by name, in the order of the configuration.

    `warmup_models`: what to ask each for. `models`: the declared ones, by the names their engines know.
    """
    return {
        name: build_engine(settings, state, base_dir, directory, warmup_models.get(name), models.get(name, ()))
        for name, settings in engines.items()
        if settings.enabled
    }


async def end_launches_of_removed_engines(state: StateFile, engines: Collection[str]) -> list[Ended]:
    """At start-up: end what earlier routers launched for engines that are no longer configured.

    What would not go is logged: no engine of ours is concerned.
    """
    processes = await asyncio.to_thread(proctree.snapshot)
    boot = await asyncio.to_thread(proctree.boot_id)
    markers = adoption.leftover_markers(processes, state.router_id)
    leftovers = {m: slot_text for m, slot_text in markers.items() if adoption.engine_of(slot_text) not in engines}
    ended: list[Ended] = []
    tasks = TaskGroup()
    try:
        for slot_text, raw in state.get(adoption.SECTION).items():
            if adoption.engine_of(slot_text) in engines:
                continue
            record = adoption.parse_record(raw)
            lives = record is not None and adoption.is_same_process(record, boot, processes)
            if record is not None and (lives or (record.is_container and record.boot_id == boot)):
                leftovers.pop(record.marker, None)
                if (gone := await _end_removed(slot_text, record, tasks)) is None:
                    continue
                ended.append(gone)
            state.put_entry(adoption.SECTION, slot_text, None)
        for marker, slot_text in leftovers.items():
            if (gone := await _end_removed(slot_text, marker, tasks)) is not None:
                ended.append(gone)
    finally:
        await tasks.close()
    return ended


async def _end_removed(slot_text: str, launched: LaunchRecord | str, tasks: TaskGroup) -> Ended | None:
    """End a launch, by its record or by its marker alone; None if something of it would not go, which is logged."""
    log.info("ending %r, launched by an earlier router for an engine that is gone", slot_text)
    slot = adoption.slot_of(slot_text)
    record = launched if isinstance(launched, LaunchRecord) else None
    tree = Tree(str(launched)) if record is None else Tree(record.marker, {record.leader})
    ended = await ended_of(slot, tree, is_container=record is not None and record.is_container)
    try:
        if record is not None and record.ending is not None:
            env = await asyncio.to_thread(proctree.environment, record.leader)
            launch = adoption.launch_on_record(slot, record, record.ending, env)
            child = Child(
                launch, record.leader, record.marker, EngineLog(launch.log_path), Mark(record.log_offset), tasks
            )
            try:
                await end_wholly(child, "TERM", stop_timeout_s(launch, _LEFTOVER_GRACE_S), tasks)
            finally:
                child.close()
        elif left := await end_tree(tree, signal_number("TERM"), _LEFTOVER_GRACE_S, tasks):
            raise would_not_go(slot, left)
    except FreeFailed as error:
        log.error("%s", error)
        return None
    return ended
