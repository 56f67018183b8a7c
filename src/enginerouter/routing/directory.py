"""What serves a name: exact model id → alias → alias glob → discovered model → `engine/model` → 404.

Everything is worked out once per configuration; a request costs one dictionary look-up. What engines say of their
models is fed in (`learn`); nothing is asked here. `engine/model` may name a model that nobody declared where that can
do no harm: at a remote engine always, at one whose models take memory only if the engine has said that it has it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from enginerouter.config.model import Alias, Config, EngineSettings, Model
from enginerouter.errors import BadRequest, UnknownModel
from enginerouter.routing.chains import flatten
from enginerouter.routing.models import models_of as models_of
from enginerouter.routing.models import slot_of as slot_of
from enginerouter.routing.target import Chain, Route
from enginerouter.routing.target import Target as Target
from enginerouter.slots import SlotId

LATEST = ":latest"
# Engines at which `engine/model` may name a model that the configuration does not.
LIVE_TYPES = ("ollama", "api_swap", "remote")
MayName = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Listed:
    """A name as catalogues show it. `alias_of` is set for renames, `targets` for chains (`engine` is the first's)."""

    id: str
    engine: str
    slot: SlotId
    display_name: str
    description: str = ""
    context_length: int | None = None
    alias_of: str | None = None
    targets: tuple[Target, ...] = ()


class Directory:
    """All names of one configuration, and those that engines were heard to serve."""

    def __init__(self, config: Config) -> None:
        self._default = config.default_model
        self._aliases = tuple(config.aliases.values())
        self._listed: list[Listed] = []
        self._models: dict[str, Target] = {}
        self._names: dict[str, Target] = {}
        self._chains: dict[str, Alias] = {}
        # Chains with their targets, until an engine says that it has other models.
        self._resolved: dict[str, Chain] = {}
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
            same_as=model.same_as,
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
        if any(c in alias.name for c in "*?["):
            self._globs.append((alias.name, alias))
            return
        if alias.chain:
            self._chains[alias.name] = alias
            return
        # The loader has refused aliases of aliases, so this is a model. What the configuration names is meant, also
        # where no engine has said that it has it.
        found = self._names.get(alias.target or "") or self._direct(alias.target or "")
        if found is None:
            self._late.append((alias, alias.target or ""))
            return
        target = self._names[alias.name] = _renamed(found, alias)
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
        self._resolved.clear()
        self._discovered = found = {}
        for name, settings in self._engines.items():  # in this order: the first engine that has a name serves it
            if not _is_discovered(settings):
                continue
            for model_id in self._said.get(name, ()):
                if model_id not in self._names and model_id not in found:
                    found[model_id] = self._undeclared(settings, model_id, asked=model_id)
        labels = {target.label: target for target in found.values()} if self._late else {}
        for alias, end in self._late:
            if (target := found.get(end) or found.get(respelt(end)) or labels.get(end)) is not None:
                found[alias.name] = _renamed(target, alias)

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

    def route(self, name: str | None, may_name: MayName, resident: Callable[[], SlotId | None]) -> Route:
        """What a name leads to; no name: `default_model`, else what is resident.

        Raises UnknownModel (also for names the key may not use), and BadRequest without a model.
        """
        if name is None:
            name = self._default or self._name_of(resident())
            if name is None:
                raise BadRequest(
                    "the request names no model: give it a 'model' (GET /v1/models lists them), "
                    "or set default_model in the router's configuration"
                )
        found = self._names.get(name) or self._by_alias(name) or self._live(name)
        if found is not None and is_permitted(found, name, may_name):
            return found
        raise UnknownModel(name, self.suggestions(may_name))

    def resolve(self, name: str | None, may_name: MayName, resident: Callable[[], SlotId | None]) -> Target:
        """As `route`; of a chain, its first target."""
        found = self.route(name, may_name, resident)
        if isinstance(found, Target):
            return found
        if not found.targets:
            raise UnknownModel(found.unknown[0] if found.unknown else found.asked, self.suggestions(may_name))
        return found.targets[0]

    def suggestions(self, may_name: MayName) -> list[str]:
        """The names that an unknown one is compared with."""
        shown = [*(m.id for m in self._listed), *(a.name for a in self._chains.values() if not a.hidden)]
        return [name for name in shown if may_name(name)]

    def _by_alias(self, name: str) -> Route | None:
        """A chain; another spelling (Ollama's `:latest` and a missing tag are one name); then the alias globs."""
        if (alias := self._chains.get(name)) is not None:
            return self._chain(alias)
        other = respelt(name)
        if (target := self._names.get(other)) is not None:
            return target
        if (alias := self._chains.get(other)) is not None:
            return self._chain(alias)
        for pattern, alias in self._globs:
            if fnmatchcase(name, pattern):
                if alias.chain:
                    return self._chain(alias, is_glob=True)
                if (found := self._known(alias.target or "")) is not None:
                    return _renamed(found, alias, is_glob=True)
        return None

    def _known(self, name: str) -> Target | None:
        """A target that the configuration names, itself no chain."""
        return self._names.get(name) or self._discovered.get(name) or self._direct(name)

    # --- chains

    def _chain_of(self, entry: str) -> Alias | None:
        """The chain that an entry of another one means."""
        if entry in self._names:
            return None
        if (alias := self._chains.get(entry)) is not None:
            return alias
        glob = self._glob_of(entry)
        return glob if glob is not None and glob.chain else None

    def _glob_of(self, name: str) -> Alias | None:
        return next((alias for pattern, alias in self._globs if fnmatchcase(name, pattern)), None)

    def _chain(self, alias: Alias, *, is_glob: bool = False) -> Chain:
        """Worked out once, and again when engines say that they have other models."""
        if (known := self._resolved.get(alias.name)) is not None:
            return known
        targets: dict[str, Target] = {}
        unknown: list[str] = []
        for entry, stays_local in flatten(alias, self._chain_of):
            found = self._entry(entry)
            if found is None:
                unknown.append(entry)
                continue
            stays_local = stays_local or found.stays_local
            if (before := targets.get(found.label)) is not None:
                # What two ways lead to may leave the machine if one of them lets it.
                stays_local = stays_local and before.stays_local
            target = _renamed(found, alias, is_glob=is_glob)
            targets[found.label] = replace(target, stays_local=stays_local)
        chain = self._resolved[alias.name] = Chain(alias, tuple(targets.values()), tuple(unknown), is_glob)
        return chain

    def _entry(self, entry: str) -> Target | None:
        """The target of an entry: a model, a rename, `engine/model`, an engine."""
        if (found := self._names.get(entry) or self._names.get(respelt(entry))) is not None:
            return found
        if (glob := self._glob_of(entry)) is not None and (found := self._known(glob.target or "")) is not None:
            return _renamed(found, glob)
        found = self._known(entry) or self._discovered.get(respelt(entry))
        # An engine by its name alone: the first of its models.
        return found or next((t for t in self._models.values() if t.engine == entry), None)

    def aliases(self, may_name: MayName) -> list[Chain]:
        """The aliases that a key may use, hidden ones and globs too, with what they lead to now: a rename to one."""
        return [self._leads_to(alias) for alias in self._aliases if may_name(alias.name)]

    def _leads_to(self, alias: Alias) -> Chain:
        if alias.chain:
            return self._chain(alias)
        end = alias.target or ""
        found = self._names.get(alias.name) or self._discovered.get(alias.name) or self._known(end)
        return Chain(alias, (_renamed(found, alias),)) if found is not None else Chain(alias, (), (end,))

    def _listed_chain(self, chain: Chain) -> Listed | None:
        """A chain promises what its weakest target can."""
        if not chain.targets:
            return None
        first, shown = chain.targets[0], {m.id: m for m in self._listed}
        known = (shown.get(t.model_id) for t in chain.targets)
        lengths = [m.context_length for m in known if m is not None and m.context_length is not None]
        return Listed(
            chain.asked,
            first.engine,
            first.slot,
            chain.asked,
            chain.alias.description,
            min(lengths, default=None),
            targets=chain.targets,
        )

    def _live(self, name: str) -> Target | None:
        """A model that an engine says it has, by its own name or as `engine/model`."""
        found = self._discovered.get(name) or self._discovered.get(respelt(name))
        if found is not None:
            return found
        direct = self._direct(name)
        if direct is None or self._engines[direct.engine].type == "remote":
            return direct
        said = self._said.get(direct.engine, ())
        known = next((m for m in (direct.upstream_model, respelt(direct.upstream_model)) if m in said), None)
        if known is None:
            return None
        found = self._discovered.get(known)
        if found is not None and found.engine == direct.engine:
            return found
        return self._undeclared(self._engines[direct.engine], known, asked=name)

    def _name_of(self, slot: SlotId | None) -> str | None:
        return next((m.id for m in self._listed if m.slot == slot), None) if slot is not None else None

    def find(self, name: str, may_name: MayName) -> Listed:
        """One entry of the catalogue, under any name that `route` accepts; raises what it raises."""
        found = self.route(name, may_name, lambda: None)
        if isinstance(found, Chain):
            listed = self._listed_chain(found)
            if listed is None:
                raise UnknownModel(name, self.suggestions(may_name))
            return replace(listed, id=name, display_name=name)
        entries = {m.id: m for m in self._all()}
        exact = entries.get(name)
        if exact is not None:
            return exact
        entry = entries.get(found.model_id) or Listed(found.model_id, found.engine, found.slot, found.model_id)
        return replace(entry, id=name, display_name=name, alias_of=found.model_id)

    def may_use(self, slot: SlotId, may_name: MayName) -> bool:
        """Whether some name leads to this slot that the key may use."""
        named = (*self._names.values(), *self._discovered.values())
        if any(t.slot == slot and (may_name(t.asked) or (not t.is_declared and may_name(t.label))) for t in named):
            return True
        globs = ((alias.name, self._names.get(alias.target or "")) for _, alias in self._globs)
        if any(target is not None and target.slot == slot and may_name(name) for name, target in globs):
            return True
        chains = (*self._chains.values(), *(alias for _, alias in self._globs if alias.chain))
        return any(t.slot == slot for alias in chains if may_name(alias.name) for t in self._chain(alias).targets)

    def listed(self, may_name: MayName) -> list[Listed]:
        return [m for m in self._all() if may_name(m.id)]

    def models_of(self, slot: SlotId, may_name: MayName) -> list[str]:
        mine = (m for m in self._all() if m.slot == slot and m.alias_of is None and not m.targets)
        return [m.id for m in mine if may_name(m.id)]

    def _all(self) -> Iterable[Listed]:
        yield from self._listed
        hidden = {alias.name for alias, _ in self._late if alias.hidden}
        for name, target in self._discovered.items():
            if name not in hidden:
                alias_of = target.model_id if target.is_declared else None
                yield Listed(name, target.engine, target.slot, name, alias_of=alias_of)
        for chain in (self._chain(alias) for alias in self._chains.values() if not alias.hidden):
            if (listed := self._listed_chain(chain)) is not None:
                yield listed


def respelt(name: str) -> str:
    """Ollama's `:latest` and a missing tag are one name."""
    return name.removesuffix(LATEST) if name.endswith(LATEST) else name + LATEST


def _renamed(target: Target, alias: Alias, *, is_glob: bool = False) -> Target:
    """The target under the name of an alias, which the configuration has: it is declared."""
    return replace(
        target,
        asked=alias.name,
        is_glob=is_glob,
        is_declared=True,
        first_byte_timeout_s=alias.first_byte_timeout_s or target.first_byte_timeout_s,
        stays_local=alias.local_only or target.stays_local,
    )


def is_permitted(found: Route, name: str, may_name: MayName) -> bool:
    """Whether a key may use what it called by this name.

    An alias glob is named by its pattern, and by every name that matches it; a discovered model in two ways.
    """
    if may_name(found.asked) or (found.is_glob and may_name(name)):
        return True
    return isinstance(found, Target) and not found.is_declared and may_name(found.label)


def _is_discovered(engine: EngineSettings) -> bool:
    return engine.type == "ollama" or engine.discover_models
