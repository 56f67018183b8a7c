"""The start circuit: an engine that failed to start too often is left alone for a while.

Pure data and plain functions. It gates starts only; a resident slot is used whatever it says.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 30 * 60.0


@dataclass(frozen=True, slots=True)
class StartCircuit:
    """`failures` counts failed starts in a row; `open_until` is monotonic seconds, `reason` the last failure."""

    failures: int = 0
    open_until: float = 0.0
    reason: str = ""

    def is_open(self, now: float) -> bool:
        return now < self.open_until


CLOSED = StartCircuit()


def after_failure(circuit: StartCircuit, reason: str, *, max_restarts: int, now: float) -> StartCircuit:
    """One more failed start. From the `max_restarts`-th on the circuit opens, each time for twice as long."""
    failures = circuit.failures + 1
    beyond = failures - max(1, max_restarts)
    if beyond < 0:
        return StartCircuit(failures, 0.0, reason)
    # The exponent is bounded so that a year of failures does not overflow.
    pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(beyond, 16))
    return StartCircuit(failures, now + pause, reason)
