"""SIGHUP while the router is still coming up: what it needs to reload takes half a second to import.

Without a handler the signal would end the process; ignored, it would stay ignored in the engines that are started.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class EarlyHangup:
    """Whether one `came`."""

    def __init__(self) -> None:
        self.came = False

    def note(self, _number: int, _frame: FrameType | None) -> None:
        self.came = True


@contextmanager
def noted_hangups() -> Iterator[EarlyHangup]:
    """Note SIGHUP from now on, until somebody else handles it. For the main thread."""
    early = EarlyHangup()
    if not hasattr(signal, "SIGHUP"):  # Windows
        yield early
        return
    before = signal.signal(signal.SIGHUP, early.note)
    try:
        yield early
    finally:
        signal.signal(signal.SIGHUP, before)
