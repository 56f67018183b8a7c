"""The edge: what every request passes before a handler sees it, and the one place where errors become answers.

Order: well-formed → route → Host and Origin → key → access → handler. The body is not read before the handler asks
for it, so no check invites an upload it then refuses.

For handlers (`async def handler(call: EdgeCall) -> web.StreamResponse`):
  * `await call.read_body()` reads the body once; the edge closes it when the handler is done (earlier: `close()`).
    What is in it: `json_body.json_object(body.raw)`, `json_body.model_of(...)`, `multipart.form_field(body, "model")`.
  * Raise a `RouterError` before anything was sent, and the client gets it in the dialect of the path.
  * Raise anything after the answer has begun, and the connection is cut without a tidy end; in-band errors are
    written by the handler itself.
  * Every answer gets `X-Request-Id`, `Server` and CORS headers by itself, streams included.
  * `asyncio.CancelledError` means that the client left; let it pass.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion10, HttpVersion11
from multidict import CIMultiDict, istr

from enginerouter.dialects.openai import error_fields
from enginerouter.dialects.translation import dialect_of
from enginerouter.errors import (
    BadRequest,
    Forbidden,
    LoopDetected,
    MethodNotAllowed,
    NoLongerConfigured,
    NotBuilt,
    RouterError,
    Unauthorized,
    UnknownModel,
    printable,
    retry_after,
)
from enginerouter.proxy.headers import INSTANCE
from enginerouter.web.body import MIB, Body, BodyLimits, BufferBudget, StreamedBody, expects_continue, read_body
from enginerouter.web.keys import ANONYMOUS, Identity, Keyring, identify
from enginerouter.web.origin import Origins, is_foreign_fetch
from enginerouter.web.routes import Route, Routes, canonical_problem

if TYPE_CHECKING:
    from enginerouter.config.model import Config
    from enginerouter.web.request import EdgeRequest

log = logging.getLogger(__name__)

SEC_FETCH_SITE = istr("Sec-Fetch-Site")
JSON = "application/json"
PREFLIGHT_MAX_AGE_S = 600
MAX_PREFLIGHT_HEADERS = 2048
ALLOW_AT_ALL = "GET, HEAD, POST, DELETE, OPTIONS"


class ExpectationFailed(BadRequest):
    """An `Expect` other than `100-continue`."""

    status = 417
    code = "expectation_failed"


class UnknownTransferCoding(NotBuilt):
    """RFC 9112 §6.1: a transfer coding that is not understood gets 501."""

    code = "transfer_coding_not_supported"


class UnreadableRequest(BadRequest):
    """HTTP that we do not speak."""


class NoTunnel(MethodNotAllowed):
    """CONNECT: the client may believe that what follows is for somebody else."""


# After these, where the next request begins is anybody's guess: the connection ends.
UNREADABLE = (UnreadableRequest, UnknownTransferCoding, NoTunnel)


@dataclass(frozen=True, slots=True)
class EdgeRules:
    """What one configuration says to the edge. Replaced as a whole on reload."""

    routes: Routes
    keyring: Keyring = field(default_factory=Keyring)
    origins: Origins = field(default_factory=lambda: Origins(has_keys=False))
    limits: BodyLimits = field(default_factory=BodyLimits)


def edge_rules(config: Config, routes: Routes) -> EdgeRules:
    """The rules of a loaded configuration. Plain and cheap; a reload calls it again."""
    own_name = socket.gethostname()
    return EdgeRules(
        routes,
        Keyring(config.api_keys),
        Origins(
            has_keys=bool(config.api_keys),
            allowed_hosts=config.allowed_hosts,
            allowed_origins=config.allowed_origins,
            machine_names=(own_name, own_name.partition(".")[0], config.host),
        ),
        BodyLimits(max_bytes=config.max_body_mib * MIB),
    )


class EdgeCall:
    """One request that passed the edge, as its handler sees it.

    `raw_path` and `raw_query` are as they were sent, split at the first `?` (no `?` in either). `params` holds what
    the route's pattern matched. `received_at` is monotonic.
    """

    __slots__ = (
        "_edge",
        "body",
        "identity",
        "params",
        "raw_path",
        "raw_query",
        "received_at",
        "request",
        "route",
        "rules",
    )

    def __init__(
        self,
        edge: Edge,
        rules: EdgeRules,
        request: EdgeRequest,
        route: Route,
        params: Mapping[str, str],
        identity: Identity,
        raw_path: str,
        raw_query: str,
    ) -> None:
        self._edge = edge
        self.rules = rules
        self.request = request
        self.route = route
        self.params = params
        self.identity = identity
        self.raw_path = raw_path
        self.raw_query = raw_query
        self.received_at = time.monotonic()
        self.body: Body | None = None

    @property
    def request_id(self) -> str:
        return self.request.request_id

    def release_body(self) -> None:
        """The body has gone to the engine: give its memory back now, not when a long answer ends."""
        if self.body is not None and self.body.file is None:
            self.body.close()

    async def read_body(self) -> Body:
        """The whole body, read on the first call."""
        if self.body is None:
            self.body = await read_body(self.request, limits=self.rules.limits, budget=self._edge.budget)
        return self.body

    def stream_body(self) -> StreamedBody:
        """The body as it arrives, instead of `read_body`: for what is larger than memory."""
        return StreamedBody(self.request, self.rules.limits)


class Edge:
    """`handle` is the server's one request handler."""

    def __init__(self, rules: EdgeRules, budget: BufferBudget) -> None:
        self.rules = rules
        self.budget = budget

    async def handle(self, request: EdgeRequest) -> web.StreamResponse:
        identity = ANONYMOUS
        call: EdgeCall | None = None
        rules = self.rules
        try:
            check_framing(request)
            path, _, query = request.raw_message.path.partition("?")
            check_target(request.method, path, query)
            if request.method == "OPTIONS":
                return await self._preflight(request, rules, path)
            route, params = rules.routes.match(request.method, path)
            check_source(request, rules.origins)
            identity = admit(request, rules.keyring, route)
            call = EdgeCall(self, rules, request, route, params, identity, path, query)
            response = await self._served(call)
            if not response.prepared:
                # Here, so that headers which cannot be sent give a 500 and not a silently dead connection.
                await response.prepare(request)
            return response
        except RouterError as error:
            if call is None:
                log.debug("refused %s: %d %s", describe(request), error.status, error.code)
            return self._answer(request, error, identity)
        except ConnectionError as error:
            if is_client_gone(request):
                raise
            return self._answer(request, _unexpected(request, error), identity)
        except Exception as error:  # noqa: BLE001 - the one edge: everything that escaped becomes a logged 500
            return self._answer(request, _unexpected(request, error), identity)
        finally:
            if call is not None and call.body is not None:
                call.body.close()

    async def _served(self, call: EdgeCall) -> web.StreamResponse:
        """Served by the configuration it came under; if a reload took that away while it waited, by the one now."""
        try:
            return await call.route.handler(call)
        except NoLongerConfigured:
            again = self._by_new_rules(call)
            if again is None:
                raise
            try:
                return await again.route.handler(again)
            except UnknownModel:
                pass  # what was taken away says more than a name that is unknown now
            raise

    def _by_new_rules(self, call: EdgeCall) -> EdgeCall | None:
        """The same request under the rules of now; None if they are the same, or an answer has begun."""
        rules, request = self.rules, call.request
        if rules is call.rules or request.writer.output_size > 0:
            return None
        route, params = rules.routes.match(request.method, call.raw_path)
        identity = admit(request, rules.keyring, route)
        again = EdgeCall(self, rules, request, route, params, identity, call.raw_path, call.raw_query)
        again.body = call.body
        return again

    def _answer(self, request: EdgeRequest, error: RouterError, identity: Identity) -> web.StreamResponse:
        if request.writer.output_size > 0:
            # The status is out. Ending tidily would make a cut answer look complete.
            log.debug("cut %s: %s", describe(request), error.message)
            request.protocol.force_close()
            raise ConnectionResetError("the answer had begun")
        dialect = dialect_of(request.raw_message.path.partition("?")[0])
        fields = error_fields(error, is_admin=identity.is_admin, request_id=request.request_id)
        response = web.Response(
            status=error.status,
            body=dialect.error_body(error.status, fields),
            headers=error_headers(error),
        )
        if not request.content.is_eof() or isinstance(error, UNREADABLE):
            # What is still to come of this request must not be read as the next one.
            response.force_close()
        return response

    async def _preflight(self, request: EdgeRequest, rules: EdgeRules, path: str) -> web.StreamResponse:
        """OPTIONS on a known path, with or without CORS in mind. Needs no key: browsers send none."""
        allow = rules.routes.methods(path)
        check_source(request, rules.origins)
        headers = CIMultiDict({hdrs.ALLOW: allow})
        if request.cors_origin is not None:
            headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = allow
            headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(PREFLIGHT_MAX_AGE_S)
            wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
            # The origin may call us; which of its headers we then read is decided when they come.
            if 0 < len(wanted) <= MAX_PREFLIGHT_HEADERS and wanted.isascii() and wanted.isprintable():
                headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
            if request.headers.get("Access-Control-Request-Private-Network") == "true":
                headers["Access-Control-Allow-Private-Network"] = "true"
        response = web.Response(status=204, headers=headers)
        if not request.content.is_eof():
            response.force_close()
        return response


