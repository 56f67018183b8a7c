"""What is different between two configurations, and what a reload has to do about it. Pure.

Which key has which effect stands beside the key, in the model (`Key.reload`). An engine counts as changed if what it is
launched or reached by has: a process by its command, environment and folder, a unit by its name, all by `base_url`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from enginerouter.config.engines import EngineSettings, GenericProcess, Profile
from enginerouter.config.key import Effect, keys_of
from enginerouter.config.model import Config


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of engines, by what becomes of them; of profiles as (engine, profile); of keys, dotted.

    `changed` engines drain, and start anew at their next need; so do `changed_profiles`, of engines that stay.
    `moved` ones are somebody else's: only where they are reached has changed. `live` keys count at once, those in
    `restart` when the router is started again.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    changed_profiles: tuple[tuple[str, str], ...] = ()
    removed_profiles: tuple[tuple[str, str], ...] = ()
    live: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return self == Changes()


def diff(old: Config, new: Config) -> Changes:
    """From the configuration in force to the one that was read."""
    before, after = _enabled(old), _enabled(new)
    both = [name for name in before if name in after]
    by_engine = {name: dict(_of_engine(before[name], after[name])) for name in both}
    is_new = [name for name in both if "engine" in by_engine[name].values()]
    moved = [n for n in is_new if before[n].type == after[n].type == "remote"]
    stay = [name for name in both if name not in is_new]
    top = dict(_different_keys(old, new, skip=("engines",)))
    live = [key for key, effect in top.items() if effect == "live"]
    live += [f"engines.{n}.{key}" for n in both for key, effect in by_engine[n].items() if effect == "live"]
    return Changes(
        added=tuple(n for n in after if n not in before),
        removed=tuple(n for n in before if n not in after),
        changed=tuple(n for n in is_new if n not in moved),
        moved=tuple(moved),
        changed_profiles=tuple((n, p) for n in stay for p in _changed_profiles(before[n], after[n])),
        removed_profiles=tuple(
            (n, p) for n in stay for p in _profiles(before[n]) if p not in _profiles(after[n]) and _profiles(after[n])
        ),
        live=tuple(live),
        restart=tuple(key for key, effect in top.items() if effect == "restart"),
    )


def _enabled(config: Config) -> dict[str, EngineSettings]:
    return {name: settings for name, settings in config.engines.items() if settings.enabled}


def _of_engine(before: EngineSettings, after: EngineSettings) -> Iterator[tuple[str, Effect]]:
    """The keys of an engine that stays enabled and are different now."""
    if type(before) is not type(after):
        yield "type", "engine"
        return
    yield from _different_keys(before, after, skip=("profiles",))
    if bool(_profiles(before)) != bool(_profiles(after)):
        yield "profiles", "engine"  # one slot becomes many
    elif _profiles(before) != _profiles(after):
        yield "profiles", "live"
    if before.unconfigured != after.unconfigured:
        yield "api_key", "live"


def _different_keys(before: Any, after: Any, *, skip: tuple[str, ...]) -> Iterator[tuple[str, Effect]]:
    for field in keys_of(type(after)):
        if field.name not in skip and getattr(before, field.name) != getattr(after, field.name):
            yield field.name, field.key.reload


def _profiles(settings: EngineSettings) -> Mapping[str, Profile]:
    return settings.profiles if isinstance(settings, GenericProcess) else {}


def _changed_profiles(before: EngineSettings, after: EngineSettings) -> Iterator[str]:
    """Profiles that would be launched differently now."""
    kept = _profiles(after)
    for name, profile in _profiles(before).items():
        if name in kept and "engine" in dict(_different_keys(profile, kept[name], skip=())).values():
            yield name
