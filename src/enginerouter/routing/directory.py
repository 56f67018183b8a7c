"""Which slot serves a name: exact model id → alias → alias glob → discovered model → `engine/model` → 404.

Everything is worked out once per configuration; a request costs one dictionary look-up. What engines say of their
models is fed in (`learn`); nothing is asked here. `engine/model` may name a model that nobody declared where that can
do no harm: at a remote engine always, at one whose models take memory only if the engine has said that it has it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from enginerouter.config.engines import GenericProcess, Profile
from enginerouter.config.model import Alias, Config, EngineSettings, Model
from enginerouter.errors import BadRequest, NotBuilt, UnknownModel
from enginerouter.slots import SlotId

LATEST = ":latest"
# Engines at which `engine/model` may name a model that the configuration does not.
LIVE_TYPES = ("ollama", "api_swap", "remote")
MayName = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Target:
    """What a name stands for. `asked` is the canonical name (alias or model id), `upstream_model` the engine's own.

    `label` is `engine/model`, for logs, metrics and `X-EngineRouter-Resolved`. `is_glob`: `asked` is an alias glob.
    `is_declared` False: the model is in no configuration, so its name is no label of metrics.
    """

    asked: str
    model_id: str
    engine: str
    slot: SlotId
    upstream_model: str
    label: str
    first_byte_timeout_s: float | None = None
    is_glob: bool = False
    is_declared: bool = True


@dataclass(frozen=True, slots=True)
class Listed:
    """A name as catalogues show it. `alias_of` is set for renames."""

    id: str
    engine: str
    slot: SlotId
    display_name: str
    description: str = ""
    context_length: int | None = None
    alias_of: str | None = None


def slot_of(engine: EngineSettings, upstream_model: str, model_id: str = "") -> SlotId:
    """The slot that serves a model: its engine, or the pair where changing the model needs a reload.

    Of an engine with profiles, a model is the profile of its id, else of its `upstream_id`.
    """
    if profiles := _profiles_of(engine):
        return SlotId(engine.name, model_id if model_id in profiles else upstream_model)
    return SlotId(engine.name, upstream_model if engine.type == "api_swap" else None)


def _profiles_of(engine: EngineSettings) -> Mapping[str, Profile]:
    return engine.profiles if isinstance(engine, GenericProcess) else {}


class Directory:
    """All names of one configuration, and those that engines were heard to serve."""

    def __init__(self, config: Config) -> None:
        self._default = config.default_model
        self._listed: list[Listed] = []
        self._models: dict[str, Target] = {}
        self._names: dict[str, Target] = {}
        self._chains: set[str] = set()
        self._globs: list[tuple[str, Alias]] = []
        self._engines = engines = {name: e for name, e in config.engines.items() if e.enabled}
        # What engines said they have; of all that they said, the names that nothing else means.
        self._said: dict[str, tuple[str, ...]] = {}
        self._discovered: dict[str, Target] = {}
        # Renames of what only an engine knows.
        self._late: list[tuple[Alias, str]] = []
        for model in models_of(config):
            self._add_model(model, engines[model.engine])
        self._names.update(self._models)
        for target in list(self._models.values()):
            self._names.setdefault(target.label, target)
        for alias in config.aliases.values():
            self._add_alias(alias)

    def _add_model(self, model: Model, engine: EngineSettings) -> None:
        slot = slot_of(engine, model.upstream_id or model.id, model.id)
        label = f"{engine.name}/{model.id}"
        self._models[model.id] = Target(
            model.id,
            model.id,
            engine.name,
            slot,
            model.upstream_id or model.id,
            label,
            engine.first_byte_timeout_s,
        )
        self._listed.append(
            Listed(
                model.id,
                engine.name,
                slot,
                model.display_name or model.id,
                model.description,
                model.context_length,
            )
        )

    def _add_alias(self, alias: Alias) -> None:
        if alias.chain:
            self._chains.add(alias.name)
            return
        if any(c in alias.name for c in "*?["):
            self._globs.append((alias.name, alias))
            return
        # The loader has refused aliases of aliases, so this is a model. What the configuration names is meant, also
        # where no engine has said that it has it.
        found = self._names.get(alias.target or "") or self._direct(alias.target or "")
        if found is None:
            self._late.append((alias, alias.target or ""))
            return
        target = replace(found, asked=alias.name, is_declared=True)
        self._names[alias.name] = target
        if not alias.hidden:
            shown = next((m for m in self._listed if m.id == target.model_id), None)
            self._listed.append(
                Listed(
                    alias.name,
                    target.engine,
                    target.slot,
                    alias.name,
                    alias.description,
                    shown.context_length if shown is not None else None,
                    alias_of=target.model_id,
                )
            )

    # --- what engines say

    def learn(self, engine: str, ids: Collection[str]) -> None:
        """Note the models that an engine says it has, instead of what it said before. Declared names stay first."""
        if engine not in self._engines:
            return
        self._said[engine] = tuple(ids)
        self._discovered = found = {}
        for name, settings in self._engines.items():  # in this order: the first engine that has a name serves it
            if not _is_discovered(settings):
                continue
            for model_id in self._said.get(name, ()):
                if model_id not in self._names and model_id not in found:
                    found[model_id] = self._undeclared(settings, model_id, asked=model_id)
        labels = {target.label: target for target in found.values()} if self._late else {}
        for alias, end in self._late:
            if (target := found.get(end) or found.get(_respelt(end)) or labels.get(end)) is not None:
                found[alias.name] = replace(target, asked=alias.name, is_declared=True)

    def collisions(self) -> dict[tuple[str, str], list[str]]:
        """Discovered models that two engines have: (who serves them, who also has them) → the ids."""
        found: dict[tuple[str, str], list[str]] = {}
        for name, settings in self._engines.items():
            for model_id in self._said.get(name, ()) if _is_discovered(settings) else ():
                owner = self._discovered.get(model_id)
                if owner is not None and owner.engine != name:
                    found.setdefault((owner.engine, name), []).append(model_id)
        return found

    def said_by(self, engine: str) -> tuple[str, ...]:
        """The models that an engine says it has."""
        return self._said.get(engine, ())

    def _undeclared(self, engine: EngineSettings, model: str, *, asked: str) -> Target:
        slot, label = slot_of(engine, model), f"{engine.name}/{model}"
        return Target(asked, model, engine.name, slot, model, label, engine.first_byte_timeout_s, is_declared=False)

    def _direct(self, name: str) -> Target | None:
        """`engine/model` with a model that is not declared, at an engine that may have such."""
        engine_name, _, model = name.partition("/")
        engine = self._engines.get(engine_name)
        if engine is None or not model or not (engine.type in LIVE_TYPES or self._said.get(engine_name)):
            return None
        return self._undeclared(engine, model, asked=name)

    def asked_of(self, name: str) -> str | None:
        """The engine whose say decides whether `engine/model` is known, if there is one."""
        direct = self._direct(name)
        return direct.engine if direct is not None and self._engines[direct.engine].type != "remote" else None

    def resolve(self, name: str | None, may_name: MayName, resident: Callable[[], SlotId | None]) -> Target:
        """The target of a name; of no name: `default_model`, else what is resident.

        Raises UnknownModel (also for names the key may not use), NotBuilt for chains, BadRequest without a model.
        """
        if name is None:
            name = self._default or self._name_of(resident())
            if name is None:
                raise BadRequest(
                    "the request names no model: give it a 'model' (GET /v1/models lists them), "
                    "or set default_model in the router's configuration"
                )
        target = self._names.get(name) or self._other_spelling(name) or self._live(name)
        # An alias glob is named by its pattern, and by every name that matches it; a discovered model in two ways.
        if target is not None and (
            may_name(target.asked)
            or (target.is_glob and may_name(name))
            or (not target.is_declared and may_name(target.label))
        ):
            return target
        if name in self._chains and may_name(name):
            raise NotBuilt(f"alias {name!r} is a chain, which this version does not serve; name one of its models")
        raise UnknownModel(name, [m.id for m in self._listed if may_name(m.id)])

    def _other_spelling(self, name: str) -> Target | None:
        """Ollama's `:latest` and a missing tag are one name; then the alias globs."""
        if (target := self._names.get(_respelt(name))) is not None:
            return target
        for pattern, alias in self._globs:
            if fnmatchcase(name, pattern):
                meant = alias.target or ""
                found = self._names.get(meant) or self._discovered.get(meant) or self._direct(meant)
                if found is not None:
                    return replace(found, asked=alias.name, is_glob=True, is_declared=True)
        return None

    def _live(self, name: str) -> Target | None:
        """A model that an engine says it has, by its own name or as `engine/model`."""
        found = self._discovered.get(name) or self._discovered.get(_respelt(name))
        if found is not None:
            return found
        direct = self._direct(name)
        if direct is None or self._engines[direct.engine].type == "remote":
            return direct
        said = self._said.get(direct.engine, ())
        known = next((m for m in (direct.upstream_model, _respelt(direct.upstream_model)) if m in said), None)
        if known is None:
            return None
        found = self._discovered.get(known)
        if found is not None and found.engine == direct.engine:
            return found
        return self._undeclared(self._engines[direct.engine], known, asked=name)

    def _name_of(self, slot: SlotId | None) -> str | None:
        return next((m.id for m in self._listed if m.slot == slot), None) if slot is not None else None

    def find(self, name: str, may_name: MayName) -> Listed:
        """One entry of the catalogue, under any name that `resolve` accepts; raises what it raises."""
        target = self.resolve(name, may_name, lambda: None)
        entries = {m.id: m for m in self._all()}
        exact = entries.get(name)
        if exact is not None:
            return exact
        entry = entries.get(target.model_id) or Listed(target.model_id, target.engine, target.slot, target.model_id)
        return replace(entry, id=name, display_name=name, alias_of=target.model_id)

    def may_use(self, slot: SlotId, may_name: MayName) -> bool:
        """Whether some name leads to this slot that the key may use."""
        named = (*self._names.values(), *self._discovered.values())
        if any(t.slot == slot and (may_name(t.asked) or (not t.is_declared and may_name(t.label))) for t in named):
            return True
        globs = ((alias.name, self._names.get(alias.target or "")) for _, alias in self._globs)
        return any(target is not None and target.slot == slot and may_name(name) for name, target in globs)

    def listed(self, may_name: MayName) -> list[Listed]:
        return [m for m in self._all() if may_name(m.id)]

    def models_of(self, slot: SlotId, may_name: MayName) -> list[str]:
        return [m.id for m in self._all() if m.slot == slot and m.alias_of is None and may_name(m.id)]

    def _all(self) -> Iterable[Listed]:
        yield from self._listed
        hidden = {alias.name for alias, _ in self._late if alias.hidden}
        for name, target in self._discovered.items():
            if name not in hidden:
                alias_of = target.model_id if target.is_declared else None
                yield Listed(name, target.engine, target.slot, name, alias_of=alias_of)


def _respelt(name: str) -> str:
    """Ollama's `:latest` and a missing tag are one name."""
    return name.removesuffix(LATEST) if name.endswith(LATEST) else name + LATEST


def _is_discovered(engine: EngineSettings) -> bool:
    return engine.type == "ollama" or engine.discover_models


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
