"""From the bytes of a request to a JSON object, strictly: whatever is read here must mean the same to every engine.

Parsers differ in what they make of duplicate keys, other encodings and NaN, and a difference means that the router
decides on one model and the engine runs another (RFC 8259 §4). Such bodies get a 400, never a guess.
"""

from __future__ import annotations

import asyncio
import json
from math import isfinite
from typing import Any, NoReturn

from enginerouter.errors import BadRequest

THREAD_BYTES = 1024 * 1024
MAX_MODEL_CHARS = 512


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _pairs_as_they_are(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return pairs


# Both keep to the C scanner. The second gives objects as lists of pairs, duplicates included.
_STRICT = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
_PAIRS = json.JSONDecoder(object_pairs_hook=_pairs_as_they_are)


def parse_json_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in raw. Raises BadRequest for anything else."""
    try:
        text = raw.decode("utf-8")
        parsed = _STRICT.decode(text)
    except UnicodeDecodeError:
        raise BadRequest("the request body is not UTF-8") from None
    except RecursionError:
        raise BadRequest("the request body is nested too deeply") from None
    except ValueError as error:
        # Malformed JSON, NaN, or an integer of more digits than Python converts.
        raise BadRequest(f"the request body is not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise BadRequest("the request body must be a JSON object")
    # "model" more than once is usual (tool schemas); at the top it is a contradiction. Every letter of the name
    # may be written as \u006x.
    if (raw.count(b'"model"') > 1 or b"\\u006" in raw) and _has_two_models(text):
        raise BadRequest("the request body names 'model' twice")
    return parsed


def _has_two_models(text: str) -> bool:
    pairs: list[tuple[str, Any]] = _PAIRS.decode(text)
    return sum(key == "model" for key, _ in pairs) > 1


async def json_object(raw: bytes) -> dict[str, Any]:
    """`parse_json_object`; large ones in a thread.

    The scanner keeps the GIL, so a thread does not make a large parse free for others: it lets them in between
    decoding, scanning and checking, each about a third.
    """
    if len(raw) <= THREAD_BYTES:
        return parse_json_object(raw)
    return await asyncio.to_thread(parse_json_object, raw)


def model_of(parsed: dict[str, Any]) -> str | None:
    """The model a request names; None if it names none. Raises BadRequest if it is no name."""
    model = parsed.get("model")
    if model is None:
        return None
    if not isinstance(model, str):
        raise BadRequest("'model' must be a string")
    if len(model) > MAX_MODEL_CHARS:
        raise BadRequest(f"'model' is longer than {MAX_MODEL_CHARS} characters")
    if not model.isascii():
        try:
            model.encode()
        except UnicodeEncodeError:  # a lone surrogate, written as an escape
            raise BadRequest("'model' is not valid Unicode") from None
    return model or None
