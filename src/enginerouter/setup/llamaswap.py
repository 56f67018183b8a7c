"""A llama-swap configuration becomes ours: an engine for each model, which is what its models are.

What it lets run together becomes `together`; what we have no equal of becomes a comment beside the engine, and a note.
Its reference: https://github.com/mostlygeek/llama-swap/blob/main/docs/configuration.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from enginerouter.setup import llamaswap_models as of_models
from enginerouter.setup.emit import Noted
from enginerouter.setup.foreign import Foreign, Imported
from enginerouter.setup.llamaswap_models import Names, Where, text_at
from enginerouter.setup.macros import Macros
from enginerouter.setup.together import MOST_SETS, BadSet, Group, Sets, by_groups, by_sets

_LEVELS: Final = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR"}
# Keys that are read; and those that have no equal, with what there is instead.
_READ: Final = frozenset(
    {"models", "groups", "matrix", "hooks", "peers", "macros", "apiKeys", "healthCheckTimeout", "globalTTL", "logLevel",
     "unloadTimeout", "startPort", "includeAliasesInList", "routing"}
)  # fmt: skip
_NO_EQUAL: Final = {
    "logTimeFormat": "the log has one time format",
    "logToStdout": "the router's log is log_file; engines have logs of their own in logs/engines/",
    "metricsMaxInMemory": "GET /metrics counts without a limit to keep",
    "captureBuffer": "requests and answers are never kept",
    "sendLoadingState": "waiting clients are kept alive by comments, not by text in the reasoning",
    "performance": "",
    "store": "what is learned is in state_file",
    "ui": "",
    "profiles": "the nearest is a reload with other aliases",
    "upstream": "",
    "selectors": "the nearest is an alias with a chain",
}


def convert(foreign: Foreign) -> Imported:
    imported = Imported()
    where = Where(foreign, imported, Macros(foreign.mapping(foreign.data, "macros", "")))
    document = imported.document
    document.head += [
        f"Imported from {foreign.path.name} of llama-swap. What has no equal stands as a comment beside its engine.",
        "llama-swap listens where --listen says, by default at port 8080 of all interfaces: set host and port.",
    ]
    document.settings["port"] = 8077
    _global_settings(where)
    models = foreign.mapping(foreign.data, "models", "")
    names = Names(models, list(foreign.mapping(foreign.data, "peers", "")))
    for model_id in models:
        of_models.add_model(where, names, model_id, foreign.mapping(models, model_id, "models."))
    _add_peers(where, names)
    sets = _together(where, list(models))
    if sets:
        document.settings["together"] = [[names.engine(m) for m in models if m in one] for one in sets]
    _preload(where, names, models, sets)
    _say_what_has_no_equal(where)
    imported.variables |= where.macros.variables
    return imported


def _global_settings(where: Where) -> None:
    foreign, settings = where.foreign, where.imported.document.settings
    if level := foreign.text(foreign.data, "logLevel", ""):
        if level.lower() in _LEVELS:
            settings["log_level"] = _LEVELS[level.lower()]
        else:
            foreign.wrong("logLevel", f"{level!r} is no level", f"known: {', '.join(_LEVELS)}")
    keys = [text_at(where, where.macros, key, f"apiKeys[{n}]") for n, key in enumerate(_keys(foreign))]
    if keys:
        settings["api_keys"] = keys


def _keys(foreign: Foreign) -> Iterable[str]:
    return dict.fromkeys(foreign.words(foreign.data, "apiKeys", ""))


def _add_peers(where: Where, names: Names) -> None:
    foreign = where.foreign
    peers = foreign.mapping(foreign.data, "peers", "")
    for peer_id in peers:
        at = f"peers.{peer_id}."
        peer = foreign.mapping(peers, peer_id, "peers.")
        base = text_at(where, where.macros, foreign.text(peer, "proxy", at), f"{at}proxy")
        if not base:
            foreign.wrong(f"{at}proxy", "is missing")
            continue
        engine: dict[str, Any] = {"type": "remote", "base_url": base}
        if key := foreign.text(peer, "apiKey", at):
            engine["api_key"] = text_at(where, where.macros, key, f"{at}apiKey")
        notes: list[str] = []
        of_models.add_timeouts(where, peer, at, engine, notes)
        params = of_models.params_of(where, where.macros, peer, at, notes)
        name = names.peer(peer_id)
        for model_id in foreign.words(peer, "models", at):
            if names.claim(model_id):
                entry = {"id": model_id, "engine": name, **params.common}
                where.imported.document.models.append(Noted(entry))
            else:
                where.no_equal(notes, f"{at}models", f"{model_id!r} is a model of this file already; ask for {name}/…")
        where.imported.document.engines[name] = Noted(engine, tuple(notes))


# --- who may run beside whom


def _together(where: Where, models: list[str]) -> Sets:
    foreign = where.foreign
    routing = foreign.mapping(foreign.data, "routing", "")
    router = foreign.mapping(routing, "router", "routing.")
    settings = foreign.mapping(router, "settings", "routing.router.")
    if other := [key for key in routing if key != "router"]:
        where.note(f"routing.{other[0]}", "the order of requests is our own: see swap_max_wait_s")
    for owner, at in ((foreign.data, ""), (settings, "routing.router.settings.")):
        if owner.get("matrix") is not None:
            return _by_matrix(where, foreign.mapping(owner, "matrix", at), f"{at}matrix.", models)
        if owner.get("groups") is not None:
            return _by_groups(where, foreign.mapping(owner, "groups", at), f"{at}groups.", models)
    return []


def _by_matrix(where: Where, matrix: Mapping[str, Any], at: str, models: list[str]) -> Sets:
    foreign = where.foreign
    names = {var: str(model) for var, model in foreign.mapping(matrix, "vars", at).items()}
    for var, model in names.items():
        if model not in models:
            foreign.wrong(f"{at}vars.{var}", f"there is no model {model!r}")
    if matrix.get("evict_costs") is not None:
        where.note(f"{at}evict_costs", "what has been idle longest leaves first; pin: true keeps an engine")
    try:
        sets = by_sets({key: str(text) for key, text in foreign.mapping(matrix, "sets", at).items()}, names)
    except BadSet as bad:
        foreign.wrong(f"{at}sets", str(bad))
        return []
    return _few(where, sets, f"{at}sets")


def _by_groups(where: Where, raw: Mapping[str, Any], at: str, models: list[str]) -> Sets:
    foreign = where.foreign
    groups: list[Group] = []
    taken: dict[str, str] = {}
    for name in raw:
        inner = foreign.mapping(raw, name, at)
        members = foreign.words(inner, "members", f"{at}{name}.")
        for member in members:
            if member not in models:
                foreign.wrong(f"{at}{name}.members", f"there is no model {member!r}")
            elif taken.setdefault(member, name) != name:
                foreign.wrong(f"{at}{name}.members", f"{member!r} is in group {taken[member]!r} already")
        groups.append(
            Group(
                tuple(member for member in members if member in models),
                swaps=inner.get("swap", True) is not False,
                is_exclusive=inner.get("exclusive", True) is not False,
                is_persistent=inner.get("persistent", False) is True,
            )
        )
    sets, one_way = by_groups(groups, models)
    if one_way:
        first, second = one_way[0]
        more = f" and {len(one_way) - 1} more pairs" if len(one_way) > 1 else ""
        where.note(
            at.rstrip("."),
            f"{first!r} and {second!r}{more} run together only if started in one order; here they never do. If both "
            "fit, name their engines in a list of `together`",
        )
    return _few(where, sets, at.rstrip("."))


def _few(where: Where, sets: Sets, at: str) -> Sets:
    if len(sets) <= MOST_SETS:
        return sets
    where.note(
        at, f"more than {MOST_SETS} combinations: give memory_budget_gib, and memory_gib to each engine, instead"
    )
    return []


def _preload(where: Where, names: Names, models: Mapping[str, Any], sets: Sets) -> None:
    """Those that can be in memory together; of the others, the first."""
    foreign = where.foreign
    hooks = foreign.mapping(foreign.data, "hooks", "")
    start = foreign.mapping(hooks, "on_startup", "hooks.")
    chosen: set[str] = set()
    for model_id in foreign.words(start, "preload", "hooks.on_startup."):
        if model_id not in models:
            foreign.wrong("hooks.on_startup.preload", f"there is no model {model_id!r}")
        elif not chosen or any(chosen | {model_id} <= one for one in sets):
            chosen.add(model_id)
            engine = where.imported.document.engines.get(names.engine(model_id))
            if engine is not None:
                engine.value["preload"] = True
        else:
            where.note(
                "hooks.on_startup.preload", f"{model_id!r} cannot be in memory beside {', '.join(sorted(chosen))}"
            )


def _say_what_has_no_equal(where: Where) -> None:
    for key in where.foreign.data:
        if key in _NO_EQUAL:
            where.note(key, _NO_EQUAL[key])
        elif key not in _READ and not re.match(r"x-", key):
            where.note(key, "not known to this importer")
