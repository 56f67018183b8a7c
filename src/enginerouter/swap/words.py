"""What the swap says to people: progress, reasons, the line in the log. Plain functions."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from enginerouter.errors import NoLongerConfigured, Pinned, StartCircuitOpen
from enginerouter.slots import SlotId
from enginerouter.swap.model import Lane, Slot, SwapReport

log = logging.getLogger(__name__)


def progress(slot: Slot, lane: Lane, now: float) -> str:
    """What a waiter for the slot is waiting for: `swap starting llama 12s`, `queued qwen behind llama 3s`."""
    swap = lane.swap
    if lane.hold is not None:
        since = slot.queue[0].arrived_at if slot.queue else now
        return f"queued {slot.id}, memory is held by {lane.hold.owner} {now - since:.0f}s"
    if swap is not None and swap.plan.target == slot.id:
        return f"swap {swap.step} {slot.id} {now - swap.step_since:.0f}s"
    if lane.settles_since is not None:
        return f"swap settling {slot.id} {now - lane.settles_since:.0f}s"
    if slot.is_outdated:
        since = slot.queue[0].arrived_at if slot.queue else now
        running = len(slot.leases)
        return f"queued {slot.id}, whose configuration has changed, behind {running} of its answers {now - since:.0f}s"
    ahead = swap.plan.target if swap is not None and swap.plan.target is not None else None
    behind = ahead or next((s.id for s in lane.residents()), None)
    oldest = slot.queue[0].arrived_at if slot.queue else now
    return f"queued {slot.id} behind {behind} {now - oldest:.0f}s" if behind else f"queued {slot.id}"


def removed(slot_id: SlotId) -> NoLongerConfigured:
    return NoLongerConfigured(
        f"{slot_id} is no longer there: the configuration was reloaded without it; ask again for what there is now",
        retry_after_s=1,
    )


def circuit_open(slot: Slot, now: float) -> StartCircuitOpen:
    wait = slot.circuit.open_until - now
    return StartCircuitOpen(
        f"{slot.id} failed {slot.circuit.failures} times in a row, at its start or within a minute of it, and is left "
        f"alone for another "
        f"{wait:.0f} s; the last time: {slot.circuit.reason} – POST /admin/reset tries it at once",
        retry_after_s=wait,
    )


def pinned(slot: Slot, pinned: Iterable[Slot]) -> Pinned:
    names = ", ".join(str(s.id) for s in pinned)
    return Pinned(
        f"{slot.id} cannot be loaded: {names} is pinned in memory; unload it first "
        "(POST /admin/unload) or take the pin out of the configuration"
    )


def log_report(report: SwapReport) -> None:
    steps = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report.seconds.items())
    freed = ", ".join(map(str, report.freed)) or "nothing"
    level = logging.INFO if report.result in ("ok", "called_off", "ended") else logging.WARNING
    what = f"swap to {report.plan.target}" if report.plan.target else f"unload ({report.plan.reason})"
    log.log(
        level, "%s: %s after %.2f s – freed %s; %s%s",
        what, report.result, report.total_s, freed, steps, f"; {report.error}" if report.error else "",
    )  # fmt: skip
