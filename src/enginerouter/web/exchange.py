"""One request between its client and one engine: the lease, the engine's answer, and its way to the client.

What is here passes an answer through as it is; `mending.py` adds what an engine left out of it, `translating.py` the
engines that speak another dialect.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import IO, Any

import aiohttp
from aiohttp import ClientResponse, hdrs, web
from multidict import CIMultiDict, istr

from enginerouter.cache.answers import Question
from enginerouter.dialects.beginnings import (
    Beginning,
    ErrorSaid,
    FirstEvent,
    StreamKind,
    error_in_whole,
)
from enginerouter.dialects.openai import engine_error_fields
from enginerouter.dialects.params import NO_RULES
from enginerouter.dialects.response_events import Numbering
from enginerouter.dialects.usage import TAIL_BYTES, usage_said
from enginerouter.errors import FirstByteTimeout, RouterError, UpstreamFailed, printable
from enginerouter.proxy.downstream import Downstream
from enginerouter.proxy.headers import VIA, request_headers, response_headers
from enginerouter.proxy.payload import for_one_try
from enginerouter.proxy.upstream import ReusedConnectionFailed
from enginerouter.routing import walk
from enginerouter.routing.health import Call
from enginerouter.routing.target import Target
from enginerouter.routing.walk import Failure
from enginerouter.swap.model import Lease
from enginerouter.web.answering import end_stream, fail, is_framed, is_packed, waiting_client, weigh
from enginerouter.web.answers import CACHE, Copy
from enginerouter.web.ask import Ask
from enginerouter.web.edge import EdgeCall
from enginerouter.web.surroundings import Surroundings
from enginerouter.web.telemetry import Record

log = logging.getLogger(__name__)

STREAMS: Mapping[str, StreamKind] = {"text/event-stream": "sse", "application/x-ndjson": "ndjson"}

RESOLVED = istr("X-EngineRouter-Resolved")
ATTEMPTS = istr("X-EngineRouter-Attempts")
QUEUE_MS = istr("X-EngineRouter-Queue-Ms")
SWAP_MS = istr("X-EngineRouter-Swap-Ms")

# Answers up to this size that say their length are passed on in one piece: one write instead of two.
WHOLE_BYTES = 1 << 20
# How long a broken connection is looked at for a dying process behind it, so that the error can say so.
CRASH_NOTICE_S = 0.25
# An answer without length or chunks ends when the connection does: so does a crash.
UNFRAMED_NOTICE_S = 0.1
ERROR_BYTES = 64 * 1024


class Exchange:
    """One request between its client and one engine."""

    def __init__(
        self,
        around: Surroundings,
        call: EdgeCall,
        ask: Ask,
        target: Target,
        record: Record,
        client: Downstream | None = None,
        verdict: Call | None = None,
    ) -> None:
        # Whether the time for which the status is held begins when the lease is there.
        self._holds_anew = True
        self._around = around
        self._coordinator = around.coordinator
        self._upstream = around.upstreams[target.engine]
        self._addresses = around.addresses
        self._owners = around.owners
        self._rules = around.params.of(target)
        # Set where the answer may be kept.
        self._question: Question | None = None
        self._call = call
        self._ask = ask
        self._target = target
        self._record = record
        self._verdict = verdict or around.health.observe(target.engine, target.model_id)
        self._clock: asyncio.Timeout | None = None
        self._retry_after_s: float | None = None
        self._error: Mapping[str, Any] = {}
        # Whether what has come of the answer could still turn out to be an error.
        self._is_undecided = False
        # What was read of the answer already, to see what it is.
        self._seen = b""
        self._client = client or waiting_client(around.keepalive, call, ask, self.progress, around.tasks)

    def progress(self) -> str:
        """What the client waits for, as a keep-alive says it."""
        slot = self._target.slot
        if self._coordinator.serves(slot):
            return f"waiting for {self._target.label} {time.monotonic() - self._record.began_at:.0f}s"
        return self._coordinator.progress(slot)

    async def run(self, lease: Lease | None = None) -> web.StreamResponse:
        """Answer the client; with a lease, at once, else when there is one."""
        try:
            await self._prepare()
            if lease is None:
                if self._may_be_kept and (given := await self._give_kept()) is not None:
                    return given
                lease = self._coordinator.try_lease(self._target.slot) or await self._queue()
            return await self._relay_with(lease)
        except RouterError as error:
            weigh(self._verdict, walk.of_error(error), error)
            return await fail(self._client, self._call, self._ask, self._record, error)
        finally:
            self._verdict.dropped()
            self._client.stop_beat()
            self._record.keepalives = self._client.keepalives

    async def _prepare(self) -> None:
        """What must be known before an engine is woken for the request. Raises BadRequest or NotBuilt."""

    # --- an answer that was kept

    @property
    def _may_be_kept(self) -> bool:
        return self._around.answers.may_ask(self._call.raw_path)

    async def _give_kept(self) -> web.StreamResponse | None:
        """The answer to this very request, if there is one: then nothing is leased, queued, woken or called."""
        question = self._question = await self._ask_cache()
        if question is None:
            return None
        record = self._record
        kept = await question.kept()
        if kept is None:
            record.cache = "miss"
            return None
        record.cache, record.cached_bytes = "hit", len(kept.body)
        record.status, record.first_byte_at = 200, time.monotonic()
        record.tries -= 1
        self._ask.release()
        self._call.release_body()
        await self._client.pause()
        if self._client.is_committed:
            await self._client.write(kept.body, record.first_byte_at)
            return await self._client.finish()
        headers = CIMultiDict({hdrs.CONTENT_TYPE: kept.content_type})
        self._add_ours(headers)
        return web.Response(headers=headers, body=kept.body)

    async def _ask_cache(self) -> Question | None:
        return await self._around.answers.question(self._call, self._ask, self._target)

    # --- the lease

    async def _queue(self) -> Lease:
        """Wait for a lease. Whatever ends the wait, the place in the queue is given back."""
        if not self._client.is_beating:  # as in a chain, after its first target
            self._client.wait_for_lease()
        began_at = time.monotonic()
        try:
            who = self._call.identity
            with self._coordinator.place(self._target.slot, priority=who.priority, key=who.name) as ticket:
                lease = await ticket.granted
        finally:
            waited = time.monotonic() - began_at
            self._record.queue_s += waited
        swap = self._around.telemetry.last_swap.get(self._target.slot)
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
        if self._holds_anew:
            self._client.wait_for_engine()
        answer = await self._open()
        try:
            return await self._answered(answer, lease)
        except BaseException:
            answer.close()
            raise

    async def _answered(self, answer: ClientResponse, lease: Lease) -> web.StreamResponse:
        """The head of the engine's answer is here, and the answer is the client's."""
        self._note_status(answer)
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

    def _note_status(self, answer: ClientResponse) -> None:
        self._record.status = answer.status
        if answer.status == 429:
            self._retry_after_s = walk.retry_after_said(answer.headers)

    def _first_byte(self) -> None:
        if self._record.first_byte_at is None:
            self._record.first_byte_at = time.monotonic()
        self._stop_clock()
        if self._record.status >= 400:
            weigh(self._verdict, self._failure_in(self._record.status))
        elif not self._is_undecided:
            self._verdict.succeeded()

    def _judge_first(self, found: Beginning) -> None:
        """What came first under a status of success is the verdict: an answer, or an error all the same."""
        self._is_undecided = False
        if isinstance(found, ErrorSaid):
            self._error = found.fields
            weigh(self._verdict, self._failure_in(found.status))
        else:
            self._verdict.succeeded()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.reschedule(None)

    def _failure_in(self, status: int) -> Failure | None:
        """What an answer says of its target, by its status and as much of its error as has come."""
        return walk.of_answer(
            status,
            self._error,
            has_our_key=self._around.naming.has_our_key(self._target),
            takes_mismatch=False,
            retry_after_s=self._retry_after_s,
            cool_downs=self._around.cool_downs,
        )

    async def _open(self) -> ClientResponse:
        call, upstream = self._call, self._upstream
        headers = request_headers(call.request.headers, upstream.headers)
        # A provider is not told of our routers for longer than it takes to see that it is none. What came from another
        # router says so everywhere: two that take each other for providers must not send it round for ever.
        if upstream.is_server and (upstream.is_router is not False or VIA in call.request.headers):
            headers[VIA] = self._around.via(call)
        path, body = await self._outgoing(headers)
        # Looked up now: an engine may answer elsewhere after every start.
        address = self._addresses[self._target.slot]
        try:
            try:
                answer = await upstream.open(call.request.method, address, path, headers, for_one_try(body))
            except ReusedConnectionFailed:
                # Once, on a new connection, and only while the engine lives: a crash cuts the lease meanwhile.
                await asyncio.sleep(0)
                answer = await upstream.open(call.request.method, address, path, headers, for_one_try(body))
            if upstream.is_server:
                upstream.learn_from(answer, was_told=VIA in headers)
            return answer
        except ReusedConnectionFailed as error:
            raise await self._broken(error) from error
        except UpstreamFailed:
            if not upstream.is_server:
                await asyncio.sleep(CRASH_NOTICE_S)
            raise

    async def _outgoing(self, headers: CIMultiDict[str]) -> tuple[str, bytes | IO[bytes]]:
        """Path and body for this target, made from what the client sent, which stays as it is for the next target."""
        call, ask, model = self._call, self._ask, self._target.upstream_model
        path = f"{call.raw_path}?{call.raw_query}" if call.raw_query else call.raw_path
        has_own = ask.sent_model != model or self._rules is not NO_RULES
        return path, await ask.body_for(model, self._rules) if has_own else ask.body

    async def _broken(self, error: Exception) -> UpstreamFailed:
        """What to raise for an answer that broke off. If its engine is dying, the lease is cut in this wait."""
        await asyncio.sleep(CRASH_NOTICE_S)
        return self._upstream.broken(error)

    # --- the answer

    def _headers(self, answer: ClientResponse) -> CIMultiDict[str]:
        headers = response_headers(answer.headers)
        self._add_ours(headers)
        return headers

    def _add_ours(self, headers: CIMultiDict[str]) -> None:
        """Who served it, after how many tries, and how long that took. A kept answer is no try."""
        record = self._record
        headers[RESOLVED] = self._target.label
        headers[ATTEMPTS] = str(record.tries)
        headers[QUEUE_MS] = str(round(record.queue_s * 1000))
        headers[SWAP_MS] = str(round(record.swap_s * 1000))
        if record.cache:
            headers[CACHE] = record.cache

    async def _relay(self, answer: ClientResponse, lease: Lease) -> web.StreamResponse:
        """Nothing was sent yet: status, headers and body of the engine as they are."""
        headers = self._headers(answer)
        said = answer.headers.get(hdrs.CONTENT_LENGTH)
        length = int(said) if said is not None and said.isdigit() else None
        if length is not None and headers.get(hdrs.CONTENT_TYPE, "").startswith(self._client.stream_kind):
            # Every event is passed on when it comes, and the last one may be ours.
            length = None
        if length is not None and length <= WHOLE_BYTES and self._clock is None:
            body = self._note_whole(answer, await self._read(answer))
            return web.Response(status=answer.status, headers=headers, body=body)
        await self._client.begin(answer.status, headers, length)
        await self._pump(answer, lease)
        return await self._client.finish()

    def _note_whole(self, answer: ClientResponse, body: bytes) -> bytes:
        """Note what an answer that is here altogether says; what of it goes on to the client."""
        if answer.status >= 400:
            body = self._noted(answer, body)
        elif (found := self._error_in(answer, body)) is not None:
            self._judge_first(found)
        self._first_byte()
        if self._ask.makes_response and answer.status < 400:
            self._owners.note(body, self._target, self._call.identity.name, self._ask)
        self._record.usage = usage_said(body)
        if self._question is not None:
            Copy(self._question, answer).whole(body)
        return body

    def _noted(self, answer: ClientResponse, said: bytes) -> bytes:
        """Note an error of the engine; what of it goes on to the client."""
        said = self._upstream.without_key(said)
        self._error = engine_error_fields(answer.status, said)
        self._log_refusal(answer, said)
        return said

    def _log_refusal(self, answer: ClientResponse, body: bytes) -> None:
        if log.isEnabledFor(logging.INFO):
            said = printable(body[:500].decode("utf-8", "replace"), 500)
            # A client's query may hold a key of its own.
            log.info("%s answered %d at %s: %s", self._target.engine, answer.status, answer.url.with_query(None), said)

    async def _relay_after_commit(self, answer: ClientResponse, lease: Lease) -> web.StreamResponse:
        """The status is out as 200: what the engine answers goes on in the form that was begun."""
        client = self._client
        if not client.is_event_stream:
            return await self._relay_into_json(answer, lease)
        if answer.status >= 400:
            body = self._noted(answer, await self._read(answer, at_most=ERROR_BYTES))
            weigh(self._verdict, self._failure_in(answer.status))
            return await end_stream(client, self._ask, answer.status, engine_error_fields(answer.status, body))
        self._check_form(answer)
        await client.comment(f"served by {self._target.label}")
        client.resume()
        await self._pump(answer, lease)
        return await client.finish()

    async def _relay_into_json(self, answer: ClientResponse, lease: Lease) -> web.StreamResponse:
        self._check_form(answer)
        await self._pump(answer, lease)
        return await self._client.finish()

    def _check_form(self, answer: ClientResponse) -> None:
        """Once something was sent, only an answer in the form that was begun can follow. Raises UpstreamFailed."""
        if not self._client.is_committed:
            return
        engine, kind = self._target.engine, answer.content_type
        if self._client.is_event_stream:
            if kind != self._client.stream_kind or is_packed(answer):
                packed = "packed " * is_packed(answer)
                raise UpstreamFailed(engine, f"{engine} answered with {packed}{kind} where a stream was asked for")
        elif answer.status >= 400 or kind != "application/json" or is_packed(answer):
            raise UpstreamFailed(engine, f"{engine} answered {answer.status} after white space was sent")

    async def _pump(self, answer: ClientResponse, lease: Lease) -> None:
        """Pass every piece on as it comes. Errors of reading are the engine's, errors of writing the client's."""
        client, monotonic = self._client, time.monotonic
        read, write = answer.content.readany, client.write
        try:
            chunk = self._seen or await read()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise await self._broken(error) from error
        if answer.status >= 400:
            chunk = self._noted(answer, chunk)
        beginning = self._beginning_of(answer, chunk)
        self._first_byte()
        seen, is_looking = b"", self._ask.makes_response
        first, before, last = chunk, b"", b""
        copy = Copy(self._question, answer) if self._question is not None else None
        numbering = self._numbering(answer)
        while chunk:
            if beginning is not None and (found := beginning.feed(chunk)) is not None:
                beginning = None
                self._judge_first(found)
            if copy is not None:
                copy.add(chunk)
            if is_looking:
                seen += chunk
                is_looking = not self._owners.note(seen, self._target, self._call.identity.name, self._ask)
            now = lease.last_byte_at = monotonic()
            lease.waits_for_client = True
            await write(chunk if numbering is None else numbering.feed(chunk), now)
            lease.waits_for_client = False
            before, last = last, chunk
            try:
                chunk = await read()
            except (aiohttp.ClientError, ConnectionError) as error:
                raise await self._broken(error) from error
        if numbering is not None:
            await write(numbering.end(), monotonic())
        self._record.usage = usage_said(before[-TAIL_BYTES:] + last, first)
        if not is_framed(answer):
            await asyncio.sleep(UNFRAMED_NOTICE_S)
        elif copy is not None:
            copy.whole()

    def _numbering(self, answer: ClientResponse) -> Numbering | None:
        """What the stream goes through on its way; None for all that passes as it is."""
        return None

    def _error_in(self, answer: ClientResponse, said: bytes) -> ErrorSaid | None:
        """The error that a JSON answer of status 200 is."""
        found = error_in_whole(said)
        return found if found is not None and answer.content_type == "application/json" else None

    def _beginning_of(self, answer: ClientResponse, first: bytes) -> FirstEvent | None:
        """Of a stream, what tells an answer from an error; of anything else, the first piece is judged at once."""
        if answer.status >= 400 or is_packed(answer):
            return None
        kind = STREAMS.get(answer.content_type)
        if kind is not None:
            self._is_undecided = True
            return FirstEvent(kind)
        if (found := self._error_in(answer, first)) is not None:
            self._judge_first(found)
        return None

    async def _piece(self, answer: ClientResponse) -> bytes:
        """What has come of the body since the last one; b"" at its end."""
        try:
            return await answer.content.readany()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise await self._broken(error) from error

    async def _read(self, answer: ClientResponse, *, at_most: int | None = None) -> bytes:
        """The whole body, or its beginning; what is beyond `at_most` is not waited for."""
        try:
            if at_most is None:
                return self._seen + await answer.read() if self._seen else await answer.read()
            body = self._seen
            while len(body) < at_most and (chunk := await answer.content.read(at_most - len(body))):
                body += chunk
            return body
        except (aiohttp.ClientError, ConnectionError) as error:
            raise await self._broken(error) from error
