"""Random lives of a coordinator, and the checks made after every single event of them.

A life is drawn up in advance from its seed – who arrives when, for what, and leaves when; what crashes, fails, gets
stuck – and does not depend on what the coordinator does with it. So the same life can be lived twice with one
difference, and every failure is a seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace

from enginerouter.errors import HeldByOther, RouterError
from enginerouter.slots import SlotId
from enginerouter.swap.hold import Hold
from enginerouter.swap.model import Rules, SlotSpec, SwapReport
from enginerouter.swap.phases import Phase
from swap.fakes import GIB, Machine, Script, World, leased, sid
from swap.virtual_time import now, run, settle_down

SERVING = (Phase.READY, Phase.DRAINING)
# Timers fire a hair late on purpose; a wait may contain some dozens of them.
HAIR_S = 0.1
SLOWEST_STOP_S = 0.5
# A failed start, its memory and that of all that made way for a second try: so many steps of a kind has one swap.
MOST_STEPS = 5


@dataclass(frozen=True)
class Arrival:
    at: float
    slot: SlotId
    hold_s: float
    leaves_after_s: float | None = None
    priority: int = 0
    byte_every_s: float | None = None


@dataclass(frozen=True)
class Blow:
    """Something that happens to a slot: crash, an outcome of its next start, stuck, swap (said aloud), unload.

    At the hands of others: outside (loaded), taken away (unloaded).
    Or to all of them: hold (refuse or queue, for a time or until the release), release.
    """

    at: float
    kind: str
    slot: SlotId


@dataclass(frozen=True)
class Life:
    seed: int
    specs: tuple[SlotSpec, ...]
    rules: Rules
    scripts: dict[SlotId, Script]
    total: int
    arrivals: tuple[Arrival, ...]
    blows: tuple[Blow, ...]
    has_priorities: bool
    shared: frozenset[str] = frozenset()


@dataclass
class Visit:
    """What became of one arrival."""

    arrival: Arrival
    granted_at: float | None = None
    ended_at: float | None = None
    outcome: str = "waiting"

    @property
    def waited_until(self) -> float:
        end = self.granted_at if self.granted_at is not None else self.ended_at
        assert end is not None
        return end


@dataclass
class Record:
    life: Life
    visits: list[Visit]
    steps: int = 0
    swaps: list[tuple[float, float, SwapReport]] = field(default_factory=list)
    operators: list[float] = field(default_factory=list)
    lowest: int = 0
    holds: list[tuple[float, float]] = field(default_factory=list)
    frees: int = 0
    found: int = 0

    def outcomes(self) -> Counter[str]:
        return Counter(v.outcome for v in self.visits)


def draw(seed: int, arrivals: int = 120, *, is_calm: bool = False) -> Life:
    """A life from a seed. Calm: nothing breaks and nobody speaks aloud; only arrivals and leaves."""
    dice = random.Random(seed)
    has_budget = dice.random() < 0.5
    names = [sid(n) for n in ("a", "b", "c", "d", "e/x", "e/y")[: dice.randint(2, 6)]]
    budget = 60 * GIB
    needs = {n: dice.choice([10, 20, 30, 50]) * GIB for n in names}
    pinned = names[0] if dice.random() < 0.2 else None
    specs = tuple(
        SlotSpec(
            n,
            need_bytes=needs[n] if has_budget and (n == pinned or dice.random() < 0.85) else None,
            is_pinned=n == pinned and has_budget,
            is_preloaded=dice.random() < 0.15,
            idle_unload_s=dice.choice([None, None, 0.0, 1.0, 5.0]) if n != pinned else None,
            max_in_flight=dice.choice([None, None, None, 1, 3]),
            holds_memory=dice.random() > 0.08,
            max_restarts=dice.choice([1, 3, 3, 10]),
        )
        for n in names
    )
    engines = sorted({n.engine for n in names})
    together = (frozenset(dice.sample(engines, 2)),) if len(engines) > 1 and dice.random() < 0.3 else ()
    rules = Rules(
        budget_bytes=budget if has_budget else None,
        together=together,
        drain_timeout_s=dice.choice([0.5, 2.0, 5.0]),
        on_drain_timeout="cut",
        settle_timeout_s=2.0,
        min_residency_s=dice.choice([0.0, 0.5, 1.0]),
        max_wait_s=dice.choice([1.0, 3.0, 6.0]),
        linger_s=dice.choice([0.0, 0.05, 0.25]),
        max_queued=dice.choice([20, 256, 256]),
        queue_timeout_s=dice.choice([8.0, 600.0, 600.0]),
    )
    scripts = {
        n: Script(
            start_s=dice.choice([0.0, 0.1, 0.5, 2.0, 4.0]),
            stop_s=dice.choice([0.0, 0.1, SLOWEST_STOP_S]),
            held=needs[n],
            late_s=dice.choice([0.0, 0.0, 0.3, 1.0]),
            return_bytes_s=dice.choice([None, None, 60.0 * GIB]),
            own_bytes=dice.random() < 0.7,
            held_bytes_s=dice.choice([0.0, 0.0, 0.01]),
            fails_after_s=dice.choice([None, 0.05]),
        )
        for n in names
    }
    has_priorities = dice.random() < 0.25
    # Dice of their own: a life without holds is the same as before there were any.
    holds = random.Random(~seed)
    has_holds = not is_calm and holds.random() < 0.3
    # And so are those of a life in which others load models.
    others = random.Random(seed ^ 0x5EED)
    engines_of_one = [n.engine for n in names if n.model is None]
    shared = frozenset(others.sample(engines_of_one, 1 + (len(engines_of_one) > 2)))
    if is_calm or others.random() > 0.3:
        shared = frozenset()
    pace = dice.choice([0.05, 0.2, 0.6])
    at, came, blows = 0.0, [], []
    for _ in range(arrivals):
        # Sometimes a burst at one instant, sometimes a pause.
        at += 0.0 if dice.random() < 0.15 else dice.expovariate(1 / pace) * (8 if dice.random() < 0.05 else 1)
        came.append(
            Arrival(
                at,
                dice.choice(names),
                hold_s=dice.choice([0.0, 0.05, 0.3, 1.0, 8.0 if dice.random() < 0.2 else 0.1]),
                leaves_after_s=dice.choice([0.0, 0.1, 1.0, 3.0]) if dice.random() < 0.25 else None,
                priority=dice.choice([0, 0, 5]) if has_priorities else 0,
                byte_every_s=dice.choice([None, 0.4]),
            )
        )
        if has_holds and holds.random() < 0.04:
            kind = holds.choice(["hold refuse", "hold queue", "hold refuse 2", "hold queue 2", "release", "release"])
            blows.append(Blow(at, kind, names[0]))
        if shared and others.random() < 0.08:
            name = others.choice([n for n in names if n.engine in shared])
            blows.append(Blow(at + others.random() * pace, others.choice(["outside", "outside", "taken away"]), name))
        if not is_calm and dice.random() < 0.12:
            kind = dice.choice(
                ["crash", "crash", "fail", "oom", "timeout", "crash at ready", "stuck", "swap", "unload"]
            )
            blows.append(Blow(at + dice.random() * pace, kind, dice.choice(names)))
    total = (budget if has_budget or together else max(needs.values())) * 11 // 10
    if together:
        total = sum(needs.values()) * 11 // 10
    if shared:
        total = sum(needs.values())  # what others load comes on top
    return Life(seed, specs, rules, scripts, total, tuple(came), tuple(blows), has_priorities, shared)


class Watch:
    """The checks that hold at every moment. `step` is called after every event."""

    def __init__(self, world: World, record: Record) -> None:
        self._world = world
        self._record = record
        self._slots = list(world.coordinator.slots.values())
        self._hold: Hold | None = None
        self._starts = 0
        self._holders = {s.id: s.spec for s in self._slots if s.spec.holds_memory}
        # Slots that others have loaded, until they have left or are started from here.
        self._outsiders: set[SlotId] = set()

    def step(self) -> None:
        self._record.steps += 1
        world = self._world
        outside = world.machine.outside
        resident = {s.id for s in self._slots if s.phase is not Phase.COLD and s.id in self._holders}
        ours = {s.id for s in self._slots if s.phase in (Phase.COLD, Phase.STARTING)} - outside.keys()
        self._outsiders = (self._outsiders | outside.keys()) - ours
        together = resident - self._outsiders
        assert self._may_be_together(together), f"{now():.4f}: resident together: {sorted(map(str, together))}"
        self._look_at_hold(resident)
        self._look_at_outsiders()
        running = world.machine.running.keys() & self._holders.keys() - outside.keys()
        assert running <= resident, f"{now():.4f}: runs unseen: {running - resident}"
        queued = 0
        for slot in self._slots:
            queued += len(slot.queue)
            if slot.leases:
                held = [lease for lease in slot.leases if lease.cut_error is None]
                assert not held or slot.phase in SERVING, f"{now():.4f}: a lease on {slot.id}, which is {slot.phase}"
                limit = slot.spec.max_in_flight
                assert limit is None or len(held) <= limit, f"{now():.4f}: {slot.id} has {len(held)} in flight"
        assert queued == world.coordinator.queued
        assert queued <= world.rules.max_queued + 20  # operators are let in beyond it

    def _look_at_hold(self, resident: set[SlotId]) -> None:
        """Under a hold nothing that has memory starts, and once it is free, nothing is resident."""
        hold, record = self._world.coordinator.current_hold, self._record
        if hold is not self._hold:
            if self._hold is not None:
                record.holds.append((self._hold.began_at, now()))
            self._hold, self._starts = hold, self._started()
        if hold is not None:
            assert self._started() == self._starts, f"{now():.4f}: started under the hold of {hold.owner}"
            if hold.is_free:
                assert not resident, f"{now():.4f}: resident under a hold: {resident}"
                before = {s for s, at in self._world.machine.outside.items() if at < hold.began_at}
                assert not before & self._holders.keys(), f"{now():.4f}: called free with {before} in memory"
                record.frees += 1

    def _look_at_outsiders(self) -> None:
        """Nothing starts on top of what others had loaded before its swap began."""
        world = self._world
        for slot in self._slots:
            swap = world.coordinator.lane_of(slot.id).swap
            if slot.phase is not Phase.STARTING or slot.id not in self._holders or swap is None:
                continue
            before = {s for s, at in world.machine.outside.items() if at < swap.began_at and s in self._holders}
            assert all(self._may_be_together({slot.id, s}) for s in before), (
                f"{now():.4f}: {slot.id} starts on top of {before}, which others had loaded"
            )

    def _started(self) -> int:
        return sum(s in self._holders for _, s, _, after in self._world.diary.moves if after is Phase.STARTING)

    def at_rest_within_the_turn(self) -> None:
        """Between turns of the loop: who can be served has been."""
        self.step()
        for slot in self._slots:
            is_held = slot.id in self._holders and self._world.coordinator.current_hold is not None
            is_forgotten = slot.phase is Phase.READY and slot.queue and slot.has_room and not is_held
            assert not is_forgotten, f"{slot.id}: a grant was forgotten"

    def _may_be_together(self, slots: set[SlotId]) -> bool:
        if len(slots) <= 1:
            return True
        rules = self._world.rules
        if any({s.engine for s in slots} <= names for names in rules.together):
            return True
        needs = [self._holders[s].need_bytes for s in slots]
        return rules.budget_bytes is not None and None not in needs and sum(n or 0 for n in needs) <= rules.budget_bytes


def live(life: Life) -> Record:
    """Live it through in virtual time, with all checks; the record is for checks afterwards."""
    return run(_live(life))


async def _live(life: Life) -> Record:
    machine = Machine(life.total)
    scripts = {str(n): replace(s, outcomes=s.outcomes.copy()) for n, s in life.scripts.items()}
    world = World(life.specs, life.rules, scripts=scripts, machine=machine, shared=life.shared)
    record = Record(life, [Visit(a) for a in life.arrivals])
    watch = Watch(world, record)

    def moved() -> None:
        record.found += world.diary.moves[-1][2:] == (Phase.COLD, Phase.READY) if world.diary.moves else 0
        watch.step()
        if world.diary.reports and (not record.swaps or record.swaps[-1][2] is not world.diary.reports[-1]):
            report = world.diary.reports[-1]
            record.swaps.append((now() - report.total_s, now(), report))

    world.diary.on_move = moved
    async with world:
        tasks: list[asyncio.Task[None]] = []
        events = sorted([*enumerate(life.arrivals), *((-1, b) for b in life.blows)], key=lambda e: (e[1].at, e[0]))
        for number, event in events:
            if event.at > now():
                await asyncio.sleep(event.at - now())
            if isinstance(event, Arrival):
                visit = record.visits[number]
                task = asyncio.get_running_loop().create_task(_visit(world, watch, visit))
                tasks.append(task)
                if event.leaves_after_s is not None:
                    asyncio.get_running_loop().call_later(event.leaves_after_s, _leave, task, visit, watch)
            elif event.kind == "swap":
                record.operators.append(now())
                tasks.append(asyncio.get_running_loop().create_task(_said_aloud(world, watch, event.slot)))
            elif event.kind.startswith("hold"):
                _hold(world, event)
            elif event.kind == "release":
                world.coordinator.release()
            else:
                _strike(world, event)
            watch.at_rest_within_the_turn()
        world.coordinator.release()
        watch.at_rest_within_the_turn()
        # Everybody ends by what is promised, not by our patience: the longest hold and the longest queue are bounded.
        async with asyncio.timeout(3000.0):
            await asyncio.gather(*tasks)
        async with asyncio.timeout(60.0):
            while not world.is_at_rest():
                await asyncio.sleep(0.1)
        await settle_down()
        watch.at_rest_within_the_turn()
        assert not any(s.is_unload_wanted for s in world.coordinator.slots.values())
        assert len(world.coordinator._tasks) == 1, "only the background loop is left"
        record.lowest = machine.lowest
    return record


async def _visit(world: World, watch: Watch, visit: Visit) -> None:
    arrival = visit.arrival
    # The watch may not fail inside a request: it would look like the request's own failure.
    try:
        async with leased(world.coordinator, arrival.slot, priority=arrival.priority) as lease:
            visit.granted_at, visit.outcome = now(), "granted"
            until = now() + arrival.hold_s
            while arrival.byte_every_s is not None and now() + arrival.byte_every_s < until:
                await asyncio.sleep(arrival.byte_every_s)
                lease.last_byte_at = now()
            await asyncio.sleep(max(0.0, until - now()))
            lease.has_answered = True
            visit.outcome = "answered"
    except RouterError as error:
        visit.outcome = error.code
    except asyncio.CancelledError:
        assert arrival.leaves_after_s is not None, "cancelled, but it did not leave"
        visit.outcome = "left"
    assert visit.ended_at is None
    visit.ended_at = now()
    watch.step()


def _leave(task: asyncio.Task[None], visit: Visit, watch: Watch) -> None:
    if visit.ended_at is None:
        task.cancel()
    watch.step()


async def _said_aloud(world: World, watch: Watch, slot: SlotId) -> None:
    with contextlib.suppress(RouterError):
        await world.coordinator.swap_to(slot)
    watch.step()


def _hold(world: World, blow: Blow) -> None:
    """`hold queue 2`: by another owner, without an end; somebody releases it."""
    _, mode, *more = blow.kind.split()
    with contextlib.suppress(HeldByOther):
        world.coordinator.hold(
            "second" if more else "first",
            mode="queue" if mode == "queue" else "refuse",
            expires_s=None if more else 3.0,
        )


def _strike(world: World, blow: Blow) -> None:
    script = world.scripts[blow.slot]
    if blow.kind == "crash":
        world.engines[blow.slot.engine].crash(blow.slot)
    elif blow.kind == "stuck":
        script.stuck += 1
    elif blow.kind == "outside":
        if blow.slot not in world.machine.running and world.coordinator.slots[blow.slot].phase is Phase.COLD:
            world.shared(blow.slot.engine).load(blow.slot)
    elif blow.kind == "taken away":
        world.shared(blow.slot.engine).unload(blow.slot)
    elif blow.kind == "unload":
        world.coordinator.unload(blow.slot)
    else:
        script.outcomes.append("crash" if blow.kind == "crash at ready" else blow.kind)


# --- what is checked afterwards


def check_waits(record: Record) -> None:
    """Nobody waits longer than the limit of 5.4 + drain + swaps ahead.

    A wait is cut up into time during swaps and time between them (waits for room under `max_in_flight` are not of this
    kind; they end with the requests ahead):

    Between swaps everything in the way is ready to serve, so the wait clock runs – or nothing is in the way, and the
    swap begins at once. When the clock shows P = max(max_wait, learned start seconds), the waiter is overdue; then it,
    or one more overdue, begins as soon as no victim is within its minimum residency or an operator's hold:

        between swaps <= P + (swaps during the wait + operators' words + 1) * min_residency

    Each swap is bounded step by step: draining <= drain_timeout (policy `cut`; those cut end at once here), settling,
    freeing and starting <= their limits times the number of such steps (broken slots first, a second try after
    running out of memory).

    Without a budget, and with equal priorities, the swaps ahead are bounded too. With n slots, each other slot can go
    first (a) once because somebody waited for it already, and (b) because somebody who came later was overdue first:
    that takes a full `max_wait` of everybody's clock each time, so at most ceil(P / max_wait) times. Add the swap under
    way, its own, and one for each operator's word, crash, unload or preload in between:

        swaps during the wait <= 2 + (n - 1) * (1 + ceil(P / max_wait)) + blows during the wait + idle unloads
    """
    life, rules = record.life, record.life.rules
    specs = {s.id: s for s in life.specs}
    for began, ended, report in record.swaps:
        _check_swap(life, ended - began, report)
    for visit in record.visits:
        slot = visit.arrival.slot
        if specs[slot].max_in_flight is not None or not specs[slot].holds_memory:
            continue
        came, until = visit.arrival.at, visit.waited_until
        if until - came < 1.0:
            continue
        if any(began <= until and ended >= came for began, ended in record.holds):
            continue  # a hold is an operator's word: it lasts as long as it is told to
        ahead = [(b, e, r) for b, e, r in record.swaps if b < until and e > came and _shares_lane(specs, r)]
        in_swaps = sum(min(e, until) - max(b, came) for b, e, _ in ahead)
        words = sum(came <= at <= until for at in record.operators)
        patience = max(rules.max_wait_s, life.scripts[slot].start_s)
        between = (until - came) - in_swaps
        limit = patience + (len(ahead) + words + 1) * rules.min_residency_s + HAIR_S
        assert between <= limit, (
            f"{slot} waited {between:.3f} s between swaps from {came:.3f} s on, limit {limit:.3f} s"
        )
        if rules.budget_bytes is None and not rules.together and not life.has_priorities:
            others = sum(s.holds_memory for s in life.specs) - 1
            blows = sum(came - 10.0 <= b.at <= until for b in life.blows)
            for_nobody = sum(r.plan.target is None or r.plan.reason == "preload" for _, _, r in ahead)
            most = 2 + others * (1 + math.ceil(patience / rules.max_wait_s)) + blows + words + for_nobody
            assert len(ahead) <= most, f"{len(ahead)} swaps ahead of {slot} from {came:.3f} s on, limit {most}"


def _shares_lane(specs: dict[SlotId, SlotSpec], report: SwapReport) -> bool:
    touched = [report.plan.target] if report.plan.target is not None else list(report.plan.victims)
    return all(specs[s].holds_memory for s in touched)


def _check_swap(life: Life, total: float, report: SwapReport) -> None:
    rules, seconds = life.rules, report.seconds
    slowest = max(max(s.start_s, s.fails_after_s or 0.0) for s in life.scripts.values())
    assert seconds.get("draining", 0.0) <= 2 * rules.drain_timeout_s + HAIR_S, report
    assert seconds.get("settling", 0.0) <= MOST_STEPS * (rules.settle_timeout_s + 0.05), report
    assert seconds.get("freeing", 0.0) <= MOST_STEPS * (SLOWEST_STOP_S + 0.05), report
    assert seconds.get("starting", 0.0) <= 2 * slowest + HAIR_S, report
    assert total == sum(seconds.values()) or math.isclose(total, sum(seconds.values()), abs_tol=1e-6), report


def check_ends(record: Record) -> None:
    """Every arrival ended exactly once, in one of the ways there are."""
    ways = {
        "answered", "left", "cut_for_swap", "engine_crashed", "start_failed", "start_timeout", "free_failed",
        "queue_full", "queue_timeout", "pinned", "start_circuit_open", "held",
    }  # fmt: skip
    assert all(v.ended_at is not None for v in record.visits)
    assert set(record.outcomes()) <= ways, record.outcomes()
