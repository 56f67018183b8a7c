"""Which targets are passed over, as (engine, model): what calls and background probes have seen of them.

A walk asks `admit` before each try; a request that names its model directly only reports, through `observe`. Either
gives a `Call`, and whoever has it says how it went, once. Calls open the circuit of their (engine, model); probes
open one of the engine's own, which a good probe closes, and no other. A success of a call closes both: it is the better
witness. The rules are in `breaker`; this class holds the breakers and is their only writer.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from enginerouter.config.model import Health as HealthSettings
from enginerouter.errors import RouterError, printable
from enginerouter.routing import breaker
from enginerouter.routing.breaker import Breaker, Pass
from enginerouter.routing.circuit import Circuit, OpenedBy, Transition, Window

log = logging.getLogger(__name__)

# A provider may say `Retry-After: 99999999`; after this long (or the configured cool-down) one call finds out.
LONGEST_COOL_DOWN_S = 3600.0
# Models of remote engines may be any name that a client sends.
MOST_TARGETS = 4096
# (engine, model); without a model: the engine, as its probes see it.
Key = tuple[str, str | None]


@dataclass(slots=True, eq=False)
class _Watched:
    """One circuit: `model` None is the engine's own, which probes open."""

    engine: str
    model: str | None
    breaker: Breaker = breaker.CLOSED
    window: Window = field(default_factory=Window)
    cause: weakref.ref[RouterError] | None = None
    is_forgotten: bool = False
    needs_operator: bool = False


class _Part:
    """What a call says of one circuit. `is_own`: it is the circuit of what was called or probed; else its engine's."""

    __slots__ = ("_call", "_health", "_is_own", "_watched")

    def __init__(self, health: Health, watched: _Watched, call: Pass, *, is_own: bool) -> None:
        self._health = health
        self._watched = watched
        self._call = call
        self._is_own = is_own

    @property
    def is_trial(self) -> bool:
        return self._call.trial > 0

    def succeeded(self) -> None:
        if self._is_own:
            self._watched.window.note(True, self._health.now())
        seen = self._watched.breaker
        if seen.open_until is None and not seen.failures:
            return  # as nearly always: there is nothing to close or to forget
        self._become(breaker.after_success(self._watched.breaker, self._call), "it answers again")

    def failed(self, reason: str, cause: BaseException | None) -> None:
        watched, now = self._watched, self._health.now()
        if self._is_own:
            watched.window.note(False, now)
        elif not self.is_trial:
            return  # one broken model says nothing of its engine
        if isinstance(cause, RouterError):  # not all others can be held without being kept alive
            if watched.cause is not None and watched.cause() is cause:
                self.dropped()
                return
            watched.cause = weakref.ref(cause)
        after = breaker.after_failure(watched.breaker, self._call, reason, self._health.rules, now)
        self._become(after, reason)

    def cooled_down(self, seconds: float, reason: str, needs_operator: bool) -> None:
        if not self._is_own:
            self.succeeded()  # it said so: it lives
        elif not seconds > 0:  # nor is NaN
            self.dropped()
        else:
            now, seconds = self._health.now(), min(seconds, self._health.longest_cool_down_s)
            after = breaker.after_cool_down(self._watched.breaker, self._call, seconds, reason, now)
            self._become(after, reason, needs_operator)

    def dropped(self) -> None:
        self._watched.breaker = breaker.after_drop(self._watched.breaker, self._call)

    def _become(self, after: Breaker, reason: str, needs_operator: bool = False) -> None:
        if after is not self._watched.breaker:
            self._health.become(self._watched, after, reason, needs_operator)


