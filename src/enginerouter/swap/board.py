"""What the parts of the coordinator share: all slots, their lanes, the rules, and who waits. Plain data.

`leases`, `holding`, `swaps`, `dispatch` and `renewal` write it, each its own share; nobody else does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from enginerouter.slots import SlotId
from enginerouter.swap import policy, words
from enginerouter.swap.model import Lane, Learned, Rules, Slot, SlotSpec


class Slots(dict[SlotId, Slot]):
    """A slot that is not there was taken away by a reload: who began before it and names it still is told so."""

    def __missing__(self, slot_id: SlotId) -> Slot:
        raise words.removed(slot_id)


class Board:
    """`pool` is where memory is held: the lane of all slots that have any. `queued` counts the tickets of all slots.

    `unasked` are engines that have not said yet what of theirs is left running: requests may come, but in the lanes of
    their slots no swap begins.
    """

    def __init__(
        self,
        specs: Iterable[SlotSpec],
        rules: Rules,
        learned: Mapping[SlotId, Learned],
        now: Callable[[], float],
        unasked: Collection[str] = (),
    ) -> None:
        self.slots = Slots()
        self.pool = Lane({}, is_shared=True)
        self.lanes = [self.pool]
        self.rules = rules
        self.now = now
        self.queued = 0
        self.unasked = set(unasked)
        self.is_closing = False
        self._learned = learned
        self._lane_of: dict[SlotId, Lane] = {}
        for spec in specs:
            self.add(spec)

    def add(self, spec: SlotSpec) -> Slot:
        """All memory holders share one lane; the slots of every other engine have their own."""
        slot = self.slots[spec.id] = Slot(spec, learned=self._learned.get(spec.id) or Learned())
        self._place(slot)
        return slot

    def put(self, slot: Slot, spec: SlotSpec) -> None:
        """Give a slot the words of another configuration; a cold one may change its lane by them."""
        has_moved = slot.spec.holds_memory != spec.holds_memory
        slot.spec = spec
        if has_moved:
            self._take_out(slot)
            self._place(slot)

    def remove(self, slot: Slot) -> None:
        """Forget a slot that is cold and that nobody waits for."""
        del self.slots[slot.id]
        self._take_out(slot)

    def _place(self, slot: Slot) -> None:
        lane = self._lane_for(slot.spec)
        lane.slots[slot.id] = slot
        self._lane_of[slot.id] = lane

    def _take_out(self, slot: Slot) -> None:
        lane = self._lane_of.pop(slot.id)
        del lane.slots[slot.id]
        if not lane.slots and lane is not self.pool:
            self.lanes.remove(lane)

    def _lane_for(self, spec: SlotSpec) -> Lane:
        if spec.holds_memory:
            return self.pool
        for slot_id, lane in self._lane_of.items():
            if slot_id.engine == spec.id.engine and lane is not self.pool:
                return lane
        lane = Lane({})
        self.lanes.append(lane)
        return lane

    def lane_of(self, slot: Slot) -> Lane:
        return self._lane_of[slot.id]

    def may_swap(self, lane: Lane) -> bool:
        if lane.settles_since is not None:
            return False
        return not self.unasked or all(slot_id.engine not in self.unasked for slot_id in lane.slots)

    @property
    def has_leases(self) -> bool:
        return any(slot.leases for slot in self.slots.values())

    def run_clocks(self, lane: Lane) -> None:
        """Start and stop the wait clocks of a lane, as things are now."""
        now = self.now()
        for slot in lane.slots.values():
            slot.wait_clock.run(policy.is_clock_running(slot, lane, self.rules), now)
