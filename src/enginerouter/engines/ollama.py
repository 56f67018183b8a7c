"""The engine that is an Ollama daemon. It is one slot: ready when the daemon answers, free when `/api/ps` is empty.

The daemon is never stopped. Which of its models are in memory while it is resident is its own business; freeing asks
it to unload each of them and looks until they are gone, because it says "unload" at once and unloads when it can.
Models it runs elsewhere (`remote_host`, `remote_model`) hold nothing here and are left alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Collection, Sequence
from typing import Any

from enginerouter.config.engines import EngineSettings, Ollama
from enginerouter.engines.base import Claim
from enginerouter.engines.http_control import ControlFailed
from enginerouter.engines.loaded import Listing, known_models, ollama_claim, ollama_running
from enginerouter.engines.ollama_shown import SHOW_TIMEOUT_S, Shown
from enginerouter.engines.probe import gap_s
from enginerouter.engines.server import LIST_TIMEOUT_S, ServerEngine, unanswered
from enginerouter.engines.server_ready import see_ready
from enginerouter.errors import printable
from enginerouter.slots import SlotId

log = logging.getLogger(__name__)

_VERSION = "/api/version"
# The sizes only make the wait for memory exact; a daemon that does not give them is not waited for.
CLAIM_TIMEOUT_S = 1.0
_WHAT_TO_DO = "start it (`ollama serve`)"
_PASSED_TO_CLI = ("PATH", "HOME", "USER", "LANG", "SYSTEMROOT", "USERPROFILE", "LOCALAPPDATA")


class OllamaEngine(ServerEngine):
    """See `engines.base.Engine`."""

    def __init__(self, settings: Ollama, *, warmup_model: str | None = None) -> None:
        super().__init__(settings, _VERSION)
        self._settings = settings
        self._warmup_model = warmup_model
        self._shown = Shown()

    def configure(
        self, settings: EngineSettings, *, warmup_model: str | None = None, models: Collection[str] = ()
    ) -> None:
        assert isinstance(settings, Ollama), settings.type
        self._go_by(settings, _VERSION)
        self._settings = settings
        self._warmup_model = warmup_model

    # --- the steps of a swap

    async def check(self, slot: SlotId, leaving: Collection[SlotId]) -> None:
        try:
            await self._see_version()
        except ControlFailed as failed:
            await self._see_startable(failed, _WHAT_TO_DO)

    async def start(self, slot: SlotId) -> None:
        began_at = time.monotonic()
        await self._bring_up()
        try:
            await self._see_version()
        except ControlFailed as failed:
            raise self._cannot_start(unanswered(failed, _WHAT_TO_DO)) from failed
        path = self._settings.ready_path or self._settings.health_path
        await see_ready(self._client, self._settings, path, began_at)
        if self._settings.warmup and self._warmup_model is not None:
            await self._warm_up(self._warmup_model)
        self._watch.begin(slot)

    async def _see_version(self) -> None:
        said = await self._client.get(_VERSION, timeout_s=self._settings.ready_probe_timeout_s)
        said.raise_problem()
        if not isinstance(said.document, dict) or "version" not in said.document:
            raise ControlFailed(f"{said.url} tells no version: {said.body[:80]!r}", is_mistaken=True)

    async def stop(self, slot: SlotId) -> None:
        self._watch.end()
        began_at, limit_s = time.monotonic(), self._settings.unload_timeout_s
        try:
            running = await self._running()
            complaints = [await self._unload(model, limit_s) for model in running]
            if any(complaints):
                await self._ask_cli(running, limit_s / 2)
            has_asked_cli = any(complaints)
            while running:
                elapsed_s = time.monotonic() - began_at
                if elapsed_s >= limit_s:
                    why = f" ({'; '.join(filter(None, complaints))})" if any(complaints) else ""
                    names = ", ".join(running)
                    raise self._cannot_free(f"still in its memory after {limit_s:g} s: {names}{why}")
                if elapsed_s >= limit_s / 2 and not has_asked_cli:
                    has_asked_cli = True
                    await self._ask_cli(running, limit_s / 2)
                await asyncio.sleep(gap_s(elapsed_s))
                running = await self._running()
        except ControlFailed as failed:
            if not failed.is_absent:  # no daemon, nothing in its memory
                raise self._cannot_free(failed.sentence) from failed

    async def _running(self) -> list[str]:
        return ollama_running(await self._client.get("/api/ps", timeout_s=LIST_TIMEOUT_S))

    async def _unload(self, model: str, timeout_s: float) -> str:
        """Ask for it. Gives what went wrong, or nothing."""
        body = {"model": model, "keep_alive": 0, "stream": False}
        try:
            said = await self._client.ask("POST", "/api/generate", body=body, timeout_s=min(timeout_s, LIST_TIMEOUT_S))
            said.raise_problem()
        except ControlFailed as failed:
            return failed.sentence
        return ""

    async def _ask_cli(self, models: Sequence[str], timeout_s: float) -> None:
        """`ollama stop` for each, where that program is to be had. What comes of it `/api/ps` shows."""
        program = await asyncio.to_thread(shutil.which, "ollama")
        if program is None:
            return
        environment = {name: os.environ[name] for name in _PASSED_TO_CLI if name in os.environ}
        environment["OLLAMA_HOST"] = self._base_url
        try:
            async with asyncio.timeout(timeout_s):
                for model in models:
                    log.info("engine %r: asking `ollama stop %s`", self.name, printable(model))
                    await _run((program, "stop", model), environment)
        except (TimeoutError, OSError) as error:
            log.warning("engine %r: `ollama stop` did not work: %s", self.name, error or "no end in time")

    # --- what is there

    async def _loaded_slots(self) -> list[SlotId]:
        return [SlotId(self.name)] if await self._running() else []

    @property
    def loads_on_request(self) -> bool:
        return True

    async def claimed(self, slot: SlotId) -> Claim | None:
        try:
            return ollama_claim(await self._client.get("/api/ps", timeout_s=CLAIM_TIMEOUT_S))
        except ControlFailed:
            return None

    async def list_models(self) -> Listing:
        """What `/api/tags` lists, and what `/api/show` says of each. Raises ControlFailed."""
        listing = known_models(await self._client.get("/api/tags", timeout_s=LIST_TIMEOUT_S))
        return await self._shown.completed(listing, self.show)

    async def show(self, model: str) -> dict[str, Any] | None:
        """What `/api/show` says: it reads files and loads nothing."""
        try:
            said = await self._client.ask("POST", "/api/show", body={"model": model}, timeout_s=SHOW_TIMEOUT_S)
            said.raise_problem()
        except ControlFailed:
            return None
        return said.document if isinstance(said.document, dict) else None

    async def running(self) -> list[dict[str, Any]]:
        """The entries of `/api/ps` for people to see; what is freed, `_running` says."""
        try:
            said = await self._client.get("/api/ps", timeout_s=SHOW_TIMEOUT_S)
            said.raise_problem()
        except ControlFailed:
            return []
        listed = said.document.get("models") if isinstance(said.document, dict) else None
        return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


async def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    """Run a program to its end; one that is not waited for any more is killed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
