"""A scripted engine that speaks bytes: whatever a real one could send, well or badly, at any pace.

A script is a list of steps, played for one request: bytes are sent, an `asyncio.Event` is waited for, a number of
seconds is slept, `RST` and `CLOSE` end the connection, a callable gets the `Exchange`. `ok()`, `sse()` and `chunked()`
give the steps of usual answers. After the last step the connection is kept, as HTTP/1.1 engines do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Pairs = Sequence[tuple[str, str]]
LAST_CHUNK = b"0\r\n\r\n"


class _End:
    def __init__(self, name: str) -> None:
        self.name = name


RST = _End("RST")
CLOSE = _End("CLOSE")
Step = bytes | asyncio.Event | float | _End | Callable[["Exchange"], Awaitable[None]]
Script = Sequence[Step]


class Message:
    """What a request and an answer have in common: headers in order, and a body."""

    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [v for k, v in self.headers if k.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        found = self.all(name)
        return found[0] if found else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Received(Message):
    """One request as it came: raw target, headers in order, body."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes


class Exchange:
    """One request and the connection it came on. `gone` is set when the router closes that connection."""

    def __init__(self, received: Received, writer: asyncio.StreamWriter, gone: asyncio.Event, number: int) -> None:
        self.received = received
        self.gone = gone
        self.done = asyncio.Event()
        # How many requests this connection has carried before this one.
        self.number = number
        self.sent_bytes = 0
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        self.sent_bytes += len(data)
        await self._writer.drain()

    def reset(self) -> None:
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()


class _Watched(asyncio.StreamReaderProtocol):
    def __init__(self, connected: Callable[..., Any]) -> None:
        self.gone = asyncio.Event()
        super().__init__(asyncio.StreamReader(limit=1 << 20), connected)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:
        self.gone.set()
        return super().eof_received()


class FakeEngineServer:
    """Plays `script` for every request, or the next of `queued` scripts. `exchanges` holds what came in."""

    def __init__(self, name: str = "engine") -> None:
        self.name = name
        self.port = 0
        self.script: Script | Callable[[Received], Script] | None = None
        self.queued: list[Script] = []
        self.exchanges: list[Exchange] = []
        self.connections = 0
        # Whether bodies are read before they are answered.
        self.reads_bodies = True
        self._arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def received(self) -> list[Received]:
        return [e.received for e in self.exchanges]

    async def exchange(self, number: int = 0) -> Exchange:
        """The exchange of the n-th request, once it is here."""
        async with asyncio.timeout(5), self._arrived:
            await self._arrived.wait_for(lambda: len(self.exchanges) > number)
        return self.exchanges[number]

    async def listen(self) -> None:
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(
                lambda: _Watched(self._connected), "127.0.0.1", self.port, backlog=1024
            )
            self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self, *, resets: bool = False) -> None:
        """As when the process ends: the port is closed, every connection too."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for task, writer in list(self._open.items()):
            if resets:
                sock = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort() if resets else writer.close()
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        gone = writer.transport.get_protocol().gone  # type: ignore[attr-defined,union-attr]
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, gone))
        self._open[task] = writer
        task.add_done_callback(lambda t: self._open.pop(t))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gone: asyncio.Event) -> None:
        number = 0
        try:
            while (received := await _read_request(reader, reads_body=self.reads_bodies)) is not None:
                exchange = Exchange(received, writer, gone, number)
                number += 1
                async with self._arrived:
                    self.exchanges.append(exchange)
                    self._arrived.notify_all()
                if not await self._play(exchange):
                    return
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            if not writer.is_closing():
                writer.close()

    async def _play(self, exchange: Exchange) -> bool:
        script: Script
        if self.queued:
            script = self.queued.pop(0)
        elif callable(self.script):
            script = self.script(exchange.received)
        elif self.script is not None:
            script = self.script
        else:
            script = usual(self.name)(exchange.received)
        for step in script:
            if isinstance(step, bytes):
                await exchange.send(step)
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, float):
                await asyncio.sleep(step)
            elif step is RST:
                exchange.reset()
                return False
            elif step is CLOSE:
                exchange.close()
                return False
            else:
                await step(exchange)  # type: ignore[operator]
        exchange.done.set()
        return True


async def _read_request(reader: asyncio.StreamReader, *, reads_body: bool) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    request_line, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, _version = request_line.split(" ", 2)
    headers = [(k, v.strip()) for k, _, v in (line.partition(":") for line in lines)]
    lowered = {k.lower(): v for k, v in headers}
    if not reads_body:
        body = b""
    elif lowered.get("transfer-encoding") == "chunked":
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(int(lowered.get("content-length", "0")))
    return Received(method, target, headers, body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


# --- steps


def head(status: int = 200, headers: Pairs = (), reason: str = "OK") -> bytes:
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{k}: {v}" for k, v in headers)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def ok(body: bytes = b"{}", *, status: int = 200, headers: Pairs = (("Content-Type", "application/json"),)) -> Script:
    """A whole answer that says its length."""
    return [head(status, [*headers, ("Content-Length", str(len(body)))]) + body]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


SSE_HEAD = head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
UNFRAMED_SSE_HEAD = head(200, [("Content-Type", "text/event-stream"), ("Connection", "close")])


def chunked(steps: Iterable[Step], *, ends: bool = True) -> list[Step]:
    """The bytes among the steps as chunks."""
    framed: list[Step] = [chunk(s) if isinstance(s, bytes) else s for s in steps]
    return [*framed, LAST_CHUNK] if ends else framed


def sse(*steps: Step, ends: bool = True) -> list[Step]:
    """An event stream in chunks."""
    return [SSE_HEAD, *chunked(steps, ends=ends)]


def event(text: str, model: str = "m") -> bytes:
    """One chat chunk."""
    said = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    }
    return b"data: " + json.dumps(said).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def completion(text: str, model: str = "m") -> bytes:
    said = {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    return json.dumps(said).encode()


def usual(name: str) -> Callable[[Received], Script]:
    """What a well-behaved engine answers: who it is and which model it was asked for."""

    def answer(received: Received) -> Script:
        asked = json.loads(received.body) if received.body[:1] == b"{" else {}
        model = str(asked.get("model"))
        if asked.get("stream") is True:
            return sse(event(f"{name} "), event(f"serves {model}"), DONE)
        return ok(completion(f"{name} serves {model}", model))

    return answer
