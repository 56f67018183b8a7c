"""Whatever JSON comes: a request is translated or refused, an answer is translated or an error of the engine's."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialects.golden_kit import BEGAN_AT, BY_NAME, TIMES, events, frame, planned, transcripts
from enginerouter.dialects.anthropic import estimated_tokens
from enginerouter.dialects.base import Failure
from enginerouter.dialects.ollama import residency_asked
from enginerouter.dialects.openai import engine_error_fields
from enginerouter.dialects.translation import TRANSLATED, Translation, payload, plan
from enginerouter.errors import BadRequest, NotBuilt, UpstreamFailed

ALL = transcripts()
CHATS = ("/v1/chat/completions", "/api/chat", "/v1/messages", "/v1/completions", "/api/generate")
PAIRS = [(a, b) for a in BY_NAME for b in BY_NAME if a != b]
# Every word that a transcript uses as a key or a short value, so that what is made up is nearly right.
WORDS = sorted(
    {
        word
        for one in ALL.values()
        for text in json.dumps(one).split('"')
        if 0 < len(word := text.strip("\\")) < 30 and word.replace("_", "").isalnum()
    }
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.just(10**400) | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "user", "tool", "{}", "{", "data:image/png;base64,AA", "AABAQA==", "\ud800", "5m"])
    | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, whole: Any) -> Any:
    """JSON that is right but for a few members."""
    if isinstance(whole, dict):
        made = {}
        for key, value in whole.items():
            fate = draw(st.integers(0, 9))
            if fate == 0:
                made[key] = draw(JSON)
            elif fate != 1:
                made[key] = draw(damaged(value))
        return made
    if isinstance(whole, list):
        return [draw(damaged(item)) for item in whole]
    return draw(JSON) if draw(st.integers(0, 9)) == 0 else whole


def translated(
    client: str, path: str, body: dict[str, Any], engine: str, *, is_strict: bool, has_infill: bool = False
) -> Translation | None:
    try:
        translation = plan(
            BY_NAME[client], path, body, [engine], answer_id="a1", is_strict=is_strict, has_infill=has_infill
        )
        assert translation is not None
        payload(translation.body)
    except (BadRequest, NotBuilt) as refused:
        assert refused.message  # noqa: PT017 - what a client is told
        return None
    return translation


@pytest.mark.parametrize(("client", "engine"), PAIRS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_request_is_translated_or_refused(client: str, engine: str, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(TRANSLATED[client])))
    body = data.draw(st.dictionaries(st.sampled_from(WORDS), JSON, max_size=6))
    translated(client, path, body, engine, is_strict=data.draw(st.booleans()), has_infill=data.draw(st.booleans()))


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_request_with_a_few_wrong_members_is_translated_or_refused(data: st.DataObject) -> None:
    one = data.draw(st.sampled_from([o for o in ALL.values() if o.get("sent") or "refused" in o]))
    body = data.draw(damaged(one["request"]))
    traits = {"is_strict": one.get("strict", False), "has_infill": one.get("infill", False)}
    translated(one["client"], one["path"], body, one["engine"][0], **traits)
    estimated_tokens(body)
    try:
        residency_asked(one["path"], body)
    except BadRequest as refused:
        assert "keep_alive" in refused.message  # noqa: PT017


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_answer_of_an_engine_is_translated_or_its_error(data: st.DataObject) -> None:
    one = data.draw(st.sampled_from([o for o in ALL.values() if "answer" in o]))
    translation = planned(one)
    assert translation is not None
    said = data.draw(damaged(one["answer"]) | JSON)
    try:
        answer = translation.answer(json.dumps(said).encode(), TIMES, BEGAN_AT + 1, engine="e")
    except UpstreamFailed as broken:
        assert broken.engine == "e"  # noqa: PT017
        return
    if translation.path in CHATS:
        streamed = translation.answer_as_stream(json.dumps(said).encode(), TIMES, BEGAN_AT + 1, engine="e")
        assert isinstance(streamed, Failure) or events(one["client"], streamed.body)
    if isinstance(answer, Failure):
        assert 400 <= answer.status < 600
        assert isinstance(answer.fields["message"], str)
    else:
        json.loads(answer.body)


@pytest.mark.parametrize("raw", [b"", b"<html>", b"\xff", b'{"choices":', b"[" * 100_000, b'{"choices":[NaN]}'])
def test_what_is_no_json_is_the_engine_s_error(raw: bytes) -> None:
    body = {"model": "m", "messages": [], "stream": False}
    translation = plan(BY_NAME["ollama"], "/api/chat", body, ["openai"], answer_id="a1")
    assert translation is not None
    with pytest.raises(UpstreamFailed, match="the answer of e cannot be translated"):
        translation.answer(raw, TIMES, BEGAN_AT, engine="e")


STREAMED = [one for one in ALL.values() if "stream" in one]


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_stream_becomes_whole_events_and_an_end_or_a_failure(data: st.DataObject) -> None:
    one = data.draw(st.sampled_from(STREAMED))
    translation = planned(one)
    assert translation is not None
    stream, raw = translation.stream(TIMES), b""
    for said in one["stream"]:
        broken = said if isinstance(said, str) else data.draw(damaged(said) | st.just(said))
        if isinstance(broken, dict) and translation.engine_dialect == "anthropic":
            broken = {**broken, "type": str(broken.get("type")).replace("\ud800", "")}
        raw += stream.feed(frame(translation.engine_dialect, broken), BEGAN_AT + 1)
    raw += stream.end(BEGAN_AT + 2)
    events(one["client"], raw)
    assert stream.is_done is (stream.failure is None)


@settings(max_examples=80, deadline=None)
@given(
    one=st.sampled_from(STREAMED),
    places=st.lists(st.integers(0, 5000), max_size=12),
    line_end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_any_cut_of_a_stream_is_translated_the_same(one: dict[str, Any], places: list[int], line_end: bytes) -> None:
    translation = planned(one)
    assert translation is not None
    whole = b"".join(frame(translation.engine_dialect, said) for said in one["stream"])
    framed = whole.replace(b"\n", line_end)
    ends = [0, *sorted(p % (len(framed) + 1) for p in places), len(framed)]
    results = []
    for pieces in ([whole], [framed[a:b] for a, b in pairwise(ends)]):
        stream = translation.stream(TIMES)
        out = b"".join([*(stream.feed(piece, BEGAN_AT + 1) for piece in pieces), stream.end(BEGAN_AT + 1)])
        results.append((out, stream.failure, stream.usage))
    assert results[0] == results[1]


@given(st.integers(400, 599), JSON)
def test_any_error_of_an_engine_has_words_in_every_dialect(status: int, said: object) -> None:
    fields = engine_error_fields(status, json.dumps(said).encode())
    assert isinstance(fields["message"], str)
    for dialect in BY_NAME.values():
        assert json.loads(dialect.error_body(status, fields))
        assert dialect.error_frame("/", status, fields).endswith(dialect.event_ends[0])
