"""Every official SDK before every kind of engine, through a whole router: rows are engines, columns are clients.

An engine speaks one dialect and nothing else (tests/e2e/dialect_engines.py), so that two of three cells are translated.
What cannot be is in `IMPOSSIBLE`, and says so. The same columns before a real llama-server: tests/real.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from dialect_engines import CALL, ENGINES, SHAPED, THOUGHT, TOKENS_IN, TOKENS_OUT, VECTOR, WORDS, error
from engine_server import CLOSE, RST, Received, Script
from router_kit import MakeRouter, RouterUnderTest

from enginerouter.errors import StartFailed
from matrix.clients import CLIENTS, Said, connected

CELLS = [pytest.param(client, engine, id=f"{client} to {engine}") for client in CLIENTS for engine in ENGINES]
TEXT = "".join((f"{'m'}: ", *WORDS))
# (client, engine) → why there are no embeddings: the SDK has no such call, or the engine's API has none.
NO_EMBEDDINGS = {"anthropic"}


async def serving(make_router: MakeRouter, engine: str, **settings: Any) -> RouterUnderTest:
    """A router whose one engine speaks this dialect; its model is `m` here, and `m` there."""
    router = await make_router({"e": {"api": (engine,)}}, models=[{"id": "m", "engine": "e"}], **settings)
    router.engines["e"].server.script = ENGINES[engine]
    return router


def check(said: Said) -> None:
    assert said.text == TEXT
    assert said.thinking == THOUGHT
    assert (said.tokens_in, said.tokens_out) == (TOKENS_IN, TOKENS_OUT)


@pytest.mark.parametrize(("client", "engine"), CELLS)
async def test_a_chat(make_router: MakeRouter, client: str, engine: str) -> None:
    router = await serving(make_router, engine)
    async with connected(client, router.url) as sdk:
        check(await sdk.chat("m"))


@pytest.mark.parametrize(("client", "engine"), CELLS)
async def test_a_stream(make_router: MakeRouter, client: str, engine: str) -> None:
    router = await serving(make_router, engine)
    async with connected(client, router.url) as sdk:
        said = await sdk.chat("m", stream=True)
    check(said)
    assert said.pieces > 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("client", "engine"), CELLS)
async def test_tools(make_router: MakeRouter, client: str, engine: str, stream: bool) -> None:
    router = await serving(make_router, engine)
    async with connected(client, router.url) as sdk:
        said = await sdk.chat("m", tools=True, stream=stream)
    assert said.calls == ((CALL["name"], CALL["arguments"]),)


@pytest.mark.parametrize(("client", "engine"), CELLS)
async def test_a_picture(make_router: MakeRouter, client: str, engine: str) -> None:
    router = await serving(make_router, engine)
    async with connected(client, router.url) as sdk:
        assert (await sdk.picture("m")).text == "seen"


@pytest.mark.parametrize(("client", "engine"), CELLS)
async def test_an_answer_in_a_given_form(make_router: MakeRouter, client: str, engine: str) -> None:
    router = await serving(make_router, engine)
    async with connected(client, router.url) as sdk:
        assert await sdk.shaped("m") == SHAPED


@pytest.mark.parametrize(("client", "engine"), CELLS)
async def test_embeddings(make_router: MakeRouter, client: str, engine: str) -> None:
    router = await serving(make_router, engine)
    async with connected(client, router.url) as sdk:
        if client in NO_EMBEDDINGS:
            assert await sdk.embed("m", ["a"]) is None
        elif engine in NO_EMBEDDINGS:
            with pytest.raises(sdk.Error) as refused:
                await sdk.embed("m", ["a"])
            assert sdk.status_of(refused.value) == 501
        else:
            vectors = await sdk.embed("m", ["a", "b"])
            assert vectors is not None
            assert [[round(x, 5) for x in v] for v in vectors] == [VECTOR, VECTOR]


# --- what goes wrong


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("client", "engine"), CELLS)
async def test_what_the_engine_refuses_keeps_its_status_and_its_words(
    make_router: MakeRouter, client: str, engine: str, stream: bool
) -> None:
    router = await serving(make_router, engine)
    router.engines["e"].server.script = error(429, "slow down")(engine)
    async with connected(client, router.url) as sdk:
        with pytest.raises(sdk.Error, match="slow down") as refused:
            await sdk.chat("m", stream=stream)
    assert sdk.status_of(refused.value) == 429


@pytest.mark.parametrize(("client", "engine"), CELLS)
async def test_a_start_that_fails_is_told_in_time(make_router: MakeRouter, client: str, engine: str) -> None:
    router = await serving(make_router, engine)
    router.engines["e"].start_error = StartFailed("e", "e has no model file")
    async with connected(client, router.url) as sdk:
        with pytest.raises(sdk.Error, match="no model file") as refused:
            await sdk.chat("m", stream=True)
    assert sdk.status_of(refused.value) == 502


def cut_after(engine: str, pieces: int, end: Any) -> Any:
    """The usual stream, which stops in its middle."""

    def script(received: Received) -> Script:
        return [*ENGINES[engine](received)[:pieces], end]

    return script


@pytest.mark.parametrize("end", [RST, CLOSE], ids=["reset", "closed"])
@pytest.mark.parametrize(("client", "engine"), CELLS)
async def test_a_stream_that_breaks_off_raises(make_router: MakeRouter, client: str, engine: str, end: Any) -> None:
    router = await serving(make_router, engine)
    router.engines["e"].server.script = cut_after(engine, 5, end)
    async with connected(client, router.url) as sdk:
        with pytest.raises(sdk.Error, match="broke off"):
            await sdk.chat("m", stream=True)


async def test_ollama_s_connection_is_broken_after_an_error_line(make_router: MakeRouter) -> None:
    """Some of its clients overlook the line."""
    router = await serving(make_router, "openai")
    router.engines["e"].server.script = cut_after("openai", 5, RST)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
    answer = await router.ask(body, path="/api/chat")
    *_, last = answer.body.splitlines()
    assert "broke off" in json.loads(last)["error"]
    assert not answer.is_whole


# --- waiting

SOON = {"commit_after_s": 0.01, "first_byte_commit_s": 0.01, "swap_keepalive_interval_s": 0.01}


@pytest.mark.parametrize(("client", "engine"), CELLS)
async def test_a_slow_swap_and_a_long_prefill_are_waited_out(make_router: MakeRouter, client: str, engine: str) -> None:
    router = await serving(make_router, engine, **SOON)
    fake, silent = router.engines["e"], asyncio.Event()
    fake.starting.shut()
    fake.server.script = lambda received: [*ENGINES[engine](received)[:1], silent, *ENGINES[engine](received)[1:]]
    async with connected(client, router.url) as sdk, asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(sdk.chat("m", stream=True))
        await fake.starting.reached.wait()
        await asyncio.sleep(0.05)
        fake.starting.open()
        await fake.server.exchange()
        await asyncio.sleep(0.05)
        silent.set()
        check(await asked)
    await router.idle()
    sent = (await router.get("/metrics")).body.decode()
    frames = next(line for line in sent.splitlines() if line.startswith("enginerouter_keepalive_frames_total "))
    assert float(frames.split()[1]) >= 4


@pytest.mark.parametrize(("client", "engine"), CELLS)
async def test_an_engine_that_is_slow_to_end_a_whole_stream_disturbs_nobody(
    make_router: MakeRouter, client: str, engine: str
) -> None:
    """A blank after Ollama's last line would be a line of its own, and no JSON."""
    router = await serving(make_router, engine, **SOON)
    fake = router.engines["e"]
    fake.server.script = lambda received: [*(steps := ENGINES[engine](received))[:-1], 0.1, *steps[-1:]]
    async with connected(client, router.url) as sdk:
        check(await sdk.chat("m", stream=True))


@pytest.mark.parametrize(("client", "engine"), CELLS)
async def test_a_failure_after_keepalives_raises(make_router: MakeRouter, client: str, engine: str) -> None:
    router = await serving(make_router, engine, **SOON)
    fake = router.engines["e"]
    fake.starting.shut()
    fake.start_error = StartFailed("e", "e has no model file")
    async with connected(client, router.url) as sdk, asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(failing(sdk, "no model file"))
        await fake.starting.reached.wait()
        await asyncio.sleep(0.05)
        fake.starting.open()
        await asked


async def failing(sdk: Any, words: str) -> None:
    with pytest.raises(sdk.Error, match=words):
        await sdk.chat("m", stream=True)
