"""The verdict on scripted curves of available memory. A curve gives GiB by seconds since the first stop signal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from enginerouter.swap.held import largest_known
from enginerouter.swap.settle import READ_EVERY_S, Question, Reading, verdict

GIB = 1024**3
Curve = Callable[[float], float]


def settle(
    curve: Curve,
    *,
    held: float | None,
    before: float = 20.0,
    need: float | None = None,
    timeout_s: float = 25.0,
    is_gone: bool = True,
    is_partial: bool = False,
    from_s: float = 0.5,
) -> tuple[str, float]:
    """The verdict and when it fell, read every 20 ms from `from_s` on (the stop itself took that long)."""
    question = Question(
        before=int(before * GIB),
        held=None if held is None else int(held * GIB),
        need=None if need is None else int(need * GIB),
        is_gone=is_gone,
        timeout_s=timeout_s,
        is_partial=is_partial,
    )
    readings: list[Reading] = []
    for n in range(10_000):
        at = from_s + n * READ_EVERY_S
        readings.append(Reading(at, int(curve(at) * GIB)))
        if said := verdict(readings, question):
            return said.value, at - from_s
    raise AssertionError("no verdict in 200 s")


def flat(level: float) -> Curve:
    return lambda _: level


def step_at(at: float, low: float = 20.0, high: float = 100.0) -> Curve:
    return lambda t: high if t >= at else low


def slope(from_s: float, gib_s: float, low: float = 20.0, high: float = 100.0) -> Curve:
    return lambda t: min(high, low + max(0.0, t - from_s) * gib_s)


def test_a_memory_mapped_model_costs_no_wait():
    """It holds a few buffers; its file-backed pages were called available all the time."""
    assert settle(flat(100.0), before=99.98, held=0.05) == ("recovered", 0.0)


def test_memory_that_is_back_at_once_costs_no_wait():
    assert settle(step_at(0.4), held=80.0) == ("recovered", 0.0)


def test_memory_already_back_costs_less_than_50_ms_even_if_it_must_be_read_twice():
    said, seconds = settle(step_at(0.4), held=None, need=60.0)
    assert said == "enough"
    assert seconds < 0.05


def test_memory_that_returns_8_s_late_is_waited_for_over_the_flat_line():
    said, seconds = settle(step_at(8.0), held=80.0)
    assert said == "recovered"
    assert seconds == pytest.approx(7.5, abs=2 * READ_EVERY_S)


def test_a_slow_return_of_1_8_gib_a_second_is_waited_out():
    said, seconds = settle(slope(0.5, 1.8, high=60.0), held=40.0, timeout_s=60.0)
    assert said == "recovered"
    assert seconds == pytest.approx((40.0 - 2.0) / 1.8, abs=0.1)


def test_a_pause_of_1_1_s_in_the_middle_is_not_the_end():
    def curve(t: float) -> float:
        if t < 2.0:
            return min(60.0, slope(0.5, 40.0)(t))
        return 60.0 if t < 3.1 else slope(3.1, 40.0, low=60.0)(t)

    said, seconds = settle(curve, held=80.0)
    assert said == "recovered"
    assert seconds > 2.6


def test_the_sawtooth_of_another_program_does_not_look_like_the_end():
    """20 GiB up and down beside a return that comes at 6 s."""

    def curve(t: float) -> float:
        return (10.0 if int(t / 0.7) % 2 else 0.0) + step_at(6.0, low=20.0, high=95.0)(t)

    said, seconds = settle(curve, held=75.0)
    assert said == "recovered"
    assert seconds == pytest.approx(5.5, abs=0.8)


def test_falling_memory_is_no_recovery():
    assert settle(lambda t: 20.0 - t / 10, held=10.0) == ("timeout", pytest.approx(25.0, abs=0.03))


def test_memory_that_never_returns_ends_in_a_timeout():
    assert settle(flat(20.0), held=80.0) == ("timeout", pytest.approx(25.0, abs=0.03))


def test_where_only_a_part_of_held_is_known_its_return_is_the_end_once_nothing_more_comes():
    said, seconds = settle(slope(0.0, 8.0), held=10.0, is_partial=True)
    assert said == "recovered"
    assert seconds == pytest.approx(10.0 - 0.5 + 1.0, abs=0.1)
    assert settle(slope(0.0, 8.0), held=10.0)[1] < 1.0, "with all of it known there is no more to wait for"


def test_with_nothing_known_of_held_a_plateau_of_one_second_ends_it():
    assert settle(flat(20.0), held=None) == ("plateau", pytest.approx(1.0, abs=0.03))


def test_with_nothing_known_of_held_a_rise_goes_on_being_waited_for():
    said, seconds = settle(slope(0.5, 20.0), held=None)
    assert said == "plateau"
    assert seconds == pytest.approx(4.0 + 1.0, abs=0.1)


def test_there_is_no_plateau_while_something_may_still_be_there():
    assert settle(flat(20.0), held=None, is_gone=False)[0] == "timeout"


def test_a_crawl_of_less_than_32_mib_a_second_is_a_plateau():
    assert settle(slope(0.0, 0.03), held=None)[0] == "plateau"
    assert settle(slope(0.0, 0.033, high=1000.0), held=None)[0] == "timeout"


def test_enough_needs_two_readings():
    """One reading may be the crest of somebody else's wave."""

    def one_crest(t: float) -> float:
        return 90.0 if 1.0 <= t < 1.02 else 20.0

    assert settle(one_crest, held=80.0, need=60.0)[0] == "timeout"


def test_enough_asks_for_five_percent_more_than_the_need():
    assert settle(flat(63.0), before=0.0, held=80.0, need=60.0)[0] == "enough"
    assert settle(flat(62.9), before=0.0, held=80.0, need=60.0)[0] == "timeout"


def test_enough_ends_a_wait_for_more_than_the_target_needs():
    said, seconds = settle(slope(0.5, 10.0), held=80.0, need=30.0)
    assert said == "enough"
    assert seconds == pytest.approx((31.5 - 20.0) / 10.0, abs=0.05)


@pytest.mark.parametrize(("held", "missing", "said"), [
    (80.0, 3.9, "recovered"), (80.0, 4.1, "timeout"),
    (0.5, 0.06, "recovered"), (0.5, 0.07, "timeout"),
])  # fmt: skip
def test_recovered_forgives_five_percent_or_64_mib(held: float, missing: float, said: str):
    assert settle(flat(20.0 + held - missing), held=held)[0] == said


def test_what_is_held_is_the_largest_of_what_is_known():
    assert largest_known(None, 3, 2) == 3
    assert largest_known(None, None) is None
    assert largest_known(0) == 0
