"""Which handler answers which path: an exact table over raw paths.

Nothing is decoded, merged or normalised before the match, so there is no spelling of a path that one check sees
differently from the next (`/api/./delete` passed the predecessor's gate). What the table does not hold is refused.

A pattern is a path whose segments may be parameters:
  /v1/responses/{id}/cancel   one segment, percent-decoded after the match
  /v1/models/{id...}          the rest, slashes included, percent-decoded after the match
  /upstream/{engine}/{path*}  the rest as it was sent, possibly empty
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import unquote

from aiohttp import web

from enginerouter.errors import BadRequest, MethodNotAllowed, NotFound, printable

if TYPE_CHECKING:
    from enginerouter.web.edge import EdgeCall

Access = Literal["open", "key", "admin"]
RouteHandler = Callable[["EdgeCall"], Awaitable[web.StreamResponse]]

NO_PARAMS: Mapping[str, str] = MappingProxyType({})
# Escapes of ".", "/", "\\" and control characters: harmless as data, never as structure.
_HIDDEN_STRUCTURE = re.compile(r"%(?:2e|2f|5c|[01][0-9a-f]|7f)", re.IGNORECASE)
_NEVER_IN_A_PATH = re.compile(r"[\x00-\x20\x7f\\;#\"<>^`{|}]|[^\x00-\x7f]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table. `access`: open to all, any key, or admin keys only."""

    method: str
    path: str
    handler: RouteHandler
    access: Access = "key"


class Match(NamedTuple):
    route: Route
    params: Mapping[str, str]


class _Place:
    """The routes of one path or pattern, by method."""

    __slots__ = ("allow", "routes", "segments")

    def __init__(self, path: str) -> None:
        self.segments = path.split("/")[1:]
        self.routes: dict[str, Route] = {}
        self.allow = ""

    def add(self, route: Route) -> None:
        if route.method in self.routes:
            raise ValueError(f"two routes for {route.method} {route.path}")
        self.routes[route.method] = route

    def freeze(self) -> None:
        if (get := self.routes.get("GET")) is not None:
            self.routes.setdefault("HEAD", get)
        self.allow = ", ".join([*self.routes, "OPTIONS"])


def canonical_problem(path: str) -> str | None:
    """Why this raw path is not written in the one way we route, or None."""
    if not path.startswith("/"):
        return "only paths are served here, no absolute URLs"
    if _NEVER_IN_A_PATH.search(path):
        return "the path holds a character that does not belong there"
    if "//" in path:
        return "the path holds an empty segment"
    if "/." in path and any(segment in (".", "..") for segment in path.split("/")):
        return "the path holds a dot segment"
    if "%" in path and (_HIDDEN_STRUCTURE.search(path) or _BAD_ESCAPE.search(path)):
        return "the path holds an escape that hides its structure"
    return None


def _decoded(raw: str) -> str:
    """The text of a path parameter. A slash may be escaped in it; steps up and control characters may not."""
    if "%" not in raw:
        return raw
    try:
        text = unquote(raw, errors="strict")
    except UnicodeDecodeError:
        raise BadRequest("the path is not UTF-8") from None
    if not text.isprintable() or "\\" in text or any(s in ("", ".", "..") for s in text.split("/")):
        raise BadRequest(f"{printable(text)!r} is no name")
    return text


def _bind(pattern: list[str], segments: list[str]) -> dict[str, str] | None:
    """The raw parameters if the segments fit the pattern."""
    found: dict[str, str] = {}
    for index, part in enumerate(pattern):
        if part.endswith("*}"):
            found[part[1:-1]] = "/".join(segments[index:])
            return found
        if part.endswith("...}"):
            rest = "/".join(segments[index:])
            return {**found, part[1:-4]: rest} if rest else None
        if index >= len(segments):
            return None
        if part.startswith("{"):
            if not segments[index]:
                return None
            found[part[1:-1]] = segments[index]
        elif part != segments[index]:
            return None
    return found if len(pattern) == len(segments) else None


class Routes:
    """The table, built once per configuration."""

    __slots__ = ("_exact", "_patterns", "rows")

    def __init__(self, routes: Iterable[Route]) -> None:
        self.rows = tuple(routes)
        self._exact: dict[str, _Place] = {}
        patterns: dict[str, _Place] = {}
        for route in self.rows:
            places = patterns if "{" in route.path else self._exact
            places.setdefault(route.path, _Place(route.path)).add(route)
        self._patterns = list(patterns.values())
        for place in (*self._exact.values(), *self._patterns):
            place.freeze()

    def match(self, method: str, path: str) -> Match:
        """The route of a raw path without its query. Raises BadRequest, NotFound or MethodNotAllowed."""
        place = self._exact.get(path)
        if place is not None:
            route = place.routes.get(method)
            if route is not None:
                return Match(route, NO_PARAMS)
            raise _wrong_method(method, place)
        place, params = self._search(path)
        route = place.routes.get(method)
        if route is None:
            raise _wrong_method(method, place)
        return Match(route, params)

    def methods(self, path: str) -> str:
        """What may be asked of path, as an `Allow` value. Raises BadRequest or NotFound."""
        place = self._exact.get(path)
        return (place if place is not None else self._search(path)[0]).allow

    def _search(self, path: str) -> tuple[_Place, Mapping[str, str]]:
        segments = path.split("/")[1:]
        for place in self._patterns:
            raw = _bind(place.segments, segments)
            if raw is not None:
                return place, _checked(raw)
        if (problem := canonical_problem(path)) is not None:
            raise BadRequest(problem)
        raise NotFound(f"there is nothing at {printable(path)}")


def _checked(raw: dict[str, str]) -> Mapping[str, str]:
    """Decode the parameters. What is around them is canonical: it equals the pattern."""
    params: dict[str, str] = {}
    for name, value in raw.items():
        is_raw = name.endswith("*")
        seen = value if is_raw else _HIDDEN_STRUCTURE.sub("_", value)
        if (problem := canonical_problem("/" + seen)) is not None:
            raise BadRequest(problem)
        params[name.rstrip("*")] = value if is_raw else _decoded(value)
    return params


def _wrong_method(method: str, place: _Place) -> MethodNotAllowed:
    return MethodNotAllowed(f"{method} is not served here; try {place.allow}", allow=place.allow)
