"""Which models engines say they have: asked for when a list is needed, kept for `tags_cache_ttl_s`, told to a listener.

Asking never loads anything. At most one question at a time goes to an engine; a failure is kept for a moment only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from enginerouter.config.engines import EngineSettings
from enginerouter.engines.http_control import ControlFailed
from enginerouter.engines.loaded import Listing
from enginerouter.engines.served import is_process
from enginerouter.errors import EngineUnavailable
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

FAILURE_TTL_S = 2.0
# Of a list that is longer than this, nobody reads the end.
MOST_MODELS = 2000


@runtime_checkable
class ListsModels(Protocol):
    async def list_models(self) -> Listing:
        """Raises ControlFailed."""


@dataclass(slots=True)
class _Known:
    """What is known of one engine. `at` is monotonic; None: never asked, or not since its models have changed.

    `changes` counts those, `asked_after` says how many there were when it was asked last: the answer to a question from
    before a change is old when it comes.
    """

    engine: ListsModels
    ttl_s: float
    at: float | None = None
    changes: int = 0
    asked_after: int = 0
    failure: str = ""
    listing: Listing | None = None
    asking: asyncio.Task[None] | None = None

    def is_stale(self, now: float) -> bool:
        if self.at is None:
            return True
        return now - self.at > (min(self.ttl_s, FAILURE_TTL_S) if self.failure else self.ttl_s)


class Discovery:
    """`listed` is called with the models of an engine whenever they were asked for."""

    def __init__(
        self, sources: Mapping[str, tuple[ListsModels, float]], listed: Callable[[str, Listing], None]
    ) -> None:
        self._known = {name: _Known(engine, ttl_s) for name, (engine, ttl_s) in sources.items()}
        self._listed = listed
        self._tasks = TaskGroup()
        self._is_closed = False

    def begin(self) -> None:
        """Ask everybody for the first time, in the background."""
        for name, known in self._known.items():
            if known.at is None:
                self._ask(name, known)

    def carry_on(self, before: Discovery, names: Collection[str]) -> None:
        """Know of these engines what was known before a reload, and pass that on."""
        for name, known in self._known.items():
            if name in names and (earlier := before._known.get(name)) is not None:
                known.at, known.failure, known.listing = earlier.at, earlier.failure, earlier.listing
                if known.listing is not None:
                    self._listed(name, known.listing)

    @property
    def is_asking(self) -> bool:
        return any(known.asking is not None and not known.asking.done() for known in self._known.values())

    async def close(self) -> None:
        self._is_closed = True
        await self._tasks.close()

    async def freshen(self, within_s: float) -> bool:
        """See that the lists are fresh, as far as that goes within a time. Gives whether any had to be asked for."""
        now = time.monotonic()
        asking = [self._ask(name, known) for name, known in self._known.items() if known.is_stale(now)]
        if asking:
            await asyncio.wait(asking, timeout=within_s)
        return bool(asking)

    def outdate(self, engine: str) -> None:
        """The models of an engine have changed: whoever wants them next has them asked for."""
        known = self._known.get(engine)
        if known is not None:
            known.at = None
            known.changes += 1

    async def refresh(self, within_s: float) -> None:
        """Ask everybody again now, and wait for them for a time. What is still being asked is not asked twice."""
        asking = [self._ask(name, known) for name, known in self._known.items()]
        if asking:
            await asyncio.wait(asking, timeout=within_s)

    def ask(self, engine: str) -> None:
        """Ask one engine in the background: what it said before is out of date."""
        if (known := self._known.get(engine)) is not None and not self._is_closed:
            self._ask(engine, known)

    @property
    def engines(self) -> tuple[str, ...]:
        """Those that are asked."""
        return tuple(self._known)

    def failure_of(self, engine: str) -> EngineUnavailable | None:
        """Why the models of an engine are not known just now."""
        known = self._known.get(engine)
        if known is None or (known.at is not None and not known.failure):
            return None
        why = known.failure or "it has not answered yet"
        return EngineUnavailable(
            f"engine {engine!r} cannot say which models it has: {why}", retry_after_s=FAILURE_TTL_S
        )

    def _ask(self, name: str, known: _Known) -> asyncio.Task[None]:
        before = known.asking if known.asking is not None and not known.asking.done() else None
        if before is not None and known.asked_after == known.changes:
            return before
        known.asked_after = known.changes
        known.asking = self._tasks.spawn(self._fetch(name, known, before), f"models of {name}")
        return known.asking

    async def _fetch(self, name: str, known: _Known, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        changes = known.changes
        try:
            listing = await known.engine.list_models()
        except ControlFailed as failed:
            if failed.sentence != known.failure:
                log.info("engine %r: its models are not known: %s", name, failed.sentence)
            known.failure = failed.sentence
        else:
            known.failure = ""
            known.listing = replace(listing, ids=listing.ids[:MOST_MODELS])
            self._listed(name, known.listing)
        known.at = time.monotonic() if changes == known.changes else None


def wants_discovery(settings: EngineSettings, *, is_enabled: bool = False) -> bool:
    """Ollama's models come and go with `ollama pull`; other servers are asked where the configuration says so.

    Processes of ours only with `discover.enabled` too (`is_enabled`): what they serve is known better by `models`.
    """
    if settings.type == "ollama":
        return True
    return settings.discover_models and (
        settings.type in ("api_swap", "remote") or (is_enabled and is_process(settings))
    )


def is_askable(settings: EngineSettings, *, is_enabled: bool = False) -> bool:
    """Whether `engine/model` may name a model that only the engine knows of, so that it has to be asked."""
    return settings.type in ("ollama", "api_swap") or wants_discovery(settings, is_enabled=is_enabled)
