"""The listening side: connections that a slow, broken or vanished client cannot hold open.

`GuardedServer` makes one `GuardedConnection` per client and calls one coroutine per request. aiohttp 3.14 has no
slow-client protection of its own and logs a traceback per malformed request; both are mended here. What needs a
route, a key or a body lives further in (`edge.py`, `body.py`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import aiohttp
from aiohttp import http_parser, web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from enginerouter.dialects import openai
from enginerouter.errors import BadRequest, RequestTimeout, RouterError
from enginerouter.web.request import EdgeRequest, RequestIds

if TYPE_CHECKING:
    import ssl

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http_parser import RawRequestMessage
    from aiohttp.streams import StreamReader

log = logging.getLogger(__name__)

Handler = Callable[[EdgeRequest], Awaitable[web.StreamResponse]]

HEADER_TIMEOUT_S = 10.0
KEEPALIVE_TIMEOUT_S = 75.0
# How long an early answer (401, 413) waits for the client to stop sending: closing at once would reset the
# connection and with it, often, the answer.
LINGERING_TIME_S = 2.0

# A client that vanished without FIN is found after 60 + 4 × 15 s of silence; one that takes no byte of a waiting
# answer for two minutes is given up, so that it cannot hold a lease (kernel defaults: 2 h, and for ever).
_SOCKET_OPTIONS = (
    ("SOL_SOCKET", "SO_KEEPALIVE", 1),
    ("IPPROTO_TCP", "TCP_KEEPIDLE", 60),
    ("IPPROTO_TCP", "TCP_KEEPALIVE", 60),  # macOS's name for TCP_KEEPIDLE
    ("IPPROTO_TCP", "TCP_KEEPINTVL", 15),
    ("IPPROTO_TCP", "TCP_KEEPCNT", 4),
    ("IPPROTO_TCP", "TCP_USER_TIMEOUT", 120_000),
)


class HeadersTooLarge(BadRequest):
    """The request line or the headers are too large."""

    status = 431
    code = "headers_too_large"


def parser_problem() -> str | None:
    """Why this aiohttp should not face clients, or None.

    The pure-Python parser accepts lower-case methods and HTTP/1.2, hangs on chunk sizes that overflow, and had a
    request smuggling hole of its own (CVE-2026-111750, fixed in 3.14.4).
    """
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        return (
            "aiohttp runs on its slow and lax pure-Python HTTP parser; "
            "unset AIOHTTP_NO_EXTENSIONS or install an aiohttp wheel with the C extension"
        )
    version = tuple(int(part) for part in aiohttp.__version__.split(".")[:3] if part.isdigit())
    if version < (3, 14, 4):
        return f"aiohttp {aiohttp.__version__} has known request smuggling holes; install 3.14.4 or newer"
    return None


def socket_options() -> list[tuple[int, int, int]]:
    """The options of `_SOCKET_OPTIONS` that this platform has."""
    return [
        (getattr(socket, level), getattr(socket, name), value)
        for level, name, value in _SOCKET_OPTIONS
        if hasattr(socket, level) and hasattr(socket, name)
    ]


def _timeout_answer(request_id: str) -> bytes:
    """A whole 408, for a client that never got as far as a request object."""
    error = RequestTimeout("the request's headers did not arrive in time")
    body = openai.error_body(error, is_admin=False, request_id=request_id)
    head = (
        "HTTP/1.1 408 Request Timeout\r\nServer: enginerouter\r\nContent-Type: application/json\r\n"
        f"X-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


class GuardedConnection(web.RequestHandler):
    """One client. Adds to aiohttp's: a timer on request headers, socket options, quiet answers to bad HTTP.

    One timer handle per connection, re-armed only when it fires: a request costs one assignment.
    """

    __slots__ = ("_guarded", "_header_deadline", "_header_handle")

    def __init__(self, server: GuardedServer, **options: Any) -> None:
        super().__init__(server, **options)
        self._guarded = server
        # Loop time by which the headers must be complete; 0 = none are due.
        self._header_deadline = 0.0
        self._header_handle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            try:
                for level, name, value in self._guarded.socket_options:
                    sock.setsockopt(level, name, value)
            except OSError as error:  # the client is gone already
                log.debug("socket options not set: %s", error)
        self._expect_headers()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._header_handle is not None:
            self._header_handle.cancel()
            self._header_handle = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        seen = self._request_count
        super().data_received(data)
        if self._request_count != seen:
            self._header_deadline = 0.0
            if self._request_in_progress or len(self._messages) > 1:
                self._end_after_bad_bytes()
        elif data and self._waiter is not None and not self._header_deadline:
            # The first bytes of a further request on a kept connection.
            self._expect_headers()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp calls this twice per request with a body, each time through the whole parser. Only a pause is worth
        # it (a full message queue is resumed elsewhere).
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _end_after_bad_bytes(self) -> None:
        """If what followed a request was no HTTP, parse no more, and tell whoever reads that request's body.

        aiohttp leaves that body without an end, so that its reader would wait for ever.
        """
        if not self._messages or hasattr(self._messages[-1][0], "method"):
            return  # a pipelined request, all is well
        self._close = True
        bodies = [payload for _, payload in self._messages]
        if self._current_request is not None:
            bodies.append(self._current_request.content)
        for body in bodies:
            if not body.is_eof():
                body.set_exception(web.RequestPayloadError("the request body is not valid HTTP"))

    def _expect_headers(self) -> None:
        self._header_deadline = deadline = self._loop.time() + self._guarded.header_timeout_s
        if self._header_handle is None:
            self._header_handle = self._loop.call_at(deadline, self._check_headers)

    def _check_headers(self) -> None:
        self._header_handle = None
        deadline = self._header_deadline
        if not deadline or self.transport is None or self._force_close:
            return
        if self._loop.time() < deadline:
            self._header_handle = self._loop.call_at(deadline, self._check_headers)
            return
        log.debug("no complete request headers from %s in time", self.peername)
        if not self.transport.is_closing():
            self.transport.write(_timeout_answer(self._guarded.ids.new()))
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what never became a request, in one debug line and a small JSON body.

        aiohttp's own logs a traceback per malformed request (a log flood) and quotes the bytes back.
        """
        if isinstance(exc, ConnectionError):
            raise exc  # the client left, or the edge gave the answer up: the caller just ends the connection
        if not isinstance(exc, BadHttpMessage):
            # Not malformed HTTP: something of ours. The edge catches all it can; this is the net under it.
            log.error("request from %s failed outside the edge", request.remote, exc_info=exc)
            error = RouterError("internal error; the router's log has the details")
        elif isinstance(exc, LineTooLong):
            limit = self.max_field_size
            error = HeadersTooLarge(f"the request line and each header may be at most {limit} bytes long")
        else:
            error = BadRequest(f"not a valid HTTP/1.1 request ({type(exc).__name__})")
        log.debug("%d to %s: %r", error.status, request.remote, exc)
        if request.writer.output_size > 0:
            raise ConnectionResetError("the answer has begun; it can only be cut")
        request_id = cast(EdgeRequest, request).request_id
        body = openai.error_body(error, is_admin=False, request_id=request_id)
        response = web.Response(status=error.status, body=body, content_type="application/json")
        response.force_close()
        return response


