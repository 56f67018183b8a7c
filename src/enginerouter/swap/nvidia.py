"""Memory of NVIDIA cards: from NVML where its Python bindings are installed, else from `nvidia-smi`.

NVML is asked in a thread of its own, `nvidia-smi` as a child: a driver that hangs stops neither the event loop nor the
router's end, and is waited for once, not at each step of a swap. Neither creates a CUDA context. Somebody has to want
a reading for one to be made. What the tools say in place of a number is kept as the device's `problem`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psutil

from enginerouter.command import Said, run
from enginerouter.swap.memory import STALE_AFTER_S, Device, Processes
from enginerouter.tasks import TaskGroup

MIB = 1024**2
# nvidia-smi takes 20 ms with a loaded driver and seconds where the driver has to be loaded first.
TOOL_TIMEOUT_S = 10.0
# Longer than the tool is given, so that its own word on why there is none is heard.
FIRST_READING_TIMEOUT_S = TOOL_TIMEOUT_S + 3.0
CARDS_QUERY = ("--query-gpu=name,memory.total,memory.used,memory.free", "--format=csv,noheader,nounits")
PROCESSES_QUERY = ("--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
# What stands in place of a number on a card without memory of its own (GB10).
NO_MEMORY_OF_ITS_OWN = frozenset({"[N/A]", "N/A", "[Not Supported]", "Not Supported"})


@dataclass(frozen=True, slots=True)
class CardReading:
    """What all cards said at one moment. `problem`: why they said nothing."""

    devices: tuple[Device, ...] = ()
    processes: Processes | None = None
    problem: str = ""


class Reader(Protocol):
    """One way to ask. A failure is a reading with a `problem`, not an exception."""

    @property
    def name(self) -> str: ...

    async def read(self) -> CardReading: ...


# --- what the tools print


def parse_cards(text: str) -> tuple[Device, ...]:
    """The lines of `CARDS_QUERY`: `NVIDIA H200, 143771, 1024, 142747` (MiB), or words in place of the numbers."""
    return tuple(_card(line) for line in text.splitlines() if line.count(",") >= 3)


def _card(line: str) -> Device:
    # From the right: a product name may have a comma.
    name, total, _, free = (field.strip() for field in line.rsplit(",", 3))
    if total.isdecimal() and free.isdecimal():
        if int(total) == 0:
            return Device(name, is_unified=True, problem="reports no memory of its own")
        return Device(name, int(total) * MIB, int(free) * MIB)
    word = next(w for w in (total, free) if not w.isdecimal())
    return Device(name, is_unified=word in NO_MEMORY_OF_ITS_OWN, problem=f"reports {word}")


def parse_processes(text: str) -> dict[int, int | None]:
    """The lines of `PROCESSES_QUERY`: `4711, 21940` (MiB). A process on several cards has several lines."""
    found: dict[int, int | None] = {}
    for line in text.splitlines():
        pid, _, size = (field.strip() for field in line.partition(","))
        if pid.isdecimal():
            found[int(pid)] = _added(found.get(int(pid), 0), int(size) * MIB if size.isdecimal() else None)
    return found


def _added(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


# --- nvidia-smi


class Smi:
    """One-shot calls of `nvidia-smi`, each bounded. One that cannot even be killed is not followed by more."""

    name = "nvidia-smi"

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self._unkillable = 0

    async def read(self) -> CardReading:
        if self._unkillable and psutil.pid_exists(self._unkillable):
            return CardReading(problem=f"nvidia-smi (pid {self._unkillable}) hangs and cannot be killed")
        # return_exceptions: a cancellation waits until both children are ended.
        answers = await asyncio.gather(self._ask(CARDS_QUERY), self._ask(PROCESSES_QUERY), return_exceptions=True)
        cards, processes = (a if isinstance(a, Said) else Said(self.name, None, error=repr(a)) for a in answers)
        if not cards.is_ok:
            return CardReading(problem=cards.problem())
        return CardReading(parse_cards(cards.out), parse_processes(processes.out) if processes.is_ok else None)

    async def _ask(self, query: Sequence[str]) -> Said:
        said = await run([*self._command, *query], TOOL_TIMEOUT_S, shown="nvidia-smi")
        self._unkillable = said.left_pid or self._unkillable
        return said


# --- NVML


class Nvml:
    """NVML through its Python bindings (the module `pynvml` of the package nvidia-ml-py)."""

    name = "NVML"

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._is_ready = False

    async def read(self) -> CardReading:
        return await in_daemon_thread(self._read, CardReading(problem="reading NVML broke; see the log"), "nvml")

    def _read(self) -> CardReading:
        nvml = self._nvml
        try:
            if not self._is_ready:
                nvml.nvmlInit()
                self._is_ready = True
            handles = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            self._is_ready = False
            return CardReading(problem=f"NVML: {error}")
        return CardReading(tuple(map(self._device, handles)), self._processes(handles))

    def _device(self, handle: Any) -> Device:
        nvml, name = self._nvml, "NVIDIA card"
        try:
            said = nvml.nvmlDeviceGetName(handle)
            name = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            is_unified = error.value == nvml.NVML_ERROR_NOT_SUPPORTED
            return Device(name, is_unified=is_unified, problem=f"reports {error}")
        if not memory.total:
            return Device(name, is_unified=True, problem="reports no memory of its own")
        return Device(name, int(memory.total), int(memory.free))

    def _processes(self, handles: Iterable[Any]) -> dict[int, int | None] | None:
        """Compute and graphics (Vulkan) processes; one that is on both lists of a card is counted once."""
        nvml, found, has_list = self._nvml, dict[int, int | None](), False
        for handle in handles:
            here: dict[int, int | None] = {}
            for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
                with contextlib.suppress(nvml.NVMLError):
                    listed = ask(handle)
                    has_list = True
                    here.update((p.pid, p.usedGpuMemory) for p in listed if here.get(p.pid) is None)
            for pid, size in here.items():
                found[pid] = _added(found.get(pid, 0), size)
        return found if has_list else None


async def in_daemon_thread(work: Callable[[], CardReading], if_broken: CardReading, name: str) -> CardReading:
    """The result of `work`, whose thread nobody has to wait for: a hanging driver must not hold up the router's end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[CardReading] = loop.create_future()

    def tell(result: CardReading) -> None:
        if not done.done():
            done.set_result(result)

    def run() -> None:
        result = if_broken
        try:
            result = work()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants it any more
                loop.call_soon_threadsafe(tell, result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done


def find_readers() -> list[Reader]:
    """The ways in which NVIDIA cards may be asked on this machine, the best first."""
    found: list[Reader] = []
    with contextlib.suppress(ImportError):
        found.append(Nvml(importlib.import_module("pynvml")))
    command = shutil.which("nvidia-smi")
    if command is not None:
        found.append(Smi([command]))
    return found


# --- the source


class Nvidia:
    """The memory of all discrete NVIDIA cards as one pool."""

    counts_host_pages = False

    def __init__(self, reader: Reader, now: Callable[[], float] = time.monotonic) -> None:
        self._reader = reader
        self._now = now
        self._tasks = TaskGroup()
        self._poll: asyncio.Task[None] | None = None
        self._reading = CardReading(problem="not read yet")
        # When the last finished reading began: what happened before that, it has seen.
        self._read_at = float("-inf")
        # A reading did not come in time. Until one does, nobody waits for another.
        self._hangs = False

    @property
    def name(self) -> str:
        return f"nvidia ({self._reader.name})"

    @property
    def problem(self) -> str:
        if self._reading.problem:
            return self._reading.problem
        if self._is_stale():
            return f"{self._reader.name} has not answered for {STALE_AFTER_S:g} s"
        if self.available() is None:
            return "; ".join(f"{d.name} {d.problem}" for d in self._reading.devices) or "no card was found"
        return ""

    async def start(self) -> None:
        await self.refresh(within_s=FIRST_READING_TIMEOUT_S)
        if self._read_at == float("-inf"):
            problem = f"{self._reader.name} has not answered within {FIRST_READING_TIMEOUT_S:g} s"
            self._reading = CardReading(problem=problem)

    async def refresh(self, within_s: float = STALE_AFTER_S) -> None:
        asked_at = self._now()
        until = asked_at + within_s
        while self._read_at < asked_at and (left := until - self._now()) > 0:
            # A reading under way may have looked before the caller asked; then it takes one more.
            if self._poll is None or self._poll.done():
                self._poll = self._tasks.spawn(self._read(), f"read {self._reader.name}")
            if self._hangs:
                return
            await asyncio.wait({self._poll}, timeout=left)
        self._hangs = self._read_at < asked_at

    async def _read(self) -> None:
        began_at = self._now()
        self._reading = await self._reader.read()
        self._read_at = began_at
        if self._now() - began_at <= STALE_AFTER_S:
            self._hangs = False

    def _is_stale(self) -> bool:
        return self._now() - self._read_at > STALE_AFTER_S

    def available(self) -> int | None:
        if self._is_stale():
            return None
        readable = [d.available_bytes for d in self._reading.devices if d.is_readable]
        return sum(b for b in readable if b is not None) if readable else None

    def devices(self) -> Sequence[Device]:
        return self._reading.devices

    def processes(self) -> Processes | None:
        return None if self._is_stale() else self._reading.processes

    async def close(self) -> None:
        await self._tasks.close()
