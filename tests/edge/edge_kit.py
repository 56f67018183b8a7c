"""A real edge on a real socket, with scripted handlers behind it, and a client that speaks bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from enginerouter.errors import EngineCrashed, StartCircuitOpen
from enginerouter.web.edge import Edge, EdgeCall
from enginerouter.web.listener import GuardedServer
from enginerouter.web.routes import Route, Routes

HOST = b"Host: localhost\r\n"
PROBE = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"


@dataclass(frozen=True)
class KeyRule:
    name: str
    key: str
    admin: bool = False
    models: tuple[str, ...] = ("*",)
    remote: bool = True
    priority: int = 0


USER = KeyRule("user", "user-key", models=("qwen*",), remote=False, priority=3)
ADMIN = KeyRule("admin", "admin-key", admin=True)
UMLAUT = KeyRule("umlaut", "schlüssel")
KEYS = (USER, ADMIN, UMLAUT)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


class Client:
    """One connection. Reads answers one by one, interim ones too."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def answer(self, within_s: float = 3.0, *, has_body: bool = True) -> Answer:
        async with asyncio.timeout(within_s):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status_line, *lines = head.decode("latin-1").strip().split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
            length = int(headers.get("content-length", 0)) if has_body else 0
            return Answer(int(status_line.split()[1]), headers, await self.reader.readexactly(length))

    async def is_closed(self, within_s: float = 1.0) -> bool:
        """Did the server end the connection? Asks for something harmless to find out."""
        await self.send(PROBE)
        try:
            async with asyncio.timeout(within_s):
                return await self.reader.read(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@dataclass
class EdgeUnderTest:
    port: int
    edge: Edge
    server: GuardedServer
    # (method, raw path, identity name, body) of every call a handler saw.
    seen: list[tuple[str, str, str, bytes]] = field(default_factory=list)
    calls: list[EdgeCall] = field(default_factory=list)
    cancelled: int = 0

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        try:
            yield client
        finally:
            await client.close()

    async def ask(self, data: bytes, *, has_body: bool = True) -> Answer:
        async with self.client() as client:
            await client.send(data)
            return await client.answer(has_body=has_body)


MakeEdge = Callable[..., Awaitable[EdgeUnderTest]]


def routes(under_test: Callable[[], EdgeUnderTest]) -> Routes:
    async def echo(call: EdgeCall) -> web.StreamResponse:
        body = await call.read_body()
        it = under_test()
        told: dict[str, Any] = {"size": body.size, "params": dict(call.params), "in_file": bool(body.file)}
        content = body.raw
        if body.file is not None:
            status = os.fstat(body.file.fileno())
            told |= {"mode": stat.S_IMODE(status.st_mode), "links": status.st_nlink}
            content = body.file.read()
        it.seen.append((call.request.method, call.raw_path, call.identity.name, content))
        it.calls.append(call)
        return web.json_response(told)

    async def unread(call: EdgeCall) -> web.StreamResponse:
        under_test().seen.append((call.request.method, call.raw_path, call.identity.name, b""))
        return web.json_response({})

    async def wait(call: EdgeCall) -> web.StreamResponse:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            under_test().cancelled += 1
            raise
        return web.json_response({})

    async def cut(call: EdgeCall) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(call.request)
        await response.write(b"data: 1\n\n")
        raise EngineCrashed("llama", "engine 'llama' died", admin_detail="CUDA error")

    async def bug(call: EdgeCall) -> web.StreamResponse:
        raise KeyError("secret detail")

    async def crashed(call: EdgeCall) -> web.StreamResponse:
        raise EngineCrashed("llama", "engine 'llama' died", admin_detail="CUDA error")

    async def circuit(call: EdgeCall) -> web.StreamResponse:
        raise StartCircuitOpen("engine 'llama' is left alone", retry_after_s=900.2)

    async def bad_header(call: EdgeCall) -> web.StreamResponse:
        return web.Response(headers={"X-Engine": "a\x01b"})

    return Routes(
        [
            Route("GET", "/", unread, "open"),
            Route("GET", "/health", unread, "open"),
            Route("POST", "/v1/chat/completions", echo),
            Route("GET", "/v1/models", unread),
            Route("GET", "/v1/models/{id...}", echo),
            Route("GET", "/v1/responses/{id}", echo),
            Route("DELETE", "/v1/responses/{id}", echo),
            Route("POST", "/v1/responses/{id}/cancel", echo),
            Route("POST", "/api/chat", echo),
            Route("DELETE", "/api/delete", echo, "admin"),
            Route("POST", "/admin/swap", echo, "admin"),
            Route("GET", "/upstream/{engine}/{path*}", echo, "admin"),
            Route("GET", "/test/wait", wait),
            Route("GET", "/test/cut", cut),
            Route("GET", "/test/bug", bug),
            Route("GET", "/test/crashed", crashed),
            Route("GET", "/test/circuit", circuit),
            Route("GET", "/test/bad-header", bad_header),
        ]
    )
