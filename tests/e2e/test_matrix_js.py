"""The official JavaScript SDKs before every kind of engine: the same matrix as test_matrix, told by node."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import test_response_streams as response_streams
from dialect_engines import CALL, ENGINES, SHAPED, THOUGHT, TOKENS_IN, TOKENS_OUT, VECTOR, error
from engine_server import RST, sse
from router_kit import MakeRouter
from test_matrix import CELLS, NO_EMBEDDINGS, SOON, TEXT, cut_after, serving

from matrix import node
from matrix.clients import CLIENTS

pytestmark = pytest.mark.slow

CHAT = {"wish": "chat", "model": "m"}
CALLS = [[CALL["name"], CALL["arguments"]]]
SAID = {"text": TEXT, "thinking": THOUGHT, "calls": [], "tokens_in": TOKENS_IN, "tokens_out": TOKENS_OUT}


def without_pieces(said: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in said.items() if k != "pieces"}


@pytest.mark.parametrize(("client", "engine"), CELLS)
async def test_every_kind_of_answer(make_router: MakeRouter, client: str, engine: str) -> None:
    router = await serving(make_router, engine)
    whole, stream, call, calls, picture, shaped, vectors = await node.ask(
        client,
        router.url,
        CHAT,
        {**CHAT, "stream": True},
        {**CHAT, "tools": True},
        {**CHAT, "tools": True, "stream": True},
        {"wish": "picture", "model": "m"},
        {"wish": "shaped", "model": "m"},
        {"wish": "embed", "model": "m", "texts": ["a", "b"]},
    )
    assert without_pieces(whole) == without_pieces(stream) == SAID
    assert stream["pieces"] > 1
    assert call["calls"] == calls["calls"] == CALLS
    assert (picture["text"], shaped) == ("seen", SHAPED)
    if client in NO_EMBEDDINGS:
        assert vectors is None
    elif engine in NO_EMBEDDINGS:
        assert vectors["status"] == 501
    else:
        assert [[round(x, 5) for x in v] for v in vectors] == [VECTOR, VECTOR]


@pytest.mark.parametrize(("client", "engine"), CELLS)
async def test_errors_before_and_amid_an_answer(make_router: MakeRouter, client: str, engine: str) -> None:
    router = await serving(make_router, engine)
    router.engines["e"].server.script = error(429, "slow down")(engine)
    [early] = await node.ask(client, router.url, {**CHAT, "stream": True})
    assert early["status"] == 429
    assert "slow down" in early["error"]
    router.engines["e"].server.script = cut_after(engine, 5, RST)
    [late] = await node.ask(client, router.url, {**CHAT, "stream": True})
    assert "broke off" in late["error"]


async def test_the_stream_helper_reads_responses_that_their_engine_does_not_number(make_router: MakeRouter) -> None:
    router = await serving(make_router, "openai")
    router.engines["e"].server.script = sse(*response_streams.words())
    [found] = await node.ask("openai", router.url, {"wish": "respond", "model": "m"})
    assert found == {"text": response_streams.TEXT, "numbers": list(range(len(response_streams.words())))}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("engine", ENGINES)
async def test_keepalives_in_every_phase(make_router: MakeRouter, client: str, engine: str) -> None:
    router = await serving(make_router, engine, **SOON)
    fake, silent = router.engines["e"], asyncio.Event()
    fake.starting.shut()
    fake.server.script = lambda received: [*ENGINES[engine](received)[:1], silent, *ENGINES[engine](received)[1:]]
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(node.ask(client, router.url, {**CHAT, "stream": True}))
        async with asyncio.timeout(30):
            await fake.starting.reached.wait()
        await asyncio.sleep(0.05)
        fake.starting.open()
        await fake.server.exchange()
        await asyncio.sleep(0.05)
        silent.set()
    assert without_pieces(asked.result()[0]) == SAID
