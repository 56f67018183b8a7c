"""What engines have in common that are servers reached over HTTP and that the router does not launch.

The server is somebody else's: it is watched by asking, never stopped, and what it holds only its own lists tell. One
whose configuration names a systemd unit is brought up where nobody listens at its address; no other way to start it
is known.
"""

from __future__ import annotations

import logging
from urllib.parse import urlsplit

from enginerouter.config.engines import ApiSwap, Ollama
from enginerouter.engines.base import Claim, Found, OnExit
from enginerouter.engines.daemon_unit import DaemonUnit, is_here
from enginerouter.engines.http_control import ControlClient, ControlFailed
from enginerouter.engines.probe import warm_up
from enginerouter.engines.server_watch import ServerWatch
from enginerouter.errors import FreeFailed, StartFailed
from enginerouter.slots import SlotId
from enginerouter.tasks import TaskGroup

log = logging.getLogger(__name__)

# A list of models comes at once or not soon.
LIST_TIMEOUT_S = 5.0


class ServerEngine:
    """The half of `engines.base.Engine` that is the same for all. A GET of `alive_path` tells whether it is there."""

    def __init__(self, settings: ApiSwap | Ollama, alive_path: str) -> None:
        self._name = settings.name
        self._base_url = (settings.base_url or "").rstrip("/")
        self._client = ControlClient(self._base_url, {}, None)
        self._tasks = TaskGroup()
        self._watch = ServerWatch(settings.name, self._refusal, self._tasks, self._unloaded)
        self._go_by(settings, alive_path)

    def _go_by(self, settings: ApiSwap | Ollama, alive_path: str) -> None:
        """The half of `Engine.configure` that is the same for all."""
        self._alive_path = alive_path
        self._start_timeout_s = settings.start_timeout_s
        self._client.configure(settings.control_headers, settings.api_key)
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

    async def held_bytes(self, slot: SlotId) -> int | None:
        return None

    async def claimed(self, slot: SlotId) -> Claim | None:
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

    async def _unloaded(self, slot: SlotId) -> str | None:
        """Why the slot is in memory no more although its server runs; None where it is, or where that is not told."""
        return None

    async def _warm_up(self, model: str) -> None:
        reply = await warm_up(self._client, "", model, self._start_timeout_s)
        log.info("engine %r: warm-up: %s", self.name, reply.outcome)

    # --- what is there already

    async def in_memory(self) -> list[Found]:
        """See `engines.base.SharedServer`."""
        try:
            slots = await self._loaded_slots()
        except ControlFailed as failed:
            if failed.is_unconnected or failed.is_mistaken:
                return []
            raise self._cannot_be_seen(failed) from failed
        if slots:
            self._watch.begin(slots[0])
        return [Found(slot) for slot in slots]

    async def adopt(self) -> list[SlotId]:
        """What is loaded when the router starts is the resident slot, whoever loaded it.

        Where no such server answers nothing of it is in memory; it is named, and so is its error, when it is used.
        """
        try:
            slots = await self._loaded_slots()
        except ControlFailed as failed:
            if failed.is_refused:
                return []
            if failed.is_unconnected or failed.is_mistaken:
                log.warning("%s", self._cannot_start(unanswered(failed, "start that server")).message)
                return []
            raise self._cannot_be_seen(failed) from failed
        if slots:
            self._watch.begin(slots[0])
        return slots

    async def _loaded_slots(self) -> list[SlotId]:
        """The slot of what its server has in memory, or none. Raises ControlFailed."""
        raise NotImplementedError

    # --- its unit

    async def _see_startable(self, failed: ControlFailed, what_to_do: str) -> None:
        """The server does not answer: nothing, if its unit can start it. Raises StartFailed. Starts nothing."""
        why_not = ""
        if failed.is_refused and self._unit is not None and await self._is_here():
            problem = await self._unit.why_not()
            if problem is None:
                return
            why_not = f", and {problem}"
        raise self._cannot_start(unanswered(failed, what_to_do, why_not)) from failed

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
        return self._cannot_free(
            f"what it has in memory cannot be seen: {failed.sentence}; restart that server, stop it (what does not run "
            "counts as free), or take the engine out of the configuration"
        )


def unanswered(failed: ControlFailed, what_to_do: str, why_not: str = "") -> str:
    """What is wrong with a server that should serve, and what to do. `what_to_do`: how it is started."""
    if failed.is_mistaken:
        return (
            f"what answers there is not the server that is configured: {failed.sentence}; correct `base_url`, a path "
            "or a key of this engine, or end what listens there"
        )
    if failed.is_unconnected:
        return f"its server does not run: {failed.sentence}{why_not}; {what_to_do}, or correct `base_url`"
    if not failed.has_ended:
        return (
            f"its server does not answer in time: {failed.sentence}; it may be busy: try again, raise "
            "`ready_probe_timeout_s`, or restart it"
        )
    return f"its server is in trouble: {failed.sentence}; look at its log, or restart it"
