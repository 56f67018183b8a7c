"""Counts in the last bytes of answers that nobody parses, as engines write them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginerouter.dialects.base import Usage
from enginerouter.dialects.usage import TAIL_BYTES, usage_said

OPENAI = '{"choices":[{}],"usage":{"prompt_tokens":60,"completion_tokens":50,"total_tokens":110}}'


@pytest.mark.parametrize(
    ("last", "usage"),
    [
        (OPENAI, Usage(60, 50)),
        (json.dumps(json.loads(OPENAI), indent=1), Usage(60, 50)),
        (f"data: {OPENAI}\n\ndata: [DONE]\n\n", Usage(60, 50)),
        ('{"usage":{"prompt_tokens":8,"total_tokens":8}}', Usage(8, None)),
        ('data: {"x_groq":{"usage":{"prompt_tokens":3,"completion_tokens":2}}}\n\n', Usage(3, 2)),
        ('"usage":{"prompt_tokens":9,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":4}},'
         '"timings":{"cache_n":4,"prompt_n":5,"predicted_n":5,"predicted_ms":250.5}', Usage(9, 5, completion_s=0.2505)),
        ('"usage":null,"timings":{"cache_n":4,"prompt_n":5,"predicted_n":7,"predicted_ms":250}',
         Usage(9, 7, completion_s=0.25)),
        ('{"done":true,"total_duration":9,"prompt_eval_count":11,"eval_count":4,"eval_duration":500000000}\n',
         Usage(11, 4, completion_s=0.5)),
        ('{"embeddings":[[1]],"total_duration":5,"load_duration":1,"prompt_eval_count":2}', Usage(2, None)),
        ('"usage":{"input_tokens":5,"cache_read_input_tokens":90,"output_tokens":7}}', Usage(95, 7)),
        ('"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":1},"output_tokens":7,"total_tokens":12}',
         Usage(5, 7)),
        ('"usage":{"output_tokens":7}', Usage(None, 7)),
        ('{"choices":[{}],"usage":null}', None),
        ('{"message":{"content":"\\"usage\\":{\\"prompt_tokens\\":1}"}}', None),
        ("RIFF....WAVE", None),
        ("", None),
    ],
)  # fmt: skip
def test_what_engines_say(last: str, usage: Usage | None) -> None:
    assert usage_said(last.encode()) == usage


def test_anthropic_counts_the_prompt_in_the_first_event() -> None:
    first = b'data: {"type":"message_start","message":{"usage":{"input_tokens":25,"output_tokens":1}}}\n\n'
    last = b'data: {"type":"message_delta","usage":{"output_tokens":15}}\n\nevent: message_stop\n'
    assert usage_said(last, first) == Usage(25, 15)


def test_only_the_end_is_looked_at() -> None:
    assert usage_said(OPENAI.encode() + b" " * TAIL_BYTES) is None
    assert usage_said(b"x" * 100_000 + OPENAI.encode()) == Usage(60, 50)


@given(st.binary(max_size=300) | st.binary().map(lambda b: b'"usage":{"prompt_tokens":' + b), st.binary(max_size=50))
def test_any_bytes_are_looked_at_without_harm(last: bytes, first: bytes) -> None:
    usage_said(last, first)
