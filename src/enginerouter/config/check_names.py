"""Cross-checks of names: models, aliases and chains, and whatever refers to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from enginerouter.config.check_engines import is_cloud_name, is_surely_remote
from enginerouter.config.draft import Draft
from enginerouter.config.engines import EngineSettings, GenericProcess, Profile
from enginerouter.config.model import Alias, Config
from enginerouter.config.report import At, Report, did_you_mean

# Engines that serve models nobody declared.
_LIVE_TYPES = ("ollama", "api_swap", "remote")


def check_names(draft: Draft, report: Report) -> None:
    config, engine_names = draft.config, draft.engine_names
    _check_models(draft, report)
    names = _collect(config, engine_names)
    for alias in config.aliases.values():
        _check_alias(alias, names, report)
        if alias.target is not None:
            _check_rename(alias, alias.target, names, report)
        for n, entry in enumerate(alias.chain):
            _check_entry(entry, ("aliases", alias.name, "chain", n), names, report)
    _check_cycles(names, report)
    for alias in config.aliases.values():
        if alias.local_only:
            _check_stays_local(alias, names, report)
    if config.default_model is not None and not names.resolves(config.default_model):
        report.warn(
            ("default_model",),
            f"{config.default_model!r} is no configured model",
            _closest(config.default_model, names) or "it must be one that an engine reports",
        )


def _check_models(draft: Draft, report: Report) -> None:
    first: dict[str, int] = {}
    for n, model in zip(draft.model_positions, draft.config.models, strict=True):
        at: At = ("models", n)
        if model.engine not in draft.engine_names:
            hint = did_you_mean(model.engine, draft.engine_names)
            report.error((*at, "engine"), f"there is no engine {model.engine!r}", hint)
        if model.id in first:
            line = report.lines.get(("models", first[model.id], "id"))
            where = f" on line {line}" if line else ""
            report.error((*at, "id"), f"the model {model.id!r} is already given{where}", "each id once")
        first.setdefault(model.id, n)
        profiles = profiles_of(draft.config.engines.get(model.engine))
        if profiles and model.id not in profiles and model.upstream_id not in profiles:
            hint = did_you_mean(model.id, profiles) or "name one of them with id or upstream_id"
            report.error((*at, "id"), f"{model.id!r} is no profile of engine {model.engine!r}", hint)
    _check_profiles(draft.config, report)


def _check_profiles(config: Config, report: Report) -> None:
    """A profile is a model of its engine alone."""
    owners = {model.id: model.engine for model in config.models}
    for settings in config.engines.values():
        for name in profiles_of(settings):
            other = owners.setdefault(name, settings.name)
            if other != settings.name:
                at: At = ("engines", settings.name, "profiles", name)
                report.error(at, f"{name!r} is already a model of engine {other!r}", "each id once")
        for n, name in enumerate(settings.served_models):
            if profiles_of(settings) and name not in profiles_of(settings):
                at = ("engines", settings.name, "served_models", n)
                report.error(at, "an engine with profiles serves these alone", "remove served_models")


def profiles_of(settings: EngineSettings | None) -> Mapping[str, Profile]:
    return settings.profiles if isinstance(settings, GenericProcess) else {}


@dataclass(frozen=True, slots=True)
class _Names:
    """What names there are, and what they stand for."""

    config: Config
    engine_names: frozenset[str]
    # Models, profiles and served models, and engines that serve their own name.
    owners: Mapping[str, EngineSettings | None]
    models: tuple[str, ...]

    def owner(self, name: str) -> EngineSettings | None:
        return self.owners.get(name)

    def upstream_of(self, name: str) -> str | None:
        """What its engine calls a declared model."""
        model = next((m for m in self.config.models if name in (m.id, f"{m.engine}/{m.id}")), None)
        return (model.upstream_id or model.id) if model is not None else None

    def direct(self, entry: str) -> tuple[str, str] | None:
        """`engine/model` split at the first slash, if its first part is an engine."""
        engine, slash, model = entry.partition("/")
        return (engine, model) if slash and engine in self.engine_names else None

    def alias(self, name: str) -> Alias | None:
        """The alias a name means: the exact one, else the first glob that matches."""
        if name in self.config.aliases:
            return self.config.aliases[name]
        globs = (alias for alias in self.config.aliases.values() if is_glob(alias.name))
        return next((alias for alias in globs if fnmatchcase(name, alias.name)), None)

    def resolves(self, name: str) -> bool:
        if name in self.owners or name in self.engine_names or self.alias(name) is not None:
            return True
        return self.direct(name) is not None

    def can_be_live(self) -> bool:
        return any(is_live(settings) for settings in self.config.engines.values())


def _collect(config: Config, engine_names: frozenset[str]) -> _Names:
    owners: dict[str, EngineSettings | None] = {}
    for model in config.models:
        owners.setdefault(model.id, config.engines.get(model.engine))
    for settings in config.engines.values():
        for name in (*profiles_of(settings), *settings.served_models):
            owners.setdefault(name, settings)
    models = tuple(owners)
    for name, settings in config.engines.items():
        owners.setdefault(name, settings)
    return _Names(config, engine_names, owners, models)


def is_glob(name: str) -> bool:
    return any(c in name for c in "*?[")


def is_live(settings: EngineSettings) -> bool:
    """Whether an engine may serve models that the configuration does not name."""
    if not settings.enabled:
        return False
    return settings.type in _LIVE_TYPES or settings.discover_models


def _check_alias(alias: Alias, names: _Names, report: Report) -> None:
    at: At = ("aliases", alias.name)
    if not alias.name or alias.name != alias.name.strip() or not alias.name.isprintable():
        report.error(at, "an alias must have a name without white space around it")
    if any(alias.name == model.id for model in names.config.models):
        report.error(at, "is also the id of a model", "rename one of them")
    elif any(alias.name in profiles_of(settings) for settings in names.config.engines.values()):
        report.error(at, "is also the id of a profile", "rename one of them")
    if names.direct(alias.name):
        engine = alias.name.partition("/")[0]
        report.error(at, f"must not begin with the name of an engine ({engine + '/'!r})")
    if alias.target is None and not alias.chain:
        report.error(at, "has neither target nor chain", "write NAME: MODEL, or NAME: {chain: [...]}")
    if alias.target is not None and alias.chain:
        report.error(at, "give target or chain, not both")


def _check_rename(alias: Alias, target: str, names: _Names, report: Report) -> None:
    at: At = ("aliases", alias.name)
    if target == alias.name:
        report.error(at, "stands for itself", "name a model")
    elif target in names.config.aliases:
        report.error(at, f"its target {target!r} is itself an alias", "name the model, or make it a chain")
    elif names.owner(target) is not None:
        return
    elif direct := names.direct(target):
        _check_direct(direct, at, names, report)
    elif (other := names.alias(target)) is not None and other is not alias:
        report.error(at, f"its target {target!r} is itself an alias (it matches {other.name!r})", "name the model")
    else:
        # Never an error: older configs load with it, and a live engine may own the name.
        hint = _closest(target, names) or "it works only if an engine reports that model"
        report.warn(at, f"its target {target!r} is no configured model", hint)


def _check_entry(entry: str, at: At, names: _Names, report: Report) -> None:
    if names.owner(entry) is not None or entry in names.owners or names.alias(entry) is not None:
        return
    if direct := names.direct(entry):
        _check_direct(direct, at, names, report)
    elif names.resolves(entry):
        return
    elif names.can_be_live():
        hint = _closest(entry, names) or "it works only if an engine reports that model"
        report.warn(at, f"{entry!r} is no configured model", hint)
    else:
        known = [*names.models, *names.config.aliases, *(f"{engine}/" for engine in names.engine_names)]
        report.error(at, f"{entry!r} is neither a model nor an alias nor engine/model", did_you_mean(entry, known))


def _check_direct(direct: tuple[str, str], at: At, names: _Names, report: Report) -> None:
    engine, model = direct
    settings = names.config.engines.get(engine)
    if not model:
        report.error(at, f"names no model of engine {engine!r}")
    elif settings is None or is_live(settings):
        return
    elif names.owner(model) is not settings:
        ours = [declared.id for declared in names.config.models if declared.engine == engine]
        ours += [*settings.served_models, *profiles_of(settings)]
        report.error(at, f"engine {engine!r} has no model {model!r}", did_you_mean(model, ours))


def _closest(name: str, names: _Names) -> str:
    close = get_close_matches(name, [*names.models, *names.config.aliases], n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def _check_cycles(names: _Names, report: Report) -> None:
    """Walk every chain, without recursion: a file may nest more chains than Python nests calls."""
    done: set[str] = set()
    for start in names.config.aliases:
        above: dict[str, Iterator[str]] = {}
        name: str | None = start if start not in done else None
        while name is not None or above:
            if name is None:
                last = next(reversed(above))
                entry = next(above[last], None)
                if entry is None:
                    del above[last]
                elif entry not in names.owners and (inner := names.alias(entry)) is not None:
                    name = inner.name
            elif name in above:
                circle = [*above][[*above].index(name) :]
                report.error(("aliases", name), f"the chain goes in a circle: {' → '.join([*circle, name])}")
                name = None
            elif name in done:
                name = None
            else:
                done.add(name)
                above[name] = iter(names.config.aliases[name].chain)
                name = None


def _check_stays_local(alias: Alias, names: _Names, report: Report) -> None:
    """`local_only` must hold for all that the alias can lead to."""
    at: At = ("aliases", alias.name)
    pending = list(alias.chain) if alias.target is None else [alias.target]
    seen: set[str] = set()
    while pending:
        entry = pending.pop(0)
        if entry in seen:
            continue
        seen.add(entry)
        direct = names.direct(entry)
        settings = names.owner(entry)
        if settings is None and direct and names.alias(entry) is None:
            settings = names.config.engines.get(direct[0])
        if settings is not None:
            model = names.upstream_of(entry) or (direct[1] if direct else entry)
            if is_cloud_name(settings, model):
                report.error(
                    (*at, "local_only"),
                    f"leads to {entry!r}, which engine {settings.name!r} has its maker's cloud answer",
                    "take it out of the chain, or drop local_only",
                )
            elif is_surely_remote(settings):
                report.error(
                    (*at, "local_only"),
                    f"leads to {entry!r}, and engine {settings.name!r} is not on this machine",
                    "take it out of the chain, or drop local_only",
                )
        elif inner := names.alias(entry):
            pending += inner.chain if inner.target is None else [inner.target]
