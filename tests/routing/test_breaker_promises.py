"""What a circuit promises, over random histories: late answers, overlapping trials, clocks that jump, drops, probes.

The test keeps its own, much simpler account of every call, and compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from enginerouter.config.model import Health as HealthSettings
from enginerouter.routing.circuit import Circuit, Transition
from enginerouter.routing.health import Call, Health

Target = tuple[str, str]
# Two models of one engine: what probes say concerns both, what calls say concerns one.
TARGETS: list[Target] = [("a", "m"), ("a", "n")]
VERDICTS = ["succeeded", "failed", "failed", "cool_down", "dropped"]
OPEN_S = 60.0
LONGEST_S = 3600.0
# From a moment to a clock that was asleep for a month; whole seconds, so that sums are exact.
STEPS = st.sampled_from([0, 1, 29, 30, 59, 60, 61, 120, 3600, 2_600_000])


@dataclass(eq=False)
class Try:
    """One call as the test sees it: how often its target's circuit had moved when it began.

    `is_own_trial`: a trial of that circuit, and not only of its engine's.
    """

    call: Call
    target: Target
    began_at: float
    own_moves: int
    is_own_trial: bool = False
    is_over: bool = False


def without_counts(circuit: Circuit) -> tuple[object, ...]:
    return circuit.state, circuit.opened_by, circuit.failures, circuit.reason, circuit.retry_after_s


class Promises(RuleBasedStateMachine):
    calls = Bundle("calls")

    @initialize(failures=st.integers(1, 4))
    def begin(self, failures: int) -> None:
        self.now = 0.0
        self.failures = failures
        self.health = Health(HealthSettings(failures_to_open=failures, open_s=OPEN_S), clock=lambda: self.now)
        self.health.listeners.append(self._heard)
        self.moves: dict[tuple[str, str | None], int] = {}
        self.row: dict[Target, int] = dict.fromkeys(TARGETS, 0)
        self.trials: dict[Target, Try] = {}
        self.tries: list[Try] = []

    def _heard(self, moved: Transition) -> None:
        key = (moved.engine, moved.model)
        self.moves[key] = self.moves.get(key, 0) + 1
        if moved.model is None:
            return
        if moved.after == "open" and not moved.is_again:
            assert self.row[moved.engine, moved.model] >= self.failures, "opened by less than it takes"

    def _moves(self, target: Target) -> int:
        return self.moves.get(target, 0)

    # --- what happens

    @rule(seconds=STEPS)
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(target=calls, where=st.sampled_from(TARGETS))
    def asks(self, where: Target) -> Any:
        before, own = self.health.state(*where), self.health.circuit(*where)
        call = self.health.admit(*where)
        assert (call is None) == before.is_passed_over
        if call is None:
            return multiple()
        one = Try(call, where, self.now, self._moves(where), is_own_trial=own.state != "closed")
        self.tries.append(one)
        assert call.is_trial == (before.state != "closed")
        if call.is_trial:
            assert self.health.admit(*where) is None, "a second trial at once"
        if one.is_own_trial:
            last = self.trials.get(where)
            if last is not None and not last.is_over and last.own_moves == one.own_moves:
                assert self.now - last.began_at >= OPEN_S, "two trials at the same time"
            self.trials[where] = one
        return one

    @rule(target=calls, where=st.sampled_from(TARGETS))
    def asks_directly(self, where: Target) -> Try:
        before = self.health.snapshot()
        one = Try(self.health.observe(*where), where, self.now, self._moves(where))
        self.tries.append(one)
        assert not one.call.is_trial
        assert all(self.health.circuit(e, m) == c for e, models in before.items() for m, c in models.items())
        return one

    @rule(where=st.sampled_from(TARGETS), verdicts=st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=4))
    def asks_and_hears_at_once(self, where: Target, verdicts: list[str]) -> None:
        for verdict in verdicts:
            one = self.asks(where)
            if isinstance(one, Try):
                self.gets_a_verdict(one, verdict, 30)

    @rule(where=st.sampled_from(TARGETS), verdict=st.sampled_from(VERDICTS), others=st.sampled_from(VERDICTS))
    def falls_silent_and_is_overtaken(self, where: Target, verdict: str, others: str) -> None:
        tries = []
        for _ in range(2):
            self.now += self.health.state(*where).retry_after_s or 0.0
            tries.append(self.asks(where))
        late, other = tries
        self.gets_a_verdict(late, verdict, 30)
        self.gets_a_verdict(other, others, 30)

    @rule(one=calls, verdict=st.sampled_from(VERDICTS), seconds=STEPS)
    def gets_a_verdict(self, one: Try, verdict: str, seconds: int) -> None:
        own_before = without_counts(self.health.circuit(*one.target))
        engine_before = without_counts(self.health.circuit(one.target[0], None))
        was_closed = own_before[0] == "closed"
        is_late = one.is_over or one.own_moves != self._moves(one.target)
        is_overtaken = one.is_own_trial and self.trials[one.target] is not one
        was_over, one.is_over = one.is_over, True
        if not is_late and not is_overtaken:
            if verdict == "failed" and (was_closed or one.is_own_trial):
                self.row[one.target] += 1
            elif verdict == "succeeded":
                self.row[one.target] = 0
        if verdict == "succeeded":
            one.call.succeeded()
        elif verdict == "failed":
            one.call.failed("status 500")
        elif verdict == "cool_down":
            one.call.cool_down(float(seconds), "status 429")
        else:
            one.call.dropped()
        after = self.health.circuit(*one.target)
        if is_late:
            assert without_counts(after) == own_before, "a late verdict changed something"
        elif verdict == "succeeded" and not is_overtaken:
            assert (after.state, after.failures) == ("closed", 0), "a success does not close"
        elif verdict == "dropped":
            assert after.failures == own_before[2], "a call without a verdict counted"
            if one.is_own_trial and not is_overtaken:
                assert after.retry_after_s == 0, "a trial that was given up kept its place"
        elif verdict == "failed" and was_closed and not is_overtaken:
            assert (after.state == "open") == (self.row[one.target] >= self.failures), "not after so many in a row"
            assert after.failures == self.row[one.target]
        engine_after = without_counts(self.health.circuit(one.target[0], None))
        if verdict == "failed" and not one.call.is_trial:
            assert engine_after == engine_before, "one broken model took its engine with it"
        if is_overtaken:
            assert without_counts(after) == own_before, "a trial whose place was taken changed something"
        if was_over:
            assert without_counts(self.health.circuit(one.target[0], None)) == engine_before

    @rule(engine=st.just("a"), is_good=st.booleans(), times=st.integers(1, 3))
    def is_probed(self, engine: str, is_good: bool, times: int) -> None:
        """A probe is never held back, and it touches no circuit that calls opened."""
        before = {t: without_counts(self.health.circuit(*t)) for t in TARGETS}
        wait_s = self.health.circuit(engine, None).retry_after_s
        for _ in range(times):
            probe = self.health.probe(engine)
            assert not probe.is_trial
            if is_good:
                probe.succeeded()
            else:
                probe.failed("its probe saw: status 500")
        assert {t: without_counts(self.health.circuit(*t)) for t in TARGETS} == before
        after = self.health.circuit(engine, None)
        if is_good:
            assert after.state == "closed"
        elif wait_s is not None:
            assert after.retry_after_s == wait_s, "a bad probe put the trial off"

    @precondition(lambda self: len(self.tries) % 4 == 3)
    @rule(where=st.sampled_from(TARGETS))
    def is_reset(self, where: Target) -> None:
        self.health.reset(*where)
        self._forget_row(where)
        assert self.health.admit(*where) is not None

    @precondition(lambda self: len(self.tries) % 4 == 3)
    @rule(engine=st.just("a"))
    def is_changed(self, engine: str) -> None:
        self.health.forget(engine)
        for where in [t for t in TARGETS if t[0] == engine]:
            self._forget_row(where)

    def _forget_row(self, where: Target) -> None:
        """A new beginning, also where nothing was open and so no transition was told."""
        self.row[where] = 0
        self.moves[where] = self.moves.get(where, 0) + 1

    # --- what always holds

    @invariant()
    def nothing_is_passed_over_for_longer_than_the_bound(self) -> None:
        """And when that time is over, somebody is let through: no circuit stays open by itself."""
        for where in TARGETS:
            seen = self.health.state(*where)
            wait_s = seen.retry_after_s
            if wait_s is None:
                assert seen.state == "closed"
                continue
            if seen.state != "half_open":
                assert wait_s <= LONGEST_S
                continue
            # Under way: the patience doubles with each trial that was overtaken, and ends all the same.
            assert wait_s <= OPEN_S * 2.0**10

    def teardown(self) -> None:
        """Whatever happened: when time has passed, a target that is well again is served within one trial."""
        for where in TARGETS:
            wait_s = self.health.state(*where).retry_after_s
            self.now += wait_s or 0.0
            call = self.health.admit(*where)
            assert call is not None, "nobody is let through"
            call.succeeded()
            assert self.health.state(*where).state == "closed"


Promises.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestPromises = Promises.TestCase
