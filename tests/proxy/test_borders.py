"""Where events end: what goes out at once, and what is held until it is whole."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginerouter.dialects.translation import OPENAI
from enginerouter.proxy.downstream import HELD_BYTES, Downstream, KeepAlive, Mode, last_border
from enginerouter.tasks import TaskGroup

RULES = KeepAlive()


@pytest.mark.parametrize(
    ("chunk", "whole"),
    [
        (b"", b""),
        (b"data: 1", b""),
        (b"data: 1\n", b""),
        (b"data: 1\n\n", b"data: 1\n\n"),
        (b"data: 1\n\ndata", b"data: 1\n\n"),
        (b"data: 1\r\n\r\ndata: 2\r\n", b"data: 1\r\n\r\n"),
        (b"data: 1\r\n\r", b""),
        (b"data: 1\r\rdata: 2\n\ndata", b"data: 1\r\rdata: 2\n\n"),
        (b": alive\n", b": alive\n"),
        (b": alive", b""),
        (b"data: 1\n\n: alive\n: and\nda", b"data: 1\n\n: alive\n: and\n"),
        (b"data: 1\n: inside\n", b""),
    ],
)
def test_where_the_last_whole_event_ends(chunk: bytes, whole: bytes) -> None:
    assert chunk[: last_border(chunk, OPENAI.event_ends)] == whole


class Written:
    """Stands for a prepared answer: keeps what is written."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    async def write(self, data: bytes) -> None:
        self.pieces.append(data)

    async def write_eof(self) -> None:
        self.pieces.append(b"")


def committed(written: Written, *, is_event_stream: bool = True) -> Downstream:
    client = Downstream(None, RULES, Mode.COMMENT, lambda: "x", TaskGroup(), OPENAI)  # type: ignore[arg-type]
    client._response = written  # type: ignore[assignment]
    client.is_event_stream = is_event_stream
    return client


def sent(chunks: Iterable[bytes], *, last: bytes | None = None, is_event_stream: bool = True) -> list[bytes]:
    """What the client gets for these chunks of the engine, and then a tidy end or an error frame."""
    written = Written()

    async def send() -> None:
        client = committed(written, is_event_stream=is_event_stream)
        for chunk in chunks:
            await client.write(chunk, 0.0)
        if last is not None:
            await client.write_last(last)
        await client.finish()

    asyncio.run(send())
    assert written.pieces.pop() == b""
    return written.pieces


def test_whole_events_go_out_as_they_come() -> None:
    assert sent([b"data: 1\n\n", b"data: 2\n\ndata: 3\n\n"]) == [b"data: 1\n\n", b"data: 2\n\ndata: 3\n\n"]


def test_the_beginning_of_an_event_waits_for_its_end() -> None:
    assert sent([b"data: 1\n\nda", b"ta: 2\n", b"\ndata"]) == [b"data: 1\n\n", b"data: 2\n\n", b"data"]


def test_the_beginning_of_an_event_is_not_sent_before_an_error() -> None:
    assert sent([b"data: 1\n\nda", b"ta"], last=b"data: E\n\n") == [b"data: 1\n\n", b"data: E\n\n"]


def test_an_engine_s_own_keep_alive_is_not_held() -> None:
    assert sent([b": ping\n", b": ping\n"]) == [b": ping\n", b": ping\n"]


def test_a_huge_event_is_not_held_and_ended_before_an_error() -> None:
    huge = b"x" * (HELD_BYTES + 1)
    assert sent([huge, b"y"], last=b"data: E\n\n") == [huge, b"y", b"\n\ndata: E\n\n"]


def test_after_the_end_of_a_huge_event_the_next_is_held_again() -> None:
    huge = b"x" * (HELD_BYTES + 1)
    assert sent([huge, b"\n", b"\n", b"da", b"ta\n\n"]) == [huge, b"\n", b"\n", b"data\n\n"]


def test_what_is_no_event_stream_is_never_held() -> None:
    assert sent([b"{", b'"x": 1', b"}"], is_event_stream=False) == [b"{", b'"x": 1', b"}"]


@given(st.lists(st.sampled_from([b"data: x", b"\n", b"\r\n", b"\r", b": c\n", b"id: 1\n", b"\n\n"])), st.data())
def test_no_byte_is_lost_however_a_stream_is_cut(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))))
    bounds = [0, *cuts, len(stream)]
    chunks: list[Any] = [stream[a:b] for a, b in itertools.pairwise(bounds) if a < b]
    pieces = sent(chunks)
    assert b"".join(pieces) == stream
    seen = b""
    for piece in pieces[:-1]:
        seen += piece
        assert last_border(seen, OPENAI.event_ends) == len(seen), "between two pieces a comment may be sent"


MODES = [
    (RULES, True, True, None, Mode.COMMENT),
    (RULES, True, True, "event", Mode.EVENT),
    (RULES, True, True, "json", Mode.COMMENT),
    (RULES, True, True, "off", Mode.OFF),
    (RULES, True, True, "nonsense", Mode.COMMENT),
    (RULES, False, True, None, Mode.OFF),
    (RULES, False, True, "json", Mode.JSON),
    (RULES, False, False, "json", Mode.OFF),
    (RULES, False, True, "comment", Mode.OFF),
    (KeepAlive(json_after_s=3.0), False, True, None, Mode.JSON),
    (KeepAlive(json_after_s=3.0), False, True, "off", Mode.OFF),
    (KeepAlive(json_after_s=3.0), False, False, None, Mode.OFF),
    (KeepAlive(json_after_s=3.0), True, True, None, Mode.COMMENT),
    (KeepAlive(stream_mode=Mode.EVENT), True, True, None, Mode.EVENT),
    (KeepAlive(stream_mode=Mode.EVENT), True, True, "comment", Mode.COMMENT),
    (KeepAlive(enabled=False), True, True, "comment", Mode.OFF),
    (KeepAlive(enabled=False), False, True, "json", Mode.OFF),
]


@pytest.mark.parametrize(("rules", "is_stream", "may_pad", "asked", "mode"), MODES)
def test_what_a_waiting_client_gets(
    rules: KeepAlive, is_stream: bool, may_pad: bool, asked: str | None, mode: Mode
) -> None:
    assert rules.mode(is_stream=is_stream, may_pad=may_pad, asked=asked) is mode
