"""What a real llama-server says, translated for the clients of the other dialects."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from dialects.golden_kit import events
from enginerouter.dialects.base import Dialect, Times
from enginerouter.dialects.openai import engine_error_fields
from enginerouter.dialects.translation import ANTHROPIC, OLLAMA, Answer, payload, plan
from llama import model_file, running_llama_server

pytestmark = pytest.mark.real

HI = [{"role": "user", "content": "Say hello to the people over there."}]
CALM = {"temperature": 0, "seed": 1}
PIECE_BYTES = 7


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    with running_llama_server(model_file("red"), "-c", "512") as (url, _):
        yield url


def post(url: str, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    request = urllib.request.Request(url + path, payload(body), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def asked(url: str, client: Dialect, path: str, body: dict[str, Any]) -> Any:
    """What the client gets: one object, or the events of a stream."""
    times = Times(time.monotonic(), time.time())
    translation = plan(client, path, body, ["openai"], answer_id="a1")
    assert translation is not None
    status, raw = post(url, translation.path, translation.body)
    if status != 200:
        return status, json.loads(client.error_body(status, engine_error_fields(status, raw)))
    if not translation.asked.wants_stream:
        answer = translation.answer(raw, times, time.monotonic(), engine="llama")
        assert isinstance(answer, Answer)
        return json.loads(answer.body)
    stream, out = translation.stream(times), b""
    for at in range(0, len(raw), PIECE_BYTES):
        out += stream.feed(raw[at : at + PIECE_BYTES], time.monotonic())
    assert stream.is_done
    return events(client.name, out)


def test_an_ollama_client_gets_the_same_streamed_and_not(llama: str) -> None:
    body = {"model": "m", "messages": HI, "options": {**CALM, "num_predict": 8}, "think": False}
    whole = asked(llama, OLLAMA, "/api/chat", {**body, "stream": False})
    lines = asked(llama, OLLAMA, "/api/chat", body)
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"] != ""
    for last in (whole, lines[-1]):
        assert (last["done_reason"], last["eval_count"]) == ("length", 8)
        assert last["prompt_eval_count"] > 5
        assert 0 < last["eval_duration"] < last["total_duration"]


def test_generate_raw_is_the_bare_prompt(llama: str) -> None:
    body = {"model": "m", "prompt": "Hello", "raw": True, "options": {**CALM, "num_predict": 4}}
    lines = asked(llama, OLLAMA, "/api/generate", body)
    native = json.loads(post(llama, "/v1/completions", {"prompt": "Hello", "max_tokens": 4, **CALM})[1])
    assert "".join(line["response"] for line in lines) == native["choices"][0]["text"]
    assert lines[-1]["prompt_eval_count"] == native["usage"]["prompt_tokens"]


def test_an_anthropic_client_gets_what_llama_server_itself_would_say(llama: str) -> None:
    body = {"model": "m", "messages": HI, "max_tokens": 8, "system": "Be short.", **CALM}
    native = json.loads(post(llama, "/v1/messages", body)[1])
    whole = asked(llama, ANTHROPIC, "/v1/messages", body)
    assert [b["text"] for b in whole["content"]] == [b["text"] for b in native["content"]]
    assert whole["stop_reason"] == native["stop_reason"] == "max_tokens"
    assert whole["usage"]["output_tokens"] == native["usage"]["output_tokens"]
    streamed = asked(llama, ANTHROPIC, "/v1/messages", {**body, "stream": True})
    assert (
        "".join(e["delta"].get("text", "") for e in streamed if e["type"] == "content_block_delta")
        == (whole["content"][0]["text"])
    )
    usage = streamed[-2]["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == sum(
        whole["usage"][key] for key in ("input_tokens", "cache_read_input_tokens")
    )


def test_a_schema_binds_the_answer(llama: str) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["yes"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    body = {"model": "m", "messages": HI, "stream": False, "format": schema, "options": {**CALM, "num_predict": 100}}
    assert json.loads(asked(llama, OLLAMA, "/api/chat", body)["message"]["content"]) == {"a": "yes"}


def test_too_long_a_prompt_is_refused_in_the_client_s_words(llama: str) -> None:
    body = {"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": "word " * 3000}]}
    status, said = asked(llama, ANTHROPIC, "/v1/messages", body)
    assert (status, said["error"]["type"]) == (400, "invalid_request_error")
    assert "context" in said["error"]["message"]
    status, said = asked(llama, OLLAMA, "/api/chat", body)
    assert status == 400
    assert "context" in said["error"]
