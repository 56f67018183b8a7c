"""The engine that is somebody else's: a provider, or another box. Always ready, holds nothing here, never swapped.

Requests go to `base_url` by one rule (`addresses.joined`): a base that ends in a version or `openai`
(`https://openrouter.ai/api/v1`, `https://generativelanguage.googleapis.com/v1beta/openai`) gets the operation only,
any other gets the whole path.
"""

from __future__ import annotations

from collections.abc import Collection

from enginerouter.addresses import joined
from enginerouter.config.engines import EngineSettings, Remote
from enginerouter.engines.base import OnExit
from enginerouter.engines.http_control import ControlClient
from enginerouter.engines.loaded import Listing, known_models
from enginerouter.errors import Unconfigured
from enginerouter.slots import SlotId

LIST_TIMEOUT_S = 5.0


class RemoteEngine:
    """See `engines.base.Engine`."""

    def __init__(self, settings: Remote) -> None:
        self._base_url = (settings.base_url or "").rstrip("/")
        self._client = ControlClient(self._base_url, {}, None)
        self.configure(settings)

    def configure(
        self, settings: EngineSettings, *, warmup_model: str | None = None, models: Collection[str] = ()
    ) -> None:
        self._settings = settings
        self._client.configure(dict(settings.headers) | dict(settings.control_headers), settings.api_key)

    @property
    def name(self) -> str:
        return self._settings.name

    def address(self, slot: SlotId) -> str:
        return self._base_url

    def watch(self, on_exit: OnExit) -> None:
        pass

    async def check(self, slot: SlotId, leaving: Collection[SlotId]) -> None:
        if self._settings.unconfigured:
            variable = self._settings.api_key_env
            what = f"the environment variable {variable} is not set or empty" if variable else "its api_key is empty"
            raise Unconfigured(f"engine {self.name!r} has no key: {what}; set it and restart the router")

    async def start(self, slot: SlotId) -> None:
        await self.check(slot, ())

    async def stop(self, slot: SlotId) -> None:
        pass

    async def held_bytes(self, slot: SlotId) -> int | None:
        return 0

    async def stopped_state(self, slot: SlotId) -> str | None:
        return None

    async def adopt(self) -> list[SlotId]:
        return []

    async def close(self) -> None:
        await self._client.close()

    async def list_models(self) -> Listing:
        """Raises ControlFailed."""
        path = joined(self._base_url, "/v1/models").removeprefix(self._base_url)
        return known_models(await self._client.get(path, timeout_s=LIST_TIMEOUT_S))
