"""The presets of servers that are always on, before servers that speak as the real ones do: load, change, unload."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_server import Received, Script
from http_servers import LmStudio, OllamaDaemon, ScriptedServer, Tabby, say
from router_kit import RouterUnderTest, chat

from enginerouter.config.load import load_text
from enginerouter.setup import presets
from enginerouter.swap.pick import Picked
from enginerouter.web.app import Router


class LocalAi(ScriptedServer):
    """Lists what is configured, not what is loaded; unloading what is not loaded is an error."""

    def __init__(self) -> None:
        super().__init__("localai")
        self.loaded: list[str] = []

    def control(self, what: str, body: Any, received: Received) -> Script:
        if what == "GET /readyz":
            return say("")
        if what == "GET /v1/models":
            return say({"object": "list", "data": [{"id": name, "object": "model"} for name in ("phi-2", "qwen")]})
        if what == "GET /system":
            return say({"backends": ["llama-cpp"], "loaded_models": [{"id": m, "backend": "x"} for m in self.loaded]})
        if what == "POST /backend/load":
            self.loaded.append(body["model"])
            return say({"message": "model loaded"})
        if what == "POST /backend/shutdown":
            if body["model"] not in self.loaded:
                return say({"error": {"code": 500, "message": f"model {body['model']} not found", "type": ""}}, 500)
            self.loaded.remove(body["model"])
            return say({"message": "ok"})
        return say({"error": {"code": 404, "message": "Not Found", "type": ""}}, 404)


@contextlib.asynccontextmanager
async def routed(
    preset: str, base: str, server: ScriptedServer, folder: Path, **environ: str
) -> AsyncIterator[RouterUnderTest]:
    """A router with the preset as it is, but for the address of the server."""
    await server.listen()
    text = presets.text_of(preset).replace(base, server.url)
    assert server.url in text
    loaded = load_text(f"port: 0\nlog_file: null\nmemory_source: none\n{text}", base_dir=folder, environ=environ)
    router = Router(loaded.config, memory=Picked("none"))
    await router.start()
    try:
        yield RouterUnderTest(router, {}, None)  # type: ignore[arg-type]
    finally:
        await router.stop()
        await server.stop()


CASES: Mapping[str, tuple[str, tuple[str, str], Mapping[str, str]]] = {
    "localai": ("http://127.0.0.1:8080", ("phi-2", "qwen"), {}),
    "tabbyapi": ("http://127.0.0.1:5000", ("mistral", "yi"), {"TABBY_ADMIN_KEY": "secret"}),
    "lmstudio": ("http://127.0.0.1:1234", ("qwen", "gemma"), {}),
    "ollama": ("http://127.0.0.1:11434", ("phi:3b", "llama3:latest"), {}),
}


def server_of(preset: str) -> Any:
    return {"localai": LocalAi, "tabbyapi": Tabby, "lmstudio": LmStudio, "ollama": OllamaDaemon}[preset]()


def in_memory(server: Any) -> list[str]:
    if isinstance(server, Tabby):
        return [server.model] if server.model else []
    if isinstance(server, OllamaDaemon):
        return server.running
    return [name.partition(":")[0] for name in server.loaded]


@pytest.mark.parametrize("preset", CASES)
async def test_a_preset_loads_changes_and_unloads_models(preset: str, tmp_path: Path) -> None:
    base, (first, second), environ = CASES[preset]
    server = server_of(preset)
    async with routed(preset, base, server, tmp_path, **environ) as router:
        listed = [m["id"] for m in (await router.get("/v1/models")).json["data"]]
        assert {first, second} <= set(listed)
        assert in_memory(server) == [], "listing loads nothing"
        assert (await router.ask(chat(first), within_s=20)).status == 200
        assert first in in_memory(server)
        assert (await router.ask(chat(second), within_s=20)).status == 200
        assert second in in_memory(server)
        assert (await router.ask(b"{}", path="/admin/unload", within_s=20)).status == 200
        await router.until(lambda: not in_memory(server), within_s=10)
