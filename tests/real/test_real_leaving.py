"""A client that leaves: llama-server stops talking to nobody, and is free for the next."""

from __future__ import annotations

import json
import time

import openai
import pytest
from real_kit import RealRouter, Start, assert_said_by, chat, llama, pieces, send, slow_llama, stream, until

pytestmark = pytest.mark.real

# More often than once a second, /slots itself keeps llama-server from noticing that its client has left.
SLOTS_EVERY_S = 2.0
# A minute of talk on a small machine.
LONG = 4000


def is_talking(engine_url: str) -> bool:
    slots = json.loads(send(f"{engine_url}/slots").body)
    return any(slot["is_processing"] for slot in slots)


def assert_falls_silent(router: RealRouter) -> None:
    """Within one look at /slots or two."""
    until(lambda: router.slot("slow")["in_flight"] == 0, "the lease is given back")
    time.sleep(SLOTS_EVERY_S)
    url = router.engine_url("slow")
    until(lambda: not is_talking(url), "its slot is free", timeout_s=3 * SLOTS_EVERY_S, every_s=SLOTS_EVERY_S)
    began = time.monotonic()
    assert_said_by("slow", router.ask("slow", words=1))
    assert time.monotonic() - began < 5


def test_a_streaming_client_that_leaves_frees_the_slot(start: Start) -> None:
    router = start({"slow": slow_llama()})
    with router.client() as client:
        with stream(client, "slow", words=LONG) as events:
            assert next(pieces(events))
        assert_falls_silent(router)
    assert "499" in router.wait_log("enginerouter.requests")


def test_a_client_that_waits_for_a_whole_answer_and_leaves_frees_the_slot(start: Start) -> None:
    router = start({"slow": slow_llama()})
    router.ask("slow", words=1)
    with router.client(timeout=1) as client, pytest.raises(openai.APITimeoutError):
        chat(client, "slow", words=LONG)
    assert_falls_silent(router)


def test_a_client_that_leaves_the_queue_causes_no_swap(start: Start) -> None:
    """It gave up while the other engine was busy: that one stays."""
    router = start({"slow": slow_llama(), "blue": llama("blue")})
    with router.client() as client, stream(client, "slow", words=LONG) as events:
        assert next(pieces(events))
        slow = router.engine("slow")
        with router.client(timeout=0.5) as impatient, pytest.raises(openai.APITimeoutError):
            chat(impatient, "blue")
        until(lambda: router.status()["queued"] == 0, "its place in the queue is given up")
        assert next(pieces(events))
    assert router.engine("slow") == slow
    assert "blue cold -> starting" not in router.log()
