"""What a slot holds, what of it is still missing, and what its settle teaches. Plain functions over plain data."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from enginerouter.swap.memory import Processes
from enginerouter.swap.model import Slot
from enginerouter.swap.phases import NOTHING_TO_DRAIN, Phase
from enginerouter.swap.settle import Settled, Verdict


def largest_known(*estimates: int | None) -> int | None:
    """What a slot holds, from all that is known of it: the largest, or None if nothing is."""
    known = [e for e in estimates if e is not None]
    return max(known) if known else None


def own_bytes(
    host_bytes: int | None, pids: Collection[int], processes: Processes | None, *, counts_host_pages: bool
) -> int | None:
    """What a slot itself has of the pool: its pages where the pool is the host's, else what the cards list for it."""
    return host_bytes if counts_host_pages else device_bytes(pids, processes)


def device_bytes(pids: Collection[int], processes: Processes | None) -> int | None:
    """What the cards list for these processes; None where that cannot be told.

    None also where none is listed: the list may leave out their kind (Vulkan), or count pids of another namespace.
    """
    listed = [processes[pid] for pid in pids if pid in processes] if processes is not None else []
    known = [size for size in listed if size is not None]
    return sum(known) if known and len(known) == len(listed) else None


def is_off_devices(pids: Collection[int], processes: Processes | None) -> bool:
    """Whether none of these ended processes is on the list of the cards any more."""
    return processes is None or not any(pid in processes for pid in pids)


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of one slot's memory just before its end, and of the pool.

    `own_bytes` what it has itself; `claimed_bytes` what its server says; `available` of the pool; `grew_bytes` what
    availability has fallen by since before its start, where it may have taken memory after it was ready.
    """

    own_bytes: int | None = None
    available: int | None = None
    claimed_bytes: int | None = None
    grew_bytes: int | None = None


def grown_since_start(slot: Slot, neighbours: Iterable[Slot], available: int | None) -> int | None:
    """What it may have taken, all told; None where another slot has been started meanwhile, and may have taken it."""
    if any(s is not slot and s.phase is not Phase.COLD and s.ready_at >= slot.ready_at for s in neighbours):
        return None
    return _fall(slot.before_start_bytes, available)


def note_held(slot: Slot, now: Measured) -> None:
    """Note, just before a slot is stopped, what of its memory is still missing from what is available.

    A ready slot: the largest known of its own pages, what came back last time, and (the first time) the drop its start
    made. One that was starting: what availability has fallen by since. One that crashed or would not go: what was
    known of it, less what came back since the last reading before its end. One that sleeps: all that it keeps.
    """
    earlier, slot.before_end_bytes = slot.before_end_bytes, now.available
    if slot.phase is not Phase.STUCK:
        slot.missing_is_bound = False
    if slot.phase is Phase.COLD:
        slot.missing_bytes, slot.drop_bytes = now.own_bytes, None
        return
    if slot.phase is Phase.STARTING:
        drop = _fall(slot.before_start_bytes, now.available)
        slot.missing_bytes = largest_known(now.own_bytes, drop)
        return
    held, is_bound = _held(slot, now)
    if slot.was_unloaded:
        # Most of it is back already. How much is not, availability since before its start says, if anything.
        known = [b for b in (now.grew_bytes, held) if b is not None]
        slot.missing_bytes = min(known) if now.grew_bytes is not None else None
        slot.missing_is_bound, slot.drop_bytes = True, None
        return
    if slot.phase in NOTHING_TO_DRAIN:
        if slot.phase is Phase.STUCK:
            held = largest_known(now.own_bytes, slot.missing_bytes)
        back = _fall(now.available, earlier)
        slot.missing_bytes = now.own_bytes if held is None or back is None else max(now.own_bytes or 0, held - back)
        slot.drop_bytes = None  # what comes back now is only the rest: nothing to learn from
        return
    slot.missing_bytes, slot.missing_is_bound = held, is_bound
    if held is not None:
        slot.learned.held_bytes = now.own_bytes if now.own_bytes is not None else held


def _held(slot: Slot, now: Measured) -> tuple[int | None, bool]:
    """What a slot that served holds, and whether that is only the most it can be.

    Of what was taken after it was ready only a bound can be told, for others take, too. What a server says of its
    models is another, and goes for the models it has now: what came back the last time was of others.
    """
    if now.claimed_bytes is not None:
        grown = largest_known(now.grew_bytes, slot.drop_bytes)
        return (now.claimed_bytes if now.grew_bytes is None else min(now.claimed_bytes, grown or 0)), True
    first_drop = slot.drop_bytes if slot.learned.came_back_bytes is None else None
    known = largest_known(now.own_bytes, slot.learned.came_back_bytes, first_drop)
    if now.own_bytes is not None or now.grew_bytes is None or now.grew_bytes <= (known or 0):
        return known, False
    return now.grew_bytes, True


def note_kept(slot: Slot, kept_bytes: int) -> None:
    """Note, once a slot is freed, what it does not give back: a process that sleeps keeps some of it."""
    if kept_bytes and slot.missing_bytes is not None:
        slot.missing_bytes = max(0, slot.missing_bytes - kept_bytes)


def _fall(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, before - after)


def learn_came_back(slot: Slot, settled: Settled, *, is_alone: bool) -> None:
    """What came back replaces the estimate – where it can be told apart, and was waited for to the end."""
    if not is_alone or settled.came_back is None or slot.drop_bytes is None:
        return
    if settled.verdict is Verdict.RECOVERED:
        # The wait ends a little below the estimate; learning that little less each time would wear it away.
        slot.learned.came_back_bytes = max(settled.came_back, settled.held or 0)
    elif settled.verdict in (Verdict.PLATEAU, Verdict.TIMEOUT):
        slot.learned.came_back_bytes = settled.came_back


def describe(settled: Settled) -> str:
    held = "unknown" if settled.held is None else gib(settled.held)
    back = "unknown" if settled.came_back is None else gib(settled.came_back)
    return f"{settled.verdict.value} after {settled.seconds:.2f} s ({back} came back, {held} was held)"


def gib(size: int) -> str:
    return f"{size / 1024**3:.2f} GiB"
