"""The models that a configuration knows, and the slots that serve them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from enginerouter.config.engines import GenericProcess, Profile
from enginerouter.config.model import Config, EngineSettings, Model
from enginerouter.slots import SlotId


def slot_of(engine: EngineSettings, upstream_model: str, model_id: str = "") -> SlotId:
    """The slot that serves a model: its engine, or the pair where changing the model needs a reload.

    Of an engine with profiles, a model is the profile of its id, else of its `upstream_id`.
    """
    if profiles := _profiles_of(engine):
        return SlotId(engine.name, model_id if model_id in profiles else upstream_model)
    return SlotId(engine.name, upstream_model if engine.type == "api_swap" else None)


def _profiles_of(engine: EngineSettings) -> Mapping[str, Profile]:
    return engine.profiles if isinstance(engine, GenericProcess) else {}


def models_of(config: Config) -> Iterable[Model]:
    """Declared models, then the ids engines are known to serve; an engine without any serves its own name.

    Not so an Ollama daemon: it says itself what it has.
    """
    engines = {name: e for name, e in config.engines.items() if e.enabled}
    declared = [m for m in config.models if m.engine in engines]
    yield from declared
    known = {m.id for m in declared}
    named = {slot_of(engines[m.engine], m.upstream_id or m.id, m.id) for m in declared}
    for engine in engines.values():
        if profiles := _profiles_of(engine):
            for profile in profiles.values():
                if SlotId(engine.name, profile.id) not in named and profile.id not in known:
                    yield Model(id=profile.id, engine=engine.name, display_name=profile.name or profile.id)
                    known.add(profile.id)
            continue
        more = [i for i in engine.served_models if i not in known]
        yield from (Model(id=i, engine=engine.name) for i in more)
        known.update(more)
        has_models = any(m.engine == engine.name for m in declared) or bool(engine.served_models)
        if not has_models and engine.name not in known and engine.type != "ollama":
            yield Model(id=engine.name, engine=engine.name)
            known.add(engine.name)
