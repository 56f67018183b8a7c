"""Answers in this process: the least recently used go when all are too many bytes, each when it is too old."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from enginerouter.cache.keys import Key
from enginerouter.cache.store import Kept, StoreState

# What an entry costs beside its body: its objects, and its place.
ENTRY_BYTES = 512


class MemoryStore:
    """At most `max_bytes`, each for `ttl_s`. Written from the event loop alone."""

    def __init__(self, max_bytes: int, ttl_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._now = now
        # The least recently used first; with the time that each ends at.
        self._entries: OrderedDict[Key, tuple[float, Kept]] = OrderedDict()
        self._bytes = 0

    async def get(self, key: Key) -> Kept | None:
        found = self._entries.get(key)
        if found is None:
            return None
        if found[0] <= self._now():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return found[1]

    def put(self, key: Key, kept: Kept) -> None:
        if key in self._entries:
            self._drop(key)
        self._entries[key] = (self._now() + self._ttl_s, kept)
        self._bytes += _cost(kept)
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Key) -> None:
        self._bytes -= _cost(self._entries.pop(key)[1])

    def forget(self, engine: str) -> None:
        for key in [key for key in self._entries if key.engine == engine]:
            self._drop(key)

    def state(self) -> StoreState:
        return StoreState("memory", entries=len(self._entries), bytes=self._bytes)

    async def close(self) -> None:
        self._entries.clear()
        self._bytes = 0


def _cost(kept: Kept) -> int:
    return len(kept.body) + ENTRY_BYTES
