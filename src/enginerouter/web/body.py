"""Reading a request body: whole, in bounded time, in bounded memory.

The whole body is read before anything waits for an engine: while a body is unread, aiohttp pauses the connection and
a client that left is never noticed. A body that is here already costs one call and no timer.
Large multipart bodies (audio, images) go to an unlinked temporary file that only this user can read.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from enginerouter.errors import BadRequest, QueueFull, RequestTimeout, RouterError, TooLarge, UnsupportedMedia

if TYPE_CHECKING:
    from aiohttp.streams import StreamReader

    from enginerouter.web.request import EdgeRequest

MIB = 1024 * 1024
# Multipart bodies above this go to a file.
SPOOL_BYTES = MIB
# When to come back, where nobody waits for an engine: bodies are still on their way in.
FULL_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """`progress_s`: longest silence, and the grace before `min_bytes_per_s` must hold on average."""

    max_bytes: int = 256 * MIB
    progress_s: float = 30.0
    min_bytes_per_s: float = 256.0


class BufferBudget:
    """How much memory the bodies of all waiting requests may take together. Plain functions: nothing is awaited.

    `until_room_s`: the seconds until the first of those who wait may be served, which makes room; None: not known.
    """

    __slots__ = ("_until_room_s", "max_bytes", "used_bytes")

    def __init__(self, max_bytes: int, until_room_s: Callable[[], float | None] = lambda: None) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._until_room_s = until_room_s

    def check(self, size: int, taken: int = 0) -> None:
        """Raises TooLarge if a body that has `taken` so much would never have room, QueueFull if it has none now."""
        if taken + size > self.max_bytes:
            mib = self.max_bytes // MIB
            raise TooLarge(f"the request body is larger than max_buffered_mib allows for all together ({mib} MiB)")
        if self.used_bytes + size > self.max_bytes:
            until_s = self._until_room_s()
            raise QueueFull(
                "the router holds as many waiting request bodies as max_buffered_mib allows; try again soon",
                retry_after_s=FULL_RETRY_S if until_s is None else until_s,
            )

    def take(self, size: int, taken: int = 0) -> None:
        self.check(size, taken)
        self.used_bytes += size

    def give(self, size: int) -> None:
        self.used_bytes -= size


class Body:
    """A request body: in `raw`, or, when large and multipart, in `file` (then `raw` is empty). `close()` frees it."""

    __slots__ = ("_budget", "_charged", "_copy", "content_type", "file", "raw", "size")

    def __init__(self, budget: BufferBudget, content_type: str) -> None:
        self.raw = b""
        self.file: IO[bytes] | None = None
        self.size = 0
        self.content_type = content_type
        self._budget = budget
        self._charged = 0
        self._copy: IO[bytes] | None = None

    def keep_copy(self, copy: IO[bytes]) -> None:
        """Own a changed copy of `file`, in place of the one before."""
        if self._copy is not None:
            self._copy.close()
        self._copy = copy

    def charge(self, size: int) -> None:
        self._budget.take(size, self._charged)
        self._charged += size

    def refund(self) -> None:
        self._budget.give(self._charged)
        self._charged = 0

    def close(self) -> None:
        """Give the memory back. May be called more than once."""
        self.refund()
        self.raw = b""
        if self.file is not None:
            self.file.close()
            self.file = None
        if self._copy is not None:
            self._copy.close()
            self._copy = None


async def read_body(request: EdgeRequest, *, limits: BodyLimits, budget: BufferBudget) -> Body:
    """Read the whole body. The caller closes it, in `finally`.

    Raises TooLarge, UnsupportedMedia, QueueFull, RequestTimeout or BadRequest.
    """
    headers = request.headers
    encoding = headers.get(hdrs.CONTENT_ENCODING)
    if encoding is not None and encoding.lower() not in ("", "identity"):
        # A packed body could be a bomb, and its packed form is what Content-Length describes (F3, F19).
        raise UnsupportedMedia("compressed request bodies are not accepted; send it without Content-Encoding")
    declared = headers.get(hdrs.CONTENT_LENGTH)
    length = int(declared) if declared is not None else None
    if length is not None and length > limits.max_bytes:
        raise _too_large(limits)
    body = Body(budget, headers.get(hdrs.CONTENT_TYPE, ""))
    content = request.content
    try:
        if content.is_eof():
            _take_arrived(content, body, limits)
        else:
            if length is not None and not _is_spooled(body, length):
                budget.check(length)
            if expects_continue(request):
                _send_continue(request)
            await _Slowly(content, body, limits, length).read()
    except BaseException:
        body.close()
        raise
    return body


class StreamedBody:
    """A body that goes on while it arrives, of any size: the parts of a model are larger than any memory.

    It can be sent once. `failure` is set where the client is to blame that it did not come.
    """

    def __init__(self, request: EdgeRequest, limits: BodyLimits) -> None:
        self._request = request
        self._limits = limits
        self.failure: RouterError | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        request, progress_s = self._request, self._limits.progress_s
        if not request.content.is_eof() and expects_continue(request):
            _send_continue(request)
        try:
            while True:
                async with asyncio.timeout(progress_s):
                    chunk = await request.content.readany()
                if not chunk:
                    return
                yield chunk
        except TimeoutError as error:
            self.failure = RequestTimeout(f"the request body paused for {progress_s:g} s")
            raise self.failure from error
        except (web.RequestPayloadError, HttpProcessingError) as error:
            self.failure = BadRequest(f"the request body is not valid HTTP ({error})")
            raise self.failure from error


def expects_continue(request: EdgeRequest) -> bool:
    """RFC 9110 §10.1.1: an HTTP/1.0 client's Expect is ignored."""
    expect = request.headers.get(hdrs.EXPECT)
    return expect is not None and expect.lower() == "100-continue" and request.is_http11


