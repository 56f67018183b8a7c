"""One request between its client and one engine: the lease, the engine's answer, and its way to the client."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

import aiohttp
from aiohttp import ClientResponse, hdrs, web
from multidict import CIMultiDict, istr

from enginerouter.cache.answers import Question
from enginerouter.cache.store import Kept
from enginerouter.dialects.openai import engine_error_fields, error_fields, error_frame
from enginerouter.dialects.params import NO_RULES
from enginerouter.errors import FirstByteTimeout, RouterError, UpstreamFailed, printable
from enginerouter.proxy.downstream import Downstream, KeepAlive
from enginerouter.proxy.headers import request_headers, response_headers
from enginerouter.proxy.payload import for_one_try
from enginerouter.proxy.upstream import ReusedConnectionFailed, Upstream
from enginerouter.routing.directory import Target
from enginerouter.slots import SlotId
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.model import Lease
from enginerouter.swap.phases import Phase
from enginerouter.tasks import TaskGroup
from enginerouter.web.answers import CACHE, KeptAnswers
from enginerouter.web.ask import Ask
from enginerouter.web.edge import EdgeCall
from enginerouter.web.params import ModelParams
from enginerouter.web.responses import ResponseOwners
from enginerouter.web.telemetry import Record, Telemetry

log = logging.getLogger(__name__)

KEEPALIVE = istr("X-EngineRouter-Keepalive")
RESOLVED = istr("X-EngineRouter-Resolved")
ATTEMPTS = istr("X-EngineRouter-Attempts")
QUEUE_MS = istr("X-EngineRouter-Queue-Ms")
SWAP_MS = istr("X-EngineRouter-Swap-Ms")

EVENT_STREAM = "text/event-stream"
# Answers up to this size that say their length are passed on in one piece: one write instead of two.
WHOLE_BYTES = 1 << 20
# How long a broken connection is looked at for a dying process behind it, so that the error can say so.
CRASH_NOTICE_S = 0.25
# An answer without length or chunks ends when the connection does: so does a crash.
UNFRAMED_NOTICE_S = 0.1
ERROR_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all exchanges share. `addresses` gives the URL that a ready slot answers at."""

    coordinator: Coordinator
    upstreams: Mapping[str, Upstream]
    addresses: Mapping[SlotId, str]
    keepalive: KeepAlive
    telemetry: Telemetry
    owners: ResponseOwners
    params: ModelParams
    answers: KeptAnswers
    tasks: TaskGroup


