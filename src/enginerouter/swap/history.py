"""Memory over time: what readings said, kept for those who come later. Nothing is read for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from enginerouter.swap.memory import ChosenSource, Device, Processes

EVERY_S = 5.0
KEPT_S = 3600.0


class MemoryHistory:
    """The readings of the last hour, one every five seconds at most: some 100 KiB, however often memory is read.

    `now` is monotonic; where nobody reads, there are no points.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._points: deque[tuple[float, int]] = deque(maxlen=int(KEPT_S / EVERY_S) + 1)
        # Shown until there is a newer one, so that how a swap ended is not missed.
        self._newest: tuple[float, int] | None = None

    def note(self, available: int) -> None:
        self._newest = self._now(), available
        if not self._points or self._newest[0] - self._points[-1][0] >= EVERY_S:
            self._points.append(self._newest)

    def points(self) -> list[tuple[float, int]]:
        """(seconds ago, bytes), the oldest first."""
        points = list(self._points)
        if self._newest is not None and self._newest != points[-1]:
            points.append(self._newest)
        now = self._now()
        return [(now - at, available) for at, available in points if now - at <= KEPT_S]


class Remembering:
    """A source whose readings are noted as they are taken."""

    def __init__(self, source: ChosenSource, history: MemoryHistory) -> None:
        self._source = source
        self._history = history

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def why(self) -> str:
        return self._source.why

    @property
    def warnings(self) -> Sequence[str]:
        return self._source.warnings

    @property
    def problem(self) -> str:
        return self._source.problem

    @property
    def counts_host_pages(self) -> bool:
        return self._source.counts_host_pages

    async def start(self) -> None:
        await self._source.start()

    async def refresh(self) -> None:
        await self._source.refresh()

    def available(self) -> int | None:
        available = self._source.available()
        if available is not None:
            self._history.note(available)
        return available

    def devices(self) -> Sequence[Device]:
        return self._source.devices()

    def processes(self) -> Processes | None:
        return self._source.processes()

    async def close(self) -> None:
        await self._source.close()
