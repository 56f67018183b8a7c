"""Engines that die, cannot start, or find their port taken: what the SDK raises, what the next request gets."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import openai
import pytest
from real_kit import Start, assert_said_by, chat, kill_hard, llama, pieces, slow_llama, stream, until

pytestmark = pytest.mark.real


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that this very process listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_an_engine_killed_while_idle_is_started_again_by_the_next_request(start: Start) -> None:
    router = start({"red": llama("red"), "blue": llama("blue")})
    router.ask("red")
    first = router.engine("red")
    kill_hard(first)
    until(lambda: router.phase("red") != "ready", "its end is noticed", timeout_s=3)
    assert "SIGKILL" in router.wait_log("red ready -> crashed")
    assert_said_by("red", router.ask("red"))
    assert router.engine("red").pid != first.pid
    assert router.metric('engine_crashes_total{engine="red"}') == 1
    assert router.metric('engine_starts_total{engine="red"}') == 2


def test_a_request_in_the_moment_of_a_kill_gets_an_answer_or_an_error_but_no_silence(start: Start) -> None:
    """The kill and the request race; whatever happens, the one after them is served."""
    router = start({"red": llama("red")})
    for _ in range(3):
        router.ask("red")
        kill_hard(router.engine("red"))
        began = time.monotonic()
        answer = router.post("/v1/completions", {"model": "red", "prompt": "Hi", "max_tokens": 2})
        assert time.monotonic() - began < 5
        assert answer.status == 200 or (answer.status == 502 and "red" in answer.error["message"]), answer
        router.post("/admin/reset", {})
        assert_said_by("red", router.ask("red"))


def test_an_engine_killed_in_the_middle_of_an_answer_makes_the_sdk_raise(start: Start) -> None:
    router = start({"slow": slow_llama()})
    with router.client() as client, stream(client, "slow", words=4000) as events:
        words = pieces(events)
        heard = [next(words) for _ in range(5)]
        kill_hard(router.engine("slow"))
        with pytest.raises(openai.APIError) as caught:
            heard.extend(words)
    assert_said_by("slow", "".join(heard))
    assert "slow" in str(caught.value)
    assert "while it served" in str(caught.value)
    assert_said_by("slow", router.ask("slow", words=1))


def test_an_engine_killed_before_it_answers_in_one_piece_gives_a_502_that_says_so(start: Start) -> None:
    router = start({"slow": slow_llama()})
    router.ask("slow", words=1)
    slow = router.engine("slow")

    killing = threading.Timer(1.0, kill_hard, [slow])
    killing.start()
    with router.client() as client, pytest.raises(openai.InternalServerError) as caught:
        chat(client, "slow", words=4000)
    killing.join()
    assert caught.value.status_code == 502
    assert "while it served" in str(caught.value)


def test_a_bad_flag_is_a_quick_error_that_names_the_cause(start: Start) -> None:
    router = start({"bad": llama("bad", "--frobnicate"), "blue": llama("blue")})
    router.ask("blue")
    began = time.monotonic()
    answer = router.post("/v1/chat/completions", {"model": "bad", "messages": [{"role": "user", "content": "Hi"}]})
    assert time.monotonic() - began < 5
    assert answer.status == 502
    assert "'bad'" in answer.error["message"]
    assert "flag" in answer.error["message"]
    assert "--frobnicate" in answer.body.decode(), "without keys everybody is an admin, and sees the log's end"
    assert answer.headers["x-should-retry"] == "false"
    assert_said_by("blue", router.ask("blue"))


def test_the_sdk_does_not_start_a_broken_engine_three_times(start: Start) -> None:
    router = start({"bad": llama("bad", "--frobnicate")})
    with router.client(max_retries=2) as client, pytest.raises(openai.InternalServerError):
        chat(client, "bad")
    assert router.wait_log("bad cold -> starting")
    assert router.log().count("bad cold -> starting") == 1


def test_a_missing_model_file_is_an_error_before_the_resident_is_touched(start: Start) -> None:
    missing = llama("missing")
    missing["start_cmd"] = ["/no/such/model.gguf" if w.endswith(".gguf") else w for w in missing["start_cmd"]]
    router = start({"missing": missing, "blue": llama("blue")})
    router.ask("blue")
    blue = router.engine("blue")
    with router.client() as client, pytest.raises(openai.InternalServerError) as caught:
        chat(client, "missing")
    assert caught.value.status_code == 502
    assert "'/no/such/model.gguf' does not exist" in str(caught.value)
    assert router.engine("blue") == blue
    assert router.phase("blue") == "ready"
    assert "blue ready ->" not in router.log()


def test_a_missing_program_is_an_error_that_says_what_to_install(start: Start) -> None:
    router = start({"none": {"type": "generic_process", "start_cmd": ["no-such-llama-server", "--port", "{port}"]}})
    with router.client() as client, pytest.raises(openai.InternalServerError, match="not on PATH: install it"):
        chat(client, "none")


def test_a_port_held_by_a_stranger_names_port_and_process_and_other_engines_still_swap(
    start: Start, taken_port: int
) -> None:
    taken = llama("taken")
    taken["start_cmd"] = [word.replace("{port}", str(taken_port)) for word in taken["start_cmd"]]
    taken["base_url"] = f"http://127.0.0.1:{taken_port}"
    router = start({"taken": taken, "red": llama("red"), "blue": llama("blue")})
    router.ask("red")
    red = router.engine("red")
    with router.client() as client, pytest.raises(openai.InternalServerError) as caught:
        chat(client, "taken")
    assert caught.value.status_code == 502
    assert f"port {taken_port}" in str(caught.value)
    assert f"process {os.getpid()}" in str(caught.value)
    assert router.engine("red") == red
    assert_said_by("blue", router.ask("blue"))
    assert_said_by("red", router.ask("red"))


def test_an_engine_that_never_becomes_ready_gives_up_at_its_time_limit(start: Start) -> None:
    never = llama("never")
    never.update(ready_path="/no/such/path", start_timeout_s=1.5)
    router = start({"never": never, "blue": llama("blue")})
    answer = router.post("/v1/chat/completions", {"model": "never", "messages": [{"role": "user", "content": "Hi"}]})
    assert answer.status == 504
    assert "not ready within 1.5 s" in answer.error["message"]
    assert "status 404" in answer.error["message"]
    assert_said_by("blue", router.ask("blue"))
