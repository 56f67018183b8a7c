"""Streams are cut anywhere; their events are the same. Framing of every kind that engines send."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginerouter.dialects.framing import EventSplitter, FrameTooLarge, LineSplitter


def events_of(*pieces: bytes) -> list[tuple[str, bytes]]:
    splitter = EventSplitter()
    return [event for piece in pieces for event in splitter.feed(piece)] + splitter.end()


def lines_of(*pieces: bytes) -> list[bytes]:
    splitter = LineSplitter()
    return [line for piece in pieces for line in splitter.feed(piece)] + splitter.end()


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted(p % (len(raw) + 1) for p in places), len(raw)]
    return [raw[a:b] for a, b in pairwise(ends)]


SSE = {
    "LF": (b"data: a\n\ndata: b\n\n", [("", b"a"), ("", b"b")]),
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", [("", b"a"), ("", b"b")]),
    "CR": (b"data: a\r\rdata: b\r\r", [("", b"a"), ("", b"b")]),
    "mixed": (b"data: a\r\n\ndata: b\r\r\n", [("", b"a"), ("", b"b")]),
    "no space": (b"data:a\n\n", [("", b"a")]),
    "only one space is taken away": (b"data:  a\n\n", [("", b" a")]),
    "lines of data": (b"data: a\ndata: b\ndata\n\n", [("", b"a\nb\n")]),
    "named": (b"event: ping\ndata: {}\n\ndata: x\n\n", [("ping", b"{}"), ("", b"x")]),
    "a name without data is no event": (b"event: ping\n\ndata: x\n\n", [("", b"x")]),
    "comments": (b": hi\n\n:\ndata: a\n: amid\n\n", [("", b"a")]),
    "id and retry": (b"id: 1\nretry: 5\n\ndata: a\nid: 2\n\n", [("", b"a")]),
    "unknown fields": (b"date: x\ndatax: y\ndata: a\n\n", [("", b"a")]),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [("", b"a")]),
    "no last blank line": (b"data: a\n\ndata: b\n", [("", b"a"), ("", b"b")]),
    "no last line end": (b"data: a\n\ndata: b", [("", b"a"), ("", b"b")]),
    "blank lines before and between": (b"\n\n\ndata: a\n\n\n\n", [("", b"a")]),
    "line separators inside a string": (
        "data: {\"a\":\"x\u2028y\u2029z\u0085\x0b\x0c\x1c\"}\n\n".encode(),
        [("", "{\"a\":\"x\u2028y\u2029z\u0085\x0b\x0c\x1c\"}".encode())],
    ),
    "nothing": (b"", []),
}  # fmt: skip


@pytest.mark.parametrize("name", SSE)
def test_events_are_found_in_any_framing(name: str) -> None:
    raw, events = SSE[name]
    assert events_of(raw) == events


@pytest.mark.parametrize("name", SSE)
def test_they_are_the_same_byte_by_byte(name: str) -> None:
    raw, events = SSE[name]
    assert events_of(*(raw[i : i + 1] for i in range(len(raw)))) == events


PIECES = st.sampled_from(
    [
        b"data: ",
        b"data:",
        b"event: e",
        b": c",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"x",
        "\u2028é😀".encode(),
        b"[DONE]",
        b"\xff",
    ]
)


@given(st.lists(PIECES, max_size=40).map(b"".join), st.lists(st.integers(0, 500), max_size=10))
def test_any_cut_gives_the_same_events(raw: bytes, places: list[int]) -> None:
    assert events_of(*cut(raw, places)) == events_of(raw)


@given(st.lists(PIECES, max_size=40).map(b"".join), st.lists(st.integers(0, 500), max_size=10))
def test_any_cut_gives_the_same_lines(raw: bytes, places: list[int]) -> None:
    assert lines_of(*cut(raw, places)) == lines_of(raw)


@given(st.lists(st.text(), max_size=6), st.lists(st.integers(0, 500), max_size=10))
def test_lines_of_json_come_out_as_they_went_in(texts: list[str], places: list[int]) -> None:
    raw = b"".join(json.dumps({"a": t}, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n" for t in texts)
    read = [json.loads(line.decode("utf-8", "surrogatepass")) for line in lines_of(*cut(raw, places))]
    assert read == [{"a": t} for t in texts]


def test_blank_lines_and_spaces_are_no_lines_of_json() -> None:
    assert lines_of(b'\n  {"a":1}\r\n\r\n {"b":2}') == [b'{"a":1}', b'{"b":2}']


@pytest.mark.parametrize("pieces", [[b"x" * 11], [b"x" * 6, b"x" * 6], [b"data: " + b"x" * 3, b"x" * 9]])
def test_a_line_that_never_ends_is_an_error_by_name(pieces: list[bytes]) -> None:
    splitter = LineSplitter(limit_bytes=10)
    with pytest.raises(FrameTooLarge, match="larger than 10 bytes"):
        _ = [splitter.feed(piece) for piece in pieces]


def test_an_event_of_many_lines_is_bounded_too() -> None:
    splitter = EventSplitter(limit_bytes=100)
    with pytest.raises(FrameTooLarge):
        _ = [splitter.feed(b"data: 12345\n") for _ in range(50)]


def test_many_small_events_are_not() -> None:
    splitter = EventSplitter(limit_bytes=20)
    assert len([e for _ in range(50) for e in splitter.feed(b"data: 12345\n\n")]) == 50
