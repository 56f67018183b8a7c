"""The background loop: readings of memory for the moment of a crash, and engines that hold a request in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

from enginerouter.engines.base import Engine
from enginerouter.errors import EngineStalled, RouterError
from enginerouter.swap.memory import MemorySource
from enginerouter.swap.model import Rules, Slot
from enginerouter.swap.phases import Phase

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
# Asking a card costs a process: where nobody is served, what was free before a crash may be known less exactly.
IDLE_READ_EVERY_S = 10.0


async def look_after(
    slots: Collection[Slot],
    engines: Mapping[str, Engine],
    memory: MemorySource,
    rules: Callable[[], Rules],
    now: Callable[[], float],
    turned: Callable[[], None],
) -> None:
    """Once a second, for ever. `turned` is called at each turn: the sign that the loop lives.

    Memory is read while a slot serves, once when the last one falls idle, and then only every IDLE_READ_EVERY_S.
    `slots`, `engines` and `rules` are those of the moment: a reload may change them.
    """
    read_at, was_busy = float("-inf"), False
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        turned()
        serving = [s for s in slots if s.phase in (Phase.READY, Phase.DRAINING)]
        is_busy, was_busy = any(s.leases for s in serving) or was_busy, any(s.leases for s in serving)
        if serving and (is_busy or now() - read_at >= IDLE_READ_EVERY_S):
            read_at = now()
            await memory.refresh()
            available = memory.available()
            for slot in [s for s in serving if s.phase in (Phase.READY, Phase.DRAINING)]:
                slot.before_end_bytes = available
        for slot in [s for s in slots if s.leases]:
            try:
                if slot.leases:  # and so its engine is there still
                    await look_at(slot, engines[slot.id.engine], rules(), now())
            except Exception:  # a background task's edge: one bad look does not end the looking
                log.exception("looking at %s broke", slot.id)


async def look_at(slot: Slot, engine: Engine, rules: Rules, now: float) -> None:
    """Cut the leases whose engine has been silent for too long, or is stopped or gone."""
    limit = rules.stall_timeout_s
    if limit is not None:
        stalled = f"{slot.id} sent nothing for {limit:g} s (upstream_stall_timeout_s)"
        for lease in [le for le in slot.leases if now - le.last_byte_at >= limit and not le.waits_for_client]:
            lease.cut(EngineStalled(slot.id.engine, stalled))
    silent = [le for le in slot.leases if now - le.last_byte_at >= rules.frozen_after_s]
    if not silent:
        return
    try:
        state = await engine.stopped_state(slot.id)
    except RouterError as error:
        state = error.message
    if state is not None and slot.phase in (Phase.READY, Phase.DRAINING):
        for lease in silent:
            lease.cut(EngineStalled(slot.id.engine, f"{slot.id} does not answer: {state}"))
