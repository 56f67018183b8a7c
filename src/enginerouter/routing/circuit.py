"""How a target stands, as plain data: what `health` shows of a breaker, and what it tells of its changes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from enginerouter.routing.breaker import State

WINDOW_S = 60
OpenedBy = Literal["", "calls", "probes"]


@dataclass(frozen=True, slots=True)
class Circuit:
    """One target as it is now, for people and decisions.

    `state`: `half_open` when a trial is due or under way, `cooling` in a cool-down. `opened_by`: whose verdicts opened
    it, "" while it is closed. `failures` in a row. `retry_after_s`: until a call is let through; 0 = now, as a trial;
    None while closed. `ok` and `failed` are the outcomes of the last 60 s; `is_used`: there ever was one.
    `needs_operator`: it is passed over for our key or credit, which no wait mends.
    """

    state: State = "closed"
    opened_by: OpenedBy = ""
    failures: int = 0
    reason: str = ""
    retry_after_s: float | None = None
    ok: int = 0
    failed: int = 0
    is_used: bool = False
    needs_operator: bool = False

    @property
    def is_passed_over(self) -> bool:
        """Whether `admit` would refuse now."""
        return bool(self.retry_after_s)


@dataclass(frozen=True, slots=True)
class Transition:
    """A circuit opened, cooled down or closed. `model` None: the engine's own, which probes open.

    `seconds`: for how long. `is_again`: a trial failed, and it was open before. `needs_operator`: our key or credit.
    """

    engine: str
    model: str | None
    after: Literal["open", "cooling", "closed"]
    reason: str
    seconds: float = 0.0
    is_again: bool = False
    needs_operator: bool = False


class Window:
    """Outcomes of the last `WINDOW_S` seconds, counted by the second."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque(maxlen=WINDOW_S + 1)

    def note(self, is_ok: bool, now: float) -> None:
        second = int(now)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0])
        self._seconds[-1][1 if is_ok else 2] += 1

    @property
    def is_used(self) -> bool:
        """Whether there ever was an outcome."""
        return bool(self._seconds)

    def counts(self, now: float) -> tuple[int, int]:
        """(good, bad)."""
        recent = [entry for entry in self._seconds if now - entry[0] <= WINDOW_S]
        return sum(entry[1] for entry in recent), sum(entry[2] for entry in recent)
