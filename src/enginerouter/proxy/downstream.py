"""The client's side of an answer: the status is held back while it may still change, and waiting clients get bytes.

Before the *commit* nothing was sent and an error is an HTTP error; after it, errors are in-band. While a streaming
client waits – queued, swapping, loading, prefill – one timer (the beat) commits when the status was held long enough
and then sends a frame every interval, only ever between complete events. What a frame is, and what ends an event, the
dialect says.

Events reach the client whole: the beginning of one is held until its end is here. So a keep-alive never gets inside
an event, and when an engine dies in the middle of one, the error that follows can still be read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from aiohttp import web
from multidict import CIMultiDict

from enginerouter.dialects.base import Dialect
from enginerouter.tasks import TaskGroup

# Of an event larger than this, what is here is passed on.
HELD_BYTES = 64 * 1024
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
JSON_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-cache"}


class Mode(StrEnum):
    """What a waiting client gets: its dialect's keep-alives, progress events, white space before JSON, or nothing."""

    COMMENT = "comment"
    EVENT = "event"
    JSON = "json"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """The configured times, in seconds. `json_after_s` None: no white space unless the client asks for it."""

    enabled: bool = True
    interval_s: float = 5.0
    commit_after_s: float = 3.0
    first_byte_commit_s: float = 10.0
    prefill: bool = True
    json_after_s: float | None = None
    stream_mode: Mode = Mode.COMMENT

    def mode(self, *, is_stream: bool, may_pad: bool, asked: str | None) -> Mode:
        """What this client gets: its own wish (`X-EngineRouter-Keepalive`) where it fits the answer, else ours.

        `may_pad`: the answer is JSON, so that white space may come before it.
        """
        if not self.enabled or asked == Mode.OFF:
            return Mode.OFF
        if not is_stream:
            wanted = may_pad and (asked == Mode.JSON or self.json_after_s is not None)
            return Mode.JSON if wanted else Mode.OFF
        if asked in (Mode.COMMENT, Mode.EVENT):
            return Mode(asked)
        return self.stream_mode

    def held_s(self, mode: Mode) -> float:
        """How long the status is held while queueing and swapping."""
        if mode is Mode.JSON:
            return self.json_after_s if self.json_after_s is not None else self.commit_after_s
        return self.commit_after_s


