"""What engines have in common that are servers reached over HTTP and that the router does not launch.

The server is somebody else's: it is watched by asking, never stopped, and what it holds only its own lists tell. One
whose configuration names a systemd unit is brought up where nobody listens at its address; no other way to start it
is known.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from enginerouter.config.engines import ApiSwap, Ollama
from enginerouter.engines.base import OnExit
from enginerouter.engines.daemon_unit import DaemonUnit, is_here
from enginerouter.engines.http_control import ControlClient, ControlFailed
from enginerouter.engines.probe import Prober
from enginerouter.engines.server_watch import ServerWatch
from enginerouter.errors import FreeFailed, StartFailed
from enginerouter.slots import SlotId
from enginerouter.tasks import TaskGroup

# A list of models comes at once or not soon.
LIST_TIMEOUT_S = 5.0


class ServerEngine:
    """The half of `engines.base.Engine` that is the same for all. A GET of `alive_path` tells whether it is there."""

    def __init__(self, settings: ApiSwap | Ollama, alive_path: str) -> None:
        self._name = settings.name
        self._alive_path = alive_path
        self._start_timeout_s = settings.start_timeout_s
        self._base_url = (settings.base_url or "").rstrip("/")
        self._client = ControlClient(self._base_url, settings.control_headers, settings.api_key)
        self._prober = Prober(settings.control_headers, settings.api_key)
        self._tasks = TaskGroup()
        self._watch = ServerWatch(settings.name, self._refusal, self._tasks)
        self._trusts_local = settings.trust_local
        unit = settings.systemd_unit
        self._unit = DaemonUnit(settings.name, unit, settings.systemd_scope) if unit is not None else None

    @property
    def name(self) -> str:
        return self._name

    def address(self, slot: SlotId) -> str:
        return self._base_url

    def watch(self, on_exit: OnExit) -> None:
        self._watch.on_exit = on_exit

    async def close(self) -> None:
        await self._tasks.close()
        await self._client.close()
        await self._prober.close()

    async def held_bytes(self, slot: SlotId) -> int | None:
        return None

    async def stopped_state(self, slot: SlotId) -> str | None:
        return await self._refusal()

    async def _refusal(self) -> str | None:
        """The sentence of a refused connection; None for every other outcome."""
        try:
            await self._client.get(self._alive_path, timeout_s=LIST_TIMEOUT_S)
        except ControlFailed as failed:
            return failed.sentence if failed.is_refused else None
        return None

    # --- its unit

    async def _see_startable(self, failed: ControlFailed, what_to_do: str) -> None:
        """The server does not answer: nothing, if its unit can start it. Raises StartFailed. Starts nothing."""
        why_not = ""
        if failed.is_refused and self._unit is not None and await self._is_here():
            problem = await self._unit.why_not()
            if problem is None:
                return
            why_not = f", and {problem}"
        raise self._cannot_start(f"its server does not answer: {failed.sentence}{why_not}; {what_to_do}") from failed

    async def _bring_up(self) -> bool:
        """Start the unit, if there is one and nobody listens. Gives whether it did. Raises as `DaemonUnit.bring_up`."""
        if self._unit is None or await self._refusal() is None or not await self._is_here():
            return False
        await self._unit.bring_up(self._refusal, self._start_timeout_s)
        return True

    async def _is_here(self) -> bool:
        """A unit of this machine's systemd says nothing of a server elsewhere."""
        if self._trusts_local:
            return True
        url = urlsplit(self._base_url)
        return await is_here(url.hostname or "", url.port or 80)

    # --- errors

    def _cannot_start(self, why: str) -> StartFailed:
        return StartFailed(self.name, f"engine {self.name!r} cannot be started: {why}")

    def _cannot_free(self, why: str) -> FreeFailed:
        return FreeFailed(self.name, f"engine {self.name!r} could not be freed: {why}")

    def _cannot_be_seen(self, failed: ControlFailed) -> FreeFailed:
        """At start-up, of a list that cannot be had: nothing may be started on top of what is perhaps there."""
        return self._cannot_free(f"what it has in memory cannot be seen: {failed.sentence}")
