"""Status as answers show it, out of what the swap and the cache know: plain functions that give typed objects."""

from __future__ import annotations

from collections.abc import Collection

from enginerouter.cache.answers import AnswerCache
from enginerouter.slots import SlotId
from enginerouter.swap.hold import Hold
from enginerouter.swap.memory import ChosenSource, Device
from enginerouter.swap.model import Learned, Slot, Swap
from enginerouter.web.shapes import control as shapes


def slot_status(slot: Slot, now: float, *, models: list[str], eta_s: float, is_admin: bool) -> shapes.SlotStatus:
    """Who waits, and why a start failed, only an admin key sees."""
    status: shapes.SlotStatus = {
        "slot": str(slot.id),
        "engine": slot.id.engine,
        "models": models,
        "phase": slot.phase.value,
        "phase_s": round(now - slot.phase_since, 1) if slot.phase_since else None,
        "in_flight": len(slot.leases),
        "queued": len(slot.queue),
        "is_pinned": slot.spec.is_pinned,
        "is_remote": not slot.spec.is_swapped,
        "asleep_bytes": slot.kept_bytes if slot.is_asleep else None,
        "is_outdated": slot.is_outdated,
        "eta_s": round(eta_s, 1),
        "learned": _learned(slot.learned),
    }
    if is_admin and slot.queue:
        status["waiting"] = _waiting(slot, now)
    if slot.circuit.failures:
        left = slot.circuit.open_until - now
        status["start_circuit"] = {
            "failures": slot.circuit.failures,
            "open_for_s": round(left, 1) if left > 0 else 0,
            "reason": slot.circuit.reason if is_admin else None,
        }
    return status


def _learned(learned: Learned) -> shapes.Learned:
    return {
        "start_s": learned.start_s,
        "held_bytes": learned.held_bytes,
        "came_back_bytes": learned.came_back_bytes,
    }


def _waiting(slot: Slot, now: float) -> list[shapes.Waiter]:
    """Who waits for a slot, by the names of keys, whoever came first first."""
    since: dict[str, list[float]] = {}
    for ticket in sorted(slot.queue, key=lambda t: t.arrived_at):
        since.setdefault(ticket.key, []).append(ticket.arrived_at)
    return [{"key": key, "count": len(times), "longest_s": round(now - times[0], 1)} for key, times in since.items()]


def is_shown(swap: Swap, shown: Collection[SlotId]) -> bool:
    target = swap.plan.target
    return target in shown if target is not None else any(s in shown for s in swap.plan.victims)


def swap_status(swap: Swap, now: float, shown: Collection[SlotId]) -> shapes.SwapRunning:
    return {
        "target": str(swap.plan.target) if swap.plan.target is not None else None,
        "reason": swap.plan.reason,
        "step": swap.step,
        "step_s": round(now - swap.step_since, 2),
        "total_s": round(now - swap.began_at, 2),
        "freed": [str(s) for s in swap.freed if s in shown],
        "seconds": {k: round(v, 3) for k, v in swap.seconds.items()},
    }


def hold_status(hold: Hold | None, now: float) -> shapes.HoldStatus | None:
    if hold is None:
        return None
    return {
        "owner": hold.owner,
        "mode": hold.mode,
        "is_free": hold.is_free,
        "since_s": round(now - hold.began_at, 1),
        "expires_in_s": None if hold.expires_at is None else round(max(0.0, hold.expires_at - now), 1),
    }


def memory_status(memory: ChosenSource) -> shapes.Memory:
    status: shapes.Memory = {
        "source": memory.name,
        "why": memory.why,
        "available_bytes": memory.available(),
        "devices": [_device(device) for device in memory.devices()],
    }
    if memory.problem:
        status["problem"] = memory.problem
    return status


def _device(device: Device) -> shapes.Device:
    return {
        "name": device.name,
        "total_bytes": device.total_bytes,
        "available_bytes": device.available_bytes,
        "is_unified": device.is_unified,
        "problem": device.problem,
    }


def cache_status(cache: AnswerCache | None) -> shapes.CacheStatus | None:
    if cache is None:
        return None
    state = cache.state()
    return {
        "name": state.name,
        "is_up": state.is_up,
        "entries": state.entries,
        "bytes": state.bytes,
        "hits": cache.hits,
        "misses": cache.misses,
        "hit_bytes": cache.hit_bytes,
    }
