"""An exchange with any engine: where it does not speak the client's dialect, request and answer are translated.

A translated stream is begun with its first event, not with the head of the engine's answer: an engine that says an
error in place of one is then answered with a status. Keep-alives go on until it is there.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import IO

import aiohttp
from aiohttp import ClientResponse, hdrs, web
from multidict import CIMultiDict

from enginerouter.cache.answers import Question
from enginerouter.dialects.base import Failure, Fields, Times
from enginerouter.dialects.ollama import keep_alive_s
from enginerouter.dialects.openai import engine_error_fields
from enginerouter.dialects.translation import OLLAMA, Answer, Translation
from enginerouter.errors import UpstreamFailed
from enginerouter.proxy.downstream import STREAM_HEADERS
from enginerouter.swap.model import Lease
from enginerouter.web.answering import end_stream, is_framed, is_packed
from enginerouter.web.answers import Copy
from enginerouter.web.exchange import ERROR_BYTES, STREAMS, UNFRAMED_NOTICE_S
from enginerouter.web.json_body import THREAD_BYTES
from enginerouter.web.mending import MendingExchange

JSON = "application/json"
# What an engine that speaks Anthropic must be told; those of the client are of another dialect.
ANTHROPIC_VERSION = "2023-06-01"
# How long an engine may take to end a stream whose answer is whole, so that its connection can be used again.
LAST_CHUNK_S = 1.0
_NOT_IN_AN_ID = re.compile(r"[^A-Za-z0-9_]")


class AnyExchange(MendingExchange):
    """One request between its client and one engine, whatever the two speak."""

    # None: passes through.
    _translation: Translation | None = None
    # What an Ollama client says of the time after this request; an engine that speaks Ollama reads it itself.
    _keep_s: float | None = None

    async def _prepare(self) -> None:
        ask, upstream = self._ask, self._upstream
        if ask.dialect.name not in upstream.dialects:
            answer_id = _NOT_IN_AN_ID.sub("_", self._call.request_id)
            # Asked for only where it matters: it is put together from all that is known.
            has_infill = upstream.has_infill or (bool(ask.json.get("suffix")) and self._around.has_infill(self._target))
            translation = await ask.translation_for(
                upstream.dialects, answer_id, is_strict=upstream.is_strict, has_infill=has_infill
            )
            if not translation.asked.model:
                # Said in the answer where the engine does not say who it is.
                translation = replace(translation, asked=replace(translation.asked, model=self._target.model_id))
            self._translation = translation
            if ask.dialect is OLLAMA:
                self._keep_s = keep_alive_s(ask.json.get("keep_alive"))

    async def _outgoing(self, headers: CIMultiDict[str]) -> tuple[str, bytes | IO[bytes]]:
        translation = self._translation
        if translation is None:
            return await super()._outgoing(headers)
        # What these say is of the client's dialect.
        for name in {n.lower() for n in headers}:
            if name == "accept" or name.startswith("anthropic-"):
                headers.popall(name)
        headers[hdrs.CONTENT_TYPE] = JSON
        if translation.engine_dialect == "anthropic":
            headers.setdefault("anthropic-version", ANTHROPIC_VERSION)
        headers.update(self._upstream.headers)
        body = await self._ask.translated_body(translation, self._target.upstream_model, self._rules)
        return translation.path, body

    async def _ask_cache(self) -> Question | None:
        return await self._around.answers.question(self._call, self._ask, self._target, self._translation)

    # --- the answer

    def _check_form(self, answer: ClientResponse) -> None:
        """Any form is translated into the one that was begun, if it can be read."""
        if self._translation is None:
            super()._check_form(answer)
        elif is_packed(answer):
            raise UpstreamFailed(self._target.engine, f"{self._target.engine} packed an answer that must be translated")

    async def _answered(self, answer: ClientResponse, lease: Lease) -> web.StreamResponse:
        translation = self._translation
        if translation is None:
            return await super()._answered(answer, lease)
        self._note_status(answer)
        self._translation = translation = replace(translation, body={})
        self._ask.release()
        self._call.release_body()
        if not self._client.is_beating:  # as in a chain, which has looked at the beginning
            self._client.wait_for_engine()
        if self._keep_s is not None and answer.status < 400 and not self._around.naming.is_remote(self._target):
            self._coordinator.keep_for(self._target.slot, self._keep_s)
        response = await self._translated(answer, lease, translation)
        lease.has_answered = True
        return response

    async def _translated(self, answer: ClientResponse, lease: Lease, translation: Translation) -> web.StreamResponse:
        if answer.status >= 400:
            body = self._noted(answer, await self._read(answer, at_most=ERROR_BYTES))
            return await self._refused(Failure(answer.status, engine_error_fields(answer.status, body)), answer)
        self._check_form(answer)
        if translation.asked.wants_stream and answer.content_type in STREAMS:
            return await self._translated_stream(answer, lease, translation)
        return await self._translated_whole(answer, translation)

    def _times(self) -> Times:
        record = self._record
        return Times(record.began_at, time.time() - (time.monotonic() - record.began_at), record.queue_s)

    async def _translated_whole(self, answer: ClientResponse, translation: Translation) -> web.StreamResponse:
        self._seen = self._seen or await self._piece(answer)
        self._stop_clock()
        raw = await self._read(answer)
        times, now, engine = self._times(), time.monotonic(), self._target.engine
        is_stream = translation.asked.wants_stream
        translate = translation.answer_as_stream if is_stream else translation.answer

        def translated() -> Answer | Failure:
            return translate(raw, times, now, engine=engine)

        said = await in_thread_if_large(translated, len(raw))
        if isinstance(said, Failure):
            return await self._refused(said, answer)
        self._first_byte()
        self._record.usage = said.usage
        client = self._client
        await client.pause()
        if is_stream or client.is_committed:
            if not client.is_committed:
                await client.begin(200, self._headers_as(answer, self._ask.dialect.stream_type), None)
            await client.write(said.body, time.monotonic())
            return await client.finish()
        if self._question is not None:
            Copy(self._question, answer).whole(said.body, JSON)
        return web.Response(headers=self._headers_as(answer, JSON), body=said.body)

    async def _translated_stream(
        self, answer: ClientResponse, lease: Lease, translation: Translation
    ) -> web.StreamResponse:
        client, stream = self._client, translation.stream(self._times())
        has_begun, chunk = False, self._seen or await self._piece(answer)
        self._stop_clock()
        while True:
            now = lease.last_byte_at = time.monotonic()
            out = stream.feed(chunk, now) if chunk else stream.end(now)
            if out:
                if not has_begun:
                    has_begun = True
                    await self._begin_stream(answer)
                lease.waits_for_client = True
                await client.write(out, now)
                lease.waits_for_client = False
            if stream.is_done or stream.failure is not None or not chunk:
                break
            chunk = await self._piece(answer)
        self._record.usage = stream.usage
        if stream.failure is not None:
            if not chunk and not is_framed(answer):
                await asyncio.sleep(UNFRAMED_NOTICE_S)
            return await self._refused(stream.failure, answer)
        response = await client.finish()
        await _read_to_end(answer)
        return response

    async def _begin_stream(self, answer: ClientResponse) -> None:
        self._first_byte()
        client = self._client
        await client.pause()
        if client.is_committed:
            await client.comment(f"served by {self._target.label}")
            client.resume()
        else:
            headers = self._headers_as(answer, self._ask.dialect.stream_type)
            headers.update(STREAM_HEADERS)
            await client.begin(200, headers, None)

    def _headers_as(self, answer: ClientResponse, content_type: str) -> CIMultiDict[str]:
        """The engine's headers, with the type of what was made of its body."""
        headers = self._headers(answer)
        headers.popall(hdrs.CONTENT_ENCODING, None)
        headers[hdrs.CONTENT_TYPE] = content_type
        return headers

    async def _refused(self, failure: Failure, answer: ClientResponse) -> web.StreamResponse:
        """The engine's error in the client's dialect: as a status while that can be, then in-band."""
        client, ask = self._client, self._ask
        self._record.status, self._error = failure.status, failure.fields
        if self._record.first_byte_at is None:
            self._first_byte()
        fields: Fields = {"request_id": self._call.request_id, **failure.fields}
        await client.pause()
        if not client.is_committed:
            body = ask.dialect.error_body(failure.status, fields)
            return web.Response(status=failure.status, headers=self._headers_as(answer, JSON), body=body)
        if not client.is_event_stream:
            said = fields.get("message")
            raise UpstreamFailed(
                self._target.engine, f"{self._target.engine} failed after white space was sent: {said}"
            )
        return await end_stream(client, ask, failure.status, fields)


async def in_thread_if_large(work: Callable[[], Answer | Failure], size: int) -> Answer | Failure:
    return work() if size <= THREAD_BYTES else await asyncio.to_thread(work)


async def _read_to_end(answer: ClientResponse) -> None:
    """Take what follows a whole answer, for a moment: the end of its stream, usually here already."""
    try:
        async with asyncio.timeout(LAST_CHUNK_S):
            while await answer.content.readany():
                pass
    except (TimeoutError, aiohttp.ClientError, ConnectionError):
        answer.close()
