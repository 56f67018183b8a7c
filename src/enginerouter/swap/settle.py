"""Has the memory come back? The verdict as a pure function of readings.

The exit of a process is not free memory: a driver may return it seconds later, and a memory-mapped model never took
any. So nothing is guessed from time alone: what counts is the rise of available memory since just before the first
stop signal, against what was held (docs/design.md, "Settle").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

MIB = 1024**2

READ_EVERY_S = 0.02
ENOUGH_MARGIN = 1.05
RECOVERED_SLACK_BYTES = 64 * MIB
RECOVERED_SLACK_SHARE = 0.05
PLATEAU_RISE_BYTES = 32 * MIB
PLATEAU_S = 1.0
# With only a bound of what was held: drivers have been seen to take some seconds.
PLATEAU_BELOW_BOUND_S = 5.0


class Verdict(StrEnum):
    ENOUGH = "enough"
    RECOVERED = "recovered"
    PLATEAU = "plateau"
    TIMEOUT = "timeout"
    UNREADABLE = "unreadable"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Reading:
    """Available bytes at a moment (monotonic seconds)."""

    at: float
    available: int


@dataclass(frozen=True, slots=True)
class Question:
    """What the wait is about. `before` is the availability (bytes) just before the first stop signal.

    `held` is what was held and is not yet called available, None if nothing is known of it; `need` what the next
    engine needs, None if unknown or if nothing is started. `is_gone`: all that was stopped is confirmed gone.
    `is_partial`: `held` is known of some of it only; `is_bound`: `held` is the most that it can be.
    """

    before: int
    held: int | None
    need: int | None
    is_gone: bool
    timeout_s: float
    is_partial: bool = False
    is_bound: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """The end of a settle wait. `came_back` is the rise in bytes (never negative), None if it was not read."""

    verdict: Verdict
    seconds: float
    came_back: int | None
    held: int | None


def missing_slack(held: int) -> int:
    """How much of `held` may still be missing when memory counts as back."""
    return max(RECOVERED_SLACK_BYTES, int(held * RECOVERED_SLACK_SHARE))


def verdict(readings: Sequence[Reading], question: Question) -> Verdict | None:
    """The verdict on the readings so far (oldest first, at least one), or None to go on waiting."""
    last = readings[-1]
    if question.need is not None:
        wanted = question.need * ENOUGH_MARGIN
        if len(readings) >= 2 and last.available >= wanted and readings[-2].available >= wanted:
            return Verdict.ENOUGH
    if question.held is not None:
        is_back = last.available - question.before >= question.held - missing_slack(question.held)
        if is_back and (not question.is_partial or _is_flat(readings)):
            return Verdict.RECOVERED
        if question.is_bound and question.is_gone and _is_flat(readings, PLATEAU_BELOW_BOUND_S):
            return Verdict.PLATEAU
    elif question.is_gone and _is_flat(readings):
        return Verdict.PLATEAU
    if last.at - readings[0].at >= question.timeout_s:
        return Verdict.TIMEOUT
    return None


def _is_flat(readings: Sequence[Reading], over_s: float = PLATEAU_S) -> bool:
    """Whether availability rose by less than 32 MiB over the last second (or `over_s`). A fall counts as flat."""
    last = readings[-1]
    for reading in reversed(readings):
        if last.at - reading.at >= over_s:
            return last.available - reading.available < PLATEAU_RISE_BYTES
    return False
