from __future__ import annotations

import pytest

from enginerouter.errors import LeaseCut
from enginerouter.slots import SlotId
from enginerouter.swap.drain import look
from enginerouter.swap.model import DrainPolicy, Lease, Slot, SlotSpec

SLOT = Slot(SlotSpec(SlotId("a")))


def lease(last_byte_at: float) -> Lease:
    given = Lease(SLOT, 0.0, lambda _: None)
    given.last_byte_at = last_byte_at
    return given


def was_cut(given: Lease) -> Lease:
    given.cut(LeaseCut("cut before"))
    return given


@pytest.mark.parametrize("policy", ["wait", "cut", "refuse"])
def test_with_nobody_left_there_is_nothing_to_do(policy: DrainPolicy):
    said = look([], 0.0, 99.0, policy=policy, timeout_s=30.0)
    assert (said.cut, said.is_refused, said.next_look) == ([], False, None)


@pytest.mark.parametrize("policy", ["wait", "cut", "refuse"])
def test_what_was_cut_before_is_not_looked_at_again(policy: DrainPolicy):
    said = look([was_cut(lease(0.0))], 0.0, 99.0, policy=policy, timeout_s=30.0)
    assert (said.cut, said.is_refused, said.next_look) == ([], False, None)


def test_wait_leaves_alone_what_still_receives_bytes():
    lively = lease(last_byte_at=129.0)
    said = look([lively], began_at=100.0, now=130.0, policy="wait", timeout_s=30.0)
    assert (said.cut, said.next_look) == ([], 159.0)


def test_wait_cuts_what_was_silent_for_the_timeout_of_this_drain():
    silent = lease(last_byte_at=0.0)
    assert look([silent], 100.0, 129.9, policy="wait", timeout_s=30.0).next_look == 130.0
    assert look([silent], 100.0, 130.0, policy="wait", timeout_s=30.0).cut == [silent]


def test_wait_cuts_only_the_silent_of_two():
    silent, lively = lease(90.0), lease(120.0)
    said = look([silent, lively], 100.0, 131.0, policy="wait", timeout_s=30.0)
    assert (said.cut, said.next_look) == ([silent], 150.0)


def test_cut_cuts_all_at_the_deadline_and_none_before():
    leases = [lease(129.9), lease(0.0)]
    assert look(leases, 100.0, 129.9, policy="cut", timeout_s=30.0).next_look == 130.0
    assert look(leases, 100.0, 130.0, policy="cut", timeout_s=30.0).cut == leases


def test_refuse_calls_off_at_the_deadline_and_cuts_nothing():
    leases = [lease(129.9)]
    assert not look(leases, 100.0, 129.9, policy="refuse", timeout_s=30.0).is_refused
    said = look(leases, 100.0, 130.0, policy="refuse", timeout_s=30.0)
    assert (said.is_refused, said.cut) == (True, [])
