"""The profiles of a `generic_process` engine: from the configuration, from a manifest file, or from both.

A manifest is YAML or JSON: profiles by id, at the top or under `profiles:`. Its problems are reported like those of the
configuration, with its own name and lines; relative model paths count from its folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from enginerouter.config.convert import Converter
from enginerouter.config.engines import GenericProcess, Profile
from enginerouter.config.forms import FORMS, BadForm
from enginerouter.config.report import At, Report
from enginerouter.config.source import MAX_BYTES, Source, read_source, see_file
from enginerouter.errors import Problem

# How other tools' manifests spell our keys.
_SPELLINGS: Final = MappingProxyType({"display_name": "name", "model_path": "model"})


def with_profiles(settings: GenericProcess, at: At, source: Source, environ: Mapping[str, str]) -> GenericProcess:
    """The engine with all its profiles, their flags as they were written."""
    here = (*at, "profiles")
    profiles = {
        name: checked
        for name, profile in settings.profiles.items()
        if (checked := _checked(profile, (*here, name), source)) is not None
    }
    if settings.manifest is None:
        return dataclasses.replace(settings, profiles=profiles) if settings.profiles else settings
    place = (*at, "manifest")
    for name, profile in _from_manifest(settings.manifest, place, source.report, environ).items():
        if name in profiles:
            source.report.error((*here, name), f"the profile {name!r} is also in {settings.manifest}", "each id once")
        profiles[name] = profile
    if not profiles and not source.report.errors:
        source.report.error(place, f"{settings.manifest} holds no profiles", "write ID: {model: FILE, flags: {...}}")
    return dataclasses.replace(settings, profiles=profiles)


def _from_manifest(path: Path, place: At, report: Report, environ: Mapping[str, str]) -> dict[str, Profile]:
    text = _text_of(path, place, report)
    if text is None:
        return {}
    source = read_source(text, str(path), environ)
    for at, name in source.unset.items():
        hint = f"set it, write ${{{name}:-default}}, or $$ for a plain $"
        source.report.error(at, f"the environment variable {name} is not set", hint)
    profiles = _profiles_of(source, path.parent)
    report.errors += source.report.errors
    report.warnings += source.report.warnings
    return profiles


def _text_of(path: Path, place: At, report: Report) -> str | None:
    try:
        see_file(path)
        with path.open("rb") as stream:
            return _as_yaml(stream.read(MAX_BYTES + 1).decode("utf-8-sig"))
    except FileNotFoundError:
        report.error(place, f"there is no file {path}")
    except OSError as error:
        report.error(place, f"{path} cannot be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        report.errors.append(Problem("the file is not UTF-8 text", file=str(path), line=line))
    return None


def _as_yaml(text: str) -> str:
    """JSON may be indented with tabs, which YAML refuses; inside of its strings there are none."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text.replace("\t", " ")


def _profiles_of(source: Source, folder: Path) -> dict[str, Profile]:
    data = source.data
    if source.report.errors and data is None:
        return {}
    if not isinstance(data, dict):
        source.report.error((), "the file must be a mapping of profiles", "write ID: {model: FILE, flags: {...}}")
        return {}
    entries: At = ()
    if isinstance(data.get("profiles"), dict) and "model" not in data["profiles"]:
        for name in data.keys() - {"profiles"}:
            source.report.error((name,), "unknown key", "beside 'profiles' there is nothing else")
        data, entries = data["profiles"], ("profiles",)
    converter = Converter(source, folder)
    found: dict[str, Profile] = {}
    for name, raw in data.items():
        place = (*entries, name)
        built = converter.build(Profile, _in_our_words(raw, place, source), place, id=name)
        if built is not None and (profile := _checked(built, place, source)) is not None:
            found[name] = profile
    return found


def _in_our_words(raw: Any, at: At, source: Source) -> Any:
    if not isinstance(raw, dict):
        return raw
    renamed: dict[str, Any] = {}
    for name, value in raw.items():
        ours = _SPELLINGS.get(name, name)
        if ours in renamed or (ours != name and ours in raw):
            source.report.error((*at, name), f"means the same as {ours!r}, which is given too")
            continue
        if ours != name:
            source.lines[(*at, ours)] = source.lines[(*at, name)]
        renamed[ours] = value
    return renamed


def _checked(profile: Profile, at: At, source: Source) -> Profile | None:
    """The profile with its flags as text, or None after reporting what is wrong with its name."""
    report = source.report
    try:
        FORMS["name"](profile.id)
    except BadForm as bad:
        report.error(at, f"the id of a profile {bad.message}")
        return None
    if profile.pin and profile.idle_unload_s is not None:
        report.error((*at, "pin"), "a pinned profile is never unloaded", "remove pin or idle_unload_s")
    flags = {name: _as_written(name, value, (*at, "flags", name), source) for name, value in profile.flags.items()}
    return dataclasses.replace(profile, flags=flags)


def _as_written(name: str, value: Any, at: At, source: Source) -> Any:
    """A flag's value as the command line gets it: text, None (a bare switch), or a tuple of these.

    YAML reads `on`, `off`, `yes` and `no` as booleans; programs want `on` and `off`. Numbers stay as they were written.
    """
    items = value if isinstance(value, list) else [value]
    if not name.strip("-") or any(c.isspace() for c in name) or any(isinstance(item, list | dict) for item in items):
        source.report.error(at, "a flag's value must be text, a number, on/off, or a list")
        return None
    if isinstance(value, list):
        return tuple(_word(item, (*at, n), source) for n, item in enumerate(value))
    return _word(value, at, source)


def _word(value: Any, at: At, source: Source) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else source.texts.get(at, str(value))
