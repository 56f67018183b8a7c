"""An event loop whose clock is virtual: it never sleeps, but jumps to the next timer.

An hour of waiting takes no time, every run is the same, and a program in which everybody waits and no timer is set
raises `Deadlock` instead of hanging. One that turns without end while time stands still raises `Spinning`. Only for
code without sockets, threads and processes.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

# More turns of the loop than any test needs within one virtual second.
SPINNING_TURNS = 200_000


class Deadlock(Exception):
    """Every task waits, and no timer is set."""


class Spinning(Exception):
    """The loop turns and turns, and time hardly moves."""


class _Jump(selectors.SelectSelector):
    """Selects nothing; the time it should have slept is added to the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._second = 0
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("every task waits and no timer is set")
        self.now += max(0.0, timeout)
        self._turns += 1
        if int(self.now) != self._second:
            self._second, self._turns = int(self.now), 0
        elif self._turns > SPINNING_TURNS:
            self._turns = 0  # the loop has to turn again to clear up
            raise Spinning(f"{SPINNING_TURNS} turns of the loop in the virtual second {self._second}")
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)
        # Timers this close together are one moment; far above the rounding of additions, far below any interval here.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._jump.now


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time, starting at 0 s."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make an async test an ordinary one that runs in virtual time."""

    @functools.wraps(test)
    def in_virtual_time(*args: Any, **kwargs: Any) -> None:
        run(test(*args, **kwargs))

    return in_virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


async def settle_down(turns: int = 20) -> None:
    """Let everything that can run now run, without any time passing."""
    for _ in range(turns):
        await asyncio.sleep(0)
