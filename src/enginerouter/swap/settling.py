"""The settle wait: memory is read until the rule in `settle` says that it is back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from enginerouter.swap.held import describe, is_off_devices
from enginerouter.swap.memory import MemorySource
from enginerouter.swap.settle import READ_EVERY_S, Question, Reading, Settled, Verdict, verdict

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owed:
    """What is waited for. `pids` are the ended processes: as long as the cards list one, not all is gone.

    The rest as in `settle.Question`, but that `before` is None where it could not be read.
    """

    before: int | None
    held: int | None
    need: int | None = None
    pids: Collection[int] = ()
    is_partial: bool = False
    is_bound: bool = False


async def wait_settled(owed: Owed, source: MemorySource, timeout_s: float, now: Callable[[], float]) -> Settled:
    began_at = now()
    if source.name == "none" or timeout_s <= 0:
        return Settled(Verdict.OFF, 0.0, None, owed.held)
    readings: list[Reading] = []
    while True:
        await source.refresh()
        at, available = now(), source.available()
        if available is None or owed.before is None:
            return Settled(Verdict.UNREADABLE, at - began_at, None, owed.held)
        readings.append(Reading(at, available))
        question = Question(
            owed.before,
            owed.held,
            owed.need,
            is_gone=is_off_devices(owed.pids, source.processes()),
            timeout_s=timeout_s,
            is_partial=owed.is_partial,
            is_bound=owed.is_bound,
        )
        if said := verdict(readings, question):
            return Settled(said, at - began_at, max(0, available - owed.before), owed.held)
        await asyncio.sleep(READ_EVERY_S)


def log_settled(names: str, settled: Settled, source: MemorySource) -> None:
    problem = source.problem if settled.verdict is Verdict.UNREADABLE else ""
    level = logging.WARNING if settled.verdict in (Verdict.TIMEOUT, Verdict.UNREADABLE) else logging.INFO
    log.log(level, "memory of %s: %s%s", names, describe(settled), f": {problem}" if problem else "")
