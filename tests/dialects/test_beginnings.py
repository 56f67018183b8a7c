"""Where an answer begins: what says nothing yet, what is the answer, and what is an error – however it is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginerouter.dialects.beginnings import BEGUN, LONGEST_EVENT, Beginning, ErrorSaid, FirstEvent, error_said


def data(said: Any, end: str = "\n\n") -> bytes:
    return f"data: {said if isinstance(said, str) else json.dumps(said)}{end}".encode()


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def found_in(stream: bytes, step: int, kind: Any = "sse") -> Beginning | None:
    """What is found, fed in pieces of `step` bytes."""
    first = FirstEvent(kind)
    for at in range(0, len(stream), step):
        if (found := first.feed(stream[at : at + step])) is not None:
            return found
    return None


SAYS_NOTHING = [
    b": ping\n\n",
    b": OPENROUTER PROCESSING\n\n",
    b"\n\n",
    b"event: ping\ndata: {}\n\n",
    b"event: keepalive\n\n",
    b'event: model_switching\ndata: {"status": "x"}\n\n',
    b"data:\n\n",
    b"id: 7\n\n",
    b"retry: 100\n\n",
    data("{}"),
    data(delta(role="assistant")),
    data(delta(role="assistant", content="")),
    data(delta(role="assistant", content=None, tool_calls=[])),
    data({"choices": []}),
    data({"choices": [{"index": 0, "text": "", "finish_reason": None}]}),
    data({"type": "response.created", "response": {"id": "resp_1"}}),
    data({"type": "message_start", "message": {"role": "assistant", "content": []}}),
    data({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    data({"type": "ping"}),
]
BEGINS = [
    data(delta(content="Hi")),
    data(delta(reasoning_content="hm")),
    data(delta(tool_calls=[{"index": 0, "function": {"name": "f"}}])),
    data({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
    data({"choices": [{"index": 0, "text": "Hi", "finish_reason": None}]}),
    data({"type": "response.output_text.delta", "delta": "Hi"}),
    data({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hi"}}),
    data({"type": "content_block_start", "content_block": {"type": "tool_use", "id": "t", "name": "f"}}),
    data("[DONE]"),
    data("no JSON"),
    data("[1]"),
    b'data: {"choices": [{"delta":\ndata: {"content": "two lines"}}]}\n\n',
]
ERRORS = [
    (data({"error": {"message": "x"}}), 500),
    (data({"error": "x"}), 500),
    (data({"error": {"message": "x", "code": 503}}), 503),
    (data({"error": {"message": "x", "code": "429"}}), 429),
    (data({"error": {"message": "x", "code": "rate_limit_exceeded", "type": "invalid_request_error"}}), 429),
    (data({"error": {"message": "x", "code": None, "type": "overloaded_error"}}), 503),
    (data({"error": {"message": "x", "type": "invalid_request_error"}}), 400),
    (data({"error": {"message": "x", "code": 99999}}), 500),
    (data({"error": {"message": "x", "code": True}}), 500),
    (data({"object": "error", "message": "x", "code": 400}), 400),
    (b'event: error\ndata: {"message": "x", "status": 502}\n\n', 502),
    (b"event: error\n" + data({"type": "error", "error": {"type": "authentication_error", "message": "x"}}), 401),
    (data({"type": "error", "code": "server_error", "message": "x", "sequence_number": 0}), 500),
    (data({"type": "response.failed", "response": {"error": {"code": "insufficient_quota", "message": "x"}}}), 429),
]


@pytest.mark.parametrize("step", [1, 3, 10_000])
@pytest.mark.parametrize("event", SAYS_NOTHING)
def test_what_says_nothing_is_waited_through(event: bytes, step: int) -> None:
    assert found_in(event * 3, step) is None
    assert found_in(event + data(delta(content="Hi")), step) == BEGUN


@pytest.mark.parametrize("step", [1, 10_000])
@pytest.mark.parametrize("event", BEGINS)
def test_what_says_something_is_the_answer(event: bytes, step: int) -> None:
    assert found_in(event[:-1], step) is None, "only once it is whole"
    assert found_in(event, step) == BEGUN


@pytest.mark.parametrize("step", [1, 10_000])
@pytest.mark.parametrize(("event", "status"), ERRORS)
def test_an_error_that_comes_first_counts_as_the_status_it_names(event: bytes, status: int, step: int) -> None:
    found = found_in(b": hi\n\n" + data(delta(role="assistant")) + event, step)
    assert isinstance(found, ErrorSaid)
    assert found.status == status


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r", "\n\r\n"])
def test_lines_may_end_in_any_way(end: str) -> None:
    stream = data(delta(role="assistant"), end) + data(delta(content="Hi"), end)
    assert found_in(stream, 1000) == BEGUN
    assert found_in(stream[: -len(end) - 5], 1000) is None


def test_one_line_end_of_two_bytes_is_no_blank_line() -> None:
    assert found_in(b'event: error\r\ndata: {"message": "x"}', 1) is None


def test_an_event_without_an_end_is_an_answer_at_some_size() -> None:
    assert found_in(b"data: " + b"x" * (LONGEST_EVENT + 1), 4096) == BEGUN


@pytest.mark.parametrize(
    ("stream", "status"),
    [
        (b'{"message": {"role": "assistant", "content": ""}, "done": false}\n', None),
        (b'\n{"response": "", "done": false}\n', None),
        (b'{"message": {"role": "assistant", "content": "Hi"}, "done": false}\n', 0),
        (b'{"response": "Hi", "done": false}\n', 0),
        (b'{"done": true, "message": {"role": "assistant", "content": ""}}\n', 0),
        (b'{"error": "out of memory"}\n', 500),
    ],
)
def test_lines_of_json_are_read_as_well(stream: bytes, status: int | None) -> None:
    found = found_in(stream, 7, "ndjson")
    assert (found.status if isinstance(found, ErrorSaid) else 0 if found == BEGUN else None) == status


def test_an_answer_that_mentions_an_error_is_none() -> None:
    assert error_said({"choices": [{"message": {"content": "x"}}], "error": {"message": "y"}}) is None
    assert error_said({"data": [], "error": None}) is None
