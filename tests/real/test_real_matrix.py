"""Every official SDK before real llama-servers. Rows are how the router is told they speak, columns the SDKs.

The columns, and the same matrix before scripted engines with tools and pictures, which the small model here cannot do:
tests/matrix, tests/e2e/test_matrix.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_kit import RealRouter, assert_said_by, llama

from matrix.clients import CLIENTS, connected

pytestmark = pytest.mark.real

# The engine's name: the dialects that it is said to speak. llama-server serves Anthropic's API as well.
ROWS = {"red": ["openai"], "blue": ["openai", "anthropic"]}
CELLS = [pytest.param(client, row, id=f"{client} to {row}") for client in CLIENTS for row in ROWS]
SOON = {"commit_after_s": 0.02, "first_byte_commit_s": 0.02, "swap_keepalive_interval_s": 0.1}
# (client, row): what cannot be, and why.
IMPOSSIBLE = {("anthropic", "blue"): "llama-server's own /v1/messages knows no output_config"}


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRouter]:
    folder: Path = tmp_path_factory.mktemp("router")
    engines: dict[str, Any] = {name: {**llama(name, context=1024), "api": api} for name, api in ROWS.items()}
    vectors = llama("vectors", "--embeddings", "--pooling", "mean")
    router = RealRouter.of(
        folder, {**engines, "vectors": {**vectors, "holds_memory": False}}, {"swap_linger_s": 0.05, **SOON}
    )
    router.start()
    yield router
    router.end()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("client", "row"), CELLS)
async def test_a_chat(router: RealRouter, client: str, row: str, stream: bool) -> None:
    """Each after a swap, with keep-alives in front of the stream."""
    other = next(name for name in ROWS if name != row)
    async with connected(client, router.url) as sdk:
        await sdk.chat(other, tokens=1)
        said = await sdk.chat(row, stream=stream, tokens=12)
    assert_said_by(row, said.text)
    assert said.tokens_out == 12
    assert said.tokens_in is not None
    assert said.tokens_in > 5


@pytest.mark.parametrize(("client", "row"), CELLS)
async def test_an_answer_in_a_given_form(router: RealRouter, client: str, row: str) -> None:
    if why := IMPOSSIBLE.get((client, row)):
        pytest.skip(why)
    async with connected(client, router.url) as sdk:
        assert set(await sdk.shaped(row)) == {"answer"}


@pytest.mark.parametrize("client", CLIENTS)
async def test_embeddings(router: RealRouter, client: str) -> None:
    async with connected(client, router.url) as sdk:
        vectors = await sdk.embed("vectors", ["one", "two"])
    if vectors is not None:
        assert len(vectors) == 2
        assert len(vectors[0]) == len(vectors[1]) > 8


@pytest.mark.parametrize(("client", "row"), CELLS)
async def test_a_picture_this_model_cannot_see_is_refused_by_the_engine(
    router: RealRouter, client: str, row: str
) -> None:
    async with connected(client, router.url) as sdk:
        await sdk.chat(row, tokens=1)
        with pytest.raises(sdk.Error) as refused:
            await sdk.picture(row)
    assert sdk.status_of(refused.value) in (400, 500)


@pytest.mark.parametrize(("client", "row"), CELLS)
async def test_an_engine_that_dies_amid_a_stream_raises(router: RealRouter, client: str, row: str) -> None:
    async with connected(client, router.url) as sdk:
        await sdk.chat(row, tokens=1)
        asking = asyncio.create_task(sdk.chat(row, stream=True, tokens=900))
        while not router.slot(row)["in_flight"]:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        router.engine(row).kill()
        with pytest.raises(sdk.Error):
            await asking
        router.post("/admin/reset", {"engine": row})
