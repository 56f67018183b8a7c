"""The reference of all keys, docs/reference/config.md, made from the model.

`python -m enginerouter.config.reference > docs/reference/config.md` writes it; a test keeps them equal.
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, Union, get_args, get_origin

from enginerouter.config.convert import wanted
from enginerouter.config.engines import ENGINE_TYPES, EngineSettings, Profile
from enginerouter.config.key import Key, KeyField, keys_of
from enginerouter.config.model import Alias, ApiKey, Cache, Config, Discover, Health, Model
from enginerouter.config.schema import plain

_HEAD: Final = """# Configuration reference

<!-- Made from the model: python -m enginerouter.config.reference > docs/reference/config.md -->

One YAML file. `enginerouter check --config FILE` tells every problem at once, with its line.
Unknown keys, keys given twice and values of the wrong type are errors. Relative paths are relative to the file.
`${VAR}` and `${VAR:-default}` are replaced in values by environment variables; `$$` is a plain `$`. A variable that is
not set is an error, except in the `api_key` of a remote engine: chains then pass that engine over.

A reload (SIGHUP, `POST /admin/reload`) applies what has changed, and nothing if anything is wrong. What counts at once
has no mark here. An engine that has changed drains, and starts anew when it is next needed.
"""

_MARKS: Final = MappingProxyType(
    {"live": "", "engine": " *A change restarts the engine.*", "restart": " *A change needs a restart.*"}
)

_SECTIONS: Final[tuple[tuple[str, type[Any]], ...]] = (
    ("`api_keys[]`", ApiKey),
    ("`models[]`", Model),
    ("`aliases.NAME`", Alias),
    ("`discover`", Discover),
    ("`health`", Health),
    ("`cache`", Cache),
)


def reference_text() -> str:
    """The text of docs/reference/config.md."""
    parts = [_HEAD, _section("Top level", Config, keys_of(Config))]
    parts += [_section(title, owner, keys_of(owner)) for title, owner in _SECTIONS]
    common = keys_of(EngineSettings)
    parts.append(_section("`engines.NAME`: every kind", EngineSettings, common))
    for name, owner in ENGINE_TYPES.items():
        own = tuple(field for field in keys_of(owner) if field.name != "type" and not _is_common(field, common))
        parts.append(_section(f"`engines.NAME` with `type: {name}`", owner, own))
    parts.append(_section("`engines.NAME.profiles.ID`", Profile, keys_of(Profile)))
    return "\n".join(parts)


def _is_common(field: KeyField, common: tuple[KeyField, ...]) -> bool:
    return any(field.name == other.name and field.default == other.default for other in common)


def _section(title: str, owner: type[Any], fields: tuple[KeyField, ...]) -> str:
    about = " ".join(inspect.cleandoc(owner.__doc__ or "").split())
    rows = [
        f"| `{field.name}` | {_kind(field.hint, field.key)} | {_default(field)} | {_meaning(field.key)} |"
        for field in fields
    ]
    if not rows:
        return f"## {title}\n\n{about}\n\nOnly the keys of every kind.\n"
    return "\n".join(
        [f"## {title}\n", f"{about}\n", "| key | value | default | meaning |", "|---|---|---|---|", *rows, ""]
    )


def _kind(hint: Any, key: Key) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        kinds = [_kind(option, key) for option in args if option is not type(None)]
        return " or ".join([*kinds, "null"] if type(None) in args else kinds)
    if origin is tuple:
        text = "list of lists" if get_origin(args[0]) is tuple else f"list of {_kind(args[0], key)}"
        return f"{text}, or one string" if key.is_command else text
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    if hint is Any:
        return "any"
    if hint is Path:
        return "path"
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in args)
    if isinstance(hint, type) and hint not in (int, float, bool, str):
        return "mapping" if not key.shorthand else "text or mapping"
    return wanted(hint, key)


def _default(field: KeyField) -> str:
    if field.is_required:
        return "required"
    default = plain(field.default)
    if default is None or isinstance(default, bool | int | float | str | list | dict):
        return f"`{json.dumps(default, ensure_ascii=False)}`" if default != "" else '`""`'
    return ""


def _meaning(key: Key) -> str:
    unit = f" ({'seconds' if key.unit == 's' else key.unit})" if key.unit else ""
    effect = f" **No effect here:** {key.no_effect}." if key.no_effect else ""
    return f"{key.doc}{unit}{effect}{_MARKS[key.reload]}".replace("|", "\\|")


if __name__ == "__main__":
    print(reference_text(), end="")  # noqa: T201