class Exchange:
    """One request between its client and one engine."""

    def __init__(self, around: Surroundings, call: EdgeCall, ask: Ask, target: Target, record: Record) -> None:
        self._coordinator = around.coordinator
        self._upstream = around.upstreams[target.engine]
        self._addresses = around.addresses
        self._telemetry = around.telemetry
        self._owners = around.owners
        self._rules = around.params.of(target)
        self._answers = around.answers
        # Set where the answer may be kept.
        self._question: Question | None = None
        self._call = call
        self._ask = ask
        self._target = target
        self._record = record
        self._clock: asyncio.Timeout | None = None
        keepalive = around.keepalive
        mode = keepalive.mode(
            is_stream=ask.wants_stream, may_pad=ask.answers_json, asked=call.request.headers.get(KEEPALIVE)
        )
        self._client = Downstream(call.request, keepalive, mode, self._progress, around.tasks)

    def _progress(self) -> str:
        slot = self._target.slot
        if self._coordinator.slots[slot].phase is Phase.READY:
            return f"waiting for {self._target.label} {time.monotonic() - self._record.began_at:.0f}s"
        return self._coordinator.progress(slot)

    async def run(self, lease: Lease | None = None) -> web.StreamResponse:
        """Answer the client; with a lease, at once, else when there is one."""
        try:
            if lease is None:
                if self._answers.may_ask(self._call.raw_path) and (kept := await self._kept_answer()) is not None:
                    return await self._give(kept)
                lease = self._coordinator.try_lease(self._target.slot) or await self._queue()
            return await self._relay_with(lease)
        except RouterError as error:
            await self._client.pause()
            if not self._client.is_committed:
                raise
            return await self._fail_in_band(error)
        finally:
            self._client.stop_beat()
            self._record.keepalives = self._client.keepalives

    # --- kept answers

    async def _kept_answer(self) -> Kept | None:
        """The answer to this very request, if there is one: then nothing is leased, queued, woken or called."""
        question = self._question = await self._answers.question(self._call, self._ask, self._target)
        if question is None:
            return None
        kept = await question.kept()
        self._record.cache = "miss" if kept is None else "hit"
        return kept

    async def _give(self, kept: Kept) -> web.StreamResponse:
        record = self._record
        record.status, record.cached_bytes, record.first_byte_at = 200, len(kept.body), time.monotonic()
        self._ask.release()
        self._call.release_body()
        await self._client.pause()
        if self._client.is_committed:
            await self._client.write(kept.body, record.first_byte_at)
            return await self._client.finish()
        headers = CIMultiDict({hdrs.CONTENT_TYPE: kept.content_type})
        self._add_ours(headers, attempts=0)
        return web.Response(headers=headers, body=kept.body)

    def _note_whole(self, answer: ClientResponse, body: bytes) -> None:
        if self._question is not None and _may_be_kept(answer):
            self._question.answered(answer.headers.get(hdrs.CONTENT_TYPE, ""), body)

    # --- the lease

    async def _queue(self) -> Lease:
        """Wait for a lease. Whatever ends the wait, the place in the queue is given back."""
        self._client.wait_for_lease()
        began_at = time.monotonic()
        ticket = self._coordinator.enqueue(self._target.slot, priority=self._call.identity.priority)
        try:
            lease = await ticket.granted
        except BaseException:
            self._coordinator.leave(ticket)
            raise
        finally:
            waited = self._record.queue_s = time.monotonic() - began_at
        swap = self._telemetry.last_swap.get(self._target.slot)
        if swap is not None and lease.slot.ready_at >= began_at:
            self._record.swap_s = min(waited, swap.total_s)
        return lease

    async def _relay_with(self, lease: Lease) -> web.StreamResponse:
        limit_s = self._target.first_byte_timeout_s
        with lease:
            if limit_s is None:
                return await self._ask_engine(lease)
            try:
                async with asyncio.timeout(limit_s) as self._clock:
                    return await self._ask_engine(lease)
            except TimeoutError:
                raise FirstByteTimeout(
                    self._target.engine,
                    f"{self._target.label} sent no byte of an answer within {limit_s:g} s (first_byte_timeout_s)",
                ) from None

    async def _ask_engine(self, lease: Lease) -> web.StreamResponse:
        self._client.wait_for_engine()
        answer = await self._open()
        try:
            self._record.status = answer.status
            self._ask.release()
            self._call.release_body()
            if self._client.is_beating:
                await self._client.pause()
            if self._client.is_committed:
                response = await self._relay_after_commit(answer, lease)
            else:
                response = await self._relay(answer, lease)
            lease.has_answered = True
            return response
        except BaseException:
            answer.close()
            raise

    def _first_byte(self) -> None:
        self._record.first_byte_at = time.monotonic()
        if self._clock is not None:
            self._clock.reschedule(None)

    async def _open(self) -> ClientResponse:
        call, ask, upstream = self._call, self._ask, self._upstream
        headers = request_headers(call.request.headers, upstream.headers)
        path = f"{call.raw_path}?{call.raw_query}" if call.raw_query else call.raw_path
        # Looked up now: an engine may answer elsewhere after every start.
        address = self._addresses[self._target.slot]
        has_own = ask.model != self._target.upstream_model or self._rules is not NO_RULES
        body = await self._body_for_target() if has_own else ask.body
        try:
            try:
                return await upstream.open(call.request.method, address, path, headers, for_one_try(body))
            except ReusedConnectionFailed:
                # Once, on a new connection, and only while the engine lives: a crash cuts the lease meanwhile.
                await asyncio.sleep(0)
                return await upstream.open(call.request.method, address, path, headers, for_one_try(body))
        except ReusedConnectionFailed as error:
            raise await self._broken(error) from error
        except UpstreamFailed:
            await asyncio.sleep(CRASH_NOTICE_S)
            raise

    async def _body_for_target(self) -> bytes | IO[bytes]:
        """The body for this target, made from what the client sent, which stays as it is for the next target."""
        return await self._ask.body_for(self._target.upstream_model, self._rules)

    async def _broken(self, error: Exception) -> UpstreamFailed:
        """What to raise for an answer that broke off. If its engine is dying, the lease is cut in this wait."""
        await asyncio.sleep(CRASH_NOTICE_S)
        return self._upstream.broken(error)

    # --- the answer

    def _headers(self, answer: ClientResponse) -> CIMultiDict[str]:
        headers = response_headers(answer.headers)
        self._add_ours(headers, attempts=1)
        return headers

    def _add_ours(self, headers: CIMultiDict[str], *, attempts: int) -> None:
        """Who served it, and how long it took. A kept answer needed no attempt."""
        record = self._record
        headers[RESOLVED] = self._target.label
        headers[ATTEMPTS] = str(attempts)
        headers[QUEUE_MS] = str(round(record.queue_s * 1000))
        headers[SWAP_MS] = str(round(record.swap_s * 1000))
        if record.cache:
            headers[CACHE] = record.cache

    async def _relay(self, answer: ClientResponse, lease: Lease) -> web.StreamResponse:
        """Nothing was sent yet: status, headers and body of the engine as they are."""
        headers = self._headers(answer)
        said = answer.headers.get(hdrs.CONTENT_LENGTH)
        length = int(said) if said is not None and said.isdigit() else None
        if length is not None and headers.get(hdrs.CONTENT_TYPE, "").startswith(EVENT_STREAM):
            # Every event is passed on when it comes, and the last one may be ours.
            length = None
        if length is not None and length <= WHOLE_BYTES and self._clock is None:
            body = await self._read(answer)
            self._first_byte()
            if answer.status >= 400:
                self._log_refusal(answer, body)
            elif self._ask.is_responses:
                self._owners.note(body, self._target, self._call.identity.name)
            self._note_whole(answer, body)
            return web.Response(status=answer.status, headers=headers, body=body)
        await self._client.begin(answer.status, headers, length)
        await self._pump(answer, lease)
        return await self._client.finish()

    def _log_refusal(self, answer: ClientResponse, body: bytes) -> None:
        if log.isEnabledFor(logging.INFO):
            said = printable(body[:500].decode("utf-8", "replace"), 500)
            log.info("%s answered %d at %s: %s", self._target.engine, answer.status, answer.url, said)

    async def _relay_after_commit(self, answer: ClientResponse, lease: Lease) -> web.StreamResponse:
        """The status is out as 200: what the engine answers goes on in the form that was begun."""
        client = self._client
        kind = answer.content_type
        if not client.is_event_stream:
            return await self._relay_into_json(answer, lease)
        if answer.status >= 400:
            body = await self._read(answer, at_most=ERROR_BYTES)
            self._log_refusal(answer, body)
            return await self._end_stream(engine_error_fields(answer.status, body))
        if kind != EVENT_STREAM or _is_packed(answer):
            raise UpstreamFailed(
                self._target.engine,
                f"{self._target.engine} answered with {'packed ' * _is_packed(answer)}{kind} "
                "where a stream was asked for",
            )
        await client.comment(f"served by {self._target.label}")
        client.resume()
        await self._pump(answer, lease)
        return await client.finish()

    async def _relay_into_json(self, answer: ClientResponse, lease: Lease) -> web.StreamResponse:
        if answer.status >= 400 or answer.content_type != "application/json" or _is_packed(answer):
            raise UpstreamFailed(
                self._target.engine, f"{self._target.engine} answered {answer.status} after white space was sent"
            )
        await self._pump(answer, lease)
        return await self._client.finish()

    async def _pump(self, answer: ClientResponse, lease: Lease) -> None:
        """Pass every piece on as it comes. Errors of reading are the engine's, errors of writing the client's."""
        client, monotonic = self._client, time.monotonic
        read, write = answer.content.readany, client.write
        try:
            chunk = await read()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise await self._broken(error) from error
        self._first_byte()
        seen, is_looking = b"", self._ask.is_responses
        copy = _Copy(self._question, answer) if self._question is not None else None
        while chunk:
            if copy is not None:
                copy.add(chunk)
            if is_looking:
                seen += chunk
                is_looking = not self._owners.note(seen, self._target, self._call.identity.name)
            now = lease.last_byte_at = monotonic()
            lease.waits_for_client = True
            await write(chunk, now)
            lease.waits_for_client = False
            try:
                chunk = await read()
            except (aiohttp.ClientError, ConnectionError) as error:
                raise await self._broken(error) from error
        if not _is_framed(answer):
            await asyncio.sleep(UNFRAMED_NOTICE_S)
        elif copy is not None and copy.is_whole:
            self._note_whole(answer, b"".join(copy.chunks))

    async def _read(self, answer: ClientResponse, *, at_most: int | None = None) -> bytes:
        """The whole body, or its beginning; what is beyond `at_most` is not waited for."""
        try:
            if at_most is None:
                return await answer.read()
            body = b""
            while len(body) < at_most and (chunk := await answer.content.read(at_most - len(body))):
                body += chunk
            return body
        except (aiohttp.ClientError, ConnectionError) as error:
            raise await self._broken(error) from error

    # --- the end that nobody wanted

    async def _fail_in_band(self, error: RouterError) -> web.StreamResponse:
        """The status is out. An event stream says what happened; anything else is cut, never ended tidily."""
        self._record.status, self._record.error = error.status, error
        if not self._client.is_event_stream:
            raise error
        identity = self._call.identity
        fields = error_fields(error, is_admin=identity.is_admin, request_id=self._call.request_id)
        return await self._end_stream(fields)

    async def _end_stream(self, fields: dict[str, object]) -> web.StreamResponse:
        await self._client.write_last(error_frame(fields, is_responses=self._ask.is_responses))
        return await self._client.finish()


