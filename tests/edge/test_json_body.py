"""Strict JSON (RFC 8259): a dict or a 4xx, never a guess and never a 500."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginerouter.errors import BadRequest
from enginerouter.web.json_body import json_object, model_of, parse_json_object

REFUSED = {
    "empty": b"",
    "white space": b"  ",
    "not JSON": b"model=qwen",
    "array": b"[]",
    "string": b'"model"',
    "null": b"null",
    "cut": b'{"model": "a"',
    "trailing": b'{"model": "a"} {}',
    "BOM": b'\xef\xbb\xbf{"model": "a"}',
    "UTF-16": '{"model": "a"}'.encode("utf-16"),
    "UTF-16 without BOM": '{"model": "a"}'.encode("utf-16-le"),
    "UTF-32": '{"model": "a"}'.encode("utf-32"),
    "latin-1": b'{"model": "\xfc"}',
    "overlong": b'{"model": "\xc0\xaf"}',
    "raw surrogate": b'{"model": "\xed\xa0\x80"}',
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": -Infinity}',
    "1e999": b'{"temperature": 1e999}',
    "5000 digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "two models": b'{"model": "a", "messages": [], "model": "b"}',
    "two models, one escaped": b'{"model": "a", "m\\u006fdel": "b"}',
    "two models, both escaped": b'{"\\u006dodel": "a", "mode\\u006C": "b"}',
    "raw control": b'{"model": "a\x00"}',
    "single quotes": b"{'model': 'a'}",
    "comment": b'{"model": "a" /* b */}',
    "trailing comma": b'{"model": "a",}',
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_engines_could_read_differently_is_refused(name: str) -> None:
    with pytest.raises(BadRequest) as error:
        parse_json_object(REFUSED[name])
    assert error.value.status == 400
    assert len(error.value.message) < 300


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"model": "a"},
    {"model": "a", "tools": [{"properties": {"model": {"type": "string"}}}], "x": {"model": 1}},
    {"messages": [{"content": 'say "model" and "model" \\u006d'}]},
    {"m": "\\u006d", "model": "a"},
    {"temperature": 0.7, "seed": 12345678901234567890, "x": 1e-300},
    {"content": "ü𝄞\u2028 \ud800"},
    {"__proto__": {}, "model": "a"},
]


@pytest.mark.parametrize("value", ACCEPTED, ids=str)
def test_plain_objects_are_read(value: dict[str, Any]) -> None:
    assert parse_json_object(json.dumps(value).encode()) == value


async def test_large_bodies_are_read_too() -> None:
    value = {"model": "a", "content": "x" * 3_000_000}
    assert await json_object(json.dumps(value).encode()) == value
    with pytest.raises(BadRequest):
        await json_object(b"[" * 3_000_000)


@pytest.mark.parametrize("model", [1, True, ["m"], {"a": 1}, 1.5, "\ud800", "x" * 513])
def test_a_model_must_be_a_name(model: object) -> None:
    with pytest.raises(BadRequest):
        model_of({"model": model})


def test_a_model_may_be_left_out() -> None:
    assert model_of({}) is None
    assert model_of({"model": None}) is None
    assert model_of({"model": ""}) is None
    assert model_of({"model": "llama/qwen3:8b"}) == "llama/qwen3:8b"


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "stream", "m"]) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.binary(max_size=200) | JSONISH.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=150, deadline=None)
def test_any_bytes_give_a_dict_or_a_4xx(raw: bytes) -> None:
    try:
        parsed = parse_json_object(raw)
        model = model_of(parsed)
    except BadRequest:
        return
    assert isinstance(parsed, dict)
    assert model is None or isinstance(model, str)
    assert parse_json_object(json.dumps(parsed).encode()) == parsed


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["model", "m\\u006fdel", "other", "\\u006dodel"]), st.integers(0, 9))))
def test_a_second_model_at_the_top_is_always_seen(pairs: list[tuple[str, int]]) -> None:
    raw = "{" + ",".join(f'"{key}": {value}' for key, value in pairs) + "}"
    models = sum(key != "other" for key, _ in pairs)
    if models > 1:
        with pytest.raises(BadRequest, match="twice"):
            parse_json_object(raw.encode())
    else:
        parse_json_object(raw.encode())
