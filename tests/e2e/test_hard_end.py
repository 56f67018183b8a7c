"""A router that is killed, and the next one: what servers have in memory is known again, and freed before a swap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from http_servers import LM_STUDIO, LmStudio, OllamaDaemon, ScriptedServer
from router_kit import CHAT, Answer, Client, chat
from router_process import demo_engine, serving


async def ask(port: int, body: bytes | None = None, path: str = CHAT) -> Answer:
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    try:
        await client.send("GET" if body is None else "POST", path, body)
        return await client.answer(20)
    finally:
        await client.close()


async def phase_of(port: int, slot: str) -> str:
    slots = (await ask(port, path="/status")).json["slots"]
    return next(str(s["phase"]) for s in slots if s["slot"] == slot)


@pytest.fixture(params=["ollama", "api_swap"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[tuple[ScriptedServer, dict[str, Any], str]]:
    """A server, its engine's configuration, and its slot."""
    daemon: OllamaDaemon | LmStudio = OllamaDaemon() if request.param == "ollama" else LmStudio()
    await daemon.listen()
    if isinstance(daemon, OllamaDaemon):
        yield daemon, {"type": "ollama", "base_url": daemon.url, "served_models": ["llama3"]}, "server"
    else:
        settings = {**LM_STUDIO, "type": "api_swap", "base_url": daemon.url, "served_models": ["qwen", "gemma"]}
        yield daemon, settings, "server/qwen"
    await daemon.stop()


def in_memory(server: ScriptedServer) -> list[str]:
    assert isinstance(server, OllamaDaemon | LmStudio)
    return server.running if isinstance(server, OllamaDaemon) else server.loaded


async def test_after_a_hard_end_what_a_server_holds_is_resident_and_freed_before_the_next_engine(
    tmp_path: Path, server: tuple[ScriptedServer, dict[str, Any], str]
) -> None:
    daemon, settings, slot = server
    engines = {"server": settings, "m": demo_engine("m", tokens_per_s=2000)}
    model = "llama3" if slot == "server" else "qwen"
    async with serving(tmp_path, engines) as (process, port):
        assert (await ask(port, chat(model))).status == 200
        assert in_memory(daemon)
        process.kill()
        await process.wait()
    assert in_memory(daemon), "the server goes on"
    loads = len(daemon.called("POST /api/v1/models/load"))
    async with serving(tmp_path, engines) as (process, port):
        assert await phase_of(port, slot) == "ready"
        assert (await ask(port, chat(model))).status == 200
        assert len(daemon.called("POST /api/v1/models/load")) == loads, "it is not loaded twice"
        assert (await ask(port, chat("m"))).status == 200
        assert in_memory(daemon) == [], "nothing is started on top of it"
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 15) == 0


async def test_after_a_hard_end_during_a_load_nothing_is_started_on_top_of_it(tmp_path: Path) -> None:
    daemon = LmStudio()
    await daemon.listen()
    loading = asyncio.Event()
    daemon.fails["POST /api/v1/models/load"] = [loading]
    settings = {**LM_STUDIO, "type": "api_swap", "base_url": daemon.url, "served_models": ["qwen"]}
    engines = {"server": settings, "m": demo_engine("m", tokens_per_s=2000)}
    try:
        async with serving(tmp_path, engines) as (process, port):
            asking = asyncio.ensure_future(ask(port, chat("qwen")))
            async with asyncio.timeout(10):
                while not daemon.called("POST /api/v1/models/load"):
                    await asyncio.sleep(0.01)
            process.kill()
            await process.wait()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await asking
        daemon.instances["qwen"].append("qwen:1")  # it did not stop loading
        async with serving(tmp_path, engines) as (process, port):
            assert (await ask(port, chat("m"))).status == 200
            assert daemon.loaded == []
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 15) == 0
    finally:
        loading.set()
        await daemon.stop()
