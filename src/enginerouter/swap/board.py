"""What the parts of the coordinator share: all slots, their lanes, the rules, and who waits. Plain data.

`leases`, `holding`, `swaps` and `dispatch` write it, each its own share; nobody else does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from enginerouter.slots import SlotId
from enginerouter.swap import policy
from enginerouter.swap.model import Lane, Learned, Rules, Slot, SlotSpec


class Board:
    """`pool` is where memory is held: the lane of all slots that have any. `queued` counts the tickets of all slots.

    Until `has_started` – everything left running is taken over – requests may come but no swap begins.
    """

    def __init__(
        self,
        specs: Iterable[SlotSpec],
        rules: Rules,
        learned: Mapping[SlotId, Learned],
        now: Callable[[], float],
    ) -> None:
        self.slots: dict[SlotId, Slot] = {}
        self.pool = Lane({}, is_shared=True)
        self.lanes = [self.pool]
        self.rules = rules
        self.now = now
        self.queued = 0
        self.has_started = False
        self.is_closing = False
        self._learned = learned
        self._lane_of: dict[SlotId, Lane] = {}
        for spec in specs:
            self.add(spec)

    def add(self, spec: SlotSpec) -> Slot:
        """All memory holders share one lane; the slots of every other engine have their own."""
        slot = self.slots[spec.id] = Slot(spec, learned=self._learned.get(spec.id) or Learned())
        lane = self._lane_for(spec)
        lane.slots[spec.id] = slot
        self._lane_of[spec.id] = lane
        return slot

    def _lane_for(self, spec: SlotSpec) -> Lane:
        if spec.holds_memory:
            return self.pool
        for slot_id, lane in self._lane_of.items():
            if slot_id.engine == spec.id.engine and not lane.is_shared:
                return lane
        lane = Lane({})
        self.lanes.append(lane)
        return lane

    def lane_of(self, slot: Slot) -> Lane:
        return self._lane_of[slot.id]

    @property
    def has_leases(self) -> bool:
        return any(slot.leases for slot in self.slots.values())

    def run_clocks(self, lane: Lane) -> None:
        """Start and stop the wait clocks of a lane, as things are now."""
        now = self.now()
        for slot in lane.slots.values():
            slot.wait_clock.run(policy.is_clock_running(slot, lane, self.rules), now)
