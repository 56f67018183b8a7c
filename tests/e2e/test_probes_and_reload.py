"""Catalogues and management go by the configuration of the moment; what an engine said of itself, by its launch."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from engine_server import chunk, head
from http_servers import OllamaDaemon
from reload_kit import FromFile, from_file, process


def ollama(server: OllamaDaemon) -> dict[str, Any]:
    return {"type": "ollama", "base_url": server.url, "systemd_unit": None}


async def length(router: FromFile, model: str) -> int | None:
    found: dict[str, Any] = (await router.get(f"/v1/models/{model}")).json
    return found.get("context_length")


async def test_a_reload_changes_what_is_listed_and_starts_nothing(tmp_path: Path) -> None:
    async with from_file(tmp_path, {"a": process()}) as router:
        assert await length(router, "a") is None
        longer = process()
        longer["start_cmd"] = [*longer["start_cmd"], "--ctx-size", "8192"]
        await router.rewrite({"a": longer}, aliases={"x": "a"})
        tags = (await router.get("/api/tags")).json["models"]
        assert [m["model"] for m in tags] == ["a", "x"]
        assert (await length(router, "a"), await length(router, "x")) == (8192, 8192)
        await router.rewrite({"a": longer}, models=[{"id": "m", "engine": "a", "context_length": 4096}])
        assert await length(router, "m") == 4096
        assert (await router.slots())["a"]["phase"] == "cold"


async def test_a_reload_lets_a_pull_go_on_and_turns_the_switch(tmp_path: Path, daemon: OllamaDaemon) -> None:
    rest = asyncio.Event()
    kind = [("Content-Type", "application/x-ndjson"), ("Transfer-Encoding", "chunked")]
    daemon.fails["POST /api/pull"] = [head(200, kind), chunk(b"{}\n"), rest, chunk(b"{}\n"), b"0\r\n\r\n"]
    body = json.dumps({"model": "phi:3b"}).encode()
    async with from_file(tmp_path, {"o": ollama(daemon)}) as router, router.client() as client:
        assert (await router.ask(body, path="/api/delete", method="DELETE")).status == 403
        await client.send("POST", "/api/pull", body)
        await client.head()
        await client.until(b"{}\n")
        await router.rewrite(allow_destructive_ollama_api=True)
        assert (await router.ask(body, path="/api/delete", method="DELETE")).status == 200
        rest.set()
        assert await client.rest() == (b"{}\n", True)
        await router.rewrite({"a": process()})
        assert (await router.ask(body, path="/api/pull")).status == 501
