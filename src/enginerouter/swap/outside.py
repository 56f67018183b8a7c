"""What others have loaded behind the router's back, looked for before a swap, a hold or an unload.

A server that runs on its own (Ollama, LM Studio, a unit that somebody starts) may hold memory of slots that are cold
here. Each such server is asked, all at once and for a short time; one that does not answer in it is named and passed
over, because nothing of it has been seen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from enginerouter.engines.base import Engine, Found, SharedServer
from enginerouter.errors import FreeFailed
from enginerouter.slots import SlotId
from enginerouter.swap.model import Lane
from enginerouter.swap.phases import Phase

log = logging.getLogger(__name__)

LOOK_TIMEOUT_S = 1.0


def to_ask(lane: Lane, engines: Mapping[str, Engine]) -> list[SharedServer]:
    """The servers of a lane that hold nothing as far as is known: all their slots are cold."""
    if not lane.is_shared:
        return []
    busy = {s.id.engine for s in lane.slots.values() if s.phase is not Phase.COLD}
    names = dict.fromkeys(s.engine for s in lane.slots if s.engine not in busy)
    return [server for name in names if isinstance(server := engines[name], SharedServer)]


async def look(servers: list[SharedServer], target: SlotId | None) -> list[Found]:
    """What is there now, but for the target itself: its start takes that over as it is."""
    found: list[Found] = []
    answers = await asyncio.gather(*(_ask(server) for server in servers), return_exceptions=True)
    for server, said in zip(servers, answers, strict=True):
        if isinstance(said, BaseException):
            log.error("looking at engine %r broke", server.name, exc_info=said)
        else:
            found += [one for one in said if one.slot != target]
    return found


async def _ask(server: SharedServer) -> list[Found]:
    try:
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            return await server.in_memory()
    except TimeoutError:
        log.warning("engine %r does not say within %g s what it has in memory", server.name, LOOK_TIMEOUT_S)
    except FreeFailed as error:
        log.warning("%s", error.message)
    return []
