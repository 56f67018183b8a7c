"""Which headers pass the proxy, in both directions. Pure, and on the hot path.

Dropped both ways: what belongs to one connection (RFC 9110 §7.6.1), with all that `Connection` names. Upstream in
addition: whatever tells the engine who the client is or proves it, and names an engine could mistake for another
(`X_Api_Key`). Downstream: what the engine says about itself, its cookies and its CORS rules; ours count.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from multidict import CIMultiDict, CIMultiDictProxy, istr

Headers = CIMultiDict[str] | CIMultiDictProxy[str]

# Between routers: the ids of those that a request came through, and whose answer this is.
VIA = istr("X-EngineRouter-Via")
INSTANCE = istr("X-EngineRouter-Instance")
SERVER_NAME = "enginerouter"
ACCEPT_ENCODING = istr("Accept-Encoding")
CONNECTION = istr("Connection")

HOP_BY_HOP = frozenset(
    {
        "connection",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NOT_UPSTREAM = HOP_BY_HOP | {
    "accept-encoding",  # always identity: the answer may have to be read on its way
    "api-key",
    "authorization",
    "content-encoding",  # refused at the edge but for "identity"
    "content-length",  # aiohttp counts what is really sent
    "cookie",
    "expect",
    "forwarded",
    "host",
    "origin",  # judged at the edge; engines have rules of their own (Ollama: 403)
    "referer",
    "via",
    "x-api-key",
    "x-goog-api-key",
    "x-real-ip",
}
_NOT_UPSTREAM_PREFIXES = ("x-enginerouter-", "x-forwarded-", "proxy-", "sec-")
_NOT_DOWNSTREAM = HOP_BY_HOP | {
    "alt-svc",  # would send the client past us
    "content-length",  # the relay knows whether the body is unchanged
    "date",
    "server",
    "set-cookie",
    "set-cookie2",
    "strict-transport-security",
    "via",
    "www-authenticate",  # would ask the client for the engine's key
    "x-request-id",
}
_NOT_DOWNSTREAM_PREFIXES = ("x-enginerouter-", "access-control-", "proxy-")


def connection_names(headers: Headers) -> frozenset[str] | None:
    """The headers that `Connection` declares to be for this hop only, in lower case; None for the usual values."""
    values = headers.getall(CONNECTION, None)
    if values is None:
        return None
    if len(values) == 1 and values[0].lower() in ("keep-alive", "close"):
        return None
    return frozenset(token.strip().lower() for value in values for token in value.split(","))


@lru_cache(maxsize=1024)
def passes_upstream(name: str) -> bool:
    """Whether a header of this name goes to the engine. A client sends the same dozen names again and again."""
    lower = name.lower()
    # An engine behind WSGI or CGI reads X_Api_Key as X-Api-Key.
    return not (lower in _NOT_UPSTREAM or "_" in lower or lower.startswith(_NOT_UPSTREAM_PREFIXES))


@lru_cache(maxsize=1024)
def passes_downstream(name: str) -> bool:
    """Whether a header of this name goes to the client."""
    lower = name.lower()
    if lower in _NOT_DOWNSTREAM or lower.startswith(_NOT_DOWNSTREAM_PREFIXES):
        return False
    return lower.isascii() and lower.isprintable() and " " not in lower


def request_headers(headers: Headers, extra: Mapping[str, str]) -> CIMultiDict[str]:
    """What the engine gets of a client's headers. `extra` (the engine's own key and headers) wins."""
    passed: CIMultiDict[str] = CIMultiDict([pair for pair in headers.items() if passes_upstream(pair[0])])
    if (named := connection_names(headers)) is not None:
        _drop(passed, named)
    passed[ACCEPT_ENCODING] = "identity"
    if extra:
        passed.update(extra)
    return passed


def response_headers(headers: Headers) -> CIMultiDict[str]:
    """What the client gets of an engine's headers. Content-Length and who answered are the relay's to add."""
    # The client parser is lenient, the server's writer is strict: one control character in a header and the client
    # would get nothing at all.
    passed: CIMultiDict[str] = CIMultiDict(
        [
            pair
            for pair in headers.items()
            if passes_downstream(pair[0]) and (pair[1].isprintable() or is_sendable(pair[1]))
        ]
    )
    if (named := connection_names(headers)) is not None:
        _drop(passed, named)
    return passed


def _drop(headers: CIMultiDict[str], names: frozenset[str]) -> None:
    for name in names:
        headers.popall(name, None)


def is_sendable(value: str) -> bool:
    """RFC 9110 §5.5: no control characters but tab."""
    return not any((char < " " and char != "\t") or char == "\x7f" for char in value)
