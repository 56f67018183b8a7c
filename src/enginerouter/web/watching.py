"""`GET /events` and `GET /logs`: streams for people, that go on until the watcher or the router leaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from enginerouter.errors import BadRequest, NotFound, QueueFull, printable
from enginerouter.swap.history import MemoryHistory
from enginerouter.web.edge import EdgeCall
from enginerouter.web.hub import Event, EventHub
from enginerouter.web.keys import Identity
from enginerouter.web.logs import Followed
from enginerouter.web.naming import Naming

SNAPSHOT_EVERY_S = 1.0
LOOK_EVERY_S = 0.5
MAX_WATCHERS = 64
MAX_LINES = 10_000
DEFAULT_LINES = 100
SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}
TEXT_HEADERS = {
    "Content-Type": "text/plain; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Accel-Buffering": "no",
}

Snapshot = Callable[[Identity], Awaitable[Mapping[str, Any]]]


class TooManyWatchers(QueueFull):
    """So many read `/events` or `/logs` already."""

    code = "too_many_watchers"


class Watching:
    """`snapshot` gives `/status` as a key may see it; `log_files` where engines print to, and "" for the router.

    `journals`: the command that shows what an engine prints that systemd runs.
    """

    def __init__(
        self,
        hub: EventHub,
        naming: Naming,
        snapshot: Snapshot,
        memory_history: MemoryHistory,
        log_files: Mapping[str, Sequence[Path]],
        journals: Mapping[str, str],
    ) -> None:
        self._hub = hub
        self._naming = naming
        self._snapshot = snapshot
        self._memory_history = memory_history
        self._log_files = log_files
        self._journals = journals
        self._followers = 0

    async def events(self, call: EdgeCall) -> web.StreamResponse:
        """A stream (SSE): `status` once a second; `phase`, `swap` and `request` as they happen.
        Before them, the last 50 swaps and requests, and `memory_history`: the last hour, a reading every 5 s at most.
        """
        if len(self._hub) >= MAX_WATCHERS:
            raise TooManyWatchers(f"{MAX_WATCHERS} clients read /events already; close one", retry_after_s=5)
        response = web.StreamResponse(headers=SSE_HEADERS)
        if call.request.method == "HEAD":
            return await _head(call, response)
        with self._hub.subscribe(lambda event: self._may_see(event, call.identity)) as subscription:
            await response.prepare(call.request)
            status = _frame(Event("status", await self._snapshot(call.identity)))
            await response.write(status + _frame(_history_event(self._memory_history)))
            snapshot_at, is_admin = time.monotonic() + SNAPSHOT_EVERY_S, call.identity.is_admin
            while not self._hub.is_closed:
                now = time.monotonic()
                frames = [_frame(event if is_admin else event.public()) for event in subscription.take()]
                if now >= snapshot_at:
                    snapshot_at = now + SNAPSHOT_EVERY_S
                    frames.append(_frame(Event("status", await self._snapshot(call.identity))))
                if frames:
                    await response.write(b"".join(frames))
                try:
                    await asyncio.wait_for(subscription.wake.wait(), max(0.0, snapshot_at - time.monotonic()))
                except TimeoutError:
                    continue
            await response.write(_frame(Event("end", {})))
        await response.write_eof()
        return response

    def _may_see(self, event: Event, identity: Identity) -> bool:
        if identity.is_admin:
            return True
        if not self._naming.may_know_target(event.served_by, identity):
            return False
        return any(map(identity.may_name, event.names)) or any(self._naming.may_see(s, identity) for s in event.slots)

    async def logs(self, call: EdgeCall) -> web.StreamResponse:
        """The last `?lines=` of the router's log or that of `?engine=`, and with `follow=1` what is added to it."""
        query = dict(parse_qsl(call.raw_query, keep_blank_values=True))
        if unknown := sorted(query.keys() - {"engine", "lines", "follow"}):
            raise BadRequest(f"{printable(unknown[0])!r} is not known here; there are: engine, lines, follow")
        files, lines = self._files_of(query.get("engine", "")), _lines(query.get("lines"))
        follows = query.get("follow", "0").lower() in ("1", "true", "yes", "")
        response = web.StreamResponse(headers=TEXT_HEADERS)
        if call.request.method == "HEAD":
            return await _head(call, response)
        if follows and self._followers >= MAX_WATCHERS:
            raise TooManyWatchers(f"{MAX_WATCHERS} clients follow /logs already; close one", retry_after_s=5)
        self._followers += follows
        try:
            followed = Followed(files)
            text = await asyncio.to_thread(followed.last, lines)
            await response.prepare(call.request)
            await response.write(text)
            while follows and not self._hub.is_closed:
                await asyncio.sleep(LOOK_EVERY_S)
                if more := await asyncio.to_thread(followed.more):
                    await response.write(more)
        finally:
            self._followers -= follows
        await response.write_eof()
        return response

    def _files_of(self, engine: str) -> Sequence[Path]:
        if engine not in self._log_files:
            close = get_close_matches(engine, list(self._log_files), n=1, cutoff=0.6)
            known = ", ".join(sorted(filter(None, self._log_files))) or "none"
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {known}"
            raise NotFound(f"no engine {printable(engine)!r} is configured; {hint}")
        if not self._log_files[engine]:
            if engine in self._journals:
                raise NotFound(f"what engine {engine!r} prints is in the journal: {self._journals[engine]}")
            if engine:
                raise NotFound(f"engine {engine!r} is not started by the router: its lines are where it was started")
            raise NotFound("log_file is null: the router's lines are on standard error, or in its unit's journal")
        return self._log_files[engine]


async def _head(call: EdgeCall, response: web.StreamResponse) -> web.StreamResponse:
    """HEAD asks what there would be, and watches nothing."""
    await response.prepare(call.request)
    await response.write_eof()
    return response


def _lines(said: str | None) -> int:
    if said is None:
        return DEFAULT_LINES
    # "²" is a digit, and no number; nor is one of 5000 digits for `int`.
    if not said.isdecimal() or len(said) > len(str(MAX_LINES)) or int(said) > MAX_LINES:
        raise BadRequest(f"lines has to be a whole number up to {MAX_LINES}")
    return int(said)


def _history_event(history: MemoryHistory) -> Event:
    """`points`: [Unix seconds, bytes available], the oldest first; `at`: when that was now, for clocks that differ."""
    now = time.time()
    points = [[round(now - ago_s, 1), available] for ago_s, available in history.points()]
    return Event("memory_history", {"at": round(now, 3), "points": points})


def _frame(event: Event) -> bytes:
    return f"event: {event.name}\ndata: {json.dumps(event.data)}\n\n".encode()
