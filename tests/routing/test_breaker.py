"""When a target is passed over, and who may try it again: `Health` with a clock that a test moves."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from enginerouter.config.model import Health as HealthSettings
from enginerouter.errors import EngineCrashed
from enginerouter.routing.circuit import Circuit, Transition
from enginerouter.routing.health import MOST_TARGETS, Call, Health

T = ("box", "qwen")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Box:
    """A `Health`, its clock, and what its listeners heard."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.health = Health(HealthSettings(**settings), clock=self.clock)
        self.heard: list[Transition] = []
        self.health.listeners.append(self.heard.append)

    def call(self, engine: str = "box", model: str = "qwen") -> Call:
        call = self.health.admit(engine, model)
        assert call is not None, f"{engine}/{model} is passed over"
        return call

    def fail(self, times: int = 1, engine: str = "box", model: str = "qwen") -> None:
        for _ in range(times):
            self.call(engine, model).failed("status 500")

    def probe(self, *verdicts: bool, engine: str = "box") -> None:
        for is_good in verdicts:
            probe = self.health.probe(engine)
            if is_good:
                probe.succeeded()
            else:
                probe.failed("its probe saw: status 500")

    @property
    def seen(self) -> Circuit:
        return self.health.state(*T)


@pytest.fixture
def box() -> Box:
    return Box()


def test_one_failure_is_a_blip_and_the_second_in_a_row_opens(box: Box) -> None:
    box.fail()
    assert (box.seen.state, box.heard) == ("closed", [])
    box.fail()
    assert (box.seen.state, box.seen.opened_by, box.seen.retry_after_s) == ("open", "calls", 60.0)
    assert box.health.admit(*T) is None


def test_a_success_between_two_failures_makes_them_two_blips(box: Box) -> None:
    for _ in range(5):
        box.fail()
        box.call().succeeded()
    assert (box.seen.state, box.seen.failures) == ("closed", 0)
    assert (box.seen.ok, box.seen.failed) == (5, 5)


def test_after_the_back_off_one_of_a_thousand_gets_the_trial(box: Box) -> None:
    box.fail(2)
    box.clock.now += 59.999
    assert box.health.admit(*T) is None
    box.clock.now += 0.001
    admitted = [call for _ in range(1000) if (call := box.health.admit(*T)) is not None]
    assert len(admitted) == 1
    assert admitted[0].is_trial
    assert box.seen.state == "half_open"
    admitted[0].succeeded()
    assert box.seen.state == "closed"
    assert not box.call().is_trial


def test_a_failed_trial_opens_for_another_back_off_and_not_for_longer(box: Box) -> None:
    box.fail(2)
    for _ in range(20):
        box.clock.now += 60
        box.call().failed("status 502")
        assert (box.seen.state, box.seen.retry_after_s) == ("open", 60.0)


def test_a_trial_whose_client_leaves_gives_its_place_back(box: Box) -> None:
    box.fail(2)
    box.clock.now += 60
    box.call().dropped()
    assert (box.seen.state, box.seen.retry_after_s) == ("half_open", 0.0)
    assert box.call().is_trial


def test_only_the_first_verdict_of_a_call_counts(box: Box) -> None:
    call = box.call()
    call.succeeded()
    for _ in range(3):
        call.failed("afterwards")
    call.dropped()
    assert (box.seen.failures, box.seen.ok, box.seen.failed) == (0, 1, 0)


def test_a_silent_trial_is_overtaken_and_its_late_answer_changes_nothing(box: Box) -> None:
    box.fail(2)
    box.clock.now += 60
    silent = box.call()
    box.clock.now += 59.9
    assert box.health.admit(*T) is None
    box.clock.now += 0.1
    second = box.call()
    assert second.is_trial
    before = box.health.circuit(*T).state
    silent.succeeded()
    assert box.health.circuit(*T).state == before == "half_open"
    second.failed("status 500")
    assert box.seen.state == "open"


def test_a_target_that_is_slow_but_alive_is_given_longer_each_time(box: Box) -> None:
    """Its first token takes 100 s, a trial is overtaken after 60 s, and requests never stop: it still comes back."""
    box.fail(2)
    answers: list[tuple[float, Call]] = []
    for _ in range(1000):
        box.clock.now += 1
        if (call := box.health.admit(*T)) is not None:
            answers.append((box.clock.now + 100, call))
        for at, call in answers:
            if at == box.clock.now:
                call.succeeded()
        if box.seen.state == "closed":
            break
    assert box.clock.now - 1000 == 60 + 60 + 100


