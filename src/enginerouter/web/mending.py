"""What an engine that speaks OpenAI leaves out of an answer, and its clients cannot do without, is put in.

The request alone decides whether an answer is looked at, so that all others pass as they are. What is right already,
and what is odd, passes too, byte for byte.
"""

from __future__ import annotations

import asyncio
import time

from aiohttp import ClientResponse, web

from enginerouter.dialects.embeddings import in_base64
from enginerouter.dialects.openai import RESPONSES
from enginerouter.dialects.response_events import Numbering
from enginerouter.swap.model import Lease
from enginerouter.web.answering import is_packed
from enginerouter.web.exchange import Exchange
from enginerouter.web.json_body import THREAD_BYTES

JSON = "application/json"
EVENTS = "text/event-stream"
# A larger answer passes as it is: it is held in memory as a whole, and its vectors are twice there.
MAX_MENDED_BYTES = 64 * 1024 * 1024


class MendingExchange(Exchange):
    """An exchange with an engine of the client's dialect, which may not know all of it."""

    async def _relay(self, answer: ClientResponse, lease: Lease) -> web.StreamResponse:
        if self._ask.wants_base64 and (body := await self._vectors(answer, lease)) is not None:
            return web.Response(headers=self._headers(answer), body=self._note_whole(answer, body))
        return await super()._relay(answer, lease)

    async def _relay_into_json(self, answer: ClientResponse, lease: Lease) -> web.StreamResponse:
        if self._ask.wants_base64 and (body := await self._vectors(answer, lease)) is not None:
            await self._client.write(self._note_whole(answer, body), time.monotonic())
            return await self._client.finish()
        return await super()._relay_into_json(answer, lease)

    def _numbering(self, answer: ClientResponse) -> Numbering | None:
        is_stream = self._ask.path == RESPONSES and answer.status == 200 and answer.content_type == EVENTS
        return Numbering() if is_stream and not is_packed(answer) else None

    async def _vectors(self, answer: ClientResponse, lease: Lease) -> bytes | None:
        """A whole answer with its vectors in base64; None for what has none, or is too large to be held."""
        if answer.status != 200 or answer.content_type != JSON or is_packed(answer):
            return None
        pieces, size = [self._seen] if self._seen else [], len(self._seen)
        while chunk := await self._piece(answer):
            self._stop_clock()
            lease.last_byte_at = time.monotonic()
            pieces.append(chunk)
            size += len(chunk)
            if size > MAX_MENDED_BYTES:
                self._seen = b"".join(pieces)
                return None
        body = b"".join(pieces)
        return in_base64(body) if size <= THREAD_BYTES else await asyncio.to_thread(in_base64, body)
