"""The engine's side of a request: one pool of connections per engine, and aiohttp's errors as ours.

Wired against aiohttp's defaults (docs/design.md, "aiohttp"): no total time-out, no connection limit, no redirects, no
cookies, no proxies from the environment, nothing added to headers, nothing unpacked.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterable, Collection, Mapping
from contextvars import ContextVar
from typing import IO

import aiohttp
from aiohttp import ClientRequest, ClientResponse, ClientSession, ClientTimeout, TCPConnector, hdrs
from aiohttp.client_proto import ResponseHandler
from aiohttp.tracing import Trace
from multidict import CIMultiDict, istr
from yarl import URL

from enginerouter.addresses import joined
from enginerouter.errors import Unreachable, UpstreamFailed, printable
from enginerouter.proxy.headers import INSTANCE, SERVER_NAME
from enginerouter.tasks import TaskGroup

# Below the keep-alive of every engine (llama.cpp and uvicorn close after 5 s): a connection that the engine is about
# to close is not used again.
POOL_IDLE_S = 2.0
# A shorter "key" (`none`, `x`) would be found in words that are none.
SHORTEST_KEY = 8
# What an engine may send as one header line; some put long diagnostics there.
MAX_HEADER_BYTES = 65536
# aiohttp warns about larger bytes bodies: written in one piece they would hold up the loop.
LARGE_BODY_BYTES = 1 << 20
MAX_URLS = 256
AUTO_HEADERS = frozenset({istr("Accept"), istr("User-Agent"), istr("Content-Type")})


# Whether the request of this task opened a connection of its own. (A trace of aiohttp tells the same for 10 µs more.)
_is_fresh: ContextVar[bool] = ContextVar("is_fresh")


class _Connector(TCPConnector):
    """Notes when no pooled connection was to be had."""

    async def _create_connection(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> ResponseHandler:
        _is_fresh.set(True)
        return await super()._create_connection(req, traces, timeout)


class ReusedConnectionFailed(Exception):
    """A pooled connection broke before any byte of an answer: the engine had closed it. One more try is allowed."""


class Upstream:
    """The connections to one engine. `headers` (its key and configured ones) go out with every request.

    `dialects` are those that it speaks; `is_strict`: it refuses fields that its dialect does not have; `has_infill`:
    by its command it is a llama.cpp, which has a path of its own for filling gaps. `is_server`: not a process of ours,
    so that it may be another router; `is_router` whether it is one, None until an answer has told; `instance` is that
    router's id, once it has said it.
    """

    def __init__(
        self,
        engine: str,
        *,
        headers: Mapping[str, str],
        connect_timeout_s: float,
        tasks: TaskGroup,
        is_server: bool = False,
        dialects: Collection[str] = ("openai",),
        is_strict: bool = False,
        has_infill: bool = False,
    ) -> None:
        self.engine = engine
        self.instance: str | None = None
        self._tasks = tasks
        self.configure(
            headers=headers,
            connect_timeout_s=connect_timeout_s,
            is_server=is_server,
            dialects=dialects,
            is_strict=is_strict,
            has_infill=has_infill,
        )
        self._session: ClientSession | None = None
        self._urls: dict[tuple[str, str], URL] = {}

    def configure(
        self,
        *,
        headers: Mapping[str, str],
        connect_timeout_s: float,
        is_server: bool = False,
        dialects: Collection[str] = ("openai",),
        is_strict: bool = False,
        has_infill: bool = False,
    ) -> None:
        """Ask like this from now on, also for those who have waited since before; what is open stays open."""
        self.dialects = dialects
        self.is_strict = is_strict
        self.has_infill = has_infill
        self.headers = dict(headers)
        self.is_server = is_server
        self.is_router: bool | None = None
        self._timeout = ClientTimeout(total=None, sock_connect=connect_timeout_s, sock_read=None)

    def learn_from(self, answer: ClientResponse, *, was_told: bool) -> None:
        """Whether this is another router. One that was told of those before it (`VIA`) answers with its own id."""
        if (said := answer.headers.get(INSTANCE)) is not None:
            self.instance = said
        if said is not None or answer.headers.get(hdrs.SERVER) == SERVER_NAME:
            self.is_router = True
        elif was_told and answer.status < 300:  # an error may come from what stands in front of it
            self.is_router = False

    def without_key(self, said: bytes) -> bytes:
        """What the engine said, without the operator's key: some providers quote it when they refuse it."""
        key = self.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        return said.replace(key, b"*" * len(key)) if len(key) >= SHORTEST_KEY and key in said else said

    def _open_session(self) -> ClientSession:
        return ClientSession(
            connector=_Connector(limit=0, keepalive_timeout=POOL_IDLE_S, ttl_dns_cache=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            raise_for_status=False,
            max_field_size=MAX_HEADER_BYTES,
            max_line_size=MAX_HEADER_BYTES,
        )

    def _url(self, address: str, path: str) -> URL:
        """The URL as it is, nothing decoded or normalised. Parsing costs more than all else here, so it is kept."""
        key = (address, path)
        url = self._urls.get(key)
        if url is None:
            if len(self._urls) >= MAX_URLS:
                self._urls.clear()
            url = self._urls[key] = URL(joined(address, path), encoded=True)
        return url

    async def open(
        self,
        method: str,
        address: str,
        path: str,
        headers: CIMultiDict[str],
        body: bytes | IO[bytes] | AsyncIterable[bytes],
    ) -> ClientResponse:
        """Send a request and return when the answer's headers are here. The caller closes or releases the response.

        `path` is raw, with its query. Cancelling closes the connection, which ends the engine's work.
        Raises ReusedConnectionFailed or UpstreamFailed.
        """
        session = self._session
        if session is None:
            session = self._session = self._open_session()
        _is_fresh.set(False)
        data: bytes | IO[bytes] | AsyncIterable[bytes] = body
        if isinstance(body, bytes) and len(body) >= LARGE_BODY_BYTES:
            data = io.BytesIO(body)
        try:
            answer = await session.request(
                method,
                self._url(address, path),
                data=data,
                headers=headers,
                allow_redirects=False,
                timeout=self._timeout,
                # Nothing is added to what the client sent. SDKs send all three, and then there is nothing to skip.
                skip_auto_headers=None if headers.keys() >= AUTO_HEADERS else AUTO_HEADERS,
            )
            if hdrs.CONTENT_LENGTH not in answer.headers:
                _break_with_connection(answer)
            return answer
        except aiohttp.ClientSSLError as error:
            said = printable(str(error))
            raise Unreachable(self.engine, f"{self.engine} at {address} is not trusted: {said}") from error
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(self.engine, f"{self.engine} refuses connections at {address}: {error}") from error
        except aiohttp.ConnectionTimeoutError as error:
            raise Unreachable(self.engine, f"{self.engine} does not take connections at {address}") from error
        except aiohttp.ClientResponseError as error:
            raise UpstreamFailed(
                self.engine, f"{self.engine} did not answer in HTTP: {printable(error.message)}"
            ) from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            if not _is_fresh.get() and not _has_begun_to_answer(error):
                raise ReusedConnectionFailed from error
            raise UpstreamFailed(
                self.engine, f"{self.engine} closed the connection before it answered ({type(error).__name__})"
            ) from error

    def broken(self, error: Exception) -> UpstreamFailed:
        """The error of an answer that broke off."""
        return UpstreamFailed(self.engine, f"the answer of {self.engine} broke off ({type(error).__name__})")

    def drop(self) -> None:
        """Close every connection now: the engine is about to be stopped. The next request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            self._tasks.spawn(session.close(), f"close connections to {self.engine}")

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _break_with_connection(answer: ClientResponse) -> None:
    """Let the body fail when its connection ends before it does.

    aiohttp 3.14 forgets whoever reads a body when its parser gives up in the middle of it (a malformed chunk): the
    connection is closed, and the reader waits for ever.
    """
    connection, content = answer.connection, answer.content
    if connection is None or connection.protocol is None:
        return  # all of it is here already

    def ended(closed: asyncio.Future[None] | None) -> None:
        if closed is not None and not closed.cancelled():
            closed.exception()  # read, or asyncio complains that nobody did
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the connection ended within the body"))

    closed = connection.protocol.closed
    if closed is None:
        ended(None)
        return

    def whole() -> None:
        closed.remove_done_callback(ended)

    closed.add_done_callback(ended)
    content.on_eof(whole)


def _has_begun_to_answer(error: Exception) -> bool:
    """Whether the connection ended within the head of an answer: then aiohttp's error holds what was read of it."""
    return isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)