class _Copy:
    """What is passed on, once more, as long as it may be kept."""

    __slots__ = ("_left", "chunks", "is_whole")

    def __init__(self, question: Question, answer: ClientResponse) -> None:
        self._left = question.max_answer_bytes
        self.is_whole = _may_be_kept(answer)
        self.chunks: list[bytes] = []

    def add(self, chunk: bytes) -> None:
        self._left -= len(chunk)
        self.is_whole = self.is_whole and self._left >= 0
        if self.is_whole:
            self.chunks.append(chunk)
        else:
            self.chunks.clear()


def _may_be_kept(answer: ClientResponse) -> bool:
    """Whether the engine's headers let its answer be given to somebody else later."""
    said = ",".join(answer.headers.getall(hdrs.CACHE_CONTROL, ())).lower()
    return answer.status == 200 and not _is_packed(answer) and "no-store" not in said


def _is_framed(answer: ClientResponse) -> bool:
    """Whether the answer says where it ends. Else it ends with its connection, and a crash looks the same."""
    headers = answer.headers
    return hdrs.CONTENT_LENGTH in headers or headers.get(hdrs.TRANSFER_ENCODING, "").lower() == "chunked"


def _is_packed(answer: ClientResponse) -> bool:
    """Whether its bytes mean nothing without a Content-Encoding, which is too late to send."""
    return answer.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() not in ("", "identity")
