"""The promises of the scheduler, held against random lives (`chaos.py`), all in virtual time.

Every failure names its seed: `live(draw(seed))` is that life again.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginerouter.swap.settle import Verdict
from swap.chaos import Arrival, Life, Record, Visit, check_ends, check_waits, draw, live
from swap.fakes import GIB


def seeds(first: int, some: int, all_of_them: int) -> pytest.MarkDecorator:
    """The test on some seeds, and on the rest of them where there is time."""
    rest = pytest.param(range(first + some, first + all_of_them), marks=pytest.mark.slow, id="the rest")
    return pytest.mark.parametrize("seeds", [pytest.param(range(first, first + some), id="some"), rest])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A hundred thousand steps log a few lines each; pytest would keep them all."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def check(life: Life) -> Record:
    try:
        record = live(life)
        check_ends(record)
        check_waits(record)
    except BaseException as error:
        error.add_note(f"seed {life.seed}: {life.rules}")
        raise
    return record


@seeds(0, 90, 320)
def test_the_promises_hold_after_every_step_of_many_random_lives(seeds: range):
    """Never two memory holders beyond the plan; no lease on what does not serve; everybody ends once and in time."""
    records = [check(draw(seed)) for seed in seeds]
    steps = sum(r.steps for r in records)
    outcomes = sum((r.outcomes() for r in records), start=records[0].outcomes().__class__())
    results = {report.result for r in records for _, _, report in r.swaps}
    print(f"{steps} steps in {len(records)} lives: {dict(outcomes)}, swaps: {sorted(results)}")
    assert steps >= 300 * len(seeds)
    # The lives are wild enough to be worth it.
    assert results == {"ok", "failed", "called_off", "ended"}
    ways = ("answered", "left", "cut_for_swap", "engine_crashed", "start_failed", "free_failed", "queue_full",
            "queue_timeout", "pinned", "start_circuit_open", "held")  # fmt: skip
    assert all(outcomes[way] > len(seeds) / 16 for way in ways)
    holds = sum(len(r.holds) for r in records)
    print(f"{holds} holds, {sum(r.frees for r in records)} steps with the memory free for somebody else")
    assert holds > len(seeds) / 4
    assert sum(r.found for r in records) > len(seeds) / 4, "others load models"


@seeds(10_000, 15, 60)
def test_calm_lives_end_with_everybody_served(seeds: range):
    """Where nothing breaks and nobody is turned away, whoever stays is served; drains may cut (`cut`)."""
    for seed in seeds:
        life = draw(seed, is_calm=True)
        rules = replace(life.rules, max_queued=10_000, queue_timeout_s=10_000.0)
        specs = tuple(replace(s, is_pinned=False) for s in life.specs)
        record = check(replace(life, rules=rules, specs=specs))
        assert set(record.outcomes()) <= {"answered", "left", "cut_for_swap"}


@seeds(20_000, 20, 80)
def test_no_engine_is_started_on_memory_that_is_not_back(seeds: range):
    """Where engines can say what they hold, and no settle was given up or ended early for a target of known need."""
    lives = 0
    for seed in seeds:
        life = draw(seed)
        if life.shared:
            continue  # what others load comes on top
        scripts = {n: replace(s, own_bytes=True) for n, s in life.scripts.items()}
        specs = tuple(replace(s, holds_memory=True) for s in life.specs)
        record = check(replace(life, scripts=scripts, specs=specs))
        verdicts = {r.settled.verdict for _, _, r in record.swaps if r.settled is not None}
        if verdicts & {Verdict.TIMEOUT, Verdict.ENOUGH}:
            continue
        lives += 1
        assert record.lowest >= 0, f"seed {seed}: {-record.lowest / GIB:.1f} GiB over"
    assert lives >= len(seeds) / 5


@seeds(30_000, 15, 80)
def test_a_leaver_changes_nothing_for_the_others(seeds: range):
    """The same life with and without tickets that leave and whose target somebody else waits for all the while."""
    extras = 0
    for seed in seeds:
        life = draw(seed, is_calm=True)
        life = replace(life, rules=replace(life.rules, max_queued=10_000), has_priorities=False)
        life = replace(life, arrivals=tuple(replace(a, priority=0) for a in life.arrivals))
        plain = check(life)
        leavers = _leavers_beside_waiters(plain, random.Random(seed))
        if not leavers:
            continue
        extras += len(leavers)
        arrivals = tuple(sorted([*life.arrivals, *leavers], key=lambda a: a.at))
        crowded = check(replace(life, arrivals=arrivals))
        others = [v for v in crowded.visits if not any(v.arrival is a for a in leavers)]
        assert [v.outcome for v in crowded.visits if v not in others] == ["left"] * len(leavers)
        for before, after in zip(plain.visits, others, strict=True):
            assert _fate(before) == pytest.approx(_fate(after), abs=0.01), f"seed {seed}: {before} became {after}"
            assert before.outcome == after.outcome, f"seed {seed}: {before} became {after}"
    print(f"{extras} leavers")
    assert extras > len(seeds)


def _leavers_beside_waiters(record: Record, dice: random.Random) -> list[Arrival]:
    """Up to eight tickets, each behind a ticket that waits before it comes and after it has left."""
    limited = {s.id for s in record.life.specs if s.max_in_flight is not None}
    waiters = [
        v for v in record.visits
        if v.waited_until - v.arrival.at > 0.2 and v.arrival.slot not in limited
    ]  # fmt: skip
    leavers: list[Arrival] = []
    for visit in dice.sample(waiters, min(8, len(waiters))):
        came = visit.arrival.at + dice.uniform(0.02, 0.1)
        stays = dice.uniform(0.0, visit.waited_until - came - 0.05)
        leavers.append(replace(visit.arrival, at=came, leaves_after_s=stays, hold_s=0.0))
    return leavers


def _fate(visit: Visit) -> float:
    return visit.waited_until


@given(st.integers(min_value=0, max_value=2**32))
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_the_promises_hold_for_short_lives_that_hypothesis_picks(seed: int):
    check(draw(seed, arrivals=25))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100_000, 104_000, 1000))
def test_the_promises_hold_in_thousands_of_lives(first: int):
    steps = sum(check(draw(seed, arrivals=150)).steps for seed in range(first, first + 1000))
    print(f"{steps} steps")
