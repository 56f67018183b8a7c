"""Streams of /v1/responses get the numbers that their engine left out, and nothing else of them changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginerouter.dialects.response_events import Numbering

RESPONSE = {"id": "resp_1", "object": "response", "status": "in_progress"}
Event = dict[str, Any]


def of(kind: str, **more: Any) -> Event:
    return {"type": f"response.{kind}", **more}


# As llama.cpp sends it: thinking, words, two calls at once; only words and thoughts have an `id`.
LLAMA: list[Event] = [
    of("created", response=RESPONSE),
    of("in_progress", response=RESPONSE),
    of("output_item.added", item={"id": "rs_1", "type": "reasoning", "summary": [], "content": []}),
    of("reasoning_text.delta", item_id="rs_1", delta="Hm\u2028"),
    of("output_item.added", item={"id": "msg_1", "type": "message", "role": "assistant", "content": []}),
    of("content_part.added", item_id="msg_1", part={"type": "output_text", "text": ""}),
    of("output_text.delta", item_id="msg_1", delta="Grüße \ud83d\ude00"),
    of("output_item.added", item={"call_id": "fc_1", "type": "function_call", "name": "f", "arguments": ""}),
    of("function_call_arguments.delta", item_id="fc_1", delta="{"),
    of("output_item.added", item={"call_id": "fc_2", "type": "function_call", "name": "g", "arguments": ""}),
    of("function_call_arguments.delta", item_id="fc_2", delta="{}"),
    of("output_item.done", item={"id": "rs_1", "type": "reasoning"}),
    of("output_text.done", item_id="msg_1", text="Grüße"),
    of("content_part.done", item_id="msg_1", part={"type": "output_text", "text": "Grüße"}),
    of("output_item.done", item={"id": "msg_1", "type": "message"}),
    of("output_item.done", item={"call_id": "fc_1", "type": "function_call"}),
    of("output_item.done", item={"call_id": "fc_2", "type": "function_call"}),
    of("completed", response={"id": "resp_1", "output": [], "status": "completed"}),
]
ITEMS = [None, None, 0, 0, 1, 1, 1, 2, 2, 3, 3, 0, 1, 1, 1, 2, 3, None]


def frame(event: Event | str, end: str = "\n") -> bytes:
    data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
    name = "" if isinstance(event, str) else f"event: {event['type']}{end}"
    return f"{name}data: {data}{end}{end}".encode("utf-8", "surrogatepass")


def streamed(events: list[Event], end: str = "\n") -> bytes:
    return b"".join(frame(event, end) for event in events)


def mended(raw: bytes, *cuts: int) -> bytes:
    numbering, out, at = Numbering(), b"", 0
    for cut in [*sorted(cuts), len(raw)]:
        out += numbering.feed(raw[at:cut])
        at = cut
    return out + numbering.end()


def events_in(raw: bytes) -> list[Event]:
    lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return [json.loads(line[5:]) for line in lines if line.startswith(b"data:")]


def full(events: list[Event] = LLAMA) -> list[Event]:
    """The same from an engine that leaves nothing out."""
    return events_in(mended(streamed(events)))


def test_what_llama_cpp_leaves_out_is_put_in() -> None:
    found = full()
    assert [one["sequence_number"] for one in found] == list(range(len(LLAMA)))
    assert [one.get("output_index") for one in found] == ITEMS
    assert [one["response"]["output"] for one in found[:2]] == [[], []]
    with_content = [i for i, one in enumerate(found) if "content_index" in one]
    assert [found[i]["type"].partition(".")[2] for i in with_content] == [
        "reasoning_text.delta",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
    ]
    assert {found[i]["content_index"] for i in with_content} == {0}
    put_in = {"sequence_number", "output_index", "content_index"}
    for one, before in zip(found[2:], LLAMA[2:], strict=True):
        assert {k: v for k, v in one.items() if k not in put_in} == before


def test_parts_of_one_item_and_their_summaries_are_counted_apart() -> None:
    item = {"id": "m", "type": "message"}
    found = full(
        [
            of("created", response=RESPONSE),
            of("output_item.added", item=item),
            of("reasoning_summary_part.added", item_id="m"),
            of("reasoning_summary_text.delta", item_id="m", delta="x"),
            of("content_part.added", item_id="m"),
            of("content_part.added", item_id="m"),
            of("refusal.delta", item_id="m", delta="x"),
            of("reasoning_summary_part.added", item_id="m"),
        ]
    )
    assert [one.get("content_index") for one in found[4:7]] == [0, 1, 1]
    assert [one.get("summary_index") for one in (found[2], found[3], found[7])] == [0, 0, 1]


def test_two_calls_of_one_name_are_two_items() -> None:
    """Templates without ids for calls give all of them the same."""
    call = {"call_id": "fc_", "type": "function_call"}
    added, done = of("output_item.added", item=call), of("output_item.done", item=call)
    delta = of("function_call_arguments.delta", item_id="fc_", delta="{}")
    found = full([of("created", response=RESPONSE), added, delta, added, delta, done, done])
    assert [one["output_index"] for one in found[1:]] == [0, 0, 1, 1, 0, 1]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("extra", [b"", b": a comment\n\n", b"event: ping\ndata: \n\n", b"id: 7\n", b"\xef\xbb\xbf"])
def test_a_stream_that_has_everything_passes_byte_for_byte(end: str, extra: bytes) -> None:
    raw = extra + streamed(full(), end)
    assert mended(raw) == raw


def test_an_event_that_has_everything_passes_byte_for_byte_among_others() -> None:
    whole = b'event: x\r\ndata:{ "sequence_number":7 , "type":"response.output_text.delta","output_index":3,'
    whole += b'"content_index":1,"item_id":"m","delta":"x"}\r\n\r\n'
    raw = mended(frame(LLAMA[0]) + whole + frame(of("completed", response={})))
    assert whole in raw
    assert [one["sequence_number"] for one in events_in(raw)] == [0, 7, 8]


def test_an_engine_that_numbers_but_opens_without_an_output_gets_that_alone() -> None:
    raw = frame(of("created", sequence_number=5, response=RESPONSE)) + frame(of("in_progress", response={"output": 1}))
    assert events_in(mended(raw)) == [
        of("created", sequence_number=5, response={**RESPONSE, "output": []}),
        {"sequence_number": 6, **of("in_progress", response={"output": 1})},
    ]


@pytest.mark.parametrize(
    "odd",
    [
        frame("[DONE]"),
        frame("{not json"),
        frame('{"error":{"message":"boom"}}'),
        frame("[1]"),
        frame('"text"'),
        frame('{"type":7}'),
        frame("[" * 100_000),
        b"data: \xff\n\n",
        b": comment\n",
        b": comment\n\n",
        b"event: ping\n\n",
        b"retry: 3\n\n",
        b"\n\n\n",
        b"data\n\n",
        frame(of("output_text.delta", item_id="m", delta="no item yet", sequence_number=1)),
        frame(of("created", response="none", sequence_number=9)),
    ],
)
def test_what_is_odd_passes_byte_for_byte_wherever_it_stands(odd: bytes) -> None:
    first, rest = frame(LLAMA[0]), streamed(LLAMA[1:])
    if b"response." not in odd:
        assert mended(odd + first + rest) == odd + mended(first + rest)
    assert odd in mended(first + odd + rest)
    assert mended(odd) == odd


def test_lines_around_the_data_stay() -> None:
    raw = (
        b"id: 1\r\nevent: response.created\r\n: hello\r\ndata: "
        + json.dumps(LLAMA[0]).encode()
        + b"\r\nretry: 5\r\n\r\n"
    )
    before, _, after = mended(raw).partition(b"data: ")
    assert before == b"id: 1\r\nevent: response.created\r\n: hello\r\n"
    assert after.endswith(b"}\r\nretry: 5\r\n\r\n")


def test_data_in_several_lines_becomes_one() -> None:
    text = json.dumps(LLAMA[0], indent=1).replace("\n", "\ndata: ")
    (only,) = events_in(mended(f"event: x\ndata: {text}\n\n".encode()))
    assert only == {"sequence_number": 0, **of("created", response={**RESPONSE, "output": []})}


def test_what_the_engine_wrote_stays_as_it_was_written() -> None:
    """Numbers, escapes and characters of an event are not written anew."""
    raw = b'data:  {"type":"response.output_text.delta","item_id":"m","delta":"\\u00fc\xc3\xbc\xe2\x80\xa8","p":1.50e1}'
    out = mended(frame(LLAMA[0]) + frame(of("output_item.added", item={"id": "m"})) + raw + b"\n\n")
    assert out.endswith(b"," + raw.partition(b"{")[2] + b"\n\n")


def test_events_go_on_when_they_are_whole_and_not_before() -> None:
    numbering = Numbering()
    first = frame(LLAMA[0], "\r\n")
    assert numbering.feed(first[:-1]) == b""
    assert len(events_in(numbering.feed(first[-1:]))) == 1
    delta = frame(LLAMA[3], "\r\n")
    assert numbering.feed(delta[:30]) == b""
    assert len(events_in(numbering.feed(delta[30:] + delta[:9]))) == 1


def test_an_engine_that_needs_nothing_is_not_waited_for() -> None:
    numbering = Numbering()
    first = frame(full()[0])
    assert numbering.feed(first[:20]) == b""
    assert numbering.feed(first[20:] + b"data: {") == first + b"data: {"
    assert numbering.feed(b"half") == b"half"
    assert numbering.end() == b""


def test_an_event_beyond_the_limit_passes_and_all_after_it() -> None:
    numbering = Numbering(limit_bytes=2000)
    begun = numbering.feed(frame(LLAMA[0]))
    assert b'"sequence_number":0' in begun
    large = frame(of("output_text.delta", delta="x" * 3000))
    assert numbering.feed(large[:1500]) == b""
    assert numbering.feed(large[1500:2500]) == large[:2500]
    assert numbering.feed(large[2500:] + frame(LLAMA[1])) == large[2500:] + frame(LLAMA[1])


def test_the_end_without_a_blank_line_is_an_event() -> None:
    (only,) = events_in(mended(frame(LLAMA[0]).rstrip()))
    assert only["sequence_number"] == 0


@given(
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.lists(st.integers(0, len(streamed(LLAMA, "\r\n"))), max_size=30),
)
def test_any_split_gives_the_same_events(end: str, is_full: bool, cuts: list[int]) -> None:
    raw = streamed(full() if is_full else LLAMA, end)
    assert mended(raw, *cuts) == mended(raw)
