"""The engine's side of a request: one pool of connections per engine, and aiohttp's errors as ours.

Wired against aiohttp's defaults (docs/design.md, "aiohttp"): no total time-out, no connection limit, no redirects, no
cookies, no proxies from the environment, nothing added to headers, nothing unpacked.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import SimpleNamespace
from typing import IO

import aiohttp
from aiohttp import ClientResponse, ClientSession, ClientTimeout, TCPConnector, TraceConfig
from multidict import CIMultiDict
from yarl import URL

from enginerouter.errors import UpstreamFailed, printable
from enginerouter.tasks import TaskGroup

# Below the keep-alive of every engine (llama.cpp and uvicorn close after 5 s): a connection that the engine is about
# to close is not used again.
POOL_IDLE_S = 2.0
# What an engine may send as one header line; some put long diagnostics there.
MAX_HEADER_BYTES = 65536
# aiohttp warns about larger bytes bodies: written in one piece they would hold up the loop.
LARGE_BODY_BYTES = 1 << 20
MAX_URLS = 256


class ReusedConnectionFailed(Exception):
    """A pooled connection broke before any byte of an answer: the engine had closed it. One more try is allowed."""


class Upstream:
    """The connections to one engine. `headers` (its key and configured ones) go out with every request."""

    def __init__(self, engine: str, *, headers: Mapping[str, str], connect_timeout_s: float, tasks: TaskGroup) -> None:
        self.engine = engine
        self.headers = dict(headers)
        self._timeout = ClientTimeout(total=None, sock_connect=connect_timeout_s, sock_read=None)
        self._tasks = tasks
        self._session: ClientSession | None = None
        self._urls: dict[tuple[str, str], URL] = {}

    def _open_session(self) -> ClientSession:
        trace = TraceConfig()
        trace.on_connection_reuseconn.append(_note_reuse)
        return ClientSession(
            connector=TCPConnector(limit=0, keepalive_timeout=POOL_IDLE_S, ttl_dns_cache=60),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            raise_for_status=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            max_field_size=MAX_HEADER_BYTES,
            max_line_size=MAX_HEADER_BYTES,
            trace_configs=[trace],
        )

    def _url(self, address: str, path: str) -> URL:
        """The URL as it is, nothing decoded or normalised. Parsing costs more than all else here, so it is kept."""
        key = (address, path)
        url = self._urls.get(key)
        if url is None:
            if len(self._urls) >= MAX_URLS:
                self._urls.clear()
            url = self._urls[key] = URL(address + path, encoded=True)
        return url

    async def open(
        self, method: str, address: str, path: str, headers: CIMultiDict[str], body: bytes | IO[bytes]
    ) -> ClientResponse:
        """Send a request and return when the answer's headers are here. The caller closes or releases the response.

        `path` is raw, with its query. Cancelling closes the connection, which ends the engine's work.
        Raises ReusedConnectionFailed or UpstreamFailed.
        """
        session = self._session
        if session is None:
            session = self._session = self._open_session()
        noted = SimpleNamespace(is_reused=False)
        data: bytes | IO[bytes] = body
        if isinstance(body, bytes) and len(body) >= LARGE_BODY_BYTES:
            data = io.BytesIO(body)
        try:
            return await session.request(
                method,
                self._url(address, path),
                data=data,
                headers=headers,
                allow_redirects=False,
                trace_request_ctx=noted,
            )
        except aiohttp.ClientConnectorError as error:
            raise UpstreamFailed(self.engine, f"{self.engine} refuses connections at {address}: {error}") from error
        except aiohttp.ClientResponseError as error:
            raise UpstreamFailed(
                self.engine, f"{self.engine} did not answer in HTTP: {printable(error.message)}"
            ) from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            if noted.is_reused:
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


async def _note_reuse(
    session: ClientSession, context: SimpleNamespace, params: aiohttp.TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx.is_reused = True
