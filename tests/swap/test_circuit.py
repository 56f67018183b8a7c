from __future__ import annotations

import pytest

from enginerouter.swap.circuit import CLOSED, FIRST_PAUSE_S, LONGEST_PAUSE_S, StartCircuit, after_failure


def fail(times: int, *, max_restarts: int = 3, circuit: StartCircuit = CLOSED) -> StartCircuit:
    for n in range(times):
        circuit = after_failure(circuit, f"failure {n + 1}", max_restarts=max_restarts, now=1000.0)
    return circuit


def test_it_is_closed_at_first():
    assert not CLOSED.is_open(0.0)


def test_it_opens_at_the_last_allowed_failure_with_its_reason():
    assert not fail(2).is_open(1000.0)
    third = fail(3)
    assert third.is_open(1000.0)
    assert (third.failures, third.reason) == (3, "failure 3")


def test_it_lets_one_try_through_when_its_pause_is_over():
    third = fail(3)
    assert third.is_open(1000.0 + FIRST_PAUSE_S - 0.001)
    assert not third.is_open(1000.0 + FIRST_PAUSE_S)


@pytest.mark.parametrize(("failures", "pause"), [(3, 30), (4, 60), (5, 120), (8, 960), (9, 1800), (10, 1800)])
def test_each_pause_is_twice_the_one_before_up_to_half_an_hour(failures: int, pause: float):
    assert fail(failures).open_until - 1000.0 == pause


def test_a_year_of_failures_does_not_overflow():
    assert fail(5000).open_until == 1000.0 + LONGEST_PAUSE_S


@pytest.mark.parametrize("max_restarts", [0, 1])
def test_without_restarts_the_first_failure_opens_it(max_restarts: int):
    assert fail(1, max_restarts=max_restarts).is_open(1000.0)
