"""How many tokens an answer cost that passes through unread: found in its last bytes, in the words of any dialect.

OpenAI and Anthropic say `usage`, llama.cpp `timings` too (after it), Ollama counts and durations in its last object.
What is not found was not said. A model's own words are never taken for it: in an answer their quotes are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from enginerouter.dialects.base import Usage

# More than any engine writes after its counts begin.
TAIL_BYTES = 4096
_NUMBER = re.compile(
    rb'"(prompt_tokens|completion_tokens|input_tokens|output_tokens|cache_read_input_tokens|cache_creation_input_tokens'
    rb'|prompt_eval_count|eval_count|eval_duration|prompt_n|cache_n|predicted_n|predicted_ms)"'
    rb"\s*:\s*(\d{1,15}(?:\.\d{1,9})?)"
)
Numbers = Mapping[bytes, bytes]


def usage_said(last: bytes, first: bytes = b"") -> Usage | None:
    """The counts in the last bytes of an answer, or None. `first`: of a stream, where Anthropic counts the prompt.

    On the path of every request, hence flat.
    """
    start = max(0, len(last) - TAIL_BYTES)
    at = last.rfind(b'"usage"', start)
    if at < 0 or last.startswith(b"null", at + 8):
        at = max(last.rfind(b'"timings"', start), last.rfind(b'"total_duration"', start))
        if at < 0:
            return None
    said: Numbers = dict(_NUMBER.findall(last, at))
    prompt, completion = said.get(b"prompt_tokens"), said.get(b"completion_tokens")
    if prompt is None and completion is None:
        return _in_other_words(said, first)
    return Usage(_whole(prompt), _whole(completion), completion_s=_seconds(said))


def _in_other_words(said: Numbers, first: bytes) -> Usage | None:
    """The counts as Anthropic, Ollama and llama.cpp's `timings` name them."""
    if b"output_tokens" in said:
        if b"input_tokens" not in said and b'"message_start"' in first:
            said = {**dict(_NUMBER.findall(first)), **said}
        # Anthropic counts what it read from its cache apart.
        parts = (b"input_tokens", b"cache_read_input_tokens", b"cache_creation_input_tokens")
        prompt = sum(_whole(said.get(part)) or 0 for part in parts) if b"input_tokens" in said else None
        return Usage(prompt, _whole(said[b"output_tokens"]))
    prompt, completion = _whole(said.get(b"prompt_eval_count")), _whole(said.get(b"eval_count"))
    if b"predicted_n" in said or b"prompt_n" in said:
        read = _whole(said.get(b"prompt_n"))
        prompt = read + (_whole(said.get(b"cache_n")) or 0) if read is not None else None
        completion = _whole(said.get(b"predicted_n"))
    if prompt is None and completion is None:
        return None
    return Usage(prompt, completion, completion_s=_seconds(said))


def _whole(written: bytes | None) -> int | None:
    return int(float(written)) if written is not None else None


def _seconds(said: Numbers) -> float | None:
    """How long the answer took, by the engine's own clock."""
    if b"predicted_ms" in said:
        return float(said[b"predicted_ms"]) / 1e3 or None
    return float(said[b"eval_duration"]) / 1e9 or None if b"eval_duration" in said else None
