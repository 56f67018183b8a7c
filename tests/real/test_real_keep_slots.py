"""A conversation that comes back after a swap, and a llama-server that sleeps by itself."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest
from real_kit import RealRouter, Start, assert_said_by, llama, until

from llama import cache_folder

pytestmark = pytest.mark.real

LONG = " ".join(f"word {n} of a long story" for n in range(120))


def turn(router: RealRouter, messages: list[dict[str, str]]) -> dict[str, Any]:
    answer = router.post("/v1/chat/completions", {"model": "red", "messages": messages, "max_tokens": 8})
    assert answer.status == 200, answer.body
    found: dict[str, Any] = json.loads(answer.body)
    return found


def second_turn_after_a_swap(router: RealRouter) -> dict[str, Any]:
    """The timings of the second turn of a long conversation, with another engine in between."""
    messages = [{"role": "user", "content": LONG}]
    first = turn(router, messages)
    assert first["timings"]["prompt_n"] > 3000
    router.ask("blue")
    said = first["choices"][0]["message"]["content"]
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}]
    timings: dict[str, Any] = turn(router, messages)["timings"]
    return timings


def engines(**more: Any) -> dict[str, Any]:
    """Without `keep_slots` the folder is given all the same, so that nothing else is different."""
    folder = cache_folder() / "kv"
    folder.mkdir(exist_ok=True)
    given = {"cwd": str(folder.parent), **more}
    return {"red": llama("red", "--slot-save-path", "kv", context=8192) | given, "blue": llama("blue")}


def test_without_keep_slots_a_returning_conversation_is_read_again(start: Start) -> None:
    router = start(engines())
    timings = second_turn_after_a_swap(router)
    assert timings["prompt_n"] > 3000


def test_with_keep_slots_a_returning_conversation_evaluates_less_than_a_tenth(start: Start) -> None:
    router = start(engines(keep_slots=True, cwd="."))
    timings = second_turn_after_a_swap(router)
    whole = timings["prompt_n"] + timings["cache_n"]
    assert whole > 3000
    assert timings["prompt_n"] < whole / 10, timings
    assert list((router.folder / "kv").iterdir()) == []


def test_a_server_that_fell_asleep_by_itself_is_ready_and_wakes_on_a_request(start: Start) -> None:
    """It answers 200 on /health with its weights gone; for us it is resident all the time."""
    router = start({"red": llama("red", "--sleep-idle-seconds", "1"), "blue": llama("blue")})
    router.ask("red")
    red = router.engine("red")
    url = router.engine_url("red")

    def is_sleeping() -> bool:
        with urllib.request.urlopen(f"{url}/props", timeout=5) as answer:
            return bool(json.load(answer)["is_sleeping"])

    until(is_sleeping, "it sleeps")
    with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
        assert answer.status == 200
    assert router.phase("red") == "ready"
    assert_said_by("red", router.ask("red"))
    assert router.engine("red") == red
    until(is_sleeping, "it sleeps again")
    assert_said_by("blue", router.ask("blue"))
    assert_said_by("red", router.ask("red"))
    assert router.settles(2)[0].verdict != "timeout"


def test_a_sleeping_server_with_keep_slots_is_freed_without_waking(start: Start) -> None:
    red = llama("red", "--sleep-idle-seconds", "1", "--slot-save-path", "kv") | {"keep_slots": True, "cwd": "."}
    router = start({"red": red, "blue": llama("blue")})
    router.ask("red")
    url = router.engine_url("red")

    def is_sleeping() -> bool:
        with urllib.request.urlopen(f"{url}/props", timeout=5) as answer:
            return bool(json.load(answer)["is_sleeping"])

    until(is_sleeping, "it sleeps")
    assert_said_by("blue", router.ask("blue"))
    assert list((router.folder / "kv").iterdir()) == []