def test_what_began_before_a_circuit_opened_says_nothing_of_it(box: Box) -> None:
    early = [box.call() for _ in range(4)]
    box.fail(2)
    early[0].succeeded()
    assert box.seen.state == "open"
    box.clock.now += 30
    early[1].failed("status 500")
    assert box.seen.retry_after_s == 30
    early[2].cool_down(900, "status 429")
    assert box.seen.retry_after_s == 30
    box.clock.now += 30
    box.call().succeeded()
    early[3].failed("status 500")
    assert box.seen.failures == 0


def test_a_direct_request_is_never_refused_and_its_success_closes(box: Box) -> None:
    box.fail(2)
    box.health.observe(*T).failed("status 500")
    assert box.seen.retry_after_s == 60
    direct = box.health.observe(*T)
    assert not direct.is_trial
    direct.succeeded()
    assert box.seen.state == "closed"


def test_failures_of_direct_requests_do_not_put_the_trial_off(box: Box) -> None:
    box.fail(2)
    for _ in range(60):
        box.clock.now += 1
        box.health.observe(*T).failed("status 500")
    assert box.call().is_trial


def test_one_crash_under_many_requests_is_one_failure(box: Box) -> None:
    crash = EngineCrashed("box", "engine 'box' died (exit status 139)")
    for call in [box.call() for _ in range(10)]:
        call.failed("engine_crashed", crash)
    assert (box.seen.state, box.seen.failures) == ("closed", 1)
    box.call().failed("engine_crashed", EngineCrashed("box", "engine 'box' died (exit status 139)"))
    assert box.seen.state == "open"


# --- cool-downs


def test_a_rate_limit_is_a_cool_down_and_no_failure(box: Box) -> None:
    box.call().cool_down(7, "status 429")
    assert (box.seen.state, box.seen.failures, box.seen.retry_after_s) == ("cooling", 0, 7.0)
    assert box.health.admit(*T) is None
    box.clock.now += 7
    call = box.call()
    assert call.is_trial
    assert box.health.admit(*T) is None, "those who waited all come at once"
    call.succeeded()
    assert box.seen.state == "closed"


@pytest.mark.parametrize("seconds", [0, -5, math.nan, -math.inf])
def test_a_cool_down_without_a_time_is_none(box: Box, seconds: float) -> None:
    box.call().cool_down(seconds, "status 429")
    assert box.seen.state == "closed"


@pytest.mark.parametrize("seconds", [1e12, math.inf])
def test_a_cool_down_is_never_longer_than_the_longest_of_the_configuration(seconds: float) -> None:
    box = Box(credit_cooldown_s=7200)
    box.call().cool_down(seconds, "status 429")
    assert box.seen.retry_after_s == 7200


def test_a_trial_that_meets_a_rate_limit_cools_down(box: Box) -> None:
    box.fail(2)
    box.clock.now += 60
    box.call().cool_down(5, "status 429")
    assert (box.seen.state, box.seen.retry_after_s) == ("cooling", 5.0)


# --- probes


def test_a_green_probe_never_closes_what_calls_opened(box: Box) -> None:
    box.fail()
    box.probe(True, True)
    box.fail()
    box.probe(*[True] * 10)
    assert (box.seen.state, box.seen.opened_by) == ("open", "calls")


def test_bad_probes_open_the_engine_for_all_its_models_and_one_good_one_closes_it(box: Box) -> None:
    box.probe(False)
    assert box.seen.state == "closed"
    box.probe(False)
    assert (box.seen.state, box.seen.opened_by) == ("open", "probes")
    assert box.health.admit("box", "any-model") is None
    assert box.health.admit("other", "qwen") is not None
    box.probe(True)
    assert box.seen.state == "closed"


def test_bad_probes_do_not_put_a_trial_off_for_ever(box: Box) -> None:
    """A server may answer chats and fail the path that is probed: then the calls decide."""
    box.fail(2)
    for _ in range(2):
        box.clock.now += 30
        box.probe(False)
    box.clock.now += 60
    box.probe(False)
    trial = box.call()
    assert trial.is_trial
    trial.succeeded()
    assert box.seen.state == "closed"


def test_of_an_engine_that_probes_opened_one_model_gets_the_trial(box: Box) -> None:
    box.probe(False, False)
    box.clock.now += 60
    trial = box.call("box", "qwen")
    assert trial.is_trial
    assert box.health.admit("box", "llama") is None
    trial.failed("status 500")
    assert box.health.state("box", "llama").retry_after_s == 60
    assert box.health.circuit("box", "llama").state == "closed"


