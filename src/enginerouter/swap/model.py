"""What the coordinator knows, as plain data: slots, tickets, leases, swaps, and the rules they live by.

Only `coordinator` and `walk` write these; the decision modules read them. All times are monotonic seconds.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol, Self

from enginerouter.errors import EngineCrashed, RouterError
from enginerouter.slots import SlotId
from enginerouter.swap.circuit import CLOSED, StartCircuit
from enginerouter.swap.hold import Hold
from enginerouter.swap.phases import Event, Phase, step
from enginerouter.swap.settle import Settled

DrainPolicy = Literal["wait", "cut", "refuse"]
# Why a slot is to be started though nobody waits for it; "" where it is not.
Wish = Literal["", "preload", "restart", "rollback"]
# What a reload has decided about a slot that cannot be changed as it is: it serves nobody new, and once it is cold it
# is made anew or taken away.
Fate = Literal["", "renewed", "removed"]


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """What the configuration says of a slot.

    `need_bytes` is the declared need (`memory_gib`); `uses_learned_need` is `memory_gib: auto`.
    `holds_memory` False: lives beside all others, is never drained or freed for another.
    `pins_engine`: the pin keeps the engine, not this model of it; another slot of that engine may take its place.
    `is_swapped` False: a provider, always there; its first use is no swap to report.
    `end_within_s`: longest wait for it when the router ends; None where it has a limit of its own.
    `restarts` (`auto_restart`): wanted again after a crash; `rolls_back`: after a failed swap away from it.
    """

    id: SlotId
    need_bytes: int | None = None
    uses_learned_need: bool = False
    is_pinned: bool = False
    pins_engine: bool = False
    is_preloaded: bool = False
    idle_unload_s: float | None = None
    holds_memory: bool = True
    max_in_flight: int | None = None
    max_restarts: int = 3
    restarts: bool = False
    rolls_back: bool = False
    is_swapped: bool = True
    end_within_s: float | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """The global rules (docs/design.md, "Who goes next"). `together` holds sets of engine names."""

    budget_bytes: int | None = None
    together: tuple[frozenset[str], ...] = ()
    drain_timeout_s: float = 30.0
    on_drain_timeout: DrainPolicy = "wait"
    settle_timeout_s: float = 25.0
    min_residency_s: float = 2.0
    max_wait_s: float = 15.0
    linger_s: float = 0.25
    max_queued: int = 256
    queue_timeout_s: float = 600.0
    frozen_after_s: float = 30.0
    stall_timeout_s: float | None = None


@dataclass(slots=True)
class Learned:
    """Measured per slot and kept over restarts. None = not known yet.

    `start_s` from launch to ready; `held_bytes` its own memory when it was last freed or the drop at its start;
    `came_back_bytes` the rise seen by its last settle.
    """

    start_s: float | None = None
    held_bytes: int | None = None
    came_back_bytes: int | None = None


class Stopwatch:
    """Counts seconds only while it runs."""

    __slots__ = ("_counted", "_since")

    def __init__(self) -> None:
        self._counted = 0.0
        self._since: float | None = None

    def read(self, now: float) -> float:
        return self._counted + (now - self._since if self._since is not None else 0.0)

    def run(self, is_running: bool, now: float) -> None:
        if is_running:
            if self._since is None:
                self._since = now
        elif self._since is not None:
            self._counted += now - self._since
            self._since = None


class Lease:
    """The right of one request to use a resident slot; a context manager around that use.

    Leaving it releases the lease, however that happens: releasing is a plain function, so no cancellation can skip it.
    A lease that was cut (drain deadline, crash, shutdown) cancels what runs inside it and raises the reason instead.
    """

    __slots__ = (
        "_baseline",
        "_release",
        "_task",
        "cut_error",
        "granted_at",
        "has_answered",
        "is_released",
        "last_byte_at",
        "slot",
        "waits_for_client",
    )

    def __init__(self, slot: Slot, now: float, release: Callable[[Lease], None]) -> None:
        self.slot = slot
        self.granted_at = now
        self.last_byte_at = now
        self.has_answered = False
        # While the client does not read what the engine has sent; then the silence is not the engine's.
        self.waits_for_client = False
        self.is_released = False
        self.cut_error: RouterError | None = None
        self._release = release
        self._task: asyncio.Task[object] | None = None
        self._baseline = 0

    def release(self) -> None:
        """Give the slot back. Any number of times."""
        if not self.is_released:
            self.is_released = True
            self._release(self)

    def cut(self, error: RouterError) -> None:
        """End the use of the slot from outside: whatever awaits inside the lease is cancelled, `error` is raised."""
        if self.cut_error is None and not self.is_released:
            self.cut_error = error
            if self._task is not None:
                self._task.cancel()

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._baseline = self._task.cancelling() if self._task is not None else 0
        if self.cut_error is not None:
            self.release()
            raise self.cut_error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        self.release()
        if self.cut_error is None or task is None:
            return
        # As asyncio.timeout does: our cancellation is taken back, whatever became of it inside.
        others_cancel = task.uncancel() > self._baseline
        if isinstance(error, asyncio.CancelledError):
            if not others_cancel:  # the client's own going away stays a cancellation
                raise self.cut_error from None
        elif isinstance(error, Exception):
            raise self.cut_error from error


@dataclass(slots=True, eq=False)
class Ticket:
    """A request's place in the queue of its slot. `granted` gives the lease, or raises why there is none.

    `waited_before` is what the slot's wait clock showed on arrival. `is_explicit` is an operator's word
    (`/admin/swap`): first in line, and its swap does not wait for idleness. `key` is the name of the key that asked.
    """

    slot: Slot
    granted: asyncio.Future[Lease]
    arrived_at: float
    waited_before: float
    priority: int = 0
    is_explicit: bool = False
    key: str = ""


@dataclass(slots=True, eq=False)
class Slot:
    """One slot as it is now.

    `active_at` is the last grant or release; `keep_until` an operator's hold; `answered` counts finished answers
    since ready; `before_start_bytes` the availability read just before its start; `drop_bytes` how much that fell
    until ready; `before_end_bytes` the last reading before it died or was stopped; `missing_bytes` what a settle
    waits for, `missing_is_bound` whether that is only the most it can be; `kept_bytes` what its process keeps while it
    sleeps, None where none does; `kept_s` is the idle time that a client's `keep_alive` gave it, for this stay in
    memory (infinite: being idle never frees it); `was_unloaded`: it ended at somebody else's word; `wish` has it
    started once it fits beside what is there; until `wished_until` it also starts in place of what is idle, because a
    chain had to go past it; `wait_clock` runs while somebody waits for this slot and what is in its way is ready to
    serve; `fate` is what a reload wants of it.
    """

    spec: SlotSpec
    phase: Phase = Phase.COLD
    phase_since: float = 0.0
    leases: set[Lease] = field(default_factory=set)
    queue: deque[Ticket] = field(default_factory=deque)
    wait_clock: Stopwatch = field(default_factory=Stopwatch)
    ready_at: float = 0.0
    active_at: float = 0.0
    keep_until: float = 0.0
    answered: int = 0
    wish: Wish = ""
    wished_until: float = 0.0
    is_unload_wanted: bool = False
    fate: Fate = ""
    kept_s: float | None = None
    before_start_bytes: int | None = None
    drop_bytes: int | None = None
    before_end_bytes: int | None = None
    missing_bytes: int | None = None
    missing_is_bound: bool = False
    kept_bytes: int | None = None
    was_unloaded: bool = False
    early_crash: EngineCrashed | None = None
    circuit: StartCircuit = CLOSED
    learned: Learned = field(default_factory=Learned)

    @property
    def id(self) -> SlotId:
        return self.spec.id

    @property
    def need_bytes(self) -> int | None:
        """What it needs beside others: declared, or learned where the configuration says `auto`."""
        if self.spec.need_bytes is not None:
            return self.spec.need_bytes
        return self.expected_bytes if self.spec.uses_learned_need else None

    @property
    def expected_bytes(self) -> int | None:
        """What a start is expected to take: declared, else learned."""
        if self.spec.need_bytes is not None:
            return self.spec.need_bytes
        known = [b for b in (self.learned.held_bytes, self.learned.came_back_bytes) if b is not None]
        return max(known) if known else None

    @property
    def idle_unload_s(self) -> float | None:
        """How long it may be idle before it is freed; None: as long as it likes."""
        if self.spec.is_pinned or self.kept_s == math.inf:
            return None
        return self.spec.idle_unload_s if self.kept_s is None else self.kept_s

    @property
    def is_busy(self) -> bool:
        return bool(self.leases)

    @property
    def is_asleep(self) -> bool:
        """Cold, but its process lives on and keeps some memory."""
        return self.phase is Phase.COLD and self.kept_bytes is not None

    @property
    def is_wanted(self) -> bool:
        return self.wish != ""

    @property
    def is_outdated(self) -> bool:
        """Whether a reload has changed what it is: those who wait for it wait for what it will be."""
        return self.fate != ""

    @property
    def has_work(self) -> bool:
        return bool(self.leases or (self.queue and not self.fate))

    @property
    def has_room(self) -> bool:
        """Whether it takes one more request."""
        limit = self.spec.max_in_flight
        return not self.fate and (limit is None or len(self.leases) < limit)

    def move(self, event: Event, now: float) -> Phase:
        """Change the phase by the table; give the phase it had. Only the coordinator calls this."""
        before = self.phase
        self.phase = step(before, event)
        self.phase_since = now
        if self.phase is Phase.COLD:
            self.kept_s = None
        return before


@dataclass(frozen=True, slots=True)
class Plan:
    """One piece of work for a lane: what goes, and what starts then (None: an unload)."""

    target: SlotId | None
    victims: tuple[SlotId, ...]
    reason: str

    @property
    def why(self) -> str:
        """What a slot is told that leaves."""
        return f"swap to {self.target}" if self.target is not None else self.reason


@dataclass(slots=True, eq=False)
class Swap:
    """The walk in progress. `step` is what it is doing, `seconds` what the steps before it took."""

    plan: Plan
    began_at: float
    step: str = "checking"
    step_since: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    settled: Settled | None = None
    freed: list[SlotId] = field(default_factory=list)
    in_flight_at_start: int = 0

    def enter(self, step: str, now: float) -> None:
        """Go on to the next step; the seconds of the one before are added up under its name."""
        self.seconds[self.step] = self.seconds.get(self.step, 0.0) + (now - self.step_since)
        self.step, self.step_since = step, now


@dataclass(frozen=True, slots=True)
class SwapReport:
    """How a swap ended. `result`: ok, failed, called_off, refused, ended (a start nobody waited for), cancelled.

    `seconds` by step (draining, freeing, settling, starting, …); `freed` are the slots it ended.
    """

    plan: Plan
    result: str
    total_s: float
    seconds: dict[str, float]
    settled: Settled | None
    freed: tuple[SlotId, ...]
    in_flight_at_start: int
    error: str = ""


class Observer(Protocol):
    """Told of what happens, after it has happened; must not raise, await, or call back."""

    def slot_moved(self, slot: SlotId, before: Phase, after: Phase, reason: str) -> None: ...

    def swap_ended(self, report: SwapReport) -> None: ...


@dataclass(slots=True, eq=False)
class Lane:
    """Slots that compete for the same memory, and the one swap that may run among them.

    Every slot without memory of its own is alone in a lane: it starts at once, even during a swap elsewhere.
    `is_shared`: the lane of all that hold memory. `hold`: for whom its memory is kept free. `owed_until`: till then
    memory may still come back for which a settle did not wait to the end. `wished_until`: the last of its slots'.
    `settles_since`: from then on what was ended at the start of the router is waited for, and no swap begins.
    """

    slots: dict[SlotId, Slot]
    is_shared: bool = False
    swap: Swap | None = None
    hold: Hold | None = None
    owed_until: float = 0.0
    wished_until: float = 0.0
    settles_since: float | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def residents(self) -> list[Slot]:
        return [s for s in self.slots.values() if s.phase is not Phase.COLD]

    def sleeping(self) -> list[Slot]:
        return [s for s in self.slots.values() if s.is_asleep]

    def waiting(self) -> list[Slot]:
        """Slots that somebody waits for, that do not serve now, and that may be started."""
        return [s for s in self.slots.values() if s.queue and s.phase is not Phase.READY and not s.fate]
