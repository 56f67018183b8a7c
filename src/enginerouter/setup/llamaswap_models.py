"""One model of llama-swap: a command, how it is reached, and what is changed in its requests."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Final

from enginerouter.setup.emit import Noted
from enginerouter.setup.foreign import Foreign, Imported
from enginerouter.setup.macros import PORT, Macros, UnknownMacro, finish

_OUR_PORT: Final = "{port}"
_PID: Final = "\ue002"
_CONTAINERS: Final = ("docker", "podman", "nerdctl")
_FIRST_PORT: Final = 5800
_NO_EQUAL: Final = {
    "unlisted": "every model is listed",
    "metadata": "models carry a description and tags only",
    "sendLoadingState": "waiting clients are kept alive by comments",
}
_READ: Final = frozenset(
    {"cmd", "cmdStop", "name", "description", "env", "proxy", "checkEndpoint", "ttl", "unloadTimeout", "useModelName",
     "filters", "aliases", "concurrencyLimit", "timeouts", "macros", "capabilities"}
)  # fmt: skip


@dataclass(slots=True)
class Where:
    """What every step of the conversion needs."""

    foreign: Foreign
    imported: Imported
    macros: Macros
    ports_given: int = 0

    def note(self, at: str, what: str) -> None:
        self.imported.notes.append(f"{at} has no equal" + (f": {what}" if what else ""))

    def no_equal(self, notes: list[str], at: str, what: str) -> None:
        """The same, and a comment beside the engine."""
        self.note(at, what)
        notes.append(f"no equal of {at.rpartition('.')[2]}" + (f": {what}" if what else ""))


class Names:
    """Names of engines for models and peers, and which model ids are taken."""

    def __init__(self, models: Collection[str], peers: Collection[str]) -> None:
        self._taken: set[str] = set()
        # `engine/…` means an engine: none may be called like the first part of a model's id.
        self._first_parts = {model.partition("/")[0] for model in models if "/" in model}
        self._engines = {model: self._free(model) for model in models}
        self._peers = {peer: self._free(peer) for peer in peers}
        self._ids = set(models)

    def engine(self, model: str) -> str:
        return self._engines[model]

    def peer(self, peer: str) -> str:
        return self._peers[peer]

    def claim(self, model_id: str) -> bool:
        """Whether the id was free; it is taken now."""
        if model_id in self._ids:
            return False
        self._ids.add(model_id)
        return True

    def _free(self, wanted: str) -> str:
        name = "".join(c if c.isprintable() and c != "/" else "-" for c in wanted).strip() or "engine"
        candidate, n = name, 2
        while candidate in self._taken or candidate in self._first_parts:
            candidate, n = f"{name}-{n}", n + 1
        self._taken.add(candidate)
        return candidate


def text_at(where: Where, macros: Macros, text: str, at: str) -> str:
    """Text with its macros replaced; a problem where one is not known."""
    try:
        return finish(macros.filled(text, stay={}))
    except UnknownMacro as unknown:
        where.foreign.wrong(at, str(unknown), "define it under macros")
        return ""


# --- the model


def add_model(where: Where, names: Names, model_id: str, raw: Mapping[str, Any]) -> None:
    at = f"models.{model_id}."
    foreign = where.foreign
    macros = where.macros.with_more({**foreign.mapping(raw, "macros", at), "MODEL_ID": model_id})
    notes: list[str] = []
    engine: dict[str, Any] = {"type": "generic_process"}
    _add_address(where, macros, raw, at, engine)
    _add_stop(where, macros, raw, at, engine, notes)
    _add_limits(where, macros, raw, at, engine, notes)
    for key in raw:
        if key in _NO_EQUAL and raw[key]:
            where.no_equal(notes, f"{at}{key}", _NO_EQUAL[key])
        elif key not in _READ and key not in _NO_EQUAL:
            where.no_equal(notes, f"{at}{key}", "not known to this importer")
    name = names.engine(model_id)
    _add_names(where, names, macros, model_id, raw, notes)
    where.imported.document.engines[name] = Noted(engine, tuple(notes))


def _add_address(where: Where, macros: Macros, raw: Mapping[str, Any], at: str, engine: dict[str, Any]) -> None:
    """The command, its environment, and the port: a free one, unless a place needs it that ours does not fill."""
    foreign = where.foreign
    cmd, proxy = foreign.text(raw, "cmd", at), foreign.text(raw, "proxy", at)
    pairs = [pair.partition("=") for pair in foreign.words(raw, "env", at)]
    if not cmd.strip():
        foreign.wrong(f"{at}cmd", "is missing")
        return
    try:
        stay = {PORT: _OUR_PORT, "PID": _PID}
        # Comments go first: a macro in one may have several lines.
        words = split_command(macros.filled(without_comments(cmd), stay=stay))
        target = macros.filled(proxy or "http://localhost:${PORT}", stay=stay)
        env = {name: finish(macros.filled(value, stay=stay)) for name, _, value in pairs}
    except UnknownMacro as unknown:
        foreign.wrong(f"{at}cmd", str(unknown), "define it under macros")
        return
    except ValueError as error:
        foreign.wrong(f"{at}cmd", f"cannot be split into words: {error}")
        return
    is_chosen = _OUR_PORT in " ".join(words)
    if _OUR_PORT in target and not is_chosen:
        target = _port_in(words) or ""
        if not target:
            foreign.wrong(f"{at}proxy", "is missing, and cmd does not use ${PORT}", "say where the model answers")
            return
    elif is_chosen and not _is_usual(target):
        # The address has a path or another host: the port must be known when the file is read.
        number = str(_next_port(where))
        target = target.replace(_OUR_PORT, number)
        words = [word.replace(_OUR_PORT, number) for word in words]
        env = {name: value.replace(_OUR_PORT, number) for name, value in env.items()}
        is_chosen = False
    if not is_chosen or _OUR_PORT not in target:
        engine["base_url"] = finish(target).rstrip("/")
    engine["start_cmd"] = [finish(word) for word in words]
    if env:
        engine["env"] = env


def without_comments(cmd: str) -> str:
    return "\n".join(line for line in cmd.splitlines() if not line.lstrip().startswith("#"))


def split_command(cmd: str) -> list[str]:
    """Lines that are comments go, a backslash joins lines, then as a POSIX shell splits. Raises ValueError."""
    return shlex.split(re.sub(r"\\[ \t]*(\n|$)", " ", without_comments(cmd)))


def _is_usual(target: str) -> bool:
    """`http://localhost:{port}`, in any spelling of this machine."""
    return re.fullmatch(r"http://(localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])?:\{port\}/?", target) is not None


def _port_in(words: Iterable[str]) -> str | None:
    """`--port 9001` in a command that names its port itself."""
    found = re.search(r"(?:^|\s)--port[= ](\d{1,5})(?:\s|$)", " ".join(words))
    return f"http://127.0.0.1:{found[1]}" if found else None


def _next_port(where: Where) -> int:
    first = where.foreign.number(where.foreign.data, "startPort", "")
    where.ports_given += 1
    return int(first or _FIRST_PORT) + where.ports_given - 1


def _add_stop(
    where: Where, macros: Macros, raw: Mapping[str, Any], at: str, engine: dict[str, Any], notes: list[str]
) -> None:
    stop = where.foreign.text(raw, "cmdStop", at)
    command = engine.get("start_cmd", [])
    if stop.strip():
        try:
            words = split_command(macros.filled(without_comments(stop), stay={PORT: _OUR_PORT, "PID": _PID}))
        except ValueError as error:
            where.foreign.wrong(f"{at}cmdStop", str(error))
            return
        if any(_PID in word for word in words):
            notes.append("cmdStop named ${PID}: the stop signal goes to the whole process tree here (stop_signal)")
        else:
            engine["stop_cmd"] = [finish(word) for word in words]
    elif command and PurePath(str(command[0])).name in _CONTAINERS:
        # The end of the client does not end the container; llama-swap left it running.
        _name_container(command, where, at)
        engine["stop_cmd"] = [command[0], "stop", command[command.index("--name") + 1]]
        notes.append("stop_cmd was added: ending the client of a container does not end the container")


def _name_container(command: list[str], where: Where, at: str) -> None:
    for n, word in enumerate(command):
        if word.startswith("--name="):
            command[n : n + 1] = ["--name", word.removeprefix("--name=")]
            return
        if word == "--name":
            return
    run_at = command.index("run") + 1 if "run" in command else 1
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", at.removeprefix("models.").rstrip("."))
    command[run_at:run_at] = ["--name", f"enginerouter-{name}"]


def _add_limits(
    where: Where, macros: Macros, raw: Mapping[str, Any], at: str, engine: dict[str, Any], notes: list[str]
) -> None:
    foreign = where.foreign
    path = text_at(where, macros, foreign.text(raw, "checkEndpoint", at), f"{at}checkEndpoint")
    if path == "none":
        engine["ready_path"] = None  # an accepted connection is enough
    elif path:
        engine["ready_path"] = path
    if wait_s := foreign.number(foreign.data, "healthCheckTimeout", ""):
        engine["start_timeout_s"] = max(15, wait_s)
    stop_s = foreign.number(raw, "unloadTimeout", at) or foreign.number(foreign.data, "unloadTimeout", "")
    if stop_s:
        engine["stop_timeout_s"] = stop_s
    ttl_s = foreign.number(raw, "ttl", at)
    if ttl_s is None or ttl_s < 0:
        ttl_s = foreign.number(foreign.data, "globalTTL", "")
    if ttl_s is not None and ttl_s > 0:
        engine["idle_unload_s"] = ttl_s
    if (most := foreign.number(raw, "concurrencyLimit", at)) is not None and most > 0:
        engine["max_in_flight"] = int(most)
        notes.append("concurrencyLimit: more requests than max_in_flight wait, they are not refused")
    add_timeouts(where, raw, at, engine, notes)


def add_timeouts(where: Where, raw: Mapping[str, Any], at: str, engine: dict[str, Any], notes: list[str]) -> None:
    timeouts = where.foreign.mapping(raw, "timeouts", at)
    if first_s := where.foreign.number(timeouts, "responseHeader", f"{at}timeouts."):
        engine["first_byte_timeout_s"] = first_s
    if rest := [key for key in timeouts if key != "responseHeader"]:
        what = "one upstream_connect_timeout_s holds for all engines; connections are kept for 2 s"
        where.no_equal(notes, f"{at}timeouts.{', '.join(rest)}", what)


# --- its names, and what is changed in requests


@dataclass(slots=True)
class Params:
    """`common`: keys for every entry of the model. `by_id`: set_params of further ids."""

    common: dict[str, Any] = field(default_factory=dict)
    by_id: dict[str, dict[str, Any]] = field(default_factory=dict)


def params_of(where: Where, macros: Macros, raw: Mapping[str, Any], at: str, notes: list[str]) -> Params:
    foreign = where.foreign
    filters = {_spelt(key): value for key, value in foreign.mapping(raw, "filters", at).items()}
    at = f"{at}filters."
    found = Params()
    strip = foreign.words(filters, "stripParams", at)
    names = [
        name.strip()
        for n, part in enumerate(strip)
        for name in text_at(where, macros, part, f"{at}stripParams[{n}]").split(",")
    ]
    if kept := [name for name in dict.fromkeys(names) if name and name != "model"]:
        found.common["strip_params"] = kept
    if fixed := _values(where, macros, foreign.mapping(filters, "setParams", at), f"{at}setParams."):
        found.common["set_params"] = fixed
    by_id = foreign.mapping(filters, "setParamsByID", at)
    for key in by_id:
        name = text_at(where, macros, key, f"{at}setParamsByID")
        inner = foreign.mapping(by_id, key, f"{at}setParamsByID.")
        found.by_id[name] = _values(where, macros, inner, f"{at}setParamsByID.{key}.")
    for key in filters.keys() - {"stripParams", "setParams", "setParamsByID"}:
        where.no_equal(notes, f"{at}{key}", "not known to this importer")
    return found


def _spelt(key: str) -> str:
    """Older files wrote strip_params and set_params."""
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), key).replace("ById", "ByID")


def _values(where: Where, macros: Macros, values: Mapping[str, Any], at: str) -> dict[str, Any]:
    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return text_at(where, macros, value, at.rstrip("."))
        if isinstance(value, dict):
            return {str(key): filled(inner) for key, inner in value.items()}
        return [filled(inner) for inner in value] if isinstance(value, list) else value

    # A dot in a name is part of the name there, and a step here.
    return {name: filled(value) for name, value in values.items() if name != "model" and "." not in name}


def _add_names(
    where: Where, names: Names, macros: Macros, model_id: str, raw: Mapping[str, Any], notes: list[str]
) -> None:
    foreign, at = where.foreign, f"models.{model_id}."
    document = where.imported.document
    params = params_of(where, macros, raw, at, notes)
    entry: dict[str, Any] = {"id": model_id, "engine": names.engine(model_id)}
    for theirs, ours in (("name", "display_name"), ("description", "description"), ("useModelName", "upstream_id")):
        if text := text_at(where, macros, foreign.text(raw, theirs, at), f"{at}{theirs}"):
            entry[ours] = text
    capabilities = foreign.mapping(raw, "capabilities", at)
    if context := foreign.number(capabilities, "context", f"{at}capabilities."):
        entry["context_length"] = int(context)
    if rest := [key for key in capabilities if key != "context"]:
        where.no_equal(notes, f"{at}capabilities.{', '.join(rest)}", "what a model can do is asked of its engine")
    own = params.by_id.pop(model_id, {})
    document.models.append(Noted(_with_params(entry, params.common, own)))
    for other_id, more in params.by_id.items():
        if names.claim(other_id):
            other = {"id": other_id, "engine": entry["engine"], "upstream_id": entry.get("upstream_id", model_id)}
            document.models.append(Noted(_with_params(other, params.common, more)))
    lists_all = foreign.data.get("includeAliasesInList") is True
    for alias, is_listed in _aliases(where, macros, raw, at, lists_all):
        if alias in params.by_id or alias == model_id:
            continue
        if any(c in alias for c in "*?["):
            where.no_equal(notes, f"{at}aliases", f"{alias!r} would be a pattern here")
        elif alias in document.aliases or not names.claim(alias):
            foreign.wrong(f"{at}aliases", f"{alias!r} is already a name")
        else:
            document.aliases[alias] = Noted(model_id if is_listed else {"target": model_id, "hidden": True})


def _aliases(
    where: Where, macros: Macros, raw: Mapping[str, Any], at: str, lists_all: bool
) -> Iterable[tuple[str, bool]]:
    """Names, and whether they are listed. An entry is a text, or `{id, unlisted}`."""
    found = raw.get("aliases") or []
    if not isinstance(found, list):
        where.foreign.wrong(f"{at}aliases", "must be a list")
        return
    for n, alias in enumerate(found):
        is_listed = lists_all
        if isinstance(alias, dict):
            is_listed = alias.get("unlisted") is not True
            alias = alias.get("id") or ""
        if not isinstance(alias, str | int | float) or not str(alias):
            where.foreign.wrong(f"{at}aliases[{n}]", "must be a name")
            continue
        if name := text_at(where, macros, str(alias), f"{at}aliases[{n}]"):
            yield name, is_listed


def _with_params(entry: dict[str, Any], common: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    whole = {**entry, **common}
    if more:
        whole["set_params"] = {**common.get("set_params", {}), **more}
    return whole