class Downstream:
    """One client waiting for, then reading, one answer. `progress` gives the text of a keep-alive."""

    __slots__ = (
        "_beat",
        "_commit_at",
        "_dialect",
        "_ends",
        "_held",
        "_is_in_event",
        "_is_writing",
        "_loop",
        "_mode",
        "_progress",
        "_request",
        "_response",
        "_rules",
        "_sending",
        "_sent",
        "_tail",
        "_tasks",
        "has_engine_bytes",
        "is_event_stream",
        "keepalives",
        "last_write_at",
        "stream_kind",
    )

    def __init__(
        self,
        request: web.BaseRequest,
        rules: KeepAlive,
        mode: Mode,
        progress: Callable[[], str],
        tasks: TaskGroup,
        dialect: Dialect,
    ) -> None:
        self._request = request
        self._dialect = dialect
        self._ends = dialect.event_ends
        # The media type of a stream in this dialect.
        self.stream_kind = dialect.stream_type.partition(";")[0]
        self._rules = rules
        self._mode = mode
        self._progress = progress
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._response: web.StreamResponse | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[None] | None = None
        self._commit_at = 0.0
        self._is_writing = False
        self._held = b""
        # Inside an event too large to be held; `_tail` is what was sent of it last.
        self._is_in_event = False
        self._tail = b""
        # The engine's bytes that were sent last.
        self._sent = b""
        self.has_engine_bytes = False
        # Whether what was committed is an event stream: then errors can be said in-band.
        self.is_event_stream = False
        self.keepalives = 0
        self.last_write_at = 0.0

    @property
    def is_committed(self) -> bool:
        return self._response is not None

    @property
    def is_beating(self) -> bool:
        """Whether keep-alives are due, or one is on its way."""
        return self._beat is not None or self._sending is not None

    # --- waiting

    def wait_for_lease(self) -> None:
        """The client begins to wait in the queue: its status is held for `commit_after_s` from now."""
        self._hold(self._rules.held_s(self._mode))

    def wait_for_engine(self) -> None:
        """The lease is granted; a status not sent by now is held for `first_byte_commit_s`."""
        if self._mode is Mode.OFF:
            return
        if not self._rules.prefill:
            self.stop_beat()
        elif self._response is None and self._mode is not Mode.JSON:
            self._hold(self._rules.first_byte_commit_s)
        elif self._beat is None:
            self._hold(self._rules.held_s(self._mode))

    def _hold(self, seconds: float) -> None:
        if self._mode is Mode.OFF:
            return
        self._commit_at = self._loop.time() + seconds
        self._set_beat(self._commit_at)

    def _set_beat(self, at: float) -> None:
        self.stop_beat()
        self._beat = self._loop.call_at(at, self._on_beat)

    def stop_beat(self) -> None:
        """No more keep-alives."""
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None

    def _on_beat(self) -> None:
        now = self._loop.time()
        due = self.last_write_at + self._rules.interval_s if self._response is not None else self._commit_at
        if now + 0.001 < due:
            self._set_beat(due)
            return
        if not self._is_writing and (self._sending is None or self._sending.done()):
            self._sending = self._tasks.spawn(self._send_keepalive(), "keep-alive")
        self._set_beat(now + self._rules.interval_s)

    async def _send_keepalive(self) -> None:
        """Commit if that has not happened, then one frame – unless the answer began meanwhile."""
        try:
            if self._response is None:
                await self._commit(200, self._early_headers(), None)
            # No await between looking at the border and writing: nothing gets in between.
            if self._response is not None and not self._is_writing and self._has_room():
                self.keepalives += 1
                self.last_write_at = self._loop.time()
                await self._response.write(self._frame())
        except ConnectionError:
            self.stop_beat()  # the client left; its handler is being cancelled

    def _early_headers(self) -> CIMultiDict[str]:
        if self._mode is Mode.JSON:
            return CIMultiDict(JSON_HEADERS)
        return CIMultiDict({"Content-Type": self._dialect.stream_type, **STREAM_HEADERS})

    def _has_room(self) -> bool:
        if self._mode is Mode.JSON:
            return not self.has_engine_bytes
        return not self._is_in_event and not self._dialect.ends_with(self._sent)

    def _frame(self) -> bytes:
        if self._mode is Mode.JSON:
            return b" "
        text = self._progress()
        if self._mode is Mode.EVENT and not self.has_engine_bytes and (frame := self._dialect.progress(text)):
            return frame
        return self._dialect.keepalive(text, has_engine_bytes=self.has_engine_bytes)

    # --- the answer

    async def _commit(self, status: int, headers: CIMultiDict[str], length: int | None) -> web.StreamResponse:
        response = self._response = web.StreamResponse(status=status, headers=headers)
        # A compressed stream cannot be read on its way, and a word of ours in it would break it.
        is_packed = headers.get("Content-Encoding", "identity") != "identity"
        self.is_event_stream = headers.get("Content-Type", "").startswith(self.stream_kind) and not is_packed
        if length is not None:
            response.content_length = length
        self.last_write_at = self._loop.time()
        await response.prepare(self._request)
        return response

    async def begin(self, status: int, headers: CIMultiDict[str], length: int | None) -> None:
        """Send the status and headers of the engine; only while not committed. Keep-alives go on while it is silent."""
        await self._commit(status, headers, length)
        self.resume()

    def resume(self) -> None:
        """Keep-alives go on while the engine's event stream is silent."""
        if self.is_event_stream and self._mode is not Mode.OFF and self._rules.prefill:
            self._set_beat(self._loop.time() + self._rules.interval_s)

    async def pause(self) -> None:
        """No keep-alive from now on; one that is being sent reaches its end first."""
        self.stop_beat()
        if self._sending is not None and not self._sending.done():
            await asyncio.wait({self._sending})

    async def comment(self, text: str) -> None:
        """A comment of ours before the first event of a stream that was committed early, where there are comments."""
        if self._response is not None and self._mode is not Mode.JSON and (frame := self._dialect.comment(text)):
            await self._response.write(frame)

    async def write(self, chunk: bytes, now: float) -> None:
        """Pass on bytes of the engine. Waits while the client does not read; that is the back-pressure."""
        response = self._response
        assert response is not None
        if self.is_event_stream and (self._held or self._is_in_event or not chunk.endswith(self._ends)):
            chunk = self._whole_events(chunk)
            if not chunk:
                return
        self.has_engine_bytes = True
        self._sent = chunk
        self.last_write_at = now
        self._is_writing = True
        try:
            await response.write(chunk)
        finally:
            self._is_writing = False

    def _whole_events(self, chunk: bytes) -> bytes:
        """What can be sent now; the rest is held until its event is whole."""
        if self._is_in_event:
            self._tail = (self._tail + chunk)[-4:]
            self._is_in_event = not self._tail.endswith(self._ends)
            return chunk
        chunk = self._held + chunk
        end = last_border(chunk, self._ends)
        if len(chunk) - end > HELD_BYTES:
            self._held, self._tail, self._is_in_event = b"", chunk[-4:], True
            return chunk
        self._held = chunk[end:]
        return chunk[:end]

    async def write_last(self, frame: bytes) -> None:
        """A frame of our own at the end of a stream. The beginning of an event that was cut is not sent."""
        await self.pause()
        self._held = b""
        if self._is_in_event:
            frame, self._is_in_event = self._ends[0] + frame, False
        await self.write(frame, self._loop.time())

    def cut(self) -> web.StreamResponse:
        """Break the connection after what was written: the end of an answer that must not look whole."""
        response = self._response
        assert response is not None
        # Closes once all is out; the last chunk, which aiohttp would add, has nowhere to go then.
        self._request.protocol.force_close()
        return response

    async def finish(self) -> web.StreamResponse:
        """The tidy end; a last event without its blank line counts as whole."""
        await self.pause()
        response = self._response
        assert response is not None
        if self._held:
            await response.write(self._held)
        await response.write_eof()
        return response


def last_border(chunk: bytes, event_ends: Iterable[bytes]) -> int:
    """Where the last whole event in a chunk ends, and whole comment lines after it; 0 if none does."""
    end = max((chunk.rfind(mark) + len(mark) for mark in event_ends if mark in chunk), default=0)
    while chunk.startswith(b":", end) and (line_end := chunk.find(b"\n", end)) != -1:
        end = line_end + 1
    return end