class GuardedServer(web.Server):
    """Makes the connections. All options are explicit: aiohttp itself drops *all* options if one is misspelt."""

    def __init__(
        self,
        handler: Handler,
        *,
        header_timeout_s: float = HEADER_TIMEOUT_S,
        keepalive_timeout_s: float = KEEPALIVE_TIMEOUT_S,
        lingering_time_s: float = LINGERING_TIME_S,
    ) -> None:
        super().__init__(cast(Any, handler), request_factory=cast(Any, self._new_request), handler_cancellation=True)
        self.header_timeout_s = header_timeout_s
        self.socket_options = socket_options()
        self.ids = RequestIds()
        self._connection_options: dict[str, Any] = {
            "loop": self._loop,
            "keepalive_timeout": keepalive_timeout_s,
            "lingering_time": lingering_time_s,
            "access_log": None,
            # Else a gzip body arrives unpacked while its headers still describe the packed one.
            "auto_decompress": False,
            "debug": False,
        }

    def __call__(self) -> web.RequestHandler:
        return GuardedConnection(self, **self._connection_options)

    def _new_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> EdgeRequest:
        request = EdgeRequest(message, payload, protocol, writer, task, self._loop)
        request.begin(self.ids)
        return request


async def listen(
    server: GuardedServer,
    *,
    host: str | None = None,
    port: int = 0,
    sock: socket.socket | None = None,
    ssl_context: ssl.SSLContext | None = None,
    shutdown_timeout_s: float = 10.0,
) -> tuple[web.ServerRunner, int]:
    """Accept connections for server on host and port, or on sock; returns the runner and the real port.

    `await runner.cleanup()` stops it. aiohttp applies its shutdown timeout twice (it waits, cancels and waits
    again), so each half gets half.
    """
    runner = web.ServerRunner(server, shutdown_timeout=shutdown_timeout_s / 2)
    await runner.setup()
    site: web.BaseSite
    if sock is not None:
        site = web.SockSite(runner, sock, ssl_context=ssl_context, backlog=512)
    else:
        site = web.TCPSite(runner, host, port, ssl_context=ssl_context, backlog=512)
    try:
        await site.start()
    except BaseException:
        await runner.cleanup()
        raise
    address = runner.addresses[0]
    return runner, address[1] if isinstance(address, tuple) else 0
