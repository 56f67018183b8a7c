"""Whether anybody still listens for a slot whose own process lives on.

What was launched may outlive what serves: a shell script that waits for something else, a unit that stays active
after its program has ended (`RemainAfterExit=`). Its end is then seen by nobody – but at its port. And a process may
close its port and live.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from enginerouter.engines import ports, proctree
from enginerouter.engines.starting import Place

LOOK_EVERY_S = 2.0


async def has_fallen_silent(
    place: Place, listened: Collection[int], listens_there: Callable[[], Awaitable[bool | None]]
) -> bool:
    """Whether nobody of its own listens any more: those who did are gone, or have closed the port.

    Costs a look at the table of sockets, and while they listen one at their descriptors. Others of its tree may follow
    them: a worker is replaced. A stranger at the port serves nothing here. Who has closed its port may be answering
    what it has begun, and is silent only once nobody is connected any more.
    """
    alive = [pid for pid in listened if proctree.is_running(pid)]
    are_serving = await asyncio.to_thread(_are_serving, place.host, place.port, alive) if alive else False
    if are_serving:
        return False
    said = await listens_there()
    if said is None:
        return await asyncio.to_thread(ports.holder_of, place.host, place.port) is None
    return not said


def _are_serving(host: str, port: int, pids: Collection[int]) -> bool:
    """Blocks."""
    local = [address for address in ports.resolve(host, port) if ports.is_local(address)]
    listening = ports.receivers(ports.listeners(port), local)
    return bool(ports.pids_of(listening, pids)) or (not listening and ports.is_connected(port))