class Call:
    """One try of a target. Only the first verdict counts, and none counts that belongs to an older life of a circuit.

    The verdict is due at the first event of the answer. A call must get one: `finally: call.dropped()` does no harm.
    """

    __slots__ = ("_back_off_s", "_is_over", "_parts", "is_trial")

    def __init__(self, parts: tuple[_Part, ...], back_off_s: float = 0.0, *, is_trial: bool = False) -> None:
        self._parts = parts
        self._back_off_s = back_off_s
        self._is_over = False
        self.is_trial = is_trial

    @property
    def back_off_s(self) -> float:
        """A trial evicts no slot that has served within the last so many seconds; other calls may: 0."""
        return self._back_off_s if self.is_trial else 0.0

    def succeeded(self) -> None:
        if not self._is_over:  # not by `_first_time`: this is on the path of every request
            self._is_over = True
            for part in self._parts:
                part.succeeded()

    def failed(self, reason: str, cause: BaseException | None = None) -> None:
        """`cause`: what ended this call and others with it (one crash): it counts once for them all."""
        for part in self._first_time():
            part.failed(reason, cause)

    def cool_down(self, seconds: float, reason: str, *, needs_operator: bool = False) -> None:
        """It wants to be left alone: 429 with `Retry-After`, or (`needs_operator`) a key or credit of ours. No failure.

        Seconds that are none or no number are no cool-down.
        """
        for part in self._first_time():
            part.cooled_down(seconds, reason, needs_operator)

    def dropped(self) -> None:
        """No verdict: the client left, our own queue, a fence, the caller's 4xx, a failed start."""
        for part in self._first_time():
            part.dropped()

    def _first_time(self) -> tuple[_Part, ...]:
        """What a verdict is about; nothing if there was one."""
        if self._is_over:
            return ()
        self._is_over = True
        return self._parts


