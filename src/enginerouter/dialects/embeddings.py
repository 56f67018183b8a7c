"""Embeddings in OpenAI's API: lists of numbers, or base64 of little-endian 32-bit floats where that is asked for.

All OpenAI SDKs ask for base64 unless their caller chose, and decode it; one of them makes nonsense of a list. Engines
that overlook the wish answer with lists all the same.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

from enginerouter.dialects.base import OddAnswer
from enginerouter.dialects.reading import Json, compact


def base64_of(vector: list[float]) -> str:
    """Little-endian 32-bit floats, as the OpenAI SDKs ask for them. Raises OddAnswer."""
    try:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except (OverflowError, struct.error) as error:
        raise OddAnswer("an embedding holds a number too large for 32 bits") from error


def in_base64(body: bytes) -> bytes:
    """A whole answer as a request for base64 wants it: every vector in base64, in the order of `index`.

    What is so already, or is no such answer, comes back byte for byte.
    """
    try:
        said: Any = json.loads(body)
    except (ValueError, RecursionError):
        return body
    data = said.get("data") if isinstance(said, dict) else None
    if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
        return body
    try:
        written = [_written(one) for one in data]
    except OddAnswer:
        return body
    if all(type(one.get("index")) is int for one in written):
        written.sort(key=lambda one: one["index"])
    if all(new is old for new, old in zip(written, data, strict=True)):
        return body
    return compact({**said, "data": written}).encode()


def _written(one: Json) -> Json:
    vector = one.get("embedding")
    if isinstance(vector, str):
        return one
    if not isinstance(vector, list) or not vector or not all(type(x) in (float, int) for x in vector):
        raise OddAnswer("an embedding is no list of numbers")
    return {**one, "embedding": base64_of(vector)}
