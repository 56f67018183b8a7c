"""Scripted engines with memory of their own, in virtual time; and builders for what a coordinator needs.

`Machine` is the truth that the coordinator cannot see: which slots really run, and how much memory is really free.
It complains at once (`Machine.faults`) when an engine is misused: started twice, started while it is being stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from enginerouter.engines.base import Claim, Ended, Found, OnExit
from enginerouter.errors import EngineCrashed, EngineUnloaded, FreeFailed, PortTaken, StartFailed, StartTimedOut
from enginerouter.slots import SlotId
from enginerouter.swap.coordinator import Coordinator
from enginerouter.swap.memory import HostSource
from enginerouter.swap.model import Learned, Lease, Rules, SlotSpec, SwapReport
from enginerouter.swap.phases import Phase
from swap.virtual_time import now

MIB = 1024**2
GIB = 1024**3


@dataclass
class Script:
    """How a slot behaves. `outcomes` are used up by starts, then every start goes well.

    Outcomes: ok, fail, oom, taken (port), timeout, hang (until cancelled), crash (dies after it said ready), bug.
    `stuck` = how many stops fail. `late_s`/`return_bytes_s`: when and how fast its memory comes back after the exit
    (None: all at once). `own_bytes`: what the engine itself can say of its memory; True = the truth.
    """

    start_s: float = 1.0
    stop_s: float = 0.5
    held: int = 8 * GIB
    late_s: float = 0.0
    return_bytes_s: float | None = None
    own_bytes: bool = False
    outcomes: deque[str] = field(default_factory=deque)
    stuck: int = 0
    check_s: float = 0.0
    check_error: Exception | None = None
    held_bytes_s: float = 0.0
    stop_error: Exception | None = None
    fails_after_s: float | None = None


@dataclass
class Returning:
    """Memory of something that has exited: it comes back from `start` on."""

    size: int
    start: float
    bytes_s: float | None

    def left(self, at: float) -> int:
        if at < self.start - 1e-9:
            return self.size
        if self.bytes_s is None:
            return 0
        return max(0, int(self.size - (at - self.start) * self.bytes_s))


class Machine(HostSource):
    """One pool of memory and what is really in it. Also the MemorySource of the coordinator."""

    name = "fake"

    def __init__(self, total: int = 100 * GIB) -> None:
        self.total = total
        self.running: dict[SlotId, int] = {}
        # Of those: what somebody else has loaded, and when.
        self.outside: dict[SlotId, float] = {}
        self.returning: list[Returning] = []
        self.others: Callable[[float], int] = lambda _: 0
        self.is_readable = True
        self.faults: list[str] = []
        self.lowest = total

    def truly_available(self) -> int:
        at = now()
        self.returning = [r for r in self.returning if r.left(at) > 0]
        gone = sum(self.running.values()) + sum(r.left(at) for r in self.returning) + self.others(at)
        self.lowest = min(self.lowest, self.total - gone)
        return self.total - gone

    def available(self) -> int | None:
        return max(0, self.truly_available()) if self.is_readable else None

    def take(self, slot: SlotId, size: int) -> None:
        if slot in self.running:
            self.faults.append(f"{now():.3f}: {slot} started while it runs")
        self.running[slot] = size
        self.truly_available()

    def give_back(self, slot: SlotId, script: Script) -> None:
        size = self.running.pop(slot, None)
        self.outside.pop(slot, None)
        if size:
            self.returning.append(Returning(size, now() + script.late_s, script.return_bytes_s))


class FakeEngine:
    """An `engines.base.Engine` whose slots follow their scripts."""

    def __init__(self, name: str, machine: Machine, scripts: dict[SlotId, Script]) -> None:
        self._name = name
        self.machine = machine
        self.scripts = scripts
        self.starts: list[tuple[float, SlotId]] = []
        self.stops: list[tuple[float, SlotId]] = []
        self.checks: list[tuple[SlotId, tuple[SlotId, ...]]] = []
        self.to_adopt: list[SlotId] = []
        # What runs at the start and is ended by `adopt`.
        self.to_end: list[SlotId] = []
        self.adopt_s = 0.0
        self.adopt_error: Exception | None = None
        self.frozen: str | None = None
        self.closes = 0
        self._ended: list[Ended] = []
        self._on_exit: OnExit | None = None
        self._busy: dict[SlotId, str] = {}

    @property
    def name(self) -> str:
        return self._name

    def address(self, slot: SlotId) -> str:
        return f"http://{slot.engine}"

    def watch(self, on_exit: OnExit) -> None:
        self._on_exit = on_exit

    @contextlib.contextmanager
    def _doing(self, slot: SlotId, what: str) -> Any:
        if slot in self._busy:
            self.machine.faults.append(f"{now():.3f}: {what} of {slot} during {self._busy[slot]}")
        self._busy[slot] = what
        try:
            yield self.scripts[slot]
        finally:
            self._busy.pop(slot, None)

    async def check(self, slot: SlotId, leaving: Collection[SlotId]) -> None:
        self.checks.append((slot, tuple(leaving)))
        script = self.scripts[slot]
        if script.check_s:
            await asyncio.sleep(script.check_s)
        if script.check_error is not None:
            raise script.check_error

    async def start(self, slot: SlotId) -> None:
        with self._doing(slot, "start") as script:
            self.starts.append((now(), slot))
            outcome = script.outcomes.popleft() if script.outcomes else "ok"
            if outcome == "taken":
                raise PortTaken(self._name, f"the port of {slot} is taken")
            self.machine.take(slot, script.held)
            if outcome == "hang":
                await asyncio.Event().wait()
            fails = outcome in ("fail", "oom", "timeout", "bug")
            await asyncio.sleep(script.fails_after_s if fails and script.fails_after_s is not None else script.start_s)
            if outcome in ("fail", "oom"):
                self.machine.give_back(slot, script)  # it exited by itself
                cause = "out_of_memory" if outcome == "oom" else None
                raise StartFailed(self._name, f"{slot} did not start: {outcome}", cause=cause)
            if outcome == "timeout":
                raise StartTimedOut(self._name, f"{slot} did not get ready")
            if outcome == "bug":
                raise ValueError("a bug in the engine")
            if outcome == "crash":
                self.crash(slot)

    async def stop(self, slot: SlotId) -> None:
        with self._doing(slot, "stop") as script:
            self.stops.append((now(), slot))
            if slot not in self.machine.running:
                return
            await asyncio.sleep(script.stop_s)
            if script.stop_error is not None:
                raise script.stop_error
            if script.stuck > 0:
                script.stuck -= 1
                raise FreeFailed(self._name, f"{slot} would not go")
            self.machine.give_back(slot, script)

    async def held_bytes(self, slot: SlotId) -> int | None:
        script = self.scripts[slot]
        if script.held_bytes_s:
            await asyncio.sleep(script.held_bytes_s)
        return self.machine.running.get(slot, 0) if script.own_bytes else None

    async def stopped_state(self, slot: SlotId) -> str | None:
        return self.frozen

    async def adopt(self) -> list[SlotId]:
        await asyncio.sleep(self.adopt_s)
        for slot in self.to_end:
            script = self.scripts[slot]
            self.machine.give_back(slot, script)
            self._ended.append(Ended(slot, script.held if script.own_bytes else None))
        if self.adopt_error is not None:
            raise self.adopt_error
        for slot in self.to_adopt:
            self.machine.take(slot, self.scripts[slot].held)
        return self.to_adopt

    def take_ended(self) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    async def close(self) -> None:
        self.closes += 1

    def crash(self, slot: SlotId, *, was_stopped: bool = False) -> None:
        """The slot's process dies, and the coordinator is told, as a watcher would."""
        if slot in self.machine.running and self._busy.get(slot) != "stop":
            self.machine.give_back(slot, self.scripts[slot])
            assert self._on_exit is not None
            self._on_exit(slot, EngineCrashed(self._name, f"{slot} died", was_stopped=was_stopped))