def _send_continue(request: EdgeRequest) -> None:
    """Invite the body. Written past the answer's writer, which counts what belongs to the final answer."""
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client left")
    transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _too_large(limits: BodyLimits) -> TooLarge:
    return TooLarge(f"the request body is larger than max_body_mib allows ({limits.max_bytes // MIB} MiB)")


def _is_multipart(body: Body) -> bool:
    return body.content_type[:10].lower() == "multipart/"


def _is_spooled(body: Body, size: int) -> bool:
    return size > SPOOL_BYTES and _is_multipart(body)


def _take_arrived(content: StreamReader, body: Body, limits: BodyLimits) -> None:
    """The fast path: all of it is here."""
    try:
        raw = content.read_nowait()
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise BadRequest(f"the request body is not valid HTTP ({error})") from error
    size = len(raw)
    if size > limits.max_bytes:
        raise _too_large(limits)
    body.charge(size)
    body.raw = raw
    body.size = size


class _Slowly:
    """A body that is still arriving: chunk by chunk, under the clock."""

    def __init__(self, content: StreamReader, body: Body, limits: BodyLimits, length: int | None) -> None:
        self._content = content
        self._body = body
        self._limits = limits
        self._may_spool = _is_multipart(body) and (length is None or length > SPOOL_BYTES)
        self._chunks: list[bytes] = []
        self._pending = 0

    async def read(self) -> None:
        body, limits = self._body, self._limits
        loop = asyncio.get_running_loop()
        grace_ends = loop.time() + limits.progress_s
        try:
            async with asyncio.timeout(None) as clock:
                while True:
                    # Silence, or a drip: either ends it. Both of HAProxy's and nginx's timers let a drip through.
                    by_rate = grace_ends + body.size / limits.min_bytes_per_s
                    clock.reschedule(min(loop.time() + limits.progress_s, by_rate))
                    chunk = await self._content.readany()
                    if not chunk:
                        break
                    body.size += len(chunk)
                    if body.size > limits.max_bytes:
                        raise _too_large(limits)
                    clock.reschedule(None)  # our own disk is not the client's fault
                    await self._keep(chunk)
        except TimeoutError:
            raise RequestTimeout(
                f"the request body came too slowly ({body.size} bytes so far); it must not pause for "
                f"{limits.progress_s:g} s and must keep up {limits.min_bytes_per_s:g} bytes/s"
            ) from None
        except (web.RequestPayloadError, HttpProcessingError) as error:
            raise BadRequest(f"the request body is not valid HTTP ({error})") from error
        await self._finish()

    async def _keep(self, chunk: bytes) -> None:
        self._body.charge(len(chunk))
        self._chunks.append(chunk)
        self._pending += len(chunk)
        if self._may_spool and self._pending > SPOOL_BYTES:
            await self._write_out()

    async def _write_out(self) -> None:
        if self._body.file is None:
            # Mode 0600, and without a name from the start (O_TMPFILE) or at once after.
            self._body.file = await asyncio.to_thread(tempfile.TemporaryFile)
        await asyncio.to_thread(self._body.file.writelines, self._chunks)
        self._chunks = []
        self._pending = 0
        self._body.refund()

    async def _finish(self) -> None:
        if self._body.file is None:
            self._body.raw = b"".join(self._chunks)
            return
        await self._write_out()
        await asyncio.to_thread(self._body.file.seek, 0)
