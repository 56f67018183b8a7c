"""Cross-checks of the engines: commands, ports, and who can be in memory together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import combinations
from pathlib import PurePath
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from enginerouter.config.draft import Draft
from enginerouter.config.engines import ApiSwap, EngineSettings, GenericProcess, Ollama, SystemdUnit
from enginerouter.config.forms import is_loopback
from enginerouter.config.model import Config
from enginerouter.config.report import At, Report, did_you_mean, meant

# llama.cpp: the folder that slots are saved in.
SLOT_FOLDER_FLAG: Final = "--slot-save-path"
# Tags of models that an Ollama daemon runs in its maker's cloud.
_CLOUD: Final = ("-cloud", ":cloud")
_CONTAINERS: Final = ("docker", "podman", "nerdctl")
_OF_PROFILES: Final = ("model", "id", "flags")
_PLACEHOLDERS: Final = ("port", *_OF_PROFILES)
# `${name}` is a shell's.
_IN_BRACES: Final = re.compile(r"(?<!\$)\{(\w+)\}")


def check_engines(draft: Draft, report: Report) -> None:
    config, engine_names = draft.config, draft.engine_names
    for n, group in enumerate(config.together):
        for m, name in enumerate(group):
            if name not in engine_names:
                hint = did_you_mean(name, engine_names)
                report.error(("together", n, m), f"there is no engine {name!r}", hint)
    for settings in config.engines.values():
        _check_one(settings, report)
    _check_memory(config, report)
    _check_ports(config, report)
    _check_units(config, report)
    _check_cards(config, report)


def _check_one(settings: EngineSettings, report: Report) -> None:
    at: At = ("engines", settings.name)
    if settings.pin and settings.idle_unload_s is not None:
        report.error((*at, "pin"), "a pinned engine is never unloaded", "remove pin or idle_unload_s")
    if isinstance(settings, GenericProcess):
        _check_process(settings, at, report)
    elif settings.base_url is None and not report.is_wrong((*at, "base_url")):
        report.missing_key(at, "base_url", "where the engine answers, like http://127.0.0.1:8080")
    if (settings.sleep_path is None) != (settings.wake_path is None):
        given = "sleep_path" if settings.sleep_path else "wake_path"
        report.error((*at, given), "sleep_path and wake_path must be given together")
    if not isinstance(settings, GenericProcess):
        for key in ("sleep_path", "keep_slots"):
            if getattr(settings, key):
                report.warn((*at, key), f"has no effect on engines of type {settings.type!r}")


def _check_process(settings: GenericProcess, at: At, report: Report) -> None:
    if not settings.start_cmd[0]:
        report.error((*at, "start_cmd"), "the program's name is empty")
    words = " ".join(settings.start_cmd)
    has_address = settings.base_url is not None or "{port}" in words
    if not has_address and not report.is_wrong((*at, "base_url")):
        report.error(
            at,
            "give 'base_url', or '{port}' in start_cmd",
            "without base_url a free port is chosen, and {port} tells the engine which",
        )
    if PurePath(settings.start_cmd[0]).name in _CONTAINERS and not settings.stop_cmd:
        report.error(
            (*at, "start_cmd"),
            "a container needs a stop_cmd",
            "ending the client does not end the container; write stop_cmd: [docker, stop, NAME]",
        )
    _check_placeholders(settings, at, report)
    _check_profiles(settings, words, at, report)
    if settings.keep_slots:
        _check_keep_slots(settings, at, report)


def _check_placeholders(settings: GenericProcess, at: At, report: Report) -> None:
    """What would reach the program as it is written. Other words in braces may be the program's own."""
    has_profiles = bool(settings.profiles) or settings.manifest is not None
    for key, command in (("start_cmd", settings.start_cmd), ("stop_cmd", settings.stop_cmd)):
        for name in dict.fromkeys(_IN_BRACES.findall(" ".join(command))):
            if name in _OF_PROFILES and not has_profiles:
                hint = "write what it stands for, or give the engine profiles"
                report.warn((*at, key), f"'{{{name}}}' stays as it is: only profiles fill it in", hint)
            elif name not in _PLACEHOLDERS and (close := get_close_matches(name, _PLACEHOLDERS, n=1, cutoff=0.7)):
                report.warn((*at, key), f"'{{{name}}}' stays as it is: there is no such placeholder", meant(close[0]))


def _check_profiles(settings: GenericProcess, words: str, at: At, report: Report) -> None:
    profiles = settings.profiles.values()
    if (profiles or settings.manifest) and "{model}" not in words:
        report.error((*at, "start_cmd"), "profiles need '{model}' in start_cmd")
    if any(profile.flags for profile in profiles) and "{flags}" not in words:
        report.error((*at, "start_cmd"), "profiles with flags need '{flags}' in start_cmd")
    if not profiles:
        return
    for key in ("pin", "preload"):
        if getattr(settings, key):
            report.error((*at, key), f"an engine with profiles cannot have {key!r}", f"give {key} to one of them")


