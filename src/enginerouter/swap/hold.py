"""Memory kept free for another program: who holds it, for how long, and what its requests get. Plain data and words.

A hold frees every slot that holds memory, pinned ones too, and lets none start until it is released or expires. It
belongs to one owner and to this run of the router: a restart forgets it. Slots without memory of their own serve on.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal

from enginerouter.errors import Held, HeldByOther, RouterError

# A hold without an end is asked about again after the longest time that every SDK obeys.
RETRY_AFTER_S = 60.0

HoldMode = Literal["refuse", "queue"]
HoldDrain = Literal["wait", "cut", "refuse"]


@dataclass(slots=True, eq=False)
class Hold:
    """One hold of one lane. `mode`: what becomes of requests meanwhile. `drain` None: as `on_drain_timeout` says.

    `lasts_s` is how long its owner may have the memory, None without an end: it counts from when that is free.
    `has_looked`: what others loaded has been looked for. `outcome` is None until the memory is free (True) or the hold
    has ended before that (its error); then `decided`.
    """

    owner: str
    mode: HoldMode
    began_at: float
    lasts_s: float | None = None
    expires_at: float | None = None
    drain: HoldDrain | None = None
    has_looked: bool = False
    outcome: Literal[True] | RouterError | None = None
    decided: asyncio.Event = field(default_factory=asyncio.Event)

    def decide(self, outcome: Literal[True] | RouterError) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self.decided.set()

    def freed(self, now: float) -> None:
        """All of its memory is free. Any number of times."""
        if self.outcome is None:
            self.decide(True)
            self.count_from(now)

    def count_from(self, now: float) -> None:
        """The owner's time begins – anew, if it said so again."""
        self.expires_at = None if self.lasts_s is None else now + self.lasts_s

    @property
    def is_free(self) -> bool:
        return self.outcome is True

    def is_over(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def refusal(self, now: float) -> Held:
        """What a request gets that is not let in."""
        left = self.lasts_s if self.expires_at is None else max(0.0, self.expires_at - now)
        until = "until it is released (POST /admin/release)" if left is None else f"for another {left:.0f} s"
        if left is not None and self.expires_at is None:
            until = f"for {left:.0f} s once it is free"
        return Held(
            f"memory is held free for {self.owner!r} {until}; engines that need memory do not start meanwhile",
            retry_after_s=RETRY_AFTER_S if left is None else left,
        )

    def taken(self, other: str) -> HeldByOther:
        """What another owner gets who wants to hold or release it."""
        return HeldByOther(f"memory is held by {self.owner!r}, not by {other!r}; it has to be released first")
