"""The cache as a router asks it: a question before a request goes to a target, an answer kept after it was whole."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from enginerouter.cache.keys import Key, Served, key_of, read_body
from enginerouter.cache.rules import Wish, is_repeatable, is_worth_keeping, may_ask, wish_of
from enginerouter.cache.store import Kept, Store, StoreState
from enginerouter.tasks import TaskGroup

# Above this, work on a body is done in a thread, or after the answer has gone.
INLINE_BYTES = 256 * 1024
# Larger requests are not looked up, larger answers not kept; nor such as would push out most others.
MAX_REQUEST_BYTES = 16 * 1024 * 1024
MAX_ANSWER_BYTES = 16 * 1024 * 1024
LARGEST_SHARE = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """A request on its way to one target: `body` are the bytes that the engine would get.

    `sent_path` is set where those are a translation: where they would go. `form` is what the client sent, or a part of
    it, where the same answer may be wanted in another form. `fence` stands for what the key that asks may do; requests
    with different fences share nothing.
    `is_local_only`: no word of it may leave this machine.
    """

    path: str
    query: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    served: Served
    fence: str
    is_local_only: bool = False
    sent_path: str = ""
    form: bytes = b""


class AnswerCache:
    """One store and its rules. `is_remote`: the store is on another machine. `max_bytes`: of all answers together."""

    def __init__(
        self,
        store: Store,
        tasks: TaskGroup,
        *,
        embeddings: bool,
        deterministic: bool,
        max_bytes: int,
        is_remote: bool = False,
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._embeddings = embeddings
        self._deterministic = deterministic
        self._is_remote = is_remote
        self.max_answer_bytes = min(MAX_ANSWER_BYTES, max_bytes // LARGEST_SHARE)
        self.hits = 0
        self.misses = 0
        self.hit_bytes = 0

    def may_ask(self, path: str) -> bool:
        """Whether it is worth a question. Cheap: it is on the path of every request."""
        return may_ask(path, embeddings=self._embeddings, deterministic=self._deterministic)

    async def question(self, asked: Asked) -> Question | None:
        """What to look up, and to answer if need be; None where nothing may be read or kept."""
        wish = wish_of(value for name, value in asked.headers if name.lower() == "cache-control")
        if not (wish.may_read or wish.may_keep) or len(asked.body) + len(asked.form) > MAX_REQUEST_BYTES:
            return None
        # Not even its hash: a store elsewhere would see that, and when, something was asked again.
        if asked.is_local_only and self._is_remote:
            return None
        key = _key(asked) if len(asked.body) + len(asked.form) <= INLINE_BYTES else await asyncio.to_thread(_key, asked)
        return None if key is None else Question(self, asked.path, key, wish)

    async def find(self, key: Key) -> Kept | None:
        return await self._store.get(key)

    def keep(self, path: str, key: Key, kept: Kept) -> None:
        if len(kept.body) > self.max_answer_bytes:
            return
        if len(kept.body) <= INLINE_BYTES:
            if is_worth_keeping(path, kept.content_type, kept.body):
                self._store.put(key, kept)
            return
        self._tasks.spawn(self._keep_large(path, key, kept), "keeping an answer")

    async def _keep_large(self, path: str, key: Key, kept: Kept) -> None:
        if await asyncio.to_thread(is_worth_keeping, path, kept.content_type, kept.body):
            self._store.put(key, kept)

    def forget(self, engine: str) -> None:
        """Drop what an engine answered: it was changed, removed, or given another model under the same name."""
        self._store.forget(engine)

    def state(self) -> StoreState:
        return self._store.state()

    async def close(self) -> None:
        await self._store.close()


def _key(asked: Asked) -> Key | None:
    try:
        body = read_body(asked.body)
        if not is_repeatable(asked.sent_path or asked.path, body):
            return None
        form = read_body(asked.form) if asked.form else {}
        return key_of(asked.path, asked.query, asked.headers, body, asked.served, asked.fence, form)
    except ValueError:  # duplicate names, or not even JSON: the engine says so
        return None


class Question:
    """One request at one target: look once, and keep what the engine says if there was nothing."""

    __slots__ = ("_cache", "_key", "_path", "_wish")

    def __init__(self, cache: AnswerCache, path: str, key: Key, wish: Wish) -> None:
        self._cache = cache
        self._path = path
        self._key = key
        self._wish = wish

    @property
    def max_answer_bytes(self) -> int:
        return self._cache.max_answer_bytes if self._wish.may_keep else 0

    async def kept(self) -> Kept | None:
        """The answer, if there is one that may be given."""
        found = await self._cache.find(self._key) if self._wish.may_read else None
        if found is None:
            self._cache.misses += 1
        else:
            self._cache.hits += 1
            self._cache.hit_bytes += len(found.body)
        return found

    def answered(self, content_type: str, body: bytes) -> None:
        """The engine gave a whole answer of status 200."""
        if self._wish.may_keep:
            self._cache.keep(self._path, self._key, Kept(content_type, body))