class Health:
    """The breakers of one router. `listeners` are told of transitions, after they happened; they must not raise."""

    def __init__(self, settings: HealthSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.configure(settings)
        self._clock = clock
        self._watched: dict[Key, _Watched] = {}
        # What `observe` gave last, with the lives of the circuits it was for.
        self._observed: dict[tuple[str, str], tuple[_Watched, int, _Watched, int, tuple[_Part, ...]]] = {}
        self.listeners: list[Callable[[Transition], None]] = []

    def configure(self, settings: HealthSettings) -> None:
        """Go by these numbers from now on; what is open stays open until it was to be."""
        self.rules = breaker.Rules(settings.failures_to_open, settings.open_s)
        self.longest_cool_down_s = max(LONGEST_COOL_DOWN_S, settings.credit_cooldown_s, settings.rate_limit_cooldown_s)

    @property
    def back_off_s(self) -> float:
        """How long an open circuit passes a target over before a trial."""
        return self.rules.open_s

    # --- calls and probes

    def admit(self, engine: str, model: str) -> Call | None:
        """The right to try a target; None while it is passed over, or while its single trial is under way."""
        now = self._clock()
        own, engines = self._get(engine, model), self._get(engine, None)
        own_after, own_pass = breaker.admit(own.breaker, self.rules, now)
        engines_after, engines_pass = breaker.admit(engines.breaker, self.rules, now)
        if own_pass is None or engines_pass is None:
            return None  # and neither of them has begun a trial
        own.breaker, engines.breaker = own_after, engines_after
        parts = (_Part(self, own, own_pass, is_own=True), _Part(self, engines, engines_pass, is_own=False))
        return Call(parts, self.rules.open_s, is_trial=any(part.is_trial for part in parts))

    def observe(self, engine: str, model: str) -> Call:
        """For a request that names its model directly: never refused, and its success closes an open circuit."""
        # On the path of every request: what such a call says is the same until a circuit opens or closes.
        known = self._observed.get((engine, model))
        if known is not None:
            own, own_life, engines, engines_life, parts = known
            is_as_it_was = own.breaker.life == own_life and engines.breaker.life == engines_life
            if is_as_it_was and not own.is_forgotten and not engines.is_forgotten:
                return Call(parts)
        own, engines = self._get(engine, model), self._get(engine, None)
        parts = (
            _Part(self, own, breaker.observe(own.breaker), is_own=True),
            _Part(self, engines, breaker.observe(engines.breaker), is_own=False),
        )
        if len(self._observed) >= MOST_TARGETS:
            self._observed.clear()
        self._observed[engine, model] = (own, own.breaker.life, engines, engines.breaker.life, parts)
        return Call(parts)

    def probe(self, engine: str) -> Call:
        """For a background probe. It is never refused, and what it sees is the engine's, not a model's."""
        watched = self._get(engine, None)
        return Call((_Part(self, watched, breaker.observe(watched.breaker), is_own=True),))

    # --- what is known; changes nothing

    def state(self, engine: str, model: str) -> Circuit:
        """How a target stands: its own circuit, or its engine's where that keeps it away for longer."""
        own, engines = self.circuit(engine, model), self.circuit(engine, None)
        if engines.retry_after_s is None or (own.retry_after_s or -1.0) >= engines.retry_after_s:
            return own
        return replace(engines, ok=own.ok, failed=own.failed)

    def circuit(self, engine: str, model: str | None) -> Circuit:
        """One circuit alone; without a model the engine's, which probes open."""
        watched = self._watched.get((engine, model))
        if watched is None:
            return Circuit()
        now, seen = self._clock(), watched.breaker
        ok, failed = watched.window.counts(now)
        opened_by: OpenedBy = "" if seen.open_until is None else "probes" if model is None else "calls"
        return Circuit(
            breaker.state(seen, now),
            opened_by,
            seen.failures,
            seen.reason,
            breaker.trial_in_s(seen, now),
            ok,
            failed,
            watched.window.is_used,
            watched.needs_operator,
        )

    def retry_after_s(self, targets: Iterable[tuple[str, str]]) -> float | None:
        """Seconds until the earliest trial among those that are passed over; None if none of them is."""
        waits = [s for engine, model in targets if (s := self.state(engine, model).retry_after_s) is not None]
        return min(waits, default=None)

    def snapshot(self) -> dict[str, dict[str | None, Circuit]]:
        """Everything that is known, by engine and model; None is the engine's own circuit."""
        known: dict[str, dict[str | None, Circuit]] = {}
        for engine, model in self._watched:
            known.setdefault(engine, {})[model] = self.circuit(engine, model)
        return known

    # --- an operator's word, and a changed engine

    def reset(self, engine: str | None = None, model: str | None = None) -> list[Key]:
        """Close what is open, and forget failures: of everything, an engine, or one of its models. Gives what was.

        With a model the engine's own circuit is closed, too: it would keep the model away.
        """
        done = []
        for key, watched in self._watched.items():
            if engine not in (None, key[0]) or (model is not None and key[1] not in (None, model)):
                continue
            if watched.breaker.open_until is not None or watched.breaker.failures:
                done.append(key)
            # Also where nothing is open: what was under way says nothing of the time after.
            self.become(watched, breaker.closed(watched.breaker), "reset by an operator")
        return done

    def forget(self, engine: str, why: str = "its engine has changed", *, models: bool = True) -> None:
        """The engine is another one now (a reload), or – without `models` – its server was stopped.

        What was seen of it goes, and calls under way say nothing of the new one.
        """
        keys: list[Key] = [k for k in self._watched if k[0] == engine] if models else [(engine, None)]
        for key in keys:
            watched = self._watched.pop(key, None)
            if watched is None:
                continue
            watched.is_forgotten = True
            if watched.breaker.open_until is not None:
                self._tell(Transition(engine, watched.model, "closed", why))

    # --- for calls

    def now(self) -> float:
        return self._clock()

    def become(self, watched: _Watched, after: Breaker, reason: str, needs_operator: bool = False) -> None:
        before, watched.breaker = watched.breaker, after
        if watched.is_forgotten or after.open_until == before.open_until:
            return
        watched.needs_operator = needs_operator and after.open_until is not None
        engine, model = watched.engine, watched.model
        if after.open_until is None:
            self._tell(Transition(engine, model, "closed", reason))
            return
        kind: Literal["open", "cooling"] = "cooling" if after.is_cooling else "open"
        seconds, is_again = after.open_until - self._clock(), before.open_until is not None
        self._tell(Transition(engine, model, kind, reason, seconds, is_again, needs_operator))

    def _tell(self, moved: Transition) -> None:
        name = printable(moved.engine if moved.model is None else f"{moved.engine}/{moved.model}")
        if moved.after == "closed":
            log.info("health: %s is no longer passed over: %s", name, moved.reason)
        else:
            is_news = moved.needs_operator or (moved.after == "open" and not moved.is_again)
            level = logging.WARNING if is_news else logging.INFO
            still = "still " * moved.is_again
            log.log(level, "health: %s is %spassed over for %.0f s: %s", name, still, moved.seconds, moved.reason)
        for listener in self.listeners:
            listener(moved)

    # --- what is held

    def _get(self, engine: str, model: str | None) -> _Watched:
        key = (engine, model)
        watched = self._watched.get(key)
        if watched is None:
            if len(self._watched) >= MOST_TARGETS:
                self._make_room()
            watched = self._watched[key] = _Watched(engine, model)
        return watched

    def _make_room(self) -> None:
        """Let go of a target of which nothing bad is known; if there is none, of the oldest."""
        quiet = (k for k, w in self._watched.items() if w.breaker.open_until is None and not w.breaker.failures)
        key = next(quiet, None) or next(iter(self._watched))
        self._watched.pop(key).is_forgotten = True