def check_framing(request: EdgeRequest) -> None:
    """What aiohttp's parser lets through and we do not: most can make two of one request (RFC 9112 §11.2)."""
    message = request.raw_message
    version = message.version
    headers = request.headers
    if version is not HttpVersion11 and version is not HttpVersion10:
        request.answer_as_http10()
        raise UnreadableRequest("only HTTP/1.1 and HTTP/1.0 are spoken here")
    coding = headers.get(hdrs.TRANSFER_ENCODING)
    if coding is not None:
        if version is HttpVersion10:
            raise UnreadableRequest("HTTP/1.0 has no Transfer-Encoding")
        if coding.lower() != "chunked":
            raise UnknownTransferCoding(f"Transfer-Encoding {printable(coding, 60)!r} is not supported")
    if version is HttpVersion11 and hdrs.EXPECT in headers and not expects_continue(request):
        raise ExpectationFailed("only 'Expect: 100-continue' is understood")


def check_target(method: str, path: str, query: str) -> None:
    """Methods and targets that no route may ever see."""
    if method == "CONNECT":
        raise NoTunnel("CONNECT is not served here", allow=ALLOW_AT_ALL)
    if method == "TRACE" or path == "*":
        raise MethodNotAllowed(f"{method} is not served here", allow=ALLOW_AT_ALL)
    if not path.startswith("/"):
        # RFC 9112 §3.2.2: an absolute target overrides Host. One name per request is enough.
        raise BadRequest(canonical_problem(path) or "only paths are served here")
    if "#" in query or "\\" in query:
        raise BadRequest("the query holds a character that does not belong there")


