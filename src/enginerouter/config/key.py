"""What the model says about one YAML key, beside its type and default.

A field of a config dataclass is a YAML key if its type is `Annotated[..., Key(...)]`; fields without a `Key`
are filled by the loader. The loader, the schema and the reference all read the keys through `keys_of`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast, get_type_hints

# When a changed key counts: at once; from the engine's next start, which a reload brings about; from the router's.
Effect = Literal["live", "engine", "restart"]


@dataclass(frozen=True, slots=True)
class Key:
    """The meaning of one key. `doc` is for the reference; `unit` is the unit of its number."""

    doc: str
    unit: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    # A named text format of `forms.FORMS`.
    form: str = ""
    # A list may also be written as one plain string that is split like a shell would.
    is_command: bool = False
    # Numbers and booleans are taken as they are written: `--port 8000` in a command is text.
    as_text: bool = False
    # The value is never quoted in a message.
    is_secret: bool = False
    # An empty string, list or mapping is refused.
    nonempty: bool = False
    # A plain string in place of an object of this class sets this key of it.
    shorthand: str = ""
    # Said beside a message about a wrong value.
    hint: str = ""
    # What a reload does with a change of it.
    reload: Effect = "live"
    # Accepted for older configs, without effect here; says why or what to use instead.
    no_effect: str = ""


@dataclass(frozen=True, slots=True)
class KeyField:
    """One YAML key of a config class. `hint` is its type without `Annotated`."""

    name: str
    hint: Any
    key: Key
    default: Any
    is_required: bool


def keys_of(owner: type[Any]) -> tuple[KeyField, ...]:
    """The YAML keys of a config dataclass, in order."""
    return _read(cast(Hashable, owner))


@cache  # reading the hints of a class takes longer than converting an entry of a long list
def _read(owner: type[Any]) -> tuple[KeyField, ...]:
    hints = get_type_hints(owner, include_extras=True)
    found = []
    for field in dataclasses.fields(owner):
        hint = hints[field.name]
        keys = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Key)]
        if not keys:
            continue
        is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = None
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append(KeyField(field.name, hint.__origin__, keys[0], default, is_required))
    return tuple(found)


def identity_of(owner: type[Any], keys: tuple[KeyField, ...]) -> str:
    """The field that holds an object's own name in its mapping (`Alias.name`), or "" if it has none."""
    first = dataclasses.fields(owner)[0].name
    return "" if any(field.name == first for field in keys) else first
