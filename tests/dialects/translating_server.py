"""The shortest server that serves an official SDK through a translation: what the engine says is scripted, and nothing
is sent anywhere. It does with a translation what the data path does, keep-alives between all events included."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from dialects.golden_kit import frame
from enginerouter.dialects.base import Dialect, Failure, Times
from enginerouter.dialects.openai import engine_error_fields, error_fields
from enginerouter.dialects.translation import ANTHROPIC, OLLAMA, OPENAI, Translation, plan
from enginerouter.errors import RouterError


class Scripted:
    """`says` is an answer (an object), a stream (a list of events), or an error (a status and a body)."""

    def __init__(self, engine: str, says: Any, *, has_infill: bool = False) -> None:
        self.engine = engine
        self._has_infill = has_infill
        self.says = says
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.url = ""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        client = OLLAMA if path.startswith("/api/") else ANTHROPIC if path.startswith("/v1/messages") else OPENAI
        try:
            body = await request.json()
            translation = plan(client, path, body, [self.engine], answer_id="a1", has_infill=self._has_infill)
        except RouterError as error:
            return _refusal(client, error.status, error_fields(error, is_admin=False, request_id="r1"))
        assert translation is not None
        self.sent.append((translation.path, translation.body))
        if isinstance(self.says, tuple):
            return _refusal(client, self.says[0], engine_error_fields(*self.says))
        if translation.asked.wants_stream:
            return await self._stream(request, client, translation)
        answer = translation.answer(json.dumps(self.says).encode(), _now(), time.monotonic(), engine="e")
        if isinstance(answer, Failure):
            return _refusal(client, answer.status, answer.fields)
        return web.Response(body=answer.body, content_type="application/json")

    async def _stream(self, request: web.Request, client: Dialect, translation: Translation) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": client.stream_type})
        await response.prepare(request)
        stream, has_begun = translation.stream(_now()), False
        for said in self.says:
            await response.write(client.keepalive("waiting", has_engine_bytes=has_begun))
            if out := stream.feed(frame(translation.engine_dialect, said), time.monotonic()):
                await response.write(out)
                has_begun = True
        await response.write(stream.end(time.monotonic()))
        if stream.failure is not None:
            await response.write(client.error_frame(request.path, stream.failure.status, stream.failure.fields))
            if client.cuts_after_error and request.transport is not None:
                request.transport.close()
        return response


def _now() -> Times:
    return Times(time.monotonic(), time.time())


def _refusal(client: Dialect, status: int, fields: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=client.error_body(status, fields), content_type="application/json")


@asynccontextmanager
async def scripted(engine: str, says: Any, *, has_infill: bool = False) -> AsyncIterator[Scripted]:
    script = Scripted(engine, says, has_infill=has_infill)
    app = web.Application()
    app.router.add_post("/{path:.*}", script.serve)
    async with TestServer(app) as server:
        script.url = str(server.make_url("")).rstrip("/")
        yield script