def check_source(request: EdgeRequest, origins: Origins) -> None:
    """Host, Origin and Sec-Fetch-Site; an origin that passes may read the answer."""
    headers = request.headers
    host = headers.get(hdrs.HOST)
    origins.check_host(host, is_http11=request.is_http11)
    origin = headers.get(hdrs.ORIGIN)
    if origin is not None:
        origins.check_origin(origin, host)
        request.cors_origin = origin
    elif is_foreign_fetch(request.method, headers.get(SEC_FETCH_SITE), origin):
        raise Forbidden("a page of another site sent this request without saying which (no Origin)")


def admit(request: EdgeRequest, keyring: Keyring, route: Route) -> Identity:
    """Who asks, if the route is for them. Raises Unauthorized, Forbidden, or BadRequest on conflicting keys."""
    if route.access == "open":
        try:
            return identify(request.headers, keyring)
        except BadRequest:  # no key, a wrong one, or two: it is open all the same
            return ANONYMOUS
    identity = identify(request.headers, keyring)
    if route.access == "admin" and not identity.is_admin:
        raise Forbidden(f"{route.path} needs an admin key")
    return identity


def error_headers(error: RouterError) -> CIMultiDict[str]:
    headers: CIMultiDict[str] = CIMultiDict({hdrs.CONTENT_TYPE: JSON})
    if error.retry_after_s is not None:
        headers[hdrs.RETRY_AFTER] = str(retry_after(error.retry_after_s))
    if error.is_retryable is False:
        headers["x-should-retry"] = "false"
    if isinstance(error, Unauthorized):
        headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    elif isinstance(error, MethodNotAllowed):
        headers[hdrs.ALLOW] = error.allow
    elif isinstance(error, LoopDetected):
        headers[INSTANCE] = error.instance
    return headers


def is_client_gone(request: EdgeRequest) -> bool:
    transport = request.transport
    return transport is None or transport.is_closing()


def describe(request: EdgeRequest) -> str:
    """One safe phrase for the log: method, path without query (it may hold secrets), id."""
    path = request.raw_message.path.partition("?")[0]
    return f"{request.method} {printable(path)} [{request.request_id}]"


def _unexpected(request: EdgeRequest, error: BaseException) -> RouterError:
    """A bug of ours: the traceback goes to the log, once; the client gets the id to look for."""
    log.error("%s failed", describe(request), exc_info=error)
    return RouterError(f"internal error; the router's log has the details under {request.request_id}")
