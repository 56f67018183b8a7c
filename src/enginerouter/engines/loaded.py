"""What an engine's list of models says: which are loaded, and which it has at all. Plain functions over JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from enginerouter.config.engines import ApiSwap
from enginerouter.engines.base import Claim
from enginerouter.engines.http_control import ControlFailed, Said, printable_start
from enginerouter.engines.known_servers import see_list_is_theirs
from enginerouter.engines.model_facts import ModelFacts
from enginerouter.engines.probe import passes
from enginerouter.engines.said_facts import facts_in_entry

_NAME_KEYS = ("id", "key", "name", "model", "model_name")
# TabbyAPI has no empty list: asked for its one model it answers 503 with this sentence.
_NOTHING_LOADED = re.compile(r"\bno models? (is|are) (currently )?loaded\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Loaded:
    """One model in memory. `ids` is what unloading wants: its instances, else the name itself."""

    name: str
    ids: tuple[str, ...]

    def is_model(self, model: str) -> bool:
        """Whether this is the model asked for: by its name, an instance, or the last part of a path."""
        return model in (self.name, *self.ids) or self.name.rpartition("/")[2] == model


@dataclass(frozen=True, slots=True)
class Listing:
    """The models an engine has, loaded or not. `remote`: those that it says run elsewhere; `facts`: all it says."""

    ids: tuple[str, ...]
    remote: frozenset[str] = frozenset()
    facts: Mapping[str, ModelFacts] = field(default_factory=dict)

    def names(self, model: str) -> bool:
        """As `Loaded.is_model`."""
        return any(Loaded(one, ()).is_model(model) for one in self.ids)


def loaded_models(said: Said, settings: ApiSwap) -> list[Loaded]:
    """What `loaded_path` lists as loaded. Raises ControlFailed for everything that is not surely such a list."""
    if said.status == 503 and isinstance(said.document, dict) and _NOTHING_LOADED.search(str(said.document)):
        return []
    said.raise_problem()
    see_list_is_theirs(said, settings)
    return [
        loaded
        for entry in _entries(said, settings)
        if not settings.loaded_filter or passes(settings.loaded_filter, entry)
        for loaded in _loaded(entry, settings, said.url)
    ]


def _entries(said: Said, settings: ApiSwap) -> list[Any]:
    document = said.document
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        what = printable_start(said.body)
        raise ControlFailed(f"asked what is loaded, {said.url} answered {what}: no list of models", is_mistaken=True)
    key = settings.loaded_models_key
    if key and key in document:
        return _as_list(document[key], key, said.url)
    # The whole object is one entry, but for one that is itself a list under its usual name.
    if settings.loaded_name_key not in document:
        for usual in ("models", "data"):
            if isinstance(document.get(usual), list):
                return _as_list(document[usual], usual, said.url)
        if _name(document, settings.loaded_name_key) is None:  # also where a filter would pass it over
            keys = " or ".join(map(repr, filter(None, (key, settings.loaded_name_key))))
            raise ControlFailed(
                f"asked what is loaded, {said.url} answered {printable_start(said.body)}, without {keys}",
                is_mistaken=True,
            )
    return [document]


def _as_list(found: Any, key: str, url: str) -> list[Any]:
    if found is None:  # how some servers write an empty list
        return []
    if not isinstance(found, list):
        raise ControlFailed(f"{url}: {key!r} is not a list", is_mistaken=True)
    return found


def _loaded(entry: Any, settings: ApiSwap, url: str) -> Iterable[Loaded]:
    if isinstance(entry, str) and entry:
        yield Loaded(entry, (entry,))
        return
    if isinstance(entry, dict) and entry.get(settings.loaded_name_key, "?") in (None, "None"):
        return  # text-generation-webui's word for no model
    name = _name(entry, settings.loaded_name_key)
    if name is None:
        raise ControlFailed(
            f"{url} lists something without {settings.loaded_name_key!r}: {str(entry)[:80]!r}", is_mistaken=True
        )
    instances = entry.get("loaded_instances")
    if isinstance(instances, list):  # LM Studio: all that were downloaded are listed, with their instances in memory
        ids = [i if isinstance(i, str) else _name(i, settings.loaded_id_key or "id") for i in instances]
        if None in ids:
            raise ControlFailed(f"{url} lists an instance of {name!r} without an id")
        if ids:
            yield Loaded(name, tuple(i for i in ids if i is not None))
        return
    own = entry.get(settings.loaded_id_key) if settings.loaded_id_key else None
    yield Loaded(name, (str(own),) if own not in (None, "") else (name,))


def _name(entry: Any, key: str) -> str | None:
    if not isinstance(entry, dict):
        return None
    for wanted in (key, *_NAME_KEYS):
        if isinstance(found := entry.get(wanted), str) and found:
            return found
    return None


def known_models(said: Said) -> Listing:
    """Every model that a list names: a bare array, or one under `data` or `models`. Raises ControlFailed if none."""
    said.raise_problem()
    document = said.document
    entries = document
    if isinstance(document, dict):
        entries = next((document[k] for k in ("data", "models") if isinstance(document.get(k), list)), None)
        if entries is None and "models" in document and document["models"] is None:
            entries = []
    if not isinstance(entries, list):
        raise ControlFailed(f"{said.url} is no list of models", is_mistaken=True)
    facts: dict[str, ModelFacts] = {}
    remote: set[str] = set()
    for entry in entries:
        name = entry if isinstance(entry, str) else _name(entry, "id")
        if not name or not name.isprintable() or name != name.strip():
            continue
        facts[name] = facts_in_entry(entry)
        if is_elsewhere(entry):
            remote.add(name)
    return Listing(tuple(facts), frozenset(remote), facts)


def is_elsewhere(entry: Any) -> bool:
    """Whether an Ollama daemon says that a model runs on another machine."""
    return isinstance(entry, dict) and bool(entry.get("remote_host") or entry.get("remote_model"))


def ollama_running(said: Said) -> list[str]:
    """The models that `/api/ps` shows in the memory of this machine. Raises ControlFailed for anything unclear."""
    said.raise_problem()
    if not isinstance(said.document, dict) or "models" not in said.document:
        raise ControlFailed(f"{said.url} is no list of running models: {said.body[:80]!r}", is_mistaken=True)
    running = []
    for entry in _as_list(said.document["models"], "models", said.url):
        name = _name(entry, "model")
        if name is None:
            raise ControlFailed(f"{said.url} lists a model without a name: {str(entry)[:80]!r}", is_mistaken=True)
        if not is_elsewhere(entry):
            running.append(name)
    return running


def ollama_claim(said: Said) -> Claim | None:
    """The sizes that `/api/ps` gives of what runs here; None if one is missing. Raises as `ollama_running`."""
    ollama_running(said)
    here = [entry for entry in said.document["models"] or [] if not is_elsewhere(entry)]
    sizes = [(entry.get("size"), entry.get("size_vram", 0)) for entry in here]
    if not all(_is_size(size) and _is_size(on_cards) for size, on_cards in sizes):
        return None
    return Claim(sum(size for size, _ in sizes), sum(on_cards for _, on_cards in sizes))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
