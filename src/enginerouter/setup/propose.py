"""From what was found to a configuration: plain functions, nothing is asked or looked up here.

Each engine is its preset with what this machine says in its place: the address, the command that runs, the models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from enginerouter.errors import printable
from enginerouter.setup import presets
from enginerouter.setup.emit import Document, Noted
from enginerouter.setup.recognise import OTHERS, ROUTERS, TITLES
from enginerouter.setup.scan import Found

# Their models come and go; they are asked for when a list is needed.
_LISTS_ITSELF: Final = ("ollama", "lmstudio", "localai", "tabbyapi")
_MOST_NAMES: Final = 8
# Nobody declares more of one engine; the rest can be named as ENGINE/MODEL, or discovered.
_MOST_MODELS: Final = 100


@dataclass(frozen=True, slots=True)
class Answers:
    """What only a person knows, by port: how to start what cannot be read, and keys."""

    start_cmds: Mapping[int, str] = field(default_factory=dict)
    host: str | None = None
    router_port: int = 8077


@dataclass(slots=True)
class Proposal:
    """`told`: one line for each thing found. `running`: plain processes that run, and that the router would start."""

    document: Document = field(default_factory=Document)
    told: list[str] = field(default_factory=list)
    running: list[Found] = field(default_factory=list)


def propose(found: Sequence[Found], answers: Answers) -> Proposal:
    proposal = Proposal()
    document = proposal.document
    document.head.append("Written by enginerouter init. Every key: docs/reference/config.md; check: enginerouter check")
    if answers.host:
        document.settings["host"] = answers.host
    document.settings["port"] = answers.router_port
    ids: set[str] = set()
    for one in found:
        if why := why_not(one):
            proposal.told.append(f"{label(one)}: left out – {why}")
            continue
        name = _free_name(one.kind or "", document.engines)
        engine, notes = _engine(one, answers)
        document.engines[name] = Noted(engine, tuple(notes))
        if one.kind not in _LISTS_ITSELF:
            _add_models(document, name, one, ids)
        proposal.told.append(_told(one, name, engine))
        if (
            engine["type"] == "generic_process"
            and one.running is not None
            and one.running.argv
            and not one.running.container
        ):
            proposal.running.append(one)
    return proposal


def why_not(one: Found) -> str:
    """Why something that answers is no engine for this configuration; "" if it is one."""
    if one.kind is None:
        return "nothing here knows what it is"
    if one.kind in ROUTERS:
        what = "; `enginerouter import` reads its configuration" if one.kind == "llama-swap" else ""
        return f"it is a router itself{what}"
    if one.kind in OTHERS:
        return "there is no preset for it; write it as api_swap"
    if one.running is not None and one.running.is_routers:
        return "an enginerouter has started it"
    if one.running is not None and one.running.parent:
        return f"{TITLES[one.running.parent]} has started it and keeps it"
    return ""


def label(one: Found) -> str:
    return f"{TITLES.get(one.kind or '', 'something')} at {one.base_url}"


def is_process(one: Found) -> bool:
    """Whether the router would start it."""
    return _preset(one.kind or "").get("type") == "generic_process"


def lacks_command(one: Found) -> bool:
    """Whether the router would start it, and nobody knows how."""
    return is_process(one) and one.running is not None and not (one.running.argv or one.running.unit)


def _preset(kind: str) -> dict[str, Any]:
    """The engine of a preset, as it is written."""
    engines = yaml.safe_load(presets.text_of(kind))["engines"]
    settings: dict[str, Any] = next(iter(engines.values()))
    return settings


def _engine(one: Found, answers: Answers) -> tuple[dict[str, Any], list[str]]:
    preset = _preset(one.kind or "")
    if preset["type"] != "generic_process":
        return _server(one, preset)
    if one.running is None:
        engine = {"type": "remote", "base_url": one.base_url}
        return _with_key(engine, one), ["On another machine: it is reached, and never started or stopped from here."]
    return _process(one, preset, answers)


def _server(one: Found, preset: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """One that is always on."""
    engine = {**preset, "base_url": one.base_url}
    engine.pop("api_key", None)
    notes = []
    if "control_headers" in engine:
        if one.admin_key:
            engine["control_headers"] = {"x-admin-key": one.admin_key}
        else:
            engine["control_headers"] = {"x-admin-key": "CHANGE-ME"}
            notes.append("CHANGE x-admin-key to the admin_key of its api_tokens.yml: loading and unloading need it.")
    if one.models:
        names = [printable(model.id, 80) for model in one.models[:_MOST_NAMES]]
        more = f" and {len(one.models) - _MOST_NAMES} more" if len(one.models) > _MOST_NAMES else ""
        notes.append(f"Its models need not be declared: {', '.join(names)}{more}.")
    return _with_key(engine, one), notes


def _with_key(engine: dict[str, Any], one: Found) -> dict[str, Any]:
    if one.api_key:
        engine["api_key"] = one.api_key
    return engine


def _process(one: Found, preset: Mapping[str, Any], answers: Answers) -> tuple[dict[str, Any], list[str]]:
    running = one.running
    assert running is not None
    kept = {key: value for key, value in preset.items() if key not in ("type", "start_cmd", "env")}
    if str(kept.get("ready_check", "")).startswith("model:"):
        kept["ready_check"] = f"model:{one.models[0].upstream_id or one.models[0].id}" if one.models else ""
    if running.unit:
        unit = {key: kept[key] for key in kept if key not in ("stop_signal", "max_in_flight")}
        engine = {
            "type": "systemd_unit",
            "unit": running.unit,
            "scope": running.scope,
            "base_url": one.base_url,
            **unit,
        }
        return _with_key(engine, one), [f"{TITLES[one.kind or '']}, as its unit runs it (process {running.pid} now)."]
    engine = {"type": "generic_process", "base_url": one.base_url}
    notes = []
    if running.container:
        engine["start_cmd"] = ["docker", "start", "--attach", running.container]
        engine["stop_cmd"] = ["docker", "stop", running.container]
        notes.append("In a container that is there already. CHANGE docker to podman, if it is podman's.")
    elif running.argv:
        engine["start_cmd"] = list(running.argv)
        if running.cwd is not None:
            engine["cwd"] = str(running.cwd)
        if running.env:
            engine["env"] = dict(running.env)
        notes.append(f"As process {running.pid} was started.")
    elif one.port in answers.start_cmds:
        engine["start_cmd"] = answers.start_cmds[one.port]
    else:
        engine["enabled"] = False
        engine["start_cmd"] = str(preset["start_cmd"]).replace("{port}", str(one.port))
        notes.append(f"CHANGE start_cmd, then remove `enabled`: {running.doubt}.")
    return _with_key({**engine, **kept}, one), notes


def _add_models(document: Document, engine: str, one: Found, ids: set[str]) -> None:
    """An id that another engine has already gets this engine's name behind it."""
    for model in one.models[:_MOST_MODELS]:
        entry: dict[str, Any] = {"id": model.id, "engine": engine}
        notes = []
        if model.id in ids:
            entry["id"] = f"{model.id}-{engine}"
            entry["upstream_id"] = model.upstream_id or model.id
            notes.append(f"{printable(model.id, 80)} is also another engine's.")
        elif model.upstream_id is not None:
            entry["upstream_id"] = model.upstream_id
        if entry["id"] in ids:
            continue
        ids.add(entry["id"])
        if model.context_length is not None:
            entry["context_length"] = model.context_length
        document.models.append(Noted(entry, tuple(notes)))


def _free_name(wanted: str, taken: Mapping[str, object]) -> str:
    name, n = wanted, 2
    while name in taken:
        name, n = f"{wanted}-{n}", n + 1
    return name


def _told(one: Found, name: str, engine: Mapping[str, Any]) -> str:
    count = len(one.models)
    models = f"{count} model{'' if count == 1 else 's'}" if count else "no model listed"
    if one.needs_key:
        models = "it asks for a key"
    how = {"systemd_unit": f"unit {engine.get('unit')}", "remote": "on another machine"}.get(str(engine["type"]), "")
    if engine["type"] == "generic_process" and one.running is not None:
        how = f"process {one.running.pid}" if one.running.argv else one.running.doubt
    return f"{label(one)}: engine {name!r}, {models}" + (f", {how}" if how else "")
