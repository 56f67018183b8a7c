"""The breaker of one target: when it is passed over, and which call may try it again.

Pure data and plain functions; time is passed in, in monotonic seconds. One failure is a blip; `failures_to_open` of
them in a row open it for `open_s`; then one call is the trial, and its verdict closes it or opens it again. A cool-down
(a rate limit, a refused key) passes the target over as well, without being a failure, and also ends with one trial.

Every call carries a `Pass`: which life of the breaker it began in. Opening and closing begin a new life, so a verdict
that comes late belongs to an older one and changes nothing. That also goes for a trial whose place another has taken.
A trial may go silent for ever; hence the next may take its place after `open_s`, and each further one only after twice
as long, so that a target that is slow but alive has the time to prove it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

State = Literal["closed", "open", "half_open", "cooling"]
# The patience with trials doubles at most this often: 60 s become 17 hours.
_MOST_DOUBLINGS = 10


@dataclass(frozen=True, slots=True)
class Rules:
    """`failures_to_open` in a row open the breaker for `open_s` seconds."""

    failures_to_open: int = 2
    open_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """`failures` in a row; `reason` is the last one.

    `open_until`: when a trial is due; None while it is closed. `is_cooling`: open for a cool-down, not for failures.
    `trial` numbers the trial under way (0: none), `trials` all so far; from `trial_until` on another may take its
    place, which has happened `overtaken` times since it opened. `life` goes up by one whenever it opens or closes.
    """

    failures: int = 0
    reason: str = ""
    open_until: float | None = None
    is_cooling: bool = False
    trial: int = 0
    trials: int = 0
    trial_until: float = 0.0
    overtaken: int = 0
    life: int = 0


@dataclass(frozen=True, slots=True)
class Pass:
    """What a call began with: the life of the breaker, and the number of the trial it is (0: none)."""

    life: int
    trial: int = 0


CLOSED = Breaker()


def state(breaker: Breaker, now: float) -> State:
    """`half_open`: a trial is due or under way."""
    if breaker.open_until is None:
        return "closed"
    if breaker.trial or now >= breaker.open_until:
        return "half_open"
    return "cooling" if breaker.is_cooling else "open"


def trial_in_s(breaker: Breaker, now: float) -> float | None:
    """Seconds until a call is let through; 0 for at once as a trial; None while it is closed."""
    if breaker.open_until is None:
        return None
    return max(0.0, (breaker.trial_until if breaker.trial else breaker.open_until) - now)


def admit(breaker: Breaker, rules: Rules, now: float) -> tuple[Breaker, Pass | None]:
    """Let a call through, or not (None). Of an open breaker whose time is over, the call is the trial."""
    wait_s = trial_in_s(breaker, now)
    if wait_s is None:
        return breaker, Pass(breaker.life)
    if wait_s > 0:
        return breaker, None
    overtaken = breaker.overtaken + bool(breaker.trial)
    number = breaker.trials + 1
    patience_s = rules.open_s * 2.0 ** min(overtaken, _MOST_DOUBLINGS)
    begun = replace(breaker, trial=number, trials=number, trial_until=now + patience_s, overtaken=overtaken)
    return begun, Pass(begun.life, number)


def observe(breaker: Breaker) -> Pass:
    """The pass of a call that nothing refuses, and that is no trial."""
    return Pass(breaker.life)


def is_current(breaker: Breaker, call: Pass) -> bool:
    """Whether a verdict of this call still counts."""
    return call.life == breaker.life and call.trial in (0, breaker.trial)


def after_success(breaker: Breaker, call: Pass) -> Breaker:
    if not is_current(breaker, call):
        return breaker
    if breaker.open_until is not None:
        return closed(breaker)
    return replace(breaker, failures=0, reason="") if breaker.failures else breaker


def after_failure(breaker: Breaker, call: Pass, reason: str, rules: Rules, now: float) -> Breaker:
    """While it is open only the trial counts: what else fails then would prolong it for ever."""
    if not is_current(breaker, call) or (breaker.open_until is not None and not call.trial):
        return breaker
    failures = breaker.failures + 1
    if failures < rules.failures_to_open and not call.trial:
        return replace(breaker, failures=failures, reason=reason)
    return _opened(replace(breaker, failures=failures, reason=reason), now + rules.open_s, is_cooling=False)


def after_cool_down(breaker: Breaker, call: Pass, seconds: float, reason: str, now: float) -> Breaker:
    """The target asked to be left alone for so long. It lives: this is no failure, and no success."""
    if not is_current(breaker, call) or (breaker.open_until is not None and not call.trial):
        return breaker
    return _opened(replace(breaker, reason=reason), now + seconds, is_cooling=True)


def after_drop(breaker: Breaker, call: Pass) -> Breaker:
    """The call ended without a verdict; if it was the trial, the next call is one."""
    if call.trial and is_current(breaker, call):
        return replace(breaker, trial=0)
    return breaker


def closed(breaker: Breaker) -> Breaker:
    """Closed by a success or by an operator; calls that began before say nothing of it any more."""
    return Breaker(life=breaker.life + 1, trials=breaker.trials)


def _opened(breaker: Breaker, until: float, *, is_cooling: bool) -> Breaker:
    return replace(
        breaker, open_until=until, is_cooling=is_cooling, trial=0, trial_until=0.0, overtaken=0, life=breaker.life + 1
    )
