"""Vectors in base64, as the SDKs ask for them, whatever an engine made of the wish."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginerouter.dialects.embeddings import in_base64


def answer(*data: Any, **more: Any) -> bytes:
    return json.dumps({"object": "list", "data": list(data), "model": "m", **more}).encode()


def item(vector: Any, index: int = 0) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": vector}


def packed(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def test_lists_become_base64_in_the_order_of_the_index_and_all_else_stays() -> None:
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    given = answer(item([0.5, -1], 1), {**item([2, 3.25]), "of": "engine"}, usage=usage)
    assert json.loads(in_base64(given)) == {
        "object": "list",
        "data": [{**item(packed(2, 3.25)), "of": "engine"}, item(packed(0.5, -1), 1)],
        "model": "m",
        "usage": usage,
    }


def test_base64_in_another_order_is_put_in_order() -> None:
    said = json.loads(in_base64(answer(item("AAAA", 1), item("BBBB", 0))))
    assert [one["embedding"] for one in said["data"]] == ["BBBB", "AAAA"]


def test_without_an_index_the_order_is_the_engine_s() -> None:
    said = json.loads(in_base64(answer({"embedding": [1.0]}, {"embedding": [2.0]})))
    assert said["data"] == [{"embedding": packed(1)}, {"embedding": packed(2)}]


@pytest.mark.parametrize(
    "body",
    [
        b'{ "data": [ {"index": 0, "embedding": "AACAPw=="} ] }',
        answer(),
        answer(item(["a"])),
        answer(item([[0.5]])),
        answer(item([True])),
        answer(item([None, 1.0])),
        answer(item([1e300])),
        answer(item([])),
        answer(item([0.5]), item(None, 1)),
        answer(item([0.5]), 7),
        b'{"data": {"embedding": [1]}}',
        b'[{"index": 0, "embedding": [[1.0]]}]',
        b'{"error": {"message": "no"}}',
        b"",
        b"OK",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_what_is_right_or_odd_passes_byte_for_byte(body: bytes) -> None:
    assert in_base64(body) is body


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_no_number_of_32_bits_is_changed(vector: list[float]) -> None:
    (one,) = json.loads(in_base64(answer(item(vector))))["data"]
    raw = base64.b64decode(one["embedding"])
    assert list(struct.unpack(f"<{len(vector)}f", raw)) == vector
