"""Reading JSON that somebody else wrote.

Two tempers. A client's request is read strictly: the wrong type is a BadRequest that names the field. An engine's
answer is read leniently: what is not of the type expected counts as absent, because the stream must go on.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from enginerouter.errors import BadRequest, printable

T = TypeVar("T")
Json = dict[str, Any]

_KINDS: dict[type, str] = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "an array",
    type(None): "null",
}

# --- strict: requests


def wrong(path: str, needed: str, value: object) -> BadRequest:
    """The error for a field of the wrong type."""
    return BadRequest(f"'{printable(path)}' must be {needed}, not {_KINDS.get(type(value), 'that')}")


def optional(body: Json, key: str, kind: type[T], at: str = "") -> T | None:
    """A member of this type; None where it is absent or null. A whole number is no boolean, nor the other way."""
    value = body.get(key)
    if value is None:
        return None
    if type(value) is not kind:
        raise wrong(f"{at}{key}", _KINDS[kind], value)
    return value


def needed(body: Json, key: str, kind: type[T], at: str = "") -> T:
    """A member that must be there."""
    value = optional(body, key, kind, at)
    if value is None:
        raise BadRequest(f"'{printable(at + key)}' is missing: it must be {_KINDS[kind]}")
    return value


def number(body: Json, key: str, at: str = "") -> float | int | None:
    """A number of either kind."""
    value = body.get(key)
    if value is None:
        return None
    if type(value) not in (int, float):
        raise wrong(f"{at}{key}", "a number", value)
    return value  # type: ignore[no-any-return]


def whole(body: Json, key: str, at: str = "") -> int | None:
    """A whole number; 5.0 is one too."""
    value = number(body, key, at)
    if value is None or isinstance(value, int):
        return value
    if not value.is_integer():
        raise wrong(f"{at}{key}", "a whole number", value)
    return int(value)


def objects(value: object, path: str) -> list[Json]:
    """A list of objects; null counts as none."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong(path, "an array", value)
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise wrong(f"{path}[{index}]", "an object", item)
    return value


def texts(value: object, path: str) -> list[str]:
    """A string, or a list of strings, as a list; null counts as none."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise wrong(path, "a string or an array of strings", value)
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise wrong(f"{path}[{index}]", "a string", item)
    return value


# --- lenient: answers


def text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def dict_of(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def dicts_of(value: object) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def count_of(value: object) -> int | None:
    """A number of tokens. Some engines write them as floats."""
    if type(value) is int or (isinstance(value, float) and value.is_integer()):
        return max(0, int(value))
    return None


def seconds_of(milliseconds: object) -> float | None:
    """Milliseconds of an engine's own clock, as seconds; None where there is nothing to believe."""
    if type(milliseconds) in (int, float) and 0 < milliseconds < 1e12:  # type: ignore[operator]
        return milliseconds / 1000  # type: ignore[operator]
    return None


def compact(value: object) -> str:
    """JSON without spaces. Escapes, not UTF-8: a lone surrogate, which JSON may hold, has no UTF-8."""
    return json.dumps(value, separators=(",", ":"))


def arguments_of(written: object) -> Json:
    """The arguments of a tool call as an object. What a model wrote that is none is kept under `_raw`."""
    if isinstance(written, dict):
        return written
    if not isinstance(written, str) or not written.strip():
        return {}
    try:
        read = json.loads(written)
    except (ValueError, RecursionError):
        read = None
    return read if isinstance(read, dict) else {"_raw": written}
