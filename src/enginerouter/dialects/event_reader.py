"""The stream of an engine whose events are JSON objects and speak for themselves: no names, no [DONE] that counts."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod

from enginerouter.dialects import openai
from enginerouter.dialects.base import Asked, Failure
from enginerouter.dialects.framing import EventSplitter
from enginerouter.dialects.reading import Json


class EventReader(ABC):
    """A Reader (base.py) but for what an object means, which `_of` says; it sets `has_ended` at the last one."""

    __slots__ = ("_events", "_model", "failure", "has_ended")

    def __init__(self, asked: Asked) -> None:
        self._events = EventSplitter()
        self._model = asked.model
        self.failure: Failure | None = None
        self.has_ended = False

    @abstractmethod
    def _of(self, said: Json) -> list[Json]:
        """The chunks that one object of the engine makes."""

    def feed(self, piece: bytes) -> list[Json]:
        return self._chunks(self._events.feed(piece))

    def end(self) -> list[Json]:
        return self._chunks(self._events.end())

    def _chunks(self, events: list[tuple[str, bytes]]) -> list[Json]:
        chunks: list[Json] = []
        for _, data in events:
            if self.has_ended or self.failure is not None:
                break
            try:
                said = json.loads(data.decode("utf-8", "replace"))
            except (ValueError, RecursionError):
                if data.strip() not in (b"", b"[DONE]"):
                    self.failure = openai.broken_stream(
                        "the engine's stream broke off, or holds an event that is no JSON"
                    )
                continue
            if not isinstance(said, dict):
                continue
            self.failure = openai.stream_failure(said)
            if self.failure is None:
                chunks += self._of(said)
        return chunks