class SharedEngine(FakeEngine):
    """A server that runs on its own: others load and unload there (`load`, `unload`), and it may be asked (`looks`).

    With `loads_on_request` its start takes nothing, and `load` is the first request's doing. `claim` is what it says.
    """

    def __init__(self, name: str, machine: Machine, scripts: dict[SlotId, Script]) -> None:
        super().__init__(name, machine, scripts)
        self.looks = 0
        self.look_s = 0.0
        self.look_error: Exception | None = None
        self.is_ready = True
        self.loads_on_request = False
        self.claim: int | None = None

    def load(self, slot: SlotId) -> None:
        self.machine.take(slot, self.scripts[slot].held)
        self.machine.outside[slot] = now()

    def unload(self, slot: SlotId) -> None:
        """Behind the router's back; its watcher notices."""
        if slot in self.machine.running and slot not in self._busy:
            self.machine.give_back(slot, self.scripts[slot])
            assert self._on_exit is not None
            self._on_exit(slot, EngineUnloaded(self._name, f"{slot} was unloaded"))

    async def in_memory(self) -> list[Found]:
        self.looks += 1
        await asyncio.sleep(self.look_s)
        if self.look_error is not None:
            raise self.look_error
        return [Found(slot, self.is_ready) for slot in self.scripts if slot in self.machine.running]

    async def claimed(self, slot: SlotId) -> Claim | None:
        return None if self.claim is None else Claim(self.claim, 0)

    async def start(self, slot: SlotId) -> None:
        if slot in self.machine.running:
            self.machine.outside.pop(slot, None)
            del self.machine.running[slot]  # it is as if it had started just now
        if self.loads_on_request:
            self.starts.append((now(), slot))
            return
        await super().start(slot)


