"""The readings of the last hour, in virtual time."""

from __future__ import annotations

from enginerouter.swap.history import MemoryHistory


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def noted(times: list[float]) -> tuple[MemoryHistory, Clock]:
    """A history of readings at these times, each of as many bytes as its tenth of a second."""
    clock = Clock()
    history = MemoryHistory(clock)
    for clock.now in times:
        history.note(round(clock.now * 10))
    return history, clock


def test_readings_in_quick_succession_are_one_point_in_five_seconds_and_the_newest() -> None:
    history, _ = noted([n / 10 for n in range(128)])
    assert [available for _, available in history.points()] == [0, 50, 100, 127]


def test_what_is_read_less_often_is_all_kept_and_nothing_is_made_up_in_between() -> None:
    history, _ = noted([0.0, 10.0, 400.0])
    assert history.points() == [(400.0, 0), (390.0, 100), (0.0, 4000)]


def test_an_hour_is_kept_and_no_more_however_often_memory_is_read() -> None:
    history, clock = noted([n / 2 for n in range(4 * 3600)])
    points = history.points()
    assert len(points) == 721
    assert 3590 < points[0][0] <= 3600
    clock.now += 3000
    assert len(history.points()) == 121
    clock.now += 3000
    assert history.points() == []


def test_before_the_first_reading_there_is_nothing() -> None:
    assert MemoryHistory().points() == []
