"""Which slot serves a name: exact model id → alias → alias glob → `engine/model` → 404 with the closest names.

Everything is worked out once per configuration; a request costs one dictionary look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from enginerouter.config.model import Alias, Config, EngineSettings, Model
from enginerouter.errors import BadRequest, NotBuilt, UnknownModel
from enginerouter.slots import SlotId

LATEST = ":latest"
MayName = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Target:
    """What a name stands for. `asked` is the canonical name (alias or model id), `upstream_model` the engine's own.

    `label` is `engine/model`, for logs, metrics and `X-EngineRouter-Resolved`. `is_glob`: `asked` is an alias glob.
    """

    asked: str
    model_id: str
    engine: str
    slot: SlotId
    upstream_model: str
    label: str
    first_byte_timeout_s: float | None = None
    is_glob: bool = False


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


class Directory:
    """All names of one configuration."""

    def __init__(self, config: Config) -> None:
        self._default = config.default_model
        self._listed: list[Listed] = []
        self._models: dict[str, Target] = {}
        self._names: dict[str, Target] = {}
        self._chains: set[str] = set()
        self._globs: list[tuple[str, Alias]] = []
        engines = {name: e for name, e in config.engines.items() if e.enabled}
        for model in _models_of(config, engines):
            self._add_model(model, engines[model.engine])
        self._names.update(self._models)
        for target in list(self._models.values()):
            self._names.setdefault(target.label, target)
        for alias in config.aliases.values():
            self._add_alias(alias)

    def _add_model(self, model: Model, engine: EngineSettings) -> None:
        slot = SlotId(engine.name)
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
        # The loader has refused aliases of aliases, so this is a model.
        found = self._names.get(alias.target or "")
        if found is None:
            return
        target = replace(found, asked=alias.name)
        self._names[alias.name] = target
        if not alias.hidden:
            shown = next(m for m in self._listed if m.id == target.model_id)
            self._listed.append(
                Listed(
                    alias.name,
                    shown.engine,
                    shown.slot,
                    alias.name,
                    alias.description,
                    shown.context_length,
                    alias_of=target.model_id,
                )
            )

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
        target = self._names.get(name) or self._other_spelling(name)
        # An alias glob is named by its pattern, and by every name that matches it.
        if target is not None and (may_name(target.asked) or (target.is_glob and may_name(name))):
            return target
        if name in self._chains and may_name(name):
            raise NotBuilt(f"alias {name!r} is a chain, which this version does not serve; name one of its models")
        raise UnknownModel(name, [m.id for m in self._listed if may_name(m.id)])

    def _other_spelling(self, name: str) -> Target | None:
        """Ollama's `:latest` and a missing tag are one name; then the alias globs."""
        other = name.removesuffix(LATEST) if name.endswith(LATEST) else name + LATEST
        if (target := self._names.get(other)) is not None:
            return target
        for pattern, alias in self._globs:
            if fnmatchcase(name, pattern):
                found = self._names.get(alias.target or "")
                if found is not None:
                    return replace(found, asked=alias.name, is_glob=True)
        return None

    def _name_of(self, slot: SlotId | None) -> str | None:
        return next((m.id for m in self._listed if m.slot == slot), None) if slot is not None else None

    def find(self, name: str, may_name: MayName) -> Listed:
        """One entry of the catalogue, under any name that `resolve` accepts; raises what it raises."""
        target = self.resolve(name, may_name, lambda: None)
        entries = {m.id: m for m in self._listed}
        exact = entries.get(name)
        return exact or replace(entries[target.model_id], id=name, display_name=name, alias_of=target.model_id)

    def may_use(self, slot: SlotId, may_name: MayName) -> bool:
        """Whether some name leads to this slot that the key may use."""
        if any(target.slot == slot and may_name(target.asked) for target in self._names.values()):
            return True
        globs = ((alias.name, self._names.get(alias.target or "")) for _, alias in self._globs)
        return any(target is not None and target.slot == slot and may_name(name) for name, target in globs)

    def listed(self, may_name: MayName) -> list[Listed]:
        return [m for m in self._listed if may_name(m.id)]

    def models_of(self, slot: SlotId, may_name: MayName) -> list[str]:
        return [m.id for m in self._listed if m.slot == slot and m.alias_of is None and may_name(m.id)]


def _models_of(config: Config, engines: dict[str, EngineSettings]) -> Iterable[Model]:
    """Declared models, then the ids engines are known to serve; an engine without any serves its own name."""
    declared = [m for m in config.models if m.engine in engines]
    yield from declared
    known = {m.id for m in declared}
    for engine in engines.values():
        more = [i for i in engine.served_models if i not in known]
        yield from (Model(id=i, engine=engine.name) for i in more)
        known.update(more)
        has_models = any(m.engine == engine.name for m in declared) or bool(engine.served_models)
        if not has_models and engine.name not in known:
            yield Model(id=engine.name, engine=engine.name)
            known.add(engine.name)
