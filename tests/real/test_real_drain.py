"""A llama-server in the middle of an answer when the memory is wanted for another: `wait`, `cut` and `refuse`."""

from __future__ import annotations

import threading
import time
from typing import Any

import openai
import pytest
from real_kit import RealRouter, Start, assert_said_by, chat, is_gone, llama, pieces, slow_llama, stream, until

pytestmark = pytest.mark.real

# Whoever waits is impatient, so that a generation of seconds is in the way.
IMPATIENT = {"swap_max_wait_s": 0.3, "swap_min_residency_s": 0}


class Talk:
    """A stream read in a thread: its words, its error, when it was over."""

    def __init__(self, router: RealRouter, model: str, *, words: int, is_stream: bool = True) -> None:
        self._router = router
        self._model = model
        self._words = words
        self._is_stream = is_stream
        self.parts: list[str] = []
        self.error: Exception | None = None
        self.ended_at = 0.0
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        try:
            with self._router.client() as client:
                if self._is_stream:
                    with stream(client, self._model, words=self._words) as events:
                        for piece in pieces(events):
                            self.parts.append(piece)
                else:
                    self.parts.append(str(chat(client, self._model, words=self._words).choices[0].message.content))
        except openai.OpenAIError as error:
            self.error = error
        finally:
            self.ended_at = time.monotonic()

    def begin(self) -> None:
        """Return when it talks."""
        self._thread.start()
        until(lambda: self.parts or self._router.slot(self._model)["in_flight"], "the answer begins")
        if self._is_stream:
            until(lambda: self.parts, "the first word")

    @property
    def is_over(self) -> bool:
        return self.ended_at > 0

    def finish(self) -> str:
        self._thread.join(60)
        assert self.is_over, "it still talks"
        return "".join(self.parts)


def engines() -> dict[str, Any]:
    return {"slow": slow_llama(), "blue": llama("blue")}


def test_wait_lets_a_generation_end_and_then_swaps(start: Start) -> None:
    """Longer than the drain time-out: what still sends bytes is waited for."""
    router = start(engines(), on_drain_timeout="wait", drain_timeout_s=0.5, **IMPATIENT)
    talk = Talk(router, "slow", words=300)
    talk.begin()
    asked_at = time.monotonic()
    assert_said_by("blue", router.ask("blue"))
    assert talk.is_over
    text = talk.finish()
    assert talk.error is None
    assert_said_by("slow", text)
    assert len(text.split()) == 300
    assert talk.ended_at - asked_at > 0.5 + IMPATIENT["swap_max_wait_s"], "it was too quick to be waited for"
    assert router.swap_seconds("blue")["draining"] > 0.5


def test_cut_ends_a_generation_with_an_error_that_the_sdk_raises_and_swaps_quickly(start: Start) -> None:
    router = start(engines(), on_drain_timeout="cut", drain_timeout_s=1, **IMPATIENT)
    talk = Talk(router, "slow", words=4000)
    talk.begin()
    slow = router.engine("slow")
    assert_said_by("blue", router.ask("blue"))
    assert is_gone(slow)
    text = talk.finish()
    assert_said_by("slow", text)
    assert type(talk.error) is openai.APIError
    assert "slow had to leave memory for blue" in str(talk.error)
    seconds = router.swap_seconds("blue")
    assert 1 <= seconds["draining"] < 1.5
    # With its connections open, llama-server would hold its memory until it next looks at them: some 30 s.
    assert seconds["freeing"] < 4


def test_cut_answers_a_request_that_was_not_streaming_with_an_error_status(start: Start) -> None:
    router = start(engines(), on_drain_timeout="cut", drain_timeout_s=1, **IMPATIENT)
    talk = Talk(router, "slow", words=4000, is_stream=False)
    talk.begin()
    assert_said_by("blue", router.ask("blue"))
    talk.finish()
    assert isinstance(talk.error, openai.InternalServerError)
    assert talk.error.status_code == 503
    assert "slow had to leave memory for blue" in str(talk.error)
    assert router.swap_seconds("blue")["freeing"] < 4, "it hangs in its handler of the first signal at times"


def test_refuse_turns_the_waiter_away_and_lets_the_generation_go_on(start: Start) -> None:
    router = start(engines(), on_drain_timeout="refuse", drain_timeout_s=0.5, **IMPATIENT)
    talk = Talk(router, "slow", words=300)
    talk.begin()
    slow = router.engine("slow")
    with router.client() as client, pytest.raises(openai.InternalServerError) as caught:
        chat(client, "blue")
    assert not talk.is_over
    assert caught.value.status_code == 503
    assert caught.value.code == "engine_busy"
    assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 60
    text = talk.finish()
    assert talk.error is None
    assert len(text.split()) == 300
    assert router.engine("slow") == slow
    assert router.metric('swap_total{from="none",to="blue",result="refused"}') == 1
    # Afterwards nothing is in the way any more.
    assert_said_by("blue", router.ask("blue"))
