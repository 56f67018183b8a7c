"""Asking an engine to sleep and to wake, and seeing whether it does: vLLM's way, over HTTP.

An answer of 200 is not yet sleep: where the engine has `is_sleeping` beside its sleep path, that is what counts.
`/health` says nothing here, for it stays 200 in sleep.
"""

from __future__ import annotations

from enginerouter.engines.probe import Prober

_LOOK_TIMEOUT_S = 5.0


def state_path(sleep_path: str) -> str:
    """`/sleep?level=1` → `/is_sleeping`, also below a prefix."""
    return sleep_path.partition("?")[0].rpartition("/")[0] + "/is_sleeping"


async def is_asleep(prober: Prober, address: str, sleep_path: str) -> bool | None:
    """None where the engine does not say."""
    reply = await prober.call("GET", address + state_path(sleep_path), timeout_s=_LOOK_TIMEOUT_S)
    said = reply.document.get("is_sleeping") if reply.is_ok and isinstance(reply.document, dict) else None
    return said if isinstance(said, bool) else None


async def send_to_sleep(prober: Prober, address: str, sleep_path: str, timeout_s: float) -> str:
    """Why it does not sleep now; "" if it does, or said so and cannot be asked."""
    reply = await prober.call("POST", address + sleep_path, timeout_s=timeout_s)
    if not reply.is_ok:
        return f"{sleep_path} answered {reply.saw}"
    if await is_asleep(prober, address, sleep_path) is False:
        return f"{sleep_path} answered {reply.saw}, but it is awake"
    return ""


async def wake(prober: Prober, address: str, sleep_path: str, wake_path: str, timeout_s: float) -> str:
    """Why it is not awake now; "" if it is, or said so and cannot be asked."""
    reply = await prober.call("POST", address + wake_path, timeout_s=timeout_s)
    if not reply.is_ok:
        return f"{wake_path} answered {reply.saw}"
    if await is_asleep(prober, address, sleep_path) is True:
        return f"{wake_path} answered {reply.saw}, but it still sleeps"
    return ""
