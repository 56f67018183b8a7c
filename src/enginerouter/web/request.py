"""The request object of the edge: aiohttp's, with an id and the headers that every answer carries."""

from __future__ import annotations

import itertools
import secrets
from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion10, HttpVersion11
from multidict import istr

from enginerouter.proxy.headers import INSTANCE, SERVER_NAME

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage

X_REQUEST_ID = istr("X-Request-Id")
# Anthropic's name for it, which its SDK reads.
REQUEST_ID = istr("Request-Id")
ANTHROPIC_PATHS = "/v1/messages"
MAX_REQUEST_ID = 128
# What a page's script may read of our answers, besides the headers browsers always show.
EXPOSED_HEADERS = (
    "X-Request-Id, Request-Id, Retry-After, X-Should-Retry, X-EngineRouter-Resolved, X-EngineRouter-Attempts, "
    "X-EngineRouter-Queue-Ms, X-EngineRouter-Swap-Ms, X-EngineRouter-Cache, X-EngineRouter-Estimated"
)


class RequestIds:
    """Ids that are unique for practical purposes and cost a counter: a random prefix per process, then a number."""

    __slots__ = ("_next", "_prefix")

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._next = itertools.count(1).__next__

    def new(self) -> str:
        return f"{self._prefix}-{self._next():x}"


def is_sane_id(text: str) -> bool:
    """May a client's request id go into logs and answers? Visible ASCII, not too long."""
    return 0 < len(text) <= MAX_REQUEST_ID and text.isascii() and text.isprintable() and " " not in text


class EdgeRequest(web.BaseRequest):
    """One request. `request_id` and `cors_origin` go out with whatever answer is prepared for it."""

    request_id: str
    # The origin that may read the answer; set once the Origin rule has let it pass.
    cors_origin: str | None = None
    # This router's id among others, for a request that another one has passed on.
    instance: str | None = None

    def begin(self, ids: RequestIds) -> None:
        given = self._headers.get(X_REQUEST_ID) if self._headers else None
        self.request_id = given if given is not None and is_sane_id(given) else ids.new()

    @property
    def raw_message(self) -> RawRequestMessage:
        """What the parser saw. Routing and access decisions read this and nothing that is rebuilt from it."""
        return self._message

    def answer_as_http10(self) -> None:
        """Answer a request of an HTTP version we do not speak in one that everybody reads."""
        self._version = HttpVersion10

    @property
    def is_http11(self) -> bool:
        return self._version is HttpVersion11

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        headers = response.headers
        headers[X_REQUEST_ID] = self.request_id
        if self._message.path.startswith(ANTHROPIC_PATHS):
            headers.setdefault(REQUEST_ID, self.request_id)
        headers[hdrs.SERVER] = SERVER_NAME
        if self.instance is not None:
            headers[INSTANCE] = self.instance
        if (origin := self.cors_origin) is not None:
            # The one origin, never "*": that would let every page read the answer.
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED_HEADERS
            headers.add(hdrs.VARY, "Origin")
