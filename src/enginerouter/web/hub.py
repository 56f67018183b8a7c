"""What happens, for those who watch: events go in as they happen and come out by subscription.

Publishing never waits and costs next to nothing while nobody listens. A subscriber that does not keep up loses its
oldest events, and is told how many; it never holds up a request or another subscriber.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from types import TracebackType
from typing import Any

from enginerouter.slots import SlotId

KEPT = 1000
# What a new subscriber is told of the time before it came.
REMEMBERED = 50


@dataclass(frozen=True, slots=True)
class Event:
    """`data` is what goes out as JSON; its `admin_only` keys may tell of what another key must not know.

    `slots` and `names` say what it is about: a key that is no admin's must be allowed one of them. `served_by`, if
    anything, is an `engine/model` that it must be allowed to hear of besides.
    """

    name: str
    data: Mapping[str, Any]
    slots: tuple[SlotId, ...] = ()
    names: tuple[str, ...] = ()
    served_by: str = ""
    admin_only: tuple[str, ...] = ()

    def public(self) -> Event:
        """As a key that is no admin's may see it."""
        return replace(self, data={k: v for k, v in self.data.items() if k not in self.admin_only})


class EventHub:
    """The one place where events meet their subscribers."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._past: dict[str, deque[Event | Callable[[], Event]]] = {}
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._subscriptions)

    def publish(self, event: Event, *, is_remembered: bool = False) -> None:
        """What is remembered says when it was: `at`, in seconds of the wall's clock."""
        if is_remembered:
            self._past.setdefault(event.name, deque(maxlen=REMEMBERED)).append(event)
        for subscription in self._subscriptions:
            subscription.put(event)

    def publish_made(self, name: str, make: Callable[[], Event]) -> None:
        """A remembered event of which there are many: it is made when somebody listens, now or later."""
        if self._subscriptions:
            self.publish(make(), is_remembered=True)
        else:
            self._past.setdefault(name, deque(maxlen=REMEMBERED)).append(make)

    def subscribe(self, may_see: Callable[[Event], bool]) -> Subscription:
        """A context manager: events that `may_see` lets through: the last remembered ones, then all from now on."""
        subscription = Subscription(self, may_see)
        # In the order in which they happened, whatever their names.
        past = [e if isinstance(e, Event) else e() for e in chain.from_iterable(self._past.values())]
        for event in sorted(past, key=lambda event: event.data["at"]):
            subscription.put(event)
        return subscription

    def close(self) -> None:
        """The end: every subscription gives what it has, and no more."""
        self.is_closed = True
        for subscription in self._subscriptions:
            subscription.wake.set()


class Subscription:
    """The events of one listener. `wake` is set whenever there is something to `take`."""

    def __init__(self, hub: EventHub, may_see: Callable[[Event], bool]) -> None:
        self._hub = hub
        self._may_see = may_see
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._lost = 0
        self.wake = asyncio.Event()

    def __enter__(self) -> Subscription:
        self._hub._subscriptions.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hub._subscriptions.discard(self)

    def put(self, event: Event) -> None:
        if self._may_see(event):
            self._lost += len(self._events) == KEPT
            self._events.append(event)
            self.wake.set()

    def take(self) -> list[Event]:
        """All that came since the last call; what was lost in between comes first, as an event of its own."""
        self.wake.clear()
        lost, self._lost = self._lost, 0
        events = [Event("lost", {"count": lost})] if lost else []
        events += self._events
        self._events.clear()
        return events
