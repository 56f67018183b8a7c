"""The systemd unit behind a server that is always on: started where nobody listens at the server's address.

It is only ever started. A server that runs is not restarted, and none is stopped: it may serve others, too. What its
states mean is in `unit_run`; what the server itself says is the engine's business.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from enginerouter.command import Said
from enginerouter.engines import ports
from enginerouter.engines.probe import gap_s
from enginerouter.engines.starting import with_cause
from enginerouter.engines.systemctl import CALL_TIMEOUT_S, Scope, Systemctl, UnitState
from enginerouter.engines.unit_run import (
    Judgement,
    allowed_restarts,
    autopsy,
    end_in_words,
    judge,
    said_or_state,
    why_not_startable,
)
from enginerouter.errors import StartFailed, StartTimedOut

log = logging.getLogger(__name__)

_SHORTEST_LOOK_S = 0.05

# Asks the server once: the sentence of a refused connection, or None for every other outcome.
Refusal = Callable[[], Awaitable[str | None]]


class DaemonUnit:
    """The unit `unit` of one engine. `call_timeout_s` bounds each call of `systemctl`."""

    def __init__(self, engine: str, unit: str, scope: Scope, *, call_timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._engine = engine
        self._unit = unit
        self._systemctl = Systemctl(unit, scope, timeout_s=call_timeout_s)

    async def why_not(self) -> str | None:
        """Why it could not start the server, in words; None if it could. Starts nothing."""
        if (problem := await self._systemctl.missing_manager()) is not None:
            return f"its unit {self._unit!r} cannot start it: {problem}"
        said = await self._systemctl.show()
        if isinstance(said, Said):
            return f"its unit {self._unit!r} cannot start it: {said.problem()}"
        problem = why_not_startable(said, self._unit, self._systemctl.scope)
        return f"its unit {self._unit!r} {problem}" if problem is not None else None

    async def bring_up(self, refusal: Refusal, limit_s: float) -> None:
        """Start it and wait until somebody listens. Raises StartFailed, or StartTimedOut after `limit_s`."""
        began_at, since = time.monotonic(), time.time()
        before = await self._systemctl.show()
        if isinstance(before, Said):
            raise self._failed(f"could not be started: {before.problem()}")
        log.info("engine %r: nobody listens at its address: starting unit %r", self._engine, self._unit)
        if before.is_down:
            # Forgets how often it was started lately: no reason for systemd to refuse.
            await self._systemctl.reset_failed()
        await self._start()
        allowed, seen = allowed_restarts(before), None
        while (refused := await refusal()) is not None:
            state = await self._systemctl.show()
            if isinstance(state, UnitState):
                judgement = judge(state, allowed, seen)
                if judgement is Judgement.ENDED:
                    raise await self._ended(state, since)
                seen = state if judgement is Judgement.UP else seen
            elapsed_s = time.monotonic() - began_at
            if elapsed_s >= limit_s:
                raise StartTimedOut(
                    self._engine,
                    f"engine {self._engine!r} did not start in time: {said_or_state(state)} of its unit "
                    f"{self._unit!r}, but {refused} for {elapsed_s:.0f} s",
                )
            await asyncio.sleep(max(_SHORTEST_LOOK_S, gap_s(elapsed_s)))
        log.info("engine %r: its server is up after %.1f s", self._engine, time.monotonic() - began_at)

    async def _start(self) -> None:
        """As ourselves; for a unit of the system, where that is not allowed, as root if `sudo` asks for nothing."""
        said = await self._systemctl.start()
        if said.is_ok:
            return
        problem = said.problem()
        if self._systemctl.needs_root and not said.hung:
            said = await self._systemctl.start_as_root()
            if said.is_ok:
                return
            problem = f"{problem}; {said.problem()}"
        raise self._failed(f"could not be started: {problem}")

    async def _ended(self, state: UnitState, since: float) -> StartFailed:
        cause, detail = await autopsy(self._systemctl, state, since)
        failed = self._failed(with_cause(end_in_words(state), cause))
        failed.cause = cause.code if cause is not None else None
        failed.admin_detail = detail
        return failed

    def _failed(self, what: str) -> StartFailed:
        return StartFailed(self._engine, f"engine {self._engine!r} cannot be started: its unit {self._unit!r} {what}")


async def is_here(host: str, port: int) -> bool:
    """Whether a host is this machine, whose systemd is the one that we can ask."""
    return await asyncio.to_thread(_is_here, host, port)


def _is_here(host: str, port: int) -> bool:
    addresses = ports.resolve(host, port)
    return bool(addresses) and all(map(ports.is_local, addresses))