def test_a_call_that_succeeds_is_a_better_witness_than_a_probe(box: Box) -> None:
    direct = box.health.observe(*T)
    box.probe(False)
    direct.succeeded()
    box.probe(False)
    assert box.seen.state == "closed"


def test_one_broken_model_leaves_the_others_of_its_engine_alone(box: Box) -> None:
    box.fail(2)
    assert box.health.admit("box", "llama") is not None
    assert box.health.state("box", "llama").state == "closed"


def test_a_probe_that_began_before_a_restart_says_nothing_of_the_new_server(box: Box) -> None:
    late = [box.health.probe("box"), box.health.probe("box")]
    box.health.forget("box", models=False)
    for probe in late:
        probe.failed("no answer within 3 s")
    assert (box.seen.state, box.heard) == ("closed", [])


# --- what is told, and an operator's word


def test_retry_after_is_the_earliest_trial(box: Box) -> None:
    assert box.health.retry_after_s([T, ("b", "m")]) is None
    box.fail(2)
    box.clock.now += 20
    box.fail(2, "b", "m")
    assert box.health.retry_after_s([T, ("b", "m"), ("c", "m")]) == 40
    assert box.health.retry_after_s([("b", "m")]) == 60


def test_looking_changes_nothing(box: Box) -> None:
    box.fail(2)
    box.clock.now += 60
    for _ in range(3):
        assert not box.seen.is_passed_over
        box.health.snapshot()
        box.health.retry_after_s([T])
    assert box.call().is_trial
    assert box.seen.is_passed_over
    assert Health(HealthSettings(), clock=box.clock).snapshot() == {}


def test_only_transitions_are_told_and_logged_once_each(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "enginerouter")
    box.fail(2)
    box.clock.now += 60
    box.fail()
    box.clock.now += 60
    box.call().succeeded()
    box.call().succeeded()
    box.call().cool_down(3600, "status 402", needs_operator=True)
    assert [(m.after, m.is_again, m.seconds) for m in box.heard] == [
        ("open", False, 60),
        ("open", True, 60),
        ("closed", False, 0),
        ("cooling", False, 3600),
    ]
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "health: box/qwen is passed over for 60 s: status 500"),
        ("INFO", "health: box/qwen is still passed over for 60 s: status 500"),
        ("INFO", "health: box/qwen is no longer passed over: it answers again"),
        ("WARNING", "health: box/qwen is passed over for 3600 s: status 402"),
    ]


def test_a_hostile_name_stays_on_its_line(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    box.fail(2, "cloud", "x\n2026 ERROR forged \x1b[31m")
    [line] = [r.getMessage() for r in caplog.records]
    assert "\n" not in line
    assert "\x1b" not in line


def test_reset_closes_what_is_named_and_calls_under_way_say_nothing_of_it_any_more(box: Box) -> None:
    box.fail(2)
    box.fail(2, "b", "m")
    box.probe(False, False)
    assert box.health.reset("box", "qwen") == [("box", "qwen"), ("box", None)]
    assert box.seen.state == "closed"
    early = box.call()
    box.fail()
    assert box.health.reset() == [("box", "qwen"), ("b", "m")]
    early.failed("status 500")
    assert (box.seen.failures, box.health.state("b", "m").state) == (0, "closed")
    assert box.health.reset() == []


def test_an_engine_that_changed_is_another_one(box: Box) -> None:
    old = box.call()
    box.fail(2)
    box.health.forget("box")
    assert box.heard[-1].after == "closed"
    new = box.call()
    assert not new.is_trial
    old.failed("status 500")
    box.fail()
    assert box.seen.state == "closed"


def test_the_counts_are_those_of_the_last_minute(box: Box) -> None:
    for _ in range(120):
        box.call().succeeded()
        box.clock.now += 1
    assert 60 <= box.seen.ok <= 61
    box.clock.now += 1e6
    assert box.seen.ok == 0


def test_names_that_clients_make_up_do_not_fill_the_memory_nor_push_out_what_is_broken(box: Box) -> None:
    box.fail(2)
    for n in range(MOST_TARGETS * 2):
        box.health.observe("cloud", f"made-up-{n}").dropped()
    assert sum(len(models) for models in box.health.snapshot().values()) <= MOST_TARGETS
    assert box.seen.state == "open"
