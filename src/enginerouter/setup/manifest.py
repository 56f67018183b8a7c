"""A manifest of profiles becomes ours: one engine with them all, started as the sidecar started llama-server.

    qwen: {model_path: qwen.gguf, display_name: Qwen, flags: {ctx-size: 8192, flash-attn: on}}

Where the manifest goes on being written by something else, an engine can read it as it is: `manifest: FILE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from enginerouter.setup.emit import Noted
from enginerouter.setup.foreign import Foreign, Imported

_ENGINE: Final = "llamacpp"
_SPELLINGS: Final = {"display_name": "name", "model_path": "model"}
_KEPT: Final = ("model", "name", "flags", "env", "memory_gib", "pin", "preload", "idle_unload_s")


def convert(foreign: Foreign) -> Imported:
    imported = Imported()
    data = foreign.data
    is_inner = isinstance(data.get("profiles"), dict) and "model" not in data["profiles"]
    entries = foreign.mapping(data, "profiles", "") if is_inner else dict(data)
    at = "profiles." if is_inner else ""
    profiles: dict[str, Any] = {}
    for name in entries:
        raw = foreign.mapping(entries, name, at)
        if raw:
            profiles[name] = _profile(foreign, raw, f"{at}{name}.", imported)
    for key in data.keys() - {"profiles"} if is_inner else ():
        imported.notes.append(f"{key} has no equal: not known to this importer")
    if not profiles and not foreign.problems:
        foreign.wrong("", "holds no profiles")
    document = imported.document
    document.head += [
        f"Imported from the manifest {foreign.path.name}: each profile is a model, and changing it restarts the "
        "process.",
        f"To go on using the manifest itself, write `manifest: {foreign.path.name}` in place of `profiles:`.",
    ]
    document.settings["port"] = 8077
    flags = ["{flags}"] if any(p.get("flags") for p in profiles.values()) else []
    command = [
        "llama-server",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
        "--model",
        "{model}",
        "--alias",
        "{id}",
        *flags,
    ]
    engine = {
        "type": "generic_process",
        "start_cmd": Noted(command, ("CHANGE, if llama-server is not on PATH.",)),
        "ready_check": "status==ok",
        "profiles": profiles,
    }
    document.engines[_ENGINE] = Noted(engine)
    return imported


def _profile(foreign: Foreign, raw: Mapping[str, Any], at: str, imported: Imported) -> dict[str, Any]:
    profile: dict[str, Any] = {}
    for key, value in raw.items():
        ours = _SPELLINGS.get(key, key)
        if ours not in _KEPT:
            imported.notes.append(f"{at}{key} has no equal")
        elif ours in profile:
            foreign.wrong(f"{at}{key}", f"means the same as {ours!r}, which is given too")
        else:
            profile[ours] = value
    if not isinstance(profile.get("model"), str):
        foreign.wrong(f"{at}model", "names no model file")
        return profile
    # It was relative to the manifest; our file may stand elsewhere.
    path = Path(profile["model"])
    if not path.is_absolute() and not profile["model"].startswith("~"):
        profile["model"] = str(foreign.path.absolute().parent / path)
    return profile
