"""Errors in the OpenAI wire format: ours, and whatever engines say."""

from __future__ import annotations

import json

import pytest

from enginerouter.dialects.openai import DONE, engine_error_fields, error_body, error_fields, error_frame
from enginerouter.errors import EngineCrashed, QueueFull


def test_an_error_has_the_four_keys_of_openai_and_an_id() -> None:
    fields = error_fields(QueueFull("full"), is_admin=False, request_id="r1")
    assert fields == {
        "message": "full", "type": "rate_limit_error", "param": None, "code": "queue_full", "request_id": "r1"
    }  # fmt: skip
    assert json.loads(error_body(QueueFull("full"), is_admin=False, request_id="r1")) == {"error": fields}


def test_details_are_for_admins() -> None:
    crash = EngineCrashed("a", "a died", admin_detail="tail of its log")
    assert "detail" not in error_fields(crash, is_admin=False, request_id="r")
    assert error_fields(crash, is_admin=True, request_id="r")["detail"] == "tail of its log"


def test_the_frame_of_a_chat_ends_it() -> None:
    frame = error_frame({"message": "no\n\nreally"}, is_responses=False)
    data, _, end = frame.partition(b"\n\n")
    assert json.loads(data.removeprefix(b"data: ")) == {"error": {"message": "no\n\nreally"}}
    assert end == DONE


def test_the_frame_of_a_response_is_an_event_of_its_own() -> None:
    frame = error_frame({"message": "no", "code": "x"}, is_responses=True)
    name, data = frame.decode().strip().split("\n")
    assert name == "event: error"
    event = json.loads(data.removeprefix("data: "))
    assert (event["type"], event["message"], event["code"], event["error"]["message"]) == ("error", "no", "x", "no")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"m","code":400,"type":"t"}}', "m"),
        (b'{"error":"m"}', "m"),
        (b'{"detail":"m"}', "m"),
        (b'{"detail":{"msg":"m"}}', "m"),
        (b'{"object":"error","message":"m","code":404}', "m"),
        (b"m", "m"),
        (b"", "the engine answered with status 418"),
        (b"[]", "[]"),
        (b'{"error":null}', '{"error":null}'),
        (b"[" * 10_000, "[" * 500),
        (b"\xff", "\ufffd"),
        (b'{"error":{"message":null}}', None),
        (b'{"detail":[{"loc":["body","x"],"msg":"field required","type":"missing"}]}', None),
    ],
)
def test_an_engine_s_error_has_a_message_whatever_its_shape(body: bytes, message: str | None) -> None:
    fields = engine_error_fields(418, body)
    assert isinstance(fields["message"], str)
    assert fields["message"]
    assert set(fields) >= {"message", "type", "param", "code"}
    if message is not None:
        assert fields["message"] == message