def _check_keep_slots(settings: GenericProcess, at: At, report: Report) -> None:
    flags = (word.partition("=")[0] for word in settings.start_cmd)
    # A profile may bring the flag; each must then.
    by_profile = [
        any(f"--{flag.lstrip('-')}" == SLOT_FOLDER_FLAG for flag in profile.flags)
        for profile in settings.profiles.values()
    ]
    if PurePath(settings.start_cmd[0]).name in _CONTAINERS:
        hint = "the folder in the container is not ours to look into"
        report.error((*at, "keep_slots"), "needs a server that is not in a container", hint)
    elif SLOT_FOLDER_FLAG not in flags and not (by_profile and all(by_profile)):
        report.error(
            (*at, "keep_slots"),
            f"needs '{SLOT_FOLDER_FLAG} FOLDER' in start_cmd",
            "that is where llama-server may save its slots",
        )


# --- memory ------------------------------------------------------------------------------------------------


class _Kept(NamedTuple):
    """An engine or a profile that the configuration wants in memory."""

    engine: str
    at: At
    memory_gib: float | Literal["auto"] | None


def _check_memory(config: Config, report: Report) -> None:
    budget = config.memory_budget_gib
    for at, memory_gib in _declared(config.engines):
        if budget is not None and isinstance(memory_gib, float) and memory_gib > budget:
            report.error(at, f"{memory_gib:g} GiB is above memory_budget_gib ({budget:g})", "it could never start")
    kept = list(_kept(config))
    for first, second in combinations(kept, 2):
        if not _may_share(config, first, second):
            hint = "name both in one list of 'together'"
            if first.engine == second.engine:
                hint = "an engine runs one profile at a time"
            elif budget is not None:
                hint = f"{hint}, or give both a memory_gib that fits into memory_budget_gib"
            else:
                hint = f"{hint}, or set memory_budget_gib and memory_gib"
            report.error(second.at, f"cannot be in memory together with {first.engine!r}", hint)
    figures = [one.memory_gib for one in kept if isinstance(one.memory_gib, float)]
    if len(kept) > 2 and budget is not None and sum(figures) > budget:
        names = ", ".join(one.engine for one in kept)
        report.error(
            ("memory_budget_gib",),
            f"pinned and preloaded engines ({names}) need {sum(figures):g} GiB together, more than {budget:g}",
        )


def _declared(engines: Mapping[str, EngineSettings]) -> Iterator[tuple[At, float | Literal["auto"] | None]]:
    for settings in engines.values():
        yield ("engines", settings.name, "memory_gib"), settings.memory_gib
        if isinstance(settings, GenericProcess):
            for profile in settings.profiles.values():
                yield ("engines", settings.name, "profiles", profile.id, "memory_gib"), profile.memory_gib


def _kept(config: Config) -> Iterator[_Kept]:
    for settings in config.engines.values():
        if not settings.enabled or not settings.holds_local_memory:
            continue
        at: At = ("engines", settings.name)
        if settings.pin or settings.preload:
            yield _Kept(settings.name, (*at, "pin" if settings.pin else "preload"), settings.memory_gib)
        if isinstance(settings, GenericProcess):
            for profile in settings.profiles.values():
                if profile.pin or profile.preload:
                    key = "pin" if profile.pin else "preload"
                    place = (*at, "profiles", profile.id, key)
                    yield _Kept(settings.name, place, profile.memory_gib or settings.memory_gib)


def _may_share(config: Config, first: _Kept, second: _Kept) -> bool:
    """Whether two memory-holding slots can ever be resident at the same time."""
    if first.engine == second.engine:
        return False
    if any(first.engine in group and second.engine in group for group in config.together):
        return True
    if config.memory_budget_gib is None or first.memory_gib is None or second.memory_gib is None:
        return False
    figures = [one.memory_gib for one in (first, second) if isinstance(one.memory_gib, float)]
    return sum(figures) <= config.memory_budget_gib


# --- ports -------------------------------------------------------------------------------------------------


def _check_ports(config: Config, report: Report) -> None:
    """An address belongs to one engine, but for processes and units of which one at most runs at a time."""
    ours = [s for s in config.engines.values() if s.enabled and s.base_url and s.type != "remote"]
    for settings in ours:
        host, port = _address(settings)
        if port == config.port and (host == config.host.lower() or host == _fold(config.host)):
            report.error(
                ("engines", settings.name, "base_url"), f"port {port} is the router's own", "choose another port"
            )
    for first, second in combinations(ours, 2):
        if _address(first) == _address(second):
            _check_shared_port(config, first, second, report)