class Diary:
    """An Observer that writes everything down, and lets a test look at every step."""

    def __init__(self) -> None:
        self.moves: list[tuple[float, SlotId, Phase, Phase]] = []
        self.reports: list[SwapReport] = []
        self.on_move: Callable[[], None] = lambda: None

    def slot_moved(self, slot: SlotId, before: Phase, after: Phase, reason: str) -> None:
        self.moves.append((now(), slot, before, after))
        self.on_move()

    def swap_ended(self, report: SwapReport) -> None:
        self.reports.append(report)
        self.on_move()

    def results(self) -> list[str]:
        return [r.result for r in self.reports]

    def phases_of(self, slot: SlotId) -> list[str]:
        return [after.value for _, s, _, after in self.moves if s == slot]

    def starts(self) -> list[str]:
        """The slots in the order in which they were started."""
        return [str(s) for _, s, _, after in self.moves if after is Phase.STARTING]


def spec(slot: str | SlotId, **changes: Any) -> SlotSpec:
    return SlotSpec(sid(slot), **changes)


def sid(slot: str | SlotId) -> SlotId:
    if isinstance(slot, SlotId):
        return slot
    engine, _, model = slot.partition("/")
    return SlotId(engine, model or None)


def learned(start_s: float) -> Learned:
    return Learned(start_s=start_s)


