"""What a body asks for, and the body under another name: any JSON keeps its meaning, and its bytes where it can."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginerouter.web.ask import Ask
from enginerouter.web.json_body import parse_json_object


def renamed(raw: bytes, model: str) -> bytes:
    ask = Ask("/v1/chat/completions", raw, parse_json_object(raw))
    body = asyncio.run(ask.body_for(model))
    assert isinstance(body, bytes)
    assert ask.body == raw, "what the client sent stays"
    return body


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"model":"a"}', b'{"model":"N"}'),
        (b' { "model" :\t"a" , "x":1e5}', b' { "model" :\t"N" , "x":1e5}'),
        (b'{"x":"\xc3\xa9","model":"a\\"b\\\\"}', b'{"x":"\xc3\xa9","model":"N"}'),
        (b'{"x":"\\"model\\":\\"b\\"","model":"a"}', b'{"x":"\\"model\\":\\"b\\"","model":"N"}'),
        (b'{"model":"a","tools":[{"model":"b"}]}', b'{"model":"N","tools":[{"model":"b"}]}'),
        (b'{"model":""}', b'{"model":"N"}'),
    ],
)
def test_only_the_name_is_replaced(raw: bytes, expected: bytes) -> None:
    assert renamed(raw, "N") == expected


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b'{"model":null}',
        b'{"tools":[{"model":"b"}]}',
        b'{"tools":[{"model":"b"}],"model":"a"}',
        b'{"m\\u006fdel":"a"}',
        b'{"m\\u006fdel":"a","x":{"model":"b"}}',
        b'{"x":"\\ud800","y":{"model":1},"model":"a"}',
        b'{"model":null,"x":{"y":"model"}}',
    ],
)
def test_where_the_name_is_not_plain_the_body_means_the_same(raw: bytes) -> None:
    body = renamed(raw, 'org/"ü"')
    assert json.loads(body.decode("utf-8")) == {**json.loads(raw), "model": 'org/"ü"'}


keys = st.sampled_from(["model", "mod", 'x"model"', "\\", "é"]) | st.text(max_size=5)
values = st.recursive(
    st.none() | st.integers() | st.text(max_size=8) | st.sampled_from(['"model":"a"', "model"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(keys, values, max_size=4), st.text(max_size=8), st.text(min_size=1, max_size=8), st.booleans())
def test_any_body_means_the_same_under_another_name(
    body: dict[str, Any], asked: str, model: str, ascii_only: bool
) -> None:
    body = {**body, "model": asked}
    raw = json.dumps(body, ensure_ascii=ascii_only, indent=len(asked) % 2 or None).encode("utf-8", "surrogatepass")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return
    assert json.loads(renamed(raw, model)) == {**body, "model": model}


@pytest.mark.parametrize(
    ("path", "body", "wants"),
    [
        ("/v1/chat/completions", {"stream": True}, True),
        ("/v1/completions", {"stream": True}, True),
        ("/v1/responses", {"stream": True}, True),
        ("/v1/chat/completions", {"stream": "true"}, False),
        ("/v1/chat/completions", {"stream": 1}, False),
        ("/v1/chat/completions", {}, False),
        ("/v1/embeddings", {"stream": True}, False),
        ("/v1/audio/speech", {"stream": True}, False),
    ],
)
def test_who_wants_a_stream(path: str, body: dict[str, Any], wants: bool) -> None:
    assert Ask(path, b"", body).wants_stream is wants


def test_a_previous_response_counts_only_where_there_are_responses() -> None:
    body = {"previous_response_id": "resp_1"}
    assert Ask("/v1/responses", b"", body).previous_response_id == "resp_1"
    assert Ask("/v1/chat/completions", b"", body).previous_response_id is None
    assert Ask("/v1/responses", b"", {"previous_response_id": 7}).previous_response_id is None
