"""Answers kept in a Redis: shared by routers, and whatever is wrong with it costs the hits and nothing else."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_server import ok
from router_kit import Answer, MakeRouter, RouterUnderTest, chat

from enginerouter.cache import redis_store
from enginerouter.config import checks
from enginerouter.config.load import load_text
from enginerouter.config.model import ApiKey, Cache
from enginerouter.errors import ConfigError
from enginerouter.swap.phases import Phase
from redis_server import RedisServer, running_redis

EMBED = "/v1/embeddings"
VECTORS = b'{"object":"list","data":[{"index":0,"embedding":[0.25,-1]}],"model":"m"}'
# Longer than any answer of these tests takes, shorter than a time-out of the cache.
AT_ONCE_S = 0.3


def embed(text: str = "hi", model: str = "a") -> bytes:
    return json.dumps({"model": model, "input": text}).encode()


async def with_redis(make_router: MakeRouter, url: str, **settings: Any) -> RouterUnderTest:
    router = await make_router(cache=Cache(store=url), **settings)
    router.engines["a"].server.script = ok(VECTORS)
    return router


async def said(router: RouterUnderTest, text: str = "hi", **more: Any) -> str | None:
    answer: Answer = await router.ask(embed(text), path=EMBED, **more)
    assert (answer.status, answer.body) == (200, VECTORS)
    return answer.header("x-enginerouter-cache")


async def until_kept(router: RouterUnderTest, text: str = "hi", within_s: float = 5.0) -> None:
    """Ask until there is a hit: an answer is kept a moment after it was given."""
    async with asyncio.timeout(within_s):
        while await said(router, text) != "hit":
            await asyncio.sleep(0.01)


def names(redis: RedisServer) -> list[bytes]:
    """What the router has written there."""
    return [word for word in redis.said(b"KEYS", b"*").split(b"\r\n") if word.startswith(b"enginerouter")]


async def is_up(router: RouterUnderTest) -> bool:
    return bool((await router.get("/status")).json["cache"]["is_up"])


def outages(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = (r for r in caplog.records if r.name == redis_store.__name__ and r.levelno >= logging.WARNING)
    return [r.getMessage() for r in found]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is looked at again sooner."""
    monkeypatch.setattr(redis_store.RedisStore.__init__, "__kwdefaults__", {"timeout_s": 0.5, "retry_from_s": 0.05})


# --- servers that are no Redis


@pytest.fixture
async def impostor() -> AsyncIterator[Callable[[bytes | None], Any]]:
    """`await impostor(answer)` gives the URL of a server that answers so to everything; None: not at all."""
    servers: list[asyncio.Server] = []
    writers: list[asyncio.StreamWriter] = []

    async def listen(answer: bytes | None) -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            try:
                while await reader.read(65536):
                    if answer is not None:
                        writer.write(answer)
            except ConnectionError:
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        servers.append(server)
        return f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield listen
    for server in servers:
        server.close()
    for writer in writers:
        writer.close()
    await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$5\r\nhello\r\n",
        b":1\r\n",
        b"*2\r\n$1\r\na\r\n$1\r\nb\r\n",
        b"$-7\r\n\r\n",
        b"$x\r\n",
        b"$99999999999\r\nx",
        b"*1\r\n" * 2000,
        b"-ERR unknown command\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-READONLY You can't write against a read only replica.\r\n",
        b"\x00\xff\xfe" * 100,
        b"$%d\r\n%s\r\n" % (30, b"ER\x01\n" + b"x" * 26),
    ],
    ids=lambda a: repr(a)[:25],
)
async def test_whatever_a_redis_answers_requests_are_served(
    make_router: MakeRouter,
    impostor: Callable[[bytes | None], Any],
    caplog: pytest.LogCaptureFixture,
    answer: bytes | None,
) -> None:
    router = await with_redis(make_router, await impostor(answer))
    for text in ("one", "one", "two"):
        assert await said(router, text) == "miss"
    assert len(outages(caplog)) <= 1


async def test_a_redis_that_nobody_serves_is_one_warning_without_its_password(
    make_router: MakeRouter, caplog: pytest.LogCaptureFixture
) -> None:
    router = await with_redis(make_router, "redis://me:hunter2@127.0.0.1:1/0")
    began_at = time.monotonic()
    for number in range(20):
        assert await said(router, str(number)) == "miss"
    assert time.monotonic() - began_at < 3
    [warning] = outages(caplog)
    assert "127.0.0.1:1" in warning
    assert "hunter2" not in caplog.text
    assert not await is_up(router)
    assert 'enginerouter_cache_up{store="redis"} 0' in (await router.get("/metrics")).body.decode()


