"""Every row of the mapping tables between the dialects, both ways, as transcripts to read: see golden_kit.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dialects.golden_kit import BEGAN_AT, TIMES, planned, played, transcripts
from enginerouter.dialects.base import Failure
from enginerouter.errors import RouterError, UpstreamFailed

ALL = transcripts()


@pytest.mark.parametrize("name", ALL)
def test_a_request_is_translated_and_so_is_its_answer(name: str) -> None:
    one: dict[str, Any] = ALL[name]
    if "refused" in one:
        with pytest.raises(RouterError) as refused:
            planned(one)
        assert [refused.value.status, refused.value.message] == one["refused"]
        return
    translation = planned(one)
    if translation is None:
        assert one["sent"] is None
        return
    assert {"path": translation.path, "body": translation.body} == one["sent"]
    if "stream" in one:
        events, stream = played(one, translation)
        assert events == one["events"]
        assert said_by(stream.failure) == one.get("failure")
        assert stream.is_done is (stream.failure is None)
    elif "broken" in one:
        with pytest.raises(UpstreamFailed) as broken:
            translation.answer(json.dumps(one["answer"]).encode(), TIMES, BEGAN_AT + 2, engine="e")
        assert [broken.value.status, broken.value.message] == one["broken"]
    elif "answer" in one:
        answer = translation.answer(json.dumps(one["answer"]).encode(), TIMES, BEGAN_AT + 2, engine="e")
        if isinstance(answer, Failure):
            assert said_by(answer) == one["failure"]
        else:
            assert json.loads(answer.body) == one["shown"]


def said_by(failure: Failure | None) -> list[Any] | None:
    return None if failure is None else [failure.status, failure.fields["message"]]


def test_every_table_has_transcripts_both_ways() -> None:
    directions = {(one["client"], engine) for one in ALL.values() for engine in one["engine"]}
    dialects = ("openai", "ollama", "anthropic")
    assert directions >= {(a, b) for a in dialects for b in dialects if a != b}
