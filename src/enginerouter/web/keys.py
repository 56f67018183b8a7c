"""Who asks: from the headers of a request to an identity. Every check of a key goes through here.

One extraction function, so that no channel (Bearer, X-API-Key, both, twice) is looked at by one check and missed by
another. Comparison is on digests of bytes over all keys without an early exit: its time tells nothing of a key.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Protocol

from aiohttp import hdrs
from multidict import CIMultiDictProxy, istr

from enginerouter.errors import BadRequest, Unauthorized

X_API_KEY = istr("X-API-Key")
Headers = CIMultiDictProxy[str]
ALL = ("*",)


class KeyRule(Protocol):
    """What a configured key grants (`config.ApiKey`)."""

    @property
    def name(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def admin(self) -> bool: ...
    @property
    def models(self) -> tuple[str, ...]: ...
    @property
    def remote(self) -> bool: ...
    @property
    def priority(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """The one who asks, and what that one may do. `models` are globs over canonical names."""

    name: str
    is_admin: bool = False
    models: tuple[str, ...] = ALL
    may_use_remote: bool = True
    priority: int = 0

    def may_name(self, model: str) -> bool:
        return self.models == ALL or any(fnmatchcase(model, glob) for glob in self.models)


# Without keys, whoever passes Host and Origin.
LOCAL = Identity("local", is_admin=True)
# On routes that need no key, whoever sends none.
ANONYMOUS = Identity("anonymous", models=(), may_use_remote=False)


def _digest(secret: bytes) -> bytes:
    # Not SHA-256: OpenSSL's set-up costs a few µs per call, BLAKE2 is Python's own.
    return blake2b(secret, digest_size=32).digest()


class Keyring:
    """The configured keys, ready to compare."""

    __slots__ = ("_entries",)

    def __init__(self, keys: Iterable[KeyRule] = ()) -> None:
        self._entries = tuple(
            (
                _digest(rule.key.encode()),
                Identity(rule.name, rule.admin, rule.models, rule.remote, rule.priority),
            )
            for rule in keys
        )

    @property
    def is_empty(self) -> bool:
        return not self._entries

    def find(self, secret: bytes) -> Identity | None:
        # Digests have one length, so not even the length of a key shows in the time this takes.
        digest = _digest(secret)
        found = None
        for known, identity in self._entries:
            if hmac.compare_digest(known, digest):
                found = identity
        return found


def credential(headers: Headers) -> bytes | None:
    """The one secret that the headers hold. Raises BadRequest when they hold different ones."""
    given: list[str] = headers.getall(X_API_KEY, [])
    for value in headers.getall(hdrs.AUTHORIZATION, ()):
        # RFC 9110 §11.1: schemes are case-insensitive. Others than Bearer are for somebody else.
        scheme, _, secret = value.partition(" ")
        if scheme.lower() == "bearer":
            given.append(secret.strip())
    given = [secret for secret in given if secret]
    if not given:
        return None
    first = given[0]
    if len(given) > 1 and any(secret != first for secret in given):
        raise BadRequest("the request carries different API keys; send one, as Bearer or as X-API-Key")
    # The parser decodes bytes that are not UTF-8 to surrogates; this gives the bytes back.
    return first.encode("utf-8", "surrogateescape")


def identify(headers: Headers, keyring: Keyring) -> Identity:
    """Who asks. Raises Unauthorized without a valid key, BadRequest on conflicting ones."""
    if keyring.is_empty:
        return LOCAL
    secret = credential(headers)
    if secret is None:
        raise Unauthorized("an API key is needed: send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
    identity = keyring.find(secret)
    if identity is None:
        raise Unauthorized("this API key is not known here")
    return identity