async def test_a_redis_elsewhere_never_gets_anything_of_a_local_only_alias(
    make_router: MakeRouter, impostor: Callable[[bytes | None], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the question: it would say that, and when, something was asked again."""
    monkeypatch.setattr("enginerouter.web.answers.is_loopback", lambda host: False)
    router = await with_redis(
        make_router, await impostor(b"$-1\r\n"), aliases={"private": {"target": "a", "local_only": True}, "open": "a"}
    )
    private = await router.ask(embed(model="private"), path=EMBED)
    assert private.header("x-enginerouter-cache") is None
    assert (await router.ask(embed(model="open"), path=EMBED)).header("x-enginerouter-cache") == "miss"


def test_a_redis_without_its_client_is_refused_when_the_file_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        load_text("cache: {store: 'redis://h'}", base_dir=Path())
    [problem] = caught.value.problems
    assert (problem.path, problem.line) == ("cache.store", 1)
    assert "pip install 'enginerouter[redis]'" in str(problem)


# --- a real one


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.mark.real
async def test_an_embedding_asked_twice_costs_no_swap_also_after_a_restart_of_the_router(
    make_router: MakeRouter, redis: RedisServer
) -> None:
    router = await with_redis(make_router, redis.url)
    await until_kept(router)
    assert (await router.ask(chat("b"))).text == "b serves b"
    await router.idle()
    assert await said(router) == "hit"
    assert (router.engines["a"].starts, router.phase("b")) == (1, Phase.READY)
    await router.stop()
    second = await with_redis(make_router, redis.url)
    assert await said(second) == "hit"
    assert second.engines["a"].starts == 0


@pytest.mark.real
@pytest.mark.usefixtures("quick")
async def test_a_redis_killed_in_mid_run_costs_the_hits_alone_and_comes_back(
    make_router: MakeRouter, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    router = await with_redis(make_router, redis.url)
    await until_kept(router)
    ends = asyncio.Event()

    async def keep_asking() -> int:
        count = 0
        while not ends.is_set():
            await said(router, str(count % 5))
            count += 1
        return count

    askers = [asyncio.ensure_future(keep_asking()) for _ in range(4)]
    await asyncio.sleep(0.1)
    redis.kill()
    await router.until(lambda: len(outages(caplog)) == 1)
    before = time.monotonic()
    assert await said(router) == "miss"
    assert time.monotonic() - before < AT_ONCE_S
    await asyncio.sleep(0.3)
    redis.start()
    await until_kept(router)
    ends.set()
    assert min(await asyncio.gather(*askers)) > 10
    assert len(outages(caplog)) == 1
    assert await is_up(router)


@pytest.mark.real
@pytest.mark.usefixtures("quick")
async def test_a_redis_that_hangs_costs_one_short_wait(
    make_router: MakeRouter, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    router = await with_redis(make_router, redis.url)
    await until_kept(router)
    redis.freeze()
    try:
        began_at = time.monotonic()
        assert await asyncio.gather(*(said(router, str(n)) for n in range(10))) == ["miss"] * 10
        assert time.monotonic() - began_at < 2
        began_at = time.monotonic()
        for number in range(10):
            assert await said(router, str(number)) == "miss"
        assert time.monotonic() - began_at < 1
        assert len(outages(caplog)) == 1
    finally:
        redis.thaw()
    await until_kept(router)


@pytest.mark.real
async def test_two_keys_with_different_fences_never_share(make_router: MakeRouter, redis: RedisServer) -> None:
    keys = (ApiKey(name="one", key="one", models=("a",)), ApiKey(name="two", key="two", models=("a", "b")))
    router = await with_redis(make_router, redis.url, api_keys=keys)
    one, two = ({"Authorization": f"Bearer {name}"} for name in ("one", "two"))
    assert await said(router, headers=one) == "miss"
    async with asyncio.timeout(5):
        while await said(router, headers=one) != "hit":
            await asyncio.sleep(0.01)
    assert await said(router, headers=two) == "miss"
    assert len(router.engines["a"].server.received) >= 2


@pytest.mark.real
async def test_what_somebody_else_wrote_into_redis_is_a_miss(make_router: MakeRouter, redis: RedisServer) -> None:
    router = await with_redis(make_router, redis.url)
    await until_kept(router)
    [name] = [
        word for word in redis.said(b"KEYS", b"enginerouter:*").split(b"\r\n") if word.startswith(b"enginerouter")
    ]
    redis.said(b"SET", name, VECTORS)
    assert await said(router) == "miss"
    await until_kept(router)
    redis.said(b"DEL", name)
    redis.said(b"LPUSH", name, b"x")
    assert await said(router) == "miss"
    assert await is_up(router)


@pytest.mark.real
async def test_answers_end_and_those_of_an_engine_can_be_forgotten(make_router: MakeRouter, redis: RedisServer) -> None:
    router = await with_redis(make_router, redis.url)
    router.engines["b"].server.script = ok(VECTORS)
    await until_kept(router)
    [name] = names(redis)
    assert 0 < int(redis.said(b"TTL", name).strip(b":\r\n")) <= 3600
    assert router.router.cache is not None
    router.router.cache.forget("b")
    assert await said(router) == "hit"
    router.router.cache.forget("a")
    async with asyncio.timeout(5):
        while redis.said(b"EXISTS", name) != b":0\r\n":
            await asyncio.sleep(0.01)
    assert await said(router) == "miss"


@pytest.mark.real
@pytest.mark.usefixtures("quick")
async def test_a_redis_that_is_full_is_one_warning(make_router: MakeRouter, caplog: pytest.LogCaptureFixture) -> None:
    with running_redis("--maxmemory", "1", "--maxmemory-policy", "noeviction") as full:
        router = await with_redis(make_router, full.url)
        for number in range(5):
            assert await said(router, str(number)) == "miss"
        await router.until(lambda: len(outages(caplog)) == 1)
        await asyncio.sleep(0.3)
        assert len(outages(caplog)) == 1
        assert not await is_up(router)
