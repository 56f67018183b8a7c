"""The event stream of /v1/responses, with what some engines leave out of it.

llama.cpp sends no `sequence_number`, `output_index` and `content_index`, and no `output` in `response.created`. Whoever
reads the events one by one does not miss them; the stream helpers of the official SDKs fail.

The first event of the API decides: if it has its number and its output, all of the stream passes. Else every event gets
what it lacks, written in front of what the engine wrote, which stays as it is.
"""

from __future__ import annotations

import json
import re
from typing import Any

from enginerouter.dialects.framing import LIMIT_BYTES
from enginerouter.dialects.reading import Json, compact, dict_of, text_of

# A blank line, however lines end; the groups are atomic, or CRLF would count as two ends.
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINES = re.compile(rb"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")
# Announce a response that has no output yet.
_OPENINGS = ("response.created", "response.queued", "response.in_progress")
_ADDED, _DONE = "response.output_item.added", "response.output_item.done"
_CONTENT = ("response.content_part.", "response.output_text.", "response.refusal.", "response.reasoning_text.")
_SUMMARY = ("response.reasoning_summary_part.", "response.reasoning_summary_text.")
_IN_ITEMS = (*_CONTENT, *_SUMMARY, "response.function_call_arguments.")


class Numbering:
    """Pieces of an engine's stream in, whole events out. An event beyond the limit passes, and all that follows it."""

    __slots__ = ("_counts", "_has_looked", "_held", "_limit", "_passes")

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._held = bytearray()
        # Whether the first event of the API has told if the stream passes.
        self._has_looked = False
        self._passes = False
        self._counts = _Counts()

    def feed(self, piece: bytes) -> bytes:
        """The events that this piece ends, and whatever follows them where nothing is needed."""
        if self._passes:
            return piece
        held = self._held
        looked = max(0, len(held) - 3)
        held += piece
        out, begin = [], 0
        while (border := _EVENT_END.search(held, looked)) is not None:
            end = looked = border.end()
            if end == len(held) and border[0] == b"\r\n\r":
                break  # its LF is on the way
            out.append(self._mended(bytes(held[begin:end])))
            begin = end
        del held[:begin]
        if self._passes or len(held) > self._limit:
            self._passes = True
            out.append(bytes(held))
            held.clear()
        return b"".join(out)

    def end(self) -> bytes:
        """The stream has ended: an event without its blank line."""
        rest = bytes(self._held)
        self._held.clear()
        return self._mended(rest) if rest else b""

    def _mended(self, raw: bytes) -> bytes:
        if self._passes:
            return raw
        lines: list[bytes] = _LINES.findall(raw)
        at = [i for i, line in enumerate(lines) if line.startswith(b"data:")]
        data = b"\n".join(lines[i].rstrip(b"\r\n")[5:] for i in at)
        said = _event_in(data)
        if said is None:
            return raw
        if not self._has_looked and said["type"].startswith("response."):
            self._has_looked = True
            self._passes = "sequence_number" in said and not _lacks_output(said)
        if self._passes or not self._has_looked:
            return raw
        missing = self._counts.missing(said)
        if _lacks_output(said):
            written = _data({**missing, **said, "response": {**said["response"], "output": []}})
        elif not missing:
            return raw
        elif len(at) > 1:
            written = _data({**missing, **said})
        else:
            before, _, after = data.partition(b"{")
            written = before + compact(missing)[:-1].encode() + b"," + after
        first = lines[at[0]]
        lines[at[0]] = b"data:" + written + first[len(first.rstrip(b"\r\n")) :]
        return b"".join(line for i, line in enumerate(lines) if i == at[0] or i not in at)


def _data(said: Json) -> bytes:
    return b" " + compact(said).encode()


def _event_in(data: bytes) -> Json | None:
    """An event of the API; None for anything else."""
    try:
        said: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) and isinstance(said.get("type"), str) else None


def _lacks_output(said: Json) -> bool:
    return said["type"] in _OPENINGS and isinstance(said.get("response"), dict) and "output" not in said["response"]


class _Counts:
    """What has been counted of one stream."""

    __slots__ = ("_done", "_items", "_next", "_parts")

    def __init__(self) -> None:
        self._next = 0
        # The names of each item (`id`, `call_id`), by its index; those that are done.
        self._items: dict[int, set[str]] = {}
        self._done: set[int] = set()
        # How many parts each item has, of its content and of its summary.
        self._parts: dict[tuple[int, str], int] = {}

    def missing(self, said: Json) -> Json:
        """The members that this event has not, and should have."""
        kind, found = said["type"], {"sequence_number": _whole(said.get("sequence_number"), self._next)}
        self._next = found["sequence_number"] + 1
        index = self._item(kind, said)
        if index is not None:
            found["output_index"] = index
            if kind.startswith(_CONTENT):
                found["content_index"] = self._part(index, "content", said, is_new=kind.endswith("_part.added"))
            elif kind.startswith(_SUMMARY):
                found["summary_index"] = self._part(index, "summary", said, is_new=kind.endswith("_part.added"))
        return {name: value for name, value in found.items() if name not in said}

    def _item(self, kind: str, said: Json) -> int | None:
        """The index of the item that an event is of; None for one of the whole response."""
        given = said.get("output_index")
        if kind == _ADDED:
            index = _whole(given, max(self._items, default=-1) + 1)
            self._items[index] = _names(said)
            return index
        if type(given) is int:
            index = given
        elif kind == _DONE or "item_id" in said or kind.startswith(_IN_ITEMS):
            if not self._items:
                return None
            index = self._done_now(_names(said)) if kind == _DONE else self._current(text_of(said.get("item_id")))
        else:
            return None
        if kind == _DONE:
            self._done.add(index)
        return index

    def _current(self, name: str) -> int:
        """The last item of that name, else the last one."""
        return next((i for i in reversed(self._items) if name in self._items[i]), max(self._items))

    def _done_now(self, names: set[str]) -> int:
        """The first item of that name which is not done: several calls may have the same. Else the first not done."""
        left = [i for i in self._items if i not in self._done]
        return next((i for i in left if names & self._items[i]), left[0] if left else max(self._items))

    def _part(self, item: int, of: str, said: Json, *, is_new: bool) -> int:
        """The part of an item that an event is of: a new one, else the last."""
        count = self._parts.get((item, of), 0)
        index = _whole(said.get(f"{of}_index"), count if is_new else max(0, count - 1))
        self._parts[item, of] = max(count, index + 1) if is_new else count
        return index


def _whole(value: object, otherwise: int) -> int:
    return value if type(value) is int else otherwise


def _names(said: Json) -> set[str]:
    item = dict_of(said.get("item"))
    return {name for key in ("id", "call_id") if (name := text_of(item.get(key)))}
