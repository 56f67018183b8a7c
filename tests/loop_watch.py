"""How long a callback held up the event loop, whatever else the machine does: the proof that nothing blocks it.

Every callback is timed by the clock, and what its process only waited for a processor is taken off: the kernel counts
that for each thread (`schedstat`). So load from outside accuses nobody, while a sleep, a blocking read, a wait for
another thread's lock and plain computing all count in full. Where the kernel does not count it, the clock alone does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

# What a user may notice.
LIMIT_S = 0.05


@dataclass
class LoopWatch:
    """`longest_s` and `culprit`: the longest callback so far, and what it was."""

    longest_s: float = 0.0
    culprit: str = "nothing ran"
    _files: dict[int, int] = field(default_factory=dict, repr=False)
    _is_closed: bool = field(default=False, repr=False)

    def assert_never_blocked(self) -> None:
        assert self.culprit != "nothing ran"
        assert self.longest_s < LIMIT_S, (
            f"the event loop was held up for {1000 * self.longest_s:.0f} ms by {self.culprit}"
        )

    def note(self, handle: asyncio.Handle, seconds: float) -> None:
        if seconds > self.longest_s:
            self.longest_s, self.culprit = seconds, repr(handle)

    def waited_for_a_processor_s(self) -> float:
        """Of all threads of this process together: one that holds the interpreter's lock makes the others wait."""
        waited = 0
        if self._is_closed:  # by the very callback that is timed: its descriptors may be somebody else's by now
            return 0.0
        for thread in threading.enumerate():
            if (tid := thread.native_id) is not None:
                with contextlib.suppress(OSError):  # it has ended
                    if tid not in self._files:
                        self._files[tid] = os.open(f"/proc/self/task/{tid}/schedstat", os.O_RDONLY)
                    waited += int(os.pread(self._files[tid], 100, 0).split()[1])
        return waited / 1e9

    def close(self) -> None:
        self._is_closed = True
        for file in self._files.values():
            os.close(file)


@contextlib.contextmanager
def loop_watch() -> Iterator[LoopWatch]:
    """Times the callbacks of the running loop inside it."""
    watch = LoopWatch()
    loop_thread = threading.get_ident()
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        if threading.get_ident() != loop_thread:
            return run(handle)
        waited, began = watch.waited_for_a_processor_s(), time.perf_counter()
        try:
            return run(handle)
        finally:
            seconds = time.perf_counter() - began
            watch.note(handle, seconds - max(0.0, watch.waited_for_a_processor_s() - waited))

    asyncio.Handle._run = timed  # type: ignore[method-assign]
    try:
        yield watch
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]
        watch.close()
