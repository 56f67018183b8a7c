"""What each dialect says besides answers: errors, late errors, keep-alive, loading and unloading, estimates."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from enginerouter.dialects.anthropic import estimated_tokens
from enginerouter.dialects.base import Times, Usage, usage_of
from enginerouter.dialects.ollama import LineHead, Residency, keep_alive_s, residency_answer, residency_asked, rfc3339
from enginerouter.dialects.openai import engine_error_fields, error_fields, stream_failure
from enginerouter.dialects.translation import ANTHROPIC, DIALECTS, OLLAMA, OPENAI, Answer, plan
from enginerouter.errors import BadRequest, EngineCrashed, NotBuilt, QueueFull

# --- what a request asks for


@pytest.mark.parametrize(
    ("dialect", "path", "body", "wants"),
    [
        (OPENAI, "/v1/chat/completions", {}, False),
        (OPENAI, "/v1/chat/completions", {"stream": True}, True),
        (OPENAI, "/v1/embeddings", {"stream": True}, False),
        (OLLAMA, "/api/chat", {}, True),
        (OLLAMA, "/api/generate", {"stream": None}, True),
        (OLLAMA, "/api/chat", {"stream": False}, False),
        (OLLAMA, "/api/embed", {}, False),
        (OLLAMA, "/api/pull", {}, True),
        (ANTHROPIC, "/v1/messages", {}, False),
        (ANTHROPIC, "/v1/messages", {"stream": True}, True),
        (ANTHROPIC, "/v1/messages/count_tokens", {"stream": True}, False),
    ],
)
def test_who_wants_a_stream(dialect: Any, path: str, body: dict[str, Any], wants: bool) -> None:
    assert dialect.wants_stream(path, body) is wants


def test_ollama_names_its_model_in_two_ways() -> None:
    assert (OLLAMA.model_of({"name": "a"}), OLLAMA.model_of({"model": "b", "name": "a"})) == ("a", "b")


def test_a_path_without_a_twin_is_not_served() -> None:
    with pytest.raises(NotBuilt):
        plan(OPENAI, "/v1/responses", {"model": "m"}, ["ollama"], answer_id="a")


# --- errors

CRASH = error_fields(EngineCrashed("a", "a died", admin_detail="the log"), is_admin=True, request_id="r1")
FULL = error_fields(QueueFull("full"), is_admin=False, request_id="r1")


def test_an_error_of_ollama_is_a_string() -> None:
    body = json.loads(OLLAMA.error_body(502, CRASH))
    assert body == {"error": "a died", "code": "engine_crashed", "request_id": "r1", "detail": "the log"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (402, "billing_error"), (403, "permission_error"),
     (404, "not_found_error"), (409, "conflict_error"), (413, "request_too_large"), (422, "invalid_request_error"),
     (429, "rate_limit_error"), (500, "api_error"), (502, "api_error"), (503, "overloaded_error"),
     (504, "timeout_error"), (529, "overloaded_error")],
)  # fmt: skip
def test_an_error_of_anthropic_has_a_type_by_its_status(status: int, kind: str) -> None:
    body = json.loads(ANTHROPIC.error_body(status, FULL))
    assert body == {"type": "error", "error": {"type": kind, "message": "full"}, "request_id": "r1"}


def test_openai_s_errors_are_as_they_were() -> None:
    assert json.loads(OPENAI.error_body(429, FULL)) == {"error": FULL}


@pytest.mark.parametrize(
    ("dialect", "frame"),
    [
        (OPENAI, f"data: {json.dumps({'error': FULL})}\n\ndata: [DONE]\n\n"),
        (OLLAMA, '{"error": "full", "code": "queue_full", "request_id": "r1"}\n'),
        (
            ANTHROPIC,
            'event: error\ndata: {"type":"error","error":{"type":"rate_limit_error","message":"full"},'
            '"request_id":"r1"}\n\n',
        ),
    ],
)
def test_a_late_error_is_one_frame(dialect: Any, frame: str) -> None:
    assert dialect.error_frame("/", 429, FULL) == frame.encode()


def test_only_ollama_s_connection_is_cut_after_an_error() -> None:
    assert [d.name for d in DIALECTS if d.cuts_after_error] == ["ollama"]


@pytest.mark.parametrize(
    ("body", "message", "kind"),
    [
        (b'[{"error":{"message":"m","code":404,"status":"NOT_FOUND"}}]', "m", "invalid_request_error"),
        (b'{"detail":[{"loc":["body","x"],"msg":"field required","type":"missing"}]}', "body.x: field required",
         "invalid_request_error"),
        (b'{"type":"error","error":{"type":"not_found_error","message":"m"}}', "m", "not_found_error"),
        (b"<html><head><title>404 Not Found</title></head></html>",
         "the engine answered with status 404 and a page: 404 Not Found", "invalid_request_error"),
        (b"<!DOCTYPE html><p>", "the engine answered with status 404 and a page", "invalid_request_error"),
    ],
)  # fmt: skip
def test_an_engine_s_error_in_the_shapes_of_servers_and_providers(body: bytes, message: str, kind: str) -> None:
    fields = engine_error_fields(404, body)
    assert (fields["message"], fields["type"]) == (message, kind)


@pytest.mark.parametrize(
    ("event", "status"),
    [
        ({"error": {"message": "m", "code": 429}}, 429),
        ({"error": {"message": "m", "code": "x"}}, 502),
        ({"error": "m"}, 502),
        ({"object": "error", "message": "m", "code": 400}, 400),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, 503),
        ({"detail": "m"}, 502),
        ({"choices": [], "detail": "m"}, None),
        ({"choices": [{"delta": {}}], "error": None}, None),
        ({"choices": [{"finish_reason": "error"}], "error": {"message": "m", "code": 502}}, 502),
    ],
)
def test_an_error_in_a_stream_counts_as_the_status_it_names(event: dict[str, Any], status: int | None) -> None:
    failure = stream_failure(event)
    assert (failure.status if failure else None) == status
    assert failure is None or failure.fields["message"] == "m"


# --- keep-alive


def test_keepalive_frames() -> None:
    assert OPENAI.keepalive("loading a 3s", has_engine_bytes=False) == b": loading a 3s\n\n"
    assert OPENAI.keepalive("loading a 3s", has_engine_bytes=True) == b": loading a 3s\n"
    assert OLLAMA.keepalive("loading a 3s", has_engine_bytes=True) == b" "
    assert ANTHROPIC.keepalive("loading a 3s", has_engine_bytes=True) == b'event: ping\ndata: {"type":"ping"}\n\n'


# --- load and unload


@pytest.mark.parametrize(
    ("path", "body", "asked"),
    [
        ("/api/generate", {}, Residency("load", None)),
        ("/api/generate", {"prompt": "", "keep_alive": 0}, Residency("unload", 0)),
        ("/api/generate", {"prompt": "", "keep_alive": "0"}, Residency("unload", 0)),
        ("/api/generate", {"prompt": "Hi", "keep_alive": 0}, None),
        ("/api/generate", {"prompt": "", "images": ["x"]}, None),
        ("/api/chat", {"messages": [], "keep_alive": -1}, Residency("load", math.inf)),
        ("/api/chat", {"messages": [{"role": "user", "content": ""}]}, None),
        ("/api/embed", {"input": "", "keep_alive": "5m"}, Residency("load", 300)),
        ("/api/embed", {"input": [""]}, None),
        ("/api/embeddings", {"prompt": ""}, Residency("load", None)),
        ("/api/show", {}, None),
    ],
)
def test_a_request_without_a_prompt_loads_or_unloads(path: str, body: dict[str, Any], asked: Residency | None) -> None:
    assert residency_asked(path, body) == asked


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), (300, 300), (1.5, 1.5), ("300", 300), ("5m", 300), ("1h30m", 5400), ("1.5s", 1.5), ("250ms", 0.25),
     ("-1m", math.inf), (-1, math.inf), ("-1", math.inf), ("0s", 0), (10**400, math.inf)],
)  # fmt: skip
def test_a_keep_alive_is_a_number_or_a_duration(value: object, seconds: float | None) -> None:
    assert keep_alive_s(value) == seconds


@pytest.mark.parametrize("value", ["", "soon", True, [], {}, "5 m", "m5", "1h,"])
def test_another_keep_alive_is_refused_by_name(value: object) -> None:
    with pytest.raises(BadRequest, match="keep_alive"):
        keep_alive_s(value)


def test_what_loading_and_unloading_are_answered_with() -> None:
    now = 1767225600.25
    assert residency_answer("/api/chat", "m", Residency("load", None), now, 2.0) == {
        "model": "m",
        "created_at": "2026-01-01T00:00:00.250000Z",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "load",
    }
    unloaded = residency_answer("/api/generate", "m", Residency("unload", 0), now, 0)
    assert (unloaded["response"], unloaded["done_reason"]) == ("", "unload")
    assert residency_answer("/api/embed", "m", Residency("load", None), now, 2.0)["embeddings"] == []
    assert residency_answer("/api/embeddings", "m", Residency("load", None), now, 2.0) == {"embedding": []}


def test_the_head_of_a_line_keeps_up_with_time_and_model() -> None:
    head = LineHead('a"b', 10.0, 1767225600.0)
    seen = [json.loads(head.at(now) + "}") for now in (10.0, 10.5, 11.25)]
    assert [s["created_at"] for s in seen] == [rfc3339(1767225600.0 + t) for t in (0, 0.5, 1.25)]
    head.model = "c"
    assert json.loads(head.at(11.25) + "}")["model"] == "c"


# --- counts


def test_an_estimate_is_a_quarter_of_the_characters() -> None:
    body = {"system": "x" * 40, "messages": [{"role": "user", "content": [{"type": "text", "text": "y" * 40}]}]}
    assert estimated_tokens(body) == 20 + 4


def test_an_estimate_counts_pictures_and_tools() -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 100_000}}
    assert estimated_tokens({"messages": [{"role": "user", "content": [picture]}]}) == 1504
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    assert estimated_tokens({"tools": tools}) == math.ceil(len(json.dumps(tools, separators=(",", ":"))) / 4)


def test_counts_that_come_in_different_chunks_are_put_together() -> None:
    first = usage_of({"usage": {"prompt_tokens": 7}})
    both = usage_of({"timings": {"cache_n": 2, "prompt_n": 5, "predicted_n": 3, "predicted_ms": 1500.0}}, first)
    assert both == Usage(prompt=7, completion=3, cached=2, completion_s=1.5)
    assert usage_of({"usage": None}, both) == both


def test_an_event_too_large_is_a_failure_of_the_stream() -> None:
    translation = plan(OLLAMA, "/api/chat", {"model": "m", "messages": []}, ["openai"], answer_id="a")
    assert translation is not None
    stream = translation.stream(Times(0.0, 0.0))
    for _ in range(17):
        assert stream.feed(b"x" * (1 << 20), 1.0) == b""
    assert stream.failure is not None
    assert "larger than" in stream.failure.fields["message"]
    assert (stream.end(2.0), stream.is_done) == (b"", False)


def test_a_finish_reason_error_is_a_failure() -> None:
    translation = plan(OLLAMA, "/api/chat", {"model": "m", "messages": []}, ["openai"], answer_id="a")
    assert translation is not None
    stream = translation.stream(Times(0.0, 0.0))
    assert stream.feed(b'data: {"choices":[{"delta":{},"finish_reason":"error"}]}\n\ndata: [DONE]\n\n', 1.0) == b""
    assert stream.failure is not None
    assert not stream.is_done


def test_a_role_is_no_beginning_of_an_answer() -> None:
    translation = plan(OLLAMA, "/api/chat", {"model": "m", "messages": []}, ["openai"], answer_id="a")
    assert translation is not None
    stream = translation.stream(Times(0.0, 0.0))
    stream.feed(b': hi\n\ndata: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n', 1.0)
    assert not stream.has_begun
    stream.feed(b'data: {"choices":[{"delta":{"reasoning":"h"}}]}\n\n', 1.0)
    assert stream.has_begun


@pytest.mark.parametrize(
    ("client", "path", "ends"),
    [(OLLAMA, "/api/chat", {"done": True, "eval_count": 4}), (ANTHROPIC, "/v1/messages", {"type": "message_stop"})],
)
def test_an_engine_that_does_not_stream_is_streamed_all_the_same(client: Any, path: str, ends: dict[str, Any]) -> None:
    body = {"model": "m", "max_tokens": 5, "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    translation = plan(client, path, body, ["openai"], answer_id="a")
    assert translation is not None
    call = {"id": "c1", "function": {"name": "weather", "arguments": '{"city":"Ulm"}'}}
    message = {"role": "assistant", "content": "Hello", "reasoning": "hm", "tool_calls": [call]}
    said = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": {"completion_tokens": 4}}
    answer = translation.answer_as_stream(json.dumps(said).encode(), Times(0.0, 0.0), 1.0, engine="e")
    assert isinstance(answer, Answer)
    frames = [json.loads(f) for f in answer.body.decode().replace("data: ", "\n").split("\n") if f.startswith("{")]
    text = json.dumps(frames)
    assert [text.count(word) for word in ("hm", "Hello", "weather", "Ulm")] == [1, 1, 1, 1]
    assert answer.usage == Usage(completion=4)
    assert frames[-1].items() >= ends.items()
