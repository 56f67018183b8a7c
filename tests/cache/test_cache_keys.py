"""The key of an answer: the same for every spelling of the same request, another for anything that differs."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from enginerouter.cache.keys import Ambiguous, Served, canonical, key_of, meaningful, read_body

PATIENT = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
SERVED = Served("llama", "digest", "m.gguf")

names = st.sampled_from(["input", "model", "dimensions", "stream", "é", '"']) | st.text(max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(names, values, max_size=4)


def digest(body: dict[str, Any], **other: Any) -> str:
    given = {"path": "/v1/embeddings", "query": "", "headers": [], "body": body, "served": SERVED, "fence": "f"}
    return key_of(**{**given, **other}).digest


def shuffled(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(name, shuffled(inner, chance)) for name, inner in value.items()]
        chance.shuffle(items)
        return dict(items)
    return [shuffled(inner, chance) for inner in value] if isinstance(value, list) else value


@PATIENT
@given(bodies, st.randoms(use_true_random=False), st.booleans(), st.none() | st.integers(0, 3))
def test_order_white_space_and_escapes_do_not_matter(
    body: dict[str, Any], chance: random.Random, is_ascii: bool, indent: int | None
) -> None:
    raw = json.dumps(shuffled(body, chance), ensure_ascii=is_ascii, indent=indent)
    try:
        spelt = raw.encode("utf-8")
    except UnicodeEncodeError:
        assume(False)
    assert digest(read_body(spelt)) == digest(body)


@PATIENT
@given(bodies, bodies)
def test_bodies_that_differ_have_different_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    """As JSON texts with sorted names; `stream: false` says what leaving it out says."""

    def text(body: dict[str, Any]) -> str:
        return json.dumps({k: v for k, v in body.items() if not (k == "stream" and v is False)}, sort_keys=True)

    assert (digest(one) == digest(other)) == (text(one) == text(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"input": 1}, {"input": True}),
        ({"input": 1}, {"input": 1.0}),
        ({"input": 0}, {"input": False}),
        ({"input": "1"}, {"input": 1}),
        ({"input": None}, {}),
        ({"input": ["a", "b"]}, {"input": ["b", "a"]}),
        ({"input": ["ab"]}, {"input": ["a", "b"]}),
        ({"input": "a", "user": "x"}, {"input": "a", "user": "y"}),
        ({"input": "a", "keep_alive": 0}, {"input": "a"}),
        ({"stream": 0}, {"stream": False}),
        ({"input": "é"}, {"input": "e\u0301"}),
    ],
)
def test_what_only_looks_alike_is_not_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    "other",
    [
        {"path": "/v1/rerank"},
        {"query": "api-version=2"},
        {"fence": "g"},
        {"served": Served("vllm", "digest", "m.gguf")},
        {"served": Served("llama", "changed", "m.gguf")},
        {"served": Served("llama", "digest", "n.gguf")},
        {"headers": [("OpenAI-Beta", "x")]},
        {"headers": [("anthropic-version", "2023-06-01")]},
        {"headers": [("Accept", "application/octet-stream")]},
    ],
)
def test_all_that_can_change_an_answer_is_in_the_key(other: dict[str, Any]) -> None:
    assert digest({"input": "a"}, **other) != digest({"input": "a"})


def test_headers_that_change_no_answer_are_not_in_the_key() -> None:
    said = [("Accept", "application/json, */*"), ("User-Agent", "x"), ("X-Request-Id", "1"), ("X-Stainless-OS", "L")]
    assert meaningful(said) == []
    assert digest({}, headers=[("B", "1"), ("OpenAI-Beta", "x")]) == digest({}, headers=[("openai-beta", "x")])


@pytest.mark.parametrize(
    "raw",
    [b'{"input":"a","input":"b"}', b'{"input":"a","inp\\u0075t":"a"}', b'{"x":[{"y":1,"y":1}]}'],
)
def test_what_two_parsers_may_read_differently_has_no_key(raw: bytes) -> None:
    with pytest.raises(Ambiguous):
        read_body(raw)


@pytest.mark.parametrize("raw", [b"[]", b"{", b"\xff", b'{"a":' * 5000 + b"1" + b"}" * 5000])
def test_what_is_no_object_has_no_key(raw: bytes) -> None:
    with pytest.raises(ValueError):
        read_body(raw)


def test_canonical_text_is_ascii_also_for_lone_surrogates() -> None:
    assert canonical({"b": "\ud800", "a": "é"}) == b'{"a":"\\u00e9","b":"\\ud800"}'
