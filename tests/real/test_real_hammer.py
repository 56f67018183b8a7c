"""Four clients that want two models in turns, as fast as they can."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from real_kit import RealRouter, Start, assert_said_by, chat, llama, pieces, said, stream

pytestmark = pytest.mark.real

SECONDS = 20.0
LINGER_S = 0.25  # the default


def hammer(router: RealRouter, seed: int) -> int:
    """Ask one of the two, streaming or not, again and again; the number of answers. Any error is raised."""
    choice = random.Random(seed)
    over = time.monotonic() + SECONDS
    answers = 0
    with router.client() as client:
        while time.monotonic() < over:
            model = choice.choice(("red", "blue"))
            if choice.random() < 0.5:
                with stream(client, model, words=8) as events:
                    text = "".join(pieces(events))
            else:
                text = said(chat(client, model, words=8))
            assert_said_by(model, text)
            assert len(text.split()) == 8
            answers += 1
    return answers


def test_four_clients_alternating_models_get_only_right_answers_and_few_swaps(start: Start) -> None:
    router = start({"red": llama("red"), "blue": llama("blue")})
    with ThreadPoolExecutor(4) as pool:
        answers = sum(pool.map(hammer, [router] * 4, range(4)))
    swaps = sum(
        router.metric(f'swap_total{{from="{one}",to="{other}",result="ok"}}')
        for one, other in (("red", "blue"), ("blue", "red"), ("none", "red"), ("none", "blue"))
    )
    log = router.log()
    assert " failed after" not in log
    assert swaps >= 4, "there was nothing to alternate"
    # An idle resident leaves after its linger, and a start takes time, too.
    assert swaps <= SECONDS / LINGER_S
    assert answers >= 2 * swaps
    for model in ("red", "blue"):
        assert router.slot(model)["in_flight"] == 0
        assert router.slot(model)["queued"] == 0
