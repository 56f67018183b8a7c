"""A router that was loaded from a file, before engines that are real processes; the file is what a test changes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from router_kit import CHAT, FAST, Answer, Client, FakeMemory, RouterUnderTest, chat

from enginerouter.config.load import load
from enginerouter.swap.memory import NoSource
from enginerouter.web.app import Router

CHILD = Path(__file__).with_name("child_engine.py")
SETTINGS = {key: value for key, value in FAST.items() if key != "health"} | {"health": {"enabled": False}}


def child(name: str, *words: str, **settings: Any) -> dict[str, Any]:
    command = [sys.executable, "-S", str(CHILD), "--port", "{port}", "--name", name, *words]
    return {"type": "generic_process", "start_cmd": command, "stop_timeout_s": 2, **settings}


class Reloaded(RouterUnderTest):
    """`write` and `reload`; `pid` of an engine as its answers tell it."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "config.yaml"

    def write(self, engines: Mapping[str, Any], **settings: Any) -> None:
        write(self.file, engines, **settings)

    async def reload(self, engines: Mapping[str, Any] | None = None, **settings: Any) -> Any:
        """Write, if there is anything to write, and reload; the answer, which must be a success."""
        if engines is not None:
            self.write(engines, **settings)
        answer = await self.try_reload()
        assert answer.status == 200, answer.body
        return answer.json

    async def try_reload(self, **headers: str) -> Answer:
        return await self.ask(b"{}", path="/admin/reload", headers=headers, within_s=20)

    async def said(self, model: str = "a", **options: Any) -> str:
        answer = await self.ask(chat(model), within_s=20, **options)
        assert answer.status == 200, answer.body
        return answer.text

    async def pid(self, model: str = "a") -> int:
        return int((await self.said(model)).split()[1])

    @contextlib.asynccontextmanager
    async def streaming(self, model: str = "a", **headers: str) -> AsyncIterator[Stream]:
        """A stream that is under way, and goes on until `finish`."""
        async with self.client() as client:
            gate = self.folder / f"gate-{id(client)}"
            await client.send("POST", CHAT, chat(model, stream=True, user=str(gate)), headers)
            assert await client.head(20) == 200
            seen = await client.until(b"\\n")
            yield Stream(client, gate, seen)


class Stream:
    def __init__(self, client: Client, gate: Path, seen: bytes) -> None:
        self._client = client
        self._gate = gate
        self._seen = seen

    @property
    def pid(self) -> int:
        return int(json.loads(self._seen.split(b"\n")[0][6:])["choices"][0]["delta"]["content"].split()[1])

    async def goes_on(self) -> None:
        await self._client.until(b"data:")

    async def finish(self) -> None:
        """Let it end, and see that it does so tidily, with all that belongs to it."""
        self._gate.touch()
        rest, is_whole = await self._client.rest(20)
        assert is_whole, "the stream was cut"
        assert rest.endswith(b"data: [DONE]\n\n"), rest[-200:]


def write(file: Path, engines: Mapping[str, Any], **settings: Any) -> None:
    # JSON is YAML.
    text = json.dumps({**SETTINGS, "engines": engines, **settings}, indent=1)
    file.write_text(text)


@contextlib.asynccontextmanager
async def reloaded(folder: Path, engines: Mapping[str, Any], **settings: Any) -> AsyncIterator[Reloaded]:
    """A running router; afterwards none of its processes may be left."""
    file = folder / "config.yaml"
    write(file, engines, **settings)
    router = Router((await asyncio.to_thread(load, file)).config, memory=NoSource())
    under_test = Reloaded(router, {}, FakeMemory())
    under_test.folder = folder
    await router.start()
    try:
        yield under_test
        await under_test.idle()
    finally:
        await under_test.stop()
    assert not [p for p in psutil.Process().children(recursive=True) if str(CHILD) in " ".join(p.cmdline())]


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
