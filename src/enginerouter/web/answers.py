"""The cache of answers as an exchange asks it: for whom, and of which target.

A reload makes a new `KeptAnswers` over the same `AnswerCache`. An engine that has changed is another one to the keys,
so its old answers are never given again; `AnswerCache.forget(engine)` drops them.
"""

from __future__ import annotations

import dataclasses
import json
import socket
from hashlib import blake2b
from typing import IO
from urllib.parse import urlsplit

from aiohttp import ClientResponse, hdrs
from multidict import istr

from enginerouter.cache.answers import AnswerCache, Asked, Question
from enginerouter.cache.keys import Served
from enginerouter.cache.memory import MemoryStore
from enginerouter.cache.store import Store
from enginerouter.config.forms import is_loopback
from enginerouter.config.model import Cache, Config, EngineSettings
from enginerouter.dialects.translation import Translation
from enginerouter.proxy.headers import passes_upstream
from enginerouter.routing.target import Target
from enginerouter.tasks import TaskGroup
from enginerouter.web.answering import is_packed
from enginerouter.web.ask import Ask
from enginerouter.web.edge import EdgeCall
from enginerouter.web.keys import Identity
from enginerouter.web.params import ModelParams

CACHE = istr("X-EngineRouter-Cache")
CACHE_CONTROL = "cache-control"
BASE64 = b'{"encoding_format":"base64"}'
MIB = 1024 * 1024
MEMORY = "memory"


def open_cache(settings: Cache | None, tasks: TaskGroup) -> AnswerCache | None:
    """The cache that a configuration asks for; None if it asks for none. Connects to nothing yet."""
    if settings is None:
        return None
    max_bytes = settings.max_mib * MIB
    return AnswerCache(
        _store(settings, max_bytes, tasks),
        tasks,
        embeddings=settings.embeddings,
        deterministic=settings.deterministic,
        max_bytes=max_bytes,
        is_remote=settings.store != MEMORY and not is_loopback(urlsplit(settings.store).hostname or ""),
    )


def _store(settings: Cache, max_bytes: int, tasks: TaskGroup) -> Store:
    if settings.store == MEMORY:
        return MemoryStore(max_bytes, settings.ttl_s)
    # Not at the top: its client is an optional extra, and the loader has made sure that it is here.
    from enginerouter.cache.redis_store import RedisStore

    return RedisStore(settings.store, ttl_s=settings.ttl_s, tasks=tasks)


class KeptAnswers:
    """What one configuration says to the cache: how engines are reached."""

    def __init__(self, cache: AnswerCache | None, config: Config, params: ModelParams) -> None:
        self.cache = cache
        self._params = params
        self._reached_by = {name: reached_by(e) for name, e in config.engines.items()} if cache is not None else {}

    def may_ask(self, path: str) -> bool:
        return self.cache is not None and self.cache.may_ask(path)

    async def question(
        self, call: EdgeCall, ask: Ask, target: Target, translation: Translation | None = None
    ) -> Question | None:
        """What to look up before a try at a target. None: nothing of this request may be kept."""
        assert self.cache is not None
        model, rules, sent_path, form = target.upstream_model, self._params.of(target), "", b""
        body: bytes | IO[bytes]
        if translation is None:
            body = await ask.body_for(model, rules)
            # Kept as it is given; a model's settings may leave the wish out of what the engine gets.
            form = BASE64 if ask.wants_base64 else b""
        else:
            body, sent_path = await ask.translated_body(translation, model, rules), translation.path
            form = ask.body if isinstance(ask.body, bytes) else b""
        if not isinstance(body, bytes):
            return None
        is_local_only = target.stays_local
        headers = call.request.headers.items()
        asked = Asked(
            call.raw_path,
            call.raw_query,
            [(name, value) for name, value in headers if passes_upstream(name) or name.lower() == CACHE_CONTROL],
            body,
            Served(target.engine, self._reached_by[target.engine], target.upstream_model),
            fence_of(call.identity, is_local_only=is_local_only),
            is_local_only,
            sent_path,
            form,
        )
        return await self.cache.question(asked)


class Copy:
    """An answer on its way to the client, once more, for as long as it may be kept."""

    __slots__ = ("_answer", "_chunks", "_left", "_may_be_kept", "_question")

    def __init__(self, question: Question, answer: ClientResponse) -> None:
        said = ",".join(answer.headers.getall(hdrs.CACHE_CONTROL, ())).lower()
        self._question = question
        self._answer = answer
        self._may_be_kept = answer.status == 200 and not is_packed(answer) and "no-store" not in said
        self._left = question.max_answer_bytes
        self._chunks: list[bytes] = []

    def add(self, chunk: bytes) -> None:
        self._left -= len(chunk)
        if self._left < 0:
            self._may_be_kept = False
            self._chunks.clear()
        if self._may_be_kept:
            self._chunks.append(chunk)

    def whole(self, body: bytes | None = None, kind: str | None = None) -> None:
        """The answer came to its end: `body`, or what was added. `kind` is its Content-Type, if not the engine's."""
        if self._may_be_kept:
            if kind is None:
                kind = self._answer.headers.get(hdrs.CONTENT_TYPE, "")
            self._question.answered(kind, b"".join(self._chunks) if body is None else body)


def fence_of(identity: Identity, *, is_local_only: bool) -> str:
    """What the one who asks may do. Keys that may do the same share answers; others never do."""
    return json.dumps([sorted(set(identity.models)), identity.may_use_remote, is_local_only])


def reached_by(settings: EngineSettings) -> str:
    """A digest of all settings of an engine: whichever changes, it may answer differently.

    An engine of this machine is another one than that of the same settings elsewhere, which may share the store.
    """
    said = dataclasses.asdict(settings)
    where = "" if settings.type == "remote" else socket.gethostname()
    return blake2b(json.dumps([where, said], default=str, sort_keys=True).encode(), digest_size=16).hexdigest()
