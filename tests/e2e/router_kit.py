"""A whole router on real sockets before scripted engines, and clients that see every byte.

Everything is real – edge, listener, coordinator, data path – but the processes: `FakeEngine` starts, stops and
crashes when a test says so, and `FakeEngineServer` answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine_server import FakeEngineServer, Message
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from enginerouter.config.engines import GenericProcess
from enginerouter.config.model import Alias, Config, Health, Model
from enginerouter.engines.base import OnExit
from enginerouter.errors import EngineCrashed, RouterError
from enginerouter.slots import SlotId
from enginerouter.swap.memory import HostSource
from enginerouter.swap.phases import Phase
from enginerouter.web.app import Router

CHAT = "/v1/chat/completions"
GIB = 1024**3


def sdk_of(router: RouterUnderTest, **options: Any) -> AsyncOpenAI:
    """The official client. Reading the system's certificates would take most of a test's time."""
    http = DefaultAsyncHttpxClient(verify=False, trust_env=False)
    return AsyncOpenAI(base_url=router.url + "/v1", api_key="-", http_client=http, **{"max_retries": 0, **options})


def chat(model: str | None = "a", *, stream: bool = False, **more: Any) -> bytes:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], **more}
    if model is not None:
        body["model"] = model
    if stream:
        body["stream"] = True
    return json.dumps(body).encode()


class Gate:
    """A point that a scripted engine passes: `reached` when it is there, it goes on while `is_open`."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        self.reached.set()
        await self._open.wait()


class FakeMemory(HostSource):
    """Available memory, as a test wants it."""

    name = "fake"
    why = "a test says so"
    warnings = ()

    def __init__(self) -> None:
        self.bytes = 64 * GIB

    def available(self) -> int | None:
        return self.bytes


class FakeEngine:
    """An engine without a process. `starting` and `stopping` are its gates; `start_error` makes the next start fail."""

    def __init__(self, name: str, memory: FakeMemory | None = None) -> None:
        self._name = name
        self.server = FakeEngineServer(name)
        self.host = "127.0.0.1"
        self.starting = Gate()
        self.stopping = Gate()
        self.checking = Gate()
        self.adopting = Gate()
        self.start_error: RouterError | None = None
        self.starts = 0
        self.stops = 0
        self.is_running = False
        self.adopts = False
        self.held: int | None = None
        # Whether its memory comes back at once when it stops.
        self.gives_back = True
        # Whether its server still listens when it was stopped, as one that sleeps does.
        self.sleeps = False
        self._memory = memory
        self._on_exit: OnExit | None = None

    @property
    def name(self) -> str:
        return self._name

    def address(self, slot: SlotId) -> str:
        return f"http://{self.host}:{self.server.port}"

    def watch(self, on_exit: OnExit) -> None:
        self._on_exit = on_exit

    async def check(self, slot: SlotId, leaving: Collection[SlotId]) -> None:
        await self.checking.passed()

    async def start(self, slot: SlotId) -> None:
        self.starts += 1
        await self.starting.passed()
        if self.start_error is not None:
            raise self.start_error
        await self.server.listen()
        self.is_running = True
        if self._memory is not None and self.held:
            self._memory.bytes -= self.held

    async def stop(self, slot: SlotId) -> None:
        if not self.is_running:
            return
        await self.stopping.passed()
        self.stops += 1
        await self._end()
        if self._memory is not None and self.held and self.gives_back:
            self._memory.bytes += self.held

    async def _end(self, *, resets: bool = False) -> None:
        self.is_running = False
        if not self.sleeps:
            await self.server.stop(resets=resets)

    async def crash(self, message: str = "", *, resets: bool = False, noticed_after_s: float = 0.0) -> None:
        """The process dies: its connections break, and a moment later the watcher says so."""
        await self._end(resets=resets)
        await asyncio.sleep(noticed_after_s)
        assert self._on_exit is not None
        error = EngineCrashed(self._name, message or f"engine '{self._name}' died (exit status 139)")
        self._on_exit(SlotId(self._name), error)

    async def held_bytes(self, slot: SlotId) -> int | None:
        return self.held

    async def stopped_state(self, slot: SlotId) -> str | None:
        return None

    async def adopt(self) -> list[SlotId]:
        await self.adopting.passed()
        if not self.adopts:
            return []
        await self.server.listen()
        self.is_running = True
        return [SlotId(self._name)]

    async def close(self) -> None:
        await self.server.stop()


