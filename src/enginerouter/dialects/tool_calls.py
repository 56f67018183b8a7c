"""Tool calls of a stream: they come in pieces, by index, and pieces of several may take turns."""

from __future__ import annotations

import json

from enginerouter.dialects.reading import Json, compact, dict_of, text_of


class ToolCall:
    """One call so far. `pieces` are those of its arguments, which are JSON once all are here."""

    __slots__ = ("_looked_at", "id", "name", "pieces")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.pieces: list[str] = []
        # How many pieces there were when they were last seen to be no whole object.
        self._looked_at = 0

    def add(self, delta: Json) -> str:
        """Take in one piece; gives what it adds to the arguments."""
        function = dict_of(delta.get("function"))
        self.id = self.id or text_of(delta.get("id"))
        self.name = self.name or text_of(function.get("name"))
        said = function.get("arguments")
        # Some engines write the object itself, whole.
        piece = compact(said) if isinstance(said, dict) else text_of(said)
        if piece:
            self.pieces.append(piece)
        return piece

    def is_complete(self) -> bool:
        """Whether the arguments so far are a whole object, so that nothing of it can follow."""
        if len(self.pieces) == self._looked_at:
            return False
        try:
            is_whole = isinstance(json.loads("".join(self.pieces)), dict)
        except (ValueError, RecursionError):
            is_whole = False
        self._looked_at = 0 if is_whole else len(self.pieces)
        return is_whole

    def whole(self) -> Json:
        """The call as a member of an OpenAI message."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": "".join(self.pieces)},
        }


class ToolCalls:
    """All calls of one answer, by index."""

    __slots__ = ("_by_index", "_last")

    def __init__(self) -> None:
        self._by_index: dict[int, ToolCall] = {}
        self._last = -1

    def __len__(self) -> int:
        return len(self._by_index)

    def of(self, delta: Json) -> ToolCall:
        """The call that a piece belongs to. Without an index, a new id begins one and no id goes on with the last."""
        index = delta.get("index")
        if type(index) is not int:
            last = self._by_index.get(self._last)
            is_same = last is not None and text_of(delta.get("id")) in ("", last.id)
            index = self._last if is_same else max(self._by_index, default=-1) + 1
        self._last = index
        call = self._by_index.get(index)
        if call is None:
            call = self._by_index[index] = ToolCall()
        return call

    def add(self, delta: Json) -> None:
        self.of(delta).add(delta)

    def in_order(self) -> list[ToolCall]:
        return [self._by_index[index] for index in sorted(self._by_index)]