class World:
    """A coordinator over scripted engines. `specs` are slot names or SlotSpecs; `scripts` go by slot name.

    `shared`: the engines that are SharedEngines.
    """

    def __init__(
        self,
        specs: Iterable[str | SlotSpec],
        rules: Rules | None = None,
        *,
        scripts: dict[str, Script] | None = None,
        machine: Machine | None = None,
        known: dict[str, Learned] | None = None,
        knows_bytes: bool = True,
        shared: Collection[str] = (),
    ) -> None:
        self.specs = [s if isinstance(s, SlotSpec) else spec(s) for s in specs]
        self.rules = rules or Rules()
        self.machine = machine or Machine()
        self.diary = Diary()
        given = {sid(k): v for k, v in (scripts or {}).items()}
        self.scripts = {s.id: given.get(s.id) or Script(own_bytes=knows_bytes) for s in self.specs}
        self.engines = {
            name: (SharedEngine if name in shared else FakeEngine)(
                name, self.machine, {s: c for s, c in self.scripts.items() if s.engine == name}
            )
            for name in {s.id.engine: None for s in self.specs}
        }
        self.coordinator = Coordinator(
            self.specs,
            self.engines,
            self.rules,
            self.machine,
            observer=self.diary,
            learned={sid(k): v for k, v in (known or {}).items()},
            now=now,
        )
        self.requests: set[asyncio.Task[str]] = set()

    async def __aenter__(self) -> World:
        await self.coordinator.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.requests:
            task.cancel()
        await asyncio.gather(*self.requests, return_exceptions=True)
        await self.coordinator.close()
        assert self.machine.faults == []
        left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        assert left == [], "tasks outlive the coordinator"

    def engine(self, slot: str) -> FakeEngine:
        return self.engines[sid(slot).engine]

    def shared(self, slot: str) -> SharedEngine:
        engine = self.engine(slot)
        assert isinstance(engine, SharedEngine)
        return engine

    def script(self, slot: str) -> Script:
        return self.scripts[sid(slot)]

    def phase(self, slot: str) -> str:
        return self.coordinator.slots[sid(slot)].phase.value

    def in_flight(self, slot: str) -> int:
        return len(self.coordinator.slots[sid(slot)].leases)

    def resident(self) -> list[str]:
        return [str(s) for s in self.machine.running]

    def crash(self, slot: str) -> None:
        self.engine(slot).crash(sid(slot))

    def unload(self, slot: str) -> bool:
        return self.coordinator.unload(sid(slot))

    async def until(self, condition: Callable[[], bool], within_s: float = 1000.0) -> None:
        """Let virtual time pass until something is so."""
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.001)

    async def in_phase(self, slot: str, phase: str) -> None:
        """Until it is, or has passed through, that phase."""
        seen = len(self.diary.moves)
        wanted = sid(slot)
        await self.until(
            lambda: (
                self.phase(slot) == phase
                or any(s == wanted and after == phase for _, s, _, after in self.diary.moves[seen:])
            )
        )

    async def serve(self, slot: str) -> None:
        """Make it resident and idle, its linger over."""
        await self.ask(slot, 0.0)
        await asyncio.sleep(self.rules.linger_s + 0.01)

    def is_at_rest(self) -> bool:
        """No swap, no lease, no ticket."""
        slots = self.coordinator.slots.values()
        return self.coordinator.queued == 0 and not any(
            s.leases or s.queue or self.coordinator.lane_of(s.id).swap for s in slots
        )

    async def ask(self, slot: str, hold_s: float = 0.1, *, priority: int = 0, byte_every_s: float | None = None) -> str:
        """What a handler does for one request: wait, use the slot for a time, give it back."""
        async with leased(self.coordinator, sid(slot), priority=priority) as lease:
            until = now() + hold_s
            while byte_every_s is not None and now() + byte_every_s < until:
                await asyncio.sleep(byte_every_s)
                lease.last_byte_at = now()
            await asyncio.sleep(max(0.0, until - now()))
            lease.has_answered = True
        return f"answered by {slot}"

    def request(self, slot: str, hold_s: float = 0.1, **options: Any) -> asyncio.Task[str]:
        """A request in a task of its own, begun before this returns to the caller's next await."""
        task = asyncio.get_running_loop().create_task(self.ask(slot, hold_s, **options), name=f"request for {slot}")
        self.requests.add(task)
        task.add_done_callback(self.requests.discard)
        task.add_done_callback(lambda t: t.cancelled() or t.exception())  # who does not ask for it does not care
        return task


@contextlib.asynccontextmanager
async def leased(coordinator: Coordinator, slot: SlotId, *, priority: int = 0) -> AsyncIterator[Lease]:
    """As the data path uses it."""
    lease = coordinator.try_lease(slot)
    if lease is None:
        with coordinator.place(slot, priority=priority) as ticket:
            lease = await ticket.granted
    with lease:
        yield lease
