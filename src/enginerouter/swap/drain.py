"""One look at a drain: who may still be waited for, who is cut, or whether the swap is called off. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from enginerouter.swap.model import DrainPolicy, Lease


@dataclass(slots=True)
class DrainLook:
    """`cut` these leases now; `is_refused`: call the swap off; look again at `next_look` (None: on events only)."""

    cut: list[Lease] = field(default_factory=list)
    is_refused: bool = False
    next_look: float | None = None


def look(leases: Iterable[Lease], began_at: float, now: float, *, policy: DrainPolicy, timeout_s: float) -> DrainLook:
    """Apply `on_drain_timeout` to the leases of the draining slots.

    wait: a lease that still receives bytes is waited for, one silent for `timeout_s` (of this drain) is cut.
    cut: all are cut at the deadline. refuse: at the deadline the swap is called off, nothing is cut.
    """
    open_leases = [lease for lease in leases if lease.cut_error is None]
    if not open_leases:
        return DrainLook()
    if policy == "wait":
        deadlines = {lease: max(lease.last_byte_at, began_at) + timeout_s for lease in open_leases}
        cut = [lease for lease, deadline in deadlines.items() if deadline <= now]
        rest = [deadline for deadline in deadlines.values() if deadline > now]
        return DrainLook(cut=cut, next_look=min(rest, default=None))
    deadline = began_at + timeout_s
    if deadline > now:
        return DrainLook(next_look=deadline)
    return DrainLook(is_refused=True) if policy == "refuse" else DrainLook(cut=open_leases)
