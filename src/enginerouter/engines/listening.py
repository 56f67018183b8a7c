"""Whether anybody still listens for a slot whose own process lives on.

What was launched may outlive what serves: a shell script that waits for something else, a unit that stays active
after its program has ended (`RemainAfterExit=`). Its end is then seen by nobody – but at its port.
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
    """Whether those who listened are gone and nobody of its own has taken their place.

    Costs a look at each of their processes while one of them lives. Others of its tree may follow them: a worker is
    replaced. A stranger at the port serves nothing here.
    """
    if any(_is_alive(pid) for pid in listened):
        return False
    said = await listens_there()
    if said is None:
        return await asyncio.to_thread(ports.holder_of, place.host, place.port) is None
    return not said


def _is_alive(pid: int) -> bool:
    info = proctree.read_process(pid, with_marker=False)
    return info is not None and info.is_alive
