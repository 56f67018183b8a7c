"""The engine that is a server with load and unload paths: TabbyAPI, LM Studio, and whatever works like them.

Each model is a slot, and one is loaded at a time, so that a change of model drains the one before. Nothing is
believed that can be seen: a model is ready when `loaded_path` lists it, and gone when that lists nothing. A list that
cannot be had is an error, never "nothing loaded" – but where the connection is refused no server runs, and a server
that does not run has nothing loaded. Without `loaded_path` the server's word is all there is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from typing import Any

from enginerouter.config.engines import ApiSwap, EngineSettings
from enginerouter.engines.http_control import ControlFailed, filled
from enginerouter.engines.known_servers import says_nothing_of_itself, see_load_is_theirs, unrecognised
from enginerouter.engines.loaded import Listing, Loaded, known_models, loaded_models
from enginerouter.engines.model_facts import ModelFacts, known
from enginerouter.engines.probe import gap_s
from enginerouter.engines.server import LIST_TIMEOUT_S, ServerEngine, unanswered
from enginerouter.engines.server_ready import see_ready
from enginerouter.errors import StartTimedOut
from enginerouter.slots import SlotId

log = logging.getLogger(__name__)


class ApiSwapEngine(ServerEngine):
    """See `engines.base.Engine`. `models` are the declared ones, by the names the server knows."""

    def __init__(self, settings: ApiSwap, models: Sequence[str] = ()) -> None:
        super().__init__(settings, settings.health_path)
        self._settings = settings
        self._models = tuple(models)
        # One load or unload at a time inside the server.
        self._turn = asyncio.Lock()
        # A load call goes on when the start that made it is called off: servers do not stop loading for that.
        self._loading: asyncio.Task[ControlFailed | None] | None = None
        # Models that may be in memory although no list has shown them yet.
        self._unseen: list[str] = []
        # Of those: whose load was given up, and may go on – since when (monotonic).
        self._late: dict[str, float] = {}

    def configure(
        self, settings: EngineSettings, *, warmup_model: str | None = None, models: Collection[str] = ()
    ) -> None:
        assert isinstance(settings, ApiSwap), settings.type
        self._go_by(settings, settings.health_path)
        self._settings = settings
        self._models = tuple(models)

    # --- start

    async def check(self, slot: SlotId, leaving: Collection[SlotId]) -> None:
        """Of the health path any answer at all will do: some say 503 while nothing is loaded. A list must be one."""
        settings = self._settings
        try:
            await self._client.get(settings.health_path, timeout_s=settings.ready_probe_timeout_s)
        except ControlFailed as failed:
            await self._see_startable(failed, "start that server")
            return
        try:
            await self._recognise(slot.model or self.name)
        except ControlFailed as failed:
            if failed.is_mistaken:
                raise self._cannot_start(unanswered(failed, "")) from failed

    async def _recognise(self, model: str) -> None:
        """See that it is such a server: by its list of what is loaded, or of what it has. Raises ControlFailed."""
        path = self._settings.loaded_path
        if path is None:
            return
        said = await self._client.get(path, timeout_s=LIST_TIMEOUT_S)
        if loaded_models(said, self._settings) or not says_nothing_of_itself(said, self._settings):
            return
        try:
            listing = await self.list_models()
        except ControlFailed as failed:
            raise unrecognised(said, model, self._settings) from failed
        if not listing.names(model):
            raise unrecognised(said, model, self._settings)

    async def start(self, slot: SlotId) -> None:
        model = slot.model or self.name
        began_at = time.monotonic()
        async with self._turn:
            if await self._bring_up():
                self._forget_unseen()  # what the server before it had in memory went with it
            if not await self._is_the_only_one(model):
                await self._load(model)
                await self._see_loaded(model, began_at)
            path = self._settings.ready_path or self._settings.health_path
            await see_ready(self._client, self._settings, path, began_at)
            if self._settings.warmup:
                await self._warm_up(model)
            self._watch.begin(slot)

    async def _is_the_only_one(self, model: str) -> bool:
        """Whether nothing is to be loaded. What else is in the server's memory is unloaded."""
        try:
            await self._await_load(self._settings.load_timeout_s)
            loaded = await self._listed()
            if loaded and all(one.is_model(model) for one in loaded):
                return True
        except ControlFailed as failed:
            raise self._cannot_start(unanswered(failed, "start that server")) from failed
        if loaded or self._unseen:
            await self._unload()
        return False

    async def _load(self, model: str) -> None:
        settings = self._settings
        if not settings.load_path:
            return
        self._unseen.append(model)
        self._loading = self._tasks.spawn(self._call_load(model), f"load {self.name}/{model}")
        # Waited for beside it, not in it: if the start is called off, the call goes on.
        await asyncio.wait([self._loading])
        failed, self._loading = self._loading.result(), None
        if failed is not None:
            self._note_late(model, failed)
            what = f"{model!r} could not be loaded: {failed.sentence}"
            raise self._timed_out(what) if not failed.has_ended else self._cannot_start(what)

    async def _call_load(self, model: str) -> ControlFailed | None:
        """The load call. A failure is its result, for whoever comes to look."""
        settings = self._settings
        body = filled(settings.load_body, model) or None
        path = filled(settings.load_path, model)
        try:
            said = await self._client.ask(settings.load_method, path, body=body, timeout_s=settings.load_timeout_s)
            said.raise_problem()
            see_load_is_theirs(said, model, settings)
        except ControlFailed as failed:
            return failed
        return None

    async def _await_load(self, within_s: float) -> None:
        """Let a load that nobody waits for any more come to its end. Raises ControlFailed if it does not."""
        if (loading := self._loading) is None:
            return
        await asyncio.wait([loading], timeout=within_s)
        if not loading.done():
            names = ", ".join(self._unseen)
            raise ControlFailed(f"{self._base_url} is still loading {names}, which cannot be called off")
        if (failed := loading.result()) is not None and self._unseen:
            self._note_late(self._unseen[-1], failed)
        self._loading = None

    def _note_late(self, model: str, failed: ControlFailed) -> None:
        if not failed.has_ended:
            self._late.setdefault(model, time.monotonic())

    async def _see_loaded(self, model: str, began_at: float) -> None:
        settings = self._settings
        if settings.loaded_path is None or not settings.load_path:
            return
        seen = "nothing at all"
        while True:
            try:
                loaded = await self._listed() or []
            except ControlFailed as failed:
                raise self._cannot_start(f"whether {model!r} is loaded cannot be seen: {failed.sentence}") from failed
            if any(one.is_model(model) for one in loaded):
                return
            if loaded:
                seen = ", ".join(one.name for one in loaded)
            elapsed_s = time.monotonic() - began_at
            if elapsed_s >= settings.load_timeout_s:
                url = self._base_url + settings.loaded_path
                raise self._timed_out(
                    f"its server said that {model!r} is loaded, but {url} lists {seen} after {elapsed_s:.0f} s"
                )
            await asyncio.sleep(gap_s(elapsed_s))

    # --- stop

    async def stop(self, slot: SlotId) -> None:
        self._watch.end()
        async with self._turn:
            await self._unload()

    async def _unload(self) -> None:
        """Unload everything the server has in memory, and see it gone. Raises FreeFailed."""
        settings = self._settings
        began_at = time.monotonic()
        try:
            await self._await_load(settings.unload_timeout_s)
            if settings.loaded_path is None:
                await self._unload_unseen()
                return
            loaded = await self._listed()
        except ControlFailed as failed:
            if failed.is_absent:
                self._forget_unseen()
                return
            raise self._cannot_free(failed.sentence) from failed
        last_words = await self._ask_to_unload(loaded or [])
        await self._see_nothing_loaded(began_at, last_words)
        self._forget_unseen()

    def _forget_unseen(self) -> None:
        self._unseen.clear()
        self._late.clear()

    async def _listed(self) -> list[Loaded] | None:
        """What is loaded; None where there is nothing to ask. Raises ControlFailed."""
        path = self._settings.loaded_path
        if path is None:
            return None
        return loaded_models(await self._client.get(path, timeout_s=LIST_TIMEOUT_S), self._settings)

    async def _ask_to_unload(self, loaded: Sequence[Loaded]) -> str:
        """One call for each instance, and for what a load left unlisted. Gives what the server had against it."""
        if not self._settings.unload_path:
            return "there is no unload_path" if loaded else ""
        complaints = [await self._call_unload(one_id) for one in loaded for one_id in one.ids]
        for model in self._unseen:
            if not any(one.is_model(model) for one in loaded):
                await self._call_unload(model)  # it may say that it does not know it
        return "; ".join(filter(None, complaints))

    async def _call_unload(self, model: str) -> str:
        """What went wrong, or nothing."""
        settings = self._settings
        body: Any = filled(settings.unload_body, model) or None
        path = filled(settings.unload_path, model)
        try:
            said = await self._client.ask(settings.unload_method, path, body=body, timeout_s=settings.unload_timeout_s)
            said.raise_problem()
        except ControlFailed as failed:
            return failed.sentence
        return ""

    async def _see_nothing_loaded(self, began_at: float, last_words: str) -> None:
        """Until the list is empty – and, after a load that was given up, until that has come and gone."""
        limit_s = self._settings.unload_timeout_s
        while True:
            try:
                loaded = await self._listed() or []
            except ControlFailed as failed:
                if failed.is_absent:
                    return
                raise self._cannot_free(failed.sentence) from failed
            if came := [one for one in loaded if any(one.is_model(model) for model in self._late)]:
                self._late = {m: at for m, at in self._late.items() if not any(one.is_model(m) for one in came)}
                last_words = await self._ask_to_unload(came)
            elif not loaded and not self._still_late():
                return
            elapsed_s = time.monotonic() - began_at
            if elapsed_s >= limit_s:
                raise self._cannot_free(self._what_is_left(loaded, limit_s, last_words))
            await asyncio.sleep(gap_s(elapsed_s))

    def _still_late(self) -> list[str]:
        """The models whose given-up load may still show. A load twice as long as `load_timeout_s` is believed dead."""
        since = time.monotonic() - self._settings.load_timeout_s
        return [model for model, at in self._late.items() if at > since]

    def _what_is_left(self, loaded: Sequence[Loaded], limit_s: float, last_words: str) -> str:
        if loaded:
            names = ", ".join(one.name for one in loaded)
            return f"still in its memory after {limit_s:g} s: {names}" + (f" ({last_words})" if last_words else "")
        names = ", ".join(self._still_late())
        return (
            f"the load of {names} did not end within load_timeout_s, and may go on: it has not shown in the list "
            f"within {limit_s:g} s; raise load_timeout_s, or restart that server"
        )

    async def _unload_unseen(self) -> None:
        """Without a list: what was loaded from here is unloaded, and the answer believed."""
        if not self._settings.unload_path:
            if self._unseen:
                log.warning("engine %r has no unload_path: its memory cannot be freed", self.name)
            self._forget_unseen()
            return
        for model in list(self._unseen):
            if complaint := await self._call_unload(model):
                if await self._refusal() is None:
                    raise self._cannot_free(f"{model!r} could not be unloaded: {complaint}")
                self._forget_unseen()
                return
            self._unseen.remove(model)

    # --- what is there

    @property
    def loads_on_request(self) -> bool:
        return not self._settings.load_path

    async def _loaded_slots(self) -> list[SlotId]:
        """One slot for all that is loaded, since all of it goes at once; a declared model before any other."""
        loaded = await self._listed()
        if not loaded:
            return []
        declared = [m for m in self._models if any(one.is_model(m) for one in loaded)]
        return [SlotId(self.name, declared[0] if declared else loaded[0].name)]

    async def _unloaded(self, slot: SlotId) -> str | None:
        settings = self._settings
        if not settings.loaded_path or not settings.load_path:
            return None  # a server that loads on request has nothing before the first, and loads again by itself
        try:
            loaded = await self._listed() or []
        except ControlFailed:
            return None
        model = slot.model or self.name
        if any(one.is_model(model) for one in loaded):
            return None
        lists = ", ".join(one.name for one in loaded) or "nothing"
        return f"{model!r} was unloaded by its server: {self._base_url + settings.loaded_path} lists {lists}"

    async def list_models(self) -> Listing:
        """Every model the server knows. Raises ControlFailed."""
        paths = dict.fromkeys(filter(None, (self._settings.health_path, self._settings.loaded_path, "/v1/models")))
        facts: dict[str, ModelFacts] = {}
        failure: ControlFailed | None = None
        for path in paths:
            try:
                listing = known_models(await self._client.get(path, timeout_s=LIST_TIMEOUT_S))
            except ControlFailed as failed:
                failure = failure or failed
                if failed.is_refused:
                    break
            else:
                facts.update({name: known(facts.get(name), said) for name, said in listing.facts.items()})
        if failure is not None and not facts:
            raise failure
        return Listing(tuple(facts), facts=facts)

    # --- errors

    def _timed_out(self, why: str) -> StartTimedOut:
        return StartTimedOut(self.name, f"engine {self.name!r} did not start in time: {why}")