def _check_shared_port(config: Config, first: EngineSettings, second: EngineSettings, report: Report) -> None:
    at: At = ("engines", second.name, "base_url")
    same, hint = f"engine {first.name!r} has the same address", "give one of them another port"
    servers = [s.name for s in (first, second) if isinstance(s, ApiSwap | Ollama)]
    if len(servers) == 2:
        report.warn(at, f"{same}: each of the two unloads what the other one has loaded", "make it one engine")
    elif servers:
        report.error(at, f"{same}, and the server of {servers[0]!r} is there all the time", hint)
    elif first.sleep_path or second.sleep_path:
        report.error(at, f"{same}, and an engine that sleeps keeps its port", hint)
    elif not (first.holds_memory and second.holds_memory) or _may_share(config, _least(first), _least(second)):
        report.error(at, f"{same}, and both can run at the same time", hint)


def _check_units(config: Config, report: Report) -> None:
    """A unit belongs to one engine: the end of the second would be the end of the first."""
    owners: dict[tuple[str, str], str] = {}
    for settings in config.engines.values():
        if settings.enabled and isinstance(settings, SystemdUnit):
            unit = _unit_name(settings.unit)
            first = owners.setdefault((settings.scope, unit), settings.name)
            if first != settings.name:
                at = ("engines", settings.name, "unit")
                report.error(at, f"unit {unit!r} is engine {first!r} already", "an engine has a unit of its own")
    for settings in config.engines.values():
        if settings.enabled and isinstance(settings, ApiSwap | Ollama) and settings.systemd_unit is not None:
            unit = _unit_name(settings.systemd_unit)
            if (first := owners.get((settings.systemd_scope, unit), "")) != "":
                at = ("engines", settings.name, "systemd_unit")
                hint = "a server that is always on is never stopped: keep one of the two"
                report.error(at, f"unit {unit!r} is engine {first!r}, which is started and stopped", hint)


def _unit_name(unit: str) -> str:
    """As systemd has it: without a suffix it is a service."""
    return unit if "." in unit else f"{unit}.service"


def _least(settings: EngineSettings) -> _Kept:
    """The engine at its smallest, which is when it may share memory with most others."""
    profiles = settings.profiles.values() if isinstance(settings, GenericProcess) else ()
    figures = [p.memory_gib or settings.memory_gib for p in profiles] or [settings.memory_gib]
    known = [figure for figure in figures if figure is not None]
    numbers = [figure for figure in known if isinstance(figure, float)]
    if not known:
        return _Kept(settings.name, (), None)
    return _Kept(settings.name, (), min(numbers) if len(numbers) == len(known) else "auto")


def _address(settings: EngineSettings) -> tuple[str, int]:
    parts = urlsplit(settings.base_url or "")
    return _fold(parts.hostname or ""), parts.port or (443 if parts.scheme == "https" else 80)


def _fold(host: str) -> str:
    """One name for all spellings of this machine's loopback, and for all interfaces, which include it."""
    return "loopback" if is_loopback(host) or host in ("0.0.0.0", "::") else host.lower()


def _check_cards(config: Config, report: Report) -> None:
    """Several cards are several pools of memory; the router keeps one."""
    cards: dict[tuple[str, str], str] = {}
    for settings in config.engines.values():
        if isinstance(settings, GenericProcess) and settings.enabled and settings.holds_memory:
            for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
                if name in settings.env:
                    cards.setdefault((name, settings.env[name]), settings.name)
    if len(cards) > 1:
        (_, first), *rest = cards.items()
        name, other = rest[0][0][0], rest[0][1]
        report.warn(
            ("engines", other, "env", name),
            f"engines {first!r} and {other!r} use different cards, but a router has one pool of memory",
            "they still swap with each other; run one router for each card",
        )


def is_surely_remote(settings: EngineSettings) -> bool:
    """Whether an engine is another machine's, as far as the configuration alone tells.

    Addresses of this machine other than loopback are known only while it runs; the fence at each request knows them.
    """
    if settings.type == "remote":
        return True
    if settings.trust_local or settings.base_url is None or isinstance(settings, GenericProcess):
        return False
    host = urlsplit(settings.base_url).hostname or ""
    return not is_loopback(host) and "." in host and not host.endswith((".local", ".internal")) and not _is_ip(host)


def is_cloud_name(settings: EngineSettings, model: str) -> bool:
    """Whether a model is one that an Ollama daemon runs in its maker's cloud, by its tag."""
    return settings.type == "ollama" and model.endswith(_CLOUD)


def _is_ip(host: str) -> bool:
    return host.replace(".", "").isdigit() or ":" in host
