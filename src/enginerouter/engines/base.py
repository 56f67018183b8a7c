"""What the coordinator and the data path ask of an engine, whatever its kind.

An engine knows how to start, stop and watch its slots. It decides nothing about when: the coordinator does, and never
calls `start` and `stop` of one slot at the same time. All methods may be called with any slot of the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from enginerouter.config.engines import EngineSettings
from enginerouter.errors import EngineCrashed
from enginerouter.slots import SlotId

OnExit = Callable[[SlotId, EngineCrashed], None]


class Engine(Protocol):
    @property
    def name(self) -> str: ...

    def address(self, slot: SlotId) -> str:
        """The base URL (no trailing slash) that requests go to while the slot is ready."""

    def configure(
        self, settings: EngineSettings, *, warmup_model: str | None = None, models: Collection[str] = ()
    ) -> None:
        """Go by these settings from now on. They are of the same kind, and launch and reach the same.

        What runs is left as it is; what is for a launch counts from the next one. See `registry.build_engine`.
        """

    def watch(self, on_exit: OnExit) -> None:
        """Call `on_exit` at once, from the event loop, whenever a ready slot dies that nobody stopped."""

    async def check(self, slot: SlotId, leaving: Collection[SlotId]) -> None:
        """Before anything is drained: can this start work at all? `leaving` are the slots the swap will have stopped.

        Needs no memory. Raises StartFailed (binary, folder or model file missing) or PortTaken.
        """

    async def start(self, slot: SlotId) -> None:
        """Start the slot and return when it is ready to serve.

        Raises StartFailed, PortTaken or StartTimedOut; the caller then calls `stop`, which clears up.
        Cancelling it is allowed at any point, with the same duty.
        """

    async def stop(self, slot: SlotId) -> None:
        """Free what the slot holds and see that it is gone. Does nothing for a slot that holds nothing.

        The caller has ended the requests. Raises FreeFailed if something of it is still there.
        """

    async def held_bytes(self, slot: SlotId) -> int | None:
        """Bytes the slot holds that are not already called available, or None where that cannot be told.

        Also asked after `stop`: what is told then will not come back (a process that sleeps keeps some).
        """

    async def stopped_state(self, slot: SlotId) -> str | None:
        """Why the slot cannot be serving (its process is stopped or gone), or None if it looks alive."""

    async def adopt(self) -> list[SlotId]:
        """At start-up: the slots an earlier router left running and ready. What is ours but unfit is stopped.

        Raises FreeFailed if something of ours would not go.
        """

    async def close(self) -> None:
        """End what the engine object owns here (connections, watchers). Running engines are left alone."""


@runtime_checkable
class Sleeper(Protocol):
    """An engine whose `stop` may leave a process asleep."""

    def asleep(self) -> Collection[SlotId]:
        """The stopped slots whose process sleeps. `held_bytes` tells what it keeps."""

    async def end(self, slot: SlotId) -> None:
        """`stop` for good, also of a slot that is asleep. Raises FreeFailed."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What an earlier router had left running until it was ended: its memory may not be back yet.

    `held_bytes` as in `Engine.held_bytes`, just before its end; `pids` its processes then.
    """

    slot: SlotId
    held_bytes: int | None
    pids: frozenset[int] = frozenset()


@runtime_checkable
class EndsLeftovers(Protocol):
    """An engine whose `adopt` ends what is unfit, or configured no more."""

    def take_ended(self) -> Sequence[Ended]:
        """What it has ended since this was asked last, also where `adopt` raised."""


@dataclass(frozen=True, slots=True)
class Found:
    """A slot that holds memory although the router did not start it. `is_ready`: it can serve as it is."""

    slot: SlotId
    is_ready: bool = True


@runtime_checkable
class SharedServer(Protocol):
    """An engine whose server runs on its own, so that others may load and unload there behind the router's back.

    Its `start` takes over what is there already, so a slot of it that would not go can be started again as it is.
    """

    @property
    def name(self) -> str: ...

    async def in_memory(self) -> list[Found]:
        """What is there now of its slots, asked while none of them is in use; watched from then on as if started here.

        Nothing where no such server answers. Changes nothing. Raises FreeFailed if it cannot be seen.
        """


@dataclass(frozen=True, slots=True)
class Claim:
    """What a server says its models take: bytes in all, and of those on the cards.

    No more than a bound of what will come back: pages of a mapped model file count, and were never taken.
    """

    all_bytes: int
    device_bytes: int


@runtime_checkable
class LoadsOnRequest(Protocol):
    """An engine that is ready before its models are loaded: what its start took says nothing of what it holds."""

    @property
    def loads_on_request(self) -> bool: ...

    async def claimed(self, slot: SlotId) -> Claim | None:
        """What its server says it holds, or None if it does not say."""


@runtime_checkable
class HasProcesses(Protocol):
    """An engine whose slots are processes of this machine, which the list of a card may name."""

    async def pids(self, slot: SlotId) -> Collection[int]:
        """The living processes of the slot's tree."""
