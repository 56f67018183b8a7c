"""The phases of a slot and every transition between them, as one table.

A slot is *in* memory from STARTING until the settle that follows its end: whatever is not COLD counts as holding
memory. That one sentence is the invariant; the table keeps it true:

- Only STARTING leads to READY (and ADOPT, for an engine an earlier router left running): nothing serves unseen.
- Every way out of READY or STARTING leads through FREEING and SETTLING: exit is not yet free memory, and that holds
  for failed, ended and crashed starts too.
- DRAINING may go back (the swap is called off); FREEING may not: the first stop signal is the point of no return.
- What cannot be confirmed gone is STUCK (also what an earlier router left and could not end). It is freed again
  before anything is started in its place. A server that others share may be started as it is: it was there all along.
- A process that sleeps leaves its slot COLD. To end it for good is the one thing that is done to a cold slot.

`docs/design.md` shows `mermaid()`; a test keeps the two equal.
"""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    COLD = "cold"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    CRASHED = "crashed"
    FREEING = "freeing"
    STUCK = "stuck"
    SETTLING = "settling"


class Event(StrEnum):
    START = "start"
    ADOPT = "adopt"
    READY = "ready"
    DRAIN = "drain"
    CALL_OFF = "call off"
    CRASH = "crash"
    FREE = "free"
    GONE = "gone"
    NOT_GONE = "not gone"
    SETTLED = "settled"


NEXT: dict[Phase, dict[Event, Phase]] = {
    Phase.COLD: {
        Event.START: Phase.STARTING,
        Event.ADOPT: Phase.READY,
        Event.NOT_GONE: Phase.STUCK,
        Event.FREE: Phase.FREEING,
    },
    Phase.STARTING: {Event.READY: Phase.READY, Event.FREE: Phase.FREEING},
    Phase.READY: {Event.DRAIN: Phase.DRAINING, Event.CRASH: Phase.CRASHED},
    Phase.DRAINING: {Event.CALL_OFF: Phase.READY, Event.FREE: Phase.FREEING, Event.CRASH: Phase.CRASHED},
    Phase.CRASHED: {Event.FREE: Phase.FREEING},
    Phase.FREEING: {Event.GONE: Phase.SETTLING, Event.NOT_GONE: Phase.STUCK},
    Phase.STUCK: {Event.FREE: Phase.FREEING, Event.START: Phase.STARTING},
    Phase.SETTLING: {Event.SETTLED: Phase.COLD},
}

# Phases from which a slot can be freed without draining: nothing is served from them.
NOTHING_TO_DRAIN = frozenset({Phase.CRASHED, Phase.STUCK})
# Phases in which a walk is ending a slot already: it needs neither choosing nor counting.
ON_ITS_WAY_OUT = frozenset({Phase.FREEING, Phase.SETTLING})


def step(phase: Phase, event: Event) -> Phase:
    """The phase after `event`. Raises RuntimeError for what the table does not have."""
    try:
        return NEXT[phase][event]
    except KeyError:
        raise RuntimeError(f"no transition from {phase.value} on {event.value!r}") from None


def mermaid() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.COLD.value}"]
    lines += [
        f"    {phase.value} --> {after.value}: {event.value}"
        for phase, events in NEXT.items()
        for event, after in events.items()
    ]
    return "\n".join(lines) + "\n"
