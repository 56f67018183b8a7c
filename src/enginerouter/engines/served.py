"""The models of an engine that is a process of this machine: asked while it is ready, read off its command otherwise.

It is never started for that, and its port is not touched while it is not ours to be asked.
"""

from __future__ import annotations

from collections.abc import Callable

from enginerouter.config.engines import EngineSettings, GenericProcess, SystemdUnit
from enginerouter.engines.commandline import model_ids
from enginerouter.engines.http_control import ControlClient
from enginerouter.engines.loaded import Listing, known_models

LIST_TIMEOUT_S = 5.0


def is_process(settings: EngineSettings) -> bool:
    """Whether an engine's models can be read off a command, and asked for while it runs. Profiles say theirs."""
    if isinstance(settings, GenericProcess):
        return not settings.profiles
    return isinstance(settings, SystemdUnit)


class ProcessModels:
    """See `discovery.ListsModels`. `ready_address` gives the base URL while the engine is ready, else None."""

    def __init__(self, settings: EngineSettings, ready_address: Callable[[], str | None]) -> None:
        self._settings = settings
        self._ready_address = ready_address
        self._seen: tuple[str, ...] = ()

    def recall(self, seen: tuple[str, ...]) -> None:
        """What it listed when it ran last."""
        self._seen = seen

    @property
    def told(self) -> tuple[str, ...]:
        """What its command line says."""
        return model_ids(self._settings.start_cmd) if isinstance(self._settings, GenericProcess) else ()

    async def list_models(self) -> Listing:
        """Raises ControlFailed if it is ready and does not say."""
        address = self._ready_address()
        if address is not None:
            client = ControlClient(address, self._settings.control_headers, self._settings.api_key)
            try:
                listing = known_models(await client.get("/v1/models", timeout_s=LIST_TIMEOUT_S))
            finally:
                await client.close()
            self._seen = listing.ids
        return Listing(tuple(dict.fromkeys((*self._seen, *self.told))))