@dataclass
class Answer(Message):
    """One answer. `is_whole` False: the connection ended before the answer did."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    is_whole: bool

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found

    @property
    def text(self) -> str:
        return str(self.json["choices"][0]["message"]["content"])


class Client:
    """One connection to the router, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self._is_chunked = False
        self._left: int | None = None
        self._is_over = False

    async def send(
        self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        given = {"Host": "localhost", "Content-Type": "application/json", **(headers or {})}
        if body is not None:
            given["Content-Length"] = str(len(body))
        lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in given.items())]
        self.writer.write("\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + (body or b""))
        await self.writer.drain()

    async def head(self, within_s: float = 5.0, *, has_body: bool = True) -> int:
        """Read status and headers."""
        async with asyncio.timeout(within_s):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *lines = raw[:-4].decode("utf-8", "surrogateescape").split("\r\n")
        self.status = int(status_line.split()[1])
        self.headers = [(k, v.strip()) for k, _, v in (line.partition(":") for line in lines)]
        lowered = {k.lower(): v for k, v in self.headers}
        self._is_chunked = lowered.get("transfer-encoding") == "chunked"
        length = lowered.get("content-length")
        self._left = int(length) if length is not None else None
        self._is_over = not has_body or self.status in (204, 304) or self._left == 0
        return self.status

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k.lower() == name.lower()), None)

    async def piece(self, within_s: float = 5.0) -> bytes:
        """The next bytes of the body; b"" at its tidy end. Raises EOFError where the connection breaks before it."""
        if self._is_over:
            return b""
        try:
            async with asyncio.timeout(within_s):
                return await (self._chunk() if self._is_chunked else self._plain())
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise EOFError("the connection broke before the answer's end") from error

    async def _chunk(self) -> bytes:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        data = await self.reader.readexactly(size)
        await self.reader.readexactly(2)
        self._is_over = size == 0
        return data

    async def _plain(self) -> bytes:
        data = await self.reader.read(65536 if self._left is None else min(65536, self._left))
        if self._left is None:
            self._is_over = not data
        else:
            if not data:
                raise asyncio.IncompleteReadError(b"", self._left)
            self._left -= len(data)
            self._is_over = self._left == 0
        return data

    async def until(self, wanted: bytes, within_s: float = 5.0) -> bytes:
        """Read until the body holds `wanted`; what was read."""
        seen = b""
        async with asyncio.timeout(within_s):
            while wanted not in seen:
                piece = await self.piece(within_s)
                if not piece:
                    raise AssertionError(f"the answer ended without {wanted!r}: {seen!r}")
                seen += piece
        return seen

    async def rest(self, within_s: float = 5.0) -> tuple[bytes, bool]:
        """The rest of the body, and whether it came to a tidy end."""
        seen = b""
        try:
            async with asyncio.timeout(within_s):
                while piece := await self.piece(within_s):
                    seen += piece
        except EOFError:
            return seen, False
        return seen, True

    async def answer(self, within_s: float = 5.0, *, has_body: bool = True) -> Answer:
        await self.head(within_s, has_body=has_body)
        body, is_whole = await self.rest(within_s)
        return Answer(self.status, self.headers, body, is_whole)

    def reset(self) -> None:
        """Leave with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        """Leave with FIN."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@dataclass
class RouterUnderTest:
    """A running router, its engines, and ways to ask it."""

    router: Router
    engines: dict[str, FakeEngine]
    memory: FakeMemory
    _stopped: bool = field(default=False)

    @property
    def port(self) -> int:
        return self.router.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __getattr__(self, name: str) -> FakeEngine:
        try:
            return self.engines[name]
        except KeyError:
            raise AttributeError(name) from None

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22))
        try:
            yield client
        finally:
            await client.close()

    async def ask(
        self,
        body: bytes | None = None,
        *,
        path: str = CHAT,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
        within_s: float = 5.0,
    ) -> Answer:
        method = method or ("GET" if body is None else "POST")
        async with self.client() as client:
            await client.send(method, path, body, headers)
            return await client.answer(within_s, has_body=method != "HEAD")

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.ask(path=path, headers=headers)

    def phase(self, engine: str) -> Phase:
        return self.router.coordinator.slots[SlotId(engine)].phase

    async def until(self, is_so: Callable[[], bool], within_s: float = 5.0) -> None:
        """Wait until something that only the state shows is so."""
        async with asyncio.timeout(within_s):
            while not is_so():
                await asyncio.sleep(0.002)

    @property
    def in_flight(self) -> int:
        return sum(len(s.leases) for s in self.router.coordinator.slots.values())

    async def idle(self) -> None:
        """Wait until nothing is leased or queued."""
        await self.until(lambda: not self.in_flight and not self.router.coordinator.queued)

    async def load(self, model: str = "a") -> None:
        answer = await self.ask(chat(model))
        assert answer.status == 200, answer.body
        await self.idle()

    async def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        for engine in self.engines.values():
            engine.stopping.open()
        await self.router.stop()
        for engine in self.engines.values():
            await engine.server.stop()


# Times short enough for tests; what a test looks at, it sets itself.
FAST: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 0,
    "log_file": None,
    "commit_after_s": 30.0,
    "first_byte_commit_s": 30.0,
    "swap_keepalive_interval_s": 30.0,
    "swap_linger_s": 0.0,
    "swap_min_residency_s": 0.0,
    "swap_max_wait_s": 0.05,
    "drain_timeout_s": 5.0,
    "shutdown_timeout_s": 0.5,
    "memory_source": "none",
    # Engines hear of a test what the test sends; those of probes switch them on.
    "health": Health(enabled=False),
}

MakeRouter = Callable[..., Awaitable[RouterUnderTest]]


def make_config(folder: Path, engines: Mapping[str, Mapping[str, Any]], **settings: Any) -> Config:
    """A configuration with one model per engine, of the engine's name, unless `models` says otherwise."""
    models = settings.pop("models", None)
    aliases = settings.pop("aliases", {})
    built = {
        name: GenericProcess(name=name, **{"start_cmd": ("fake",), "base_url": "http://127.0.0.1:1", **more})
        for name, more in engines.items()
    }
    return Config(
        **{
            **FAST,
            "base_dir": folder,
            "engines": built,
            "models": tuple(Model(**m) for m in models) if models is not None else (),
            "aliases": {
                name: Alias(name=name, **({"target": said} if isinstance(said, str) else said))
                for name, said in aliases.items()
            },
            **settings,
        }
    )
