"""A router that was started from a file, before engines that are real processes; the file can be changed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from router_kit import FAST, Answer, Client, FakeMemory, RouterUnderTest, chat

from enginerouter.config.load import load
from enginerouter.swap.pick import Picked
from enginerouter.web.app import Router

CHAT_SERVER = Path(__file__).parent / "scripts" / "chat_server.py"
SETTINGS: dict[str, Any] = {**FAST, "log_file": None, "health": {"enabled": False}}


def process(tag: str = "", **more: Any) -> dict[str, Any]:
    """An engine that says `tag`."""
    command = [sys.executable, "-S", str(CHAT_SERVER), "--port", "{port}", "--tag", tag]
    return {"type": "generic_process", "start_cmd": command, **more}


class FromFile(RouterUnderTest):
    """`write` changes the file, `reload` has it read again."""

    path: Path

    def write(self, engines: dict[str, Any] | None = None, **settings: Any) -> None:
        if engines is not None:
            self.said = {**SETTINGS, "engines": engines, **settings}
        else:
            self.said = {**self.said, **settings}
        self.path.write_text(json.dumps(self.said))  # JSON is YAML

    async def reload(self, **headers: str) -> Answer:
        return await self.ask(b"{}", path="/admin/reload", headers=headers)

    async def rewrite(self, engines: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
        """Write, reload, and see that it was taken; the answer."""
        self.write(engines, **settings)
        answer = await self.reload()
        assert answer.status == 200, answer.body
        said: dict[str, Any] = answer.json
        return said

    async def status(self, **headers: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.get("/status", **headers)).json
        return found

    async def slots(self) -> dict[str, dict[str, Any]]:
        return {slot["slot"]: slot for slot in (await self.status())["slots"]}

    async def said_by(self, model: str, **headers: str) -> tuple[int, str]:
        """The process that answers for a model, and its tag."""
        answer = await self.ask(chat(model), headers=headers)
        assert answer.status == 200, answer.body
        pid, _, tag = answer.text.partition(" ")
        return int(pid), tag

    @contextlib.asynccontextmanager
    async def stream(self, model: str, until: Path) -> AsyncIterator[Client]:
        """A stream that has begun, and goes on until a file is there."""
        async with self.client() as client:
            await client.send("POST", "/v1/chat/completions", chat(model, stream=True, user=str(until)))
            assert await client.head() == 200
            await client.until(b"data: {")
            yield client

    async def until_gone(self, slot: str) -> None:
        async with asyncio.timeout(5.0):
            while slot in await self.slots():
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def from_file(folder: Path, engines: dict[str, Any], **settings: Any) -> AsyncIterator[FromFile]:
    path = folder / "config.yaml"
    path.write_text(json.dumps({**SETTINGS, "engines": engines, **settings}))
    router = Router(load(path).config, memory=Picked("none"))
    under_test = FromFile(router, {}, FakeMemory())
    under_test.path = path
    under_test.said = {**SETTINGS, "engines": engines, **settings}
    try:
        await router.start()
        yield under_test
    finally:
        await router.stop()
