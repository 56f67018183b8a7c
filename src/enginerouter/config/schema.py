"""The JSON Schema of the configuration file, made from the model, for editors and other tools.

`config.schema.json` is its text; a test keeps them equal. The loader does not use it: its own messages are better, and
it also knows what a schema cannot say. A schema sees the file before `${VAR}` is replaced, so those are let through.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from enginerouter.config.engines import ENGINE_TYPES, LEGACY_SECTIONS, EngineSettings
from enginerouter.config.forms import PATTERNS
from enginerouter.config.key import Key, KeyField, keys_of
from enginerouter.config.model import Config

Schema = dict[str, Any]

# A value with a variable in it is judged when the variable is known.
_VARIABLE: Schema = {"type": "string", "pattern": "\\$\\{"}


def schema_text() -> str:
    """The text of config.schema.json."""
    return json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n"


def config_schema() -> Schema:
    """The schema, draft 2020-12."""
    root = _object(Config)
    for name in LEGACY_SECTIONS:
        about = "Older configs: used only if there is no `engines`."
        root["properties"][name] = {"description": about, "anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}
    kinds = {name: _engine(name, owner) for name, owner in ENGINE_TYPES.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://enginerouter.invalid/config.schema.json",
        "title": "enginerouter configuration",
        **root,
        "$defs": {"variable": _VARIABLE, "engine": _object(EngineSettings), **kinds},
    }


def _object(owner: type[Any]) -> Schema:
    fields = keys_of(owner)
    schema: Schema = {
        "description": inspect.cleandoc(owner.__doc__ or ""),
        "type": "object",
        "properties": {field.name: _field(field) for field in fields},
        "additionalProperties": False,
    }
    required = [field.name for field in fields if field.is_required]
    return schema | ({"required": required} if required else {})


def _engine(kind: str, owner: type[EngineSettings]) -> Schema:
    """The schema of one kind of engine. Keys that are as in every other kind only refer to those."""
    common = keys_of(EngineSettings)
    schema = _object(owner)
    for field in keys_of(owner):
        if field in common:
            schema["properties"][field.name] = {"$ref": f"#/$defs/engine/properties/{field.name}"}
    # Given in `engines:`, left out in the sections of older configs.
    schema["properties"]["type"] = {"description": "The kind of engine.", "const": kind}
    return schema


def _field(field: KeyField) -> Schema:
    if field.hint == Mapping[str, EngineSettings]:
        # By `type`, so that a misspelt key is judged against the one class that is meant.
        cases = [
            {"if": {"properties": {"type": {"const": name}}}, "then": {"$ref": f"#/$defs/{name}"}}
            for name in ENGINE_TYPES
        ]
        kind = {"type": "object", "required": ["type"], "properties": {"type": {"enum": list(ENGINE_TYPES)}}}
        schema: Schema = {"type": ["object", "null"], "additionalProperties": {**kind, "allOf": cases}}
    else:
        schema = _value(field.hint, field.key)
        if _is_empty(field.default) and not field.is_required:
            # `aliases:` with nothing after it, as in a file with its entries commented out.
            schema = _or(schema, {"type": "null"})
    described = {"description": describe(field.key), **schema}
    if not field.is_required and not _is_section(field.default):
        described["default"] = plain(field.default)
    if field.key.no_effect:
        described["deprecated"] = True
    return described


def _is_section(default: Any) -> bool:
    return dataclasses.is_dataclass(default)


def _is_empty(default: Any) -> bool:
    return default in ("", ()) or default == {} or _is_section(default)


def describe(key: Key) -> str:
    """A key's meaning, with its unit, as one paragraph."""
    unit = f" In {key.unit}." if key.unit and key.unit != "s" else " In seconds." if key.unit else ""
    return f"{key.doc}{unit}" + (f" No effect here: {key.no_effect}." if key.no_effect else "")


def plain(value: Any) -> Any:
    """A default as JSON has it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _value(hint: Any, key: Key) -> Schema:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        section = any(dataclasses.is_dataclass(option) for option in args)
        options = [{"type": "null"} if option is type(None) else _value(option, key) for option in args]
        return _or(*options, *([{"type": "boolean"}] if section else []))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        nested = _object(hint)
        return _or(nested, {"type": "string", "minLength": 1}) if key.shorthand else nested
    if origin is tuple:
        items = _value(args[0], key if key.shorthand else dataclasses.replace(key, nonempty=False))
        listed: Schema = {"type": "array", "items": items, **({"minItems": 1} if key.nonempty else {})}
        return _or(listed, {"type": "string"}) if key.is_command else listed
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _value(args[1], key)}
    return _scalar(hint, key)


def _scalar(hint: Any, key: Key) -> Schema:
    if hint is Any:
        return {}
    if get_origin(hint) is Literal:
        return _or({"enum": list(get_args(hint))}, {"$ref": "#/$defs/variable"})
    if hint in (int, float, bool):
        names = {int: "integer", float: "number", bool: "boolean"}
        limits = {"minimum": key.ge, "exclusiveMinimum": key.gt, "maximum": key.le}
        number: Schema = {"type": names[hint]}
        number |= {name: limit for name, limit in limits.items() if limit is not None and hint is not bool}
        return _or(number, {"$ref": "#/$defs/variable"})
    if key.form == "signal":
        return {"type": ["string", "integer"]}
    if key.as_text:
        return {"type": ["string", "number", "boolean"]}
    text: Schema = {"type": "string"}
    if key.nonempty or hint is Path:
        text["minLength"] = 1
    if key.form in PATTERNS:
        return _or(text | {"pattern": PATTERNS[key.form]}, {"$ref": "#/$defs/variable"})
    return text


def _or(*options: Schema) -> Schema:
    """One of several, flat and each once."""
    flat: list[Schema] = []
    for option in options:
        for part in option["anyOf"] if set(option) == {"anyOf"} else [option]:
            if part not in flat:
                flat.append(part)
    return flat[0] if len(flat) == 1 else {"anyOf": flat}
