"""Answers in a Redis, through its own client (the extra `redis`). Whatever is wrong with it costs the hits, no more.

Every call has a short time-out. The first failure is one warning, and Redis is not asked again until a task of our own
has seen it work: no request pays for an outage twice. What Redis gives is checked; what is not ours is a miss.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Any, TypeVar
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from enginerouter.cache.keys import VERSION, Key
from enginerouter.cache.store import Kept, StoreState
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)
T = TypeVar("T")

PREFIX = f"enginerouter:{VERSION}"
TIMEOUT_S = 0.5
FORGET_S = 30.0
# Pauses between looks at a Redis that failed.
RETRY_FROM_S = 1.0
RETRY_UP_TO_S = 30.0
# Calls at the same time, each on a connection of its own. What is beyond is a miss, not a wait.
MAX_CALLS = 32


class RedisStore:
    """One Redis. How much it holds is its own setting (`maxmemory` with an LRU policy); `ttl_s` is given with each."""

    def __init__(
        self,
        url: str,
        *,
        ttl_s: float,
        tasks: TaskGroup,
        timeout_s: float = TIMEOUT_S,
        retry_from_s: float = RETRY_FROM_S,
    ) -> None:
        parts = urlsplit(url)
        # Never the URL itself: it may hold a password.
        self._where = f"{parts.hostname}:{parts.port or 6379}"
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._tasks = tasks
        self._timeout_s = timeout_s
        self._retry_from_s = retry_from_s
        self._calls = 0
        self._is_up = True
        self._is_closing = False
        # Names and secrets are in the URL; RESP2 is what every version speaks.
        self._client: Redis = Redis.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )

    async def get(self, key: Key) -> Kept | None:
        raw = await self._ask(lambda: self._client.get(_name(key)), "reading")
        return Kept.unpacked(raw) if isinstance(raw, bytes) else None

    def put(self, key: Key, kept: Kept) -> None:
        if self._may_call():
            self._tasks.spawn(self._put(key, kept), "keeping an answer in Redis")

    async def _put(self, key: Key, kept: Kept) -> None:
        await self._ask(lambda: self._client.set(_name(key), kept.packed(), px=self._ttl_ms), "writing")

    def _may_call(self) -> bool:
        return self._is_up and not self._is_closing and self._calls < MAX_CALLS

    async def _ask(self, call: Callable[[], Awaitable[T]], what: str) -> T | None:
        """One call, or nothing: bounded, and never asked of a Redis that is down."""
        if not self._may_call():
            return None
        self._calls += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call()
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):  # somebody else's key under our name: a miss
                self._went_down(what, error)
        except Exception as error:  # noqa: BLE001 - a peer that sends anything makes its client raise anything
            self._went_down(what, error)
        finally:
            self._calls -= 1
        return None

    def _went_down(self, what: str, error: Exception) -> None:
        if not self._is_up or self._is_closing:
            return
        self._is_up = False
        why = f"no answer within {self._timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
        log.warning(
            "the cache's Redis at %s failed while %s (%s); requests go on without kept answers until it works again",
            self._where,
            what,
            why or type(error).__name__,
        )
        self._tasks.spawn(self._wait_until_up(), "waiting for the cache's Redis")

    async def _wait_until_up(self) -> None:
        pause_s = self._retry_from_s
        while not self._is_closing:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_UP_TO_S)
            if await self._works():
                self._is_up = True
                log.info("the cache's Redis at %s works again", self._where)
                return

    async def _works(self) -> bool:
        """Whether it takes and gives values: one that is full, or a copy that may only be read, answers a ping."""
        name, value = f"{PREFIX}:probe", b"1"
        try:
            async with asyncio.timeout(self._timeout_s):
                # Connections that broke, or on which something else may still come, are not used again.
                await self._client.connection_pool.disconnect(inuse_connections=False)
                await self._client.set(name, value, px=10_000)
                return bool(await self._client.get(name) == value)
        except Exception:  # noqa: BLE001 - as above
            return False

    def forget(self, engine: str) -> None:
        if self._may_call():
            self._tasks.spawn(self._forget(engine), f"forgetting the answers of {engine}")

    async def _forget(self, engine: str) -> None:
        try:
            async with asyncio.timeout(FORGET_S):
                found: list[Any] = []
                async for name in self._client.scan_iter(match=f"{_folder(engine)}:*", count=500):
                    found.append(name)
                    if len(found) == 500:
                        await self._client.unlink(*found)
                        found.clear()
                if found:
                    await self._client.unlink(*found)
        except Exception as error:  # noqa: BLE001 - as above
            self._went_down(f"forgetting the answers of {engine}", error)

    def state(self) -> StoreState:
        return StoreState("redis", is_up=self._is_up)

    async def close(self) -> None:
        self._is_closing = True
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._client.aclose()
        except Exception as error:  # noqa: BLE001 - as above
            log.debug("closing the connections to Redis: %s", error)


def _folder(engine: str) -> str:
    """Names of engines may hold anything, glob characters too."""
    return f"{PREFIX}:{blake2b(engine.encode(), digest_size=8).hexdigest()}"


def _name(key: Key) -> str:
    return f"{_folder(key.engine)}:{key.digest}"
