"""The key of an answer: everything that can change it. Pure.

The body is written in one canonical form, so that order and white space do not matter; nothing of it is left out but
`stream: false`, which says what its absence says. Beside it: the path and its query, the headers that APIs give a
meaning to, the engine with all that it is reached or launched by, its name for the model, and the fence of who asks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

# Of the form of keys and values: raise it when either changes, and old ones are no longer found.
VERSION = 1
# Headers that name a version, a beta or an account of an API.
_MEANINGFUL = ("openai-", "anthropic-")
_ANY_JSON = frozenset({"*/*", "application/json", "application/*"})


@dataclass(frozen=True, slots=True)
class Served:
    """Who would answer. `reached_by` changes with anything that the engine is launched or reached by."""

    engine: str
    reached_by: str
    model: str


@dataclass(frozen=True, slots=True)
class Key:
    """`engine` is kept beside the digest, so that all answers of one engine can be forgotten."""

    engine: str
    digest: str


class Ambiguous(ValueError):
    """A body that two parsers may read differently: what one engine answers must not be given as another's."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Ambiguous("a name is given twice in one object")
    return found


_STRICT = json.JSONDecoder(object_pairs_hook=_unique)


def read_body(raw: bytes) -> dict[str, Any]:
    """The JSON object that is sent. Raises Ambiguous (names given twice) or another ValueError."""
    try:
        body = _STRICT.decode(raw.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(body, dict):
        raise ValueError("no object")
    return body


def canonical(body: Mapping[str, Any]) -> bytes:
    """One form for all spellings of the same JSON. `1`, `1.0` and `true` stay different."""
    meant = {name: value for name, value in body.items() if not (name == "stream" and value is False)}
    return json.dumps(meant, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def meaningful(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers that may change an answer; all others (ids, agents, traces) do not."""
    found = []
    for name, value in headers:
        lower = name.lower()
        is_form = lower == "accept" and not {part.partition(";")[0].strip() for part in value.split(",")} & _ANY_JSON
        if is_form or lower.startswith(_MEANINGFUL):
            found.append((lower, value))
    return sorted(found)


def key_of(
    path: str,
    query: str,
    headers: Iterable[tuple[str, str]],
    body: Mapping[str, Any],
    served: Served,
    fence: str,
    form: Mapping[str, Any] = MappingProxyType({}),
) -> Key:
    """The key of the answer to this body. Raises ValueError where the body has no canonical form.

    `form` is what the client sent, where it wants the answer in a form of its own; its model counts by who serves it.
    """
    around = [VERSION, path, query, meaningful(headers), served.engine, served.reached_by, served.model, fence]
    digest = blake2b(json.dumps(around).encode(), digest_size=32)
    try:
        digest.update(b"\n" + canonical(body))
        if form:
            digest.update(b"\n" + canonical({name: value for name, value in form.items() if name != "model"}))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return Key(served.engine, digest.hexdigest())
