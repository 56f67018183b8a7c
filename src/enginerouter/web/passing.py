"""Requests that are passed on as they are: to a path of an engine, and its answer back, byte for byte.

For what is neither translated nor walked: the management of Ollama, the extras of llama.cpp, an engine's own paths.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import IO

import aiohttp
from aiohttp import ClientResponse, hdrs, web

from enginerouter.errors import UpstreamFailed
from enginerouter.proxy.headers import request_headers, response_headers
from enginerouter.proxy.payload import for_one_try
from enginerouter.proxy.upstream import ReusedConnectionFailed, Upstream
from enginerouter.swap.model import Lease
from enginerouter.web.body import StreamedBody
from enginerouter.web.edge import EdgeCall
from enginerouter.web.exchange import CRASH_NOTICE_S, RESOLVED

RawBody = bytes | IO[bytes] | StreamedBody


async def pass_on(
    call: EdgeCall,
    upstream: Upstream,
    address: str,
    path: str,
    body: RawBody,
    *,
    lease: Lease | None = None,
    served_by: str = "",
    noticed: Callable[[bool], None] | None = None,
) -> web.StreamResponse:
    """Send the call to a raw path of an engine and give its answer to the client. Raises UpstreamFailed before that.

    With a lease, which the caller holds, the bytes of the answer are noted on it. `served_by` is told to the client.
    `noticed` is called before any piece of the answer goes out, and with True before its end: what a client does upon
    it comes after.
    """
    answer = await _opened(call, upstream, address, path, body, has_process=lease is not None)
    call.release_body()
    try:
        return await _relayed(call, upstream, answer, lease, served_by, noticed)
    finally:
        answer.close()


async def _opened(
    call: EdgeCall, upstream: Upstream, address: str, path: str, body: RawBody, *, has_process: bool
) -> ClientResponse:
    headers = request_headers(call.request.headers, upstream.headers)
    target = f"{path}?{call.raw_query}" if call.raw_query else path
    method = call.request.method
    try:
        if isinstance(body, StreamedBody):
            return await upstream.open(method, address, target, headers, body)
        try:
            return await upstream.open(method, address, target, headers, for_one_try(body))
        except ReusedConnectionFailed:
            await asyncio.sleep(0)  # a crash cuts the lease meanwhile
            return await upstream.open(method, address, target, headers, for_one_try(body))
    except (ReusedConnectionFailed, UpstreamFailed) as error:
        if isinstance(body, StreamedBody) and body.failure is not None:
            raise body.failure from error
        if has_process:
            await asyncio.sleep(CRASH_NOTICE_S)
        if isinstance(error, UpstreamFailed):
            raise
        raise upstream.broken(error) from error


async def _relayed(
    call: EdgeCall,
    upstream: Upstream,
    answer: ClientResponse,
    lease: Lease | None,
    served_by: str,
    noticed: Callable[[bool], None] | None,
) -> web.StreamResponse:
    headers = response_headers(answer.headers)
    if served_by:
        headers[RESOLVED] = served_by
    response = web.StreamResponse(status=answer.status, headers=headers)
    length = answer.headers.get(hdrs.CONTENT_LENGTH)
    if length is not None and length.isdigit():
        response.content_length = int(length)
    if noticed is not None:
        noticed(False)
    await response.prepare(call.request)
    while chunk := await _read(upstream, answer):
        if noticed is not None:
            noticed(False)
        if lease is not None:
            lease.last_byte_at, lease.waits_for_client = time.monotonic(), True
        await response.write(chunk)
        if lease is not None:
            lease.waits_for_client = False
    if noticed is not None:
        noticed(True)
    if lease is not None:
        lease.has_answered = True
    await response.write_eof()
    return response


async def _read(upstream: Upstream, answer: ClientResponse) -> bytes:
    try:
        return await answer.content.readany()
    except (aiohttp.ClientError, ConnectionError) as error:
        await asyncio.sleep(CRASH_NOTICE_S)
        raise upstream.broken(error) from error
