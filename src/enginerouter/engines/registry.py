"""From settings to engines: which class serves which `type`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from enginerouter.config.engines import ApiSwap, EngineSettings, GenericProcess, Ollama, Remote, SystemdUnit
from enginerouter.engines.api_swap import ApiSwapEngine
from enginerouter.engines.base import Engine
from enginerouter.engines.directory import SlotDirectory
from enginerouter.engines.ollama import OllamaEngine
from enginerouter.engines.process import GenericProcessEngine
from enginerouter.engines.remote import RemoteEngine
from enginerouter.engines.systemd_unit import SystemdUnitEngine
from enginerouter.state import StateFile


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
